//! Packing records into blocks.
//!
//! Records wait as one string of bytes. A seal cuts it into blocks; the last one is padded, unless more waits than the run may hold: then it
//! is full, and a record may go on in the next run. So a block that is not full is always the last of a run.

use super::super::types::{BLOCK_BYTES, DriveId, MountGeneration};
use super::block::{BlockHeader, HEADER_BYTES, RECORDS_BYTES};
use super::record::{BYTES, FLAG_AGAIN, FLAGS, Given, Put, Record, Settled, Snapshot, WriteFields};

/// Most blocks of one journal write.
pub const RUN_BLOCKS_MAX: u64 = 16;

/// Records that wait for their journal write.
#[derive(Debug)]
pub struct Packer {
    /// Whole records, the oldest first.
    pending: Vec<u8>,
    /// Bytes of the first record that earlier blocks have.
    sent: usize,
    /// Records that were ever appended.
    appended: u64,
    /// Records that are wholly in sealed blocks.
    sealed: u64,
}

/// What the blocks of a run say beside their records.
#[derive(Clone, Copy, Debug)]
pub struct Seal {
    /// Whose journal.
    pub drive: DriveId,
    /// The present mount.
    pub generation: MountGeneration,
    /// Sequence of the first block.
    pub first: u64,
    /// Most blocks.
    pub blocks_max: u64,
    /// See [`BlockHeader`].
    pub watermark: u64,
    /// See [`BlockHeader`].
    pub tail: u64,
}

/// Blocks that are one journal write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedRun {
    /// Sequence of the first block.
    pub first: u64,
    /// How many.
    pub blocks: u64,
    /// How many of all records appended so far are, with this run, wholly in sealed blocks.
    pub records: u64,
    /// Nothing but a watermark and a tail.
    pub empty: bool,
}

impl SealedRun {
    /// Sequence of the last block.
    pub fn last(&self) -> u64 {
        self.first + self.blocks - 1
    }

    /// Bytes of the blocks.
    pub fn bytes(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self::new()
    }
}

impl Packer {
    /// With nothing waiting, and room for what one write can take.
    pub fn new() -> Self {
        Self {
            pending: Vec::with_capacity(RUN_BLOCKS_MAX as usize * RECORDS_BYTES),
            sent: 0,
            appended: 0,
            sealed: 0,
        }
    }

    /// A write.
    pub fn append_write(&mut self, write: &WriteFields<'_>) {
        write.encode(&mut self.pending);
        self.appended += 1;
    }

    /// A write, or damaged blocks, of a replica's lane.
    pub fn append_given(&mut self, write: &WriteFields<'_>, given: Given) {
        write.encode_given(given, &mut self.pending);
        self.appended += 1;
    }

    /// What is settled.
    pub fn append_settled(&mut self, settled: &Settled) {
        settled.encode(&mut self.pending);
        self.appended += 1;
    }

    /// A copy of a record that is durable.
    pub fn append_copy(&mut self, record: &Record) {
        let at = self.pending.len();
        record.encode(&mut self.pending);
        self.pending[at + FLAGS] |= FLAG_AGAIN;
        self.appended += 1;
    }

    /// A snapshot.
    pub fn append_snapshot(&mut self, snapshot: &Snapshot) {
        snapshot.encode(&mut self.pending);
        self.appended += 1;
    }

    /// A put.
    pub fn append_put(&mut self, put: &Put) {
        put.encode(&mut self.pending);
        self.appended += 1;
    }

    /// A record that is bytes already.
    pub fn append_encoded(&mut self, record: &[u8]) {
        debug_assert_eq!(super::decode::record_bytes(record), Ok(record.len()));
        self.pending.extend_from_slice(record);
        self.appended += 1;
    }

    /// A copy of a write or tombstone that is durable, its bytes in two parts.
    ///
    /// # Panics
    /// If that is no record.
    pub(super) fn append_again(&mut self, first: &[u8], second: &[u8]) {
        let at = self.pending.len();
        self.pending.extend_from_slice(first);
        self.pending.extend_from_slice(second);
        self.pending[at + FLAGS] |= FLAG_AGAIN;
        assert!(self.length(at) == first.len() + second.len(), "a record");
        self.appended += 1;
    }

    /// Records that were ever appended.
    pub fn records(&self) -> u64 {
        self.appended
    }

    /// Records that are wholly in sealed blocks.
    pub fn sealed_records(&self) -> u64 {
        self.sealed
    }

