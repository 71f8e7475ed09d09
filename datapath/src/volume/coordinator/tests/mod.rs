//! A coordinator with replicas that are simple enough to be looked through, and everything between them that may fail.
mod adopting;
mod driving;
mod history;
mod replica;
mod runs;
mod streams;
mod world;

use std::rc::Rc;

use keelblock_hugepages::BufferPool;

use crate::replication::held::{Held, What};
use crate::store::types::{LaneBlock, Stamp};

/// Lanes of the volumes here.
const LANES: usize = 2;

/// A write whose blocks begin with these values.
fn write(pool: &BufferPool, first: u64, values: &[(u64, u64)]) -> Option<What> {
    let mut buffer = pool.try_take(values.len() * 4096)?;
    buffer.fill(0);
    for (n, (_, value)) in values.iter().enumerate() {
        buffer[n * 4096..n * 4096 + 8].copy_from_slice(&value.to_le_bytes());
    }
    let stamp = Stamp { epoch: 0, seq: 0 };
    let first = LaneBlock(first);
    Some(Held::write(0, stamp, first, values.len(), Rc::new(buffer)).what)
}

fn erase(first: u64, blocks: u64) -> What {
    What::Tombstone {
        first: LaneBlock(first),
        blocks,
    }
}
