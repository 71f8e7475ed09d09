//! What is always so, over clusters that are drawn at random: compared with all placements that there are, where those are few enough.
use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// All ways to take `n` of these.
fn ways(of: &[usize], n: usize) -> Vec<Vec<usize>> {
    match (n, of) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [first, rest @ ..]) => {
            let with = ways(rest, n - 1).into_iter();
            let with = with.map(|mut w| {
                w.push(*first);
                w
            });
            with.chain(ways(rest, n)).collect()
        }
    }
}

fn pairs<'a>(cluster: &'a Cluster, nodes: &[usize], of: impl Fn(&'a Node) -> String) -> usize {
    let names: Vec<String> = nodes.iter().map(|n| of(&cluster.nodes()[*n])).collect();
    let pair = |(i, a): (usize, &String)| names[..i].iter().filter(|b| *b == a).count();
    names.iter().enumerate().map(pair).sum()
}

fn zone(node: &Node) -> String {
    node.labels.get("zone").cloned().unwrap_or_default()
}

fn rack(node: &Node) -> String {
    let rack = node.labels.get("rack").cloned().unwrap_or_default();
    format!("{}/{rack}", zone(node))
}

prop_compose! {
    fn any_node()(
        zone in 0..5u8, rack in 0..4u8, free in 0..100u64, provisioned in 0..400u64, load in 0..100u8,
        disk in prop::sample::select(vec!["ssd", "hdd"]), away in prop::bool::weighted(0.1),
    ) -> Node {
        let names = (format!("z{zone}"), format!("r{rack}"));
        let mut pairs = vec![("disk", disk)];
        // Some do not say their zone, or rack.
        if zone > 0 { pairs.push(("zone", &names.0)); }
        if rack > 0 { pairs.push(("rack", &names.1)); }
        let mut new = node("", &pairs);
        new.refused = away.then(|| "it is away".to_owned());
        new.load_percent = load;
        new.pools[0].free_bytes = free * GIB;
        new.pools[0].provisioned_bytes = provisioned * GIB;
        new
    }
}

prop_compose! {
    fn any_cluster()(nodes in prop::collection::vec(any_node(), 1..9)) -> Cluster {
        let named = nodes.into_iter().enumerate().map(|(i, n)| Node { node_id: format!("n{i}"), ..n });
        Cluster::new(named.collect())
    }
}

fn indices(cluster: &Cluster, choice: &Choice<'_>) -> Vec<usize> {
    let picks = choice.picks();
    picks.iter().filter_map(|(n, _)| cluster.index(n)).collect()
}

