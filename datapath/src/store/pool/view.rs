//! What the drives of a pool say, taken together.

use std::collections::BTreeMap;

use super::PoolError;
use crate::store::engine::{
    Counters, Identity, LaneInfo, SnapshotInfo, Space, StaleCopy, StoreError,
};
use crate::store::superblock::DriveState;
use crate::store::types::{BLOCK_BYTES, SnapshotId};
use crate::store::{Name, VolumeId};

/// What a drive says of itself and of what is on it.
#[derive(Clone, Debug)]
pub struct DriveFacts {
    /// Who it is.
    pub identity: Identity,
    /// What is to become of its content.
    pub state: DriveState,
    /// Bytes of the device.
    pub size_bytes: u64,
    /// Whether completed writes may be lost with power until a flush.
    pub volatile_cache: bool,
    /// Its blocks.
    pub space: Space,
    /// What happened since it was opened.
    pub counters: Counters,
    /// Whether it takes no writes any more.
    pub failed: bool,
    /// Live lanes.
    pub lanes: Vec<LaneInfo>,
    /// Snapshots of lanes.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A drive of a pool.
#[derive(Clone, Debug)]
pub struct PoolDrive {
    /// Its name.
    pub id: Name,
    /// Its number in this process, if it is open.
    pub number: Option<u32>,
    /// Whether it takes no writes any more.
    pub failed: bool,
    /// What is to become of its content.
    pub state: DriveState,
    /// What it said; `None`: it could not be opened.
    pub facts: Option<DriveFacts>,
}

impl PoolDrive {
    /// Bytes that new data may take here.
    pub fn free_bytes(&self) -> u64 {
        let usable = self.state == DriveState::InUse && !self.failed;
        let space = self.facts.as_ref().filter(|_| usable).map(|f| f.space);
        space.map_or(0, |s| s.free.saturating_sub(s.reserve) * BLOCK_BYTES as u64)
    }
}

/// A volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes: what all of its lanes were told.
    pub size_bytes: u64,
    /// Bytes of data that it refers to, as exactly as its lanes' facts say.
    pub used_bytes: u64,
    /// By lane: its place among the pool's drives; `None`: it is on none that is there.
    pub lanes: Vec<Option<usize>>,
    /// It is this node's replica of a volume.
    pub replica: bool,
    /// What it was cloned from, if that is still known.
    pub origin: Option<(VolumeId, SnapshotId)>,
}

impl PoolVolume {
    /// The drives that have lanes of it, each once.
    pub fn drives(&self) -> Vec<usize> {
        each_once(&self.lanes)
    }

    /// The place of each lane.
    ///
    /// # Errors
    /// [`PoolError::Incomplete`].
    pub fn places(&self) -> Result<Vec<usize>, PoolError> {
        let places: Option<Vec<usize>> = self.lanes.iter().copied().collect();
        places.ok_or_else(|| PoolError::Incomplete {
            volume: self.id,
            missing: self.lanes.iter().filter(|l| l.is_none()).count(),
        })
    }
}

/// A snapshot of a volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSnapshot {
    /// Which.
    pub id: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// The volume's size at that time.
    pub size_bytes: u64,
    /// Bytes of data that it refers to, as exactly as its lanes' facts say.
    pub used_bytes: u64,
    /// Why that is not exact, where it should be.
    pub error: Option<StoreError>,
    /// By lane: its place among the pool's drives; `None`: no drive that is there has the snapshot of that lane.
    pub lanes: Vec<Option<usize>>,
}

impl PoolSnapshot {
    /// Whether every lane has it.
    pub fn complete(&self) -> bool {
        self.lanes.iter().all(Option::is_some)
    }

    /// The drives that have it, each once.
    pub fn drives(&self) -> Vec<usize> {
        each_once(&self.lanes)
    }
}

fn each_once(lanes: &[Option<usize>]) -> Vec<usize> {
    let mut drives: Vec<usize> = lanes.iter().copied().flatten().collect();
    drives.sort_unstable();
    drives.dedup();
    drives
}

/// Bytes of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolSpace {
    /// What data and map pages can use at most.
    pub total: u64,
    /// Data and metadata in use.
    pub used: u64,
    /// What new data may take.
    pub free: u64,
    /// Of what is in use, pages of maps and catalogues.
    pub metadata: u64,
    /// Kept so that a full pool can still free.
    pub reserved: u64,
}

