//! Snapshots.
//!
//! Snapshots that are taken at one barrier are a *group*: their records are written in one transaction, the data path takes all or none, and
//! they become ready in one transaction.
use super::Node;
use super::wishes::{check_labels, check_name, merge_labels};
use crate::auth::OwnershipWish;
use crate::error::OpError;
use crate::kvdb::client::Write;
use crate::records::{Found, Phase, SnapshotRecord, Versioned, VolumeRecord, encode, unix_ms};
use keelblock_api::datapath::{CreateSnapshotsRequest, DeleteSnapshotRequest, NewSnapshot};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Volumes at one barrier: their records are one transaction, which has at most 128 operations.
const GROUP_MAX: usize = 32;

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub struct SnapshotWish {
    /// Id or name of the volume.
    pub volume: String,
    /// Its own name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

fn check_wishes(wishes: &[SnapshotWish]) -> Result<(), OpError> {
    if wishes.is_empty() || wishes.len() > GROUP_MAX {
        return Err(OpError::invalid(
            "snapshots",
            format!("1 to {GROUP_MAX} at one barrier"),
        ));
    }
    let mut names = BTreeSet::new();
    for wish in wishes {
        check_name(&wish.name)?;
        check_labels(&wish.labels)?;
        if !names.insert(&wish.name) {
            return Err(OpError::invalid(
                "name",
                format!("{} is given twice", wish.name),
            ));
        }
    }
    Ok(())
}

fn given_twice(volume: &VolumeRecord) -> OpError {
    OpError::invalid("volume", format!("{} is given twice", volume.name))
}

/// The snapshot of a volume that has this name; `None`: nothing has.
///
/// # Errors
/// [`OpError::Exists`]: it is something else's.
pub(super) fn snapshot_of(
    name: &str,
    named: Option<Found>,
    volume: Uuid,
) -> Result<Option<SnapshotRecord>, OpError> {
    let exists = |what| OpError::Exists {
        name: name.to_owned(),
        what,
    };
    match named {
        Some(Found::Snapshot(s)) if s.record.volume_id == volume => Ok(Some(s.record)),
        Some(Found::Snapshot(s)) => Err(exists(format!(
            "as a snapshot of volume {}",
            s.record.volume_name
        ))),
        Some(Found::Volume(_)) => Err(exists("as a volume".into())),
        None => Ok(None),
    }
}

/// Whether these are all of the snapshots that are asked for, of one moment; false: there is none.
///
/// # Errors
/// [`OpError::Exists`]: some are, or they were taken at several moments.
pub(super) fn of_one_group(found: &[SnapshotRecord], wanted: usize) -> Result<bool, OpError> {
    let Some(first) = found.first() else {
        return Ok(false);
    };
    if found.len() < wanted || found.iter().any(|s| s.group != first.group) {
        return Err(OpError::Exists {
            name: format!("snapshot {}", first.name),
            what: "taken at another time than others that are asked for".into(),
        });
    }
    Ok(true)
}

impl Node {
    /// Takes snapshots of volumes at one barrier; their ids. The same wish again gives the same ids.
    pub async fn create_snapshots(&self, wishes: Vec<SnapshotWish>) -> Result<Vec<Uuid>, OpError> {
        check_wishes(&wishes)?;
        let mut several: Vec<Versioned<VolumeRecord>> = Vec::with_capacity(wishes.len());
        for wish in &wishes {
            let volume = self.registry.volume(&wish.volume).await?;
            let same = |v: &Versioned<VolumeRecord>| v.record.volume_id == volume.record.volume_id;
            if several.iter().any(same) {
                return Err(given_twice(&volume.record));
            }
            several.push(volume);
        }
        let replicated = |v: &&Versioned<VolumeRecord>| v.record.replicated.is_some();
        match (several.iter().filter(replicated).count(), &several[..]) {
            (0, _) => {}
            (1, [volume]) => {
                let id = self.snapshot_replicated(&wishes[0], volume.clone()).await?;
                return Ok(vec![id]);
            }
            (n, all) if n == all.len() => return self.snapshot_group(&wishes, all).await,
            _ => {
                return Err(OpError::State(
                    "volumes with several replicas and volumes of one node's pool have no barrier in common: take their snapshots apart".into(),
                ));
            }
        }
        let _changing = self.exclusive().await?;
        let mut volumes: Vec<VolumeRecord> = Vec::with_capacity(wishes.len());
        for wish in &wishes {
            let volume = self.registry.volume(&wish.volume).await?.record;
            self.own(&volume)?;
            volumes.push(volume);
        }
        if let Some(ids) = self.adopt_snapshots(&wishes, &volumes).await? {
            return Ok(ids);
        }
        for volume in &volumes {
            self.usable(volume)?;
        }
        self.link.up()?;
        let group = Uuid::new_v4();
        let created_unix_ms = unix_ms();
        let record = |(wish, volume): (SnapshotWish, VolumeRecord)| SnapshotRecord {
            snapshot_id: Uuid::new_v4(),
            name: wish.name,
            phase: Phase::Creating,
            volume_id: volume.volume_id,
            volume_name: volume.name,
            group,
            node_id: volume.node_id,
            pool_id: volume.pool_id,
            size_bytes: volume.size_bytes,
            block_bytes: volume.block_bytes,
            labels: wish.labels,
            created_unix_ms,
            error: String::new(),
            epoch: None,
            for_clone: None,
            joint: None,
            ownership: volume.ownership,
        };
        let records: Vec<_> = wishes.into_iter().zip(volumes).map(record).collect();
        let keys = self.registry.keys();
        let made = records.iter().flat_map(|r| {
            let id = r.snapshot_id.to_string().into_bytes();
            [
                (keys.snapshot(r.snapshot_id), encode(r)),
                (keys.volume_name(&r.name), id),
            ]
        });
        if !self.registry.make(made.collect()).await? {
            return Err(OpError::Contended {
                what: format!("snapshot {}", records[0].name),
            });
        }
        self.finish_snapshots(&records).await?;
        tracing::info!(first = records[0].name, count = records.len(), %group, "snapshots taken");
        Ok(records.iter().map(|r| r.snapshot_id).collect())
    }

    /// The snapshots that were asked for before; `None`: none of the names is taken.
    async fn adopt_snapshots(
        &self,
        wishes: &[SnapshotWish],
        volumes: &[VolumeRecord],
    ) -> Result<Option<Vec<Uuid>>, OpError> {
        let mut found: Vec<SnapshotRecord> = Vec::new();
        for (wish, volume) in wishes.iter().zip(volumes) {
            match self.registry.by_name(&wish.name).await? {
                Some(Found::Snapshot(s))
                    if s.record.phase == Phase::Deleting && s.record.epoch.is_none() =>
                {
                    self.link.up()?;
                    self.finish_delete_snapshot(&s.record).await?;
                }
                named => found.extend(snapshot_of(&wish.name, named, volume.volume_id)?),
            }
        }
        if !of_one_group(&found, wishes.len())? {
            return Ok(None);
        }
        if found.iter().any(|s| s.phase == Phase::Creating) {
            self.link.up()?;
            self.finish_snapshots(&found).await?;
        }
        Ok(Some(found.iter().map(|s| s.snapshot_id).collect()))
    }

    /// Takes a group whose records are there. If it is refused, the records go; if that is unknown, they stay, and
    /// what became of it is looked at when the data path is back.
    async fn finish_snapshots(&self, records: &[SnapshotRecord]) -> Result<(), OpError> {
        let new = |r: &SnapshotRecord| NewSnapshot {
            volume_id: r.volume_id.to_string(),
            snapshot_id: r.snapshot_id.to_string(),
        };
        let request = CreateSnapshotsRequest {
            snapshots: records.iter().map(new).collect(),
        };
        let what = format!("create snapshot {}", records[0].name);
        match self
            .link
            .call(
                &what,
                |mut c| async move { c.create_snapshots(request).await },
            )
            .await
        {
            Ok(_) => self.snapshots_ready(records).await,
            Err(error) if error.is_uncertain() => Err(error),
            Err(refused) => {
                for record in records {
                    self.forget_snapshot(record).await?;
                }
                Err(refused)
            }
        }
    }

    /// Makes the records of a group ready.
    pub(crate) async fn snapshots_ready(&self, records: &[SnapshotRecord]) -> Result<(), OpError> {
        let ready = |r: &SnapshotRecord| {
            let key = self.registry.keys().snapshot(r.snapshot_id);
            let ready = SnapshotRecord {
                phase: Phase::Ready,
                ..r.clone()
            };
            Write::put(key, encode(&ready))
        };
        // Nobody else changes them: changes of this node are one at a time, and it alone has them.
        self.commit("snapshots", vec![], records.iter().map(ready).collect())
            .await
    }

    pub(super) async fn delete_snapshot(&self, record: &SnapshotRecord) -> Result<(), OpError> {
        if record.epoch.is_some() {
            return self.delete_replicated_snapshot(record).await;
        }
        self.own_snapshot(record)?;
        self.link.up()?;
        let deleting = self.change_snapshot(record.snapshot_id, |r| {
            r.phase = Phase::Deleting;
            Ok(true)
        });
        self.finish_delete_snapshot(&deleting.await?).await?;
        tracing::info!(snapshot = record.name, id = %record.snapshot_id, "snapshot deleted");
        Ok(())
    }

    /// Deletes a snapshot on its way out, then forgets it.
    pub(crate) async fn finish_delete_snapshot(
        &self,
        record: &SnapshotRecord,
    ) -> Result<(), OpError> {
        self.drop_snapshot(&record.name, record.volume_id, record.snapshot_id)
            .await?;
        self.forget_snapshot(record).await
    }

    /// Deletes a snapshot in the data path.
    pub(crate) async fn drop_snapshot(
        &self,
        name: &str,
        volume_id: Uuid,
        snapshot_id: Uuid,
    ) -> Result<(), OpError> {
        let request = DeleteSnapshotRequest {
            volume_id: volume_id.to_string(),
            snapshot_id: snapshot_id.to_string(),
        };
        let what = format!("delete snapshot {name}");
        let deleted = self.link.call(
            &what,
            |mut c| async move { c.delete_snapshot(request).await },
        );
        deleted.await.map(drop)
    }

    /// Removes every record of a snapshot.
    pub(crate) async fn forget_snapshot(&self, record: &SnapshotRecord) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let gone = [
            keys.snapshot(record.snapshot_id),
            keys.volume_name(&record.name),
        ];
        self.commit(
            &record.name,
            vec![],
            gone.iter().map(Write::delete).collect(),
        )
        .await
    }

    pub(super) async fn label_snapshot(
        &self,
        record: &SnapshotRecord,
        labels: BTreeMap<String, String>,
        ownership: Option<OwnershipWish>,
    ) -> Result<(), OpError> {
        let set = |r: &mut SnapshotRecord| {
            if let Some(wish) = &ownership {
                r.ownership = Some(wish.of(r.ownership.as_ref())?);
            }
            merge_labels(&mut r.labels, &labels)?;
            Ok(!labels.is_empty() || ownership.is_some())
        };
        self.change_snapshot(record.snapshot_id, set)
            .await
            .map(drop)
    }

    /// Writes down what is wrong with a snapshot; empty: nothing.
    pub(crate) async fn set_snapshot_error(
        &self,
        record: &SnapshotRecord,
        error: &str,
    ) -> Result<(), OpError> {
        let set = |r: &mut SnapshotRecord| {
            let changes = r.error != error;
            r.error = error.to_owned();
            Ok(changes)
        };
        self.change_snapshot(record.snapshot_id, set)
            .await
            .map(drop)
    }

    pub(super) async fn change_snapshot(
        &self,
        id: Uuid,
        change: impl FnMut(&mut SnapshotRecord) -> Result<bool, OpError>,
    ) -> Result<SnapshotRecord, OpError> {
        let key = self.registry.keys().snapshot(id);
        self.registry
            .change(&key, || OpError::no_snapshot(id), change)
            .await
    }

    pub(super) fn own_snapshot(&self, record: &SnapshotRecord) -> Result<(), OpError> {
        if record.node_id == self.node_id() {
            return Ok(());
        }
        if record.epoch.is_some() {
            return Err(OpError::State(format!(
                "snapshot {} is of a volume with several replicas, and this version cannot do that with it",
                record.name
            )));
        }
        Err(OpError::State(format!(
            "snapshot {} is on node {}: ask that node",
            record.name, record.node_id
        )))
    }

    pub(super) fn usable_snapshot(&self, record: &SnapshotRecord) -> Result<(), OpError> {
        self.own_snapshot(record)?;
        match (record.phase, record.error.as_str()) {
            (Phase::Ready, "") => Ok(()),
            (Phase::Ready, error) => Err(OpError::State(format!(
                "snapshot {} is in error: {error}",
                record.name
            ))),
            _ => Err(OpError::State(format!(
                "snapshot {} is still being taken: try again",
                record.name
            ))),
        }
    }
}
