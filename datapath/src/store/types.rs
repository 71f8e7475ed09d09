//! The words of the store's structures (`docs/store-format.md`), each its own type.

use std::fmt;

/// Bytes of a block, and of a page.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of a slice.
pub const SLICE_BLOCKS: u64 = 4096;
/// One more than the highest block number that 5 bytes can hold.
pub const BLOCKS_MAX: u64 = 1 << 40;

/// A drive's id: random at format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriveId(pub [u8; 16]);

impl fmt::Debug for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A block of a drive, counted from its start; below [`BLOCKS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalBlock(pub u64);

/// A block of a lane: the lane's own slices, one after the other; below [`BLOCKS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneBlock(pub u64);

/// A record's place in the catalogue; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogueHandle(pub u32);

/// Replica-local snapshot generation (rule S3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

/// Place of a record in its lane's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneSequence(pub u64);

/// Raised at every opening of a drive, before anything else is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountGeneration(pub u64);

/// A checkpoint's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointNumber(pub u64);

/// What orders writes of a block (`DESIGN.md` §1 and §6): epoch, then seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Which coordinator.
    pub epoch: u32,
    /// Lane and counter.
    pub seq: u64,
}

/// CRC-32C of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Crc(pub u32);

impl Crc {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(keelblock_nvme::digest::digest(bytes))
    }

    /// Of these bytes, which come from memory, while the block from `ahead` on is fetched.
    pub fn of_memory(bytes: &[u8], ahead: Option<*const u8>) -> Self {
        Self(keelblock_nvme::digest::digest_ahead(bytes, ahead))
    }
}

impl fmt::Debug for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// A snapshot's id: a UUID's 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub [u8; 16]);

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
