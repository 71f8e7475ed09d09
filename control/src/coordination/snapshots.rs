//! Snapshots of a volume that is coordinated here (`docs/replication.md` §12): records that are *creating* are taken, those that are *deleting* deleted.
//!
//! A record names the epoch in which it is to be taken. A later coordinator only says whether it exists; if not, its record goes. That it is *ready* is written
//! while nobody has a higher epoch: whoever gets one reads all records afterwards.

use std::time::Duration;

use keelblock_api::datapath::{
    Coordinator, DropSnapshotRequest, NamedSnapshot, TakeSnapshotRequest,
};
use uuid::Uuid;

use super::Now;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{Phase, SnapshotRecord, Versioned, encode};

/// How long a snapshot is waited for at a time: members that do not get there are excluded meanwhile, what takes longer is asked for again, and other things
/// have their turn.
const TAKE_LIMIT: Duration = Duration::from_secs(3);
/// How often a record is written again because the set's has changed.
const ATTEMPTS: usize = 16;

impl Node {
    /// What whoever coordinates in an epoch is told of snapshots.
    pub(super) async fn named_snapshots(
        &self,
        volume: Uuid,
        epoch: u32,
    ) -> Result<Vec<NamedSnapshot>, OpError> {
        let prefix = self.registry.keys().snapshots();
        let all = self.registry.list::<SnapshotRecord>(&prefix).await?;
        let of_it = all.into_iter().map(|s| s.record);
        let mut of_it: Vec<SnapshotRecord> = of_it
            .filter(|s| s.volume_id == volume && s.epoch.is_some())
            .collect();
        of_it.sort_by_key(|s| (s.created_unix_ms, s.snapshot_id));
        let named = of_it.iter().filter_map(|s| {
            let ready = match s.phase {
                Phase::Ready => true,
                // One of several volumes' is void when its epoch is over.
                Phase::Creating if s.joint.is_some() => return None,
                Phase::Creating if s.epoch.is_some_and(|of| of < epoch) => false,
                Phase::Creating | Phase::Deleting | Phase::Kept => return None,
            };
            Some(NamedSnapshot {
                snapshot_id: s.snapshot_id.to_string(),
                ready,
            })
        });
        Ok(named.collect())
    }

    /// Has done what records say that is not done.
    pub(super) async fn follow_snapshots(
        &self,
        now: &Now,
        coordinator: &Coordinator,
    ) -> Result<Option<Duration>, OpError> {
        let mut again = None;
        for snapshot in &now.snapshots {
            match snapshot.record.phase {
                Phase::Ready => self.follow_clone(snapshot).await?,
                Phase::Creating if snapshot.record.joint.is_some() => {
                    let wait = self.follow_joint(snapshot, coordinator.epoch).await?;
                    again = again.or(wait);
                }
                Phase::Creating if self.clone_is_over(&snapshot.record) => {
                    self.drop_replicated(snapshot, coordinator.epoch).await?;
                }
                Phase::Creating => self.take_snapshot(snapshot, coordinator.epoch).await?,
                Phase::Kept => {}
                Phase::Deleting => self.drop_replicated(snapshot, coordinator.epoch).await?,
            }
        }
        Ok(again)
    }

    async fn take_snapshot(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        epoch: u32,
    ) -> Result<(), OpError> {
        let record = &snapshot.record;
        let request = TakeSnapshotRequest {
            volume_id: record.volume_id.to_string(),
            snapshot_id: record.snapshot_id.to_string(),
            epoch,
            of_epoch: record.epoch.unwrap_or_default(),
        };
        let what = format!("take snapshot {}", record.name);
        let taken = self
            .link
            .call_within(TAKE_LIMIT, &what, |mut c| async move {
                c.take_snapshot(request).await
            });
        match taken.await?.exists {
            true => self.snapshot_exists(snapshot, epoch).await,
            false => {
                tracing::warn!(
                    snapshot = record.name,
                    "taking it was interrupted by a takeover: it does not exist"
                );
                match record.for_clone {
                    Some(_) => self.snapshot_for_clone_again(snapshot, epoch).await,
                    None => self.forget_replicated(snapshot).await,
                }
            }
        }
    }

    /// Writes that it is ready, as long as nobody has a higher epoch.
    async fn snapshot_exists(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        epoch: u32,
    ) -> Result<(), OpError> {
        let (record, keys) = (&snapshot.record, self.registry.keys());
        let ready = SnapshotRecord {
            phase: Phase::Ready,
            ..record.clone()
        };
        for _ in 0..ATTEMPTS {
            let set = self.replication(record.volume_id).await?;
            let set = set.filter(|s| s.record.epoch.number() == epoch);
            // Whoever has another epoch says whether it exists.
            let Some(set) = set else { return Ok(()) };
            let guards = vec![
                Guard::at(keys.replication(record.volume_id), set.revision),
                Guard::at(keys.snapshot(record.snapshot_id), snapshot.revision),
            ];
            let write = Write::put(keys.snapshot(record.snapshot_id), encode(&ready));
            let kv = self.registry.kv();
            if kv.commit(guards, vec![write]).await? != Committed::No {
                tracing::info!(snapshot = record.name, id = %record.snapshot_id, "snapshot taken");
                return Ok(());
            }
            let key = keys.snapshot(record.snapshot_id);
            let there = self.registry.get::<SnapshotRecord>(&key).await?;
            if there.is_none_or(|s| s.revision != snapshot.revision) {
                // It is looked at again as it is.
                return Ok(());
            }
        }
        Err(OpError::Contended {
            what: format!("snapshot {}", record.name),
        })
    }

    async fn drop_replicated(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        epoch: u32,
    ) -> Result<(), OpError> {
        let record = &snapshot.record;
        let request = DropSnapshotRequest {
            volume_id: record.volume_id.to_string(),
            snapshot_id: record.snapshot_id.to_string(),
            epoch,
        };
        let what = format!("delete snapshot {}", record.name);
        let dropped = self
            .link
            .call_within(TAKE_LIMIT, &what, |mut c| async move {
                c.drop_snapshot(request).await
            });
        dropped.await?;
        tracing::info!(snapshot = record.name, id = %record.snapshot_id, "snapshot deleted");
        self.forget_replicated(snapshot).await
    }

    /// Takes its records away, unless somebody changed them.
    pub(super) async fn forget_replicated(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
    ) -> Result<(), OpError> {
        let (record, keys) = (&snapshot.record, self.registry.keys());
        let key = keys.snapshot(record.snapshot_id);
        let guards = vec![Guard::at(&key, snapshot.revision)];
        let mut writes = vec![Write::delete(&key)];
        if record.for_clone.is_none() {
            writes.push(Write::delete(keys.volume_name(&record.name)));
        }
        self.commit(&record.name, guards, writes).await
    }
}
