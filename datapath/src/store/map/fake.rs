//! Pages in memory, for tests: every block is accounted for, and what was freed cannot be read.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::super::types::{CheckpointNumber, Crc, DriveId, LaneBlock, PhysicalBlock};
use super::interior::{self, ChildEntry, FANOUT, LOST_BLOCK, child, leaves_of_page};
use super::page::{Page, PageId, PageStamp, check_page};
use super::{Changes, LeafEntry, LeafShape, MapError, Pages, Root};

/// Runs a future that only ever waits to let others run.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct FakePages {
    next: Cell<u64>,
    pages: RefCell<BTreeMap<u64, Rc<Page>>>,
    /// Allocated for pages, or merged.
    pub used: RefCell<BTreeSet<u64>>,
    /// Data that no map refers to yet.
    pub delta: RefCell<BTreeSet<u64>>,
    pub checkpoint: Cell<u64>,
    /// Pages read and written.
    pub reads: Cell<u64>,
    /// How often somebody waited for some of them.
    pub waits: Cell<u64>,
    pub writes: Cell<u64>,
    /// Blocks that may still be allocated for pages, if that is limited.
    pub room: Cell<Option<u64>>,
    /// Damaged pages that were given up.
    pub given_up: RefCell<Vec<PageId>>,
}

const DRIVE: DriveId = DriveId([5; 16]);

impl FakePages {
    fn new_block(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// A data block, as a write takes it.
    pub fn data(&self) -> PhysicalBlock {
        let block = self.new_block();
        self.delta.borrow_mut().insert(block);
        PhysicalBlock(block)
    }

    /// Damages a page.
    pub fn damage(&self, at: PhysicalBlock) {
        let mut pages = self.pages.borrow_mut();
        let page = pages.get_mut(&at.0).expect("there is a page");
        Rc::make_mut(page)[100] ^= 1;
    }

    /// Entries and pages that a root leads to from a leaf on, each with its last leaf; entries by block of the lane. Sums are compared on
    /// the way.
    pub fn reach(&self, root: &Root, from: u64) -> Reached {
        let mut reached = Reached::default();
        if !root.is_empty() {
            self.reach_page(root, root.depth, 0, &root.child, from, &mut reached);
        }
        reached
    }

    fn reach_page(
        &self,
        root: &Root,
        level: u8,
        index: u64,
        entry: &ChildEntry,
        from: u64,
        reached: &mut Reached,
    ) {
        let (first, last) = leaves_of_page(level, index);
        if last < from {
            return;
        }
        let page = run(self.read(entry.block, entry.crc, root.page(level, index)));
        let page = page.expect("the page is there");
        reached.pages.push((entry.block.0, last));
        let shape = root.shape();
        let beneath = if level == 0 {
            shape.beneath(&page, first)
        } else {
            interior::beneath(&page)
        };
        assert!(beneath.entries > 0);
        assert_eq!(beneath.used, entry.used);
        if level != root.depth {
            assert_eq!(beneath.highest, entry.highest);
            assert_eq!(beneath.summary, entry.summary);
        }
        if level == 0 {
            for slot in 0..shape.slots(first) {
                let below = shape.entry(&page, slot);
                if below != LeafEntry::ABSENT {
                    assert!(below.generation <= entry.generation);
                    let block = shape.block_of(first, slot).0;
                    reached.entries.insert(block, below);
                }
            }
            return;
        }
        for n in 0..FANOUT {
            let below = child(&page, n);
            if !below.is_none() {
                assert!(below.generation <= entry.generation);
                let index = index * FANOUT + n;
                self.reach_page(root, level - 1, index, &below, from, reached);
            }
        }
    }
}

/// What a root leads to.
#[derive(Debug, Default)]
pub struct Reached {
    /// Blocks of pages, with their last leaf.
    pub pages: Vec<(u64, u64)>,
    /// Entries by block of the lane.
    pub entries: BTreeMap<u64, LeafEntry>,
}

impl Reached {
    /// Every block of the drive.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        let data = self.entries.values().filter_map(|e| e.block());
        data.map(|b| b.0).chain(self.pages.iter().map(|p| p.0))
    }
}

impl FakePages {
    fn read_one(&self, at: PhysicalBlock, crc: Crc, what: PageId) -> Result<Rc<Page>, MapError> {
        if at == LOST_BLOCK {
            return Err(MapError::Lost);
        }
        self.reads.set(self.reads.get() + 1);
        let page = self.cached(at).expect("the page was not freed");
        let actual = Crc::of(&page[..]);
        if actual != crc {
            return Err(MapError::Checksum {
                at,
                expected: crc,
                actual,
            });
        }
        check_page(&page, &DRIVE, what).map_err(|why| MapError::Page { at, why })?;
        Ok(page)
    }
}

