//! Records of a lane's stream (`docs/replication.md` §5).

use super::WireError;
use super::bytes::{Cursor, put_zero};
use crate::cipher::KEY_INDEX_MAX;
pub use crate::cipher::TAG_BYTES;
use crate::store::types::{BLOCKS_MAX, Crc, LaneBlock, SnapshotId, Stamp};

/// Bytes of a record before what its kind adds.
pub const RECORD_BYTES: usize = 48;
/// Most blocks of a write.
pub const WRITE_BLOCKS_MAX: usize = 256;
/// Lanes are numbered below this.
pub const LANES_MAX: u8 = 16;

const CRC_BYTES: usize = 4;
const KIND_WRITE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const KIND_SNAPSHOT: u8 = 3;
const KIND_POISON: u8 = 4;

/// Bits of a record's flags.
pub mod flag {
    /// Tags follow.
    pub const SEALED: u8 = 1;
    /// It was sent before.
    pub const REPLAYED: u8 = 2;
    /// A takeover completes it: its stamp is of an older epoch.
    pub const ROLLED: u8 = 4;
    /// Only over exactly this stamp and checksum.
    pub const REPAIR: u8 = 8;
    /// The receiver has it: no data come with it.
    pub const LISTED: u8 = 16;
    /// All that there are.
    pub const ALL: u8 = 31;
}

