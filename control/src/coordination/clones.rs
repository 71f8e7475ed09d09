//! Clones of a volume as it is at a moment (`docs/replication.md` §12): whoever serves the volume has taken a snapshot that is only for the clone, makes the clone's
//! record of replication of it, and deletes it when the clone is there, or given up.
//!
//! | the clone | its snapshot | then |
//! | --- | --- | --- |
//! | creating, without a record of replication | creating | it is taken (`snapshots`) |
//! | creating, without a record of replication | it is known that it never will exist | another is asked for, in this epoch |
//! | creating, without a record of replication | ready | that record is written; each node makes its replica (`replicas`) |
//! | creating, with a record of replication | ready | waited for |
//! | ready, or gone | any | it is deleted |

use uuid::Uuid;

use super::Now;
use crate::coordination::tasks::minimum_of;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::Node;
use crate::records::{
    ClusterRecord, Phase, SnapshotRecord, SourceRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use crate::replication::record::{ReplicaState, ReplicationRecord};

impl Node {
    /// The clone that a snapshot was taken for, as long as it is being made of that.
    fn clone_in_the_making(&self, snapshot: &SnapshotRecord) -> Option<Now> {
        let now = self.coordination.seen().volume(snapshot.for_clone?)?;
        let volume = &now.volume.as_ref()?.record;
        let of_this = volume
            .source
            .as_ref()
            .is_some_and(|s| s.own && s.snapshot_id == snapshot.snapshot_id);
        (volume.phase == Phase::Creating && of_this).then_some(now)
    }

    /// A snapshot for a clone is of no use any more.
    pub(super) fn clone_is_over(&self, snapshot: &SnapshotRecord) -> bool {
        snapshot.for_clone.is_some() && self.clone_in_the_making(snapshot).is_none()
    }

    /// Does what is next for the clone that a ready snapshot was taken for.
    pub(super) async fn follow_clone(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
    ) -> Result<(), OpError> {
        let of = &snapshot.record;
        if of.for_clone.is_none() {
            return Ok(());
        }
        match self.clone_in_the_making(of) {
            Some(now) if now.set.is_some() => Ok(()),
            Some(Now {
                volume: Some(clone),
                ..
            }) => self.make_clone_of(snapshot, &clone).await,
            _ => {
                let key = self.registry.keys().snapshot(of.snapshot_id);
                let deleting = SnapshotRecord {
                    phase: Phase::Deleting,
                    ..of.clone()
                };
                let guards = vec![Guard::at(&key, snapshot.revision)];
                let writes = vec![Write::put(&key, encode(&deleting))];
                self.commit("a snapshot for a clone", guards, writes).await
            }
        }
    }

    async fn make_clone_of(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        clone: &Versioned<VolumeRecord>,
    ) -> Result<(), OpError> {
        let (of, keys) = (snapshot.record.volume_id, self.registry.keys());
        let parent = self.registry.volume_by_id(of).await?;
        let parent = parent.ok_or_else(|| OpError::no_volume(of))?.record;
        let found = self.set_to_clone(of).await?;
        let set = self.replicas_of_clone(&parent, &found.record)?;
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let id = clone.record.volume_id;
        let key = keys.replication(id);
        let guards = vec![
            Guard::absent(&key),
            Guard::at(keys.volume(id), clone.revision),
            Guard::at(
                keys.snapshot(snapshot.record.snapshot_id),
                snapshot.revision,
            ),
            // All of them have it, and its epochs are below.
            Guard::at(keys.replication(of), found.revision),
            Guard::at(keys.cluster(), cluster.revision),
        ];
        let mut writes = vec![Write::put(key, encode(&set))];
        if clone.record.encrypted {
            let secret = self.inherit_keys(of, id).await?;
            writes.push(Write::put(keys.secret(id), encode(&secret)));
        }
        self.commit(&clone.record.name, guards, writes).await
    }

    /// Where a clone is to be. Its epochs go on above the source's: so above all stamps that the snapshot has.
    pub(crate) fn replicas_of_clone(
        &self,
        parent: &VolumeRecord,
        set: &ReplicationRecord,
    ) -> Result<ReplicationRecord, OpError> {
        let all = set.replicas.iter();
        let (members, others): (Vec<_>, Vec<_>) =
            all.partition(|r| r.state == ReplicaState::Member);
        if let Some(other) = others.first() {
            return Err(OpError::State(format!(
                "a replica of volume {} on node {} is not up to date, so its snapshots may be missing there: clone it when all replicas are in sync",
                parent.name, other.node_id
            )));
        }
        let count = members.len() as u8;
        let replicas = members
            .iter()
            .map(|r| (Uuid::new_v4(), r.node_id.clone(), r.pool_id));
        let made = ReplicationRecord::new(set.generation, replicas, minimum_of(count), count);
        let made = made.map_err(|fault| OpError::Internal(fault.to_string()))?;
        Ok(made.above(set.epoch))
    }

    /// A snapshot for a clone was interrupted by a takeover: another takes its place, for this epoch. What has changed meanwhile is seen, and looked at again.
    pub(super) async fn snapshot_for_clone_again(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        epoch: u32,
    ) -> Result<(), OpError> {
        let old = &snapshot.record;
        let clone = self.clone_in_the_making(old).and_then(|now| now.volume);
        let Some(clone) = clone else {
            return self.forget_replicated(snapshot).await;
        };
        let set = self.set_to_clone(old.volume_id).await?;
        if set.record.epoch.number() != epoch {
            // Whoever has the next epoch asks for it.
            return Ok(());
        }
        let (keys, id) = (self.registry.keys(), Uuid::new_v4());
        let new = SnapshotRecord {
            snapshot_id: id,
            epoch: Some(epoch),
            created_unix_ms: unix_ms(),
            ..old.clone()
        };
        let volume = VolumeRecord {
            source: Some(SourceRecord {
                volume_id: old.volume_id,
                snapshot_id: id,
                own: true,
            }),
            ..clone.record.clone()
        };
        let (key, volume_key) = (
            keys.snapshot(old.snapshot_id),
            keys.volume(volume.volume_id),
        );
        let guards = vec![
            Guard::at(&key, snapshot.revision),
            Guard::at(&volume_key, clone.revision),
            Guard::at(keys.replication(old.volume_id), set.revision),
        ];
        let writes = vec![
            Write::delete(&key),
            Write::put(keys.snapshot(id), encode(&new)),
            Write::put(&volume_key, encode(&volume)),
        ];
        self.commit(&volume.name, guards, writes).await
    }

    /// Takes away the records of snapshots for clones that are over, of a volume that is attached nowhere: whoever serves it next has them deleted.
    pub(super) async fn sweep_clones(&self, now: &Now) -> Result<(), OpError> {
        if now.attachment.is_some() {
            return Ok(());
        }
        let keys = self.registry.keys();
        for snapshot in &now.snapshots {
            if !self.clone_is_over(&snapshot.record) {
                continue;
            }
            let key = keys.snapshot(snapshot.record.snapshot_id);
            let guards = vec![
                Guard::at(&key, snapshot.revision),
                Guard::absent(keys.attachment(now.id)),
            ];
            // Another node may be first.
            let writes = vec![Write::delete(&key)];
            self.registry.kv().commit(guards, writes).await?;
        }
        Ok(())
    }
}
