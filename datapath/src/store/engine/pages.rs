//! How the map reaches the drive: pages read through the cache, and written in runs by a checkpoint.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::super::group::{GroupId, NoSpace, Space};
use super::super::map::{LOST_BLOCK, MapError, Page, PageId, PageStamp, Pages, check_page};
use super::super::superblock::{COPIES, COPY_BYTES};
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, CheckpointNumber, Crc, DriveId, PhysicalBlock,
};
use super::buffers::BufferSet;
use super::cache::BlockCache;
use super::damage::{DamageKind, kind_of};
use super::join::join_all;
use crate::device::{Device, IoError};
use crate::reactor::{Handle, Notify};

/// How often a block that does not match, or cannot be read, is read again before it counts as damaged, and after which time.
const READ_AGAIN: u32 = 2;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// Places of damaged blocks that are remembered.
const DAMAGED_MAX: usize = 4096;
/// A checkpoint that meets more damaged pages meets a drive that does not read (`docs/store-format.md` §15).
const LOST_MAX: usize = 64;
/// Pages that are read at a time.
pub const READS_MAX: usize = 32;
/// Bytes of pages that are written with one request.
pub const RUN_BYTES: usize = 128 << 10;
/// Such requests that are under way at a time.
pub const RUNS_MAX: usize = 2;

/// A drive's pages.
pub struct DrivePages {
    handle: Handle,
    device: Device,
    drive: DriveId,
    space: Rc<RefCell<Space>>,
    cache: Rc<BlockCache>,
    reads: BufferSet,
    runs: BufferSet,
    /// Of the checkpoint that writes now.
    checkpoint: Cell<CheckpointNumber>,
    /// Written by the checkpoint, and not on the drive yet.
    unwritten: RefCell<BTreeMap<PhysicalBlock, Rc<Page>>>,
    /// Of these, the last run, which may get longer.
    run: RefCell<Vec<(PhysicalBlock, Rc<Page>)>>,
    under_way: Cell<usize>,
    done: Notify,
    failed: Cell<Option<IoError>>,
    /// A block that was freed and was not in use.
    contradicted: Cell<Option<PhysicalBlock>>,
    /// Pages written since the drive was opened.
    pub written: Cell<u64>,
    /// Pages that there are more, or fewer, for the checkpoint.
    change: Cell<i64>,
    /// Whose map the checkpoint is at.
    pub at_work_for: Cell<CatalogueHandle>,
    /// Pages that it gave up, and whose map it was at.
    lost: RefCell<Vec<LostPage>>,
    /// Places that were read again to no avail: not every reader of what they lead to waits for that.
    damaged: RefCell<BTreeMap<PhysicalBlock, (u64, DamageKind)>>,
    /// Pages and bitmaps that did not match what was written.
    pub mismatches: Cell<u64>,
}

/// A page that was damaged, and given up.
#[derive(Clone, Copy, Debug)]
pub struct LostPage {
    /// Whose map the checkpoint was at.
    pub handle: CatalogueHandle,
    /// Which page.
    pub what: PageId,
    /// How it was damaged.
    pub error: MapError,
}

impl std::fmt::Debug for DrivePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DrivePages")
            .field("drive", &self.drive)
            .finish_non_exhaustive()
    }
}

impl DrivePages {
    /// Pages of a drive; `None` if there are not enough buffers.
    pub fn new(
        handle: &Handle,
        device: &Device,
        drive: DriveId,
        space: &Rc<RefCell<Space>>,
        cache: &Rc<BlockCache>,
    ) -> Option<Self> {
        Some(Self {
            handle: handle.clone(),
            device: device.clone(),
            drive,
            space: space.clone(),
            cache: cache.clone(),
            reads: BufferSet::new(handle.buffers(), BLOCK_BYTES, READS_MAX)?,
            runs: BufferSet::new(handle.buffers(), RUN_BYTES, RUNS_MAX)?,
            checkpoint: Cell::new(CheckpointNumber(0)),
            unwritten: RefCell::default(),
            run: RefCell::default(),
            under_way: Cell::new(0),
            done: Notify::new(),
            failed: Cell::new(None),
            contradicted: Cell::new(None),
            written: Cell::new(0),
            change: Cell::new(0),
            at_work_for: Cell::new(CatalogueHandle(0)),
            lost: RefCell::default(),
            damaged: RefCell::default(),
            mismatches: Cell::new(0),
        })
    }

