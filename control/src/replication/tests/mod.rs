//! The record's transitions, by themselves and over a KVDB that loses and delays.
mod attaches;
mod changes;
mod faulty;
mod records;
mod swaps;
mod transitions;

use uuid::Uuid;

use super::record::{Holder, ReplicationRecord, Token};
use super::transition::{self, Coordinator};

/// Replica n, of node n.
fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// A record of generation 1 with replicas 1 to n, and the given minimum.
fn fresh(n: u128, minimum: u8) -> ReplicationRecord {
    let replica = |n| (id(n), format!("n{n}"), id(100));
    ReplicationRecord::new(1, (1..=n).map(replica), minimum, n as u8).expect("numbers that fit")
}

fn holder(node: u128, attempt: u8) -> Holder {
    Holder {
        node_id: format!("n{node}"),
        incarnation: Token([node as u8; 16]),
        attempt: Token([attempt; 16]),
    }
}

/// Whoever has it.
fn owner(record: &ReplicationRecord) -> Coordinator {
    let holder = record.holder.as_ref().expect("somebody attached it");
    Coordinator {
        epoch: record.epoch,
        incarnation: holder.incarnation,
        attempt: holder.attempt,
    }
}

/// Attached on node 1, and served by all replicas.
fn served(n: u128, minimum: u8) -> (ReplicationRecord, Coordinator) {
    let taken = transition::take(&fresh(n, minimum), 1, holder(1, 1)).expect("K1");
    let by = owner(&taken);
    let members = taken.members.clone();
    let served = transition::serve(&taken, by, &members, &[]).expect("K2");
    (served, by)
}
