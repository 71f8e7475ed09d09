//! Where bytes of a volume are: which lane, and which of its blocks.
//!
//! Slice g of the volume is slice g / lanes of lane g mod lanes (`docs/store-format.md` §6: n counts the lane's own slices).

use std::ops::Range;

use super::lane::{Lane, Lanes, SLICE_BYTES, SLICE_SHIFT};
use super::{ByteRange, VolumeId};
use crate::device::BLOCK_BYTES;
use crate::store::types::SLICE_BLOCKS;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const _: () = assert!(SLICE_BYTES == SLICE_BLOCKS * BLOCK_BYTES);

/// What every reactor is told of a volume.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// Its id.
    pub id: VolumeId,
    /// Its number in this process.
    pub number: u32,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its lanes.
    pub lanes: Lanes,
    /// The number of each lane's drive in this process.
    pub drives: Arc<[u32]>,
    /// Whether any of the drives has a volatile cache; of a replicated volume, what its hosts are told.
    pub volatile_cache: bool,
    /// It is replicated: it has no drives, and its operations go to its coordinator.
    pub replicated: bool,
    /// Operations that drives could not do, on all reactors.
    pub media_errors: Arc<AtomicU64>,
}

/// A slice of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its lane.
    pub lane: Lane,
    /// Its first byte in the volume.
    start: u64,
    /// Its first block in the lane.
    first: u64,
}

impl Slice {
    /// The slice of a byte.
    #[inline]
    pub fn of(lanes: Lanes, byte: u64) -> Self {
        let number = byte >> SLICE_SHIFT;
        Self {
            lane: lanes.of(byte),
            start: number << SLICE_SHIFT,
            first: number / lanes.count() as u64 * SLICE_BLOCKS,
        }
    }

    /// The lane's blocks that a range touches; it lies inside of the slice.
    #[inline]
    pub fn blocks(self, at: ByteRange) -> Range<u64> {
        debug_assert!(at.start >= self.start && at.end <= self.start + SLICE_BYTES);
        let from = (at.start - self.start) / BLOCK_BYTES;
        let to = (at.end - self.start).div_ceil(BLOCK_BYTES);
        self.first + from..self.first + to
    }
}

/// A lane's blocks in a range of whole slices: they follow each other. Empty if none of the slices is the lane's.
pub fn blocks_in_slices(lanes: Lanes, lane: Lane, at: ByteRange) -> Range<u64> {
    debug_assert!(at.aligned(SLICE_BYTES));
    let (count, lane) = (lanes.count() as u64, lane.index() as u64);
    // Slices of the lane below slice g.
    let below = |g: u64| (g + count - 1 - lane) / count;
    below(at.start >> SLICE_SHIFT) * SLICE_BLOCKS..below(at.end >> SLICE_SHIFT) * SLICE_BLOCKS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lanes(many: bool) -> Lanes {
        Lanes::for_size(if many { 1 << 30 } else { 1 << 20 })
    }

    #[test]
    fn the_second_slice_of_a_lane_follows_its_first() {
        let lanes = lanes(true);
        let byte = 17 * SLICE_BYTES + 5 * BLOCK_BYTES + 1;
        let slice = Slice::of(lanes, byte);
        assert_eq!(slice.lane.index(), 1);
        assert_eq!(slice.blocks(ByteRange::new(byte, 1)), 4101..4102);
    }

    proptest! {
        /// No two blocks of a volume share a block of a lane, and each lane is used without holes.
        #[test]
        fn blocks_are_numbered_one_by_one(slice in 0u64..200, block in 0u64..SLICE_BLOCKS, many in any::<bool>()) {
            let lanes = lanes(many);
            let byte = slice * SLICE_BYTES + block * BLOCK_BYTES;
            let place = Slice::of(lanes, byte);
            let blocks = place.blocks(ByteRange::new(byte, BLOCK_BYTES));
            let back = (blocks.start / SLICE_BLOCKS * lanes.count() as u64 + place.lane.index() as u64) * SLICE_BYTES
                + blocks.start % SLICE_BLOCKS * BLOCK_BYTES;
            prop_assert_eq!(back, byte);
            prop_assert_eq!(blocks.end, blocks.start + 1);
        }

        #[test]
        fn whole_slices_are_one_run_on_each_lane(first in 0u64..100, count in 1u64..100, many in any::<bool>()) {
            let lanes = lanes(many);
            let at = ByteRange::new(first * SLICE_BYTES, count * SLICE_BYTES);
            for lane in lanes.all() {
                let mut expect = Vec::new();
                for g in first..first + count {
                    let slice = Slice::of(lanes, g * SLICE_BYTES);
                    if slice.lane == lane {
                        expect.extend(slice.blocks(ByteRange::new(g * SLICE_BYTES, SLICE_BYTES)));
                    }
                }
                prop_assert_eq!(blocks_in_slices(lanes, lane, at).collect::<Vec<_>>(), expect);
            }
        }
    }
}
