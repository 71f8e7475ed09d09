//! What a merge brings into a map.

use std::ops::Range;

use super::super::types::LaneBlock;
use super::interior::{leaves_of_level, leaves_of_page};
use super::leaf::{LeafEntry, LeafShape};

/// Entries and erased ranges, by leaf as the map has them.
pub trait Changes {
    /// First leaf at or after `from` that has entries.
    fn next_leaf(&self, from: u64) -> Option<u64>;

    /// Its entries, slots ascending; they are newer than what was erased.
    fn entries(&self, leaf: u64, each: &mut dyn FnMut(u8, &LeafEntry));

    /// The first erased range of lane blocks that ends behind `from`; ranges are ascending and do not touch.
    fn next_erased(&self, from: LaneBlock) -> Option<Range<u64>>;
}

/// What changes do to the pages of a tree.
pub(super) struct Touch<'a, C> {
    pub changes: &'a C,
    pub shape: LeafShape,
}

impl<C: Changes> Touch<'_, C> {
    /// Whether everything beneath leaves `first` to `last` was erased, at one go.
    pub fn is_erased(&self, first: u64, last: u64) -> bool {
        let blocks = self.shape.blocks(first, last);
        let erased = self.changes.next_erased(LaneBlock(blocks.start));
        erased.is_some_and(|e| e.start <= blocks.start && e.end >= blocks.end)
    }

    /// The children of a page that something happens to, a bit for each.
    pub fn touched(&self, level: u8, index: u64) -> u64 {
        let (first, last) = leaves_of_page(level, index);
        let span = leaves_of_level(level - 1);
        let bits_from = |from: u64, to: u64| {
            let (from, to) = ((from - first) / span, (to - first) / span);
            (u64::MAX >> (63 - (to - from))) << from
        };
        let mut touched = 0;
        let mut at = first;
        while let Some(leaf) = self.changes.next_leaf(at)
            && leaf <= last
        {
            touched |= bits_from(leaf, leaf);
            at = leaf - leaf % span + span;
        }
        let blocks = self.shape.blocks(first, last);
        let mut at = blocks.start;
        while let Some(erased) = self.changes.next_erased(LaneBlock(at))
            && erased.start < blocks.end
        {
            let (from, _) = self.shape.leaf_of(LaneBlock(erased.start.max(at)));
            let (to, _) = self
                .shape
                .leaf_of(LaneBlock(erased.end.min(blocks.end) - 1));
            touched |= bits_from(from, to);
            // The rest of that child is looked at when its turn comes.
            at = self.shape.first_block(to - to % span + span);
            if at >= blocks.end {
                break;
            }
        }
        touched
    }
}
