//! Placement: what is always so (`laws`, drawn at random), rules one by one (`rules`), filters and limits (`filters`), what is said (`words`).
mod filters;
mod laws;
mod moves;
mod rules;
mod words;

use super::*;
use std::collections::BTreeMap;
use uuid::Uuid;

pub const GIB: u64 = 1 << 30;

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(owned).collect()
}

pub fn pool(free_gib: u64) -> Pool {
    Pool {
        pool_id: Uuid::from_u128(1),
        memory: false,
        total_bytes: 100 * GIB,
        free_bytes: free_gib * GIB,
        provisioned_bytes: 0,
        replicas: 0,
    }
}

/// A node with a pool of 100 GiB that is empty.
pub fn node(id: &str, pairs: &[(&str, &str)]) -> Node {
    Node {
        node_id: id.into(),
        labels: labels(pairs),
        refused: None,
        load_percent: 0,
        pools: vec![pool(100)],
    }
}

pub fn condition(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement {
        key: key.into(),
        operator,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    }
}

pub fn request(replicas: usize) -> Request<'static> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    Request {
        size_bytes: GIB,
        replicas,
        labels: &NONE,
        rules: None,
        held: Vec::new(),
        shut: Vec::new(),
        nodes: None,
        pools: None,
        neighbours: Vec::new(),
        limits: Limits::default(),
        first: "",
    }
}

/// The ids of the nodes that are chosen, in their order.
pub fn chosen(cluster: &Cluster, request: &Request<'_>) -> Vec<String> {
    let choice = cluster.choose(request).expect("there is a placement");
    choice.picks().into_iter().map(|(node, _)| node).collect()
}

/// What an explanation says of a node.
pub fn said(verdicts: &[Verdict], id: &str) -> Outcome {
    let found = verdicts.iter().find(|v| v.node_id == id);
    found.expect("every node is in it").outcome.clone()
}
