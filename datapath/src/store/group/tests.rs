//! Space against sets of blocks: whatever happens in whatever order, no block that is in use is handed out, all counts are exact, and a crash
//! leaves what the last committed checkpoint wrote.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::superblock::TableEntry;
use super::super::types::{BLOCK_BYTES, CheckpointNumber, DriveId};
use super::*;

const DRIVE: DriveId = DriveId([7; 16]);
const RESERVE: u64 = 100;

/// What the drive has, as far as space is concerned.
#[derive(Clone)]
struct Disk {
    pages: BTreeMap<PhysicalBlock, Vec<u8>>,
    layout: Layout,
    table: Vec<TableEntry>,
    free: u64,
}

impl Disk {
    fn blank(bytes: u64) -> Self {
        let layout = Layout::for_drive(bytes).unwrap();
        Self {
            pages: BTreeMap::new(),
            layout,
            table: vec![TableEntry::UNUSED; layout.table_pages() as usize],
            free: layout.usable_blocks(),
        }
    }

    fn open(&self) -> Result<Space, TableError> {
        let mut opening = Opening::new(self.layout, DRIVE, &self.table);
        for (page, place) in opening.pages() {
            opening.page(page, &self.pages[&place])?;
        }
        opening.finish(self.free)
    }

    fn load(&self, space: &mut Space, group: GroupId) -> Result<(), BitmapError> {
        let place = space.bitmap_place(group);
        let page = place.map(|(block, _)| &self.pages[&block][..]);
        space.loaded(group, page)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u32),
    AllocateReserved(u32),
    Page,
    Release(Index),
    Merge(Index),
    MergeAll,
    Free(Index),
    FreeMany(Index, u16),
    Wants,
    Checkpoint { during: u32, commit: bool },
    Reopen { replayed: Vec<Index> },
    Grow(u64),
}

struct Trial {
    disk: Disk,
    space: Space,
    map: BTreeSet<PhysicalBlock>,
    held: BTreeSet<PhysicalBlock>,
    /// Held until the checkpoint that frees them is committed.
    freed: BTreeSet<PhysicalBlock>,
    /// The map of the last commit.
    stable: BTreeSet<PhysicalBlock>,
    checkpoint: u64,
}

fn pick(set: &BTreeSet<PhysicalBlock>, at: &Index) -> Option<PhysicalBlock> {
    if set.is_empty() {
        return None;
    }
    set.iter().nth(at.index(set.len())).copied()
}

impl Trial {
    fn new(bytes: u64) -> Self {
        let disk = Disk::blank(bytes);
        let mut this = Self {
            space: disk.open().unwrap(),
            disk,
            map: BTreeSet::new(),
            held: BTreeSet::new(),
            freed: BTreeSet::new(),
            stable: BTreeSet::new(),
            checkpoint: 0,
        };
        this.configure();
        this
    }

    fn configure(&mut self) {
        self.space.set_reserve(RESERVE);
        self.space.set_loaded_max(1);
    }

    fn taken(&self, block: PhysicalBlock) -> bool {
        self.map.contains(&block) || self.held.contains(&block) || self.freed.contains(&block)
    }

    fn free(&self) -> u64 {
        let used = self.map.len() + self.held.len() + self.freed.len();
        self.space.layout().usable_blocks() - used as u64
    }

    fn check(&self) {
        self.space.check();
        assert_eq!(self.space.free(), self.free());
        assert_eq!(self.space.map_used(), self.map.len() as u64 + self.queued());
        let held = (self.held.len() + self.freed.len()) as u64 - self.queued();
        assert_eq!(self.space.held(), held);
    }

    /// Blocks that are freed once their group is loaded.
    fn queued(&self) -> u64 {
        let needed = self.space.unloaded_needed();
        let waits = |b: &&PhysicalBlock| {
            let (group, _) = self.space.layout().place(**b).unwrap();
            needed.contains(&group)
        };
        self.freed.iter().filter(waits).count() as u64
    }

    /// Until it is loaded.
    fn with_load<T>(&mut self, mut f: impl FnMut(&mut Space) -> Result<T, NoSpace>) -> Option<T> {
        loop {
            match f(&mut self.space) {
                Ok(t) => return Some(t),
                Err(NoSpace::Full) => return None,
                Err(NoSpace::NotLoaded(group)) => self.disk.load(&mut self.space, group).unwrap(),
            }
        }
    }

