//! Blocks of the drive in memory, data and pages under one budget (`DESIGN.md` §9).
//!
//! The key is the physical block. Since a block is never overwritten in place, what is here is what is there, as long as whoever uses a block
//! again puts the new content here, or removes the old.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

use super::super::types::{BLOCK_BYTES, PhysicalBlock};

/// Content of a block.
pub type Content = Rc<[u8; BLOCK_BYTES]>;

/// Multiplies and folds: block numbers are no secret, and nobody chooses them.
#[derive(Clone, Copy, Debug, Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

impl BuildHasher for BlockHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

/// Blocks that are remembered as read once, for each one that the cache has room for.
const ONCE_FACTOR: usize = 4;

/// See the module's text.
pub struct BlockCache {
    held: RefCell<Cache<u64, Content, UnitWeighter, BlockHasher>>,
    /// Blocks that were read and not kept, each in a place of its own; the low half of their numbers, 0 for none.
    once: RefCell<Box<[u32]>>,
}

impl BlockCache {
    /// Of so many bytes of blocks.
    pub fn new(bytes: usize) -> Self {
        let blocks = (bytes / BLOCK_BYTES).max(16);
        let cache = Cache::with(
            blocks,
            blocks as u64,
            UnitWeighter,
            BlockHasher::default(),
            DefaultLifecycle::default(),
        );
        Self {
            held: RefCell::new(cache),
            once: RefCell::new(vec![0; (blocks * ONCE_FACTOR).next_power_of_two()].into()),
        }
    }

    /// Whether a block that was just read from the drive is worth its copy: while there is room, and if it was read not long ago. So whoever
    /// reads more than there is room for neither pays for copies nor pushes the map's pages out.
    pub fn wants(&self, at: PhysicalBlock) -> bool {
        let full = {
            let held = self.held.borrow();
            held.weight() >= held.capacity()
        };
        if !full {
            return true;
        }
        let mut once = self.once.borrow_mut();
        let place = BlockHasher::default().hash_one(at.0) as usize & (once.len() - 1);
        std::mem::replace(&mut once[place], at.0 as u32) == at.0 as u32
    }

    /// What is there, if it is here.
    #[inline]
    pub fn get(&self, at: PhysicalBlock) -> Option<Content> {
        self.held.borrow().get(&at.0).cloned()
    }

    /// Puts what is there now, or will be.
    pub fn put(&self, at: PhysicalBlock, content: Content) {
        self.held.borrow_mut().insert(at.0, content);
    }

    /// What is there changes.
    pub fn remove(&self, at: PhysicalBlock) {
        self.held.borrow_mut().remove(&at.0);
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.held.borrow().len();
        f.debug_struct("BlockCache")
            .field("blocks", &blocks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_not_kept_and_what_is_read_again_is() {
        let cache = BlockCache::new(64 * BLOCK_BYTES);
        let content: Content = Rc::new([1; BLOCK_BYTES]);
        let kept = (1..=4096u64).map(PhysicalBlock).filter(|&at| {
            let wants = cache.wants(at);
            if wants {
                cache.put(at, content.clone());
            }
            wants
        });
        let kept = kept.count();
        assert!((32..=80).contains(&kept), "{kept} of a scan were kept");
        assert!(cache.wants(PhysicalBlock(4096)) || cache.get(PhysicalBlock(4096)).is_some());
        assert!(!cache.wants(PhysicalBlock(9999)), "read once");
        assert!(cache.wants(PhysicalBlock(9999)), "read twice");
    }
}
