//! The allocator: which free blocks are handed out, and what a checkpoint writes.
//!
//! *Next fit*: allocation goes through one group from its start to its end, then takes the one with most free blocks, which was loaded ahead of
//! need. So writes that follow one another get blocks that do, and long runs are found where they are likely. Pages of a checkpoint come from chunks of
//! [`CHUNK_BLOCKS`], so that they can be written together though data is allocated between them.

use std::collections::BTreeMap;

use super::super::superblock::TableEntry;
use super::super::types::{CheckpointNumber, Crc, DriveId, PhysicalBlock};
use super::groups::Groups;
use super::table;
use super::{
    BitmapError, FreeError, GROUPS_OF_PAGE, GroupId, HoldError, LOADED_GROUPS, Layout, NoSpace,
};

/// Blocks that are set aside at once for a checkpoint's pages.
const CHUNK_BLOCKS: u32 = 64;
/// With fewer free blocks than this in loaded groups, any other group is wanted.
const FREE_LOADED_MIN: u64 = 2048;

/// Blocks that follow one another, in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: PhysicalBlock,
    /// How many, at least 1.
    pub blocks: u32,
}

/// Blocks set aside for pages: held, so that nobody else gets them.
#[derive(Clone, Copy)]
struct Chunk {
    group: GroupId,
    next: u32,
    end: u32,
}

/// Space of a drive. See the module for the order of calls.
pub struct Space {
    groups: Groups,
    drive: DriveId,
    /// As the superblock has it.
    table: Vec<TableEntry>,
    /// As the checkpoint under way leaves it; empty if none is writing.
    table_next: Vec<TableEntry>,
    /// Where allocation goes on.
    current: Option<GroupId>,
    cursor: u32,
    /// The group that was named last as one to load.
    wanted: GroupId,
    chunk: Option<Chunk>,
    reserve: u64,
    loaded_max: usize,
    /// Blocks of groups that are not loaded, to be freed.
    queue: BTreeMap<GroupId, Vec<u32>>,
    freed: Vec<PhysicalBlock>,
    writing: bool,
}

impl Space {
    pub(super) fn new(groups: Groups, drive: DriveId, table: Vec<TableEntry>) -> Self {
        Self {
            groups,
            drive,
            table,
            table_next: Vec::new(),
            current: None,
            cursor: 0,
            wanted: GroupId(0),
            chunk: None,
            reserve: 0,
            loaded_max: LOADED_GROUPS,
            queue: BTreeMap::new(),
            freed: Vec::new(),
            writing: false,
        }
    }

    // What there is.

    /// Size and areas of the drive; the superblock gets it with the next checkpoint.
    pub fn layout(&self) -> Layout {
        *self.groups.layout()
    }

    /// Free blocks, the reserve included: `usable_blocks = free + map_used + held + lost`.
    pub fn free(&self) -> u64 {
        self.groups.free() + self.chunk_blocks()
    }

    /// Blocks that a root reaches, or will with this checkpoint: pages and data.
    pub fn map_used(&self) -> u64 {
        self.groups.map()
    }

    /// Blocks that are in use, or not reusable yet, and not in the map.
    pub fn held(&self) -> u64 {
        self.groups.held() - self.chunk_blocks()
    }

    /// Free blocks of groups whose bitmap is damaged.
    pub fn lost(&self) -> u64 {
        self.groups.lost()
    }

    /// What [`Space::allocate`] leaves.
    pub fn reserve(&self) -> u64 {
        self.reserve
    }

    /// Sets what [`Space::allocate`] leaves.
    pub fn set_reserve(&mut self, blocks: u64) {
        self.reserve = blocks;
    }

    /// Sets how many loaded groups are kept without need.
    pub fn set_loaded_max(&mut self, groups: usize) {
        self.loaded_max = groups;
    }

    /// Whether a group's bitmap is in memory.
    pub fn is_loaded(&self, group: GroupId) -> bool {
        self.groups.is_loaded(group)
    }

    fn chunk_blocks(&self) -> u64 {
        self.chunk.map_or(0, |c| u64::from(c.end - c.next))
    }

    // Loading.

    /// A group that should be loaded so that allocation does not run dry; the same one until it is.
    pub fn wants(&mut self) -> Option<GroupId> {
        let best = self.groups.best_unloaded_class();
        let loaded = self.groups.best_loaded_class();
        let dry = self.groups.free_loaded() < FREE_LOADED_MIN;
        // In one that is clearly emptier than those here runs are longer.
        if best == 0 || best <= loaded && !dry {
            return None;
        }
        self.unloaded(best)
    }

