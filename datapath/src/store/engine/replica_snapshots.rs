//! A replica's lanes as of its snapshots, and replicas that are made of one.

use std::rc::Rc;

use super::super::VolumeId;
use super::super::types::SnapshotId;
use super::lane::LaneState;
use super::reclaim::Reader;
use super::replica::{Replica, told};
use super::{Store, StoreError};
use crate::replication::seam::{Id, ReplicaError};
use crate::replication::wire::resync::Tree;

impl Replica {
    /// Makes a replica of a snapshot that these drives have lanes of; it shares their blocks. What was made before, under the same id, stays. Its epochs must be
    /// above all stamps of the snapshot.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there are lanes of another replica of the volume, and others.
    pub async fn create_of(
        stores: &[Store],
        (from, snapshot): (VolumeId, SnapshotId),
        (volume, id, size_bytes): (VolumeId, Id, u64),
    ) -> Result<(), StoreError> {
        for store in stores {
            let same = store.replica(volume).is_some_and(|r| r.replica == id);
            let any = store.lanes().iter().any(|l| l.volume == volume);
            if any && !same {
                return Err(StoreError::Exists);
            }
            if !same {
                store.add_replica(volume, id).await?;
            }
            store.0.clone_lanes(from, snapshot, volume, true).await?;
            store.resize(volume, size_bytes).await?;
        }
        Ok(())
    }

    /// Takes what a drive has of a replica away: its lanes, then its snapshots unless they are kept, at last what it promised; so as long as anything is left, and not
    /// only snapshots that are kept, it is known whose it is. Unknown succeeds.
    ///
    /// # Errors
    /// [`StoreError`]: it is to be done again.
    pub async fn remove(
        store: &Store,
        volume: VolumeId,
        keep_snapshots: bool,
    ) -> Result<(), StoreError> {
        if store.lanes().iter().any(|l| l.volume == volume) {
            store.delete_lanes(volume).await?;
        }
        if !keep_snapshots {
            for snapshot in store.snapshots_of(volume) {
                store.delete_snapshot(volume, snapshot).await?;
            }
        }
        if store.replica(volume).is_some() {
            store.drop_replica(volume).await?;
        }
        Ok(())
    }

    /// A lane as it is, or as of a snapshot; what it shows stays while the reader does.
    pub(super) async fn tree(&self, tree: Tree) -> Result<(Rc<LaneState>, Reader), ReplicaError> {
        let (store, lane) = self.lane(tree.lane)?;
        let Some(id) = tree.snapshot else {
            return Ok((lane.clone(), store.reclaim.read()));
        };
        let view = store.snapshot_view(lane, id).await;
        let view = view.map_err(|e| told(e, tree.lane, 0))?;
        let (view, reader) = view.ok_or(ReplicaError::NoSnapshot(id))?;
        Ok((Rc::new(view), reader))
    }
}
