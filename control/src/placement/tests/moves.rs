//! Rebalance.
use super::*;
use crate::placement::rebalance::{Aim, Movable, Why};

fn aim() -> Aim {
    Aim {
        over_percent: 5,
        under_percent: 5,
        moves_max: 100,
        from: None,
        to: None,
    }
}

/// `zones` of three nodes each; volumes of 10 GiB on the first `used` nodes, one replica each.
fn grown(zones: usize, used: usize, volumes: usize) -> (Cluster, Vec<(String, u64)>) {
    let nodes = (0..zones * 3).map(|i| {
        let zone = format!("z{}", i % zones);
        let mut node = node(&format!("n{i:02}"), &[("zone", &zone)]);
        node.pools[0].pool_id = Uuid::from_u128(i as u128);
        node
    });
    let mut cluster = Cluster::new(nodes.collect());
    let at: Vec<(String, u64)> = (0..volumes)
        .map(|v| (format!("n{:02}", v % used), 10 * GIB))
        .collect();
    for (node, bytes) in &at {
        let pool = cluster.nodes()[cluster.index(node).unwrap()].pools[0].pool_id;
        cluster.count(node, pool, *bytes, false);
    }
    (cluster, at)
}

fn movable<'a>(
    cluster: &Cluster,
    at: &'a [(String, u64)],
    labels: &'a BTreeMap<String, String>,
) -> Vec<Movable<'a>> {
    let one = |(i, (node, bytes)): (usize, &'a (String, u64))| Movable {
        volume_id: Uuid::from_u128(1000 + i as u128),
        size_bytes: *bytes,
        labels,
        rules: None,
        replicas: vec![(
            node.as_str(),
            cluster.nodes()[cluster.index(node).unwrap()].pools[0].pool_id,
        )],
        neighbours: Vec::new(),
    };
    at.iter().enumerate().map(one).collect()
}

#[test]
fn new_nodes_get_their_part_and_nothing_goes_in_circles() {
    let labels = BTreeMap::new();
    let (mut cluster, at) = grown(2, 3, 60);
    let volumes = movable(&cluster, &at, &labels);
    let plan = cluster.rebalance(volumes, Limits::default(), aim());
    // 600 GiB over six pools of 100 GiB: the mean is 100 %, and half of it moves.
    assert_eq!(plan.unbalanced, (3, 0));
    assert_eq!(plan.moves.len(), 30, "as few as can be");
    assert!(plan.moves.iter().all(|m| m.why == Why::Level));
    for node in cluster.nodes() {
        assert_eq!(
            node.pools[0].provisioned_bytes,
            100 * GIB,
            "{}",
            node.node_id
        );
    }
}

#[test]
fn it_goes_no_further_than_it_may() {
    let labels = BTreeMap::new();
    let (mut cluster, at) = grown(2, 3, 60);
    let volumes = movable(&cluster, &at, &labels);
    let few = Aim {
        moves_max: 7,
        ..aim()
    };
    assert_eq!(
        cluster
            .rebalance(volumes, Limits::default(), few)
            .moves
            .len(),
        7
    );
    let (mut cluster, at) = grown(2, 3, 60);
    let volumes = movable(&cluster, &at, &labels);
    let limits = Limits {
        overcommit_percent: 50,
        reserve_percent: 0,
    };
    let plan = cluster.rebalance(volumes, limits, aim());
    assert_eq!(plan.moves.len(), 15, "each new pool takes half of its size");
    let (mut cluster, at) = grown(2, 3, 60);
    let volumes = movable(&cluster, &at, &labels);
    let only = Aim {
        from: Some([Uuid::from_u128(0)].into()),
        to: Some([Uuid::from_u128(5)].into()),
        ..aim()
    };
    let plan = cluster.rebalance(volumes, Limits::default(), only);
    assert!(!plan.moves.is_empty());
    for one in &plan.moves {
        assert_eq!((one.from.0.as_str(), one.to.0.as_str()), ("n00", "n05"));
    }
}

#[test]
fn what_shares_a_zone_without_need_is_moved_first() {
    let labels = BTreeMap::new();
    let (mut cluster, _) = grown(3, 3, 0);
    let pool = |c: &Cluster, n: &str| c.nodes()[c.index(n).unwrap()].pools[0].pool_id;
    // n00, n03 are in zone 0, n01 in zone 1.
    let replicas: Vec<(&str, Uuid)> = ["n00", "n03", "n01"]
        .iter()
        .map(|n| (*n, pool(&cluster, n)))
        .collect();
    let volume = Movable {
        volume_id: Uuid::from_u128(1),
        size_bytes: GIB,
        labels: &labels,
        rules: None,
        replicas,
        neighbours: Vec::new(),
    };
    let plan = cluster.rebalance(vec![volume], Limits::default(), aim());
    assert_eq!(plan.moves.len(), 1);
    let one = &plan.moves[0];
    assert_eq!(one.why, Why::Shared);
    assert_eq!(
        cluster.nodes()[cluster.index(&one.to.0).unwrap()].labels["zone"],
        "z2"
    );
}
