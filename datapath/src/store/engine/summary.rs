//! What a replica's lane is compared by (`docs/replication.md` §§11 and 15): summaries of the last checkpoint's map, and of what the delta touches,
//! computed when they are asked for.
//!
//! A node that nothing in the delta touches is what its parent's entry says: comparing what is equal reads a page for 64 nodes, and no leaf. What is touched
//! is put together from the leaves up. What is erased is absent: a summary has data and known damage only.

use std::ops::Range;
use std::pin::Pin;

use super::super::map::{self, LeafShape, Root};
use super::lane::LaneState;
use super::{Inner, StoreError};
use crate::replication::seam::Entry;
use crate::replication::summary::{
    beneath, blocks_of, blocks_of_nodes, leaf_of, leaves_of, of_blocks, of_children,
};
use crate::replication::wire::resync::BLOCK_LEVEL;
use crate::store::types::BLOCKS_MAX;

/// Blocks whose entries are looked at together.
const AT_ONCE: u64 = 1024;
/// After so many nodes others have their turn.
const BREATHE: u64 = 64;

/// What the delta does to some nodes, at the moment at which the map's root was taken.
struct Touched {
    shape: LeafShape,
    root: Root,
    /// Leaves with entries, ascending.
    leaves: Vec<u64>,
    erased: Vec<Range<u64>>,
}

impl Touched {
    fn new(lane: &LaneState, within: &Range<u64>) -> Self {
        let (mut leaves, mut erased) = (Vec::new(), Vec::new());
        lane.each_layer(|layer| {
            let written = layer.written().filter(|b| within.contains(&b.0));
            leaves.extend(written.map(|b| leaf_of(lane.shape(), b.0)));
            let touches = |r: &Range<u64>| r.start < within.end && within.start < r.end;
            erased.extend(layer.erasures().filter(touches));
        });
        leaves.sort_unstable();
        leaves.dedup();
        Self {
            shape: lane.shape(),
            root: lane.root.get(),
            leaves,
            erased,
        }
    }

    fn writes(&self, leaves: &Range<u64>) -> bool {
        let at = self.leaves.partition_point(|l| *l < leaves.start);
        self.leaves.get(at).is_some_and(|l| *l < leaves.end)
    }

    fn erases(&self, leaves: &Range<u64>) -> bool {
        let blocks = blocks_of(self.shape, leaves);
        let mut erased = self.erased.iter();
        erased.any(|r| r.start < blocks.end && blocks.start < r.end)
    }
}

type Summary<'a> = Pin<Box<dyn Future<Output = Result<u32, StoreError>> + 'a>>;

impl Inner {
    /// Summaries of nodes of a level; see [`crate::replication::seam::ReplicaStore::summaries`].
    pub(super) async fn summaries(
        &self,
        lane: &LaneState,
        level: u8,
        nodes: Range<u64>,
    ) -> Result<Vec<u32>, StoreError> {
        let mut found = Vec::with_capacity((nodes.end - nodes.start) as usize);
        // Pages of the root that is taken stay until this ends.
        let _reader = self.reclaim.read();
        if level == BLOCK_LEVEL {
            let mut at = nodes.start;
            while at < nodes.end {
                let part = at..(at + AT_ONCE).min(nodes.end).min(BLOCKS_MAX);
                let entries = self.entries(lane, &part).await?;
                let each = part.clone().zip(&entries);
                found.extend(each.map(|(b, e)| of_blocks(std::iter::once((b, &e.entry)))));
                at = part.end;
            }
            return Ok(found);
        }
        let touched = Touched::new(lane, &blocks_of_nodes(lane.shape(), level, &nodes));
        for node in nodes {
            found.push(self.summary_of(lane, &touched, level, node).await?);
            if node.is_multiple_of(BREATHE) {
                self.handle.yield_now().await;
            }
        }
        Ok(found)
    }

    fn summary_of<'a>(
        &'a self,
        lane: &'a LaneState,
        touched: &'a Touched,
        level: u8,
        node: u64,
    ) -> Summary<'a> {
        Box::pin(async move {
            let leaves = leaves_of(level, node);
            let writes = touched.writes(&leaves);
            if !writes {
                let below = map::summary(&self.pages, &touched.root, level, node).await?;
                // Nothing is there that could be erased; or it is not.
                if below == 0 || !touched.erases(&leaves) {
                    return Ok(below);
                }
            }
            if level == 0 {
                let blocks = blocks_of(lane.shape(), &leaves);
                let entries = self.entries(lane, &blocks).await?;
                let each = blocks.zip(entries.iter().map(|e| &e.entry));
                return Ok(of_blocks(each));
            }
            let (level, nodes) = beneath(lane.shape(), level, &(node..node + 1));
            let mut children = [0; 64];
            for (child, node) in children.iter_mut().zip(nodes) {
                *child = self.summary_of(lane, touched, level, node).await?;
            }
            Ok(of_children(&children))
        })
    }

    /// The blocks of a leaf that are not absent.
    pub(super) async fn leaf_entries(
        &self,
        lane: &LaneState,
        leaf: u64,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let blocks = blocks_of(lane.shape(), &(leaf..leaf + 1));
        let _reader = self.reclaim.read();
        let entries = self.entries(lane, &blocks).await?;
        let all = blocks.zip(entries.iter().map(|e| e.entry));
        let absent = crate::replication::seam::Kind::Absent;
        Ok(all.filter(|(_, e)| e.kind != absent).collect())
    }
}
