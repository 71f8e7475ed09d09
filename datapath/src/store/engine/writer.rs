//! Writes: gathered for a pass, placed in one run where there is one, and completed when data and record are both there (`docs/store-format.md` §9).
//!
//! An operation puts its write into the queue and waits for its ticket. The writer takes the whole queue at once. On a drive in memory all is
//! done by then; on a disk the batch waits for its data writes and for the journal, in either order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::super::group::Run;
use super::super::journal::{Tags, WriteFields};
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, PhysicalBlock, Stamp};
use super::buffers::BufferSet;
use super::lane::{Admitted, LaneState};
use super::layer::Entry;
use super::stamped::{Stamps, owned};
use super::ticket::{TicketNumber, Tickets};
use super::unsettled::Listed;
use super::{Inner, StoreError};
use crate::reactor::Notify;

/// Most blocks of one write.
pub const WRITE_BLOCKS_MAX: u64 = 256;
/// A write of so many bytes is not copied to be gathered.
const ALONE_BYTES: usize = 64 << 10;
/// So many blocks that find the drive idle go to it in two halves.
const HALVED_BLOCKS: u64 = 32;
/// Passes of the reactor until a batch and its records are with the drive: data, the journal's task, its write.
const PASSES_TO_SEND: usize = 3;
/// Small writes are likely to be read again: they stay in the cache.
const CACHED_BLOCKS_MAX: u64 = 16;

/// What a write writes.
#[derive(Debug)]
pub enum Data {
    /// Its own buffer, which comes back.
    Own(Buffer),
    /// Of a record, which others have too.
    Shared(Rc<Buffer>),
}

impl Deref for Data {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(buffer) => buffer,
        }
    }
}

/// What comes back of a write.
pub type Written = (Data, Result<(), StoreError>);

/// A write that waits for the writer.
#[derive(Debug)]
pub struct PendingWrite {
    lane: Rc<LaneState>,
    first: LaneBlock,
    blocks: u64,
    data: Data,
    /// Of its blocks, if they are known.
    crcs: Vec<Crc>,
    /// Of its blocks, if they are sealed.
    tags: Option<Tags>,
    stamps: Stamps,
    ticket: TicketNumber,
    /// Space that was found for it the slow way.
    runs: Vec<Run>,
}

/// A write on its way: admitted to its lane, with its place on the drive.
#[derive(Debug)]
pub struct Placed {
    admitted: Admitted,
    /// The block of the journal that its record ends in.
    record_in: u64,
    first: LaneBlock,
    pub(super) runs: Vec<Run>,
    crcs: Vec<Crc>,
    tags: Option<Tags>,
    pub(super) data: Option<Data>,
    ticket: TicketNumber,
    /// Of a replica.
    listed: Option<Rc<Listed>>,
    /// The blocks that it replaces, if not all.
    replaces: Option<Vec<Range<u64>>>,
}

impl Placed {
    /// Whether it goes out from its own buffer: it has one, is large, and in one place.
    fn goes_alone(&self) -> bool {
        let large = self.crcs.len() * BLOCK_BYTES >= ALONE_BYTES;
        large && self.runs.len() == 1 && matches!(self.data, Some(Data::Own(_)))
    }

    /// Whether it replaces one of its blocks.
    fn replaces(&self, block: LaneBlock) -> bool {
        let parts = self.replaces.as_ref();
        parts.is_none_or(|parts| parts.iter().any(|p| p.contains(&block.0)))
    }
}

/// What completes together.
#[derive(Debug)]
pub struct Batch {
    /// How many records had entered the journal with its last one.
    last_record: u64,
    /// Data writes that are under way.
    pub data_left: Cell<u32>,
    error: Cell<Option<StoreError>>,
    pub writes: RefCell<Vec<Placed>>,
    /// Who waits for records without data.
    waiting: Cell<Option<TicketNumber>>,
}

