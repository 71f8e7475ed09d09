//! Volumes that are set back to a snapshot (`docs/replication.md` §20): each member is a new replica, made of the snapshot where the old one was; then the volume can
//! be used. What is elsewhere is new, too, and empty, and is deleted and made only then.

use uuid::Uuid;

use super::Now;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::Node;
use crate::records::{Versioned, VolumeRecord, encode};
use crate::replication::record::{Replica, ReplicaState};

impl Node {
    /// Takes what is here of a volume under ids that its record does not name out of the way of a replica that is to be made; while it is set back, but for its
    /// snapshots.
    pub(super) async fn make_place(&self, now: &Now, volume: &VolumeRecord) -> Result<(), OpError> {
        let Some(set) = &now.set else { return Ok(()) };
        let keep = volume.restoring.is_some();
        let mut old: Vec<Uuid> = self.coordination.told().replicas_of(now.id);
        if keep {
            // One that was deleted in part may not be listed.
            let mine = now.replicas.iter();
            let mine = mine.filter(|(_, r)| r.record.node_id == self.node_id());
            old.extend(mine.map(|(id, _)| *id));
        }
        old.retain(|id| set.record.replica(*id).is_none());
        old.sort();
        old.dedup();
        if old.is_empty() || !keep && !self.is_verified(&set.record).await? {
            return Ok(());
        }
        for replica in old {
            self.remove_replica(now.id, replica, keep).await?;
            self.forget_replica(now.id, replica).await?;
        }
        Ok(())
    }

    /// A volume is set back when all its members are made of the snapshot; whoever sees it first says so.
    pub(super) async fn all_set_back(
        &self,
        now: &Now,
        volume: &Versioned<VolumeRecord>,
    ) -> Result<(), OpError> {
        let Some(set) = now
            .set
            .as_ref()
            .filter(|_| volume.record.restoring.is_some())
        else {
            return Ok(());
        };
        let made = |r: &Replica| {
            let known = now.replicas.get(&r.replica_id);
            known.is_some_and(|k| k.record.made)
        };
        let mut members = set.record.replicas.iter();
        if !members.all(|r| r.state != ReplicaState::Member || made(r)) {
            return Ok(());
        }
        let whole = VolumeRecord {
            restoring: None,
            ..volume.record.clone()
        };
        let keys = self.registry.keys();
        let guards = vec![
            Guard::at(keys.volume(now.id), volume.revision),
            // The one that these are the members of.
            Guard::at(keys.replication(now.id), set.revision),
        ];
        let writes = vec![Write::put(keys.volume(now.id), encode(&whole))];
        // Another node may be first.
        self.registry.kv().commit(guards, writes).await?;
        Ok(())
    }
}
