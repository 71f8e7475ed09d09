//! What is known of a block: what the delta says, newest layer first, else the map's leaf (`docs/store-format.md` §10). Reads, copies, summaries and
//! whoever asks for space look it up here.

use std::ops::Range;
use std::rc::Rc;

use super::super::map::{LeafEntry, LeafShape, Page, leaf, leaf_cached};
use super::super::types::LaneBlock;
use super::lane::LaneState;
use super::layer::{Entry, Found};
use super::{Inner, StoreError};

/// What is known of a block.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// The delta has an entry of it.
    Entry(Entry),
    /// The delta says that it was erased.
    Erased,
    /// The delta says nothing; this is in the map.
    Leaf(LeafEntry),
    /// The delta says nothing, and the map has no leaf there.
    Nothing,
}

impl Known {
    #[inline]
    fn in_delta(lane: &LaneState, block: LaneBlock) -> Option<Self> {
        Some(match lane.delta(block)? {
            Found::Entry(entry) => Self::Entry(entry),
            Found::Erased => Self::Erased,
        })
    }

    #[inline]
    fn in_leaf(shape: LeafShape, page: Option<&Page>, slot: u8) -> Self {
        page.map_or(Self::Nothing, |page| Self::Leaf(shape.entry(page, slot)))
    }
}

impl Inner {
    /// What is known of a block, if that is in memory.
    #[inline]
    pub(super) fn known_now(&self, lane: &LaneState, block: LaneBlock) -> Option<Known> {
        if let Some(known) = Known::in_delta(lane, block) {
            return Some(known);
        }
        let shape = lane.shape();
        let (number, slot) = shape.leaf_of(block);
        let key = lane.leaf_key(number);
        if let Some(entry) = self.cache.front.entry(shape, key, slot) {
            return Some(Known::Leaf(entry));
        }
        let page = leaf_cached(&self.pages, &lane.root.get(), number)?;
        let known = Known::in_leaf(shape, page.as_deref(), slot);
        if let Some(page) = page {
            self.cache.front.put(key, page);
        }
        Some(known)
    }

    /// What is known of a block.
    pub(super) async fn known(
        &self,
        lane: &LaneState,
        block: LaneBlock,
    ) -> Result<Known, StoreError> {
        if let Some(known) = self.known_now(lane, block) {
            return Ok(known);
        }
        let shape = lane.shape();
        let (number, slot) = shape.leaf_of(block);
        // The delta is asked first and without a pause before the root is taken: a checkpoint cannot move an entry past both.
        let root = lane.root.get();
        let page = leaf(&self.pages, &root, number).await?;
        Ok(Known::in_leaf(shape, page.as_deref(), slot))
    }

    /// What is known of blocks, all at one moment: the moment at which this returns. A read so shows a write whole or not at all. Leaves that are
    /// not in memory are read first.
    pub(super) async fn known_of_each<T>(
        &self,
        lane: &LaneState,
        blocks: &Range<u64>,
        each: impl Fn(LaneBlock, Known) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let shape = lane.shape();
        let mut held: Vec<(u64, Option<Rc<Page>>)> = Vec::new();
        let mut root = lane.root.get();
        'again: loop {
            if lane.root.get() != root {
                root = lane.root.get();
                held.clear();
            }
            all.clear();
            for block in blocks.clone().map(LaneBlock) {
                let known = match Known::in_delta(lane, block) {
                    Some(known) => known,
                    None => {
                        let (number, slot) = shape.leaf_of(block);
                        let Some((_, page)) = held.iter().rev().find(|(n, _)| *n == number) else {
                            let page = match leaf_cached(&self.pages, &root, number) {
                                Some(page) => page,
                                None => leaf(&self.pages, &root, number).await?,
                            };
                            held.push((number, page));
                            continue 'again;
                        };
                        Known::in_leaf(shape, page.as_deref(), slot)
                    }
                };
                all.push(each(block, known)?);
            }
            return Ok(all);
        }
    }
}