    fn hand_out(&mut self, run: Run, most: u32) {
        assert!((1..=most).contains(&run.blocks));
        for n in 0..u64::from(run.blocks) {
            let block = PhysicalBlock(run.first.0 + n);
            assert!(!self.taken(block), "{block:?} is in use");
            assert!(self.space.layout().place(block).is_some());
            self.held.insert(block);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Allocate(blocks) => {
                let enough = self.free() >= RESERVE + u64::from(blocks);
                let run = self.with_load(|s| s.allocate(blocks));
                assert_eq!(run.is_some(), enough);
                if let Some(run) = run {
                    self.hand_out(run, blocks);
                }
            }
            Step::AllocateReserved(blocks) => {
                let enough = self.free() > 0;
                let run = self.with_load(|s| s.allocate_reserved(blocks));
                assert_eq!(run.is_some(), enough);
                if let Some(run) = run {
                    self.hand_out(run, blocks);
                }
            }
            Step::Page => {
                let enough = self.free() > 0;
                let page = self.with_load(Space::allocate_page);
                assert_eq!(page.is_some(), enough);
                if let Some(page) = page {
                    assert!(!self.taken(page));
                    self.map.insert(page);
                }
            }
            Step::Release(at) => {
                if let Some(block) = pick(&self.held, &at) {
                    self.space.release(block);
                    self.held.remove(&block);
                }
            }
            Step::Merge(at) => {
                if let Some(block) = pick(&self.held, &at) {
                    self.space.merged(block);
                    self.held.remove(&block);
                    self.map.insert(block);
                }
            }
            Step::MergeAll => {
                for block in std::mem::take(&mut self.held) {
                    self.space.merged(block);
                    self.map.insert(block);
                }
            }
            Step::Free(at) => self.free_one(&at),
            Step::FreeMany(at, n) => (0..n).for_each(|_| self.free_one(&at)),
            Step::Wants => {
                while let Some(group) = self.space.wants() {
                    assert!(!self.space.is_loaded(group));
                    self.disk.load(&mut self.space, group).unwrap();
                }
            }
            Step::Checkpoint { during, commit } => self.checkpoint(during, commit),
            Step::Reopen { replayed } => self.reopen(&replayed),
            Step::Grow(bytes) => {
                let layout = self.space.layout();
                let bytes = layout.blocks() * BLOCK_BYTES as u64 + bytes;
                let layout = layout.grown(bytes).unwrap();
                if let Err(group) = self.space.grow(layout) {
                    self.disk.load(&mut self.space, group).unwrap();
                    self.space.grow(layout).unwrap();
                }
            }
        }
    }

    fn free_one(&mut self, at: &Index) {
        if let Some(block) = pick(&self.map, at) {
            self.space.free_merged(block).unwrap();
            self.map.remove(&block);
            self.freed.insert(block);
        }
    }

    fn checkpoint(&mut self, during: u32, commit: bool) {
        for group in self.space.unloaded_needed() {
            self.disk.load(&mut self.space, group).unwrap();
        }
        self.checkpoint += 1;
        let mut disk = self.disk.clone();
        let mut page = vec![0xee; BLOCK_BYTES];
        for group in self.space.begin_write() {
            let place = self.space.bitmap_to_write(group, &mut page);
            disk.pages.insert(place, page.clone());
            // Writes go on meanwhile.
            if during > 0 {
                self.step(Step::Allocate(during));
                let all = self.held.clone();
                if let Some(block) = all.iter().nth(during as usize) {
                    self.space.release(*block);
                    self.held.remove(block);
                }
            }
        }
        let number = CheckpointNumber(self.checkpoint);
        for n in self.space.table_pages_to_write() {
            let place = self.space.table_page_to_write(n, number, &mut page);
            disk.pages.insert(place, page.clone());
        }
        // What was written does not touch what the superblock refers to.
        let old = Disk {
            pages: disk.pages.clone(),
            ..self.disk.clone()
        };
        self.verify(&old, &self.stable.clone());
        if !commit {
            self.disk = old;
            self.reopen(&[]);
            return;
        }
        disk.table = self.space.table_entries();
        disk.free = self.space.free_after();
        disk.layout = self.space.layout();
        self.disk = disk;
        self.stable = self.map.clone();
        self.verify(&self.disk, &self.stable);
        self.space.committed();
        assert_eq!(self.space.table_entries(), self.disk.table);
        for block in self.space.take_freed() {
            assert!(self.freed.remove(&block));
            self.space.release(block);
        }
        assert!(self.freed.is_empty());
    }

