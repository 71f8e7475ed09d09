//! Between the words of the contract and the data path's own.

use std::sync::Arc;

use keelblock_api::datapath as proto;
use uuid::Uuid;

use super::CommandError;
use crate::nvmf::seam::{AnaState, ControllerInfo, ExportConfig, NamespaceConfig};
use crate::store::pool::{DriveFacts, DriveState, PoolDrive, PoolSnapshot};
use crate::store::types::{BLOCK_BYTES, SnapshotId};
use crate::store::{Name, VolumeId};

/// Longest NQN (NVMe Base 2.1, 4.7).
const NQN_BYTES_MAX: usize = 223;

/// The id of a volume.
pub fn volume_id(text: &str) -> Result<VolumeId, CommandError> {
    named_volume_id("volume_id", text)
}

/// The same of a field with another name.
pub fn named_volume_id(field: &'static str, text: &str) -> Result<VolumeId, CommandError> {
    let uuid = Uuid::parse_str(text)
        .map_err(|e| CommandError::field(field, format!("{text:?} is no UUID: {e}")))?;
    Ok(VolumeId(uuid.into_bytes()))
}

/// The id of a snapshot.
pub fn snapshot_id(field: &'static str, text: &str) -> Result<SnapshotId, CommandError> {
    let uuid = Uuid::parse_str(text)
        .map_err(|e| CommandError::field(field, format!("{text:?} is no UUID: {e}")))?;
    Ok(SnapshotId(uuid.into_bytes()))
}

/// The same of a field that may be empty.
pub fn maybe_snapshot_id(
    field: &'static str,
    text: &str,
) -> Result<Option<SnapshotId>, CommandError> {
    match text.is_empty() {
        true => Ok(None),
        false => snapshot_id(field, text).map(Some),
    }
}

/// A snapshot of a pool, as the contract lists it.
pub fn snapshot_to(pool: &Name, snapshot: &PoolSnapshot) -> proto::Snapshot {
    proto::Snapshot {
        snapshot_id: snapshot.id.to_string(),
        volume_id: snapshot.volume.to_string(),
        pool_id: pool.to_string(),
        size_bytes: snapshot.size_bytes,
        used_bytes: snapshot.used_bytes,
        complete: snapshot.complete(),
        error: snapshot.error.map_or_else(String::new, |e| {
            format!("its used bytes are those of the last checkpoint: {e}")
        }),
    }
}

/// A drive of a pool, as the contract lists it.
pub fn drive_to(drive: &PoolDrive, path: &str, error: String) -> proto::Drive {
    let health = match drive.failed {
        true => proto::Health::Failed,
        false => proto::Health::Online,
    };
    let state = match drive.state {
        DriveState::InUse => proto::DriveState::DriveInUse,
        DriveState::Evacuating => proto::DriveState::DriveEvacuating,
        DriveState::Evacuated => proto::DriveState::DriveEvacuated,
    };
    let facts = drive.facts.as_ref();
    let used = |f: &DriveFacts| f.space.used * BLOCK_BYTES as u64;
    proto::Drive {
        drive_id: drive.id.to_string(),
        path: path.to_owned(),
        size_bytes: facts.map_or(0, |f| f.size_bytes),
        health: health.into(),
        error,
        state: state.into(),
        used_bytes: facts.map_or(0, used),
        free_bytes: drive.free_bytes(),
        lanes: facts.map_or(0, |f| f.lanes.len() as u32),
        read_errors: facts.map_or(0, |f| f.counters.read_errors),
        checksum_errors: facts.map_or(0, |f| f.counters.checksum_errors),
        write_errors: facts.map_or(0, |f| f.counters.write_errors),
        ..Default::default()
    }
}

fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], CommandError> {
    bytes
        .try_into()
        .map_err(|_| CommandError::field(field, format!("{} bytes, 16 are needed", bytes.len())))
}

fn ana_of(state: proto::AnaState) -> Result<AnaState, CommandError> {
    match state {
        proto::AnaState::AnaOptimized => Ok(AnaState::Optimized),
        proto::AnaState::AnaNonOptimized => Ok(AnaState::NonOptimized),
        proto::AnaState::AnaInaccessible => Ok(AnaState::Inaccessible),
        proto::AnaState::AnaPersistentLoss => Ok(AnaState::PersistentLoss),
        proto::AnaState::AnaChange => Ok(AnaState::Change),
        proto::AnaState::AnaUnspecified => Err(CommandError::field("ana_state", "it is not given")),
    }
}

fn ana_to(state: AnaState) -> proto::AnaState {
    match state {
        AnaState::Optimized => proto::AnaState::AnaOptimized,
        AnaState::NonOptimized => proto::AnaState::AnaNonOptimized,
        AnaState::Inaccessible => proto::AnaState::AnaInaccessible,
        AnaState::PersistentLoss => proto::AnaState::AnaPersistentLoss,
        AnaState::Change => proto::AnaState::AnaChange,
    }
}

fn cntlid(field: &'static str, value: u32) -> Result<u16, CommandError> {
    u16::try_from(value).map_err(|_| CommandError::field(field, format!("{value} is no CNTLID")))
}

