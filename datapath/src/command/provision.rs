//! Volumes: made, grown, deleted, listed.

use keelblock_api::datapath as proto;

use super::Commander;
use super::error::CommandError;
use crate::store::engine::{Exactly, LaneInfo, RootOf};
use crate::store::pool::{PoolError, PoolView, PoolVolume, check_size, place};
use crate::store::types::BLOCK_BYTES;
use crate::store::{Name, VolumeId};
use crate::volume::Lanes;

/// What is wrong with a lane that is there; empty: nothing.
fn lane_error(info: &LaneInfo) -> String {
    match (info.lossy, info.error) {
        (true, _) => "a part of its map was damaged: reads of what it led to fail until that is written or discarded; restore a snapshot or backup".to_owned(),
        (false, Some(e)) => format!("its used bytes are those of the last checkpoint: {e}"),
        (false, None) => String::new(),
    }
}

impl Commander {
    /// Makes a volume and opens it on every reactor.
    pub async fn create_volume(
        &self,
        id: VolumeId,
        pool: Name,
        size_bytes: u64,
    ) -> Result<proto::Volume, CommandError> {
        check_size(size_bytes)?;
        let pools = self.pools.lock().await;
        self.in_no_other_pool(id, &pool)?;
        let names = pools.get(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let found = view.volume(id);
        if found.as_ref().is_some_and(|v| v.replica) {
            return Err(CommandError::IsReplica(id));
        }
        if let Some(volume) = &found
            && volume.size_bytes != size_bytes
        {
            return Err(PoolError::Exists {
                volume: id,
                size_bytes: volume.size_bytes,
            }
            .into());
        }
        if found.as_ref().is_none_or(|v| v.places().is_err()) {
            // What is missing may hold lanes of it.
            view.whole()?;
            let made = self.make_lanes(&view, id, size_bytes, found.as_ref()).await;
            if let Err(e) = made {
                if found.is_none() {
                    // As far as possible there is no such volume.
                    let _ = self.delete_lanes(&view, id).await;
                }
                return Err(e);
            }
        }
        let view = self.look(&pool, names).await;
        self.open_volume(&view, id).await?;
        drop(pools);
        self.volume_info(id).await
    }

    pub(super) fn in_no_other_pool(&self, id: VolumeId, pool: &Name) -> Result<(), CommandError> {
        match self.pool_of(id) {
            Ok(owner) if owner != *pool => Err(CommandError::OtherPool {
                what: format!("volume {id}"),
                pool: owner.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Makes the lanes of a volume that are on no drive.
    async fn make_lanes(
        &self,
        view: &PoolView,
        id: VolumeId,
        size_bytes: u64,
        found: Option<&PoolVolume>,
    ) -> Result<(), CommandError> {
        let count = match found {
            Some(volume) => volume.lanes.len(),
            None => Lanes::for_size(size_bytes).count(),
        };
        let there = |lane: &u8| found.is_some_and(|v| v.lanes[usize::from(*lane)].is_some());
        let missing: Vec<u8> = (0..count as u8).filter(|lane| !there(lane)).collect();
        for (place, lanes) in place(view, &missing, size_bytes / count as u64)? {
            let drive = &view.drives[place];
            let number = drive.number.ok_or(PoolError::NoDrive {
                pool: view.id.clone(),
            })?;
            self.on_store(&drive.id, number, move |store| async move {
                store
                    .create_lanes(id, &lanes, count as u8, size_bytes)
                    .await
            })
            .await?;
        }
        Ok(())
    }

    async fn delete_lanes(&self, view: &PoolView, id: VolumeId) -> Result<(), CommandError> {
        let all: Vec<usize> = (0..view.drives.len()).collect();
        let open: Vec<usize> = all
            .into_iter()
            .filter(|&place| view.drives[place].number.is_some())
            .collect();
        self.on_stores(view, &open, move |store| async move {
            match store.lanes().iter().any(|lane| lane.volume == id) {
                true => store.delete_lanes(id).await,
                false => Ok(()),
            }
        })
        .await
        .map(drop)
    }

    /// Grows a volume; its exports tell their hosts.
    pub async fn resize_volume(
        &self,
        id: VolumeId,
        size_bytes: u64,
    ) -> Result<proto::Volume, CommandError> {
        check_size(size_bytes)?;
        let pools = self.pools.lock().await;
        let (view, volume) = self.find_volume(&pools, id).await?;
        let mut places = volume.places()?;
        if size_bytes < volume.size_bytes {
            return Err(PoolError::Shrink {
                volume: id,
                size_bytes: volume.size_bytes,
            }
            .into());
        }
        if size_bytes > volume.size_bytes {
            places.sort_unstable();
            places.dedup();
            self.on_stores(&view, &places, move |store| async move {
                store.resize(id, size_bytes).await
            })
            .await?;
            self.look(&view.id, &pools[&view.id]).await;
        }
        self.registry.resize(id, size_bytes).await;
        drop(pools);
        self.export_again(id).await?;
        self.volume_info(id).await
    }

    /// Deletes a volume that is not exported; its snapshots stay.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), CommandError> {
        let pools = self.pools.lock().await;
        let (view, _) = match self.find_volume(&pools, id).await {
            Ok(found) => found,
            Err(CommandError::NoVolume(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        self.close_volume(id).await?;
        let deleted = self.delete_lanes(&view, id).await;
        let view = self.look(&view.id, &pools[&view.id]).await;
        if deleted.is_err() && view.volume(id).is_some() {
            // It is still there, so it is served again.
            self.open_volume(&view, id).await?;
        }
        deleted
    }

    /// Closes a volume on every reactor, unless it is exported.
    pub(super) async fn close_volume(&self, id: VolumeId) -> Result<(), CommandError> {
        // No export of it begins between looking and closing: exporting a volume that is closed fails.
        let _one = self.exporting.lock().await;
        if let Some(nqn) = self.export_of(id) {
            return Err(CommandError::Exported { volume: id, nqn });
        }
        self.registry.close(id).await;
        Ok(())
    }

    /// The volume, and its pool as it is now.
    pub(super) async fn find_volume(
        &self,
        pools: &super::pools::Pools,
        id: VolumeId,
    ) -> Result<(PoolView, PoolVolume), CommandError> {
        let pool = self.pool_of(id)?;
        let names = pools.get(&pool).ok_or(CommandError::NoVolume(id))?;
        let view = self.look(&pool, names).await;
        let volume = view.volume(id).ok_or(CommandError::NoVolume(id))?;
        match volume.replica {
            true => Err(CommandError::IsReplica(id)),
            false => Ok((view, volume)),
        }
    }

    /// All volumes, or one of them.
    pub async fn list_volumes(&self, only: Option<VolumeId>) -> Vec<proto::Volume> {
        let mut all = Vec::new();
        for view in &self.look_exactly(Exactly::Lanes(only)).await {
            let volumes = view.volumes();
            let meant = volumes
                .values()
                .filter(|v| !v.replica)
                .filter(|v| only.is_none_or(|id| id == v.id));
            all.extend(meant.map(|v| self.volume_to(view, v)));
        }
        all
    }

    /// A volume as it was seen last, with its used bytes as they are now.
    pub(super) async fn volume_info(&self, id: VolumeId) -> Result<proto::Volume, CommandError> {
        let view = self.view_of(id)?;
        let mut volume = view.volume(id).ok_or(CommandError::NoVolume(id))?;
        match self
            .used_bytes(&view, &volume.drives(), id, RootOf::Live)
            .await
        {
            Ok(used) => volume.used_bytes = used,
            // What was done is done: lists say what is wrong.
            Err(e) => {
                tracing::warn!(volume = %id, "used bytes are those of the last checkpoint: {e}")
            }
        }
        Ok(self.volume_to(&view, &volume))
    }

    /// Bytes of data that a volume or a snapshot of it refers to now.
    pub(super) async fn used_bytes(
        &self,
        view: &PoolView,
        places: &[usize],
        id: VolumeId,
        of: RootOf,
    ) -> Result<u64, CommandError> {
        let used = self.on_stores(view, places, move |store| async move {
            store.used_blocks(id, of).await
        });
        Ok(used.await?.into_iter().sum::<u64>() * BLOCK_BYTES as u64)
    }

    fn volume_to(&self, view: &PoolView, volume: &PoolVolume) -> proto::Volume {
        let exported = self.export_of(volume.id).is_some();
        let slot = self.registry.stats_slot(volume.id).filter(|_| exported);
        let lanes = volume.lanes.iter().zip(0u32..).map(|(place, number)| {
            let drive = place.map(|place| &view.drives[place]);
            let failed = drive.filter(|d| d.failed);
            let info = drive.and_then(|d| d.facts.as_ref()).and_then(|f| {
                let mut lanes = f.lanes.iter();
                lanes.find(|l| l.volume == volume.id && u32::from(l.lane) == number)
            });
            proto::Lane {
                number,
                drive_id: drive.map_or_else(String::new, |d| d.id.to_string()),
                error: match (drive, failed) {
                    (None, _) => "it is on a drive that is missing or lost".to_owned(),
                    (_, Some(d)) => format!("drive {} failed", d.id),
                    _ => info.map_or_else(String::new, lane_error),
                },
            }
        });
        proto::Volume {
            volume_id: volume.id.to_string(),
            pool_id: view.id.to_string(),
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
            stats_slot: slot.map_or(-1, |slot| slot as i32),
            lanes: lanes.collect(),
        }
    }

    /// The pool that a volume is in.
    pub(super) fn pool_of(&self, id: VolumeId) -> Result<Name, CommandError> {
        let seen = self.seen.borrow();
        let has = |view: &&PoolView| {
            let mut drives = view.drives.iter().filter_map(|d| d.facts.as_ref());
            drives.any(|f| f.lanes.iter().any(|l| l.volume == id))
        };
        let view = seen.values().find(has);
        view.map(|v| v.id.clone()).ok_or(CommandError::NoVolume(id))
    }
}
