//! Snapshots of several volumes with replicas at one moment: their records say what is wanted, the nodes that serve the volumes do it (`coordination/groups`), and this
//! waits for that.
use super::Node;
use super::snapshots::{SnapshotWish, of_one_group, snapshot_of};
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    JointRecord, JointStep, Phase, SnapshotRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use std::time::Duration;
use uuid::Uuid;

/// How long they are waited for. They are given up as late.
const TAKE_LIMIT: Duration = Duration::from_secs(12);
/// So often they are begun anew, under other ids.
const ATTEMPTS: usize = 3;
/// Volumes of a group: their records are one transaction.
const GROUP_MAX: usize = 16;

impl Node {
    /// Takes snapshots of replicated volumes at one moment; their ids. The same wish again gives the same ids.
    pub(super) async fn snapshot_group(
        &self,
        wishes: &[SnapshotWish],
        volumes: &[Versioned<VolumeRecord>],
    ) -> Result<Vec<Uuid>, OpError> {
        if wishes.len() > GROUP_MAX {
            let why = format!("at most {GROUP_MAX} of volumes with replicas at one moment");
            return Err(OpError::invalid("snapshots", why));
        }
        for _ in 0..ATTEMPTS {
            let ids = match self.group_of(wishes, volumes).await? {
                Some(ids) => ids,
                None => self.begin_group(wishes, volumes).await?,
            };
            // They may not be seen yet; once they were, and are no more, they do not exist.
            let mut there = false;
            let known = self.coordination.until(TAKE_LIMIT, |c| {
                let seen = c.seen();
                let phases: Vec<Option<Phase>> = ids
                    .iter()
                    .map(|id| seen.snapshot(*id).map(|s| s.phase))
                    .collect();
                there |= phases.iter().any(Option::is_some);
                if phases.iter().all(|p| *p == Some(Phase::Ready)) {
                    return Some(true);
                }
                (there && phases.iter().all(Option::is_none)).then_some(false)
            });
            match known.await {
                Some(true) => return Ok(ids),
                Some(false) => {}
                None => {
                    let mut all = volumes.iter().map(|v| v.record.volume_id);
                    let why = all.find_map(|id| self.coordination.trouble(id));
                    let why = why.unwrap_or_else(|| "a volume is not served, or slow".into());
                    return Err(OpError::Unavailable(format!(
                        "the snapshots are not taken yet: {why}; all or none will be: ask again"
                    )));
                }
            }
        }
        Err(OpError::Unavailable(
            "volumes were too slow, or taken over, so that their snapshots would not be of one moment; none exists: try again"
                .into(),
        ))
    }

    /// The group of those names that is there, or being taken.
    async fn group_of(
        &self,
        wishes: &[SnapshotWish],
        volumes: &[Versioned<VolumeRecord>],
    ) -> Result<Option<Vec<Uuid>>, OpError> {
        let mut found: Vec<SnapshotRecord> = Vec::new();
        for (wish, volume) in wishes.iter().zip(volumes) {
            let named = self.registry.by_name(&wish.name).await?;
            found.extend(snapshot_of(&wish.name, named, volume.record.volume_id)?);
        }
        if let Some(gone) = found.iter().find(|s| s.phase == Phase::Deleting) {
            return Err(OpError::Busy(format!(
                "snapshot {} is being deleted: try again when it is gone",
                gone.name
            )));
        }
        if !of_one_group(&found, wishes.len())? {
            return Ok(None);
        }
        Ok(Some(found.iter().map(|s| s.snapshot_id).collect()))
    }

    /// Writes down that they are to be taken, all in one transaction; their ids.
    async fn begin_group(
        &self,
        wishes: &[SnapshotWish],
        volumes: &[Versioned<VolumeRecord>],
    ) -> Result<Vec<Uuid>, OpError> {
        let mut served = Vec::new();
        for volume in volumes {
            self.usable(&volume.record)?;
            served.push(self.coordinated(volume).await?);
        }
        let count = u8::try_from(wishes.len()).map_err(|_| {
            OpError::Internal("more snapshots at one moment than there may be".into())
        })?;
        let (keys, group, created_unix_ms) = (self.registry.keys(), Uuid::new_v4(), unix_ms());
        let (mut ids, mut guards, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for ((wish, volume), attachment) in wishes.iter().zip(volumes).zip(&served) {
            let id = volume.record.volume_id;
            self.room_for_snapshot(&volume.record).await?;
            let set = self.replication(id).await?;
            let set = set.ok_or_else(|| {
                OpError::Internal("a volume without a record of its replicas".into())
            })?;
            let now = self.registry.volume_by_id(id).await?;
            let now = now.filter(|v| v.record.phase == Phase::Ready);
            let now = now.ok_or_else(|| OpError::no_volume(&volume.record.name))?;
            let snapshot_id = Uuid::new_v4();
            let record = SnapshotRecord {
                snapshot_id,
                name: wish.name.clone(),
                phase: Phase::Creating,
                volume_id: id,
                volume_name: volume.record.name.clone(),
                group,
                node_id: String::new(),
                pool_id: Uuid::nil(),
                size_bytes: now.record.served_bytes(),
                block_bytes: now.record.block_bytes,
                labels: wish.labels.clone(),
                created_unix_ms,
                error: String::new(),
                epoch: Some(set.record.epoch.number()),
                for_clone: None,
                joint: Some(JointRecord {
                    count,
                    step: JointStep::Wanted,
                }),
                ownership: now.record.ownership.clone(),
            };
            let (key, name) = (keys.snapshot(snapshot_id), keys.volume_name(&wish.name));
            guards.push(Guard::absent(&key));
            guards.push(Guard::absent(&name));
            guards.push(Guard::at(keys.volume(id), now.revision));
            if attachment.record.errand {
                // It may end; then nobody takes what is asked for here.
                guards.push(Guard::at(keys.attachment(id), attachment.revision));
            }
            writes.push(Write::put(key, encode(&record)));
            writes.push(Write::put(name, snapshot_id.to_string()));
            ids.push(snapshot_id);
        }
        self.commit("snapshots of several volumes", guards, writes)
            .await?;
        Ok(ids)
    }
}