    /// A drive's bitmaps say what is in use.
    fn verify(&self, disk: &Disk, map: &BTreeSet<PhysicalBlock>) {
        let mut space = disk.open().unwrap();
        assert_eq!(space.map_used(), map.len() as u64);
        for n in 0..disk.layout.groups() {
            disk.load(&mut space, GroupId(n)).unwrap();
        }
        space.check();
        for block in map {
            assert_eq!(space.hold(*block), Err(HoldError::InUse { block: *block }));
        }
    }

    /// Power is lost: what is stable is there, and some of the rest in the journal.
    fn reopen(&mut self, replayed: &[Index]) {
        let all: BTreeSet<_> = self.held.union(&self.map).copied().collect();
        let kept = replayed.iter().filter_map(|at| pick(&all, at));
        self.held = kept.filter(|b| !self.stable.contains(b)).collect();
        let layout = self.disk.layout;
        self.held.retain(|b| layout.place(*b).is_some());
        self.map = self.stable.clone();
        self.freed.clear();
        self.space = self.disk.open().unwrap();
        self.configure();
        for block in self.held.clone() {
            if let Err(HoldError::NotLoaded(group)) = self.space.hold(block) {
                self.disk.load(&mut self.space, group).unwrap();
                self.space.hold(block).unwrap();
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let step = prop_oneof![
        6 => (1..2000u32).prop_map(Step::Allocate),
        4 => (1..20u32).prop_map(Step::Allocate),
        1 => (20_000..40_000u32).prop_map(Step::Allocate),
        1 => (1..5000u32).prop_map(Step::AllocateReserved),
        3 => Just(Step::Page),
        2 => index().prop_map(Step::Release),
        2 => index().prop_map(Step::Merge),
        3 => Just(Step::MergeAll),
        2 => index().prop_map(Step::Free),
        2 => (index(), 1..3000u16).prop_map(|(at, n)| Step::FreeMany(at, n)),
        2 => Just(Step::Wants),
        3 => (0..50u32, prop::bool::weighted(0.8)).prop_map(|(during, commit)| Step::Checkpoint { during, commit }),
        1 => prop::collection::vec(index(), 0..20).prop_map(|replayed| Step::Reopen { replayed }),
        1 => (0..(150_u64 << 20)).prop_map(Step::Grow),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(crate::cases::cases(16))]
    #[test]
    fn space_is_sets_of_blocks(bytes in prop_oneof![Just(16_u64 << 20), (16_u64 << 20)..(420 << 20)], steps in steps()) {
        let mut run = Trial::new(bytes);
        for step in steps {
            run.step(step);
            run.check();
        }
    }

    #[test]
    fn arbitrary_table_pages_never_panic(harm in prop::collection::vec((0usize..80, any::<u8>()), 1..10)) {
        let layout = Layout::for_drive(200 << 20).unwrap();
        let mut page = vec![0; BLOCK_BYTES];
        let used = GroupEntry { crc: Crc(5), free: 9, copy: 1, in_use: true };
        table::encode(&mut page, 0, CheckpointNumber(3), DRIVE, [GroupEntry::UNUSED, used].into_iter());
        prop_assert_eq!(table::decode(&page, 0, DRIVE, &layout), Ok(vec![GroupEntry::UNUSED, used]));
        for (at, value) in harm {
            page[at] = value;
        }
        if let Ok(entries) = table::decode(&page, 0, DRIVE, &layout) {
            let mut again = page.clone();
            table::encode(&mut again, 0, CheckpointNumber(3), DRIVE, entries.into_iter());
            prop_assert_eq!(&again[64..], &page[64..]);
        }
    }
}

#[test]
fn a_stream_gets_blocks_that_follow_one_another() {
    let mut run = Trial::new(300 << 20);
    let mut next = None;
    for _ in 0..100 {
        let got = run.space.allocate(256).unwrap();
        assert_eq!(got.blocks, 256);
        assert!(next.is_none_or(|n| got.first.0 == n));
        next = Some(got.first.0 + 256);
    }
}

#[test]
fn pages_lie_together_though_data_is_written_meanwhile() {
    let mut run = Trial::new(64 << 20);
    let mut pages = Vec::new();
    for _ in 0..64 {
        pages.push(run.space.allocate_page().unwrap().0);
        run.space.allocate(3).unwrap();
    }
    assert!(pages.is_sorted_by(|a, b| a + 1 == *b));
}

#[test]
fn a_long_run_is_preferred_to_the_next_hole() {
    let mut run = Trial::new(64 << 20);
    let first = run.space.allocate(4000).unwrap().first.0;
    for n in 0..20 {
        run.space.release(PhysicalBlock(first + 10 * n));
    }
    run.space.release(PhysicalBlock(first + 11));
    // Through the rest, and from the start again.
    while run
        .space
        .allocate(256)
        .is_ok_and(|r| r.first.0 > first + 200)
    {}
    let got = run.space.allocate_reserved(2).unwrap();
    assert_eq!(got.blocks, 2, "{got:?}");
}

#[test]
fn a_full_drive_keeps_its_reserve() {
    let mut run = Trial::new(16 << 20);
    let mut blocks = 0;
    while let Ok(got) = run.space.allocate(7) {
        blocks += u64::from(got.blocks);
    }
    assert!(run.space.free() < RESERVE + 7);
    while let Ok(got) = run.space.allocate_reserved(7) {
        blocks += u64::from(got.blocks);
    }
    assert_eq!(blocks, run.space.layout().usable_blocks());
    assert_eq!(run.space.allocate_page(), Err(NoSpace::Full));
}

#[test]
fn a_damaged_bitmap_costs_its_group_and_nothing_else() {
    let mut run = Trial::new(300 << 20);
    run.step(Step::Allocate(10));
    run.step(Step::MergeAll);
    run.step(Step::Checkpoint {
        during: 0,
        commit: true,
    });
    let before = run.space.free();
    let mut space = run.disk.open().unwrap();
    let (place, _) = space.bitmap_place(GroupId(0)).unwrap();
    run.disk.pages.get_mut(&place).unwrap()[100] ^= 1;
    let error = run.disk.load(&mut space, GroupId(0));
    assert!(matches!(error, Err(BitmapError::Checksum { .. })));
    space.check();
    assert_eq!(space.free() + space.lost(), before);
    let block = space.allocate(1).unwrap().first;
    assert_ne!(space.layout().place(block).unwrap().0, GroupId(0));
    let block = *run.map.iter().next().unwrap();
    space.free_merged(block).unwrap();
    assert!(space.unloaded_needed().is_empty());
    let error = space.hold(block);
    assert_eq!(
        error,
        Err(HoldError::Lost {
            block,
            group: GroupId(0)
        })
    );
}

#[test]
fn a_table_page_that_is_not_the_superblocks_is_refused() {
    let mut run = Trial::new(300 << 20);
    run.step(Step::Allocate(10));
    run.step(Step::MergeAll);
    run.step(Step::Checkpoint {
        during: 0,
        commit: true,
    });
    let opening = Opening::new(run.disk.layout, DRIVE, &run.disk.table);
    let (_, place) = opening.pages()[0];
    let good = run.disk.clone();
    run.disk.pages.get_mut(&place).unwrap()[64] ^= 1;
    assert!(matches!(
        run.disk.open().err(),
        Some(TableError::Checksum { page: 0, .. })
    ));
    run.disk = good;
    run.disk.free -= 1;
    assert!(matches!(
        run.disk.open().err(),
        Some(TableError::FreeBlocks { .. })
    ));
}

#[test]
fn what_is_not_in_use_cannot_be_freed() {
    let mut run = Trial::new(300 << 20);
    let block = run.space.allocate(1).unwrap().first;
    assert_eq!(
        run.space.free_merged(block),
        Err(FreeError::NotInUse { block })
    );
    let fixed = run.space.layout().groups_start();
    let error = Err(FreeError::OutOfRange { block: fixed });
    assert_eq!(run.space.free_merged(fixed), error);
}
