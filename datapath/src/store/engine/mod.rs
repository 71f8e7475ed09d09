//! The store of one drive: what the other rooms' structures do together (`docs/store-format.md` §7 to §14).
//!
//! A [`Store`] lives on the reactor that owns the drive. Its lanes are [`StoreLane`]s.

//!
//! A write enters by the `writer` (space, data, record), or on a drive in memory by `now`, and its entries the `lane`'s delta (`layer`); a `read` asks delta and map (`lookup`); `flush`
//! makes durable, `reclaim` says when a block may be used again, `checkpoint` brings the delta into the map, `open` finds everything
//! again, and `roots` has lanes, snapshots and clones. `journal`, `pages` and `cache` are their ways to the drive.
//!
//! A [`Replica`] is lanes of a volume whose records come with stamps: `stamped` applies them, `unsettled` lists them until they are settled,
//! `copy` is for resync and repair, `promise` keeps what was promised.

mod arrive;
mod budget;
mod buffers;
mod cache;
mod catalogue;
mod checkpoint;
mod copy;
mod damage;
mod error;
mod flush;
mod front;
mod gather;
mod info;
mod join;
mod journal;
mod lane;
mod layer;
mod leave;
mod lookup;
mod moving;
mod now;
mod open;
mod pages;
mod promise;
mod read;
mod reclaim;
mod reopen;
mod replica;
mod replica_snapshots;
mod roots;
mod scatter;
mod scrub;
mod space;
mod stamped;
mod summary;
#[cfg(test)]
mod tests;
mod ticket;
mod unsettled;
mod usage;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;
use tokio::sync::Mutex;

pub use super::map::{DiffRange, Unique};
pub use super::superblock::ReplicaState;
pub use arrive::{Arrival, Settled};
pub use budget::CacheBudget;
pub use damage::{Damage, DamageKind, DamageReport};
pub use error::{OpenError, StoreError};
pub use info::{Counters, Identity, LaneInfo, RootOf, SnapshotInfo, Space, StoreConfig};
pub use moving::{MovedBlock, MovedKind, MovedRecord, NextFamily, Part, StaleCopy};
pub use replica::Replica;
pub use scrub::{ScrubError, ScrubPlace, ScrubStep};
pub use usage::Exactly;

use super::VolumeId;
use super::group::Space as Groups;
use super::map::RecordKind;
use super::superblock::{Layout, Superblock};
use super::types::{BLOCK_BYTES, CatalogueHandle, LaneBlock, SnapshotId};
use crate::device::{Device, View};
use crate::reactor::{Handle, Notify};
use buffers::BufferSet;
use cache::BlockCache;
use catalogue::Catalogue;
use checkpoint::Checkpointer;
use flush::Flusher;
use journal::Journal;
use lane::LaneState;
use now::Now;
use pages::DrivePages;
use promise::Promises;
use read::{NowRead, Summed};
use reclaim::Reclaim;
use scatter::Scatter;
use stamped::Stamps;
use unsettled::Kept;
use writer::{Data, Writer};

/// How often closing looks whether the drive has answered.
const CLOSE_STEP: Duration = Duration::from_micros(100);

/// One drive's store. Cheap to clone; lives on one reactor.
#[derive(Clone, Debug)]
pub struct Store(Rc<Inner>);

/// A live lane of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreLane {
    store: Rc<Inner>,
    lane: Rc<LaneState>,
}