impl Pages for FakePages {
    async fn read(&self, at: PhysicalBlock, crc: Crc, what: PageId) -> Result<Rc<Page>, MapError> {
        self.waits.set(self.waits.get() + 1);
        self.read_one(at, crc, what)
    }

    fn cached(&self, at: PhysicalBlock) -> Option<Rc<Page>> {
        self.pages.borrow().get(&at.0).cloned()
    }

    async fn read_each(
        &self,
        wanted: &[(PhysicalBlock, Crc, PageId)],
    ) -> Vec<Result<Rc<Page>, MapError>> {
        let some = u64::from(!wanted.is_empty());
        self.waits.set(self.waits.get() + some);
        let read = |&(at, crc, what): &_| self.read_one(at, crc, what);
        wanted.iter().map(read).collect()
    }

    fn give_up_page(&self, what: PageId, error: MapError) -> Result<(), MapError> {
        if !error.is_damage() {
            return Err(error);
        }
        self.given_up.borrow_mut().push(what);
        Ok(())
    }

    async fn allocate(&self) -> Result<PhysicalBlock, MapError> {
        if let Some(room) = self.room.get() {
            self.room
                .set(Some(room.checked_sub(1).ok_or(MapError::NoSpace)?));
        }
        let block = self.new_block();
        self.used.borrow_mut().insert(block);
        Ok(PhysicalBlock(block))
    }

    async fn write(&self, at: PhysicalBlock, page: Rc<Page>) -> Result<(), MapError> {
        self.writes.set(self.writes.get() + 1);
        assert!(self.used.borrow().contains(&at.0));
        let before = self.pages.borrow_mut().insert(at.0, page);
        assert!(before.is_none(), "a page was overwritten");
        Ok(())
    }

    fn merged(&self, block: PhysicalBlock) {
        assert!(self.delta.borrow_mut().remove(&block.0), "merged twice");
        self.used.borrow_mut().insert(block.0);
    }

    fn free(&self, block: PhysicalBlock) {
        assert!(
            self.used.borrow_mut().remove(&block.0),
            "{block:?} freed twice"
        );
    }

    fn free_page(&self, block: PhysicalBlock) {
        self.free(block);
        let was_page = self.pages.borrow_mut().remove(&block.0).is_some();
        assert!(was_page, "{block:?} is no page");
    }

    async fn breathe(&self) {
        let mut waited = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut waited, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn stamp(&self) -> PageStamp {
        PageStamp {
            drive: DRIVE,
            checkpoint: CheckpointNumber(self.checkpoint.get()),
        }
    }
}

/// A layer.
#[derive(Debug)]
pub struct FakeLayer {
    pub shape: LeafShape,
    pub entries: BTreeMap<u64, LeafEntry>,
    /// By their ends.
    pub erased: BTreeMap<u64, u64>,
}

impl FakeLayer {
    /// An empty one.
    pub fn new(shape: LeafShape) -> Self {
        Self {
            shape,
            entries: BTreeMap::new(),
            erased: BTreeMap::new(),
        }
    }

    /// Erases what is there, and before.
    pub fn erase(&mut self, range: Range<u64>) -> Vec<LeafEntry> {
        let inside: Vec<u64> = self.entries.range(range.clone()).map(|e| *e.0).collect();
        let gone = inside.iter().filter_map(|b| self.entries.remove(b));
        let gone = gone.collect();
        let (mut start, mut end) = (range.start, range.end);
        let touching: Vec<u64> = self
            .erased
            .range(start..)
            .take_while(|(_, s)| **s <= end)
            .map(|(e, _)| *e)
            .collect();
        for there in touching {
            start = start.min(self.erased.remove(&there).expect("it is there"));
            end = end.max(there);
        }
        self.erased.insert(end, start);
        gone
    }
}

impl Changes for FakeLayer {
    fn next_leaf(&self, from: u64) -> Option<u64> {
        let first = self.shape.first_block(from);
        let next = self.entries.range(first..).next()?;
        Some(self.shape.leaf_of(LaneBlock(*next.0)).0)
    }

    fn entries(&self, leaf: u64, each: &mut dyn FnMut(u8, &LeafEntry)) {
        for (block, entry) in self.entries.range(self.shape.blocks(leaf, leaf)) {
            each(self.shape.leaf_of(LaneBlock(*block)).1, entry);
        }
    }

    fn next_erased(&self, from: LaneBlock) -> Option<Range<u64>> {
        let (end, start) = self.erased.range(from.0 + 1..).next()?;
        Some(*start..*end)
    }
}
