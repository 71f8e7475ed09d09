//! The size of a volume with several replicas (`docs/replication.md` §19): what it is to be is written down, whoever serves the volume follows, and this waits for
//! that.
use super::Node;
use super::placing;
use super::room::everywhere;
use super::wishes::cannot_shrink;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::records::{Phase, ReplicatedRecord, VolumeRecord, encode};
use std::time::Duration;
use uuid::Uuid;

/// How long it is waited for whoever serves the volume. Below what clients wait.
const GROW_LIMIT: Duration = Duration::from_secs(10);
/// How often it is written again because something else has changed.
const ATTEMPTS: usize = 16;

impl Node {
    /// Makes a replicated volume larger; returns when it is served so, or, detached, when it is written down.
    pub(super) async fn grow_replicated(&self, id: Uuid, size_bytes: u64) -> Result<(), OpError> {
        let record = self.begin_grow(id, size_bytes).await?;
        let known = self.coordination.until(GROW_LIMIT, |c| {
            let now = c.seen().volume(id)?;
            // Deleted meanwhile: there is nothing more to wait for.
            let volume = now.volume.filter(|v| v.record.phase == Phase::Ready);
            volume
                .is_none_or(|v| v.record.size_bytes >= size_bytes)
                .then_some(())
        });
        if known.await.is_some() {
            tracing::info!(volume = record.name, bytes = size_bytes, "volume resized");
            return Ok(());
        }
        let why = self.coordination.trouble(id);
        let why = why.unwrap_or_else(|| "it is not served at the moment".into());
        Err(OpError::Unavailable(format!(
            "volume {} is not {size_bytes} bytes large yet: {why}; it will be as soon as it is served",
            record.name
        )))
    }

    /// Writes down how large it is to be. Compared with the record of replication, as a snapshot is that is ready: whoever takes a higher epoch reads the volume's
    /// record afterwards, so nobody serves it who does not know how far others may have written.
    async fn begin_grow(&self, id: Uuid, size_bytes: u64) -> Result<VolumeRecord, OpError> {
        let keys = self.registry.keys();
        for _ in 0..ATTEMPTS {
            let set = self.replication(id).await?;
            let attached = self.registry.any_attachment(id).await?;
            let found = self.registry.volume_by_id(id).await?;
            let (Some(found), Some(set)) = (found, set) else {
                return Err(OpError::no_volume(id));
            };
            let record = found.record;
            if size_bytes < record.served_bytes() {
                return Err(cannot_shrink(&record, size_bytes));
            }
            if size_bytes == record.size_bytes {
                return Ok(record);
            }
            self.usable(&record)?;
            let layout = record.replicated.as_ref();
            let layout = layout.ok_or_else(|| OpError::Internal("it has one replica".into()))?;
            // Nobody serves it, so nobody has to follow.
            let (now, growing_to) = match attached {
                Some(_) => (record.size_bytes, Some(size_bytes)),
                None => (size_bytes, None),
            };
            let next = VolumeRecord {
                size_bytes: now,
                replicated: Some(ReplicatedRecord {
                    growing_to,
                    ..layout.clone()
                }),
                ..record.clone()
            };
            if next == record {
                return Ok(record);
            }
            let more = size_bytes - record.served_bytes();
            let what = format!("volume {}, grown to {size_bytes} bytes,", record.name);
            let room = self.room_for(&what, false, |seen| everywhere(seen, id, &set.record, more));
            let room = room.await?;
            let mut guards = vec![
                Guard::at(keys.volume(id), found.revision),
                Guard::at(keys.replication(id), set.revision),
                Guard::at(
                    keys.attachment(id),
                    attached.as_ref().map_or(0, |a| a.revision),
                ),
            ];
            guards.extend(room.guards.clone());
            let mut writes = vec![Write::put(keys.volume(id), encode(&next))];
            writes.extend(room.writes.clone());
            if self.registry.kv().commit(guards, writes).await? != Committed::No {
                return Ok(next);
            }
            drop(room);
            tokio::time::sleep(placing::pause()).await;
        }
        Err(OpError::Contended {
            what: format!("volume {id}"),
        })
    }
}
