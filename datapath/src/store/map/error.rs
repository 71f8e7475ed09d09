//! How work on the map fails.

use super::super::types::{Crc, PhysicalBlock};
use super::page::PageError;
use crate::device::IoError;

/// Why the map could not be read or written. Small and `Copy`: it travels with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no room for a page.
    #[error("no space left on the drive for a page of the map")]
    NoSpace,
    /// A page is not what was written.
    #[error("page {at:?} of the drive: checksum {actual:?} where {expected:?} was written")]
    Checksum {
        /// Of the drive.
        at: PhysicalBlock,
        /// As its parent has it.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// A page is whole, but not the one that belongs there.
    #[error("page {at:?} of the drive: {why}")]
    Page {
        /// Of the drive.
        at: PhysicalBlock,
        /// What is wrong with it.
        why: PageError,
    },
    /// A part of the map was lost to damage before.
    #[error("a part of the map was damaged, and is lost")]
    Lost,
    /// Map and bitmaps, or a bitmap and the group table, contradict each other.
    #[error("block {at:?} of the drive: map and bitmaps contradict each other")]
    Contradiction {
        /// Of the drive.
        at: PhysicalBlock,
    },
    /// No catalogue is that deep.
    #[error("a catalogue of depth {depth}")]
    Depth {
        /// As the superblock says.
        depth: u32,
    },
    /// The drive could not do it.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl MapError {
    /// Whether a page is damaged, as opposed to a drive that fails: then what it led to is lost, and nothing else is.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Checksum { .. } | Self::Page { .. } | Self::Io(IoError::Unreadable)
        )
    }
}
