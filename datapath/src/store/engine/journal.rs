//! The journal's way to the drive: records are appended, and everything that waits goes out with one write, a few of which are under way at a
//! time (`docs/store-format.md` §4).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::super::journal::{
    Given, Packer, Put, RECORDS_BYTES, RUN_BLOCKS_MAX, RUNS_IN_FLIGHT_MAX, Record, Ring, SealedRun,
    Settled, Snapshot, WriteFields,
};
use super::super::map::CatalogueRecord;
use super::super::superblock::{Layout, Superblock};
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, CheckpointNumber, Generation, LaneSequence, SnapshotId, Stamp,
};
use super::buffers::{Borrowed, BufferSet};
use super::{Inner, StoreError};
use crate::cipher::TAG_BYTES;
use crate::device::IoError;
use crate::reactor::{Handle, Notify};

/// Bytes of one journal write at most.
const RUN_BYTES: usize = RUN_BLOCKS_MAX as usize * BLOCK_BYTES;
/// Of a write's record: what is not for its blocks.
const RECORD_BYTES: u64 = 44;
/// Of a write's record: for each block, in the worst case.
const BYTES_OF_BLOCK: u64 = 12;

/// Records of so many blocks do not wait for the journal write that is under way: they are worth a block of the journal.
const NOT_WAITING_BLOCKS: u64 = 16;

/// On a drive without a volatile cache the watermark goes out by itself if no record came for so long.
const TELL_AFTER: Duration = Duration::from_millis(10);

/// See the module's text.
pub struct Journal {
    packer: RefCell<Packer>,
    ring: RefCell<Ring>,
    layout: Layout,
    /// Number of the last checkpoint that froze.
    checkpoint: Cell<CheckpointNumber>,
    failed: Cell<Option<StoreError>>,
    buffers: BufferSet,
    /// Of a drive in memory.
    scratch: RefCell<Vec<u8>>,
    blocks_written: Cell<u64>,
    /// Blocks of data whose records wait.
    waiting_blocks: Cell<u64>,
    /// Blocks that the next checkpoint needs for copies of what is not settled.
    kept_room: Cell<u64>,
    /// Records may have tags.
    tags: Cell<bool>,
    /// Writes that the drive has not answered, failed or not.
    writing: Cell<usize>,
    /// There is something to write.
    pub appended: Notify,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// An empty journal, which begins where the superblock says; `None` if there are not enough buffers.
    pub fn new(
        handle: &Handle,
        superblock: &Superblock,
        in_memory: bool,
        volatile: bool,
    ) -> Option<Self> {
        let (buffers, scratch) = if in_memory {
            (0, vec![0; RUN_BYTES])
        } else {
            (RUNS_IN_FLIGHT_MAX, Vec::new())
        };
        let ring = Ring::new(
            superblock.drive_id,
            superblock.mount_generation,
            superblock.layout.journal_blocks(),
            superblock.journal_first,
            volatile,
        );
        Some(Self {
            packer: RefCell::new(Packer::new()),
            ring: RefCell::new(ring),
            layout: superblock.layout,
            checkpoint: Cell::new(superblock.checkpoint),
            failed: Cell::new(None),
            buffers: BufferSet::new(handle.buffers(), RUN_BYTES, buffers)?,
            scratch: RefCell::new(scratch),
            blocks_written: Cell::new(0),
            waiting_blocks: Cell::new(0),
            kept_room: Cell::new(0),
            tags: Cell::new(false),
            writing: Cell::new(0),
            appended: Notify::new(),
        })
    }

    /// Goes on behind what was found at opening, which stays until the tail moves.
    pub fn resume(&self, first: u64, end: u64) {
        self.ring.borrow_mut().resume(first, end);
    }

    /// The block that the next record will be in, or a later one.
    pub fn next_sequence(&self) -> u64 {
        self.ring.borrow().next_sequence()
    }

    /// Records that were appended.
    pub fn records(&self) -> u64 {
        self.packer.borrow().records()
    }

    /// Records that are written; all, if writing failed.
    pub fn records_done(&self) -> u64 {
        match self.failed.get() {
            Some(_) => u64::MAX,
            None => self.ring.borrow().records_done(),
        }
    }

    /// Whether the drive has answered every write of it.
    pub fn is_quiet(&self) -> bool {
        self.writing.get() == 0
    }

    /// What a write of it failed with.
    pub fn failed(&self) -> Option<StoreError> {
        self.failed.get()
    }

    /// Blocks written since the drive was opened.
    pub fn blocks_written(&self) -> u64 {
        self.blocks_written.get()
    }

