//! The groups of a drive: which blocks are in use, exactly, and which bitmaps are in memory.
//!
//! A loaded group has two bitmaps. `map`: reached from a root, as the next checkpoint will write it. `held`: allocated and not in the
//! map, or freed and not reusable yet. No block is in both. A block is free if it is in none, so
//! `usable = free + map + held + lost` holds at any time; `lost` are those of groups whose bitmap could not be read.

use std::collections::BTreeSet;

use super::super::types::{BLOCK_BYTES, Crc, PhysicalBlock};
use super::bits::{Bits, next_clear, next_set};
use super::table::GroupEntry;
use super::{BITMAP_BLOCKS, BitmapError, GROUP_BLOCKS, GroupId, Layout};

/// Runs that a search looks at before it takes the longest of them: bounds it in a group whose free blocks are scattered.
const RUNS_EXAMINED: u32 = 16;
/// Classes of groups by free blocks: 0 is none, then one for each 4096.
pub const CLASSES: usize = 9;

/// The class of a group with this many free blocks.
pub fn class(free: u32) -> usize {
    if free == 0 {
        return 0;
    }
    1 + free as usize / (GROUP_BLOCKS as usize / (CLASSES - 1))
}

/// What is in memory of a loaded group.
struct Bitmaps {
    map: Bits,
    held: Bits,
    held_blocks: u32,
    /// `map` is not what the last checkpoint wrote.
    dirty: bool,
    /// As this checkpoint wrote it.
    next: Option<GroupEntry>,
}

/// A group.
struct Group {
    /// As of the last checkpoint.
    entry: GroupEntry,
    free: u16,
    /// Its bitmap could not be read: nothing of it is allocated.
    lost: bool,
    loaded: Option<Box<Bitmaps>>,
}

/// All groups of a drive.
pub struct Groups {
    layout: Layout,
    groups: Vec<Group>,
    loaded: BTreeSet<GroupId>,
    dirty: BTreeSet<GroupId>,
    /// Loaded groups of each class.
    loaded_classes: [u32; CLASSES],
    /// Groups of each class that are neither loaded nor lost.
    unloaded_classes: [u32; CLASSES],
    free: u64,
    /// Free blocks of loaded groups.
    free_loaded: u64,
    map: u64,
    held: u64,
    lost: u64,
}

/// All but the blocks that can hold something is in use.
fn unused_map(blocks: u32) -> Bits {
    let mut map = Bits::CLEAR;
    map.set_range(0, BITMAP_BLOCKS);
    map.set_range(blocks, GROUP_BLOCKS);
    map
}

impl Groups {
    /// As the group table says.
    pub fn new(layout: Layout, entries: &[GroupEntry]) -> Self {
        assert_eq!(entries.len(), layout.groups() as usize);
        let mut this = Self {
            layout,
            groups: Vec::with_capacity(entries.len()),
            loaded: BTreeSet::new(),
            dirty: BTreeSet::new(),
            loaded_classes: [0; CLASSES],
            unloaded_classes: [0; CLASSES],
            free: 0,
            free_loaded: 0,
            map: 0,
            held: 0,
            lost: 0,
        };
        for entry in entries {
            this.push(*entry);
        }
        this
    }