/// The writer's part of a store.
#[derive(Debug)]
pub struct Writer {
    queue: RefCell<VecDeque<PendingWrite>>,
    pub queued: Notify,
    pub tickets: Tickets<Written>,
    pub meta_tickets: Tickets<Result<(), StoreError>>,
    pub batches: RefCell<VecDeque<Rc<Batch>>>,
    pub gathers: BufferSet,
    /// Blocks that were admitted and are not in the delta yet.
    pub in_flight: Cell<u64>,
}

impl Writer {
    /// With nothing queued.
    pub fn new(gathers: BufferSet) -> Self {
        Self {
            queue: RefCell::default(),
            queued: Notify::new(),
            tickets: Tickets::with_capacity(256),
            meta_tickets: Tickets::with_capacity(8),
            batches: RefCell::default(),
            gathers,
            in_flight: Cell::new(0),
        }
    }

    /// Whether anything is queued or under way.
    pub fn idle(&self) -> bool {
        self.queue.borrow().is_empty() && self.batches.borrow().is_empty()
    }
}

impl Inner {
    /// Queues a write; the ticket is for its completion.
    pub(super) fn submit(
        &self,
        lane: &Rc<LaneState>,
        blocks: &Range<u64>,
        data: Data,
        ticket: TicketNumber,
        (stamps, crcs, tags): (Stamps, Vec<Crc>, Option<Tags>),
    ) {
        self.resubmit(PendingWrite {
            lane: lane.clone(),
            first: LaneBlock(blocks.start),
            blocks: blocks.end - blocks.start,
            data,
            crcs,
            tags,
            stamps,
            ticket,
            runs: Vec::new(),
        });
    }

    fn resubmit(&self, write: PendingWrite) {
        self.writer.queue.borrow_mut().push_back(write);
        self.writer.queued.notify();
    }

    /// Writes to a place that was found before. What is decided when this is called is still so when it is admitted: nothing is awaited before.
    pub(super) async fn write_at(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        blocks: Range<u64>,
        data: Buffer,
        (runs, stamps, tags): (Vec<Run>, Stamps, Option<Tags>),
    ) -> Result<(), StoreError> {
        let ticket = self.writer.tickets.issue();
        let placed = Vec::from([self.admit(PendingWrite {
            lane: lane.clone(),
            first: LaneBlock(blocks.start),
            blocks: blocks.end - blocks.start,
            data: Data::Own(data),
            crcs: Vec::new(),
            tags,
            stamps,
            ticket: ticket.number(),
            runs,
        })]);
        if self.in_memory() {
            self.store_batch(placed);
        } else {
            self.send_batch(placed).await;
        }
        self.look_at_limits();
        ticket.wait().await.1
    }

    /// Takes the queue, again and again.
    pub(super) async fn run_writer(self: Rc<Self>) {
        loop {
            while self.writer.queue.borrow().is_empty() {
                if self.stopped.get() {
                    return;
                }
                self.writer.queued.notified().await;
            }
            self.wait_for_room().await;
            self.write_queue().await;
        }
    }

    /// Waits while delta or journal have no room for the first write: a checkpoint makes some.
    async fn wait_for_room(self: &Rc<Self>) {
        loop {
            let blocks = self.writer.queue.borrow().front().map_or(0, |w| w.blocks);
            if self.has_room(blocks) || self.failed() {
                return;
            }
            self.ask_for_checkpoint();
            self.room.notified().await;
        }
    }

    pub(super) fn has_room(&self, blocks: u64) -> bool {
        let delta = self.delta_entries.get() as u64 + self.writer.in_flight.get() + blocks;
        delta <= self.delta_max && self.scatter.has_room() && self.journal_has_room(blocks)
    }

