//! Blocks of the drive in memory, data and pages, and in front of them the leaves that were looked at last: all under the drive's share of the
//! process's budget (`DESIGN.md` §9).
//!
//! The key is the physical block. Since a block is never overwritten in place, what is here is what is there, as long as whoever uses a block
//! again puts the new content here, or removes the old.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

use super::super::types::{BLOCK_BYTES, PhysicalBlock};
use super::budget::{LEAST, Share};
use super::front::Front;

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
    share: Share,
    /// Leaves, each found in one step.
    pub front: Front,
    held: RefCell<Cache<u64, Content, UnitWeighter, BlockHasher>>,
    /// Blocks that were read and not kept, each in a place of its own; the low half of their numbers, 0 for none.
    once: RefCell<Box<[u32]>>,
}

impl BlockCache {
    /// An empty one, which grows as its share of a budget does.
    pub fn new(share: Share) -> Self {
        let (front, blocks) = Self::divide(share.blocks());
        let once = (share.blocks_of_all() * ONCE_FACTOR).next_power_of_two();
        let cache = Cache::with(
            blocks,
            blocks as u64,
            UnitWeighter,
            BlockHasher::default(),
            DefaultLifecycle::default(),
        );
        Self {
            share,
            front: Front::new(front),
            held: RefCell::new(cache),
            once: RefCell::new(vec![0; once].into()),
        }
    }

    /// Leaves in front, and blocks behind, of so many in all.
    fn divide(blocks: usize) -> (usize, usize) {
        let front = Front::leaves_of(blocks);
        (front, (blocks - front).max(LEAST / 2))
    }

    fn fit(&self, all: usize) {
        let (front, blocks) = Self::divide(all);
        self.front.resize(front);
        self.held.borrow_mut().set_capacity(blocks as u64);
    }

    fn is_full(&self) -> bool {
        let held = self.held.borrow();
        held.weight() >= held.capacity()
    }

    /// Whether there is room for another block, or could be made.
    fn has_room(&self) -> bool {
        if !self.is_full() {
            return true;
        }
        let grown = self.share.grow();
        if grown {
            self.fit(self.share.blocks());
        }
        grown
    }

    /// Gives other drives what they have a right to, until it is closed.
    pub async fn give_when_asked(&self) {
        while self.share.asked().await {
            self.share.give(|blocks| self.fit(blocks));
        }
    }

    /// Its drive is closed.
    pub fn close(&self) {
        self.share.close();
    }

    /// Whether a block that was just read from the drive is worth its copy: while there is room, and if it was read not long ago. So whoever
    /// reads more than there is room for neither pays for copies nor pushes the map's pages out.
    pub fn wants(&self, at: PhysicalBlock) -> bool {
        if self.has_room() {
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
        self.has_room();
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
    use super::super::budget::CacheBudget;
    use super::*;

    fn blocks(n: usize) -> CacheBudget {
        CacheBudget::new((n * BLOCK_BYTES) as u64)
    }

    #[test]
    fn leaves_and_blocks_together_have_no_more_than_their_share() {
        let budget = blocks(1024);
        let cache = BlockCache::new(budget.share());
        let content: Content = Rc::new([1; BLOCK_BYTES]);
        for at in 1..=5000 {
            cache.put(PhysicalBlock(at), content.clone());
        }
        let all = cache.held.borrow().len() + cache.front.bytes() / BLOCK_BYTES;
        assert!((1000..=1024).contains(&all), "{all}");
        let other = BlockCache::new(budget.share());
        for at in 1..=5000 {
            other.put(PhysicalBlock(at), content.clone());
        }
        assert!(other.held.borrow().len() <= LEAST, "there is no more yet");
        cache.share.give(|blocks| cache.fit(blocks));
        for at in 1..=5000 {
            other.put(PhysicalBlock(at), content.clone());
        }
        for cache in [&cache, &other] {
            let all = cache.held.borrow().len() + cache.front.bytes() / BLOCK_BYTES;
            assert!((500..=512).contains(&all), "{all}");
        }
    }

    #[test]
    fn a_scan_is_not_kept_and_what_is_read_again_is() {
        let cache = BlockCache::new(blocks(64).share());
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