fn able(cluster: &Cluster, wish: &Request<'_>) -> Vec<usize> {
    let fits = |n: &Node| {
        let pool = &n.pools[0];
        let limit = wish.limits.provisionable(pool).unwrap_or(u64::MAX);
        let in_limit = pool.provisioned_bytes + wish.size_bytes <= limit;
        n.refused.is_none() && pool.free_bytes > wish.limits.reserved(pool) && in_limit
    };
    let nodes = cluster.nodes().iter().enumerate();
    nodes.filter(|(_, n)| fits(n)).map(|(i, _)| i).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No placement has fewer pairs in one zone, nor, with as few, fewer in one rack; and one is found if there are enough nodes.
    #[test]
    fn no_domain_is_shared_where_that_can_be_avoided(cluster in any_cluster(), n in 1..5usize, held in 0..3usize) {
        let mut wish = request(n);
        wish.held = cluster.nodes()[..held.min(cluster.nodes().len())].iter().map(|n| n.node_id.as_str()).collect();
        let held: Vec<usize> = wish.held.iter().filter_map(|n| cluster.index(n)).collect();
        let mut able = able(&cluster, &wish);
        able.retain(|n| !held.contains(n));
        let found = cluster.choose(&wish);
        prop_assert_eq!(found.is_ok(), able.len() >= n);
        if let Ok(choice) = found {
            let with = |of: &[usize]| of.iter().chain(&held).copied().collect::<Vec<_>>();
            let of = |nodes: &[usize]| (pairs(&cluster, nodes, zone), pairs(&cluster, nodes, rack));
            let least = ways(&able, n).iter().map(|w| of(&with(w))).min();
            prop_assert_eq!(Some(of(&with(&indices(&cluster, &choice)))), least);
        }
    }

    /// Whatever is asked, nothing is beyond the limits, on one node twice, or on one that cannot have it.
    #[test]
    fn limits_and_filters_hold(cluster in any_cluster(), n in 1..5usize, over in 0..400u32, reserve in 0..90u32, size in 1..200u64) {
        let mut wish = request(n);
        wish.size_bytes = size * GIB;
        wish.limits = Limits { overcommit_percent: over, reserve_percent: reserve };
        if let Ok(choice) = cluster.choose(&wish) {
            let picks = indices(&cluster, &choice);
            let nodes: HashSet<usize> = picks.iter().copied().collect();
            prop_assert_eq!(nodes.len(), n);
            let able = able(&cluster, &wish);
            prop_assert!(picks.iter().all(|p| able.contains(p)));
        }
    }

    /// Required rules are never broken, a placement that keeps them is found if there is one, and none that does shares fewer zones.
    #[test]
    fn required_rules_are_kept_if_they_can_be(
        cluster in any_cluster(), n in 1..5usize, ssd in 0..4u8, hdd in 0..4u8, apart in 0..5u8, together in 0..4u8,
    ) {
        let on = |value: &str, k: u8| ReplicaRule {
            required: true,
            affected_replicas: k,
            match_expressions: vec![condition("disk", Operator::In, &[value])],
            ..Default::default()
        };
        let by = |key: &str, k: u8| ReplicaRule {
            required: true,
            affected_replicas: k,
            topology_key: key.into(),
            ..Default::default()
        };
        // 0 would be all, which only one of them can be.
        let mut rules = Rules::default();
        rules.replica_affinity.extend((ssd > 0).then(|| on("ssd", ssd)));
        rules.replica_affinity.extend((hdd > 0).then(|| on("hdd", hdd)));
        rules.replica_affinity.extend((together > 1).then(|| by("rack", together)));
        rules.replica_anti_affinity.extend((apart > 0).then(|| by("zone", apart)));
        let mut wish = request(n);
        wish.rules = Some(&rules);
        let keeps = |nodes: &[usize]| {
            let of = |n: &usize| &cluster.nodes()[*n];
            let disks = |d: &str| nodes.iter().filter(|n| of(n).labels["disk"] == d).count();
            let said = nodes.iter().filter(|n| of(n).labels.contains_key("zone"));
            let zones: HashSet<String> = said.map(|n| zone(of(n))).collect();
            let in_rack = |n: &usize| nodes.iter().filter(|m| rack(of(m)) == rack(of(n))).count();
            let racks = nodes.iter().filter(|n| of(n).labels.contains_key("rack")).map(in_rack).max();
            let k = |k: u8| usize::from(k).min(n);
            disks("ssd") >= k(ssd) && disks("hdd") >= k(hdd) && zones.len() >= k(apart)
                && (together < 2 || racks.unwrap_or(0) >= k(together))
        };
        let able = able(&cluster, &wish);
        let possible = ways(&able, n).iter().any(|w| keeps(w));
        match cluster.choose(&wish) {
            Ok(choice) => {
                let picks = indices(&cluster, &choice);
                prop_assert!(keeps(&picks));
                let kept = ways(&able, n).into_iter().filter(|w| keeps(w));
                let least = kept.map(|w| pairs(&cluster, &w, zone)).min();
                prop_assert_eq!(Some(pairs(&cluster, &picks, zone)), least);
            }
            Err(none) => prop_assert!(!possible || none.gave_up),
        }
        prop_assert_eq!(cluster.choose(&wish).is_ok(), possible);
    }

    /// The same input gives the same choice, in whatever order the nodes are given, and every node has a word.
    #[test]
    fn it_is_a_function_of_what_is_given(cluster in any_cluster(), n in 1..4usize) {
        let mut turned = cluster.nodes().to_vec();
        turned.reverse();
        let turned = Cluster::new(turned);
        let (wish, again) = (request(n), request(n));
        if let (Ok(a), Ok(b)) = (cluster.choose(&wish), turned.choose(&again)) {
            prop_assert_eq!(a.picks(), b.picks());
            prop_assert_eq!(a.explain().len(), cluster.nodes().len());
            prop_assert_eq!(a.explain(), b.explain());
        }
    }
}