    /// A checkpoint begins.
    pub fn begin(&self, checkpoint: CheckpointNumber) {
        self.checkpoint.set(checkpoint);
        self.failed.set(None);
        self.change.set(0);
        self.lost.borrow_mut().clear();
    }

    /// Pages of maps and catalogue that there are after the checkpoint, if there were so many before it.
    pub fn count_after(&self, before: u64) -> u64 {
        before.saturating_add_signed(self.change.get())
    }

    /// Pages that the checkpoint gave up so far.
    pub fn lost(&self) -> Vec<LostPage> {
        self.lost.borrow().clone()
    }

    /// How many these are.
    pub fn lost_count(&self) -> usize {
        self.lost.borrow().len()
    }

    /// Waits until every page is on the drive (in its cache, perhaps).
    ///
    /// # Errors
    /// What a write failed with; a page of the map that led to a block that is not in use.
    pub async fn settle(self: &Rc<Self>) -> Result<(), MapError> {
        self.send_run().await;
        while self.under_way.get() > 0 {
            self.done.notified().await;
        }
        if let Some(at) = self.contradicted.get() {
            return Err(MapError::Contradiction { at });
        }
        self.failed.get().map_or(Ok(()), |e| Err(MapError::Io(e)))
    }

    /// Loads the bitmap of a group. One that is damaged takes its group out of use.
    ///
    /// # Errors
    /// [`MapError`]: it contradicts the group table or the map, or the drive fails.
    pub async fn load_group(&self, group: GroupId) -> Result<(), MapError> {
        loop {
            let place = self.space.borrow().bitmap_place(group);
            let bitmap = match place {
                Some((at, crc)) => Some(self.read_raw(at, crc).await),
                None => None,
            };
            // Somebody else may have loaded it meanwhile, and a checkpoint written it to its other copy, and this one again.
            if !self.space.borrow().is_loaded(group)
                && self.space.borrow().bitmap_place(group) != place
            {
                continue;
            }
            let bitmap = match bitmap {
                Some(Err(_)) if self.space.borrow().is_loaded(group) => None,
                Some(Err(e)) if e.is_damage() => {
                    tracing::error!(drive = %self.drive, group = group.0, "a bitmap is damaged, and its group is not used any more: {e}");
                    self.space.borrow_mut().unreadable(group);
                    return Ok(());
                }
                Some(read) => Some(read?),
                None => None,
            };
            let bitmap = bitmap.as_ref().map(|page| &page[..]);
            let loaded = self.space.borrow_mut().loaded(group, bitmap);
            return loaded.map_err(|e| {
                tracing::error!("{e}");
                let at = place.map_or(PhysicalBlock(0), |(at, _)| at);
                MapError::Contradiction { at }
            });
        }
    }

    /// Begins to write the run.
    async fn send_run(self: &Rc<Self>) {
        let run = self.run.take();
        let Some(&(first, _)) = run.first() else {
            return;
        };
        let mut buffer = self.runs.take().await;
        for (n, (_, page)) in run.iter().enumerate() {
            buffer[n * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&page[..]);
        }
        self.under_way.set(self.under_way.get() + 1);
        let this = self.clone();
        self.handle.spawn("store pages", async move {
            let len = run.len() * BLOCK_BYTES;
            let at = first.0 * BLOCK_BYTES as u64;
            let (back, result) = this.device.write(at, buffer.lend(), len, false).await;
            buffer.back(back);
            match result {
                Ok(()) => {
                    let mut unwritten = this.unwritten.borrow_mut();
                    for (block, page) in &run {
                        // Freed, used again and written again meanwhile: then it is another page that waits.
                        if unwritten.get(block).is_some_and(|p| Rc::ptr_eq(p, page)) {
                            unwritten.remove(block);
                        }
                    }
                }
                Err(e) => this.failed.set(Some(e)),
            }
            this.under_way.set(this.under_way.get() - 1);
            this.done.notify();
        });
    }

