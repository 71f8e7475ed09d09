//! Writes to a drive in memory, done where they stand: no queue, no task, no ticket (`docs/store-format.md` §9, for a drive that answers at once).
//!
//! [`Inner::write_now`] stores the data, appends the record and enters the delta. The record is still to be written: [`Inner::commit_now`]
//! writes one run of the journal for all of them, and nothing may be acknowledged before. Blocks that were superseded meanwhile are given
//! back there and not earlier: what was read in the same pass, and is sent at its end, still shows them.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use super::super::group::Run;
use super::super::journal::WriteFields;
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, PhysicalBlock, Stamp};
use super::lane::LaneState;
use super::layer::Entry;
use super::{Inner, StoreError};

/// What the writes of this pass left to be done.
#[derive(Debug, Default)]
pub struct Now {
    /// Checksums of the write at hand, and its places; kept for their memory.
    crcs: RefCell<Vec<Crc>>,
    runs: RefCell<Vec<Run>>,
    /// Blocks that they superseded.
    freed: RefCell<Vec<PhysicalBlock>>,
    /// Their records are not written.
    pending: Cell<bool>,
}

impl Inner {
    /// Writes whole blocks. `None`: nothing was written, and the write must wait for something.
    pub(super) fn write_now(
        &self,
        lane: &LaneState,
        blocks: &Range<u64>,
        data: &[u8],
    ) -> Option<Result<(), StoreError>> {
        let count = blocks.end - blocks.start;
        // Who waits in the queue was first.
        if self.failed() || !self.writer.idle() || !self.has_room(count) {
            return None;
        }
        let mut runs = self.now.runs.borrow_mut();
        runs.clear();
        if !self.take_runs(count as u32, false, &mut runs) {
            return None;
        }
        if let Err(e) = self.store_runs(&runs, data) {
            self.give_back(runs.drain(..));
            return Some(Err(e));
        }
        let admitted = lane.admit(count);
        let crcs = self.now.crcs.borrow();
        self.journal.append_write(&WriteFields {
            handle: lane.handle,
            lane_sequence: admitted.sequence,
            generation: admitted.generation,
            stamp: admitted.stamp,
            first: LaneBlock(blocks.start),
            runs: &runs,
            crcs: &crcs,
            tags: None,
        });
        self.scatter
            .written((lane.handle, lane.shape()), admitted.generation, blocks);
        self.now.pending.set(true);
        let mut layer = admitted.layer.borrow_mut();
        let mut freed = self.now.freed.borrow_mut();
        let before = layer.len();
        layer.in_flight -= 1;
        let places = runs
            .iter()
            .flat_map(|r| r.first.0..r.first.0 + u64::from(r.blocks));
        for ((n, &crc), place) in (0u64..).zip(crcs.iter()).zip(places) {
            let entry = Entry {
                block: PhysicalBlock(place),
                crc,
                stamp: Stamp {
                    epoch: admitted.stamp.epoch,
                    seq: admitted.stamp.seq + n,
                },
                sequence: admitted.sequence.0,
            };
            layer.insert(LaneBlock(blocks.start + n), entry, &mut freed);
        }
        self.delta_grew(layer.len() as isize - before as isize);
        Some(Ok(()))
    }

    /// Brings data to its places; its checksums are in `now.crcs` then.
    fn store_runs(&self, runs: &[Run], mut data: &[u8]) -> Result<(), StoreError> {
        let mut crcs = self.now.crcs.borrow_mut();
        crcs.clear();
        for run in runs {
            let (now, rest) = data.split_at(run.blocks as usize * BLOCK_BYTES);
            data = rest;
            crcs.extend(now.chunks_exact(BLOCK_BYTES).map(Crc::of));
            let at = run.first.0 * BLOCK_BYTES as u64;
            let stored = self.device.store_now(at, now);
            stored.expect("a drive in memory").map_err(StoreError::Io)?;
        }
        Ok(())
    }

    /// Writes the records of all writes since the last call; then they may be acknowledged.
    pub(super) fn commit_now(self: &Rc<Self>) -> Result<(), StoreError> {
        if !self.now.pending.replace(false) {
            return Ok(());
        }
        self.store_journal();
        let freed = &mut *self.now.freed.borrow_mut();
        self.reclaim.superseded(freed);
        if let Some(e) = self.journal.failed() {
            return Err(e);
        }
        if !self.volatile {
            self.reclaim_flushed();
        }
        self.look_at_limits();
        Ok(())
    }
}
