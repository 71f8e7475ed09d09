//! Setting a volume with several replicas back to a snapshot, and deleting one that has snapshots (`docs/replication.md` §20): what is to be is written down in one
//! transaction, and each node does its part (`coordination/restores`, `coordination/kept`).
use super::Node;
use super::room::everywhere;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    ClusterRecord, Phase, ReplicaRecord, ReplicatedRecord, SnapshotRecord, TaskRecord, Versioned,
    VolumeRecord, encode,
};
use crate::replication::record::{Replica, ReplicaState, ReplicationRecord};
use crate::replication::transition;
use std::time::Duration;
use uuid::Uuid;

/// How long it is waited for the members. Below what clients wait.
const RESTORE_LIMIT: Duration = Duration::from_secs(10);

impl Node {
    /// Sets a detached replicated volume back to a snapshot of it.
    pub(super) async fn restore_replicated(
        &self,
        volume: &Versioned<VolumeRecord>,
        snapshot: &str,
    ) -> Result<(), OpError> {
        let (record, id) = (&volume.record, volume.record.volume_id);
        let snapshot = self.registry.snapshot(snapshot).await?;
        let of = &snapshot.record;
        if of.volume_id != id {
            return Err(OpError::State(format!(
                "snapshot {} is of volume {}, not of {}: clone it to have its content in another volume",
                of.name, of.volume_name, record.name
            )));
        }
        if of.phase != Phase::Ready {
            return Err(OpError::State(format!(
                "snapshot {} is being taken, or deleted: try again",
                of.name
            )));
        }
        if record.restoring.is_none() {
            self.usable(record)?;
        }
        if self.registry.attachment(id).await?.is_some() {
            return Err(OpError::State(format!(
                "volume {} is attached, and its hosts would not notice: detach it first",
                record.name
            )));
        }
        self.end_coordinating(record).await?;
        let members = self.begin_restore(volume, &snapshot).await?;
        self.wait_set_back(record, &members).await?;
        tracing::info!(volume = record.name, snapshot = of.name, "volume restored");
        Ok(())
    }

    /// Writes down that it is set back, by which members; their ids.
    async fn begin_restore(
        &self,
        volume: &Versioned<VolumeRecord>,
        snapshot: &Versioned<SnapshotRecord>,
    ) -> Result<Vec<Uuid>, OpError> {
        let (record, id) = (&volume.record, volume.record.volume_id);
        let keys = self.registry.keys();
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let task = self.registry.get::<TaskRecord>(&keys.task(id)).await?;
        if task.as_ref().is_some_and(|t| !t.record.state.is_over()) {
            return Err(OpError::State(format!(
                "replicas of volume {0} are being changed, which goes on when it is attached: let that end, or `keelctl volume ha-update {0} --cancel`, first",
                record.name
            )));
        }
        let set = self.set_to_clone(id).await?;
        let here = self.members_here(id, &set.record).await?;
        let to = transition::set_back(&set.record, cluster.record.generation, &here);
        let to = to.map_err(|why| {
            OpError::State(format!(
                "volume {} cannot be set back now, by the nodes with replicas in sync that are there: {why}",
                record.name
            ))
        })?;
        let size_bytes = snapshot.record.size_bytes;
        let room = match size_bytes.saturating_sub(record.counted_bytes()) {
            0 => None,
            more => {
                let what = format!("volume {}, set back to {size_bytes} bytes,", record.name);
                let asked =
                    self.room_for(&what, false, |seen| everywhere(seen, id, &set.record, more));
                Some(asked.await?)
            }
        };
        let layout = record.replicated.clone();
        let restoring = VolumeRecord {
            restoring: Some(snapshot.record.snapshot_id),
            size_bytes,
            replicated: layout.map(|r| ReplicatedRecord {
                growing_to: None,
                ..r
            }),
            ..record.clone()
        };
        let mut guards = vec![
            Guard::at(keys.volume(id), volume.revision),
            Guard::at(keys.replication(id), set.revision),
            Guard::at(
                keys.snapshot(snapshot.record.snapshot_id),
                snapshot.revision,
            ),
            Guard::absent(keys.attachment(id)),
            Guard::at(keys.task(id), task.map_or(0, |t| t.revision)),
            Guard::at(keys.cluster(), cluster.revision),
        ];
        let mut writes = vec![
            Write::put(keys.volume(id), encode(&restoring)),
            Write::put(keys.replication(id), encode(&to)),
        ];
        if let Some(room) = &room {
            guards.extend(room.guards.clone());
            writes.extend(room.writes.clone());
        }
        self.commit(&format!("volume {}", record.name), guards, writes)
            .await?;
        Ok(to.members.clone())
    }