    /// The data of the record that was appended last is on its way; the answer is for [`Journal::data_done`].
    pub fn data_begun(&self) -> u64 {
        let mut ring = self.ring.borrow_mut();
        let block = ring.ends_in(&self.packer.borrow());
        ring.data_begun(block);
        block
    }

    /// It is there.
    pub fn data_done(&self, block: u64) {
        self.ring.borrow_mut().data_done(block);
    }

    /// The last block that a flush which is issued now makes durable, with the data of its records.
    pub fn durable_candidate(&self) -> u64 {
        self.ring.borrow().durable_candidate()
    }

    /// A flush is done, and this was the candidate when it was issued.
    pub fn flushed(&self, candidate: u64) {
        self.ring.borrow_mut().flushed(candidate);
    }

    /// Whether the drive should be told of the watermark, though no record goes out.
    pub fn watermark_is_news(&self) -> bool {
        self.ring.borrow().needs_watermark_block()
    }

    /// Whether a flush would let the tail move that copies of old records bring along.
    pub fn wants_flush(&self) -> bool {
        self.ring.borrow().wants_flush()
    }

    /// A checkpoint froze: puts from now on are later than it.
    pub fn froze(&self, checkpoint: CheckpointNumber) {
        self.checkpoint.set(checkpoint);
    }

    /// A checkpoint's superblock is flushed: replay begins at `tail`.
    pub fn set_tail(&self, tail: u64) {
        self.ring.borrow_mut().checkpointed(tail);
    }

    /// Whether a checkpoint should move the tail.
    pub fn wants_checkpoint(&self) -> bool {
        self.ring.borrow().wants_checkpoint()
    }

    /// Whether records of writes of so many blocks fit, whatever their runs; one block is left for a watermark.
    pub fn has_room(&self, blocks: u64) -> bool {
        let each = match self.tags.get() {
            true => BYTES_OF_BLOCK + TAG_BYTES as u64,
            false => BYTES_OF_BLOCK,
        };
        let bytes = RECORD_BYTES + each * blocks;
        let needed = bytes.div_ceil(RECORDS_BYTES as u64) + 2;
        let needed = match self.kept_room.get() {
            0 => needed,
            // What is added to the list is copied, too.
            kept => 2 * needed + kept,
        };
        self.packer.borrow().pending_blocks() + needed <= self.ring.borrow().room()
    }

    /// There is a sealed lane: from now on each record has room for tags.
    pub fn expect_tags(&self) {
        self.tags.set(true);
    }

    /// A checkpoint will copy so many bytes of records: their room is nobody else's.
    pub fn keep_room(&self, bytes: u64) {
        let blocks = bytes.div_ceil(RECORDS_BYTES as u64);
        self.kept_room.set(if bytes > 0 { blocks + 4 } else { 0 });
    }

    /// Bytes of records that may wait for being settled: an eighth of the journal.
    pub fn unsettled_max(&self) -> u64 {
        u64::from(self.layout.journal_blocks()) / 8 * RECORDS_BYTES as u64
    }

    /// A write, or damaged blocks, of a replica's lane.
    pub fn append_given(&self, fields: &WriteFields<'_>, given: Given) {
        let blocks = self.waiting_blocks.get() + fields.crcs.len() as u64;
        self.waiting_blocks.set(blocks);
        self.packer.borrow_mut().append_given(fields, given);
    }

    /// Any record.
    pub fn append_record(&self, record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.packer.borrow_mut().append_encoded(&bytes);
    }

    /// A copy of a record that is durable.
    pub fn append_copy(&self, record: &Record) {
        self.packer.borrow_mut().append_copy(record);
    }

    /// What is settled of a lane; in a block that is written anyway.
    pub fn append_settled(&self, handle: CatalogueHandle, stamp: Stamp) {
        self.packer.borrow_mut().append_settled(&Settled {
            handle,
            stamp,
            again: false,
        });
    }

    /// A write.
    pub fn append_write(&self, fields: &WriteFields<'_>) {
        let blocks = self.waiting_blocks.get() + fields.crcs.len() as u64;
        self.waiting_blocks.set(blocks);
        self.packer.borrow_mut().append_write(fields);
    }

    /// A snapshot of a lane.
    pub fn append_snapshot(
        &self,
        handle: CatalogueHandle,
        lane_sequence: LaneSequence,
        closes: Generation,
        snapshot: CatalogueHandle,
        id: SnapshotId,
        live_generation: Generation,
    ) {
        self.packer.borrow_mut().append_snapshot(&Snapshot {
            handle,
            lane_sequence,
            closes,
            snapshot,
            id,
            live_generation,
        });
    }

