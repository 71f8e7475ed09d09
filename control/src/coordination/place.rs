//! Which nodes get the replicas of a volume: different ones that live, with drives, and of these the ones whose pools have most room.

use std::cmp::Reverse;
use std::collections::HashMap;

use uuid::Uuid;

use crate::error::OpError;
use crate::records::{AliveRecord, NodeRecord, PoolSpace};
use crate::replication::record::ReplicationRecord;

/// Room that differs by less than this part of a pool is the same: then the one with fewer replicas is taken.
const SAME: u64 = 64;

/// A node, and what it says if it lives.
pub type Seen = (NodeRecord, Option<AliveRecord>);

/// A pool that can take a replica.
struct Candidate<'a> {
    node_id: &'a str,
    pool_id: Uuid,
    /// Free parts of [`SAME`].
    room: u64,
    replicas: usize,
}

/// Nodes and pools for so many replicas. `first` is preferred where two are the same.
///
/// # Errors
/// [`OpError::TooFewNodes`].
pub fn place(
    nodes: &[Seen],
    there: &[ReplicationRecord],
    wanted: usize,
    first: &str,
) -> Result<Vec<(String, Uuid)>, OpError> {
    let mut taken: HashMap<&str, usize> = HashMap::new();
    for replica in there.iter().flat_map(|r| &r.replicas) {
        *taken.entry(&replica.node_id).or_default() += 1;
    }
    let mut found = Vec::new();
    let mut others = Vec::new();
    for (node, alive) in nodes {
        match candidate(node, alive.as_ref()) {
            Ok(pool) => found.push(Candidate {
                node_id: &node.node_id,
                pool_id: pool.pool_id,
                room: pool.free_bytes / (pool.total_bytes / SAME).max(1),
                replicas: taken.get(node.node_id.as_str()).copied().unwrap_or(0),
            }),
            Err(why) => others.push(format!("{}: {why}", node.node_id)),
        }
    }
    if found.len() < wanted {
        let found = found.iter().map(|c| c.node_id.to_owned()).collect();
        return Err(OpError::TooFewNodes {
            wanted,
            found,
            others,
        });
    }
    found.sort_by_key(|c| (Reverse(c.room), c.replicas, c.node_id != first, c.node_id));
    found.truncate(wanted);
    Ok(found
        .iter()
        .map(|c| (c.node_id.to_owned(), c.pool_id))
        .collect())
}

/// A node and pool for one replica more, of `nodes`, which have none; `has`: those that have one.
///
/// # Errors
/// [`OpError::NoNode`].
pub fn another(
    nodes: &[Seen],
    there: &[ReplicationRecord],
    first: &str,
    has: &[&str],
) -> Result<(String, Uuid), OpError> {
    let placed = match place(nodes, there, 1, first) {
        Ok(placed) => placed,
        Err(OpError::TooFewNodes { others, .. }) => {
            return Err(OpError::NoNode {
                has: has.iter().map(|n| (*n).to_owned()).collect(),
                others,
            });
        }
        Err(other) => return Err(other),
    };
    let one = placed.into_iter().next();
    one.ok_or_else(|| OpError::Internal("a place is none".into()))
}

/// The pool for a replica on this node.
///
/// # Errors
/// There is no such node, or why it can have none.
pub fn place_on(nodes: &[Seen], node_id: &str) -> Result<(String, Uuid), OpError> {
    let found = nodes.iter().find(|(node, _)| node.node_id == node_id);
    let (node, alive) = found.ok_or_else(|| OpError::NotFound {
        kind: "node",
        name: node_id.into(),
    })?;
    match candidate(node, alive.as_ref()) {
        Ok(pool) => Ok((node_id.to_owned(), pool.pool_id)),
        Err(why) => Err(OpError::State(format!(
            "node {node_id} cannot have a replica: {why}"
        ))),
    }
}

