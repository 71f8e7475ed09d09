//! The leaves that were looked at last, each found in one step: in front of the cache, which wants a step for every level of the map.
//!
//! A leaf is known by its lane, the version of the lane's root, and its number: a checkpoint gives lanes new roots, so what was known of the old
//! ones is of no use any more and is replaced in time. Pages that are held here count as cached: the cache's share of the budget has them.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::map::{LeafEntry, LeafShape, Page};
#[cfg(test)]
use super::super::types::BLOCK_BYTES;
use super::super::types::CatalogueHandle;

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
    /// How many leaves are held of so many cached blocks: a quarter, a power of two, at least one.
    pub fn leaves_of(blocks: usize) -> usize {
        1 << (blocks / 4).clamp(1, LEAVES_MAX).ilog2()
    }

    /// With room for so many, a power of two.
    pub fn new(leaves: usize) -> Self {
        let front = Self {
            slots: RefCell::default(),
        };
        front.resize(leaves);
        front
    }

    /// Room for so many; if that is another number than before, nothing is held.
    pub fn resize(&self, leaves: usize) {
        assert!(leaves.is_power_of_two(), "places are masked");
        let mut slots = self.slots.borrow_mut();
        if slots.len() != leaves {
            *slots = (0..leaves).map(|_| None).collect();
        }
    }

    /// Bytes of pages that it may hold.
    #[cfg(test)]
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
    pub fn entry(&self, shape: LeafShape, key: LeafKey, slot: u8) -> Option<LeafEntry> {
        let slots = self.slots.borrow();
        let held = slots[Self::place(key, slots.len())].as_ref()?;
        (held.key == key).then(|| shape.entry(&held.page, slot))
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
        let front = Front::new(Front::leaves_of(8));
        assert_eq!(front.bytes(), 2 * BLOCK_BYTES);
        let mut page = [0; BLOCK_BYTES];
        let stamp = Stamp { epoch: 1, seq: 1 };
        let entry = LeafEntry::data(PhysicalBlock(9), Generation(1), stamp, Crc(7));
        LeafShape::Plain.set_entry(&mut page, 3, &entry);
        front.put(key(1, 1, 5), Rc::new(page));
        assert_eq!(front.entry(LeafShape::Plain, key(1, 1, 5), 3), Some(entry));
        let other = front.entry(LeafShape::Plain, key(1, 1, 5), 4).unwrap();
        assert_eq!(other.kind, EntryKind::Absent);
        for other in [key(2, 1, 5), key(1, 2, 5), key(1, 1, 7), key(1, 1, 6)] {
            assert_eq!(front.entry(LeafShape::Plain, other, 3), None, "{other:?}");
        }
        // Whoever comes to the same place later has it.
        front.put(key(1, 2, 5), Rc::new([0; BLOCK_BYTES]));
        assert_eq!(front.entry(LeafShape::Plain, key(1, 1, 5), 3), None);
    }
}