    fn push(&mut self, entry: GroupEntry) {
        let usable = self.usable(GroupId(self.groups.len() as u32));
        let free = if entry.in_use {
            u32::from(entry.free)
        } else {
            usable
        };
        self.free += u64::from(free);
        self.map += u64::from(usable - free);
        self.unloaded_classes[class(free)] += 1;
        self.groups.push(Group {
            entry,
            free: free as u16,
            lost: false,
            loaded: None,
        });
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn usable(&self, group: GroupId) -> u32 {
        self.layout.group_blocks(group) - BITMAP_BLOCKS
    }

    /// Free blocks of all groups.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Free blocks of loaded groups.
    pub fn free_loaded(&self) -> u64 {
        self.free_loaded
    }

    pub fn map(&self) -> u64 {
        self.map
    }

    pub fn held(&self) -> u64 {
        self.held
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Groups that a checkpoint must write.
    pub fn dirty(&self) -> &BTreeSet<GroupId> {
        &self.dirty
    }

    pub fn loaded_len(&self) -> usize {
        self.loaded.len()
    }

    pub fn is_loaded(&self, group: GroupId) -> bool {
        self.group(group).loaded.is_some()
    }

    pub fn is_lost(&self, group: GroupId) -> bool {
        self.group(group).lost
    }

    pub fn is_dirty(&self, group: GroupId) -> bool {
        self.group(group).loaded.as_ref().is_some_and(|b| b.dirty)
    }

    /// As of the last checkpoint.
    pub fn entry(&self, group: GroupId) -> GroupEntry {
        self.group(group).entry
    }

    /// As the checkpoint under way leaves it.
    ///
    /// # Panics
    /// If its bitmap changed and was not encoded.
    pub fn next_entry(&self, group: GroupId) -> GroupEntry {
        let group = self.group(group);
        match &group.loaded {
            Some(b) if b.dirty => b.next.expect("bitmaps are written before the table"),
            _ => group.entry,
        }
    }

    /// Highest class of a loaded group.
    pub fn best_loaded_class(&self) -> usize {
        self.loaded_classes
            .iter()
            .rposition(|n| *n > 0)
            .unwrap_or(0)
    }

    /// Highest class of a group that could be loaded.
    pub fn best_unloaded_class(&self) -> usize {
        self.unloaded_classes
            .iter()
            .rposition(|n| *n > 0)
            .unwrap_or(0)
    }

    /// The loaded group with most free blocks, if any has one.
    pub fn roomiest_loaded(&self) -> Option<GroupId> {
        let free = |g: &&GroupId| self.group(**g).free;
        // The first of equals, so that a drive is filled from its start.
        let best = self.loaded.iter().rev().max_by_key(free)?;
        (self.group(*best).free > 0).then_some(*best)
    }

    /// A group of this class that is neither loaded nor lost, searched from `from` on.
    pub fn unloaded_of_class(&self, wanted: usize, from: GroupId) -> Option<GroupId> {
        if self.unloaded_classes[wanted] == 0 {
            return None;
        }
        let fits = |n: &usize| {
            let g = &self.groups[*n];
            g.loaded.is_none() && !g.lost && class(g.free.into()) == wanted
        };
        let from = (from.0 as usize).min(self.groups.len());
        let found = (from..self.groups.len()).chain(0..from).find(fits);
        found.map(|n| GroupId(n as u32))
    }

    /// Takes a group's bitmap into memory; `None` for one that was never used.
    ///
    /// # Errors
    /// [`BitmapError`]: the group is lost.
    pub fn load(&mut self, id: GroupId, page: Option<&[u8]>) -> Result<(), BitmapError> {
        let group = self.group(id);
        assert!(group.loaded.is_none());
        assert!(!group.lost);
        assert_eq!(group.entry.in_use, page.is_some());
        let map = match page {
            None => unused_map(self.layout.group_blocks(id)),
            Some(page) => match self.decode(id, page) {
                Ok(map) => map,
                Err(e) => {
                    self.lose(id);
                    return Err(e);
                }
            },
        };
        let free = u32::from(self.group(id).free);
        self.unloaded_classes[class(free)] -= 1;
        self.loaded_classes[class(free)] += 1;
        self.free_loaded += u64::from(free);
        self.loaded.insert(id);
        self.groups[id.0 as usize].loaded = Some(Box::new(Bitmaps {
            map,
            held: Bits::CLEAR,
            held_blocks: 0,
            dirty: false,
            next: None,
        }));
        Ok(())
    }

    fn decode(&self, id: GroupId, page: &[u8]) -> Result<Bits, BitmapError> {
        let entry = self.entry(id);
        let actual = Crc::of(page);
        if actual != entry.crc {
            return Err(BitmapError::Checksum {
                group: id,
                expected: entry.crc,
                actual,
            });
        }
        let map = Bits::decode(page);
        let blocks = self.layout.group_blocks(id);
        let fixed = map.count(0, BITMAP_BLOCKS) + map.count(blocks, GROUP_BLOCKS);
        let free = blocks - BITMAP_BLOCKS - map.count(BITMAP_BLOCKS, blocks);
        if fixed != BITMAP_BLOCKS + GROUP_BLOCKS - blocks || free != u32::from(entry.free) {
            return Err(BitmapError::Bits { group: id });
        }
        Ok(map)
    }

    /// Gives up a group that is not loaded: its free blocks are not allocated.
    pub fn lose(&mut self, id: GroupId) {
        let group = &mut self.groups[id.0 as usize];
        assert!(group.loaded.is_none());
        let free = u32::from(std::mem::take(&mut group.free));
        if std::mem::replace(&mut group.lost, true) {
            return;
        }
        self.unloaded_classes[class(free)] -= 1;
        self.free -= u64::from(free);
        self.lost += u64::from(free);
    }

    /// Whether the bitmaps of a loaded group say nothing that the drive does not.
    pub fn can_unload(&self, id: GroupId) -> bool {
        let bitmaps = self.group(id).loaded.as_ref();
        bitmaps.is_some_and(|b| !b.dirty && b.held_blocks == 0)
    }

    /// Gives back the memory of a group.
    pub fn unload(&mut self, id: GroupId) {
        assert!(self.can_unload(id));
        let group = &mut self.groups[id.0 as usize];
        group.loaded = None;
        let free = u32::from(group.free);
        self.loaded_classes[class(free)] -= 1;
        self.unloaded_classes[class(free)] += 1;
        self.free_loaded -= u64::from(free);
        self.loaded.remove(&id);
    }

    /// Loaded groups that could be unloaded, those with fewest free blocks first.
    pub fn unloadable(&self) -> Vec<GroupId> {
        let clean = self.loaded.iter().copied().filter(|g| self.can_unload(*g));
        let mut clean: Vec<GroupId> = clean.collect();
        clean.sort_by_key(|g| self.group(*g).free);
        clean
    }

    /// A run of up to `blocks` free ones at or behind `from`: the first that is long enough, or the longest of the next few.
    pub fn find(&self, id: GroupId, from: u32, blocks: u32) -> Option<(u32, u32)> {
        let b = self.bitmaps(id);
        let mut best: Option<(u32, u32)> = None;
        let mut at = from;
        for _ in 0..RUNS_EXAMINED {
            let Some(first) = next_clear(&b.map, &b.held, at) else {
                break;
            };
            let limit = first.saturating_add(blocks).min(GROUP_BLOCKS);
            let used = next_set(&b.map, &b.held, first + 1, limit);
            let run = used - first;
            if best.is_none_or(|(_, longest)| longest < run) {
                best = Some((first, run));
            }
            if run == blocks {
                break;
            }
            at = used;
        }
        best
    }

    /// Free blocks become held.
    pub fn take(&mut self, id: GroupId, first: u32, blocks: u32) {
        let b = self.bitmaps_mut(id);
        debug_assert_eq!(b.map.count(first, first + blocks), 0);
        debug_assert_eq!(b.held.count(first, first + blocks), 0);
        if blocks == 1 {
            b.held.set(first);
        } else {
            b.held.set_range(first, first + blocks);
        }
        b.held_blocks += blocks;
        self.held += u64::from(blocks);
        self.add_free(id, -i64::from(blocks));
    }

    /// A held block becomes free.
    pub fn release(&mut self, id: GroupId, bit: u32) {
        let b = self.bitmaps_mut(id);
        assert!(b.held.get(bit), "only a held block can be released");
        b.held.clear(bit);
        b.held_blocks -= 1;
        self.held -= 1;
        self.add_free(id, 1);
    }

    /// A held block is reached from a root.
    pub fn merge(&mut self, id: GroupId, bit: u32) {
        let b = self.bitmaps_mut(id);
        assert!(b.held.get(bit), "only a held block can get into the map");
        b.held.clear(bit);
        b.map.set(bit);
        b.held_blocks -= 1;
        self.held -= 1;
        self.map += 1;
        self.set_dirty(id);
    }

    /// A block is no longer reached from a root, and held. False: it was not in the map.
    pub fn unmerge(&mut self, id: GroupId, bit: u32) -> bool {
        let b = self.bitmaps_mut(id);
        if !b.map.get(bit) {
            return false;
        }
        b.map.clear(bit);
        b.held.set(bit);
        b.held_blocks += 1;
        self.held += 1;
        self.map -= 1;
        self.set_dirty(id);
        true
    }

    /// Whether a block of a loaded group is free.
    pub fn is_free(&self, id: GroupId, bit: u32) -> bool {
        let b = self.bitmaps(id);
        !b.map.get(bit) && !b.held.get(bit)
    }

    /// Writes a changed bitmap to `page`; the answer is the block that it belongs in, which the last checkpoint does not refer to.
    pub fn encode(&mut self, id: GroupId, page: &mut [u8]) -> PhysicalBlock {
        let start = self.layout.group_start(id);
        let usable = self.usable(id);
        let group = &mut self.groups[id.0 as usize];
        let b = group.loaded.as_mut().expect("changed groups are loaded");
        assert!(b.dirty);
        b.map.encode(page);
        let copy = match group.entry {
            GroupEntry { in_use: false, .. } => 0,
            GroupEntry { copy, .. } => 1 - copy,
        };
        b.next = Some(GroupEntry {
            crc: Crc::of(page),
            free: (u32::from(group.free) + b.held_blocks) as u16,
            copy,
            in_use: true,
        });
        assert!(u32::from(group.free) + b.held_blocks <= usable);
        PhysicalBlock(start.0 + u64::from(copy))
    }

    /// What was encoded is what the drive has.
    pub fn committed(&mut self) {
        for id in std::mem::take(&mut self.dirty) {
            let group = &mut self.groups[id.0 as usize];
            let b = group.loaded.as_mut().expect("changed groups are loaded");
            group.entry = b.next.take().expect("all bitmaps were written");
            b.dirty = false;
        }
    }

    /// The drive has become larger.
    ///
    /// # Errors
    /// The last group, which was short and has a bitmap, must be loaded before.
    pub fn grow(&mut self, layout: Layout) -> Result<(), GroupId> {
        let last = GroupId(self.layout.groups() - 1);
        let (before, now) = (self.layout.group_blocks(last), layout.group_blocks(last));
        assert!(before <= now);
        assert_eq!(self.layout.groups_start(), layout.groups_start());
        let group = &mut self.groups[last.0 as usize];
        let more = now - before;
        if more > 0 && group.entry.in_use && group.loaded.is_none() && !group.lost {
            return Err(last);
        }
        self.layout = layout;
        if group.lost {
            self.lost += u64::from(more);
        } else if more > 0 {
            let has_bitmap = group.entry.in_use;
            if let Some(b) = &mut group.loaded {
                b.map.clear_range(before, now);
            }
            if has_bitmap {
                self.set_dirty(last);
            }
            self.add_free(last, more.into());
        }
        for _ in self.groups.len()..layout.groups() as usize {
            self.push(GroupEntry::UNUSED);
        }
        Ok(())
    }

    fn add_free(&mut self, id: GroupId, more: i64) {
        let group = &mut self.groups[id.0 as usize];
        let before = u32::from(group.free);
        let now = (i64::from(before) + more) as u32;
        group.free = now as u16;
        let classes = if group.loaded.is_some() {
            self.free_loaded = self.free_loaded.wrapping_add_signed(more);
            &mut self.loaded_classes
        } else {
            &mut self.unloaded_classes
        };
        classes[class(before)] -= 1;
        classes[class(now)] += 1;
        self.free = self.free.wrapping_add_signed(more);
    }

    fn set_dirty(&mut self, id: GroupId) {
        let b = self.bitmaps_mut(id);
        if !std::mem::replace(&mut b.dirty, true) {
            self.dirty.insert(id);
        }
    }

    fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0 as usize]
    }

