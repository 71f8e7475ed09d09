//! Reads from a replica (`docs/replication.md` §§5 and 8): Read, ReadDone.

use super::WireError;
use super::bytes::{Cursor, put_stamp, put_zero};
use super::items::{Item, List, put_all};
use super::record::WRITE_BLOCKS_MAX;
use super::resync::Tree;
use crate::cipher::{KEY_INDEX_MAX, Seal};
use crate::replication::seam::{Entry, Kind};
use crate::store::types::{BLOCK_BYTES, BLOCKS_MAX, Crc, LaneBlock};

/// Blocks are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The asker's number for it.
    pub request: u64,
    /// Of this tree.
    pub tree: Tree,
    /// The first block.
    pub first: LaneBlock,
    /// How many, 1 to 256.
    pub blocks: u32,
}

impl Read {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request.to_le_bytes());
        out.push(self.tree.lane);
        put_zero(out, 3);
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        self.tree.put_id(out);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Read of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("read", body);
        let request = c.u64()?;
        let lane = c.lane("lane of a read")?;
        c.zero(3)?;
        let blocks = c.u32()?;
        let first = c.u64()?;
        let snapshot = Tree::take_id(&mut c)?;
        c.end()?;
        if !(1..=WRITE_BLOCKS_MAX as u32).contains(&blocks) {
            return Err(WireError::value("blocks of a read", blocks));
        }
        if first >= BLOCKS_MAX || u64::from(blocks) > BLOCKS_MAX - first {
            return Err(WireError::value("first block of a read", first));
        }
        let first = LaneBlock(first);
        Ok(Self {
            request,
            tree: Tree { lane, snapshot },
            first,
            blocks,
        })
    }
}

/// The number of a block's kind.
pub(super) fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::Absent => 0,
        Kind::Data => 1,
        Kind::Erased => 2,
        Kind::Poison => 3,
    }
}

/// A block's kind.
pub(super) fn take_kind(c: &mut Cursor<'_>) -> Result<Kind, WireError> {
    Ok(match c.u8()? {
        0 => Kind::Absent,
        1 => Kind::Data,
        2 => Kind::Erased,
        3 => Kind::Poison,
        other => return Err(WireError::value("kind of a block", other)),
    })
}

/// Looks whether an entry has what its kind can have.
pub(super) fn check_entry(entry: &Entry) -> Result<(), WireError> {
    let crc = entry.crc.0;
    match entry.kind {
        Kind::Absent if entry.stamp.epoch != 0 || entry.stamp.seq != 0 => {
            Err(WireError::value("seq of an absent block", entry.stamp.seq))
        }
        Kind::Absent | Kind::Erased if crc != 0 => {
            Err(WireError::value("checksum of a block without data", crc))
        }
        _ => Ok(()),
    }
}

/// A block that was read.
impl Item for Entry {
    const BYTES: usize = 40;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(kind_number(self.kind));
        put_zero(out, 3);
        out.extend_from_slice(&self.crc.0.to_le_bytes());
        put_stamp(out, self.stamp);
        out.extend_from_slice(&self.seal.key.to_le_bytes());
        out.extend_from_slice(&self.seal.tag);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let kind = take_kind(c)?;
        c.zero(3)?;
        let crc = Crc(c.u32()?);
        let stamp = c.stamp()?;
        let seal = Seal {
            key: c.u32()?,
            tag: c.array()?,
        };
        let entry = Self {
            kind,
            stamp,
            crc,
            seal,
        };
        check_entry(&entry)?;
        let bare = matches!(kind, Kind::Absent | Kind::Erased) || seal.key == 0;
        if bare && seal != Seal::NONE || seal.key > KEY_INDEX_MAX {
            return Err(WireError::value("key of a block", seal.key));
        }
        Ok(entry)
    }
}

/// What became of a read.
#[derive(Clone, Copy, Debug)]
pub enum ReadResult<'a> {
    /// Each block's entry, in order. Data of those of kind [`Kind::Data`], and of no others, are behind the body, in order.
    Done(List<'a, Entry>),
    /// This block cannot be read or does not match, and is not known as poison yet. Nothing was read.
    Damaged(LaneBlock),
    /// The drive failed.
    Failed,
}

/// The answer to a Read.
#[derive(Clone, Copy, Debug)]
pub struct ReadDone<'a> {
    /// Of the Read.
    pub request: u64,
    /// What became of it.
    pub result: ReadResult<'a>,
}

/// Appends the body of a read that is done; returns how many bytes of data go behind it.
///
/// # Panics
/// If there are no blocks, or more than a read may have.
pub fn encode_done(out: &mut Vec<u8>, request: u64, entries: &[Entry]) -> usize {
    let bound = 1..=WRITE_BLOCKS_MAX;
    assert!(bound.contains(&entries.len()), "blocks within their bound");
    head(out, request, 0, entries.len() as u32, 0);
    put_all(out, entries);
    let data = entries.iter().filter(|e| e.kind == Kind::Data);
    data.count() * BLOCK_BYTES
}

/// Appends the body of one that found a damaged block.
pub fn encode_damaged(out: &mut Vec<u8>, request: u64, block: LaneBlock) {
    head(out, request, 1, 0, block.0);
}

/// Appends the body of one whose drive failed.
pub fn encode_failed(out: &mut Vec<u8>, request: u64) {
    head(out, request, 2, 0, 0);
}

fn head(out: &mut Vec<u8>, request: u64, result: u8, blocks: u32, damaged: u64) {
    out.extend_from_slice(&request.to_le_bytes());
    out.extend_from_slice(&[result, 0, 0, 0]);
    out.extend_from_slice(&blocks.to_le_bytes());
    out.extend_from_slice(&damaged.to_le_bytes());
}

impl<'a> ReadDone<'a> {
    /// Reads the body of a frame with `data` bytes behind it.
    ///
    /// # Errors
    /// What no ReadDone of this version is.
    pub fn decode(body: &'a [u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("read done", body);
        let request = c.u64()?;
        let result = c.u8()?;
        c.zero(3)?;
        let n = c.u32()?;
        let block = c.u64()?;
        let least = if result == 0 { 1 } else { 0 };
        let most = if result == 0 { WRITE_BLOCKS_MAX } else { 0 };
        if !(least..=most as u32).contains(&n) {
            return Err(WireError::value("blocks of a read", n));
        }
        if block >= BLOCKS_MAX || block != 0 && result != 1 {
            return Err(WireError::value("damaged block of a read", block));
        }
        let mut blocks = 0;
        let result = match result {
            0 => {
                let entries = List::<Entry>::take(&mut c, n as usize)?;
                let with_data = entries.iter().filter(|e| e.kind == Kind::Data);
                blocks = with_data.count();
                ReadResult::Done(entries)
            }
            1 => ReadResult::Damaged(LaneBlock(block)),
            2 => ReadResult::Failed,
            other => return Err(WireError::value("result of a read", other)),
        };
        c.end()?;
        if blocks * BLOCK_BYTES != data {
            return Err(WireError::value("length of a read's data", data as u64));
        }
        Ok(Self { request, result })
    }
}
