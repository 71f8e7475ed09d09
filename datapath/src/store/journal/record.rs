//! What a record says, and its bytes.
//!
//! All records begin with kind, flags, their own length and a catalogue handle, so that who only moves them needs no more.

use std::ops::Range;

use super::super::bytes::{put32, put64};
use super::super::group::Run;
use super::super::types::{
    BLOCKS_MAX, CatalogueHandle, CheckpointNumber, Crc, Generation, LaneBlock, LaneSequence,
    SnapshotId, Stamp,
};
use super::decode::{RecordError, RecordRef};
use crate::cipher::{KEY_INDEX_MAX, Seal, TAG_BYTES, Tag};

/// Most blocks of a write: 1 MiB.
pub const WRITE_BLOCKS_MAX: usize = 256;
/// Most runs that a write's blocks lie in.
pub const WRITE_RUNS_MAX: usize = 255;
/// Bytes of a catalogue record that a put carries.
pub const PUT_RECORD_BYTES: usize = 96;

pub(super) const KIND_WRITE: u8 = 1;
pub(super) const KIND_TOMBSTONE: u8 = 2;
pub(super) const KIND_SNAPSHOT: u8 = 3;
pub(super) const KIND_PUT: u8 = 4;
pub(super) const KIND_SETTLED: u8 = 6;

/// Tags follow.
pub(super) const FLAG_SEALED: u8 = 1;
/// A copy of a record that was durable.
pub(super) const FLAG_AGAIN: u8 = 2;
/// The stamp came with the record: it is a record of a replica.
pub(super) const FLAG_GIVEN: u8 = 4;
/// It came when the lane had higher ones: only blocks that have none of these are replaced.
pub(super) const FLAG_BY_STAMP: u8 = 8;
/// The blocks are damaged: no runs follow.
pub(super) const FLAG_POISON: u8 = 16;

pub(super) const FLAGS: usize = 1;
pub(super) const BYTES: usize = 2;
pub(super) const HANDLE: usize = 4;
pub(super) const LANE_SEQUENCE: usize = 8;
pub(super) const GENERATION: usize = 16;
pub(super) const EPOCH: usize = 20;
pub(super) const SEQ: usize = 24;
pub(super) const FIRST: usize = 32;
pub(super) const RUNS: usize = 37;
pub(super) const BLOCKS: usize = 38;
/// Of a write, up to its runs.
pub(super) const WRITE_BYTES: usize = 40;
pub(super) const RUN_BYTES: usize = 8;
pub(super) const CRC_BYTES: usize = 4;
/// The index of the data key, of sealed blocks.
pub(super) const KEY_BYTES: usize = 4;

pub(super) const TOMBSTONE_BLOCKS: usize = 40;
pub(super) const TOMBSTONE_BYTES: usize = 48;

pub(super) const SNAPSHOT_HANDLE: usize = 20;
pub(super) const SNAPSHOT_ID: usize = 24;
pub(super) const LIVE_GENERATION: usize = 40;
pub(super) const SNAPSHOT_BYTES: usize = 48;

pub(super) const SETTLED_BYTES: usize = 40;

pub(super) const PUT_CHECKPOINT: usize = 8;
pub(super) const NEXT_HANDLE: usize = 24;
pub(super) const NEXT_GENERATION: usize = 28;
pub(super) const PUT_RECORD: usize = 48;
pub(super) const PUT_BYTES: usize = 144;

/// The longest record: a write in most runs, of most blocks, with tags.
pub const RECORD_BYTES_MAX: usize = WRITE_BYTES
    + RUN_BYTES * WRITE_RUNS_MAX
    + KEY_BYTES
    + (CRC_BYTES + TAG_BYTES) * WRITE_BLOCKS_MAX;

const _: () = assert!(RECORD_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PUT_RECORD + PUT_RECORD_BYTES == PUT_BYTES);
const _: () = assert!(LIVE_GENERATION + 8 == SNAPSHOT_BYTES);
const _: () = assert!(TOMBSTONE_BLOCKS + 8 == TOMBSTONE_BYTES);
// S4: at least 60 writes of one block in a journal block.
const _: () = assert!(super::block::RECORDS_BYTES / (WRITE_BYTES + RUN_BYTES + CRC_BYTES) >= 60);

