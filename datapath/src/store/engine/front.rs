//! The leaves that were looked at last, each found in one step: in front of the cache, which wants a step for every level of the map.
//!
//! A leaf is known by its lane, the version of the lane's root, and its number: a checkpoint gives lanes new roots, so what was known of the old
//! ones is of no use any more and is replaced in time. Pages that are held here count as cached: the store's budget has them.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::map::{LeafEntry, LeafShape, Page};
use super::super::types::{BLOCK_BYTES, CatalogueHandle};

/// Most leaves that are held.
const LEAVES_MAX: usize = 4096;

/// Which leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafKey {
    /// Of which lane.
    pub lane: CatalogueHandle,
    /// Of which of its roots.
    pub root: u32,
    /// Its number.
    pub leaf: u64,
}

#[derive(Debug)]
struct Slot {
    key: LeafKey,
    page: Rc<Page>,
}

/// See the module's text.
pub struct Front {
    /// A power of two of them.
    slots: RefCell<Vec<Option<Slot>>>,
}

impl Front {
    /// With room for a quarter of the pages that a budget has; at least one.
    pub fn new(cache_bytes: usize) -> Self {
        let leaves = (cache_bytes / 4 / BLOCK_BYTES).clamp(1, LEAVES_MAX);
        let leaves = 1 << leaves.ilog2();
        let slots = (0..leaves).map(|_| None).collect();
        Self {
            slots: RefCell::new(slots),
        }
    }

    /// Bytes of pages that it may hold.
    pub fn bytes(&self) -> usize {
        self.slots.borrow().len() * BLOCK_BYTES
    }

    /// Leaves of a lane are neighbours. The lanes of a volume, whose numbers follow each other, begin far apart: multiples of the golden
    /// section divide the slots evenly, however many there are.
    #[inline]
    fn place(key: LeafKey, slots: usize) -> usize {
        let turn = u64::from(key.lane.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let begin = ((u128::from(turn) * slots as u128) >> 64) as u64;
        begin.wrapping_add(key.leaf) as usize & (slots - 1)
    }

    /// An entry of a leaf that is held.
    #[inline]
    pub fn entry(&self, key: LeafKey, slot: u8) -> Option<LeafEntry> {
        let slots = self.slots.borrow();
        let held = slots[Self::place(key, slots.len())].as_ref()?;
        (held.key == key).then(|| LeafShape::Plain.entry(&held.page, slot))
    }

    /// Holds a leaf.
    pub fn put(&self, key: LeafKey, page: Rc<Page>) {
        let mut slots = self.slots.borrow_mut();
        let place = Self::place(key, slots.len());
        slots[place] = Some(Slot { key, page });
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::map::EntryKind;
    use super::super::super::types::{Crc, Generation, PhysicalBlock, Stamp};
    use super::*;

    fn key(lane: u32, root: u32, leaf: u64) -> LeafKey {
        let lane = CatalogueHandle(lane);
        LeafKey { lane, root, leaf }
    }

    #[test]
    fn only_the_leaf_that_is_meant_is_found() {
        let front = Front::new(32 << 10);
        assert_eq!(front.bytes(), 2 * BLOCK_BYTES);
        let mut page = [0; BLOCK_BYTES];
        let stamp = Stamp { epoch: 1, seq: 1 };
        let entry = LeafEntry::data(PhysicalBlock(9), Generation(1), stamp, Crc(7));
        LeafShape::Plain.set_entry(&mut page, 3, &entry);
        front.put(key(1, 1, 5), Rc::new(page));
        assert_eq!(front.entry(key(1, 1, 5), 3), Some(entry));
        let other = front.entry(key(1, 1, 5), 4).unwrap();
        assert_eq!(other.kind, EntryKind::Absent);
        for other in [key(2, 1, 5), key(1, 2, 5), key(1, 1, 7), key(1, 1, 6)] {
            assert_eq!(front.entry(other, 3), None, "{other:?}");
        }
        // Whoever comes to the same place later has it.
        front.put(key(1, 2, 5), Rc::new([0; BLOCK_BYTES]));
        assert_eq!(front.entry(key(1, 1, 5), 3), None);
    }
}