    fn unloaded(&mut self, class: usize) -> Option<GroupId> {
        let found = self.groups.unloaded_of_class(class, self.wanted)?;
        self.wanted = found;
        Some(found)
    }

    /// Where the bitmap of a group is; `None`: there is none, all is free.
    pub fn bitmap_place(&self, group: GroupId) -> Option<(PhysicalBlock, Crc)> {
        let entry = self.groups.entry(group);
        let start = self.groups.layout().group_start(group);
        let place = PhysicalBlock(start.0 + u64::from(entry.copy));
        entry.in_use.then_some((place, entry.crc))
    }

    /// The bitmap of a group was read. Blocks that waited for it are freed. Nothing happens if it is loaded.
    ///
    /// # Errors
    /// [`BitmapError`].
    pub fn loaded(&mut self, group: GroupId, page: Option<&[u8]>) -> Result<(), BitmapError> {
        if !self.groups.is_loaded(group) && !self.groups.is_lost(group) {
            let loaded = self.groups.load(group, page);
            if loaded.is_err() {
                self.queue.remove(&group);
            }
            loaded?;
        }
        let mut done = Ok(());
        for bit in self.queue.remove(&group).unwrap_or_default() {
            if let Err(e) = self.unmerge(group, bit) {
                done = Err(e.into());
            }
        }
        done
    }

    /// The bitmap of a group cannot be read: nothing of it is allocated, and what is freed in it stays in use.
    pub fn unreadable(&mut self, group: GroupId) {
        if !self.groups.is_loaded(group) {
            self.groups.lose(group);
            self.queue.remove(&group);
        }
    }

    /// Groups to load before [`Space::begin_write`]: blocks of them were freed.
    pub fn unloaded_needed(&self) -> Vec<GroupId> {
        self.queue.keys().copied().collect()
    }

    /// A group that never had a bitmap is loaded without reading.
    fn load_unused(&mut self, group: GroupId) -> bool {
        let unused = !self.groups.entry(group).in_use && !self.groups.is_lost(group);
        if unused && !self.groups.is_loaded(group) {
            let loaded = self.groups.load(group, None);
            loaded.expect("there is nothing to be wrong");
        }
        unused
    }

    // Allocation.

    /// A run of at most `blocks`, held, which leaves the reserve. Shorter ones happen: ask again for the rest.
    ///
    /// # Errors
    /// [`NoSpace`].
    ///
    /// # Panics
    /// If `blocks` is 0.
    pub fn allocate(&mut self, blocks: u32) -> Result<Run, NoSpace> {
        let leave = self.reserve;
        #[cfg(planted)]
        let leave = {
            use crate::store::planted::{Bug, is};
            if is(Bug::ReserveIsUsed) { 0 } else { leave }
        };
        if self.free() < leave.saturating_add(blocks.into()) {
            return Err(NoSpace::Full);
        }
        self.take_run(blocks)
    }

    /// As [`Space::allocate`], for what may use the reserve. With fewer free blocks than asked for, it hands out those.
    ///
    /// # Errors
    /// [`NoSpace`].
    ///
    /// # Panics
    /// If `blocks` is 0.
    pub fn allocate_reserved(&mut self, blocks: u32) -> Result<Run, NoSpace> {
        self.take_run(blocks)
    }

    /// A block for a page of the checkpoint, in the map at once. It may use the reserve. Those of one checkpoint lie together.
    ///
    /// # Errors
    /// [`NoSpace`].
    ///
    /// # Panics
    /// Between [`Space::begin_write`] and [`Space::committed`].
    pub fn allocate_page(&mut self) -> Result<PhysicalBlock, NoSpace> {
        assert!(!self.writing);
        if self.chunk.is_none() {
            let run = self.take_run(CHUNK_BLOCKS)?;
            let (group, next) = self.place(run.first);
            let end = next + run.blocks;
            self.chunk = Some(Chunk { group, next, end });
        }
        let chunk = self.chunk.as_mut().expect("there is one now");
        let (group, bit) = (chunk.group, chunk.next);
        chunk.next += 1;
        if chunk.next == chunk.end {
            self.chunk = None;
        }
        self.groups.merge(group, bit);
        Ok(self.block(group, bit))
    }

