//! Reading records. What is read comes from a drive: every deviation is an error, none a panic.

use thiserror::Error;

use super::super::bytes::{get32, get64, is_zero};
use super::super::group::Run;
use super::super::types::{
    BLOCKS_MAX, CatalogueHandle, CheckpointNumber, Crc, Generation, LaneBlock, LaneSequence,
    PhysicalBlock, SnapshotId, Stamp,
};
use super::record::{
    BLOCKS, BYTES, CRC_BYTES, EPOCH, FIRST, FLAG_AGAIN, FLAG_BY_STAMP, FLAG_GIVEN, FLAG_POISON,
    FLAG_SEALED, FLAGS, GENERATION, Given, HANDLE, KEY_BYTES, KIND_PUT, KIND_SETTLED,
    KIND_SNAPSHOT, KIND_TOMBSTONE, KIND_WRITE, LANE_SEQUENCE, LIVE_GENERATION, NEXT_GENERATION,
    NEXT_HANDLE, PUT_BYTES, PUT_CHECKPOINT, PUT_RECORD, Put, RECORD_BYTES_MAX, RUN_BYTES, RUNS,
    Record, SEQ, SETTLED_BYTES, SNAPSHOT_BYTES, SNAPSHOT_HANDLE, SNAPSHOT_ID, Settled, Snapshot,
    TOMBSTONE_BLOCKS, TOMBSTONE_BYTES, Tags, Tombstone, WRITE_BLOCKS_MAX, WRITE_BYTES, Write,
};
use crate::cipher::{KEY_INDEX_MAX, TAG_BYTES};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum RecordError {
    #[error("kind {kind} of a record is unknown")]
    Kind { kind: u8 },
    #[error("flags {flags:#04x} of a record of kind {kind} are unknown")]
    Flags { kind: u8, flags: u8 },
    #[error("a record says it has {said} bytes, and what it holds needs {needed}")]
    Bytes { said: usize, needed: usize },
    #[error("a write has {blocks} blocks, and its runs have {placed}")]
    Runs { blocks: usize, placed: usize },
    #[error("{field} of a record is out of range")]
    Range { field: &'static str },
    #[error("reserved bytes at {at} of a record are not zero: a later version wrote it")]
    Reserved { at: usize },
}

/// A write, as it lies in a record's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteRef<'a> {
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
    /// Whose stamp it has.
    pub given: Given,
    /// A copy of a record that was durable.
    pub again: bool,
    runs: &'a [u8],
    crcs: &'a [u8],
    /// Of each block, behind the index of their key.
    tags: Option<&'a [u8]>,
}

/// A record in bytes. It holds what [`Record`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordRef<'a> {
    Write(WriteRef<'a>),
    Tombstone(Tombstone),
    Snapshot(Snapshot),
    Put(Put),
    Settled(Settled),
}

fn get16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn get40(bytes: &[u8], at: usize) -> u64 {
    let mut whole = [0; 8];
    whole[..5].copy_from_slice(&bytes[at..at + 5]);
    u64::from_le_bytes(whole)
}

fn get_run(bytes: &[u8]) -> Run {
    Run {
        first: PhysicalBlock(get40(bytes, 0)),
        blocks: get16(bytes, 5) as u32,
    }
}

fn get_crc(bytes: &[u8]) -> Crc {
    Crc(get32(bytes, 0))
}

fn reserved(bytes: &[u8], from: usize, to: usize) -> Result<(), RecordError> {
    if is_zero(&bytes[from..to]) {
        Ok(())
    } else {
        Err(RecordError::Reserved { at: from })
    }
}

fn range(fits: bool, field: &'static str) -> Result<(), RecordError> {
    if fits {
        Ok(())
    } else {
        Err(RecordError::Range { field })
    }
}

/// A record's length as its first four bytes say; an error if none can be that long, or that short.
pub(super) fn record_bytes(head: &[u8]) -> Result<usize, RecordError> {
    let said = get16(head, BYTES);
    if said < WRITE_BYTES {
        return Err(RecordError::Bytes {
            said,
            needed: WRITE_BYTES,
        });
    }
    if said > RECORD_BYTES_MAX {
        return Err(RecordError::Bytes {
            said,
            needed: RECORD_BYTES_MAX,
        });
    }
    Ok(said)
}