/// Whose stamp a record has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Given {
    /// The store's own; or a copy's, whose blocks are decided.
    #[default]
    No,
    /// Its sender's, and the lane had none as high: it replaces all of its blocks.
    Newest,
    /// Its sender's, and the lane had higher ones: it replaces the blocks that no record with a higher stamp was over.
    ByStamp,
}

impl Given {
    fn flags(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Newest => FLAG_GIVEN,
            Self::ByStamp => FLAG_GIVEN | FLAG_BY_STAMP,
        }
    }
}

/// Every record of a lane up to this stamp is stable on all members of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The live lane.
    pub handle: CatalogueHandle,
    /// The highest of them.
    pub stamp: Stamp,
    /// A copy of a record that was durable.
    pub again: bool,
}

/// A write of a lane, as the hot path has it. Blocks of the lane, of the runs and checksums stand in the same order.
#[derive(Clone, Copy, Debug)]
pub struct WriteFields<'a> {
    /// The live lane.
    pub handle: CatalogueHandle,
    /// Its place in the lane's stream.
    pub lane_sequence: LaneSequence,
    /// What its entries get.
    pub generation: Generation,
    /// Of the first block; block i has seq + i.
    pub stamp: Stamp,
    /// The first block of the lane.
    pub first: LaneBlock,
    /// Where the blocks lie: 1 to 255 runs.
    pub runs: &'a [Run],
    /// Of each block: 1 to 256.
    pub crcs: &'a [Crc],
    /// Of each block, if they are sealed.
    pub tags: Option<&'a Tags>,
}

/// What sealed blocks of a record have: one key, and a tag for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Index of the data key.
    pub key: u32,
    /// Of each block.
    pub each: Vec<Tag>,
}

impl Tags {
    /// Of the block with a number in the record.
    ///
    /// # Panics
    /// If it has not so many.
    pub fn seal(&self, n: usize) -> Seal {
        Seal {
            key: self.key,
            tag: self.each[n],
        }
    }

    /// The same, if there are tags.
    pub fn seal_of(tags: Option<&Self>, n: usize) -> Seal {
        tags.map_or(Seal::NONE, |tags| tags.seal(n))
    }

    /// Those of some blocks.
    ///
    /// # Panics
    /// If they are not within the record.
    pub fn part(&self, blocks: Range<usize>) -> Self {
        Self {
            key: self.key,
            each: self.each[blocks].to_vec(),
        }
    }
}

/// Blocks of a lane that become absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The live lane.
    pub handle: CatalogueHandle,
    /// Its place in the lane's stream.
    pub lane_sequence: LaneSequence,
    /// Of the lane, at that moment.
    pub generation: Generation,
    /// The same for all blocks.
    pub stamp: Stamp,
    /// The first block.
    pub first: LaneBlock,
    /// How many, at least 1.
    pub blocks: u64,
    /// Whose stamp it has.
    pub given: Given,
    /// A copy of a record that was durable.
    pub again: bool,
}

/// A snapshot of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The live lane.
    pub handle: CatalogueHandle,
    /// Its place in the lane's stream.
    pub lane_sequence: LaneSequence,
    /// The lane's generation up to here; the snapshot's from now on.
    pub closes: Generation,
    /// The snapshot's record.
    pub snapshot: CatalogueHandle,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The live lane's generation from now on.
    pub live_generation: Generation,
}

/// A catalogue record that is new, or has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Of the record.
    pub handle: CatalogueHandle,
    /// The last checkpoint that froze before: replay applies the put only if the superblock's is not a later one.
    pub checkpoint: CheckpointNumber,
    /// Next handle that was never used.
    pub next_handle: CatalogueHandle,
    /// Next generation that was never used.
    pub next_generation: Generation,
    /// The record's first 96 bytes.
    pub record: [u8; PUT_RECORD_BYTES],
}

