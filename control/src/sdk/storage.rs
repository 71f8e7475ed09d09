//! Drives, scans and differences, as the admin service shows them.
use super::Services;
use crate::error::OpError;
use crate::node::ScanReport;
use crate::records::Found;
use keelblock_api::admin::*;
use keelblock_api::datapath::{self as dp, DiffSnapshotsRequest, DriveState, Health};
use uuid::Uuid;

/// A pool; `name` is what its record calls it.
pub(super) fn pool_status(pool: dp::Pool, name: String) -> PoolStatus {
    PoolStatus {
        pool_id: pool.pool_id,
        name,
        total_bytes: pool.total_bytes,
        used_bytes: pool.used_bytes,
        free_bytes: pool.free_bytes,
        reserved_bytes: pool.reserved_bytes,
        metadata_bytes: pool.metadata_bytes,
        provisioned_bytes: pool.provisioned_bytes,
        drives: pool.drives.into_iter().map(drive_status).collect(),
    }
}

pub(super) fn drive_status(d: dp::Drive) -> DriveStatus {
    let state = match d.state() {
        DriveState::Unspecified | DriveState::DriveInUse => "in-use",
        DriveState::DriveEvacuating => "evacuating",
        DriveState::DriveEvacuated => "evacuated",
    };
    DriveStatus {
        online: d.health() == Health::Online,
        state: state.into(),
        drive_id: d.drive_id,
        path: d.path,
        size_bytes: d.size_bytes,
        error: d.error,
        used_bytes: d.used_bytes,
        free_bytes: d.free_bytes,
        lanes: d.lanes,
        read_errors: d.read_errors,
        checksum_errors: d.checksum_errors,
        write_errors: d.write_errors,
        evacuation_bytes: d.evacuation_bytes,
        evacuated_bytes: d.evacuated_bytes,
        evacuation_error: d.evacuation_error,
    }
}

pub(super) fn drive_reply((pool, drive): (Uuid, dp::Drive)) -> DriveReply {
    DriveReply {
        pool_id: pool.to_string(),
        drive: Some(drive_status(drive)),
    }
}

pub(super) fn scan_status(report: ScanReport) -> ScanStatus {
    let record = report.record;
    let mut status = ScanStatus {
        pool_id: report.pool_id.to_string(),
        state: "none".into(),
        next_unix_ms: record.next_unix_ms().unwrap_or(0),
        ..Default::default()
    };
    if let Some(schedule) = record.schedule {
        status.interval_s = schedule.interval_s;
        status.schedule_rate_bytes_per_s = schedule.rate_bytes_per_s;
    }
    if let Some(last) = record.last {
        status.state = last.state.name().into();
        status.rate_bytes_per_s = last.rate_bytes_per_s;
        status.total_bytes = last.total_bytes;
        status.scanned_bytes = last.scanned_bytes;
        status.errors = last.errors;
        status.repaired = last.repaired;
        status.started_unix_ms = last.started_unix_ms;
        status.finished_unix_ms = last.finished_unix_ms;
    }
    status
}

impl Services {
    /// Where two states of a volume differ.
    pub(super) async fn diff(
        &self,
        request: DiffVolumeRequest,
    ) -> Result<DiffVolumeReply, OpError> {
        let registry = &self.node().registry;
        let mut volume = None;
        if !request.volume.is_empty() {
            volume = match registry.find("volume", &request.volume).await? {
                Some(Found::Volume(found)) => Some(found.record.volume_id),
                Some(Found::Snapshot(_)) => {
                    let why = format!(
                        "{} is a snapshot: give it as `from` or `to`",
                        request.volume
                    );
                    return Err(OpError::invalid("volume", why));
                }
                None => return Err(OpError::no_volume(request.volume)),
            };
        }
        let mut ids = [String::new(), String::new()];
        for (id, name) in ids.iter_mut().zip([&request.from, &request.to]) {
            if name.is_empty() {
                continue;
            }
            let snapshot = registry.snapshot(name).await?.record;
            if *volume.get_or_insert(snapshot.volume_id) != snapshot.volume_id {
                return Err(OpError::State(format!(
                    "snapshot {} is of volume {}: only states of one volume can be compared",
                    snapshot.name, snapshot.volume_name
                )));
            }
            *id = snapshot.snapshot_id.to_string();
        }
        let Some(volume) = volume else {
            return Err(OpError::Missing {
                field: "volume",
                hint: "the name or id of a volume, unless a snapshot says it",
            });
        };
        let [from_snapshot_id, to_snapshot_id] = ids;
        let request = DiffSnapshotsRequest {
            volume_id: volume.to_string(),
            from_snapshot_id,
            to_snapshot_id,
            start_offset: request.start_offset,
            ranges_max: request.ranges_max,
        };
        let link = &self.node().link;
        link.up()?;
        let diff = link.call("compare snapshots", |mut c| async move {
            c.diff_snapshots(request).await
        });
        let diff = diff.await?;
        let range = |r: dp::DiffRange| DiffRange {
            offset: r.offset,
            length: r.length,
            data: r.data,
        };
        Ok(DiffVolumeReply {
            ranges: diff.ranges.into_iter().map(range).collect(),
            next_offset: diff.next_offset,
        })
    }
}