impl<'a> RecordRef<'a> {
    /// The record whose bytes these are, no more and no fewer.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let short = RecordError::Bytes {
            said: bytes.len(),
            needed: WRITE_BYTES,
        };
        if bytes.len() < WRITE_BYTES {
            return Err(short);
        }
        let said = record_bytes(bytes)?;
        if said != bytes.len() {
            return Err(RecordError::Bytes {
                said,
                needed: bytes.len(),
            });
        }
        range(get32(bytes, HANDLE) != 0, "handle")?;
        match bytes[0] {
            KIND_WRITE => decode_write(bytes).map(Self::Write),
            KIND_TOMBSTONE => decode_tombstone(bytes).map(Self::Tombstone),
            KIND_SNAPSHOT => decode_snapshot(bytes).map(Self::Snapshot),
            KIND_PUT => decode_put(bytes).map(Self::Put),
            KIND_SETTLED => decode_settled(bytes).map(Self::Settled),
            kind => Err(RecordError::Kind { kind }),
        }
    }

    /// The catalogue handle: of the lane, or, of a put, its own.
    pub fn handle(&self) -> CatalogueHandle {
        match self {
            Self::Write(w) => w.handle,
            Self::Tombstone(t) => t.handle,
            Self::Snapshot(s) => s.handle,
            Self::Put(p) => p.handle,
            Self::Settled(s) => s.handle,
        }
    }

    /// Its place in its lane's stream. A put is in none, and what is settled neither.
    pub fn lane_sequence(&self) -> Option<LaneSequence> {
        match self {
            Self::Write(w) => Some(w.lane_sequence),
            Self::Tombstone(t) => Some(t.lane_sequence),
            Self::Snapshot(s) => Some(s.lane_sequence),
            Self::Put(_) | Self::Settled(_) => None,
        }
    }

    /// Whether it is a copy of a record that was durable.
    pub fn again(&self) -> bool {
        match self {
            Self::Write(w) => w.again,
            Self::Tombstone(t) => t.again,
            Self::Settled(s) => s.again,
            Self::Snapshot(_) | Self::Put(_) => false,
        }
    }

    /// The same, owned.
    pub fn to_record(&self) -> Record {
        match self {
            Self::Write(w) => Record::Write(w.to_write()),
            Self::Tombstone(t) => Record::Tombstone(*t),
            Self::Snapshot(s) => Record::Snapshot(*s),
            Self::Put(p) => Record::Put(*p),
            Self::Settled(s) => Record::Settled(*s),
        }
    }
}

impl<'a> WriteRef<'a> {
    /// Whether its blocks are damaged, and lie nowhere.
    pub fn is_poison(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many blocks.
    pub fn blocks(&self) -> usize {
        self.crcs.len() / CRC_BYTES
    }

    /// Where they lie.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = Run> + Clone + use<'a> {
        self.runs.chunks_exact(RUN_BYTES).map(get_run)
    }

