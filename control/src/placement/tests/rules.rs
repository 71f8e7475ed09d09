//! Rules, one by one.
use super::*;

fn required(rule: ReplicaRule) -> ReplicaRule {
    ReplicaRule {
        required: true,
        ..rule
    }
}

fn on(key: &str, value: &str) -> ReplicaRule {
    ReplicaRule {
        match_expressions: vec![condition(key, Operator::In, &[value])],
        ..Default::default()
    }
}

fn by(key: &str) -> ReplicaRule {
    ReplicaRule {
        topology_key: key.into(),
        ..Default::default()
    }
}

fn cluster() -> Cluster {
    let all = [
        ("a", "z1", "ssd"),
        ("b", "z1", "hdd"),
        ("c", "z1", "hdd"),
        ("d", "z2", "hdd"),
        ("e", "z2", "hdd"),
        ("f", "z3", "ssd"),
    ];
    let one = |(id, zone, disk): (&str, &str, &str)| node(id, &[("zone", zone), ("disk", disk)]);
    Cluster::new(all.map(one).to_vec())
}

fn sorted(cluster: &Cluster, wish: &Request<'_>) -> Vec<String> {
    let mut ids = chosen(cluster, wish);
    ids.sort();
    ids
}

#[test]
fn one_on_flash_and_two_on_disks() {
    let rules = Rules {
        replica_affinity: vec![
            required(ReplicaRule {
                affected_replicas: 1,
                ..on("disk", "ssd")
            }),
            required(ReplicaRule {
                affected_replicas: 2,
                ..on("disk", "hdd")
            }),
        ],
        ..Default::default()
    };
    let mut wish = request(3);
    wish.rules = Some(&rules);
    assert_eq!(sorted(&cluster(), &wish), ["b", "d", "f"]);
    // A fourth that both rules leave free, with those three there.
    let mut more = request(1);
    (more.rules, more.held) = (Some(&rules), vec!["b", "d", "f"]);
    assert_eq!(chosen(&cluster(), &more), ["a"]);
}

#[test]
fn all_in_one_zone_goes_to_the_zone_that_has_enough() {
    let together = Rules {
        replica_affinity: vec![required(by("zone"))],
        ..Default::default()
    };
    let mut wish = request(3);
    wish.rules = Some(&together);
    wish.first = "f";
    assert_eq!(sorted(&cluster(), &wish), ["a", "b", "c"]);
    wish.replicas = 4;
    let none = cluster();
    let none = none.choose(&wish).unwrap_err();
    assert!(none.by_rules() && !none.gave_up);
}

#[test]
fn required_apart_has_no_placement_where_there_are_too_few_domains() {
    let apart = Rules {
        replica_anti_affinity: vec![required(by("zone"))],
        ..Default::default()
    };
    let mut wish = request(3);
    wish.rules = Some(&apart);
    let cluster = cluster();
    let zones = |ids: Vec<String>| -> std::collections::HashSet<String> {
        let of = |id: &String| cluster.nodes()[cluster.index(id).unwrap()].labels["zone"].clone();
        ids.iter().map(of).collect()
    };
    assert_eq!(zones(chosen(&cluster, &wish)).len(), 3);
    wish.replicas = 4;
    assert!(cluster.choose(&wish).is_err());
    // Two of the four is enough to ask for.
    let two = Rules {
        replica_anti_affinity: vec![required(ReplicaRule {
            affected_replicas: 3,
            ..by("zone")
        })],
        ..Default::default()
    };
    wish.rules = Some(&two);
    assert_eq!(zones(chosen(&cluster, &wish)).len(), 3);
}