/// What all records have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bits of [`flag`]; `SEALED` follows from what it holds.
    pub flags: u8,
    /// Its lane.
    pub lane: u8,
    /// Of its first block; block i of a write has seq + i.
    pub stamp: Stamp,
    /// Place in the lane's stream of the frame's epoch, from 1 on; what it is in other frames, they say.
    pub position: u64,
    /// Index of the data key; 0: not encrypted.
    pub key: u32,
}

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Blocks are written.
    Write(Blocks<'a>),
    /// Blocks are known to be damaged.
    Poison(Blocks<'a>),
    /// Blocks are erased.
    Tombstone {
        /// The first.
        first: LaneBlock,
        /// How many, at least 1.
        blocks: u64,
    },
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// Blocks with their checksums, and tags if they are sealed; 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks<'a> {
    /// The first one.
    pub first: LaneBlock,
    crcs: &'a [u8],
    tags: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Of bytes as they are on the wire: four for each checksum, sixteen for each tag; no tags: not sealed. `None` if they do not fit together.
    pub fn new(first: LaneBlock, crcs: &'a [u8], tags: &'a [u8]) -> Option<Self> {
        let n = crcs.len() / CRC_BYTES;
        let fits = crcs.len().is_multiple_of(CRC_BYTES)
            && (1..=WRITE_BLOCKS_MAX).contains(&n)
            && (tags.is_empty() || tags.len() == n * TAG_BYTES)
            && first.0 < BLOCKS_MAX
            && n as u64 <= BLOCKS_MAX - first.0;
        fits.then_some(Self { first, crcs, tags })
    }

    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.crcs.len() / CRC_BYTES
    }

    /// The checksum of each, in order.
    pub fn crcs(&self) -> impl Iterator<Item = Crc> + 'a {
        let words = self.crcs.chunks_exact(CRC_BYTES);
        words.map(|b| Crc(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
    }

    /// The tag of each; none if they are not sealed.
    pub fn tags(&self) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.tags.chunks_exact(TAG_BYTES)
    }

    /// Whether there are tags.
    pub fn sealed(&self) -> bool {
        !self.tags.is_empty()
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What all have.
    pub head: Head,
    /// What it does.
    pub content: Content<'a>,
}

impl<'a> Record<'a> {
    /// Blocks of data that come with it.
    pub fn data_blocks(&self) -> usize {
        match self.content {
            Content::Write(b) if self.head.flags & flag::LISTED == 0 => b.len(),
            _ => 0,
        }
    }

    /// Bytes on the wire, without data.
    pub fn bytes(&self) -> usize {
        RECORD_BYTES
            + match self.content {
                Content::Write(b) | Content::Poison(b) => b.crcs.len() + b.tags.len(),
                Content::Tombstone { .. } => 0,
                Content::Snapshot(_) => 16,
            }
    }

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let (kind, first, blocks, sealed) = match self.content {
            Content::Write(b) => (KIND_WRITE, b.first.0, b.len() as u64, b.sealed()),
            Content::Poison(b) => (KIND_POISON, b.first.0, b.len() as u64, b.sealed()),
            Content::Tombstone { first, blocks } => (KIND_TOMBSTONE, first.0, blocks, false),
            Content::Snapshot(_) => (KIND_SNAPSHOT, 0, 0, false),
        };
        let h = &self.head;
        let sealed = if sealed { flag::SEALED } else { 0 };
        out.extend_from_slice(&[kind, h.flags & !flag::SEALED | sealed, h.lane, 0]);
        out.extend_from_slice(&h.stamp.epoch.to_le_bytes());
        out.extend_from_slice(&h.stamp.seq.to_le_bytes());
        out.extend_from_slice(&h.position.to_le_bytes());
        out.extend_from_slice(&h.key.to_le_bytes());
        put_zero(out, 4);
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&blocks.to_le_bytes());
        match self.content {
            Content::Write(b) | Content::Poison(b) => {
                out.extend_from_slice(b.crcs);
                out.extend_from_slice(b.tags);
            }
            Content::Tombstone { .. } => {}
            Content::Snapshot(id) => out.extend_from_slice(&id.0),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What no record of this version is.
    pub(super) fn take(c: &mut Cursor<'a>) -> Result<Self, WireError> {
        let kind = c.u8()?;
        let flags = c.u8()?;
        let lane = c.u8()?;
        c.zero(1)?;
        let stamp = c.stamp()?;
        let position = c.u64()?;
        let key = c.u32()?;
        c.zero(4)?;
        let first = LaneBlock(c.u64()?);
        let blocks = c.u64()?;
        let value = |what, value| WireError::Value { what, value };
        if flags & !flag::ALL != 0 {
            return Err(value("flags of a record", u64::from(flags)));
        }
        if lane >= LANES_MAX {
            return Err(value("lane of a record", u64::from(lane)));
        }
        let sealed = flags & flag::SEALED != 0;
        if sealed != (key != 0) || key > KEY_INDEX_MAX {
            return Err(value("key of a record", u64::from(key)));
        }
        let content = match kind {
            KIND_WRITE | KIND_POISON => {
                if blocks > WRITE_BLOCKS_MAX as u64 {
                    return Err(value("blocks of a record", blocks));
                }
                let n = blocks as usize;
                let crcs = c.take(n * CRC_BYTES)?;
                let tags = c.take(if sealed { n * TAG_BYTES } else { 0 })?;
                let of =
                    Blocks::new(first, crcs, tags).ok_or(value("blocks of a record", blocks))?;
                if stamp.seq.checked_add(blocks).is_none() {
                    return Err(value("seq of a record", stamp.seq));
                }
                match kind {
                    KIND_WRITE => Content::Write(of),
                    _ => Content::Poison(of),
                }
            }
            _ if sealed => return Err(value("flags of a record", u64::from(flags))),
            KIND_TOMBSTONE => {
                if blocks == 0 || first.0 >= BLOCKS_MAX || blocks > BLOCKS_MAX - first.0 {
                    return Err(value("blocks of a tombstone", blocks));
                }
                Content::Tombstone { first, blocks }
            }
            KIND_SNAPSHOT => {
                if first.0 != 0 || blocks != 0 {
                    return Err(value("blocks of a snapshot", blocks));
                }
                Content::Snapshot(SnapshotId(c.array()?))
            }
            _ => return Err(value("kind of a record", u64::from(kind))),
        };
        let head = Head {
            flags,
            lane,
            stamp,
            position,
            key,
        };
        Ok(Self { head, content })
    }
}