    fn take_run(&mut self, blocks: u32) -> Result<Run, NoSpace> {
        assert!(blocks > 0);
        if self.groups.free() == 0 {
            // All that is left was set aside for pages.
            self.return_chunk();
        }
        let in_current = self.current.and_then(|g| self.find(g, self.cursor, blocks));
        let (group, first, blocks) = match in_current {
            Some(found) => found,
            None => {
                let group = self.next_group()?;
                let found = self.find(group, 0, blocks);
                found.expect("a group was chosen that has free blocks")
            }
        };
        self.groups.take(group, first, blocks);
        self.current = Some(group);
        self.cursor = first + blocks;
        Ok(Run {
            first: self.block(group, first),
            blocks,
        })
    }

    fn find(&self, group: GroupId, from: u32, blocks: u32) -> Option<(GroupId, u32, u32)> {
        let (first, blocks) = self.groups.find(group, from, blocks)?;
        Some((group, first, blocks))
    }

    /// The group to go on in: loaded, with free blocks.
    fn next_group(&mut self) -> Result<GroupId, NoSpace> {
        let best = self.groups.best_unloaded_class();
        if let Some(group) = self.groups.roomiest_loaded() {
            if best > self.groups.best_loaded_class()
                && let Some(unused) = self.unloaded(best)
                && self.load_unused(unused)
            {
                return Ok(unused);
            }
            return Ok(group);
        }
        if best == 0 {
            return Err(NoSpace::Full);
        }
        let group = self.unloaded(best).expect("there is one of its class");
        if self.load_unused(group) {
            return Ok(group);
        }
        Err(NoSpace::NotLoaded(group))
    }

