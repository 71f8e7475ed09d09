//! Snapshots of volumes with several replicas: a record says what is wanted, the node that coordinates the volume has it done (`coordination/snapshots`), and
//! this waits for that.
use super::Node;
use super::snapshots::SnapshotWish;
use crate::coordination::Coordination;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{Found, Phase, SnapshotRecord, Versioned, VolumeRecord, encode, unix_ms};
use std::time::Duration;
use uuid::Uuid;

/// How long a snapshot is waited for. Below what clients wait; members that do not get there are excluded after 2 s.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a deletion is.
const DELETE_LIMIT: Duration = Duration::from_secs(5);
/// So often it is begun anew, under another id, where a takeover came in between.
const ATTEMPTS: usize = 3;
/// Most of a volume: a coordinator names them in one frame.
const SNAPSHOTS_MAX: usize = 1000;

impl Node {
    /// Takes a snapshot of a replicated volume; its id.
    pub(super) async fn snapshot_replicated(
        &self,
        wish: &SnapshotWish,
        volume: Versioned<VolumeRecord>,
    ) -> Result<Uuid, OpError> {
        for _ in 0..ATTEMPTS {
            let id = self.begin_snapshot(wish, &volume).await?;
            // It may not be seen yet; once it was, and is no more, it does not exist.
            let mut there = false;
            let known = self.coordination.until(TAKE_LIMIT, |c| {
                let phase = c.seen().snapshot(id).map(|s| s.phase);
                there |= phase.is_some();
                match phase {
                    Some(Phase::Ready) => Some(true),
                    None if there => Some(false),
                    _ => None,
                }
            });
            let known = known.await;
            if known == Some(true) {
                return Ok(id);
            }
            if known.is_none() {
                let why = self.coordination.trouble(volume.record.volume_id);
                let why =
                    why.unwrap_or_else(|| "the volume is not served, or members are slow".into());
                return Err(OpError::Unavailable(format!(
                    "snapshot {} is not taken yet: {why}; it will be as soon as it can: ask again",
                    wish.name
                )));
            }
        }
        Err(OpError::Unavailable(format!(
            "snapshot {} was interrupted by takeovers, and does not exist: try again",
            wish.name
        )))
    }

    /// Writes down that it is to be taken, unless that is there; its id.
    async fn begin_snapshot(
        &self,
        wish: &SnapshotWish,
        volume: &Versioned<VolumeRecord>,
    ) -> Result<Uuid, OpError> {
        match self.registry.by_name(&wish.name).await? {
            Some(Found::Snapshot(s)) if s.record.volume_id != volume.record.volume_id => {
                return Err(OpError::Exists {
                    name: wish.name.clone(),
                    what: format!("as a snapshot of volume {}", s.record.volume_name),
                });
            }
            Some(Found::Snapshot(s)) if s.record.phase == Phase::Deleting => {
                return Err(OpError::Busy(format!(
                    "snapshot {} is being deleted: try again when it is gone",
                    wish.name
                )));
            }
            Some(Found::Snapshot(s)) => return Ok(s.record.snapshot_id),
            Some(Found::Volume(_)) => {
                return Err(OpError::Exists {
                    name: wish.name.clone(),
                    what: "as a volume".into(),
                });
            }
            None => {}
        }
        self.usable(&volume.record)?;
        // The volume's record is read anew, as this may take a while.
        let attachment = self.coordinated(volume).await?;
        let (keys, id) = (self.registry.keys(), volume.record.volume_id);
        let volume = &volume.record;
        self.room_for_snapshot(volume).await?;
        let set = self.replication(id).await?;
        let set = set
            .ok_or_else(|| OpError::Internal("a volume without a record of its replicas".into()))?;
        let now = self.registry.volume_by_id(id).await?;
        let now = now.filter(|v| v.record.phase == Phase::Ready);
        let now = now.ok_or_else(|| OpError::no_volume(&volume.name))?;
        let snapshot_id = Uuid::new_v4();
        let record = SnapshotRecord {
            snapshot_id,
            name: wish.name.clone(),
            phase: Phase::Creating,
            volume_id: id,
            volume_name: volume.name.clone(),
            group: Uuid::new_v4(),
            node_id: String::new(),
            pool_id: Uuid::nil(),
            size_bytes: now.record.served_bytes(),
            block_bytes: volume.block_bytes,
            labels: wish.labels.clone(),
            created_unix_ms: unix_ms(),
            error: String::new(),
            epoch: Some(set.record.epoch.number()),
            for_clone: None,
            joint: None,
            ownership: now.record.ownership.clone(),
        };
        let (key, name) = (keys.snapshot(snapshot_id), keys.volume_name(&wish.name));
        let mut guards = vec![
            Guard::absent(&key),
            Guard::absent(&name),
            Guard::at(keys.volume(id), now.revision),
        ];
        if attachment.record.errand {
            // It may end; then nobody takes what is asked for here.
            guards.push(Guard::at(keys.attachment(id), attachment.revision));
        }
        let writes = vec![
            Write::put(key, encode(&record)),
            Write::put(name, snapshot_id.to_string()),
        ];
        self.commit(&format!("snapshot {}", wish.name), guards, writes)
            .await?;
        Ok(snapshot_id)
    }

    /// Whether a volume may have one more.
    pub(super) async fn room_for_snapshot(&self, volume: &VolumeRecord) -> Result<(), OpError> {
        let all = self.registry.snapshots().await?;
        let of_it = all.iter().filter(|s| s.volume_id == volume.volume_id);
        match of_it.count() >= SNAPSHOTS_MAX {
            false => Ok(()),
            true => Err(OpError::State(format!(
                "volume {} has {SNAPSHOTS_MAX} snapshots: delete some first",
                volume.name
            ))),
        }
    }

    /// Deletes a snapshot of a replicated volume.
    pub(super) async fn delete_replicated_snapshot(
        &self,
        record: &SnapshotRecord,
    ) -> Result<(), OpError> {
        let (keys, id) = (self.registry.keys(), record.snapshot_id);
        let key = keys.snapshot(id);
        let Some(found) = self.registry.get::<SnapshotRecord>(&key).await? else {
            return Ok(());
        };
        if found.record.phase == Phase::Creating {
            return Err(OpError::Busy(format!(
                "snapshot {} is still being taken: try again",
                record.name
            )));
        }
        let volume = self.registry.volume_by_id(record.volume_id).await?;
        if volume.is_some_and(|v| v.record.restoring == Some(id)) {
            return Err(OpError::Busy(format!(
                "volume {} is being set back to snapshot {}: try again when it is",
                record.volume_name, record.name
            )));
        }
        // Nobody serves it: whoever does next is not told of it, and has it deleted.
        let nobody = Guard::absent(keys.attachment(record.volume_id));
        let name = keys.volume_name(&record.name);
        let guards = vec![nobody, Guard::at(&key, found.revision)];
        let writes = vec![Write::delete(&key), Write::delete(&name)];
        let what = format!("snapshot {}", record.name);
        let served = self.registry.any_attachment(record.volume_id).await?;
        if served.is_none() {
            return self.commit(&what, guards, writes).await;
        }
        self.change_snapshot(id, |r| {
            let changes = r.phase == Phase::Ready;
            r.phase = Phase::Deleting;
            Ok(changes)
        })
        .await?;
        let gone = |c: &Coordination| c.seen().snapshot(id).is_none().then_some(());
        if self.coordination.until(DELETE_LIMIT, gone).await.is_none() {
            tracing::warn!(
                snapshot = record.name,
                "not deleted yet: it is when its volume is served"
            );
        }
        Ok(())
    }
}