    /// The bytes of any metadata block that has no header (bitmaps), its CRC verified.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn read_raw(&self, at: PhysicalBlock, crc: Crc) -> Result<Rc<Page>, MapError> {
        match self.read_once(at, crc).await {
            Err(e) if e.is_damage() => self.read_again(at, crc, e).await,
            read => read,
        }
    }

    async fn read_again(
        &self,
        at: PhysicalBlock,
        crc: Crc,
        mut error: MapError,
    ) -> Result<Rc<Page>, MapError> {
        let known = self.damaged.borrow().contains_key(&at);
        for _ in 0..if known { 0 } else { READ_AGAIN } {
            self.handle.sleep(READ_AGAIN_AFTER).await;
            match self.read_once(at, crc).await {
                Err(e) if e.is_damage() => error = e,
                read => return read,
            }
        }
        match error {
            MapError::Checksum { .. } => self.mismatches.set(self.mismatches.get() + 1),
            MapError::Io(_) if !self.reads_at_all().await => {
                return Err(MapError::Io(IoError::Failed));
            }
            _ => {}
        }
        Err(error)
    }

    /// The index of a page that was found damaged, and how it was.
    pub fn damage_at(&self, at: PhysicalBlock) -> Option<(u64, DamageKind)> {
        self.damaged.borrow().get(&at).copied()
    }

    fn remember_damaged(&self, at: PhysicalBlock, what: PageId, error: &MapError) {
        let mut damaged = self.damaged.borrow_mut();
        if damaged.len() == DAMAGED_MAX {
            damaged.clear();
        }
        damaged.insert(at, (what.index, kind_of(error).1));
    }

    /// Whether a drive that could not read a block reads others: the superblock's copies, of which each can be missed.
    async fn reads_at_all(&self) -> bool {
        for copy in 0..COPIES {
            let mut buffer = self.reads.take().await;
            let place = (copy * COPY_BYTES) as u64;
            let (back, read) = self.device.read(place, buffer.lend(), BLOCK_BYTES).await;
            buffer.back(back);
            if read.is_ok() {
                return true;
            }
        }
        false
    }

    async fn read_once(&self, at: PhysicalBlock, crc: Crc) -> Result<Rc<Page>, MapError> {
        let mut buffer = self.reads.take().await;
        let place = at.0 * BLOCK_BYTES as u64;
        let (back, read) = self.device.read(place, buffer.lend(), BLOCK_BYTES).await;
        buffer.back(back);
        read.map_err(MapError::Io)?;
        let mut page = Box::new([0; BLOCK_BYTES]);
        page.copy_from_slice(&buffer[..BLOCK_BYTES]);
        let actual = Crc::of(&page[..]);
        if actual != crc {
            return Err(MapError::Checksum {
                at,
                expected: crc,
                actual,
            });
        }
        Ok(Rc::from(page))
    }

    /// Writes blocks of metadata at places of their own, and waits for them.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn write_raw(&self, at: PhysicalBlock, bytes: &Page) -> Result<(), IoError> {
        let mut buffer = self.runs.take().await;
        buffer[..BLOCK_BYTES].copy_from_slice(bytes);
        let place = at.0 * BLOCK_BYTES as u64;
        let (back, result) = self
            .device
            .write(place, buffer.lend(), BLOCK_BYTES, false)
            .await;
        buffer.back(back);
        self.written.set(self.written.get() + 1);
        result
    }
}