    /// Places what is queued, as far as there is room, and begins to write it.
    async fn write_queue(self: &Rc<Self>) {
        let mut placed = Vec::new();
        let (mut writes, mut wanted, halved) = self.part_of_queue();
        let mut spare: Vec<Run> = Vec::new();
        while writes > 0 {
            writes -= 1;
            let Some(blocks) = self.writer.queue.borrow().front().map(|w| w.blocks) else {
                break;
            };
            if !self.has_room(blocks) && !self.failed() {
                break;
            }
            let write = self.writer.queue.borrow_mut().pop_front();
            let mut write = write.expect("looked at");
            if write.lane.void.get() || self.closed.get() {
                self.finish_write(write.ticket, write.data, Err(StoreError::Unknown));
                continue;
            }
            if self.failed() {
                let failed = self.checkpointer.failed.get();
                let failed = failed.unwrap_or(StoreError::Io(crate::device::IoError::Failed));
                self.finish_write(write.ticket, write.data, Err(failed));
                continue;
            }
            if write.runs.is_empty() {
                let found = self.place(write.blocks, wanted, &mut spare, &mut write.runs);
                wanted -= write.blocks;
                if !found {
                    self.hold_back(write);
                    continue;
                }
            }
            placed.push(self.admit(write));
        }
        self.give_back(spare);
        if self.space.borrow_mut().wants().is_some() {
            self.low_on_groups.notify();
        }
        if placed.is_empty() {
            return;
        }
        if self.in_memory() {
            self.store_batch(placed);
        } else {
            self.send_batch(placed).await;
        }
        self.look_at_limits();
        for _ in 0..if halved { PASSES_TO_SEND } else { 0 } {
            self.handle.yield_now().await;
        }
    }

    /// How many writes of the queue go out together, of how many blocks space is to be found for, and whether that is half of what waits. Who
    /// waits for a drive sends as many as came back together, and so they come back together again, and meanwhile the drive, or the reactor, has
    /// nothing to do. In two halves the drive works on one while the checksums of the other are taken.
    fn part_of_queue(&self) -> (usize, u64, bool) {
        let queue = self.writer.queue.borrow();
        let idle = self.writer.batches.borrow().is_empty() && !self.in_memory();
        let all: u64 = queue.iter().map(|w| w.blocks).sum();
        let halved = idle && all >= HALVED_BLOCKS && queue.len() > 1;
        let most = if halved { all / 2 } else { all };
        let (mut writes, mut blocks, mut wanted) = (0, 0, 0);
        for write in queue.iter() {
            if halved && blocks >= most {
                break;
            }
            writes += 1;
            blocks += write.blocks;
            wanted += if write.runs.is_empty() {
                write.blocks
            } else {
                0
            };
        }
        (writes, wanted, halved && writes < queue.len())
    }

    /// No space, or only the reserve: found out beside, so that others go on.
    fn hold_back(self: &Rc<Self>, mut write: PendingWrite) {
        let this = self.clone();
        self.handle.spawn("store space", async move {
            let first = write.first.0;
            let found = this
                .space_in_need(&write.lane, first..first + write.blocks)
                .await;
            match found {
                Ok(runs) => {
                    write.runs = runs;
                    this.resubmit(write);
                }
                Err(e) => this.finish_write(write.ticket, write.data, Err(e)),
            }
        });
    }