    /// Of each block.
    pub fn crcs(&self) -> impl ExactSizeIterator<Item = Crc> + Clone + use<'a> {
        self.crcs.chunks_exact(CRC_BYTES).map(get_crc)
    }

    /// Of each block, if they are sealed.
    pub fn tags(&self) -> Option<Tags> {
        let (key, tags) = self.tags?.split_first_chunk::<KEY_BYTES>()?;
        Some(Tags {
            key: u32::from_le_bytes(*key),
            each: tags.as_chunks::<TAG_BYTES>().0.to_vec(),
        })
    }

    /// Where each block lies.
    pub fn places(&self) -> impl Iterator<Item = PhysicalBlock> + Clone + use<'a> {
        self.runs().flat_map(|r| {
            let first = r.first.0;
            (first..first + u64::from(r.blocks)).map(PhysicalBlock)
        })
    }

    /// Each block: of the lane, its place, its stamp, its checksum. None if they are damaged.
    pub fn entries(
        &self,
    ) -> impl Iterator<Item = (LaneBlock, PhysicalBlock, Stamp, Crc)> + use<'a> {
        let (first, stamp) = (self.first.0, self.stamp);
        let blocks = self.places().zip(self.crcs());
        blocks.zip(0u64..).map(move |((place, crc), i)| {
            let stamp = Stamp {
                epoch: stamp.epoch,
                seq: stamp.seq + i,
            };
            (LaneBlock(first + i), place, stamp, crc)
        })
    }

    /// The same, owned.
    pub fn to_write(&self) -> Write {
        Write {
            handle: self.handle,
            lane_sequence: self.lane_sequence,
            generation: self.generation,
            stamp: self.stamp,
            first: self.first,
            runs: self.runs().collect(),
            crcs: self.crcs().collect(),
            tags: self.tags(),
            given: self.given,
            again: self.again,
        }
    }
}

fn known_flags(bytes: &[u8], known: u8) -> Result<u8, RecordError> {
    let (kind, flags) = (bytes[0], bytes[FLAGS]);
    if flags & !known == 0 {
        Ok(flags)
    } else {
        Err(RecordError::Flags { kind, flags })
    }
}

fn known_length(bytes: &[u8], needed: usize) -> Result<(), RecordError> {
    let said = bytes.len();
    if said == needed {
        Ok(())
    } else {
        Err(RecordError::Bytes { said, needed })
    }
}

fn get_stamp(bytes: &[u8]) -> Stamp {
    Stamp {
        epoch: get32(bytes, EPOCH),
        seq: get64(bytes, SEQ),
    }
}

/// Whose stamp a record with these flags has.
fn given(bytes: &[u8], flags: u8) -> Result<Given, RecordError> {
    match (flags & FLAG_GIVEN != 0, flags & FLAG_BY_STAMP != 0) {
        (false, false) => Ok(Given::No),
        (true, false) => Ok(Given::Newest),
        (true, true) => Ok(Given::ByStamp),
        (false, true) => Err(RecordError::Flags {
            kind: bytes[0],
            flags,
        }),
    }
}

fn decode_settled(bytes: &[u8]) -> Result<Settled, RecordError> {
    let flags = known_flags(bytes, FLAG_AGAIN)?;
    known_length(bytes, SETTLED_BYTES)?;
    reserved(bytes, LANE_SEQUENCE, EPOCH)?;
    reserved(bytes, FIRST, SETTLED_BYTES)?;
    Ok(Settled {
        handle: CatalogueHandle(get32(bytes, HANDLE)),
        stamp: get_stamp(bytes),
        again: flags & FLAG_AGAIN != 0,
    })
}

fn decode_write(bytes: &[u8]) -> Result<WriteRef<'_>, RecordError> {
    let known = FLAG_SEALED | FLAG_AGAIN | FLAG_GIVEN | FLAG_BY_STAMP | FLAG_POISON;
    let flags = known_flags(bytes, known)?;
    let poison = flags & FLAG_POISON != 0;
    let runs = usize::from(bytes[RUNS]);
    let blocks = get16(bytes, BLOCKS);
    range((runs == 0) == poison, "runs")?;
    range((1..=WRITE_BLOCKS_MAX).contains(&blocks), "blocks")?;
    let sealed = flags & FLAG_SEALED != 0;
    let crcs_at = WRITE_BYTES + RUN_BYTES * runs;
    let tags_at = crcs_at + CRC_BYTES * blocks;
    let needed = match sealed {
        true => tags_at + KEY_BYTES + TAG_BYTES * blocks,
        false => tags_at,
    };
    known_length(bytes, needed)?;
    let write = WriteRef {
        handle: CatalogueHandle(get32(bytes, HANDLE)),
        lane_sequence: LaneSequence(get64(bytes, LANE_SEQUENCE)),
        generation: Generation(get32(bytes, GENERATION)),
        stamp: get_stamp(bytes),
        first: LaneBlock(get40(bytes, FIRST)),
        given: given(bytes, flags)?,
        again: flags & FLAG_AGAIN != 0,
        runs: &bytes[WRITE_BYTES..crcs_at],
        crcs: &bytes[crcs_at..tags_at],
        tags: sealed.then(|| &bytes[tags_at..]),
    };
    if sealed {
        range((1..=KEY_INDEX_MAX).contains(&get32(bytes, tags_at)), "key")?;
    }
    range(write.first.0 + blocks as u64 <= BLOCKS_MAX, "first block")?;
    range(write.stamp.seq.checked_add(blocks as u64).is_some(), "seq")?;
    let mut placed = 0;
    for (n, run) in write.runs().enumerate() {
        let at = WRITE_BYTES + RUN_BYTES * n + 7;
        reserved(bytes, at, at + 1)?;
        range(run.blocks > 0, "blocks of a run")?;
        let end = run.first.0 + u64::from(run.blocks);
        range(run.first.0 > 0 && end <= BLOCKS_MAX, "physical block")?;
        placed += run.blocks as usize;
    }
    if placed != blocks && !poison {
        return Err(RecordError::Runs { blocks, placed });
    }
    Ok(write)
}

