//! What a lane in memory is, or was, and its summaries.

use std::collections::BTreeMap;

use super::memory::{LaneState, Version};
use crate::replication::held::{Held, What};
use crate::replication::seam::ReplicaError;
use crate::replication::summary;
use crate::replication::wire::resync::BLOCK_LEVEL;
use crate::store::map::LeafShape;
use crate::store::types::SnapshotId;

impl LaneState {
    /// The lane as it is, or as of a snapshot.
    pub(super) fn tree(
        &self,
        of: Option<SnapshotId>,
    ) -> Result<&BTreeMap<u64, Version>, ReplicaError> {
        let Some(id) = of else {
            return Ok(&self.blocks);
        };
        self.snapshots.get(&id).ok_or(ReplicaError::NoSnapshot(id))
    }
}

pub(super) fn summary_of(
    shape: LeafShape,
    blocks: &BTreeMap<u64, Version>,
    level: u8,
    node: u64,
) -> u32 {
    let within = blocks.range(summary::blocks_of_nodes(shape, level, &(node..node + 1)));
    if matches!(level, 0 | BLOCK_LEVEL) {
        return summary::of_blocks(within.map(|(block, v)| (*block, &v.entry)));
    }
    if within.count() == 0 {
        return 0;
    }
    let (level, nodes) = summary::beneath(shape, level, &(node..node + 1));
    summary::of_children(&std::array::from_fn(|n| {
        summary_of(shape, blocks, level, nodes.start + n as u64)
    }))
}

pub(super) fn data_blocks(record: &Held) -> u64 {
    match record.what {
        What::Write { .. } => record.blocks().end - record.blocks().start,
        _ => 0,
    }
}
