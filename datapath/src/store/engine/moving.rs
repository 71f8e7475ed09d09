//! What goes from one drive to another when lanes move (`docs/store-format.md` §13): records of a family, and parts of what they differ by.

use std::ops::Range;

use super::super::VolumeId;
use super::super::types::{CatalogueHandle, Crc, LaneBlock, SnapshotId, Stamp};

/// The id of the snapshots that a move takes for itself; no other has it.
pub const TEMPORARY: SnapshotId = SnapshotId([0xff; 16]);

/// What a record is that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovedKind {
    /// A lane that is written to.
    Live,
    /// A snapshot.
    Snapshot,
    /// A snapshot that is only there for what descends from it.
    Hidden,
}

/// A record that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedRecord {
    /// Where it is in the catalogue of its drive.
    pub handle: CatalogueHandle,
    /// The record of the family that it differs from.
    pub parent: Option<CatalogueHandle>,
    /// What it is.
    pub kind: MovedKind,
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// How many lanes the volume has.
    pub lanes: u8,
    /// Of a snapshot.
    pub snapshot: SnapshotId,
    /// Of two copies, the higher is the lane.
    pub incarnation: u32,
    /// The highest epoch of its stamps.
    pub epoch: u32,
    /// Of the volume, as far as the lane was told.
    pub size_bytes: u64,
    /// Data blocks that it refers to, as of the last checkpoint.
    pub used_blocks: u64,
}

/// What there is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextFamily {
    /// These, parents first.
    Family(Vec<MovedRecord>),
    /// Nothing but what is being deleted.
    Deleting,
    /// Lanes that another drive took when it failed: what it holds is known when the pool is opened again.
    Undecided,
    /// Nothing at all.
    Nothing,
}

/// A block that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedBlock {
    /// Of the lane.
    pub block: LaneBlock,
    /// As it was written with.
    pub stamp: Stamp,
    /// Of its data.
    pub crc: Crc,
}

/// A part of what a record differs by from its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Blocks with data, ascending.
    pub blocks: Vec<MovedBlock>,
    /// Their data, one after the other; verified.
    pub data: Vec<u8>,
    /// Blocks that are known to be damaged: without data.
    pub poisoned: Vec<MovedBlock>,
    /// Blocks that the parent has and the record has not.
    pub erased: Vec<Range<u64>>,
    /// Where to go on, if there is more.
    pub next: Option<LaneBlock>,
}

/// A copy of a lane or snapshot that another one has replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleCopy {
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// Of a snapshot; `None`: the live lane.
    pub snapshot: Option<SnapshotId>,
    /// Copies below it are meant.
    pub below: u32,
}
