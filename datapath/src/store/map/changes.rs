//! What a merge brings into a map.

use std::ops::Range;

use super::super::types::LaneBlock;
use super::leaf::LeafEntry;

/// Entries and erased ranges, by leaf as the map has them.
pub trait Changes {
    /// First leaf at or after `from` that has entries.
    fn next_leaf(&self, from: u64) -> Option<u64>;

    /// Its entries, slots ascending; they are newer than what was erased.
    fn entries(&self, leaf: u64, each: &mut dyn FnMut(u8, &LeafEntry));

    /// The first erased range of lane blocks that ends behind `from`; ranges are ascending and do not touch.
    fn next_erased(&self, from: LaneBlock) -> Option<Range<u64>>;
}