struct Inner {
    handle: Handle,
    device: Device,
    /// Whether what is written needs a flush.
    volatile: bool,
    superblock: RefCell<Superblock>,
    /// Who has it commits.
    superblock_buffer: BufferSet,
    /// Of the superblock that is on the drive: a drive that grows has another one in memory before.
    committed_layout: Cell<Layout>,
    promises: Promises,
    read_buffers: BufferSet,
    space: Rc<RefCell<Groups>>,
    cache: Rc<BlockCache>,
    now_read: RefCell<NowRead>,
    summed: Summed,
    pages: Rc<DrivePages>,
    reclaim: Rc<Reclaim>,
    journal: Journal,
    /// Blocks of records that are not settled.
    kept: Kept,
    writer: Writer,
    now: Now,
    flusher: Flusher,
    checkpointer: Checkpointer,
    catalogue: RefCell<Catalogue>,
    /// Live lanes, and deleted ones whose delta is not in the map yet.
    lanes: RefCell<BTreeMap<CatalogueHandle, Rc<LaneState>>>,
    names: RefCell<BTreeMap<(VolumeId, u8), CatalogueHandle>>,
    /// Snapshots whose root is not on the drive yet.
    unmerged: RefCell<BTreeSet<CatalogueHandle>>,
    /// Snapshots that are being moved: no deletion walks them.
    pinned: RefCell<BTreeSet<CatalogueHandle>>,
    /// One change of the catalogue at a time.
    changing: Mutex<()>,
    /// Entries of all deltas, and how many there may be.
    delta_entries: Cell<usize>,
    delta_max: u64,
    /// Of the entries, those that the checkpoint under way has frozen.
    delta_frozen: Cell<usize>,
    /// Entries that came while the last checkpoint ran: as many must find room during the next one.
    delta_meanwhile: Cell<usize>,
    /// Leaves that they lead to.
    scatter: Scatter,
    /// Layers of the lane that has most.
    deepest: Cell<usize>,
    /// Writes completed.
    completed: Notify,
    /// Groups in memory may run low.
    low_on_groups: Notify,
    /// There may be room for writes again.
    room: Notify,
    checksum_errors: Cell<u64>,
    /// Who is told of what checkpoints give up, and what nobody was told of yet.
    damage_report: RefCell<Option<DamageReport>>,
    unreported: RefCell<Vec<Damage>>,
    cache_hits: Cell<u64>,
    /// Takes no more operations.
    closed: Cell<bool>,
    /// The next checkpoint marks the drive clean.
    closing: Cell<bool>,
    /// Its tasks end.
    stopped: Cell<bool>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("drive", &self.superblock.borrow().drive)
            .field("delta_entries", &self.delta_entries.get())
            .field("delta_max", &self.delta_max)
            .field("in_flight", &self.writer.in_flight.get())
            .field("writer_idle", &self.writer.idle())
            .field("flusher", &self.flusher)
            .field("checkpointer", &self.checkpointer)
            .field("journal", &self.journal)
            .field("kept", &self.kept)
            .field("reclaim", &self.reclaim.waiting())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn in_memory(&self) -> bool {
        matches!(self.device, Device::Memory(_))
    }

    /// Whether nothing is written any more.
    fn failed(&self) -> bool {
        self.device.failed() || self.checkpointer.failed.get().is_some()
    }

    fn delta_grew(&self, by: isize) {
        let entries = self.delta_entries.get().checked_add_signed(by);
        self.delta_entries
            .set(entries.expect("entries are counted once"));
    }
}

impl Store {
    /// Finishes what is under way, checkpoints, and marks the drive clean. Nothing is served afterwards.
    ///
    /// # Errors
    /// [`StoreError`]: the drive is then opened as after a crash.
    pub async fn close(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.closed.set(true);
        while !inner.writer.idle() {
            inner.writer.queued.notify();
            inner.handle.sleep(CLOSE_STEP).await;
        }
        inner.closing.set(true);
        let done = inner.checkpoint().await;
        inner.stop();
        // A block that tells the watermark may be under way still. Whoever opens the drive next would have it land in his own journal.
        while !inner.journal.is_quiet() {
            inner.handle.sleep(CLOSE_STEP).await;
        }
        done
    }

    /// What the drive says of itself.
    pub fn identity(&self) -> Identity {
        let superblock = self.0.superblock.borrow();
        Identity {
            id: superblock.drive_id,
            drive: superblock.drive.clone(),
            pool: superblock.pool.clone(),
            members: superblock.members,
        }
    }

