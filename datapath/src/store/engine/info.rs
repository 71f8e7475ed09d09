//! What a store is told, and what it says of itself.

use super::super::types::{DriveId, SnapshotId};
use super::super::{Name, VolumeId};
use super::StoreError;
use super::budget::CacheBudget;

/// What a store may use.
#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// Memory for cached pages and blocks; shared with the other drives that are given the same.
    pub cache: CacheBudget,
}

/// What a drive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random at format.
    pub id: DriveId,
    /// As it was named at format.
    pub drive: Name,
    /// The pool that it is of.
    pub pool: Name,
    /// Members of the pool, as far as it was told.
    pub members: u32,
}

/// A lane that a drive holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// How many lanes the volume has.
    pub lanes: u8,
    /// Of two copies of a lane, the higher is the lane.
    pub incarnation: u32,
    /// A copy on another drive may be the lane by now.
    pub leaving: bool,
    /// Size of the volume in bytes, as far as this lane was told.
    pub size_bytes: u64,
    /// Data blocks in use, as of the last checkpoint, or exactly: the list says which.
    pub used_blocks: u64,
    /// Why that is not known exactly, where it should be.
    pub error: Option<StoreError>,
    /// A page of its map was damaged, and what it led to was lost: reads there fail until it is written or erased.
    pub lossy: bool,
    /// It is a replica's: its stamps are given by a coordinator.
    pub replica: bool,
    /// The snapshot that it descends from, if any: of another volume if it is a clone.
    pub origin: Option<(VolumeId, SnapshotId)>,
}

/// A snapshot of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// Which.
    pub snapshot: SnapshotId,
    /// Of two copies, the higher counts.
    pub incarnation: u32,
    /// Deleted, and kept for clones.
    pub hidden: bool,
    /// How many lanes the volume has.
    pub lanes: u8,
    /// Size of the volume then.
    pub size_bytes: u64,
    /// Data blocks in use, as of the last checkpoint (before its first, the lane's), or exactly: the list says which.
    pub used_blocks: u64,
    /// Why that is not known exactly, where it should be.
    pub error: Option<StoreError>,
    /// See [`LaneInfo::lossy`].
    pub lossy: bool,
}

/// Blocks of a drive, exactly: `total = fixed + used + free`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Of the drive.
    pub total: u64,
    /// Superblocks, group table, journal, and two blocks of each group.
    pub fixed: u64,
    /// Pages of map and catalogue, and data that any root or the delta refers to, or that is freed and not reusable yet.
    pub used: u64,
    /// Of these, pages of map and catalogue, as of the last checkpoint.
    pub pages: u64,
    /// Free, the reserve included.
    pub free: u64,
    /// What new data may not use.
    pub reserve: u64,
}

/// A root of a lane: its live one, or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootOf {
    /// As it is now.
    Live,
    /// As it was.
    Snapshot(SnapshotId),
}

/// What happened since the drive was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks and pages that did not match their checksum.
    pub checksum_errors: u64,
    /// Reads that the device failed.
    pub read_errors: u64,
    /// Writes and flushes that the device failed.
    pub write_errors: u64,
    /// Reads of one block that were answered from the cache.
    pub cache_hits: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Flushes of the drive.
    pub flushes: u64,
    /// Blocks of the journal written.
    pub journal_blocks: u64,
    /// Pages written.
    pub pages: u64,
    /// Pages of maps that were damaged and given up, since the drive was formatted.
    pub lost_pages: u64,
}
