//! What the ring of journal blocks is at: what is written, what is durable, what may be overwritten.
//!
//! ```text
//!      reusable ≤ tail ≤ watermark + 1 ≤ complete ≤ written ≤ next ≤ reusable + blocks
//! ```
//!
//! - *written*: blocks below it are on the drive, or in its cache, without a gap. A few writes are in flight at a time, and one that is done
//!   before an earlier one counts with that one.
//! - *complete*: of blocks below it, the data of the records is written too. A FLUSH that is issued now makes them durable: the number is
//!   taken when the flush is issued ([`Ring::durable_candidate`]), because what completes while it runs may not be part of it.
//! - *watermark*: blocks up to it are durable, with their data.
//! - *tail*: replay needs nothing below it. It goes out in block headers.
//! - *reusable*: places of blocks below it may be overwritten. A checkpoint's tail is in a flushed superblock, and is reusable at once. One that
//!   only block headers say is reusable when such a block is durable: otherwise a crash finds the old tail, and a place that was overwritten.

use std::collections::VecDeque;

use super::super::types::{DriveId, MountGeneration};
use super::again::{LIVE_BYTES_MAX, LiveRecords};
use super::pack::{Packer, RUN_BLOCKS_MAX, Seal, SealedRun};

/// Sequences begin here: a watermark of 0 says that nothing is durable.
pub const FIRST_SEQUENCE: u64 = 1;

/// Writes of the journal that may be in flight at a time.
pub const RUNS_IN_FLIGHT_MAX: usize = 4;

/// See the module's text.
#[derive(Debug)]
pub struct Ring {
    drive: DriveId,
    generation: MountGeneration,
    blocks: u64,
    volatile: bool,
    next: u64,
    /// In the order of their blocks, and whether each is written.
    in_flight: VecDeque<(SealedRun, bool)>,
    written: u64,
    complete: u64,
    watermark: u64,
    tail: u64,
    reusable: u64,
    /// Data writes that are not complete, of the records that end in block `complete` and those after it.
    data: VecDeque<u32>,
    /// Tails that are told, and the first block that tells each.
    told_tails: VecDeque<(u64, u64)>,
    /// Watermark in the block that was sealed last.
    told_watermark: u64,
    /// The last sealed block with records.
    last_with_records: u64,
    /// Records in written blocks.
    records_done: u64,
    live: LiveRecords,
}

impl Ring {
    /// An empty journal of so many blocks, that begins at `first`. On a drive without a volatile cache what is complete is durable.
    ///
    /// # Panics
    /// If the ring has no blocks.
    pub fn new(
        drive: DriveId,
        generation: MountGeneration,
        blocks: u32,
        first: u64,
        volatile: bool,
    ) -> Self {
        assert!(blocks > 0, "a ring");
        let first = first.max(FIRST_SEQUENCE);
        Self {
            drive,
            generation,
            blocks: u64::from(blocks),
            volatile,
            next: first,
            in_flight: VecDeque::new(),
            written: first,
            complete: first,
            watermark: first - 1,
            tail: first,
            reusable: first,
            data: VecDeque::new(),
            told_tails: VecDeque::new(),
            told_watermark: first - 1,
            last_with_records: first - 1,
            records_done: 0,
            live: LiveRecords::new(LIVE_BYTES_MAX),
        }
    }

    /// Keeps fewer records.
    #[cfg(test)]
    pub(super) fn keep_at_most(mut self, bytes: usize) -> Self {
        self.live = LiveRecords::new(bytes);
        self
    }

    /// Goes on behind what opening found, `[first, end)`, which is kept until a checkpoint moves the tail. `first` may be behind the
    /// superblock's: block headers told a later tail, and the places before it may have been written again.
    ///
    /// # Panics
    /// If blocks were sealed, or these are not in the ring.
    pub fn resume(&mut self, first: u64, end: u64) {
        assert!(self.next == self.tail, "nothing was sealed");
        assert!(first >= self.tail, "tails rise");
        assert!(end >= first, "an end is behind its beginning");
        self.tail = first;
        self.reusable = first;
        assert!(end - self.reusable <= self.blocks, "it was in the ring");
        self.next = end;
        self.written = end;
        self.complete = end;
        self.watermark = end - 1;
        self.told_watermark = end - 1;
        self.last_with_records = end - 1;
    }

