//! A volume that grows (`docs/replication.md` §19): whoever serves it is told by `growing_to` of its record, says when hosts have it, and then the other paths and
//! the replicas follow.

use keelblock_api::datapath::{Coordinator, GrowServedRequest, ResizeReplicaRequest};
use uuid::Uuid;

use super::told::PathTold;
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::node::Node;
use crate::records::{SnapshotRecord, Versioned, VolumeRecord};
use crate::replication::record::Replica;

/// How large a path is here that does not serve: as the record says, but not smaller than it was told to be while the volume grows.
pub(super) fn size_of_path(record: &VolumeRecord, open: Option<u64>) -> u64 {
    let growing = record.replicated.as_ref().and_then(|r| r.growing_to);
    match growing {
        Some(_) => record.size_bytes.max(open.unwrap_or(0)),
        None => record.size_bytes,
    }
}

impl Node {
    /// The size to serve in an epoch that was just taken: as the record is now.
    pub(super) async fn size_to_serve(&self, volume: Uuid) -> Result<u64, OpError> {
        let now = self.registry.volume_by_id(volume).await?;
        let now = now.ok_or_else(|| OpError::no_volume(volume))?;
        Ok(now.record.served_bytes())
    }

    /// So far replicas are to be compared: a snapshot may be larger than a volume that was set back.
    pub(super) async fn size_to_compare(
        &self,
        volume: Uuid,
        size_bytes: u64,
    ) -> Result<u64, OpError> {
        let prefix = self.registry.keys().snapshots();
        let all = self.registry.list::<SnapshotRecord>(&prefix).await?;
        let of_it = all.iter().filter(|s| s.record.volume_id == volume);
        let largest = of_it.map(|s| s.record.size_bytes).max();
        Ok(size_bytes.max(largest.unwrap_or(0)))
    }

    /// Gives the volume that is served here the size that it is getting, and says that it has it.
    pub(super) async fn follow_size(
        &self,
        volume: &Versioned<VolumeRecord>,
        coordinator: &Coordinator,
    ) -> Result<(), OpError> {
        let layout = volume.record.replicated.as_ref();
        let Some(size_bytes) = layout.and_then(|l| l.growing_to) else {
            return Ok(());
        };
        let id = volume.record.volume_id;
        let request = GrowServedRequest {
            volume_id: id.to_string(),
            epoch: coordinator.epoch,
            size_bytes,
        };
        let what = format!("grow volume {}", volume.record.name);
        self.link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.grow_served(request).await
            })
            .await?;
        {
            let mut told = self.coordination.told();
            if let Some(path) = told.path(id) {
                let open = Some(size_bytes);
                told.set_path(id, PathTold { open, ..path });
            }
        }
        self.change_volume(id, |r| {
            r.size_bytes = r.size_bytes.max(size_bytes);
            // It may be getting larger still.
            if let Some(layout) = &mut r.replicated {
                layout.growing_to = layout.growing_to.filter(|to| *to > size_bytes);
            }
            Ok(true)
        })
        .await?;
        tracing::info!(
            volume = volume.record.name,
            bytes = size_bytes,
            "hosts have the new size"
        );
        Ok(())
    }

    /// Has a replica of this node note the volume's size. That is for reports only: nothing waits for it, and a pool that is too full for it is asked again.
    pub(super) async fn follow_replica_size(
        &self,
        volume: &Versioned<VolumeRecord>,
        replica: &Replica,
    ) -> Result<(), OpError> {
        let here = self
            .coordination
            .told()
            .replica(replica.replica_id)
            .cloned();
        let Some(here) = here.filter(|h| h.size_bytes < volume.record.size_bytes) else {
            return Ok(());
        };
        let request = ResizeReplicaRequest {
            volume_id: here.volume_id.clone(),
            replica_id: here.replica_id.clone(),
            size_bytes: volume.record.size_bytes,
        };
        let _alone = self.coordination.looking.lock().await;
        let what = format!("grow a replica of volume {}", volume.record.name);
        let grown = self
            .link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.resize_replica(request).await
            });
        match grown.await {
            Ok(grown) => self.coordination.told().made(replica.replica_id, grown),
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => {
                tracing::warn!(volume = volume.record.name, error = %refused, "a replica does not note the volume's size yet");
            }
        }
        Ok(())
    }
}