    /// Tells the drive how many members its pool has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_members(&self, members: u32) -> Result<(), StoreError> {
        if self.0.superblock.borrow().members == members {
            return Ok(());
        }
        self.0.superblock.borrow_mut().members = members;
        self.0.checkpoint().await
    }

    /// Where its bytes are.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether it takes writes: not after a write or a checkpoint failed.
    pub fn failed(&self) -> bool {
        self.0.failed()
    }

    /// Its blocks.
    pub fn space(&self) -> Space {
        self.0.space_now()
    }

    /// What happened since it was opened.
    pub fn counters(&self) -> Counters {
        let inner = &self.0;
        let errors = inner.device.errors();
        Counters {
            read_errors: errors.reads,
            write_errors: errors.writes,
            checksum_errors: inner.checksum_errors.get() + inner.pages.mismatches.get(),
            lost_pages: inner.superblock.borrow().lost_pages,
            cache_hits: inner.cache_hits.get(),
            checkpoints: inner.checkpointer.count.get(),
            flushes: inner.flusher.count.get(),
            journal_blocks: inner.journal.blocks_written(),
            pages: inner.pages.written.get(),
        }
    }

    /// Its live lanes. Used blocks are those of the last checkpoint.
    pub fn lanes(&self) -> Vec<LaneInfo> {
        let inner = &self.0;
        let catalogue = inner.catalogue.borrow();
        let lanes = inner.lanes.borrow();
        let live = lanes.values().filter(|l| !l.void.get());
        let infos = live.filter_map(|lane| {
            let record = catalogue.get(lane.handle)?;
            if record.kind != RecordKind::Live {
                return None;
            }
            Some(LaneInfo {
                volume: lane.volume,
                lane: lane.lane,
                lanes: record.lanes,
                incarnation: record.incarnation,
                leaving: record.leaving,
                size_bytes: record.size_bytes,
                used_blocks: lane.root.get().child.used,
                error: None,
                lossy: record.lossy,
                replica: lane.replica.is_some(),
                origin: catalogue.get(record.parent).map(|p| (p.volume, p.snapshot)),
            })
        });
        infos.collect()
    }

    /// Its snapshots, one for each lane. Used blocks are those of the last checkpoint.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let catalogue = self.0.catalogue.borrow();
        let all = catalogue.iter().filter_map(|(_, r)| {
            let hidden = match r.kind {
                RecordKind::Snapshot => false,
                RecordKind::Hidden => true,
                _ => return None,
            };
            Some(SnapshotInfo {
                volume: r.volume,
                lane: r.lane,
                snapshot: r.snapshot,
                incarnation: r.incarnation,
                hidden,
                lanes: r.lanes,
                size_bytes: r.size_bytes,
                used_blocks: r.map.used,
                error: None,
                lossy: r.lossy,
            })
        });
        all.collect()
    }

    /// Whether both are of the same drive.
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Ids of a volume's snapshots here, hidden ones excepted.
    pub fn snapshots_of(&self, volume: VolumeId) -> std::collections::BTreeSet<SnapshotId> {
        let all = self.snapshots().into_iter();
        let of_it = all.filter(|s| s.volume == volume && !s.hidden);
        of_it.map(|s| s.snapshot).collect()
    }

    /// A live lane.
    pub fn lane(&self, volume: VolumeId, lane: u8) -> Option<StoreLane> {
        let lane = self.0.lane_named(volume, lane)?;
        Some(StoreLane {
            store: self.0.clone(),
            lane,
        })
    }

    /// Makes lanes of a volume, durably; those that exist stay as they are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_lanes(
        &self,
        volume: VolumeId,
        lanes: &[u8],
        of: u8,
        size_bytes: u64,
    ) -> Result<(), StoreError> {
        self.0
            .create_lanes(volume, lanes, of, size_bytes, (false, false))
            .await
    }

    /// Tells all lanes of a volume its size, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resize(&self, volume: VolumeId, size_bytes: u64) -> Result<(), StoreError> {
        self.0.resize(volume, size_bytes).await
    }

    /// Deletes a volume's live lanes, durably; its snapshots stay. Space comes back in the background.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_lanes(&self, volume: VolumeId) -> Result<(), StoreError> {
        self.0.delete_lanes(volume).await
    }

    /// Snapshots of all lanes here of these volumes, at one moment, durably. A snapshot that exists stays as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot(&self, volumes: &[(VolumeId, SnapshotId)]) -> Result<(), StoreError> {
        self.0.snapshot(volumes).await
    }

    /// Deletes a snapshot of all lanes here, durably; unknown succeeds. Space comes back in the background, or when the last clone goes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), StoreError> {
        self.0.delete_snapshot(volume, snapshot).await
    }

    /// New lanes of `to`, writable, with what the snapshot of `from` has; durably. Lanes that exist stay as they are.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] without the snapshot, and others.
    pub async fn clone_lanes(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        to: VolumeId,
    ) -> Result<(), StoreError> {
        self.0.clone_lanes(from, snapshot, to, false).await
    }

    /// The volume's live lanes become what the snapshot has, durably. The volume must not be used meanwhile; `StoreLane`s of it are void.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] without the snapshot, and others.
    pub async fn restore(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.0.restore(volume, snapshot).await
    }

    /// Where two roots of a lane differ, from a block on; `None` as `older`: everything that `newer` has. The second is where to go on.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] without one of them, and others.
    pub async fn diff(
        &self,
        volume: VolumeId,
        lane: u8,
        older: Option<RootOf>,
        newer: RootOf,
        from: LaneBlock,
        ranges_max: usize,
    ) -> Result<(Vec<DiffRange>, Option<LaneBlock>), StoreError> {
        self.0
            .diff(volume, lane, older, newer, from, ranges_max)
            .await
    }

    /// Brings everything that completed before to stable media.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.0.flush().await
    }

    /// Brings the delta into the map now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.0.checkpoint().await
    }

    /// The drive has become larger: its new space is used from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn grow(&self) -> Result<(), StoreError> {
        self.0.grow().await
    }

    /// Writes the records of all [`StoreLane::write_now`] since the last call: then they may be acknowledged.
    ///
    /// # Errors
    /// [`StoreError`]: none of them may be acknowledged.
    pub fn commit_now(&self) -> Result<(), StoreError> {
        self.0.commit_now()
    }

    /// Whether deletions have given back all of their space.
    pub fn settled(&self) -> bool {
        self.0.settled()
    }

    /// For tests.
    ///
    /// # Panics
    /// If what is in memory contradicts itself.
    pub fn check(&self) {
        self.0.check();
    }
}

