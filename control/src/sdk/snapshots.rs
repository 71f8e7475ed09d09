//! The snapshot methods of Volume. A snapshot is a volume that is read-only and has a parent.
use super::{Services, owned, view};
use crate::auth::{Access, Caller};
use crate::error::OpError;
use crate::node::SnapshotWish;
use crate::records::{Found, SnapshotRecord};
use keelblock_api::datapath::SpaceUsageRequest;
use keelblock_api::openstorage::*;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// Counting what only one refers to walks its map.
const COUNT: Duration = Duration::from_secs(30);

impl Services {
    pub(super) async fn take_snapshot(
        &self,
        request: SdkVolumeSnapshotCreateRequest,
    ) -> Result<Uuid, OpError> {
        let wish = SnapshotWish {
            volume: request.volume_id,
            name: request.name,
            labels: request.labels.into_iter().collect(),
        };
        let taken = self.to_the_end(|node| async move { node.create_snapshots(vec![wish]).await });
        let first = taken.await?.into_iter().next();
        first.ok_or_else(|| OpError::Internal("no snapshot was asked for".into()))
    }

    /// Snapshots of a volume (empty: of all volumes) that have all of these labels and that the caller may look at, oldest first.
    pub(super) async fn snapshots_of(
        &self,
        volume: &str,
        labels: &HashMap<String, String>,
        caller: &Caller,
    ) -> Result<Vec<SnapshotRecord>, OpError> {
        let registry = &self.node().registry;
        let of = match volume {
            "" => None,
            // Of a volume that is gone, its id is all that is left.
            name => match (
                registry.find("volume_id", name).await?,
                Uuid::try_parse(name),
            ) {
                (Some(Found::Volume(found)), _) => {
                    let record = &found.record;
                    caller.must(record.ownership.as_ref(), Access::Read, name)?;
                    Some(record.volume_id)
                }
                (Some(Found::Snapshot(_)), _) => return Ok(Vec::new()),
                (None, Ok(id)) => Some(id),
                (None, Err(_)) => return Err(OpError::no_volume(name)),
            },
        };
        let mut found = registry.snapshots().await?;
        found.retain(|s| {
            of.is_none_or(|id| id == s.volume_id) && view::has_labels(&s.labels, labels)
        });
        found.sort_by_key(|s| (s.created_unix_ms, s.snapshot_id));
        Ok(owned::seen_by(caller, found))
    }

    pub(super) async fn capacity(&self, volume: &str) -> Result<CapacityUsageInfo, OpError> {
        let node = self.node();
        let (name, volume_id, snapshot_id) = match node.registry.find("volume_id", volume).await? {
            Some(Found::Volume(v)) => (v.record.name, v.record.volume_id, String::new()),
            Some(Found::Snapshot(s)) => {
                let id = s.record.snapshot_id.to_string();
                (s.record.name, s.record.volume_id, id)
            }
            None => return Err(OpError::no_volume(volume)),
        };
        node.link.up()?;
        let request = SpaceUsageRequest {
            volume_id: volume_id.to_string(),
            snapshot_id,
        };
        let what = format!("count the space of {name}");
        let counted =
            node.link.call_within(
                COUNT,
                &what,
                |mut c| async move { c.space_usage(request).await },
            );
        let counted = counted.await?;
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(CapacityUsageInfo {
            exclusive_bytes: number(counted.unique_bytes),
            shared_bytes: number(counted.used_bytes.saturating_sub(counted.unique_bytes)),
            total_bytes: number(counted.used_bytes.max(counted.unique_bytes)),
        })
    }
}