/// A write that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The live lane.
    pub handle: CatalogueHandle,
    /// Its place in the lane's stream.
    pub lane_sequence: LaneSequence,
    /// What its entries get.
    pub generation: Generation,
    /// Of the first block; block i has seq + i.
    pub stamp: Stamp,
    /// The first block of the lane.
    pub first: LaneBlock,
    /// Where the blocks lie; none if they are damaged.
    pub runs: Vec<Run>,
    /// Of each block.
    pub crcs: Vec<Crc>,
    /// Of each block, if the lane is sealed.
    pub tags: Option<Tags>,
    /// Whose stamp it has.
    pub given: Given,
    /// A copy of a record that was durable.
    pub again: bool,
}

/// A record that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Record {
    Write(Write),
    Tombstone(Tombstone),
    Snapshot(Snapshot),
    Put(Put),
    Settled(Settled),
}

/// The beginning that all records share.
fn header<const N: usize>(kind: u8, flags: u8, bytes: usize, handle: CatalogueHandle) -> [u8; N] {
    let mut head = [0; N];
    head[0] = kind;
    head[FLAGS] = flags;
    head[BYTES..BYTES + 2].copy_from_slice(&(bytes as u16).to_le_bytes());
    put32(&mut head, HANDLE, handle.0);
    head
}

fn put40(bytes: &mut [u8], at: usize, value: u64) {
    assert!(value < BLOCKS_MAX, "a block number has 5 bytes");
    bytes[at..at + 5].copy_from_slice(&value.to_le_bytes()[..5]);
}

fn put_stamp(bytes: &mut [u8], stamp: Stamp) {
    put32(bytes, EPOCH, stamp.epoch);
    put64(bytes, SEQ, stamp.seq);
}

impl WriteFields<'_> {
    /// Appends the record.
    ///
    /// # Panics
    /// If there are too many blocks or runs, or they are not the same blocks; if there are tags, and not one for each block.
    pub fn encode(&self, into: &mut Vec<u8>) {
        self.encode_with(0, into);
    }

    /// Appends the record of a replica's lane; without runs, its blocks are damaged.
    ///
    /// # Panics
    /// As [`WriteFields::encode`].
    pub fn encode_given(&self, given: Given, into: &mut Vec<u8>) {
        let poison = if self.runs.is_empty() { FLAG_POISON } else { 0 };
        self.encode_with(given.flags() | poison, into);
    }

    fn encode_with(&self, mut flags: u8, into: &mut Vec<u8>) {
        let blocks = self.crcs.len();
        assert!(
            (1..=WRITE_BLOCKS_MAX).contains(&blocks),
            "blocks of a write"
        );
        let poison = flags & FLAG_POISON != 0;
        assert!(self.runs.len() <= WRITE_RUNS_MAX, "runs of a write");
        assert!(self.runs.is_empty() == poison, "runs of a write");
        let placed: u64 = self.runs.iter().map(|r| u64::from(r.blocks)).sum();
        assert!(poison || placed == blocks as u64, "every block has a place");
        let end = self.first.0 + blocks as u64;
        assert!(end <= BLOCKS_MAX, "blocks of a lane");
        let mut bytes = WRITE_BYTES + RUN_BYTES * self.runs.len() + CRC_BYTES * blocks;
        if let Some(tags) = self.tags {
            assert!(tags.each.len() == blocks, "every block has a tag");
            assert!((1..=KEY_INDEX_MAX).contains(&tags.key), "a data key");
            bytes += KEY_BYTES + TAG_BYTES * blocks;
            flags |= FLAG_SEALED;
        }
        into.reserve(bytes);
        let mut head: [u8; WRITE_BYTES] = header(KIND_WRITE, flags, bytes, self.handle);
        put64(&mut head, LANE_SEQUENCE, self.lane_sequence.0);
        put32(&mut head, GENERATION, self.generation.0);
        put_stamp(&mut head, self.stamp);
        put40(&mut head, FIRST, self.first.0);
        head[RUNS] = self.runs.len() as u8;
        head[BLOCKS..BLOCKS + 2].copy_from_slice(&(blocks as u16).to_le_bytes());
        into.extend_from_slice(&head);
        for run in self.runs {
            assert!(run.first.0 > 0 && run.blocks > 0, "a run of blocks");
            let mut entry = [0; RUN_BYTES];
            put40(&mut entry, 0, run.first.0);
            entry[5..7].copy_from_slice(&(run.blocks as u16).to_le_bytes());
            into.extend_from_slice(&entry);
        }
        for crc in self.crcs {
            into.extend_from_slice(&crc.0.to_le_bytes());
        }
        if let Some(tags) = self.tags {
            into.extend_from_slice(&tags.key.to_le_bytes());
            into.extend_from_slice(tags.each.as_flattened());
        }
    }
}

