//! Snapshots, and what is made of them: restores, clones, space, differences.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keelblock_api::datapath as proto;

use super::Commander;
use super::convert;
use super::error::CommandError;
use crate::store::engine::{Exactly, RootOf, Unique};
use crate::store::pool::{PoolError, PoolSnapshot, PoolView, join_ranges, lane_start};
use crate::store::types::{BLOCK_BYTES, LaneBlock, SnapshotId};
use crate::store::{Name, VolumeId};

/// Snapshots of one command.
pub const SNAPSHOTS_MAX: usize = 256;
/// Ranges of one answer.
pub const RANGES_MAX: usize = 4096;
/// How long I/O may take to end when a snapshot over several drives waits for it; then the snapshot fails.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// A volume and its snapshot.
type Pair = (VolumeId, SnapshotId);

impl Commander {
    /// Takes snapshots of several volumes at one moment.
    pub async fn create_snapshots(
        &self,
        pairs: Vec<Pair>,
    ) -> Result<Vec<proto::Snapshot>, CommandError> {
        let pools = self.pools.lock().await;
        let mut names: BTreeSet<Name> = BTreeSet::new();
        for &(volume, _) in &pairs {
            names.insert(self.pool_of(volume)?);
        }
        let mut views = Vec::new();
        for name in names {
            let drives = pools.get(&name);
            let drives = drives.ok_or_else(|| CommandError::NoPool(name.to_string()))?;
            views.push(self.look(&name, drives).await);
        }
        let (new, partial) = self.sort_out(&pairs, &views)?;
        for (view, pair) in partial {
            // Left behind by a crash, and never acknowledged.
            self.drop_snapshots(&views[view], &[pair]).await?;
        }
        if !new.is_empty()
            && let Err(e) = self.take(&views, &new).await
        {
            for view in &views {
                if let Err(e) = self.drop_snapshots(view, &new).await {
                    tracing::warn!(pool = %view.id, "a part of a failed snapshot is left: {e}");
                }
            }
            return Err(e);
        }
        let mut taken = Vec::with_capacity(pairs.len());
        for view in &mut views {
            *view = self.look(&view.id, &pools[&view.id]).await;
        }
        for (volume, id) in pairs {
            let found = views
                .iter()
                .find_map(|view| Some((view, view.snapshot(volume, id)?)));
            let (view, snapshot) = found.ok_or(PoolError::NoSnapshot {
                volume,
                snapshot: id,
            })?;
            taken.push(convert::snapshot_to(&view.id, &snapshot));
        }
        Ok(taken)
    }

    /// What is to be taken, and what is there in part and must go first, with the pool's place.
    #[allow(clippy::type_complexity)]
    fn sort_out(
        &self,
        pairs: &[Pair],
        views: &[PoolView],
    ) -> Result<(Vec<Pair>, Vec<(usize, Pair)>), CommandError> {
        let (mut new, mut partial) = (Vec::new(), Vec::new());
        let named = |_, id| pairs.iter().any(|(_, new)| *new == id);
        let there = views.iter().map(|view| view.snapshots_that(named));
        let there: Vec<BTreeMap<Pair, PoolSnapshot>> = there.collect();
        let volumes: Vec<_> = views.iter().map(PoolView::volumes).collect();
        for &(volume, id) in pairs {
            let mut all = there.iter().flat_map(|s| s.keys());
            if let Some(&(other, _)) = all.find(|(v, s)| *s == id && *v != volume) {
                return Err(PoolError::OtherVolume {
                    snapshot: id,
                    volume: other,
                }
                .into());
            }
            let view = volumes.iter().position(|v| v.contains_key(&volume));
            let view = view.ok_or(CommandError::NoVolume(volume))?;
            if volumes[view][&volume].replica {
                return Err(CommandError::IsReplica(volume));
            }
            volumes[view][&volume].places()?;
            match there[view].get(&(volume, id)) {
                Some(snapshot) if snapshot.complete() => continue,
                Some(_) => partial.push((view, (volume, id))),
                None => {}
            }
            new.push((volume, id));
        }
        Ok((new, partial))
    }

    async fn take(&self, views: &[PoolView], pairs: &[Pair]) -> Result<(), CommandError> {
        let mut places = Vec::new();
        for (n, view) in views.iter().enumerate() {
            let volumes = view.volumes();
            let of_pairs = pairs.iter().filter_map(|(v, _)| volumes.get(v));
            let lanes: BTreeSet<usize> = of_pairs
                .flat_map(|v| v.lanes.iter().flatten().copied())
                .collect();
            places.push((n, lanes.into_iter().collect::<Vec<usize>>()));
        }
        let drives: usize = places.iter().map(|(_, p)| p.len()).sum();
        let take = async || {
            for (view, places) in &places {
                let pairs = pairs.to_vec();
                self.on_stores(&views[*view], places, move |store| async move {
                    let lanes = store.lanes();
                    let here = |v: &VolumeId| lanes.iter().any(|l| l.volume == *v);
                    let pairs: Vec<Pair> = pairs.into_iter().filter(|(v, _)| here(v)).collect();
                    store.snapshot(&pairs).await
                })
                .await?;
            }
            Ok(())
        };
        // One store takes all of its lanes at one moment by itself.
        if drives == 1 {
            return take().await;
        }
        let volumes = pairs.iter().map(|&(volume, _)| (volume, None)).collect();
        let taken = self.registry.at_barrier(volumes, BARRIER_TIMEOUT, take());
        taken.await.unwrap_or(Err(CommandError::Barrier {
            seconds: BARRIER_TIMEOUT.as_secs(),
        }))
    }