impl StoreLane {
    /// Reads `len` bytes, `skip` bytes into `blocks`, from a memory drive without waiting and without a copy: `each` gets views of them, in order and
    /// only if all is well. `None`: use [`StoreLane::read`].
    #[inline]
    pub fn read_now(
        &self,
        blocks: Range<u64>,
        skip: usize,
        len: usize,
        each: impl FnMut(View),
    ) -> Option<Result<(), StoreError>> {
        if !self.store.in_memory() || self.lane.void.get() || self.store.closed.get() {
            return None;
        }
        self.store.read_now(&self.lane, blocks, skip, len, each)
    }

    /// Fetches what a read of a block in memory, or a write, will look at: it comes soon.
    #[inline]
    pub fn prefetch(&self, block: u64, reads: bool) {
        let block = LaneBlock(block);
        if !self.store.in_memory() {
            return;
        }
        if reads {
            self.store.prefetch(&self.lane, block);
        } else {
            // A look at the delta brings what an insertion looks at.
            std::hint::black_box(self.lane.delta_knows(block));
        }
    }

    /// Reads `blocks` (at most 256 of them) into the beginning of `into`. Blocks that were never written are zeroes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, blocks: Range<u64>, into: Buffer) -> (Buffer, Result<(), StoreError>) {
        if self.lane.void.get() {
            return (into, Err(StoreError::Unknown));
        }
        self.store.read(&self.lane, blocks, into).await
    }

    /// Writes `blocks` (1 to 256) to a memory drive without waiting; it may be acknowledged after [`Store::commit_now`] only, and what was read in
    /// the same pass stays as it is until then. `None`: nothing was written, use [`StoreLane::write`].
    #[inline]
    pub fn write_now(&self, blocks: Range<u64>, data: &[u8]) -> Option<Result<(), StoreError>> {
        if !self.store.in_memory() || self.lane.void.get() || self.store.closed.get() {
            return None;
        }
        let count = blocks.end - blocks.start;
        assert!((1..=writer::WRITE_BLOCKS_MAX).contains(&count));
        assert_eq!(data.len() as u64, count * BLOCK_BYTES as u64);
        self.store.write_now(&self.lane, &blocks, data)
    }

    /// Writes `blocks` (1 to 256) from the beginning of `from`: all or, after a crash, nothing. With `fua`, on stable media when it is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn write(
        &self,
        blocks: Range<u64>,
        from: Buffer,
        fua: bool,
    ) -> (Buffer, Result<(), StoreError>) {
        let count = blocks.end - blocks.start;
        assert!((1..=writer::WRITE_BLOCKS_MAX).contains(&count));
        if self.store.closed.get() {
            return (from, Err(StoreError::Closed));
        }
        let ticket = self.store.writer.tickets.issue();
        let own = (Stamps::Own, Vec::new(), None);
        self.store
            .submit(&self.lane, &blocks, Data::Own(from), ticket.number(), own);
        let (Data::Own(buffer), mut result) = ticket.wait().await else {
            unreachable!("a write gets its own buffer back");
        };
        if fua && result.is_ok() {
            result = self.store.flush().await;
        }
        (buffer, result)
    }

    /// Makes blocks, any number, read as zeroes and gives their space back. The caller sees to it that no write of them is under way.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn erase(&self, blocks: Range<u64>) -> Result<(), StoreError> {
        if self.store.closed.get() {
            return Err(StoreError::Closed);
        }
        if self.lane.void.get() {
            return Err(StoreError::Unknown);
        }
        self.store.erase(&self.lane, blocks).await
    }
}