    fn admit(&self, write: PendingWrite) -> Placed {
        let admitted = match write.stamps {
            Stamps::Own => write.lane.admit(write.blocks),
            Stamps::Given(stamp) | Stamps::Copied(stamp) => write.lane.admit_as(stamp),
        };
        let data = &write.data[..write.blocks as usize * BLOCK_BYTES];
        let crcs: Vec<Crc> = match write.crcs.is_empty() {
            true => data.chunks_exact(BLOCK_BYTES).map(Crc::of).collect(),
            false => write.crcs,
        };
        let fields = WriteFields {
            handle: write.lane.handle,
            lane_sequence: admitted.sequence,
            generation: admitted.generation,
            stamp: admitted.stamp,
            first: write.first,
            runs: &write.runs,
            crcs: &crcs,
            tags: write.tags.as_ref(),
        };
        let blocks = write.first.0..write.first.0 + write.blocks;
        let (listed, replaces) = match (write.stamps, &write.lane.replica) {
            (Stamps::Given(_), Some(replica)) => {
                let (given, replaces) = replica.comes(admitted.stamp, &blocks);
                self.journal.append_given(&fields, given);
                let listed = Rc::new(Listed::new(owned(&fields, given)));
                self.list(replica, &listed);
                (Some(listed), replaces)
            }
            _ => {
                self.journal.append_write(&fields);
                (None, None)
            }
        };
        self.scatter.written(
            (write.lane.handle, write.lane.shape()),
            admitted.generation,
            &blocks,
        );
        let record_in = self.journal.data_begun();
        self.writer
            .in_flight
            .set(self.writer.in_flight.get() + write.blocks);
        Placed {
            record_in,
            admitted,
            first: write.first,
            runs: write.runs,
            crcs,
            tags: write.tags,
            data: Some(write.data),
            ticket: write.ticket,
            listed,
            replaces,
        }
    }

    /// A drive in memory: everything is there at once.
    fn store_batch(self: &Rc<Self>, placed: Vec<Placed>) {
        let mut result = Ok(());
        for write in &placed {
            let mut data = &write.data.as_ref().expect("not sent")[..];
            for run in &write.runs {
                let (now, rest) = data.split_at(run.blocks as usize * BLOCK_BYTES);
                data = rest;
                let stored = self.device.store_now(run.first.0 * BLOCK_BYTES as u64, now);
                if let Some(Err(e)) = stored {
                    result = Err(StoreError::Io(e));
                }
            }
        }
        let batch = self.new_batch(placed);
        batch.error.set(result.err());
        self.writer.batches.borrow_mut().push_back(batch);
        self.store_journal();
    }

    pub(super) fn new_batch(&self, placed: Vec<Placed>) -> Rc<Batch> {
        Rc::new(Batch {
            last_record: self.journal.records(),
            data_left: Cell::new(0),
            error: Cell::new(None),
            writes: RefCell::new(placed),
            waiting: Cell::new(None),
        })
    }

    /// A disk: data writes and the journal's go out beside each other.
    async fn send_batch(self: &Rc<Self>, mut placed: Vec<Placed>) {
        self.journal.appended.notify();
        // A large write does not wait for others: whoever wrote it sends the next one while they are under way.
        for write in placed.extract_if(.., |write| write.goes_alone()) {
            self.send_alone(write);
        }
        if placed.is_empty() {
            return;
        }
        let batch = self.new_batch(placed);
        // One more than there are, until all are sent.
        batch.data_left.set(1);
        self.writer.batches.borrow_mut().push_back(batch.clone());
        self.send_data(&batch).await;
        self.data_done(&batch, Ok(()));
    }

    pub(super) fn data_done(self: &Rc<Self>, batch: &Rc<Batch>, result: Result<(), StoreError>) {
        if let Err(e) = result {
            batch.error.set(Some(e));
        }
        batch.data_left.set(batch.data_left.get() - 1);
        if batch.data_left.get() == 0 {
            self.complete_batches();
        }
    }

    /// Records without data: the ticket finishes when they are in the journal.
    pub(super) fn commit_records(self: &Rc<Self>, ticket: TicketNumber) {
        let batch = self.new_batch(Vec::new());
        batch.waiting.set(Some(ticket));
        self.writer.batches.borrow_mut().push_back(batch);
        if self.in_memory() {
            self.store_journal();
        } else if self.journal.failed().is_some() {
            self.complete_batches();
        } else {
            self.journal.appended.notify();
            // Perhaps there was nothing to append.
            self.complete_batches();
        }
    }