    /// Sequence of the block that is sealed next. Records that wait, or come later, are in it or behind it: a checkpoint that freezes now may
    /// take it as the tail.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The block in which the record that was appended last will end.
    pub fn ends_in(&self, packer: &Packer) -> u64 {
        self.next + packer.pending_blocks().max(1) - 1
    }

    /// A record that ends in this block, not sealed yet, has data that is not written yet.
    ///
    /// # Panics
    /// If the block is sealed.
    pub fn data_begun(&mut self, sequence: u64) {
        assert!(sequence >= self.next, "the record waits");
        let at = (sequence - self.complete) as usize;
        if self.data.len() <= at {
            self.data.resize(at + 1, 0);
        }
        self.data[at] += 1;
    }

    /// The data of a record that ends in this block is written.
    ///
    /// # Panics
    /// If it was not begun.
    pub fn data_done(&mut self, sequence: u64) {
        let count = sequence
            .checked_sub(self.complete)
            .and_then(|at| self.data.get_mut(at as usize));
        let count = count.expect("it was begun");
        *count = count.checked_sub(1).expect("it was begun");
        self.advance();
    }

    /// Blocks that may be sealed before the tail must move.
    pub fn room(&self) -> u64 {
        self.reusable + self.blocks - self.next
    }

    /// Blocks that hold, or may hold, something that replay needs.
    pub fn used(&self) -> u64 {
        self.next - self.reusable
    }

    /// `used`, of all.
    pub fn usage(&self) -> f64 {
        self.used() as f64 / self.blocks as f64
    }

    /// Bytes of records that are kept to be logged again.
    pub fn live_bytes(&self) -> usize {
        self.live.bytes()
    }

    /// Of the ring.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// More than half is needed: live records are logged again.
    fn half_full(&self) -> bool {
        self.next - self.tail > self.blocks / 2
    }

    /// More than three quarters are needed: a checkpoint should move the tail.
    pub fn wants_checkpoint(&self) -> bool {
        self.next - self.tail > self.blocks / 4 * 3
    }

    /// A flush that is issued now brings the tail, or what may be overwritten or logged again, an eighth of the ring further.
    pub fn wants_flush(&self) -> bool {
        let candidate = self.durable_candidate();
        if self.half_full() && candidate - self.watermark >= self.blocks / 8 {
            return true;
        }
        let mut told = self.told_tails.iter().rev();
        let told = told.find(|t| t.0 <= candidate).map(|t| t.1);
        let tail = self.live.tail_after(candidate).max(told);
        tail.is_some_and(|tail| tail.saturating_sub(self.reusable) >= self.blocks / 8)
    }

    /// Seals what waits, as far as there is room and up to the ring's end, into `into`; with nothing waiting, one block that carries the
    /// watermark. `None` if there is no room. From half full on, what room the last block has left takes old records along.
    ///
    /// # Panics
    /// If [`RUNS_IN_FLIGHT_MAX`] are in flight, or `into` is shorter than a longest run.
    pub fn seal(&mut self, packer: &mut Packer, into: &mut [u8]) -> Option<SealedRun> {
        self.seal_each(packer, into, |_, _| ())
    }

    /// The same, for who wants to see the records and where they end.
    pub(super) fn seal_each(
        &mut self,
        packer: &mut Packer,
        into: &mut [u8],
        mut each: impl FnMut(u64, &[u8]),
    ) -> Option<SealedRun> {
        assert!(
            self.in_flight.len() < RUNS_IN_FLIGHT_MAX,
            "a few writes at a time"
        );
        let to_end = self.blocks - self.next % self.blocks;
        let blocks_max = self.room().min(to_end).min(RUN_BLOCKS_MAX);
        if blocks_max == 0 {
            return None;
        }
        let seal = Seal {
            drive: self.drive,
            generation: self.generation,
            first: self.next,
            blocks_max,
            watermark: self.watermark,
            tail: self.tail,
        };
        let waits = packer.pending_blocks();
        if self.half_full() && waits > 0 && waits <= blocks_max {
            let open = self.next + waits - 1;
            self.live.log_again(packer, self.watermark, open);
        }
        let live = &mut self.live;
        let run = packer.seal(&seal, into, |sequence, record| {
            live.add(sequence, record);
            each(sequence, record);
        });
        self.next += run.blocks;
        self.told_watermark = self.watermark;
        if self.tail > self.told_tails.back().map_or(self.reusable, |t| t.1) {
            self.told_tails.push_back((run.first, self.tail));
        }
        if !run.empty {
            self.last_with_records = run.last();
        }
        self.in_flight.push_back((run, false));
        Some(run)
    }