/// A pool as its drives described it.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// Its name.
    pub id: Name,
    /// Its drives, in the order in which they joined.
    pub drives: Vec<PoolDrive>,
}

impl PoolView {
    /// The numbers of drives, by their places; of those that are open.
    pub fn numbers(&self, places: &[usize]) -> Vec<u32> {
        let numbers = places.iter().filter_map(|&place| self.drives[place].number);
        numbers.collect()
    }

    /// The places of the drives that say something of a volume: its lanes, older copies of them too, and its snapshots.
    pub fn drives_of(&self, volume: VolumeId) -> Vec<usize> {
        let has = |f: &DriveFacts| {
            f.lanes.iter().any(|l| l.volume == volume)
                || f.snapshots.iter().any(|s| s.volume == volume)
        };
        let facts = self.facts().filter(|(_, f)| has(f));
        facts.map(|(place, _)| place).collect()
    }

    /// How many drives it has, as far as any of them was told.
    pub fn members(&self) -> u32 {
        let told = self.facts().map(|(_, f)| f.identity.members).max();
        told.unwrap_or(0).max(self.drives.len() as u32)
    }

    /// Checks that all drives are there.
    ///
    /// # Errors
    /// [`PoolError::Degraded`].
    pub fn whole(&self) -> Result<(), PoolError> {
        let (present, members) = (self.facts().count(), self.members());
        match present < members as usize {
            true => Err(PoolError::Degraded {
                pool: self.id.clone(),
                present,
                members,
            }),
            false => Ok(()),
        }
    }

    fn facts(&self) -> impl Iterator<Item = (usize, &DriveFacts)> {
        let drives = self.drives.iter().enumerate();
        drives.filter_map(|(place, drive)| Some((place, drive.facts.as_ref()?)))
    }

    /// Its volumes.
    pub fn volumes(&self) -> BTreeMap<VolumeId, PoolVolume> {
        self.volumes_that(|_| true)
    }

    fn volumes_that(&self, are: impl Fn(VolumeId) -> bool) -> BTreeMap<VolumeId, PoolVolume> {
        let mut lanes: BTreeMap<VolumeId, BTreeMap<u8, (usize, &LaneInfo)>> = BTreeMap::new();
        let whole = self.whole().is_ok();
        for (place, facts) in self.facts() {
            for info in facts.lanes.iter().filter(|info| are(info.volume)) {
                let of_volume = lanes.entry(info.volume).or_default();
                let present = of_volume.entry(info.lane).or_insert((place, info));
                if info.incarnation > present.1.incarnation {
                    *present = (place, info);
                }
            }
        }
        let volumes = lanes.into_iter().map(|(id, lanes)| {
            let infos = || lanes.values().map(|(_, info)| *info);
            let count = infos().map(|i| i.lanes).max().unwrap_or(0);
            // What is leaving may be older than its copy on a drive that is not there.
            let counts = |info: &LaneInfo| whole || !info.leaving;
            let place = |lane| {
                let found = lanes.get(&lane).filter(|(_, info)| counts(info));
                found.map(|(place, _)| *place)
            };
            let volume = PoolVolume {
                id,
                size_bytes: infos().map(|i| i.size_bytes).min().unwrap_or(0),
                used_bytes: infos().map(|i| i.used_blocks).sum::<u64>() * BLOCK_BYTES as u64,
                lanes: (0..count).map(place).collect(),
                replica: infos().any(|i| i.replica),
                origin: infos().find_map(|i| i.origin),
            };
            (id, volume)
        });
        volumes.collect()
    }

    /// Copies of lanes and snapshots that a move left behind, by the place of their drive: each has a higher one on a drive that works. What
    /// a drive holds that failed may be otherwise on the drive itself.
    pub fn stale(&self) -> BTreeMap<usize, Vec<StaleCopy>> {
        self.lower(|drive| !drive.failed)
    }