/// What an export asks for; sizes and caches of volumes are put in later, by who knows the volumes.
pub fn export_of(request: proto::ExportRequest) -> Result<ExportConfig, CommandError> {
    let nqn = &request.nqn;
    if !nqn.starts_with("nqn.") || nqn.len() > NQN_BYTES_MAX {
        let why = format!("{nqn:?} does not begin with \"nqn.\" or is longer than {NQN_BYTES_MAX}");
        return Err(CommandError::field("nqn", why));
    }
    let serial = &request.serial;
    if serial.len() > 20 || !serial.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        let why = format!("{serial:?} is not at most 20 printable ASCII characters");
        return Err(CommandError::field("serial", why));
    }
    let ana_state = ana_of(request.ana_state())?;
    let namespaces = request.namespaces.iter().map(namespace_of);
    let mut namespaces = namespaces.collect::<Result<Vec<_>, _>>()?;
    namespaces.sort_by_key(|ns| ns.nsid);
    Ok(ExportConfig {
        nqn: Arc::from(request.nqn),
        serial: request.serial,
        namespaces,
        allowed_hosts: (!request.allow_any_host).then_some(request.allowed_hosts),
        ana_state,
        cntlid_min: cntlid("cntlid_min", request.cntlid_min)?,
        cntlid_max: cntlid("cntlid_max", request.cntlid_max)?,
    })
}

fn namespace_of(ns: &proto::Namespace) -> Result<NamespaceConfig, CommandError> {
    let lba_shift = match ns.lba_bytes {
        512 => 9,
        4096 => 12,
        other => {
            let why = format!("{other}: 512 and 4096 are possible");
            return Err(CommandError::field("lba_bytes", why));
        }
    };
    Ok(NamespaceConfig {
        nsid: ns.nsid,
        volume: volume_id(&ns.volume_id)?.0,
        lba_shift,
        blocks: 0,
        nguid: sixteen("nguid", &ns.nguid)?,
        uuid: sixteen("uuid", &ns.uuid)?,
        reservation: ns.reservation.clone(),
        volatile_cache: false,
    })
}

/// An export and its controllers, as the contract lists them.
pub fn subsystem_to(config: &ExportConfig, controllers: &[ControllerInfo]) -> proto::Subsystem {
    let namespaces = config.namespaces.iter().map(|ns| proto::Namespace {
        nsid: ns.nsid,
        volume_id: VolumeId(ns.volume).to_string(),
        lba_bytes: 1 << ns.lba_shift,
        nguid: ns.nguid.to_vec(),
        uuid: ns.uuid.to_vec(),
        reservation: ns.reservation.clone(),
    });
    let controllers = controllers.iter().map(|c| proto::Controller {
        cntlid: u32::from(c.cntlid),
        host_nqn: c.host_nqn.clone(),
        host_id: c.host_id.to_vec(),
        peer: c.peer.to_string(),
        io_queues: c.io_queues,
    });
    proto::Subsystem {
        config: Some(proto::ExportRequest {
            nqn: config.nqn.to_string(),
            serial: config.serial.clone(),
            namespaces: namespaces.collect(),
            allowed_hosts: config.allowed_hosts.clone().unwrap_or_default(),
            allow_any_host: config.allowed_hosts.is_none(),
            ana_state: ana_to(config.ana_state).into(),
            cntlid_min: u32::from(config.cntlid_min),
            cntlid_max: u32::from(config.cntlid_max),
        }),
        controllers: controllers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> proto::ExportRequest {
        proto::ExportRequest {
            nqn: "nqn.2026-01.io.keelblock:v".into(),
            serial: "KB01".into(),
            namespaces: vec![proto::Namespace {
                nsid: 1,
                volume_id: "00000000-0000-4000-8000-000000000001".into(),
                lba_bytes: 512,
                nguid: vec![1; 16],
                uuid: vec![2; 16],
                reservation: vec![9],
            }],
            allowed_hosts: vec!["nqn.h".into()],
            allow_any_host: false,
            ana_state: proto::AnaState::AnaNonOptimized.into(),
            cntlid_min: 1,
            cntlid_max: 100,
        }
    }

    #[test]
    fn an_export_comes_back_as_it_was_asked_for() {
        let config = export_of(request()).unwrap();
        assert_eq!(config.namespaces[0].lba_shift, 9);
        assert_eq!(subsystem_to(&config, &[]).config, Some(request()));
        let any = proto::ExportRequest {
            allow_any_host: true,
            allowed_hosts: Vec::new(),
            ..request()
        };
        assert_eq!(export_of(any.clone()).unwrap().allowed_hosts, None);
        let config = export_of(any.clone()).unwrap();
        assert_eq!(subsystem_to(&config, &[]).config, Some(any));
    }

    #[test]
    fn fields_that_make_no_sense_are_named() {
        type Harm = fn(&mut proto::ExportRequest);
        let cases: [(&str, Harm); 8] = [
            ("nqn", |r| r.nqn = "iqn.x".into()),
            ("serial", |r| r.serial = "é".into()),
            ("ana_state", |r| r.ana_state = 0),
            ("lba_bytes", |r| r.namespaces[0].lba_bytes = 520),
            ("volume_id", |r| r.namespaces[0].volume_id = "x".into()),
            ("nguid", |r| r.namespaces[0].nguid = vec![1; 15]),
            ("uuid", |r| r.namespaces[0].uuid.clear()),
            ("cntlid_max", |r| r.cntlid_max = 1 << 16),
        ];
        for (name, harm) in cases {
            let mut r = request();
            harm(&mut r);
            match export_of(r) {
                Err(CommandError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
