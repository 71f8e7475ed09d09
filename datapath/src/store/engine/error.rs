//! How operations of a store end.

use super::super::Name;
use super::super::types::{Crc, LaneBlock, PhysicalBlock};
use crate::device::IoError;

/// Why an operation of a store failed. Small and `Copy`: it travels with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The drive has no room for it; freeing space helps.
    #[error("no space left on the drive")]
    Full,
    /// What was read is not what was written.
    #[error(
        "block {block:?} of the lane, block {at:?} of the drive: checksum {actual:?} where {expected:?} was written"
    )]
    Checksum {
        /// Of the lane.
        block: LaneBlock,
        /// Of the drive.
        at: PhysicalBlock,
        /// As the map has it.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// The block was damaged before, and is known to be.
    #[error("block {block:?} of the lane is damaged")]
    Poisoned {
        /// Of the lane.
        block: LaneBlock,
    },
    /// A page of the map is damaged: what it leads to cannot be found.
    #[error("page {at:?} of the drive's map is damaged")]
    Page {
        /// Of the drive.
        at: PhysicalBlock,
    },
    /// A page of the map was damaged, and what it led to is lost: blocks here cannot be found until they are written or erased.
    #[error("the part of the map that leads there was damaged, and is lost")]
    Lost,
    /// The drive could not do it.
    #[error(transparent)]
    Io(#[from] IoError),
    /// There is no such volume, lane or snapshot here.
    #[error("there is no such volume or snapshot on the drive")]
    Unknown,
    /// A snapshot with this id is of another volume, or the clone exists.
    #[error("it exists already, and is another")]
    Exists,
    /// It is a lane of a replica, and those move as replicas do: another one is made, and this one deleted.
    #[error("it is a lane of a replica, which is not moved by itself")]
    Replica,
    /// The store was closed.
    #[error("the drive is closed")]
    Closed,
}

/// Why a drive cannot be opened or formatted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nothing of ours is on it.
    #[error("there is no store on the drive: format it to use it")]
    Blank,
    /// It holds something of ours; formatting would destroy it.
    #[error("the drive holds a store already: it is not formatted over")]
    NotBlank,
    /// Too small.
    #[error("the drive has {bytes} bytes: {least} are the least")]
    TooSmall {
        /// Its size.
        bytes: u64,
        /// The smallest size.
        least: u64,
    },
    /// It became smaller than it was.
    #[error("the drive has {found} blocks where it had {expected}")]
    Shrunk {
        /// There.
        found: u64,
        /// Before.
        expected: u64,
    },
    /// A structure on it is damaged, and the message says which and how. The offline check shows more.
    #[error("the drive is damaged: {what}; `keelblock-datapath check` shows more")]
    Corrupt {
        /// Which structure and how.
        what: String,
    },
    /// It could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// Doing what.
        doing: &'static str,
        /// What happened.
        source: IoError,
    },
    /// There is no memory for it.
    #[error("not enough DMA memory to open the drive")]
    Memory,
    /// The names are others than were expected.
    #[error("drive {drive} of pool {pool} was found")]
    Another {
        /// Found.
        drive: Name,
        /// Found.
        pool: Name,
    },
}