fn decode_tombstone(bytes: &[u8]) -> Result<Tombstone, RecordError> {
    let flags = known_flags(bytes, FLAG_AGAIN | FLAG_GIVEN | FLAG_BY_STAMP)?;
    known_length(bytes, TOMBSTONE_BYTES)?;
    reserved(bytes, RUNS, TOMBSTONE_BLOCKS)?;
    let tombstone = Tombstone {
        handle: CatalogueHandle(get32(bytes, HANDLE)),
        lane_sequence: LaneSequence(get64(bytes, LANE_SEQUENCE)),
        generation: Generation(get32(bytes, GENERATION)),
        stamp: get_stamp(bytes),
        first: LaneBlock(get40(bytes, FIRST)),
        blocks: get64(bytes, TOMBSTONE_BLOCKS),
        given: given(bytes, flags)?,
        again: flags & FLAG_AGAIN != 0,
    };
    range(tombstone.blocks > 0, "blocks")?;
    let end = tombstone.first.0.checked_add(tombstone.blocks);
    range(end.is_some_and(|end| end <= BLOCKS_MAX), "blocks")?;
    Ok(tombstone)
}

fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, RecordError> {
    known_flags(bytes, 0)?;
    known_length(bytes, SNAPSHOT_BYTES)?;
    reserved(bytes, LIVE_GENERATION + 4, SNAPSHOT_BYTES)?;
    let snapshot = Snapshot {
        handle: CatalogueHandle(get32(bytes, HANDLE)),
        lane_sequence: LaneSequence(get64(bytes, LANE_SEQUENCE)),
        closes: Generation(get32(bytes, GENERATION)),
        snapshot: CatalogueHandle(get32(bytes, SNAPSHOT_HANDLE)),
        id: SnapshotId(std::array::from_fn(|i| bytes[SNAPSHOT_ID + i])),
        live_generation: Generation(get32(bytes, LIVE_GENERATION)),
    };
    range(snapshot.snapshot.0 != 0, "handle of the snapshot")?;
    Ok(snapshot)
}

fn decode_put(bytes: &[u8]) -> Result<Put, RecordError> {
    known_flags(bytes, 0)?;
    known_length(bytes, PUT_BYTES)?;
    reserved(bytes, PUT_CHECKPOINT + 8, NEXT_HANDLE)?;
    reserved(bytes, NEXT_GENERATION + 4, PUT_RECORD)?;
    Ok(Put {
        handle: CatalogueHandle(get32(bytes, HANDLE)),
        checkpoint: CheckpointNumber(get64(bytes, PUT_CHECKPOINT)),
        next_handle: CatalogueHandle(get32(bytes, NEXT_HANDLE)),
        next_generation: Generation(get32(bytes, NEXT_GENERATION)),
        record: std::array::from_fn(|i| bytes[PUT_RECORD + i]),
    })
}
