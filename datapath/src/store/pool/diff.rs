//! Differences of lanes as differences of a volume.

use crate::store::engine::DiffRange;
use crate::store::types::{BLOCK_BYTES, SLICE_BLOCKS};

const SLICE_BYTES: u64 = SLICE_BLOCKS * BLOCK_BYTES as u64;

/// A range of a volume in which two states of it differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// False: the newer one has nothing there.
    pub data: bool,
}

/// The first block of a lane that is at or beyond a byte of the volume.
pub fn lane_start(lane: u8, lanes: u8, offset: u64) -> u64 {
    let (lane, lanes) = (u64::from(lane), u64::from(lanes));
    let slice = offset / SLICE_BYTES;
    // Slices of the lane before this one.
    let before = (slice + lanes - 1 - lane) / lanes;
    match slice % lanes == lane {
        true => before * SLICE_BLOCKS + offset % SLICE_BYTES / BLOCK_BYTES as u64,
        false => before * SLICE_BLOCKS,
    }
}

/// Where a block of a lane is in the volume.
fn offset_of(lane: u8, lanes: u8, block: u64) -> u64 {
    let slice = block / SLICE_BLOCKS * u64::from(lanes) + u64::from(lane);
    slice * SLICE_BYTES + block % SLICE_BLOCKS * BLOCK_BYTES as u64
}

/// Brings what the lanes said together: for each lane its differences and where it would go on, if it did not get to its end. Answers at
/// most `max` ranges in the order of the volume, and where to go on.
pub fn join_ranges(
    lanes: &[(Vec<DiffRange>, Option<u64>)],
    max: usize,
) -> (Vec<VolumeRange>, Option<u64>) {
    let count = lanes.len() as u8;
    let mut pieces: Vec<VolumeRange> = Vec::new();
    let mut end = u64::MAX;
    for (lane, (ranges, next)) in (0u8..).zip(lanes) {
        if let Some(next) = next {
            end = end.min(offset_of(lane, count, *next));
        }
        let before = pieces.len();
        for range in ranges {
            let mut first = range.first.0;
            let last = first + range.blocks;
            // A long range is a piece in each of its slices: no more of them than could be answered.
            while first < last && pieces.len() - before <= max {
                let to = (first / SLICE_BLOCKS + 1) * SLICE_BLOCKS;
                let to = to.min(last);
                pieces.push(VolumeRange {
                    offset: offset_of(lane, count, first),
                    length: (to - first) * BLOCK_BYTES as u64,
                    data: range.data,
                });
                first = to;
            }
            if first < last {
                end = end.min(offset_of(lane, count, first));
                break;
            }
        }
    }
    pieces.sort_unstable_by_key(|p| p.offset);
    let mut joined: Vec<VolumeRange> = Vec::new();
    for piece in pieces {
        if piece.offset >= end {
            break;
        }
        let full = joined.len() == max;
        match joined.last_mut() {
            Some(last) if last.offset + last.length == piece.offset && last.data == piece.data => {
                last.length += piece.length;
            }
            _ if full => {
                end = piece.offset;
                break;
            }
            _ => joined.push(piece),
        }
    }
    (joined, (end != u64::MAX).then_some(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::LaneBlock;
    use proptest::prelude::*;

    #[test]
    fn a_lane_starts_at_its_next_slice() {
        assert_eq!(lane_start(0, 16, 0), 0);
        assert_eq!(lane_start(3, 16, 3 * SLICE_BYTES + 8192), 2);
        assert_eq!(lane_start(2, 16, 3 * SLICE_BYTES), SLICE_BLOCKS);
        assert_eq!(lane_start(4, 16, 3 * SLICE_BYTES), 0);
        assert_eq!(lane_start(0, 1, SLICE_BYTES + 4096), SLICE_BLOCKS + 1);
    }

    #[test]
    fn whole_lanes_are_one_range() {
        let all = DiffRange {
            first: LaneBlock(0),
            blocks: 2 * SLICE_BLOCKS,
            data: true,
        };
        let lanes = vec![(vec![all], None); 16];
        let (ranges, next) = join_ranges(&lanes, 10);
        assert_eq!(next, None);
        let whole = VolumeRange {
            offset: 0,
            length: 32 * SLICE_BYTES,
            data: true,
        };
        assert_eq!(ranges, [whole]);
    }

    proptest! {
        /// In parts of any size, the blocks come out that went in.
        #[test]
        fn parts_give_all(blocks in prop::collection::btree_map((0u8..16, 0u64..3 * SLICE_BLOCKS), any::<bool>(), 0..60), max in 1usize..9) {
            let mut expect: Vec<(u64, bool)> = blocks.iter().map(|(&(lane, block), &data)| (offset_of(lane, 16, block), data)).collect();
            expect.sort_unstable();
            let mut got = Vec::new();
            let mut from = 0;
            loop {
                let lanes: Vec<_> = (0u8..16).map(|lane| {
                    let start = lane_start(lane, 16, from);
                    let all: Vec<_> = blocks.range((lane, start)..(lane + 1, 0)).collect();
                    let ranges = all.iter().take(max).map(|&(&(_, block), &data)| DiffRange { first: LaneBlock(block), blocks: 1, data });
                    (ranges.collect::<Vec<_>>(), all.get(max).map(|&(&(_, block), _)| block))
                }).collect();
                let (ranges, next) = join_ranges(&lanes, max);
                prop_assert!(ranges.len() <= max);
                for range in ranges {
                    for block in 0..range.length / BLOCK_BYTES as u64 {
                        got.push((range.offset + block * BLOCK_BYTES as u64, range.data));
                    }
                }
                let Some(next) = next else { break };
                prop_assert!(next > from || from == 0);
                from = next;
            }
            prop_assert_eq!(got, expect);
        }
    }
}