    fn bitmaps(&self, id: GroupId) -> &Bitmaps {
        let group = &self.groups[id.0 as usize];
        group.loaded.as_ref().expect("the group is loaded")
    }

    fn bitmaps_mut(&mut self, id: GroupId) -> &mut Bitmaps {
        let group = &mut self.groups[id.0 as usize];
        group.loaded.as_mut().expect("the group is loaded")
    }

    /// Counts everything again.
    ///
    /// # Panics
    /// If something contradicts something.
    pub fn check(&self) {
        assert_eq!(self.groups.len(), self.layout.groups() as usize);
        let (mut loaded_classes, mut unloaded_classes) = ([0; CLASSES], [0; CLASSES]);
        let (mut free, mut free_loaded, mut map, mut held) = (0, 0, 0, 0);
        for (n, group) in self.groups.iter().enumerate() {
            let id = GroupId(n as u32);
            let usable = self.usable(id);
            let group_free = u32::from(group.free);
            free += u64::from(group_free);
            assert_eq!(self.loaded.contains(&id), group.loaded.is_some());
            assert_eq!(self.dirty.contains(&id), self.is_dirty(id));
            let Some(b) = &group.loaded else {
                if group.lost {
                    map += u64::from(usable);
                    continue;
                }
                let written = match group.entry {
                    GroupEntry {
                        in_use: true, free, ..
                    } => u32::from(free),
                    _ => usable,
                };
                assert_eq!(group_free, written);
                unloaded_classes[class(group_free)] += 1;
                map += u64::from(usable - group_free);
                continue;
            };
            let counts = check_bitmaps(b, self.layout.group_blocks(id));
            assert_eq!(usable, group_free + counts.0 + counts.1);
            if !b.dirty {
                let reached = group.entry.in_use.then_some(u32::from(group.entry.free));
                assert_eq!(usable - counts.0, reached.unwrap_or(usable));
            }
            loaded_classes[class(group_free)] += 1;
            free_loaded += u64::from(group_free);
            map += u64::from(counts.0);
            held += u64::from(counts.1);
        }
        assert_eq!((free, free_loaded), (self.free, self.free_loaded));
        assert_eq!((map, held), (self.map + self.lost, self.held));
        assert_eq!(self.layout.usable_blocks(), free + held + map);
        assert_eq!(loaded_classes, self.loaded_classes);
        assert_eq!(unloaded_classes, self.unloaded_classes);
    }
}

/// Blocks in the map, and held ones.
fn check_bitmaps(b: &Bitmaps, blocks: u32) -> (u32, u32) {
    assert!(!b.map.meets(&b.held));
    assert_eq!(b.map.count(0, BITMAP_BLOCKS), BITMAP_BLOCKS);
    assert_eq!(b.map.count(blocks, GROUP_BLOCKS), GROUP_BLOCKS - blocks);
    let held = b.held.count(0, GROUP_BLOCKS);
    assert_eq!(held, b.held_blocks);
    (b.map.count(BITMAP_BLOCKS, blocks), held)
}

const _: () = assert!(GROUP_BLOCKS as usize / 8 == BLOCK_BYTES);