    /// Bytes that wait.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len() - self.sent
    }

    /// Blocks that they will fill; the record that was appended last ends in the last of them.
    pub fn pending_blocks(&self) -> u64 {
        self.pending_bytes().div_ceil(RECORDS_BYTES) as u64
    }

    /// Bytes that the last of these blocks has left.
    pub fn room_in_open_block(&self) -> usize {
        self.pending_blocks() as usize * RECORDS_BYTES - self.pending_bytes()
    }

    /// Puts what waits into blocks, and calls `each` with every record that is whole with them, and the block that it ends in. With nothing
    /// waiting, the run is one block without records.
    ///
    /// # Panics
    /// If no block is allowed, or `into` is too small.
    pub fn seal(
        &mut self,
        seal: &Seal,
        into: &mut [u8],
        mut each: impl FnMut(u64, &[u8]),
    ) -> SealedRun {
        assert!(seal.blocks_max > 0, "a run has blocks");
        let blocks = self.pending_blocks().clamp(1, seal.blocks_max);
        let mut at = self.sent;
        // Beginning of the first record that is not whole with the blocks so far.
        let mut record = 0;
        let run = &mut into[..blocks as usize * BLOCK_BYTES];
        for (sequence, block) in (seal.first..).zip(run.chunks_exact_mut(BLOCK_BYTES)) {
            let end = self.pending.len().min(at + RECORDS_BYTES);
            let bytes = end - at;
            block[HEADER_BYTES..HEADER_BYTES + bytes].copy_from_slice(&self.pending[at..end]);
            let mut continued = 0;
            if record < at {
                continued = (record + self.length(record)).min(end) - at;
            }
            while record < end && record + self.length(record) <= end {
                let next = record + self.length(record);
                each(sequence, &self.pending[record..next]);
                self.sealed += 1;
                record = next;
            }
            let header = BlockHeader {
                drive: seal.drive,
                generation: seal.generation,
                sequence,
                watermark: seal.watermark,
                tail: seal.tail,
                bytes,
                continued,
            };
            header.encode(block);
            at = end;
        }
        let empty = self.pending.is_empty();
        self.pending.drain(..record);
        self.sent = at - record;
        SealedRun {
            first: seal.first,
            blocks,
            records: self.sealed,
            empty,
        }
    }

    /// Of the record that begins there.
    fn length(&self, at: usize) -> usize {
        let field = [self.pending[at + BYTES], self.pending[at + BYTES + 1]];
        usize::from(u16::from_le_bytes(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::{
        CatalogueHandle, Crc, Generation, LaneBlock, LaneSequence, PhysicalBlock, Stamp,
    };

    use crate::store::group::Run;

    fn seal(first: u64, blocks_max: u64) -> Seal {
        Seal {
            drive: DriveId([1; 16]),
            generation: MountGeneration(2),
            first,
            blocks_max,
            watermark: first - 1,
            tail: 1,
        }
    }

    fn write(packer: &mut Packer, n: u64, blocks: usize) {
        packer.append_write(&WriteFields {
            handle: CatalogueHandle(1),
            lane_sequence: LaneSequence(n),
            generation: Generation(1),
            stamp: Stamp { epoch: 1, seq: n },
            first: LaneBlock(n),
            runs: &[Run {
                first: PhysicalBlock(1000 + n),
                blocks: blocks as u32,
            }],
            crcs: &vec![Crc(5); blocks],
            tags: None,
        });
    }

    #[test]
    fn seventy_seven_writes_of_a_block_fit_a_journal_block() {
        let mut packer = Packer::new();
        assert_eq!(packer.room_in_open_block(), 0);
        for n in 0..77 {
            write(&mut packer, n, 1);
        }
        assert_eq!(packer.pending_blocks(), 1);
        assert_eq!(packer.room_in_open_block(), 4032 - 77 * 52);
        write(&mut packer, 77, 1);
        assert_eq!(packer.pending_blocks(), 2);
        let mut into = vec![0; 2 * BLOCK_BYTES];
        let mut ends = Vec::new();
        let run = packer.seal(&seal(9, 64), &mut into, |s, r| ends.push((s, r.len())));
        assert_eq!((run.first, run.blocks, run.records), (9, 2, 78));
        assert_eq!(ends[76], (9, 52));
        assert_eq!(ends[77], (10, 52));
        let second = BlockHeader::decode(&into[BLOCK_BYTES..]).unwrap();
        assert_eq!((second.bytes, second.continued), (24, 24));
        assert_eq!(packer.pending_bytes(), 0);
    }

    #[test]
    fn a_record_goes_on_in_the_next_run() {
        let mut packer = Packer::new();
        // 40 + 8 + 4 * 256 bytes, and 12 of them are more than three blocks.
        for n in 0..12 {
            write(&mut packer, n, 256);
        }
        let mut into = vec![0; 64 * BLOCK_BYTES];
        let mut ends = Vec::new();
        let run = packer.seal(&seal(1, 1), &mut into, |s, _| ends.push(s));
        assert_eq!((run.blocks, run.records), (1, 3));
        let run = packer.seal(&seal(2, 2), &mut into, |s, _| ends.push(s));
        let header = BlockHeader::decode(&into[..BLOCK_BYTES]).unwrap();
        assert_eq!(header.continued, 4 * 1072 - 4032);
        assert_eq!((run.blocks, run.records), (2, 11));
        write(&mut packer, 12, 1);
        let run = packer.seal(&seal(4, 64), &mut into, |s, _| ends.push(s));
        assert_eq!((run.first, run.blocks, run.records), (4, 1, 13));
        assert_eq!(ends, [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]);
    }

    #[test]
    fn a_run_without_records_is_one_block() {
        let mut packer = Packer::new();
        let mut into = vec![0xff; BLOCK_BYTES];
        let run = packer.seal(&seal(7, 64), &mut into, |_, _| unreachable!());
        assert_eq!((run.blocks, run.records, run.empty), (1, 0, true));
        let header = BlockHeader::decode(&into).unwrap();
        assert_eq!((header.bytes, header.watermark), (0, 6));
    }
}
