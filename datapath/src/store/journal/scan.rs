//! Finding what the journal has at opening (`docs/store-format.md` §11, step 3).
//!
//! The ring is read twice, so that it never lies in memory whole: first every block, for its header, which says where the journal begins
//! and ends; then the blocks between, for their records. The caller reads what [`Scanner::next_read`] asks for until it asks for no more.
//!
//! What is found in a place of the ring:
//!
//! | block | is |
//! | --- | --- |
//! | no magic, or a checksum that does not match | a hole: never written, or torn |
//! | of another drive or mount, or whose sequence belongs elsewhere | a hole: what was there before the journal came to it |
//! | whole and ours, with fields that this version never writes | an error: somebody wrote it who knows more |
//! | whole and ours | counts: its watermark and tail do, wherever it lies; its records do if no hole is before it |

use std::ops::Range;

use thiserror::Error;

use super::super::types::{BLOCK_BYTES, DriveId, MountGeneration};
use super::block::{BlockError, BlockHeader, RECORDS_BYTES};
use super::decode::{RecordError, record_bytes};
use super::records::Records;
use super::ring::FIRST_SEQUENCE;

/// Why a journal cannot be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ScanError {
    #[error(
        "journal block {at} is missing, and blocks up to {watermark} were flushed: the drive lost what it said was on stable media"
    )]
    FlushedBlocksMissing { at: u64, watermark: u64 },
    #[error("journal block {sequence}: {source}")]
    BadBlock { sequence: u64, source: BlockError },
    #[error("a record that ends in journal block {sequence}: {source}")]
    BadRecord { sequence: u64, source: RecordError },
    #[error("journal block {sequence} does not go on where the block before ended")]
    BadContinuation { sequence: u64 },
    #[error("journal block {sequence} was whole when it was read first, and is not now")]
    Changed { sequence: u64 },
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The first block that replay looked at.
    pub first: u64,
    /// The first hole: where the journal ended.
    pub end: u64,
    /// The highest block that counts, or the one before `first`. Behind a hole it says no more than its header does.
    pub last: u64,
    /// Blocks at or below it were on stable media, with the data of their records.
    pub watermark: u64,
    /// Whole records in journal order.
    pub records: Records,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// This place is read next.
    Headers(u32),
    /// This block is read next.
    Records(u64),
}

/// See the module's text.
#[derive(Debug)]
pub struct Scanner {
    blocks: u32,
    drive: DriveId,
    generation: MountGeneration,
    pass: Pass,
    /// What is in each place; 0 if nothing counts.
    sequences: Vec<u64>,
    watermark: u64,
    first: u64,
    end: u64,
    /// The beginning of a record that goes on in the next block.
    partial: Vec<u8>,
    /// Where the journal begins, a record may go on whose beginning is not needed.
    skipping: bool,
    records: Records,
}

impl Scanner {
    /// For a ring of so many blocks. `first` is the superblock's: replay needs nothing below it.
    ///
    /// # Panics
    /// If the ring has no blocks.
    pub fn new(blocks: u32, drive: DriveId, generation: MountGeneration, first: u64) -> Self {
        assert!(blocks > 0, "a ring");
        let first = first.max(FIRST_SEQUENCE);
        Self {
            blocks,
            drive,
            generation,
            pass: Pass::Headers(0),
            sequences: vec![0; blocks as usize],
            watermark: 0,
            first,
            end: first,
            partial: Vec::new(),
            skipping: true,
            records: Records::default(),
        }
    }

    fn place(&self, sequence: u64) -> u32 {
        (sequence % u64::from(self.blocks)) as u32
    }

    /// The places of the ring that are to be read now, no more than `most`; `None` when there is nothing left to read. What was asked for may
    /// be fed in parts.
    ///
    /// # Panics
    /// If nothing may be read.
    pub fn next_read(&self, most: u32) -> Option<Range<u32>> {
        assert!(most > 0, "something is read");
        let (from, left) = match self.pass {
            Pass::Headers(next) => (next, self.blocks - next),
            Pass::Records(next) => {
                let from = self.place(next);
                let left = (self.end - next).min(u64::from(self.blocks - from));
                (from, left as u32)
            }
        };
        (left > 0).then(|| from..from + left.min(most))
    }

    /// Takes the blocks of these places, which follow those that were fed before. What could not be read is fed as zeroes.
    ///
    /// # Panics
    /// If other places were asked for.
    pub fn feed(&mut self, places: Range<u32>, bytes: &[u8]) -> Result<(), ScanError> {
        let asked = self.next_read(u32::MAX);
        let fits = asked.is_some_and(|a| a.start == places.start && places.end <= a.end);
        assert!(fits, "these places were asked for");
        assert!(bytes.len() == places.len() * BLOCK_BYTES, "bytes of all");
        for (place, block) in places.zip(bytes.chunks_exact(BLOCK_BYTES)) {
            match self.pass {
                Pass::Headers(_) => {
                    self.feed_header(place, block)?;
                    self.pass = Pass::Headers(place + 1);
                    if place + 1 == self.blocks {
                        self.find_range()?;
                        self.pass = Pass::Records(self.first);
                    }
                }
                Pass::Records(next) => {
                    self.feed_records(next, block)?;
                    self.pass = Pass::Records(next + 1);
                }
            }
        }
        Ok(())
    }

