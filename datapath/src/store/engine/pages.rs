//! How the map reaches the drive: pages read through the cache, and written in runs by a checkpoint.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::group::{GroupId, NoSpace, Space};
use super::super::map::{MapError, Page, PageId, PageStamp, Pages, check_page};
use super::super::types::{BLOCK_BYTES, CheckpointNumber, Crc, DriveId, PhysicalBlock};
use super::buffers::BufferSet;
use super::cache::BlockCache;
use super::join::join_all;
use crate::device::{Device, IoError};
use crate::reactor::{Handle, Notify};

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
        })
    }

    /// A checkpoint begins.
    pub fn begin(&self, checkpoint: CheckpointNumber) {
        self.checkpoint.set(checkpoint);
        self.failed.set(None);
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

    /// Loads the bitmap of a group.
    ///
    /// # Errors
    /// [`MapError`]: it is not what was written.
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
        let page = self.read_raw(at, crc).await?;
        check_page(&page, &self.drive, what).map_err(|why| MapError::Page { at, why })?;
        self.cache.put(at, page.clone());
        Ok(page)
    }

    fn cached(&self, at: PhysicalBlock) -> Option<Rc<Page>> {
        self.cache
            .get(at)
            .or_else(|| self.unwritten.borrow().get(&at).cloned())
    }

    async fn read_many(
        &self,
        wanted: &[(PhysicalBlock, Crc, PageId)],
    ) -> Result<Vec<Rc<Page>>, MapError> {
        let mut pages = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(READS_MAX) {
            let reads = part.iter().map(|&(at, crc, what)| self.read(at, crc, what));
            for page in join_all(reads).await {
                pages.push(page?);
            }
        }
        Ok(pages)
    }

    async fn allocate(&self) -> Result<PhysicalBlock, MapError> {
        loop {
            let page = self.space.borrow_mut().allocate_page();
            match page {
                Ok(page) => return Ok(page),
                Err(NoSpace::Full) => return Err(MapError::NoSpace),
                Err(NoSpace::NotLoaded(group)) => self.load_group(group).await?,
            }
        }
    }

    async fn write(&self, at: PhysicalBlock, page: Rc<Page>) -> Result<(), MapError> {
        if let Some(e) = self.failed.get() {
            return Err(MapError::Io(e));
        }
        let (follows, full) = {
            let run = self.run.borrow();
            let follows = run.last().is_none_or(|(last, _)| last.0 + 1 == at.0);
            (follows, run.len() * BLOCK_BYTES == RUN_BYTES)
        };
        if !follows || full {
            self.send_run().await;
        }
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
