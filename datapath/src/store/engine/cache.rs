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

/// See the module's text.
pub struct BlockCache(RefCell<Cache<u64, Content, UnitWeighter, BlockHasher>>);

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
        Self(RefCell::new(cache))
    }

    /// What is there, if it is here.
    #[inline]
    pub fn get(&self, at: PhysicalBlock) -> Option<Content> {
        self.0.borrow().get(&at.0).cloned()
    }

    /// Puts what is there now, or will be.
    pub fn put(&self, at: PhysicalBlock, content: Content) {
        self.0.borrow_mut().insert(at.0, content);
    }

    /// What is there changes.
    pub fn remove(&self, at: PhysicalBlock) {
        self.0.borrow_mut().remove(&at.0);
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.0.borrow().len();
        f.debug_struct("BlockCache")
            .field("blocks", &blocks)
            .finish_non_exhaustive()
    }
}