#[test]
fn a_preferred_rule_comes_before_spread_and_is_broken_when_it_must_be() {
    let prefer = Rules {
        replica_affinity: vec![on("zone", "z1")],
        ..Default::default()
    };
    let mut wish = request(3);
    wish.rules = Some(&prefer);
    assert_eq!(sorted(&cluster(), &wish), ["a", "b", "c"]);
    wish.replicas = 4;
    assert_eq!(chosen(&cluster(), &wish).len(), 4);
    // Away from flash costs more than being in z1.
    let both = Rules {
        replica_affinity: vec![on("zone", "z1")],
        replica_anti_affinity: vec![ReplicaRule {
            weight: 5,
            ..on("disk", "ssd")
        }],
        ..Default::default()
    };
    (wish.rules, wish.replicas) = (Some(&both), 3);
    assert_eq!(sorted(&cluster(), &wish)[..2], ["b", "c"]);
    assert!(!sorted(&cluster(), &wish).contains(&"f".to_owned()));
}

#[test]
fn near_to_and_away_from_other_volumes() {
    let app = labels(&[("app", "db")]);
    let neighbour = |nodes: Vec<&'static str>| Neighbour {
        name: "other",
        labels: &app,
        rules: None,
        nodes,
    };
    let rule = VolumeRule {
        required: true,
        match_expressions: vec![condition("app", Operator::In, &["db"])],
        ..Default::default()
    };
    let near = Rules {
        volume_affinity: vec![rule.clone()],
        ..Default::default()
    };
    let mut wish = request(2);
    wish.rules = Some(&near);
    assert_eq!(chosen(&cluster(), &wish).len(), 2, "there is none yet");
    wish.neighbours = vec![neighbour(vec!["b", "e"])];
    assert_eq!(sorted(&cluster(), &wish), ["b", "e"]);
    let away = Rules {
        volume_anti_affinity: vec![VolumeRule {
            topology_key: "zone".into(),
            ..rule
        }],
        ..Default::default()
    };
    wish.rules = Some(&away);
    wish.replicas = 1;
    assert_eq!(chosen(&cluster(), &wish), ["f"]);
    // It binds the other side as well.
    let mut other = request(1);
    other.labels = &app;
    let none = BTreeMap::new();
    other.neighbours = vec![Neighbour {
        name: "lonely",
        labels: &none,
        rules: Some(&away),
        nodes: vec!["b", "e"],
    }];
    assert_eq!(chosen(&cluster(), &other), ["f"]);
}

#[test]
fn replicas_stay_in_one_region_unless_a_rule_or_want_of_nodes_says_otherwise() {
    let one = |id: &str, region: &str, zone: &str| node(id, &[("region", region), ("zone", zone)]);
    let nodes = vec![
        one("a", "r1", "x"),
        one("b", "r1", "x"),
        one("c", "r2", "x"),
        one("d", "r2", "y"),
        one("e", "r3", "x"),
    ];
    let cluster = Cluster::new(nodes);
    assert_eq!(sorted(&cluster, &request(2)), ["c", "d"], "two zones");
    assert_eq!(chosen(&cluster, &request(3)).len(), 3);
    let mut wish = request(1);
    wish.held = vec!["a"];
    assert_eq!(chosen(&cluster, &wish), ["b"]);
    let rules = Rules {
        replica_anti_affinity: vec![by("topology.kubernetes.io/region")],
        ..Default::default()
    };
    let mut wish = request(3);
    wish.rules = Some(&rules);
    let ids = sorted(&cluster, &wish);
    assert!(
        ["a", "b"].contains(&ids[0].as_str()) && ids[2] == "e",
        "{ids:?}"
    );
}

#[test]
fn what_says_nothing_is_found() {
    let nothing = Rules {
        replica_affinity: vec![on("a", "b"), ReplicaRule::default()],
        ..Default::default()
    };
    assert_eq!(nothing.fault().unwrap().0, "replica_affinity[1]");
    let volumes = Rules {
        volume_anti_affinity: vec![VolumeRule::default()],
        ..Default::default()
    };
    assert_eq!(volumes.fault().unwrap().0, "volume_anti_affinity[0]");
    assert!(Rules::default().is_empty() && Rules::default().fault().is_none());
}
