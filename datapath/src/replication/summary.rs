//! What two replicas compare (`docs/replication.md` §11): summaries of blocks, of leaves and of what is above them.
//!
//! They are those of the map (`docs/store-format.md` §6): a leaf's covers block, kind, stamp and checksum of each of its data and known damage, one above
//! covers its 64 children's. Leaves of a sealed lane have fewer blocks than others. What is absent, or erased, is in none: 0 says that nothing is there.

use std::ops::Range;

use super::seam::{Entry, Kind};
use super::wire::resync::{BLOCK_LEVEL, LEVEL_MAX};
use crate::store::map::LeafShape;
use crate::store::types::{BLOCKS_MAX, Crc, LaneBlock};

/// Children of a node above the leaves.
pub const FANOUT: u64 = 64;
const ENTRY_BYTES: usize = 25;

/// Whether an entry takes part.
pub fn counts(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Data | Kind::Poison)
}

/// Of neighbouring blocks, by rising block; 0 if none of them takes part.
pub fn of_blocks<'a>(blocks: impl Iterator<Item = (u64, &'a Entry)>) -> u32 {
    let mut summed = Vec::new();
    for (block, entry) in blocks.filter(|(_, e)| counts(e)) {
        summed.extend_from_slice(&block.to_le_bytes());
        // As the map's leaves number them.
        summed.push(if entry.kind == Kind::Data { 1 } else { 3 });
        summed.extend_from_slice(&entry.stamp.epoch.to_le_bytes());
        summed.extend_from_slice(&entry.stamp.seq.to_le_bytes());
        summed.extend_from_slice(&entry.crc.0.to_le_bytes());
    }
    debug_assert!(summed.len().is_multiple_of(ENTRY_BYTES));
    if summed.is_empty() {
        return 0;
    }
    Crc::of(&summed).0
}

/// Of a node, from those of its children.
pub fn of_children(children: &[u32; FANOUT as usize]) -> u32 {
    if children.iter().all(|c| *c == 0) {
        return 0;
    }
    let mut bytes = [0; 4 * FANOUT as usize];
    for (to, from) in bytes.chunks_exact_mut(4).zip(children) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Crc::of(&bytes).0
}

/// Leaves of a node of a level above single blocks.
pub const fn leaves_of(level: u8, node: u64) -> Range<u64> {
    let each = FANOUT.pow(level as u32);
    // Numbers come from outside, and may be beyond all that there can be.
    node.saturating_mul(each)..(node + 1).saturating_mul(each)
}

/// The leaf of a block.
pub const fn leaf_of(shape: LeafShape, block: u64) -> u64 {
    shape.leaf_of(LaneBlock(block)).0
}

/// The blocks of leaves; those that no lane has are left out.
pub fn blocks_of(shape: LeafShape, leaves: &Range<u64>) -> Range<u64> {
    let most = leaf_of(shape, BLOCKS_MAX - 1) + 1;
    let first = |leaf: u64| match leaf >= most {
        true => BLOCKS_MAX,
        false => shape.first_block(leaf),
    };
    first(leaves.start)..first(leaves.end)
}

/// The blocks of nodes of any level.
pub fn blocks_of_nodes(shape: LeafShape, level: u8, nodes: &Range<u64>) -> Range<u64> {
    if level == BLOCK_LEVEL {
        return nodes.clone();
    }
    let leaves = leaves_of(level, nodes.start).start..leaves_of(level, nodes.end).start;
    blocks_of(shape, &leaves)
}

/// The level beneath, and the nodes there that are beneath these.
pub fn beneath(shape: LeafShape, level: u8, nodes: &Range<u64>) -> (u8, Range<u64>) {
    match level {
        0 => (BLOCK_LEVEL, blocks_of(shape, nodes)),
        _ => (
            level - 1,
            nodes.start.saturating_mul(FANOUT)..nodes.end.saturating_mul(FANOUT),
        ),
    }
}

/// The level at which to begin with so many blocks: the lowest one of which one question covers all; and how many nodes that are.
pub fn top(shape: LeafShape, blocks: u64, most: u64) -> (u8, u64) {
    let leaves = leaf_of(shape, blocks.clamp(1, BLOCKS_MAX) - 1) + 1;
    let mut level = 0;
    while level < LEVEL_MAX && leaves.div_ceil(FANOUT.pow(level.into())) > most {
        level += 1;
    }
    (level, leaves.div_ceil(FANOUT.pow(level.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_covers_a_lane_in_one_question() {
        // 64 GiB: 4,096 slices of 27 leaves.
        let plain = LeafShape::Plain;
        assert_eq!(top(plain, 4096 * 4096, 8192), (1, 1728));
        assert_eq!(
            beneath(plain, 0, &(26..28)),
            (BLOCK_LEVEL, 26 * 152..4096 + 152)
        );
        for shape in [plain, LeafShape::Sealed] {
            assert_eq!(top(shape, 1, 8192), (0, 1));
            let (level, nodes) = top(shape, BLOCKS_MAX, 8192);
            assert_eq!(blocks_of_nodes(shape, level, &(0..nodes)).end, BLOCKS_MAX);
            assert_eq!(beneath(shape, 2, &(1..3)), (1, 64..192));
            assert!(blocks_of_nodes(shape, 6, &(1 << 33..1 << 34)).is_empty());
        }
    }
}
