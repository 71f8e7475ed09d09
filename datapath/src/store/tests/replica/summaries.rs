//! Summaries are those of what is read, wherever it is: in the delta, in the map, erased.

use super::*;
use crate::replication::seam::{Entry, Kind, ReplicaStore};
use crate::replication::summary::{blocks_of_nodes, of_blocks, of_children};
use crate::replication::wire::resync::{BLOCK_LEVEL, Tree};
use crate::store::map::LeafShape;
use crate::store::types::{BLOCK_BYTES, LaneBlock};

const BLOCKS: u64 = 4096 + 400;

/// Of a replica that is sealed or not.
pub(super) async fn check(replica: &Replica, handle: &crate::reactor::Handle) {
    let shape = LeafShape::of(replica.sealed());
    // Those of the first slice, and of 400 blocks more.
    let count = shape.leaf_of(LaneBlock(BLOCKS - 1)).0 as u32 + 1;
    let mut entries: Vec<Entry> = Vec::new();
    while (entries.len() as u64) < BLOCKS {
        let at = entries.len() as u64;
        let part = at..(at + 200).min(BLOCKS);
        let buffer = handle.buffers().take(200 * BLOCK_BYTES).await;
        let (_, read) = replica.read(Tree::live(0), part, buffer).await;
        entries.extend(read.expect("it can be read"));
    }
    let each = |blocks: std::ops::Range<u64>| {
        let there = blocks.clone().zip(&entries[blocks.start as usize..]);
        of_blocks(there.take((blocks.end - blocks.start) as usize))
    };
    let leaf = |n: u32| {
        let of_leaf = blocks_of_nodes(shape, 0, &(u64::from(n)..u64::from(n) + 1));
        of_leaf.start..of_leaf.end.min(BLOCKS)
    };
    let leaves: Vec<u32> = (0..count).map(|n| each(leaf(n))).collect();
    let found = replica
        .summaries(Tree::live(0), 0, 0, count)
        .await
        .expect("leaves");
    assert_eq!(found, leaves);
    let singles = replica
        .summaries(Tree::live(0), BLOCK_LEVEL, 0, BLOCKS as u32)
        .await;
    let expected: Vec<u32> = (0..BLOCKS).map(|b| each(b..b + 1)).collect();
    assert_eq!(singles.expect("blocks"), expected);
    let mut above = of_children(&std::array::from_fn(|n| {
        leaves.get(n).copied().unwrap_or(0)
    }));
    for level in 1..=6 {
        let found = replica
            .summaries(Tree::live(0), level, 0, 2)
            .await
            .expect("nodes");
        assert_eq!(found, [above, 0], "level {level}");
        let mut children = [0; 64];
        children[0] = above;
        above = of_children(&children);
    }
    for n in 0..count {
        let there = leaf(n).map(|b| (b, entries[b as usize]));
        let there: Vec<_> = there.filter(|(_, e)| e.kind != Kind::Absent).collect();
        assert_eq!(replica.leaf(Tree::live(0), n.into()).await, Ok(there));
    }
}