    /// Completes every batch whose data and records are written.
    pub(super) fn complete_batches(self: &Rc<Self>) {
        self.look_at_settled();
        let done_records = self.journal.records_done();
        let mut done = Vec::new();
        {
            let mut batches = self.writer.batches.borrow_mut();
            batches.retain(|batch| {
                let data = batch.data_left.get() == 0;
                let records = batch.last_record <= done_records;
                #[cfg(planted)]
                let data =
                    data || super::super::planted::is(super::super::planted::Bug::AckBeforeData);
                #[cfg(planted)]
                let records = records
                    || super::super::planted::is(super::super::planted::Bug::AckBeforeRecord);
                if data && records {
                    done.push(batch.clone());
                }
                !(data && records)
            });
        }
        if done.is_empty() {
            return;
        }
        for batch in done {
            self.complete(&batch);
        }
        if !self.volatile {
            self.reclaim_flushed();
            // Data came after its record: until a block says that it is there, opening would test it, and take damage for a torn write.
            if !self.in_memory() && self.journal.watermark_is_news() {
                self.journal.appended.notify();
            }
        }
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ReuseBeforeFlush) {
            self.reclaim_ready();
        }
        self.completed.notify_all();
    }

    fn complete(&self, batch: &Batch) {
        let result = batch
            .error
            .take()
            .or_else(|| self.journal.failed())
            .map_or(Ok(()), Err);
        let mut freed = Vec::new();
        for write in batch.writes.borrow_mut().drain(..) {
            let blocks = write.crcs.len() as u64;
            self.writer
                .in_flight
                .set(self.writer.in_flight.get() - blocks);
            self.journal.data_done(write.record_in);
            self.settle_write(&write, result, &mut freed);
            if let (Some(listed), Err(_)) = (&write.listed, result) {
                listed.failed.set(true);
            }
            let data = write
                .data
                .unwrap_or_else(|| unreachable!("data writes are done"));
            self.finish_write(write.ticket, data, result);
        }
        self.kept.park(&mut freed);
        self.reclaim.superseded(&mut freed);
        if let Some(ticket) = batch.waiting.take() {
            self.writer.meta_tickets.finish(ticket, result);
        }
    }

    /// Its entries enter the delta; blocks that lose are given back.
    fn settle_write(
        &self,
        write: &Placed,
        result: Result<(), StoreError>,
        freed: &mut Vec<PhysicalBlock>,
    ) {
        let mut layer = write.admitted.layer.borrow_mut();
        let before = layer.len();
        layer.in_flight -= 1;
        let keep = !self.in_memory() && write.crcs.len() as u64 <= CACHED_BLOCKS_MAX;
        let places = write.runs.iter();
        let places = places.flat_map(|r| r.first.0..r.first.0 + u64::from(r.blocks));
        for (n, at) in (0u64..).zip(places.map(PhysicalBlock)) {
            let block = LaneBlock(write.first.0 + n);
            if result.is_err() || !write.replaces(block) {
                freed.push(at);
                continue;
            }
            let entry = Entry {
                block: at,
                crc: write.crcs[n as usize],
                stamp: Stamp {
                    epoch: write.admitted.stamp.epoch,
                    seq: write.admitted.stamp.seq + n,
                },
                sequence: write.admitted.sequence.0,
            };
            let seal = Tags::seal_of(write.tags.as_ref(), n as usize);
            layer.insert_sealed(block, (entry, seal), freed);
            if keep && let Some(data) = &write.data {
                let bytes = &data[n as usize * BLOCK_BYTES..][..BLOCK_BYTES];
                let bytes: &[u8; BLOCK_BYTES] = bytes.try_into().expect("a block");
                self.cache.put(at, Rc::new(*bytes));
            }
        }
        let grown = layer.len() as isize - before as isize;
        self.delta_grew(grown);
    }

    fn finish_write(&self, ticket: TicketNumber, data: Data, result: Result<(), StoreError>) {
        self.writer.tickets.finish(ticket, (data, result));
    }
}