    fn return_chunk(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            for bit in chunk.next..chunk.end {
                self.groups.release(chunk.group, bit);
            }
        }
    }

    // What becomes of blocks.

    /// Opening: a replayed record refers to a free block.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold(&mut self, block: PhysicalBlock) -> Result<(), HoldError> {
        let place = self.groups.layout().place(block);
        let (group, bit) = place.ok_or(HoldError::OutOfRange { block })?;
        if self.groups.is_lost(group) {
            return Err(HoldError::Lost { block, group });
        }
        if !self.groups.is_loaded(group) && !self.load_unused(group) {
            return Err(HoldError::NotLoaded(group));
        }
        if !self.groups.is_free(group, bit) {
            return Err(HoldError::InUse { block });
        }
        self.groups.take(group, bit, 1);
        Ok(())
    }

    /// A held block is free, and can be reused at once: after the FLUSH that S1 asks for, and without a reader.
    ///
    /// # Panics
    /// If it is not held.
    pub fn release(&mut self, block: PhysicalBlock) {
        let (group, bit) = self.place(block);
        self.groups.release(group, bit);
        if self.groups.loaded_len() > self.loaded_max {
            self.unload(group);
        }
    }

    /// Checkpoint: a held block is reached from a root.
    ///
    /// # Panics
    /// If it is not held, or between [`Space::begin_write`] and [`Space::committed`].
    pub fn merged(&mut self, block: PhysicalBlock) {
        assert!(!self.writing);
        let (group, bit) = self.place(block);
        self.groups.merge(group, bit);
    }

    /// Checkpoint: no root that it writes reaches the block. It is held, and one of the next [`Space::take_freed`]; if its group is not
    /// loaded, as soon as it is.
    ///
    /// # Errors
    /// [`FreeError`]: the drive contradicts itself.
    ///
    /// # Panics
    /// Between [`Space::begin_write`] and [`Space::committed`].
    pub fn free_merged(&mut self, block: PhysicalBlock) -> Result<(), FreeError> {
        assert!(!self.writing);
        let place = self.groups.layout().place(block);
        let (group, bit) = place.ok_or(FreeError::OutOfRange { block })?;
        if self.groups.is_loaded(group) {
            return self.unmerge(group, bit);
        }
        if !self.groups.entry(group).in_use {
            return Err(FreeError::NotInUse { block });
        }
        if !self.groups.is_lost(group) {
            self.queue.entry(group).or_default().push(bit);
        }
        Ok(())
    }

    fn unmerge(&mut self, group: GroupId, bit: u32) -> Result<(), FreeError> {
        let block = self.block(group, bit);
        if !self.groups.unmerge(group, bit) {
            return Err(FreeError::NotInUse { block });
        }
        self.freed.push(block);
        Ok(())
    }

    /// What [`Space::free_merged`] freed since the last call. Once the checkpoint is committed and no reader from before is left, each is to
    /// be released.
    pub fn take_freed(&mut self) -> Vec<PhysicalBlock> {
        std::mem::take(&mut self.freed)
    }

    // The checkpoint's end.

    /// The map's bits are final: the groups whose bitmap must be written. From now until [`Space::committed`] blocks are only held and
    /// released.
    ///
    /// # Panics
    /// If groups of [`Space::unloaded_needed`] were not loaded, or it was called already.
    pub fn begin_write(&mut self) -> Vec<GroupId> {
        assert!(self.queue.is_empty());
        assert!(!self.writing);
        self.return_chunk();
        self.writing = true;
        self.table_next = self.table.clone();
        self.groups.dirty().iter().copied().collect()
    }

    /// Writes the bitmap of a group into `page`. The answer is where it belongs: the copy that is not current.
    ///
    /// # Panics
    /// If the group is none of [`Space::begin_write`], or `page` is not a page long.
    pub fn bitmap_to_write(&mut self, group: GroupId, page: &mut [u8]) -> PhysicalBlock {
        assert!(self.writing);
        self.groups.encode(group, page)
    }

    /// The pages of the group table that must be written, once all bitmaps were encoded.
    ///
    /// # Panics
    /// Outside of a checkpoint's end.
    pub fn table_pages_to_write(&self) -> Vec<u32> {
        assert!(self.writing);
        let pages = self.groups.dirty().iter().map(|g| g.0 / GROUPS_OF_PAGE);
        let mut pages: Vec<u32> = pages.collect();
        pages.dedup();
        pages
    }

    /// Writes a page of the group table into `into`. The answer is where it belongs: the copy that is not current.
    ///
    /// # Panics
    /// If bitmaps were not encoded, or `into` is not a page long.
    pub fn table_page_to_write(
        &mut self,
        page: u32,
        checkpoint: CheckpointNumber,
        into: &mut [u8],
    ) -> PhysicalBlock {
        assert!(self.writing);
        let groups = table::groups_of(self.groups.layout(), page).map(GroupId);
        let entries = groups.map(|g| self.groups.next_entry(g));
        table::encode(into, page, checkpoint, self.drive, entries);
        let copy = match self.table[page as usize] {
            TableEntry { in_use: false, .. } => 0,
            TableEntry { copy, .. } => 1 - copy,
        };
        self.table_next[page as usize] = TableEntry {
            crc: Crc::of(into),
            copy,
            in_use: true,
        };
        self.groups.layout().table_page(page, copy)
    }

    /// The table for the superblock, once all pages were encoded; outside of a checkpoint, as it is.
    pub fn table_entries(&self) -> Vec<TableEntry> {
        if self.writing {
            self.table_next.clone()
        } else {
            self.table.clone()
        }
    }

    /// Free blocks for the superblock: all that are not in the map.
    pub fn free_after(&self) -> u64 {
        self.groups.layout().usable_blocks() - self.groups.map()
    }

    /// The superblock is committed: what was encoded is what the drive has.
    ///
    /// # Panics
    /// If something was not encoded.
    pub fn committed(&mut self) {
        assert!(self.writing);
        self.groups.committed();
        self.table = std::mem::take(&mut self.table_next);
        self.writing = false;
        let surplus = self.groups.loaded_len().saturating_sub(self.loaded_max);
        if surplus > 0 {
            for group in self.groups.unloadable().into_iter().take(surplus) {
                self.unload(group);
            }
        }
    }

    fn unload(&mut self, group: GroupId) {
        if self.current != Some(group) && self.groups.can_unload(group) {
            self.groups.unload(group);
        }
    }

    /// The drive has become larger. The superblock gets the new layout with the next checkpoint.
    ///
    /// # Errors
    /// The last group, which was short, must be loaded before.
    ///
    /// # Panics
    /// If it has become smaller, or between [`Space::begin_write`] and [`Space::committed`].
    pub fn grow(&mut self, layout: Layout) -> Result<(), GroupId> {
        assert!(!self.writing);
        self.groups.grow(layout)
    }

    fn place(&self, block: PhysicalBlock) -> (GroupId, u32) {
        let place = self.groups.layout().place(block);
        place.expect("a block that was allocated is in a group")
    }

    fn block(&self, group: GroupId, bit: u32) -> PhysicalBlock {
        PhysicalBlock(self.groups.layout().group_start(group).0 + u64::from(bit))
    }

    /// Counts everything again.
    ///
    /// # Panics
    /// If something contradicts something.
    pub fn check(&self) {
        self.groups.check();
        let held = self.groups.held();
        assert!(self.freed.len() as u64 + self.chunk_blocks() <= held);
        for (group, bits) in &self.queue {
            assert!(!self.groups.is_loaded(*group));
            assert!(!bits.is_empty());
        }
        if let Some(current) = self.current {
            assert!(self.groups.is_loaded(current));
        }
    }
}