    /// A record of the catalogue.
    pub fn append_put(
        &self,
        handle: CatalogueHandle,
        next_handle: u32,
        next_generation: u32,
        record: &CatalogueRecord,
    ) {
        self.packer.borrow_mut().append_put(&Put {
            handle,
            checkpoint: self.checkpoint.get(),
            next_handle: CatalogueHandle(next_handle),
            next_generation: Generation(next_generation),
            record: record.encode_put(),
        });
    }

    /// Puts what waits into blocks; `None` if the ring has no room.
    fn seal(&self, into: &mut [u8]) -> Option<SealedRun> {
        let mut packer = self.packer.borrow_mut();
        self.waiting_blocks.set(0);
        self.ring.borrow_mut().seal(&mut packer, into)
    }

    /// Whether what waits goes out now: at once if nothing is under way, beside others if it is worth a write of its own.
    fn goes_out(&self) -> bool {
        match self.ring.borrow().runs_in_flight() {
            0 => true,
            RUNS_IN_FLIGHT_MAX.. => false,
            _ => self.waiting_blocks.get() >= NOT_WAITING_BLOCKS,
        }
    }

    /// A run is written.
    fn wrote(&self, run: &SealedRun) {
        self.ring.borrow_mut().written(run);
        self.blocks_written
            .set(self.blocks_written.get() + run.blocks);
    }
}

impl Inner {
    /// See [`Journal::has_room`].
    pub(super) fn journal_has_room(&self, blocks: u64) -> bool {
        self.journal.has_room(blocks)
    }

    /// A drive in memory: what waits is written at once.
    pub(super) fn store_journal(self: &Rc<Self>) {
        let journal = &self.journal;
        while journal.failed.get().is_none() && journal.packer.borrow().pending_bytes() > 0 {
            let mut scratch = journal.scratch.borrow_mut();
            let Some(run) = journal.seal(&mut scratch) else {
                journal.failed.set(Some(StoreError::Full));
                break;
            };
            let at = journal.layout.journal_block(run.first).0 * BLOCK_BYTES as u64;
            match self.device.store_now(at, &scratch[..run.bytes()]) {
                Some(Ok(())) => journal.wrote(&run),
                Some(Err(e)) => journal.failed.set(Some(StoreError::Io(e))),
                None => unreachable!("a drive in memory"),
            }
        }
        self.complete_batches();
    }

    /// A disk: writes what waits.
    pub(super) async fn run_journal(self: Rc<Self>) {
        let journal = &self.journal;
        while !self.stopped.get() && journal.failed.get().is_none() {
            let waits = journal.packer.borrow().pending_bytes() > 0;
            let has_something = waits || journal.watermark_is_news();
            if !has_something || !journal.goes_out() {
                journal.appended.notified().await;
                continue;
            }
            // Without a volatile cache every write is news: mostly the next record takes it along.
            if !waits && !self.volatile {
                let appended = journal.appended.notified();
                if self.handle.timeout(TELL_AFTER, appended).await.is_ok() {
                    continue;
                }
            }
            let mut buffer = journal.buffers.take().await;
            let Some(run) = journal.seal(&mut buffer) else {
                // Room was looked at before records were appended; a watermark alone can wait.
                debug_assert!(!waits, "records without room");
                journal.appended.notified().await;
                continue;
            };
            journal.writing.set(journal.writing.get() + 1);
            let this = self.clone();
            self.handle.spawn("store journal", async move {
                this.write_run(run, buffer).await;
            });
        }
    }

    /// Writes a sealed run.
    async fn write_run(self: Rc<Self>, run: SealedRun, mut buffer: Borrowed) {
        let journal = &self.journal;
        let at = journal.layout.journal_block(run.first).0 * BLOCK_BYTES as u64;
        let (back, result) = self
            .device
            .write(at, buffer.lend(), run.bytes(), false)
            .await;
        buffer.back(back);
        drop(buffer);
        journal.writing.set(journal.writing.get() - 1);
        match result {
            Ok(()) => {
                journal.wrote(&run);
                // A block with nothing but the watermark as well: only when it is stable too is damage never taken for a torn write.
                self.wrote(run.bytes() as u64);
                self.look_at_tail();
            }
            Err(e) => self.journal_failed(e),
        }
        self.complete_batches();
        // What waited for this one.
        journal.appended.notify();
    }

    /// Nothing that waits for the journal will be durable: it fails.
    fn journal_failed(&self, e: IoError) {
        self.journal.failed.set(Some(StoreError::Io(e)));
    }
}