    /// Members whose nodes live and can use their drives.
    async fn members_here(&self, id: Uuid, set: &ReplicationRecord) -> Result<Vec<Uuid>, OpError> {
        let keys = self.registry.keys();
        let places = self.places().await?;
        let mut here = Vec::new();
        for replica in set.replicas.iter() {
            let lives = places.iter().any(|(node, says)| {
                let uses = says.as_ref().is_some_and(|s| !s.incarnation.is_empty());
                node.node_id == replica.node_id && uses
            });
            let key = keys.replica(id, replica.replica_id);
            let known = self.registry.get::<ReplicaRecord>(&key).await?;
            // One that was not made yet is being set back, and has the snapshots.
            let well = known.is_none_or(|k| k.record.error.is_empty() || !k.record.made);
            if replica.state == ReplicaState::Member && lives && well {
                here.push(replica.replica_id);
            }
        }
        Ok(here)
    }

    async fn wait_set_back(&self, volume: &VolumeRecord, members: &[Uuid]) -> Result<(), OpError> {
        let id = volume.volume_id;
        let done = self.coordination.until(RESTORE_LIMIT, |c| {
            let seen = c.seen();
            let now = seen.volume(id)?;
            let set = &now.set.as_ref()?.record;
            if !set.members.iter().eq(members) {
                // It is not seen yet, or was begun with anew by somebody else.
                return None;
            }
            if now.volume.as_ref()?.record.restoring.is_none() {
                return Some(Ok(()));
            }
            let waits = |r: &&Replica| {
                let made = now
                    .replicas
                    .get(&r.replica_id)
                    .is_some_and(|k| k.record.made);
                r.state == ReplicaState::Member && !made
            };
            let why = set.replicas.iter().filter(waits).find_map(|r| {
                let known = now.replicas.get(&r.replica_id);
                let refused = known.filter(|k| !k.record.error.is_empty());
                match refused {
                    Some(k) => Some(format!("node {}: {}", r.node_id, k.record.error)),
                    None if seen.alive().contains_key(&r.node_id) => None,
                    None => Some(format!("node {} went away meanwhile", r.node_id)),
                }
            });
            why.map(Err)
        });
        let why = match done.await {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => "some of its nodes are not ready yet, and it goes on when they are".into(),
        };
        Err(OpError::Unavailable(format!(
            "volume {} is not wholly set back: {why}; restore it again if that does not help",
            volume.name
        )))
    }

    /// Deletes a detached volume but for its snapshots.
    pub(super) async fn delete_but_snapshots(
        &self,
        volume: Uuid,
        snapshots: &[&Versioned<SnapshotRecord>],
    ) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let Some(found) = self.registry.volume_by_id(volume).await? else {
            return Ok(());
        };
        // Of an unverified set nobody knows where the snapshots are.
        self.verified(&found.record).await?;
        let set = self.set_to_clone(volume).await?;
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let task = self.registry.get::<TaskRecord>(&keys.task(volume)).await?;
        let kept = VolumeRecord {
            phase: Phase::Kept,
            restoring: None,
            error: String::new(),
            ..found.record
        };
        let members = transition::members_only(&set.record, cluster.record.generation);
        let members = members.map_err(|why| {
            OpError::State(format!("volume {} cannot be deleted now: {why}", kept.name))
        })?;
        let mut guards = vec![
            Guard::at(keys.volume(volume), found.revision),
            Guard::at(keys.replication(volume), set.revision),
            Guard::absent(keys.attachment(volume)),
            Guard::at(keys.task(volume), task.map_or(0, |t| t.revision)),
            Guard::at(keys.cluster(), cluster.revision),
        ];
        let mut writes = vec![
            Write::put(keys.volume(volume), encode(&kept)),
            Write::put(keys.replication(volume), encode(&members)),
            Write::delete(keys.volume_name(&kept.name)),
            Write::delete(keys.cntlids(volume)),
            Write::delete(keys.reservation(volume)),
            Write::delete(keys.task(volume)),
        ];
        for snapshot in snapshots {
            if snapshot.record.phase == Phase::Ready {
                continue;
            }
            // Nobody was told that it exists, or that it still does.
            let key = keys.snapshot(snapshot.record.snapshot_id);
            guards.push(Guard::at(&key, snapshot.revision));
            writes.push(Write::delete(key));
            writes.push(Write::delete(keys.volume_name(&snapshot.record.name)));
        }
        self.commit(&format!("volume {}", kept.name), guards, writes)
            .await
    }
}