/// The pool of a node with most room, or why it has none for a replica.
fn candidate<'a>(
    node: &NodeRecord,
    alive: Option<&'a AliveRecord>,
) -> Result<&'a PoolSpace, &'static str> {
    let alive = alive.ok_or("it is away")?;
    if alive.incarnation.is_empty() {
        return Err("its data path is away");
    }
    if node.replication_address.is_empty() {
        return Err("its data path was started without --replication");
    }
    // What lies in memory is lost with the process, and with it a copy that others count on (rule 9).
    let drives = alive.pools.iter().filter(|p| !p.memory);
    let best = drives.max_by_key(|p| p.free_bytes);
    match best {
        None if alive.pools.is_empty() => Err("it has no pool"),
        None => Err("its pool is memory, and replicas want drives"),
        Some(pool) if pool.free_bytes == 0 => Err("its pool is full"),
        Some(pool) => Ok(pool),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(id: &str, free_gib: u64) -> Seen {
        let record = NodeRecord {
            node_id: id.into(),
            version: String::new(),
            hostname: String::new(),
            nvme_address: String::new(),
            sdk_address: String::new(),
            rest_address: String::new(),
            replication_address: "127.0.0.1:9022".into(),
            public_key: String::new(),
        };
        let alive = AliveRecord {
            pid: 1,
            incarnation: "x".into(),
            pools: vec![PoolSpace {
                pool_id: Uuid::from_u128(1),
                memory: false,
                total_bytes: 100 * GIB,
                free_bytes: free_gib * GIB,
            }],
        };
        (record, Some(alive))
    }

    fn ids(placed: Vec<(String, Uuid)>) -> Vec<String> {
        placed.into_iter().map(|(node, _)| node).collect()
    }

    #[test]
    fn room_counts_first_then_replicas_then_the_one_that_is_asked() {
        let nodes = [node("a", 10), node("b", 50), node("c", 50), node("d", 90)];
        assert_eq!(ids(place(&nodes, &[], 2, "a").unwrap()), ["d", "b"]);
        assert_eq!(ids(place(&nodes, &[], 2, "c").unwrap()), ["d", "c"]);
        let there =
            ReplicationRecord::new(0, [(Uuid::from_u128(2), "c".into(), Uuid::nil())], 1, 1);
        let placed = place(&nodes, &[there.unwrap()], 2, "c");
        assert_eq!(ids(placed.unwrap()), ["d", "b"]);
    }

    #[test]
    fn who_cannot_have_one_is_named_with_the_reason() {
        let mut nodes = ["a", "b", "c", "d", "e", "f"].map(|id| node(id, 9));
        nodes[1].1 = None;
        nodes[2].1.as_mut().unwrap().incarnation.clear();
        nodes[3].0.replication_address.clear();
        nodes[4].1.as_mut().unwrap().pools[0].memory = true;
        nodes[5].1.as_mut().unwrap().pools.clear();
        let error = place(&nodes, &[], 3, "a").unwrap_err().to_string();
        for says in [
            "3 nodes",
            "1: a",
            "b: it is away",
            "c: its data path",
            "d: its data path was started",
            "e: its pool is memory",
            "f: it has no pool",
        ] {
            assert!(error.contains(says), "{error} does not say {says}");
        }
        assert_eq!(ids(place(&nodes, &[], 1, "z").unwrap()), ["a"]);
        let error = another(&nodes[1..], &[], "a", &["a"]).unwrap_err();
        for says in ["a: it has one", "b: it is away", "f: it has no pool"] {
            assert!(
                error.to_string().contains(says),
                "{error} does not say {says}"
            );
        }
        assert_eq!(place_on(&nodes, "a").unwrap().0, "a");
        let error = place_on(&nodes, "b").unwrap_err().to_string();
        assert!(error.contains("it is away"), "{error}");
        assert!(matches!(
            place_on(&nodes, "z"),
            Err(OpError::NotFound { .. })
        ));
    }
}