    /// Place of a block in the ring.
    pub fn place(&self, sequence: u64) -> u64 {
        sequence % self.blocks
    }

    /// A run is written. It counts when those before it are.
    ///
    /// # Panics
    /// If it is not in flight.
    pub fn written(&mut self, run: &SealedRun) {
        let there = self.in_flight.iter_mut().find(|(r, _)| r == run);
        #[cfg(planted)]
        if crate::store::planted::is(crate::store::planted::Bug::JournalOutOfOrder) {
            // What is done counts, and everything before it.
            let upto = there.map(|(r, _)| r.first);
            while let Some(&(first, _)) = self.in_flight.front()
                && upto.is_some_and(|upto| first.first <= upto)
            {
                self.count(first);
            }
            self.advance();
            return;
        }
        there.expect("it is in flight").1 = true;
        while let Some(&(first, true)) = self.in_flight.front() {
            self.count(first);
        }
        self.advance();
    }

    /// The first run in flight counts as written.
    fn count(&mut self, run: SealedRun) {
        self.in_flight.pop_front();
        self.written = run.last() + 1;
        self.records_done = run.records;
    }

    /// Runs that were sealed and do not count as written yet.
    pub fn runs_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Records that are in written blocks, of all that were appended.
    pub fn records_done(&self) -> u64 {
        self.records_done
    }

    /// The last block that is written.
    pub fn last_written(&self) -> u64 {
        self.written - 1
    }

    fn advance(&mut self) {
        while self.complete < self.written && self.data.front().is_none_or(|&n| n == 0) {
            self.data.pop_front();
            self.complete += 1;
        }
        if !self.volatile {
            self.flushed(self.durable_candidate());
        }
    }

    /// The last block that a FLUSH issued now makes durable, with the data of its records. To be taken before the flush is issued.
    pub fn durable_candidate(&self) -> u64 {
        self.complete - 1
    }

    /// A FLUSH is done, and this was the candidate when it was issued.
    pub fn flushed(&mut self, candidate: u64) {
        #[cfg(planted)]
        let candidate = if crate::store::planted::is(crate::store::planted::Bug::WatermarkTooHigh) {
            self.durable_candidate()
        } else {
            candidate
        };
        assert!(candidate < self.complete, "it was complete");
        self.watermark = self.watermark.max(candidate);
        while let Some(&(first, tail)) = self.told_tails.front()
            && first <= self.watermark
        {
            self.told_tails.pop_front();
            self.reusable = self.reusable.max(tail);
        }
        // Live records below have durable copies: headers say so from now on.
        if let Some(tail) = self.live.durable(self.watermark) {
            self.tail = self.tail.max(tail);
            self.live.drop_below(self.tail);
        }
    }

    /// Blocks at or below it are durable, with the data of their records.
    pub fn watermark(&self) -> u64 {
        self.watermark
    }

    /// Replay needs nothing below it.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Records are sealed that no flush has made durable.
    pub fn has_unflushed(&self) -> bool {
        self.last_with_records > self.watermark
    }

    /// Records became durable, and no block says so yet. One that carries nothing but the watermark needs none itself.
    pub fn needs_watermark_block(&self) -> bool {
        self.told_watermark < self.watermark.min(self.last_with_records)
    }

    /// A checkpoint's superblock is flushed: replay begins at `tail`.
    ///
    /// # Panics
    /// If that is not sealed yet.
    pub fn checkpointed(&mut self, tail: u64) {
        assert!(tail <= self.next, "a checkpoint covers what was sealed");
        self.tail = self.tail.max(tail);
        self.reusable = self.reusable.max(tail);
        self.live.drop_below(self.tail);
    }
}