    async fn drop_snapshots(&self, view: &PoolView, pairs: &[Pair]) -> Result<(), CommandError> {
        let open: Vec<usize> = (0..view.drives.len())
            .filter(|&place| view.drives[place].number.is_some())
            .collect();
        let pairs = pairs.to_vec();
        self.on_stores(view, &open, move |store| async move {
            let there = store.snapshots();
            for (volume, id) in pairs {
                let has = |s: &crate::store::engine::SnapshotInfo| {
                    s.volume == volume && s.snapshot == id && !s.hidden
                };
                if there.iter().any(has) {
                    store.delete_snapshot(volume, id).await?;
                }
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// A snapshot, and its pool, as they were seen last.
    fn find_snapshot(
        &self,
        volume: VolumeId,
        id: SnapshotId,
    ) -> Result<(PoolView, PoolSnapshot), CommandError> {
        let seen = self.seen.borrow();
        let found = seen.values().find_map(|view| {
            let snapshot = view.snapshot(volume, id)?;
            Some((view.clone(), snapshot))
        });
        found.ok_or_else(|| {
            PoolError::NoSnapshot {
                volume,
                snapshot: id,
            }
            .into()
        })
    }

    /// The same, of which every lane must be there.
    fn whole_snapshot(
        &self,
        volume: VolumeId,
        id: SnapshotId,
    ) -> Result<(PoolView, PoolSnapshot), CommandError> {
        let (view, snapshot) = self.find_snapshot(volume, id)?;
        match snapshot.complete() {
            true => Ok((view, snapshot)),
            false => Err(PoolError::Partial {
                volume,
                snapshot: id,
            }
            .into()),
        }
    }

    /// All snapshots, or those of one volume, or one of these.
    pub async fn list_snapshots(
        &self,
        volume: Option<VolumeId>,
        id: Option<SnapshotId>,
    ) -> Vec<proto::Snapshot> {
        let exactly = match (volume, id) {
            (Some(volume), Some(id)) => Exactly::Snapshot(volume, id),
            _ => Exactly::Snapshots(volume),
        };
        let mut all = Vec::new();
        for view in &self.look_exactly(exactly).await {
            let meant =
                |v, i| volume.is_none_or(|volume| volume == v) && id.is_none_or(|id| id == i);
            // Of replicas' snapshots their volumes' coordinators know.
            let volumes = view.volumes();
            let replica = |v: &VolumeId| volumes.get(v).is_some_and(|v| v.replica);
            let snapshots = view.snapshots_that(|v, i| meant(v, i) && !replica(&v));
            all.extend(
                snapshots
                    .values()
                    .map(|s| convert::snapshot_to(&view.id, s)),
            );
        }
        all
    }

    /// Deletes a snapshot; an unknown one is deleted already.
    pub async fn delete_snapshot(
        &self,
        volume: VolumeId,
        id: SnapshotId,
    ) -> Result<(), CommandError> {
        let pools = self.pools.lock().await;
        for (name, drives) in pools.iter() {
            let view = self.look(name, drives).await;
            if view.volume(volume).is_some_and(|v| v.replica) {
                return Err(CommandError::IsReplica(volume));
            }
            if view.snapshot(volume, id).is_some() {
                self.drop_snapshots(&view, &[(volume, id)]).await?;
                self.look(name, drives).await;
            }
        }
        Ok(())
    }

    /// Sets a volume back to one of its snapshots.
    pub async fn restore_volume(
        &self,
        volume: VolumeId,
        id: SnapshotId,
    ) -> Result<proto::Volume, CommandError> {
        let pools = self.pools.lock().await;
        self.find_volume(&pools, volume).await?;
        let (view, snapshot) = self.whole_snapshot(volume, id)?;
        self.close_volume(volume).await?;
        let restored = self
            .on_stores(&view, &snapshot.drives(), move |store| async move {
                store.restore(volume, id).await
            })
            .await;
        let view = self.look(&view.id, &pools[&view.id]).await;
        // In part or whole, it is what it is now.
        self.open_volume(&view, volume).await?;
        restored?;
        self.volume_info(volume).await
    }

    /// Makes a writable volume of a snapshot, and opens it on every reactor.
    pub async fn clone_volume(
        &self,
        to: VolumeId,
        from: VolumeId,
        id: SnapshotId,
    ) -> Result<proto::Volume, CommandError> {
        let pools = self.pools.lock().await;
        for (name, drives) in pools.iter() {
            self.look(name, drives).await;
        }
        let (view, snapshot) = self.whole_snapshot(from, id)?;
        if view.volume(from).is_some_and(|v| v.replica) {
            return Err(CommandError::IsReplica(from));
        }
        self.in_no_other_pool(to, &view.id)?;
        let there = view.volume(to);
        if let Some(volume) = &there {
            let lanes = volume.lanes.len();
            // Once it has snapshots of its own, those are what it is derived from.
            let ours = volume
                .origin
                .is_some_and(|(v, s)| (v, s) == (from, id) || v == to);
            if !ours || lanes != snapshot.lanes.len() {
                return Err(PoolError::NotThatClone { volume: to }.into());
            }
        }
        if there.is_none_or(|v| v.places().is_err()) {
            self.on_stores(&view, &snapshot.drives(), move |store| async move {
                store.clone_lanes(from, id, to).await
            })
            .await?;
        }
        let view = self.look(&view.id, &pools[&view.id]).await;
        self.open_volume(&view, to).await?;
        drop(pools);
        self.volume_info(to).await
    }

    /// What a snapshot, or a live volume, refers to, and what only it refers to.
    pub async fn space_usage(
        &self,
        volume: VolumeId,
        snapshot: Option<SnapshotId>,
    ) -> Result<proto::SpaceUsageReply, CommandError> {
        self.look_at_all().await;
        let (view, places) = self.places_of(volume, snapshot)?;
        let root = snapshot.map_or(RootOf::Live, RootOf::Snapshot);
        let unique = self
            .on_stores(&view, &places, move |store| async move {
                store.unique_blocks(volume, root).await
            })
            .await?;
        let used_bytes = self.used_bytes(&view, &places, volume, root).await?;
        let bytes = |of: fn(&Unique) -> u64| {
            let blocks = unique.iter().map(of).sum::<u64>();
            blocks * BLOCK_BYTES as u64
        };
        Ok(proto::SpaceUsageReply {
            used_bytes,
            unique_bytes: bytes(|u| u.data),
            unique_metadata_bytes: bytes(|u| u.pages),
        })
    }

    /// The pool and the drives of a snapshot or a live volume, as they were seen last.
    fn places_of(
        &self,
        volume: VolumeId,
        snapshot: Option<SnapshotId>,
    ) -> Result<(PoolView, Vec<usize>), CommandError> {
        if let Some(id) = snapshot {
            let (view, snapshot) = self.find_snapshot(volume, id)?;
            return Ok((view, snapshot.drives()));
        }
        let view = self.view_of(volume)?;
        let found = view.volume(volume);
        let found = found.ok_or(CommandError::NoVolume(volume))?;
        Ok((view, found.drives()))
    }

    pub(super) fn view_of(&self, volume: VolumeId) -> Result<PoolView, CommandError> {
        let pool = self.pool_of(volume)?;
        let seen = self.seen.borrow();
        seen.get(&pool)
            .cloned()
            .ok_or(CommandError::NoVolume(volume))
    }

    /// Where two states of a volume differ, from a byte on: at most so many ranges.
    pub async fn diff_snapshots(
        &self,
        volume: VolumeId,
        older: Option<SnapshotId>,
        newer: Option<SnapshotId>,
        offset: u64,
        ranges_max: usize,
    ) -> Result<proto::DiffSnapshotsReply, CommandError> {
        self.look_at_all().await;
        if let Some(id) = older {
            self.whole_snapshot(volume, id)?;
        }
        let (view, places) = match newer {
            Some(id) => {
                let (view, snapshot) = self.whole_snapshot(volume, id)?;
                (view, snapshot.lanes.into_iter().flatten().collect())
            }
            None => {
                let view = self.view_of(volume)?;
                let found = view.volume(volume).ok_or(CommandError::NoVolume(volume))?;
                let places: Vec<usize> = found.places()?;
                (view, places)
            }
        };
        let older = older.map(RootOf::Snapshot);
        let newer = newer.map_or(RootOf::Live, RootOf::Snapshot);
        let max = ranges_max.clamp(1, RANGES_MAX);
        let count = places.len() as u8;
        let mut lanes = Vec::with_capacity(places.len());
        for (lane, place) in (0u8..).zip(places) {
            let drive = &view.drives[place];
            let number = drive.number.ok_or(CommandError::NoVolume(volume))?;
            let from = LaneBlock(lane_start(lane, count, offset));
            let diff = self.on_store(&drive.id, number, move |store| async move {
                store.diff(volume, lane, older, newer, from, max).await
            });
            let (ranges, next) = diff.await?;
            lanes.push((ranges, next.map(|block| block.0)));
        }
        let (ranges, next_offset) = join_ranges(&lanes, max);
        let ranges = ranges.into_iter().map(|r| proto::DiffRange {
            offset: r.offset,
            length: r.length,
            data: r.data,
        });
        Ok(proto::DiffSnapshotsReply {
            ranges: ranges.collect(),
            next_offset,
        })
    }
}