impl Pages for Rc<DrivePages> {
    async fn read(&self, at: PhysicalBlock, crc: Crc, what: PageId) -> Result<Rc<Page>, MapError> {
        if let Some(page) = self.cached(at) {
            return Ok(page);
        }
        if at == LOST_BLOCK {
            return Err(MapError::Lost);
        }
        // What it takes would make the state of every operation larger.
        let read = Box::pin(self.read_raw(at, crc)).await;
        let read = read.and_then(|page| match check_page(&page, &self.drive, what) {
            Ok(_) => Ok(page),
            Err(why) => Err(MapError::Page { at, why }),
        });
        match &read {
            Ok(page) => self.cache.put(at, page.clone()),
            Err(e) => self.remember_damaged(at, what, e),
        }
        read
    }

    fn cached(&self, at: PhysicalBlock) -> Option<Rc<Page>> {
        self.cache
            .get(at)
            .or_else(|| self.unwritten.borrow().get(&at).cloned())
    }

    async fn read_each(
        &self,
        wanted: &[(PhysicalBlock, Crc, PageId)],
    ) -> Vec<Result<Rc<Page>, MapError>> {
        let mut pages = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(READS_MAX) {
            let reads = part.iter().map(|&(at, crc, what)| self.read(at, crc, what));
            pages.extend(join_all(reads).await);
        }
        pages
    }

    fn give_up_page(&self, what: PageId, error: MapError) -> Result<(), MapError> {
        let mut lost = self.lost.borrow_mut();
        if !error.is_damage() || lost.len() == LOST_MAX {
            return Err(error);
        }
        let handle = self.at_work_for.get();
        lost.push(LostPage {
            handle,
            what,
            error,
        });
        Ok(())
    }

    async fn allocate(&self) -> Result<PhysicalBlock, MapError> {
        loop {
            let page = self.space.borrow_mut().allocate_page();
            match page {
                Ok(page) => {
                    self.change.set(self.change.get() + 1);
                    return Ok(page);
                }
                Err(NoSpace::Full) => return Err(MapError::NoSpace),
                Err(NoSpace::NotLoaded(group)) => self.load_group(group).await?,
            }
        }
    }

    async fn write(&self, at: PhysicalBlock, page: Rc<Page>) -> Result<(), MapError> {
        if let Some(e) = self.failed.get() {
            return Err(MapError::Io(e));
        }
        // A drive in memory has it at once.
        let place = at.0 * BLOCK_BYTES as u64;
        if let Some(stored) = self.device.store_now(place, &page[..]) {
            self.cache.put(at, page);
            self.written.set(self.written.get() + 1);
            return stored.map_err(MapError::Io);
        }
        let (follows, full) = {
            let run = self.run.borrow();
            let follows = run.last().is_none_or(|(last, _)| last.0 + 1 == at.0);
            (follows, run.len() * BLOCK_BYTES == RUN_BYTES)
        };
        if !follows || full {
            self.send_run().await;
        }
        self.damaged.borrow_mut().remove(&at);
        self.cache.put(at, page.clone());
        self.unwritten.borrow_mut().insert(at, page.clone());
        self.run.borrow_mut().push((at, page));
        self.written.set(self.written.get() + 1);
        Ok(())
    }

    fn merged(&self, block: PhysicalBlock) {
        self.space.borrow_mut().merged(block);
    }

    fn free(&self, block: PhysicalBlock) {
        if let Err(why) = self.space.borrow_mut().free_merged(block) {
            tracing::error!("the map contradicts the bitmaps: {why}");
            self.contradicted.set(Some(block));
        }
    }

    fn free_page(&self, block: PhysicalBlock) {
        self.change.set(self.change.get() - 1);
        self.free(block);
    }

    async fn breathe(&self) {
        self.handle.yield_now().await;
    }

    fn stamp(&self) -> PageStamp {
        PageStamp {
            drive: self.drive,
            checkpoint: self.checkpoint.get(),
        }
    }
}