    /// Copies that are lower than one on a drive that counts.
    fn lower(&self, counts: impl Fn(&PoolDrive) -> bool) -> BTreeMap<usize, Vec<StaleCopy>> {
        let mut highest: BTreeMap<(VolumeId, u8, Option<SnapshotId>), u32> = BTreeMap::new();
        let mut all = Vec::new();
        for (place, facts) in self.facts() {
            let lanes = facts
                .lanes
                .iter()
                .map(|l| ((l.volume, l.lane, None), l.incarnation));
            let visible = facts.snapshots.iter().filter(|s| !s.hidden);
            let snapshots = visible.map(|s| ((s.volume, s.lane, Some(s.snapshot)), s.incarnation));
            for (key, incarnation) in lanes.chain(snapshots) {
                if counts(&self.drives[place]) {
                    let most = highest.entry(key).or_insert(incarnation);
                    *most = (*most).max(incarnation);
                }
                all.push((place, key, incarnation));
            }
        }
        let mut stale: BTreeMap<usize, Vec<StaleCopy>> = BTreeMap::new();
        for (place, key, incarnation) in all {
            let below = highest.get(&key).copied().unwrap_or(0);
            if incarnation < below {
                stale.entry(place).or_default().push(StaleCopy {
                    volume: key.0,
                    lane: key.1,
                    snapshot: key.2,
                    below,
                });
            }
        }
        stale
    }

    /// Lanes that are leaving and have no higher copy, by the place of their drive; only said of a pool that is whole.
    pub fn staying(&self) -> Vec<(usize, VolumeId, u8)> {
        if self.whole().is_err() {
            return Vec::new();
        }
        let stale = self.lower(|_| true);
        let mut staying = Vec::new();
        for (place, facts) in self.facts() {
            for lane in facts.lanes.iter().filter(|l| l.leaving) {
                let mut copies = stale.get(&place).into_iter().flatten();
                if !copies
                    .any(|c| c.snapshot.is_none() && (c.volume, c.lane) == (lane.volume, lane.lane))
                {
                    staying.push((place, lane.volume, lane.lane));
                }
            }
        }
        staying
    }

    /// One of its volumes.
    pub fn volume(&self, id: VolumeId) -> Option<PoolVolume> {
        self.volumes_that(|volume| volume == id).remove(&id)
    }

    /// Its snapshots that are not hidden, by volume.
    pub fn snapshots(&self) -> BTreeMap<(VolumeId, SnapshotId), PoolSnapshot> {
        self.snapshots_that(|_, _| true)
    }

    /// Those of them that are meant: there may be thousands of others.
    pub fn snapshots_that(
        &self,
        are: impl Fn(VolumeId, SnapshotId) -> bool,
    ) -> BTreeMap<(VolumeId, SnapshotId), PoolSnapshot> {
        type Lanes<'a> = BTreeMap<u8, (usize, &'a SnapshotInfo)>;
        let mut all: BTreeMap<(VolumeId, SnapshotId), Lanes<'_>> = BTreeMap::new();
        for (place, facts) in self.facts() {
            let shown = facts.snapshots.iter().filter(|info| !info.hidden);
            for info in shown.filter(|info| are(info.volume, info.snapshot)) {
                let lanes = all.entry((info.volume, info.snapshot)).or_default();
                let present = lanes.entry(info.lane).or_insert((place, info));
                if info.incarnation > present.1.incarnation {
                    *present = (place, info);
                }
            }
        }
        let snapshots = all.into_iter().map(|((volume, id), lanes)| {
            let infos = || lanes.values().map(|(_, info)| *info);
            let count = infos().map(|i| i.lanes).max().unwrap_or(0);
            let place = |lane| lanes.get(&lane).map(|(place, _)| *place);
            let snapshot = PoolSnapshot {
                id,
                volume,
                size_bytes: infos().map(|i| i.size_bytes).min().unwrap_or(0),
                used_bytes: infos().map(|i| i.used_blocks).sum::<u64>() * BLOCK_BYTES as u64,
                error: infos().find_map(|i| i.error),
                lanes: (0..count).map(place).collect(),
            };
            ((volume, id), snapshot)
        });
        snapshots.collect()
    }

    /// One of its snapshots.
    pub fn snapshot(&self, volume: VolumeId, id: SnapshotId) -> Option<PoolSnapshot> {
        self.snapshots_that(|v, i| (v, i) == (volume, id))
            .remove(&(volume, id))
    }

    /// Its bytes.
    pub fn space(&self) -> PoolSpace {
        let mut sum = PoolSpace::default();
        for (place, facts) in self.facts() {
            let block = BLOCK_BYTES as u64;
            let s = facts.space;
            sum.total += (s.total - s.fixed) * block;
            sum.used += s.used * block;
            sum.metadata += s.pages * block;
            sum.reserved += s.reserve.min(s.free) * block;
            sum.free += self.drives[place].free_bytes();
        }
        sum
    }

    /// Bytes of all volumes together.
    pub fn provisioned_bytes(&self) -> u64 {
        self.volumes().values().map(|v| v.size_bytes).sum()
    }
}