impl Tombstone {
    /// Appends the record.
    ///
    /// # Panics
    /// If it has no blocks, or no lane has them.
    pub fn encode(&self, into: &mut Vec<u8>) {
        assert!(self.blocks > 0, "blocks of a tombstone");
        assert!(self.first.0 + self.blocks <= BLOCKS_MAX, "blocks of a lane");
        let flags = self.given.flags() | if self.again { FLAG_AGAIN } else { 0 };
        let mut record: [u8; TOMBSTONE_BYTES] =
            header(KIND_TOMBSTONE, flags, TOMBSTONE_BYTES, self.handle);
        put64(&mut record, LANE_SEQUENCE, self.lane_sequence.0);
        put32(&mut record, GENERATION, self.generation.0);
        put_stamp(&mut record, self.stamp);
        put40(&mut record, FIRST, self.first.0);
        put64(&mut record, TOMBSTONE_BLOCKS, self.blocks);
        into.extend_from_slice(&record);
    }
}

impl Snapshot {
    /// Appends the record.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let mut record: [u8; SNAPSHOT_BYTES] =
            header(KIND_SNAPSHOT, 0, SNAPSHOT_BYTES, self.handle);
        put64(&mut record, LANE_SEQUENCE, self.lane_sequence.0);
        put32(&mut record, GENERATION, self.closes.0);
        put32(&mut record, SNAPSHOT_HANDLE, self.snapshot.0);
        record[SNAPSHOT_ID..SNAPSHOT_ID + 16].copy_from_slice(&self.id.0);
        put32(&mut record, LIVE_GENERATION, self.live_generation.0);
        into.extend_from_slice(&record);
    }
}

impl Settled {
    /// Appends the record.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let flags = if self.again { FLAG_AGAIN } else { 0 };
        let mut record: [u8; SETTLED_BYTES] =
            header(KIND_SETTLED, flags, SETTLED_BYTES, self.handle);
        put_stamp(&mut record, self.stamp);
        into.extend_from_slice(&record);
    }
}

impl Put {
    /// Appends the record.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let mut record: [u8; PUT_BYTES] = header(KIND_PUT, 0, PUT_BYTES, self.handle);
        put64(&mut record, PUT_CHECKPOINT, self.checkpoint.0);
        put32(&mut record, NEXT_HANDLE, self.next_handle.0);
        put32(&mut record, NEXT_GENERATION, self.next_generation.0);
        record[PUT_RECORD..].copy_from_slice(&self.record);
        into.extend_from_slice(&record);
    }
}

impl Write {
    /// What it says, borrowed.
    pub fn fields(&self) -> WriteFields<'_> {
        WriteFields {
            handle: self.handle,
            lane_sequence: self.lane_sequence,
            generation: self.generation,
            stamp: self.stamp,
            first: self.first,
            runs: &self.runs,
            crcs: &self.crcs,
            tags: self.tags.as_ref(),
        }
    }
}

impl Record {
    /// Appends the record.
    ///
    /// # Panics
    /// If it says what no record can say.
    pub fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Write(w) => {
                let again = if w.again { FLAG_AGAIN } else { 0 };
                let poison = if w.runs.is_empty() { FLAG_POISON } else { 0 };
                let flags = w.given.flags() | again | poison;
                w.fields().encode_with(flags, into);
            }
            Self::Tombstone(t) => t.encode(into),
            Self::Snapshot(s) => s.encode(into),
            Self::Put(p) => p.encode(into),
            Self::Settled(s) => s.encode(into),
        }
    }

    /// Of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        RecordRef::decode(bytes).map(|r| r.to_record())
    }
}