    /// What was found.
    ///
    /// # Panics
    /// If something is left to read.
    pub fn finish(self) -> Scan {
        assert!(self.next_read(1).is_none(), "all is read");
        let last = self.sequences.iter().max().copied().unwrap_or(0);
        Scan {
            last: last.max(self.first - 1),
            first: self.first,
            end: self.end,
            watermark: self.watermark,
            records: self.records,
        }
    }

    /// The header of a block that counts in this place.
    fn counts(&self, place: u32, block: &[u8]) -> Result<Option<BlockHeader>, BlockError> {
        let (drive, generation, sequence) = BlockHeader::identity(block);
        let ours = drive == self.drive && generation == self.generation;
        #[cfg(planted)]
        let ours = ours
            || crate::store::planted::is(crate::store::planted::Bug::OldGenerationReplays)
                && drive == self.drive;
        if !ours || sequence < FIRST_SEQUENCE || self.place(sequence) != place {
            return Ok(None);
        }
        match BlockHeader::decode(block) {
            Ok(header) => Ok(Some(header)),
            Err(BlockError::Magic | BlockError::Crc) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn feed_header(&mut self, place: u32, block: &[u8]) -> Result<(), ScanError> {
        let sequence = BlockHeader::identity(block).2;
        let found = self.counts(place, block);
        let found = found.map_err(|source| ScanError::BadBlock { sequence, source })?;
        let Some(header) = found else { return Ok(()) };
        self.sequences[place as usize] = header.sequence;
        self.watermark = self.watermark.max(header.watermark);
        // Below the highest tail replay needs nothing, so those places may have been written again.
        self.first = self.first.max(header.tail);
        Ok(())
    }

    fn find_range(&mut self) -> Result<(), ScanError> {
        let mut end = self.first;
        // A ring's length is the most that can follow.
        while end - self.first < u64::from(self.blocks)
            && self.sequences[self.place(end) as usize] == end
        {
            end += 1;
        }
        #[cfg(planted)]
        if crate::store::planted::is(crate::store::planted::Bug::ReplayBehindHole) {
            let last = self.sequences.iter().max().copied().unwrap_or(0);
            self.end = end.max((last + 1).min(self.first + u64::from(self.blocks)));
            self.records = Records::new(self.first);
            return Ok(());
        }
        if end <= self.watermark {
            return Err(ScanError::FlushedBlocksMissing {
                at: end,
                watermark: self.watermark,
            });
        }
        self.end = end;
        self.records = Records::new(self.first);
        Ok(())
    }

    fn feed_records(&mut self, sequence: u64, block: &[u8]) -> Result<(), ScanError> {
        let place = self.place(sequence);
        #[cfg(planted)]
        if self.sequences[place as usize] != sequence {
            self.partial.clear();
            self.skipping = true;
            return Ok(());
        }
        let header = match self.counts(place, block) {
            Ok(Some(header)) if header.sequence == sequence => header,
            _ => return Err(ScanError::Changed { sequence }),
        };
        let records = header.records(block);
        let (continued, rest) = records.split_at(header.continued);
        self.go_on(sequence, continued, records.len() == RECORDS_BYTES)?;
        self.whole_records(sequence, rest, records.len() == RECORDS_BYTES)
    }

    /// Adds what continues to the record that began before.
    fn go_on(&mut self, sequence: u64, continued: &[u8], full: bool) -> Result<(), ScanError> {
        let bad = Err(ScanError::BadContinuation { sequence });
        let all = full && continued.len() == RECORDS_BYTES;
        if self.skipping {
            self.skipping = all;
            return Ok(());
        }
        if self.partial.is_empty() {
            return if continued.is_empty() { Ok(()) } else { bad };
        }
        self.partial.extend_from_slice(continued);
        if self.partial.len() < 4 {
            return bad;
        }
        let bad_record = |source| ScanError::BadRecord { sequence, source };
        let needed = record_bytes(&self.partial).map_err(bad_record)?;
        if self.partial.len() < needed && all {
            return Ok(());
        }
        if self.partial.len() != needed {
            return bad;
        }
        let pushed = self.records.push(sequence, &self.partial);
        self.partial.clear();
        pushed.map_err(bad_record)
    }

    fn whole_records(
        &mut self,
        sequence: u64,
        mut rest: &[u8],
        full: bool,
    ) -> Result<(), ScanError> {
        let bad_record = |source| ScanError::BadRecord { sequence, source };
        while rest.len() >= 4 {
            let needed = record_bytes(rest).map_err(bad_record)?;
            let Some((record, behind)) = rest.split_at_checked(needed) else {
                break;
            };
            self.records.push(sequence, record).map_err(bad_record)?;
            rest = behind;
        }
        if !rest.is_empty() {
            if !full {
                return Err(ScanError::BadContinuation {
                    sequence: sequence + 1,
                });
            }
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }
}
