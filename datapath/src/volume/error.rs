//! How an operation on a volume can end, and the range that it is about.

use crate::device::IoError;
use crate::store::engine::StoreError;

/// Bytes of a volume, from `start` up to `end`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One beyond the last.
    pub end: u64,
}

impl ByteRange {
    /// `len` bytes from `start`.
    ///
    /// # Panics
    /// If `len` is 0 or the end overflows: the caller checks what hosts send against the size of the namespace.
    #[inline]
    pub fn new(start: u64, len: u64) -> Self {
        assert!(len > 0, "an empty range");
        let end = start.checked_add(len);
        Self {
            start,
            end: end.expect("a range inside the address space"),
        }
    }

    /// Length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The same as a standard range.
    #[inline]
    pub fn range(self) -> std::ops::Range<u64> {
        self.start..self.end
    }

    /// The blocks of `bytes` bytes (a power of two) that it touches.
    pub fn blocks(self, bytes: u64) -> std::ops::Range<u64> {
        self.start / bytes..self.end.div_ceil(bytes)
    }

    /// Whether it begins and ends on multiples of `bytes` (a power of two).
    #[inline]
    pub fn aligned(self, bytes: u64) -> bool {
        (self.start | self.end) & (bytes - 1) == 0
    }
}

impl From<std::ops::Range<u64>> for ByteRange {
    fn from(range: std::ops::Range<u64>) -> Self {
        Self::new(range.start, range.end.saturating_sub(range.start))
    }
}

/// Why an operation on a volume failed. Small and `Copy`: it travels with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// Beyond the end of the volume: it was checked against another size than it has now.
    #[error("beyond the end of the volume")]
    OutOfRange,
    /// The bytes of a compare differ.
    #[error("the data differs")]
    Miscompare,
    /// The drive could not read these bytes; others may be fine.
    #[error("the drive cannot read this range")]
    Unreadable,
    /// What the drive gave is not what was written there, or is known to be damaged; others may be fine.
    #[error("the data is damaged")]
    Damaged,
    /// What was read is not what was encrypted: it, its place or its tag was changed. Others may be fine.
    #[error("encrypted data does not match its authentication tag")]
    NotOpened,
    /// A write to the drive failed, now or before: it takes no more.
    #[error("the drive failed")]
    DriveFailed,
    /// There is no space left beneath.
    #[error("no space left")]
    CapacityExceeded,
    /// A compare-and-write over more than one slice cannot be atomic.
    #[error("the range is too large to be atomic")]
    NotAtomic,
    /// The volume was closed, or moved away: another path may work.
    #[error("the volume is closed here")]
    Closed,
    /// It is replicated, and coordinated elsewhere, or by nobody: another path may work.
    #[error("the volume is coordinated elsewhere")]
    Elsewhere,
    /// Too few replicas could be reached for as long as the volume waits: another path, or a later try, may work.
    #[error("too few replicas are reachable")]
    Stalled,
    /// More operations are in flight than are admitted: try again.
    #[error("too many operations in flight")]
    Busy,
    /// It was forwarded, and its coordinator says this: a status field without its phase bit.
    #[error("the node that coordinates the volume answered with status {0:#06x}")]
    Told(u16),
}

impl From<IoError> for VolumeError {
    fn from(e: IoError) -> Self {
        match e {
            IoError::Unreadable => Self::Unreadable,
            IoError::Failed => Self::DriveFailed,
            IoError::NoSpace => Self::CapacityExceeded,
            IoError::OutOfRange => Self::OutOfRange,
        }
    }
}

impl From<StoreError> for VolumeError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Full => Self::CapacityExceeded,
            StoreError::Checksum { .. }
            | StoreError::Poisoned { .. }
            | StoreError::Page { .. }
            | StoreError::Lost => Self::Damaged,
            StoreError::Io(e) => e.into(),
            // The lane is not here any more.
            StoreError::Unknown | StoreError::Exists | StoreError::Replica | StoreError::Closed => {
                Self::Closed
            }
        }
    }
}
