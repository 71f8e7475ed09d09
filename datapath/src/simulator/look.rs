//! What nodes' stores have, looked at directly.

use std::time::Duration;

use super::cluster::{Cluster, LANES};
use crate::cipher::{Cipher, Place};
use crate::replication::seam::{Entry, Kind, ReplicaStore};
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, LaneBlock, SnapshotId};
use crate::volume::coordinator::state::block_of_volume;

/// Blocks of a healthy store are read within this.
const READ_WITHIN: Duration = Duration::from_secs(10);

impl Cluster {
    /// A node's scrub found damaged blocks of its replica. Whether anybody was told.
    pub fn tell_damaged(&self, node: usize, blocks: Vec<(u8, LaneBlock)>) -> bool {
        self.replica(node).is_some_and(|r| r.tell_damaged(blocks))
    }

    /// A node's snapshots, and in how many lanes each is.
    pub fn snapshots(&self, node: usize) -> Option<Vec<(SnapshotId, u8)>> {
        Some(self.store(node)?.snapshots())
    }

    /// The first blocks of a lane as a node's store has them; nothing, if it is not open. What is erased is as good as absent.
    pub fn entries(&self, node: usize, lane: u8, blocks: u64) -> Option<Vec<Entry>> {
        Some(self.blocks(node, Tree::live(lane), blocks)?.0)
    }

    /// The same of a lane as it is, or was, with its data, as they were written.
    pub fn blocks(&self, node: usize, tree: Tree, blocks: u64) -> Option<(Vec<Entry>, Vec<u8>)> {
        let store = self.store(node)?;
        let handle = self.rig.handle(node, 0);
        let on = handle.clone();
        let read = self.rig.sim.run(&handle, READ_WITHIN, async move {
            let bytes = blocks as usize * BLOCK_BYTES;
            let buffer = on.buffers().take(bytes).await;
            let (buffer, read) = store.read(tree, 0..blocks, buffer).await;
            read.map(|entries| (entries, buffer[..bytes].to_vec()))
        });
        let (mut entries, mut bytes) = read?.ok()?;
        for entry in &mut entries {
            if entry.kind == Kind::Erased {
                *entry = Entry::ABSENT;
            }
        }
        if let Some(ledger) = &self.ledger {
            let each = (0..).zip(&entries).zip(bytes.chunks_exact_mut(BLOCK_BYTES));
            for ((block, entry), data) in each.filter(|((_, e), _)| e.kind == Kind::Data) {
                let block = block_of_volume(LANES, tree.lane, block);
                let stamp = entry.stamp;
                ledger
                    .open(Place { stamp, block }, &entry.seal, data)
                    .ok()?;
            }
        }
        Some((entries, bytes))
    }
}
