//! The store of one drive: what the other rooms' structures do together (`docs/store-format.md` §7 to §14).
//!
//! A [`Store`] lives on the reactor that owns the drive. Its lanes are [`StoreLane`]s.

mod error;

use std::ops::Range;

use keelblock_hugepages::Buffer;

pub use error::{OpenError, StoreError};

use super::types::{DriveId, LaneBlock, SnapshotId};
use super::{Name, VolumeId};
use crate::device::{Device, View};
use crate::reactor::Handle;

/// What a store may use.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// Bytes for cached pages and blocks.
    pub cache_bytes: usize,
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
    /// Size of the volume in bytes, as far as this lane was told.
    pub size_bytes: u64,
    /// Data blocks in use, the delta's included.
    pub used_blocks: u64,
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
    /// Deleted, and kept for clones.
    pub hidden: bool,
}

/// Blocks of a drive, exactly: `total = fixed + pages + data + free`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Of the drive.
    pub total: u64,
    /// Superblocks, group table, journal, and two blocks of each group.
    pub fixed: u64,
    /// Map and catalogue.
    pub pages: u64,
    /// Data, referred to by any root or the delta, or freed and not reusable yet.
    pub data: u64,
    /// Free, the reserve included.
    pub free: u64,
    /// What new data may not use.
    pub reserve: u64,
}

/// A range in which two roots differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRange {
    /// First block of the lane.
    pub first: LaneBlock,
    /// How many.
    pub blocks: u64,
    /// False: the newer one has nothing there.
    pub data: bool,
}

/// A root of a lane: its live one, or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootOf {
    /// As it is now.
    Live,
    /// As it was.
    Snapshot(SnapshotId),
}

/// One drive's store. Cheap to clone; lives on one reactor.
#[derive(Clone, Debug)]
pub struct Store;

/// A live lane of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreLane;

#[allow(unused_variables, missing_docs, clippy::todo, clippy::unused_async)]
impl Store {
    /// Writes an empty store to a blank drive.
    pub async fn format(
        handle: &Handle,
        device: &Device,
        drive: &Name,
        pool: &Name,
    ) -> Result<(), OpenError> {
        todo!()
    }
    /// Opens a drive, after a crash too: when this succeeds, it serves. `OpenError::Blank` if there is nothing.
    pub async fn open(
        handle: &Handle,
        device: &Device,
        config: &StoreConfig,
    ) -> Result<Self, OpenError> {
        todo!()
    }
    /// Finishes what is under way, checkpoints, and marks the drive clean. Nothing is served afterwards.
    pub async fn close(&self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn identity(&self) -> Identity {
        todo!()
    }
    /// Tells the drive how many members its pool has.
    pub async fn set_members(&self, members: u32) -> Result<(), StoreError> {
        todo!()
    }
    pub fn device(&self) -> &Device {
        todo!()
    }
    pub fn space(&self) -> Space {
        todo!()
    }

    pub fn lanes(&self) -> Vec<LaneInfo> {
        todo!()
    }
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        todo!()
    }
    pub fn lane(&self, volume: VolumeId, lane: u8) -> Option<StoreLane> {
        todo!()
    }
    /// Makes lanes of a volume, durably; those that exist stay as they are.
    pub async fn create_lanes(
        &self,
        volume: VolumeId,
        lanes: &[u8],
        of: u8,
        size_bytes: u64,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// Tells all lanes of a volume its size, durably.
    pub async fn resize(&self, volume: VolumeId, size_bytes: u64) -> Result<(), StoreError> {
        todo!()
    }
    /// Deletes a volume's live lanes, durably; its snapshots stay. Space comes back in the background.
    pub async fn delete_lanes(&self, volume: VolumeId) -> Result<(), StoreError> {
        todo!()
    }
    /// Snapshots of all lanes here of these volumes, at one moment, durably. A snapshot that exists stays as it is.
    pub async fn snapshot(&self, volumes: &[(VolumeId, SnapshotId)]) -> Result<(), StoreError> {
        todo!()
    }
    /// Deletes a snapshot of all lanes here, durably; unknown succeeds. Space comes back in the background, or when the last clone goes.
    pub async fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// New lanes of `to`, writable, with what the snapshot of `from` has; durably.
    pub async fn clone_lanes(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        to: VolumeId,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// The volume's live lanes become what the snapshot has, durably. The volume must not be used meanwhile; `StoreLane`s of it are void.
    pub async fn restore(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), StoreError> {
        todo!()
    }
    /// Where two roots of a lane differ, from a block on; `None` as `older`: everything that `newer` has. The second is where to go on.
    pub async fn diff(
        &self,
        volume: VolumeId,
        lane: u8,
        older: Option<RootOf>,
        newer: RootOf,
        from: LaneBlock,
        ranges_max: usize,
    ) -> Result<(Vec<DiffRange>, Option<LaneBlock>), StoreError> {
        todo!()
    }
    /// Blocks that deleting a snapshot would free, on all lanes here.
    pub async fn unique_blocks(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<u64, StoreError> {
        todo!()
    }

    /// Brings everything that completed before to stable media.
    pub async fn flush(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Brings the delta into the map now. For tests, `close`, and what needs a root.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// The drive has become larger.
    pub async fn grow(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Panics if what is in memory contradicts itself. For tests.
    pub fn check(&self) {
        todo!()
    }
}

#[allow(unused_variables, missing_docs, clippy::todo, clippy::unused_async)]
impl StoreLane {
    /// Reads from a memory drive without waiting and without a copy. `None`: use [`StoreLane::read`].
    pub fn read_now(
        &self,
        blocks: Range<u64>,
        skip: usize,
        len: usize,
    ) -> Option<Result<View, StoreError>> {
        todo!()
    }
    /// Reads `blocks` (at most 256 of them) into the beginning of `into`. Blocks that were never written are zeroes.
    pub async fn read(&self, blocks: Range<u64>, into: Buffer) -> (Buffer, Result<(), StoreError>) {
        todo!()
    }
    /// Writes `blocks` (1 to 256) from the beginning of `from`: all or, after a crash, nothing. With `fua`, on stable media when it is done.
    pub async fn write(
        &self,
        blocks: Range<u64>,
        from: Buffer,
        fua: bool,
    ) -> (Buffer, Result<(), StoreError>) {
        todo!()
    }
    /// Makes blocks, any number, read as zeroes and gives their space back. The caller sees to it that no write of them is under way.
    pub async fn erase(&self, blocks: Range<u64>) -> Result<(), StoreError> {
        todo!()
    }
}
