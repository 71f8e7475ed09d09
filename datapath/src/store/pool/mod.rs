//! A pool: several drives, each with a store of its own, and the volumes whose lanes lie on them.
//!
//! No drive holds a table of the pool. Each says which lanes and snapshots it has ([`DriveFacts`]), and what the pool has follows from
//! what all of them say ([`PoolView`]): a volume is complete if each of its lanes is on some drive, and of two copies of a lane, which an
//! interrupted move leaves behind, the one with the higher incarnation is the lane. Nothing here does I/O: the commander asks the
//! drives on their homes, and tells them what was decided here.

mod diff;
mod place;
#[cfg(test)]
mod tests;
mod view;

pub use crate::store::superblock::DriveState;
pub use diff::{VolumeRange, join_ranges, lane_start};
pub use place::place;
pub use view::{DriveFacts, PoolDrive, PoolSnapshot, PoolSpace, PoolView, PoolVolume};

use super::types::SnapshotId;
use super::{Name, VolumeId};

/// Why a pool does not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Drives are missing: what they hold is not known.
    #[error(
        "pool {pool} has {present} of its {members} drives: open it with all of them first, or replace those that are lost"
    )]
    Degraded {
        /// Which.
        pool: Name,
        /// Drives that are there.
        present: usize,
        /// Drives that it has.
        members: u32,
    },
    /// No drive takes new lanes.
    #[error("no drive of pool {pool} takes new data: each has failed or is being evacuated")]
    NoDrive {
        /// Which.
        pool: Name,
    },
    /// The other drives cannot take what is on one.
    #[error(
        "the other drives that could take what is on drive {drive} have {free} bytes free, and {needed} are needed: add or grow one"
    )]
    NoRoom {
        /// Which is to be emptied.
        drive: Name,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// A volume with this id and another size exists.
    #[error("volume {volume} exists with {size_bytes} bytes")]
    Exists {
        /// Which.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// There is a volume with this id that is no clone of this snapshot.
    #[error("volume {volume} exists, and is no clone of that snapshot")]
    NotThatClone {
        /// Which.
        volume: VolumeId,
    },
    /// There is no such volume.
    #[error("there is no volume {volume}")]
    Unknown {
        /// Which.
        volume: VolumeId,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {snapshot} of volume {volume}")]
    NoSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
    },
    /// The id is that of a snapshot of another volume.
    #[error("snapshot {snapshot} is of volume {volume}")]
    OtherVolume {
        /// Which.
        snapshot: SnapshotId,
        /// Whose it is.
        volume: VolumeId,
    },
    /// Some lanes do not have the snapshot.
    #[error("snapshot {snapshot} of volume {volume} is incomplete: delete it")]
    Partial {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
    },
    /// A size that no volume can have.
    #[error(
        "a volume cannot have {size_bytes} bytes: a multiple of 4096, at least that and at most 1 PiB, is possible"
    )]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// Volumes do not shrink.
    #[error("volume {volume} has {size_bytes} bytes: it cannot become smaller")]
    Shrink {
        /// Which.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// Lanes of the volume are on drives that are not there.
    #[error(
        "volume {volume} is incomplete: {missing} of its lanes are on drives that are missing or lost"
    )]
    Incomplete {
        /// Which.
        volume: VolumeId,
        /// How many lanes.
        missing: usize,
    },
}

/// The largest volume.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

/// Checks the size of a volume.
///
/// # Errors
/// [`PoolError::Size`].
pub fn check_size(size_bytes: u64) -> Result<(), PoolError> {
    match size_bytes > 0 && size_bytes <= VOLUME_BYTES_MAX && size_bytes.is_multiple_of(4096) {
        true => Ok(()),
        false => Err(PoolError::Size { size_bytes }),
    }
}
