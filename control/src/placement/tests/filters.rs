//! Who cannot have a replica, which pool is taken, and limits.
use super::*;

fn refusal(cluster: &Cluster, request: &Request<'_>, id: &str) -> String {
    let verdicts = match cluster.choose(request) {
        Ok(choice) => choice.explain(),
        Err(none) => none.explain(),
    };
    match said(&verdicts, id) {
        Outcome::Refused(why) => why,
        other => panic!("{id} is {other:?}"),
    }
}

#[test]
fn everyone_who_cannot_is_told_why() {
    let mut nodes = ["a", "b", "c", "d", "e", "f", "g"].map(|id| node(id, &[]));
    nodes[1].refused = Some("it is in maintenance".into());
    nodes[2].pools.clear();
    nodes[3].pools[0].memory = true;
    nodes[4].pools[0].free_bytes = 0;
    nodes[5].pools[0].free_bytes = 5 * GIB;
    nodes[6].pools[0].provisioned_bytes = 180 * GIB;
    let cluster = Cluster::new(nodes.to_vec());
    let mut wish = request(1);
    wish.limits = Limits {
        overcommit_percent: 200,
        reserve_percent: 10,
    };
    assert_eq!(chosen(&cluster, &wish), ["a"]);
    for (id, says) in [
        ("b", "maintenance"),
        ("c", "no pool"),
        ("d", "memory"),
        ("e", "full"),
        ("f", "are reserved"),
        ("g", "provisioned"),
    ] {
        let why = refusal(&cluster, &wish, id);
        assert!(why.contains(says), "{id}: {why}");
    }
    wish.held = vec!["a"];
    assert!(cluster.choose(&wish).is_err(), "two on one node");
    wish.held.clear();
    wish.nodes = Some(vec!["b"]);
    assert!(refusal(&cluster, &wish, "a").contains("other nodes"));
    wish.nodes = None;
    wish.pools = Some(vec![Uuid::from_u128(9)]);
    assert!(refusal(&cluster, &wish, "a").contains("other pools"));
}

#[test]
fn the_limit_is_met_to_the_byte_and_counts_the_reserve() {
    let limits = Limits {
        overcommit_percent: 150,
        reserve_percent: 20,
    };
    let one = |provisioned: u64| {
        let mut node = node("a", &[]);
        node.pools[0].provisioned_bytes = provisioned;
        let mut wish = request(1);
        wish.limits = limits;
        Cluster::new(vec![node]).choose(&wish).is_ok()
    };
    // 100 GiB less 20, one and a half times.
    assert!(one(119 * GIB));
    assert!(!one(119 * GIB + 1));
}

#[test]
fn the_better_pool_of_a_node_is_taken() {
    let mut node = node("a", &[]);
    node.pools.push(Pool {
        pool_id: Uuid::from_u128(2),
        ..pool(50)
    });
    node.pools[0].free_bytes = 10 * GIB;
    let cluster = Cluster::new(vec![node]);
    let choice = cluster.choose(&request(1)).unwrap();
    assert_eq!(choice.picks(), [("a".to_owned(), Uuid::from_u128(2))]);
}

#[test]
fn free_space_promises_and_load_count_then_the_node_that_was_asked() {
    let mut nodes = ["a", "b", "c"].map(|id| node(id, &[]));
    let mut wish = request(1);
    wish.first = "b";
    let best =
        |nodes: &[Node], wish: &Request<'_>| chosen(&Cluster::new(nodes.to_vec()), wish).remove(0);
    assert_eq!(best(&nodes, &wish), "b");
    nodes[1].pools[0].replicas = 1;
    assert_eq!(best(&nodes, &wish), "a");
    nodes[0].load_percent = 50;
    assert_eq!(best(&nodes, &wish), "c");
    nodes[2].pools[0].provisioned_bytes = 100 * GIB;
    assert_eq!(best(&nodes, &wish), "b");
    nodes[1].pools[0].free_bytes = GIB;
    assert_eq!(best(&nodes, &wish), "a");
}

#[test]
fn conditions_on_labels() {
    use Operator::*;
    let has = labels(&[("disk", "ssd"), ("gen", "7")]);
    for (condition, holds) in [
        (condition("disk", In, &["hdd", "ssd"]), true),
        (condition("disk", NotIn, &["ssd"]), false),
        (condition("other", NotIn, &["x"]), true),
        (condition("disk", Exists, &[]), true),
        (condition("other", DoesNotExist, &[]), true),
        (condition("gen", Gt, &["6"]), true),
        (condition("gen", Lt, &["7"]), false),
        (condition("disk", Gt, &["1"]), false),
    ] {
        assert!(condition.fault().is_none());
        assert_eq!(
            matches(std::slice::from_ref(&condition), &has),
            holds,
            "{condition:?}"
        );
    }
    for faulty in [
        condition("", Exists, &[]),
        condition("k", In, &[]),
        condition("k", Exists, &["v"]),
        condition("k", Gt, &["x"]),
    ] {
        assert!(faulty.fault().is_some(), "{faulty:?}");
    }
}
