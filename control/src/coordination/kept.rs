//! Volumes that were deleted and whose snapshots are kept (`docs/replication.md` §20): their live lanes go, and the snapshots that records name stay on the nodes
//! that had a member. When the last one is deleted, what is left goes like any volume that is deleted.

use std::collections::BTreeSet;

use keelblock_api::datapath::{DeleteSnapshotRequest, ListSnapshotsRequest};
use uuid::Uuid;

use super::Now;
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::Node;
use crate::records::{Phase, VolumeRecord, encode};

impl Node {
    /// This node's part of a volume that is kept for its snapshots.
    pub(super) async fn keep_snapshots(&self, now: &Now) -> Result<(), OpError> {
        let Some(volume) = &now.volume else {
            return Ok(());
        };
        let ready = now.snapshots.iter().map(|s| &s.record);
        let named: BTreeSet<Uuid> = ready
            .filter(|s| s.phase == Phase::Ready)
            .map(|s| s.snapshot_id)
            .collect();
        if named.is_empty() {
            let deleting = VolumeRecord {
                phase: Phase::Deleting,
                ..volume.record.clone()
            };
            let keys = self.registry.keys();
            let guards = vec![Guard::at(keys.volume(now.id), volume.revision)];
            let writes = vec![
                Write::put(keys.volume(now.id), encode(&deleting)),
                // Nobody can read what clones did not inherit from now on.
                Write::delete(keys.secret(now.id)),
            ];
            // Another node may be first; what comes of it is seen.
            self.registry.kv().commit(guards, writes).await?;
            return Ok(());
        }
        let mine = now.replicas_on(self.node_id()).next().is_some();
        // Under whatever id: what is here of it is one replica, with all of its snapshots.
        let here = self.coordination.told().replicas_of(now.id);
        for replica in here {
            self.remove_replica(now.id, replica, mine).await?;
        }
        let here = now.replicas.iter();
        let left = here.filter(|(id, r)| {
            let named = now.set.as_ref().and_then(|s| s.record.replica(**id));
            r.record.node_id == self.node_id() && named.is_none()
        });
        for (replica, _) in left {
            self.remove_replica(now.id, *replica, mine).await?;
            self.forget_replica(now.id, *replica).await?;
        }
        self.drop_others(now.id, &named).await
    }

    /// Deletes the snapshots that are here and that no record names.
    async fn drop_others(&self, volume: Uuid, named: &BTreeSet<Uuid>) -> Result<(), OpError> {
        let request = ListSnapshotsRequest {
            volume_id: volume.to_string(),
            ..Default::default()
        };
        let listed = self
            .link
            .call_within(CALL_TIMEOUT, "list snapshots", |mut c| async move {
                c.list_snapshots(request).await
            });
        for snapshot in listed.await?.snapshots {
            let id = Uuid::try_parse(&snapshot.snapshot_id);
            if snapshot.volume_id != volume.to_string() || id.is_ok_and(|id| named.contains(&id)) {
                continue;
            }
            let request = DeleteSnapshotRequest {
                volume_id: snapshot.volume_id.clone(),
                snapshot_id: snapshot.snapshot_id.clone(),
            };
            self.link
                .call_within(CALL_TIMEOUT, "delete a snapshot", |mut c| async move {
                    c.delete_snapshot(request).await
                })
                .await?;
            tracing::info!(%volume, snapshot = snapshot.snapshot_id, "snapshot deleted");
        }
        Ok(())
    }
}
