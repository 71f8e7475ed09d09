//! Placement at scale, simulated: `cargo xtask bench placement [-- --nodes 1000 --volumes 100000 --seed 1]`. Places volumes one after the other on nodes of
//! 5 zones with 10 racks each, then adds a tenth of nodes that are empty and plans a rebalance. Prints balance, spread and time; fails if a law is broken:
//! a zone shared, a rule broken, a pool beyond its limit. `docs/placement.md` §9 has the figures.

use clap::Parser;
use keelblock_control::placement::rebalance::{Aim, Movable};
use keelblock_control::placement::{
    Cluster, Limits, Node, Operator, Pool, ReplicaRule, Request, Requirement, Rules,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const ZONES: usize = 5;
const RACKS: usize = 10;
/// Sizes of volumes, and how many of a hundred have them.
const SIZES: [(u64, u32); 5] = [
    (10 * GIB, 40),
    (50 * GIB, 25),
    (100 * GIB, 28),
    (500 * GIB, 5),
    (2 * TIB, 2),
];

#[derive(Debug, Parser)]
struct Args {
    /// Nodes, each with one pool of 16 or 32 TiB.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Volumes: 70 of a hundred with three replicas, the others with two.
    #[arg(long, default_value_t = 100_000)]
    volumes: usize,
    /// Of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Most moves of the rebalance that is planned at the end.
    #[arg(long, default_value_t = 20_000)]
    moves: usize,
}

struct Volume {
    size: u64,
    rules: Option<usize>,
    replicas: Vec<(String, Uuid)>,
}

fn node(i: usize, rng: &mut StdRng) -> Node {
    let total_bytes = if rng.random_ratio(7, 10) { 16 } else { 32 } * TIB;
    let disk = if rng.random_ratio(3, 10) {
        "ssd"
    } else {
        "hdd"
    };
    let labels = [
        ("zone", format!("z{}", i % ZONES)),
        ("rack", format!("r{}", i / ZONES % RACKS)),
        ("disk", disk.to_owned()),
    ];
    Node {
        node_id: format!("n{i:05}"),
        labels: labels.map(|(k, v)| (k.to_owned(), v)).into(),
        refused: None,
        load_percent: rng.random_range(0..60),
        pools: vec![Pool {
            pool_id: Uuid::from_u128(1 + i as u128),
            memory: false,
            total_bytes,
            free_bytes: total_bytes,
            provisioned_bytes: 0,
            replicas: 0,
        }],
    }
}

/// One replica on flash; every replica in another rack.
fn rules() -> [Rules; 2] {
    let flash = ReplicaRule {
        required: true,
        affected_replicas: 1,
        match_expressions: vec![Requirement {
            key: "disk".into(),
            operator: Operator::In,
            values: vec!["ssd".into()],
        }],
        ..Default::default()
    };
    let apart = ReplicaRule {
        required: true,
        topology_key: "rack".into(),
        ..Default::default()
    };
    [
        Rules {
            replica_affinity: vec![flash],
            ..Default::default()
        },
        Rules {
            replica_anti_affinity: vec![apart],
            ..Default::default()
        },
    ]
}

fn size(rng: &mut StdRng) -> u64 {
    let mut at = rng.random_range(0..100);
    for (size, part) in SIZES {
        if at < part {
            return size;
        }
        at -= part;
    }
    SIZES[0].0
}

/// Least, mean, most and standard deviation of a percentage over all pools.
fn balance(cluster: &Cluster, what: &str, of: impl Fn(&Pool) -> u64) {
    let pools = cluster.nodes().iter().flat_map(|n| &n.pools);
    let all: Vec<f64> = pools
        .map(|p| 100.0 * of(p) as f64 / p.total_bytes as f64)
        .collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let variance = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
    let least = all.iter().copied().fold(f64::MAX, f64::min);
    let most = all.iter().copied().fold(0.0, f64::max);
    println!(
        "{what:12} of a pool's size: least {least:.1} %, mean {mean:.1} %, most {most:.1} %, standard deviation {:.2}",
        variance.sqrt()
    );
}

fn at(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    let index = (times.len() as f64 * part) as usize;
    times[index.min(times.len() - 1)].as_secs_f64() * 1e6
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut rng = StdRng::seed_from_u64(args.seed);
    let nodes: Vec<Node> = (0..args.nodes).map(|i| node(i, &mut rng)).collect();
    let mut cluster = Cluster::new(nodes);
    let limits = Limits {
        overcommit_percent: 300,
        reserve_percent: 5,
    };
    let (rules, labels) = (rules(), BTreeMap::new());
    let (mut volumes, mut times) = (Vec::new(), Vec::new());
    let (mut refused, mut faults) = (0, 0);
    for _ in 0..args.volumes {
        let replicas = if rng.random_ratio(7, 10) { 3 } else { 2 };
        let size = size(&mut rng);
        // Five of a hundred have each of the rules.
        let rule = Some(rng.random_range(0..20)).filter(|r| *r < rules.len());
        let request = request(size, replicas, rule.map(|r| &rules[r]), &labels, limits);
        let begun = Instant::now();
        let chosen = cluster.choose(&request).map(|c| c.picks()).ok();
        times.push(begun.elapsed());
        let Some(picks) = chosen else {
            refused += 1;
            continue;
        };
        // Thin: on average a third of it is written.
        let written = (size as f64 * rng.random_range(0.0..0.66)) as u64;
        for (node, pool) in &picks {
            cluster.count(node, *pool, size, false);
            cluster.fill(node, *pool, written);
        }
        volumes.push(Volume {
            size,
            rules: rule,
            replicas: picks,
        });
    }
    let total: Duration = times.iter().sum();
    println!(
        "{} volumes with {} replicas on {} nodes, seed {}; {refused} refused",
        volumes.len(),
        volumes.iter().map(|v| v.replicas.len()).sum::<usize>(),
        args.nodes,
        args.seed
    );
    println!(
        "time: {:.1} s; a placement: median {:.0} µs, 99 % {:.0} µs, most {:.0} µs",
        total.as_secs_f64(),
        at(&mut times, 0.5),
        at(&mut times, 0.99),
        at(&mut times, 1.0)
    );
    balance(&cluster, "provisioned", |p| p.provisioned_bytes);
    balance(&cluster, "used", |p| p.total_bytes - p.free_bytes);
    faults += check(&cluster, &volumes, limits);

    let grown = args.nodes / 10;
    let mut nodes = cluster.nodes().to_vec();
    nodes.extend((args.nodes..args.nodes + grown).map(|i| node(i, &mut rng)));
    let mut cluster = Cluster::new(nodes);
    println!("\n{grown} nodes more:");
    balance(&cluster, "provisioned", |p| p.provisioned_bytes);
    let movable = volumes.iter().enumerate().map(|(i, v)| Movable {
        volume_id: Uuid::from_u128(i as u128),
        size_bytes: v.size,
        labels: &labels,
        rules: v.rules.map(|r| &rules[r]),
        replicas: v.replicas.iter().map(|(n, p)| (n.as_str(), *p)).collect(),
        neighbours: Vec::new(),
    });
    let movable = movable.collect();
    let aim = Aim {
        over_percent: 5,
        under_percent: 5,
        moves_max: args.moves,
        from: None,
        to: None,
    };
    let begun = Instant::now();
    let plan = cluster.rebalance(movable, limits, aim);
    let bytes: u64 = plan.moves.iter().map(|m| m.size_bytes).sum();
    println!(
        "rebalance: {} moves of {:.0} TiB (sizes), planned in {:.1} s; pools above the mean by more than 5 %: {} before, {} after",
        plan.moves.len(),
        bytes as f64 / TIB as f64,
        begun.elapsed().as_secs_f64(),
        plan.unbalanced.0,
        plan.unbalanced.1
    );
    balance(&cluster, "provisioned", |p| p.provisioned_bytes);
    for one in &plan.moves {
        let index = one.volume_id.as_u128() as usize;
        let replicas = &mut volumes[index].replicas;
        replicas.retain(|r| *r != one.from);
        replicas.push(one.to.clone());
    }
    faults += check(&cluster, &volumes, limits);
    match faults {
        0 => ExitCode::SUCCESS,
        n => {
            println!("{n} FAULTS");
            ExitCode::FAILURE
        }
    }
}

fn request<'a>(
    size_bytes: u64,
    replicas: usize,
    rules: Option<&'a Rules>,
    labels: &'a BTreeMap<String, String>,
    limits: Limits,
) -> Request<'a> {
    Request {
        size_bytes,
        replicas,
        labels,
        rules,
        held: Vec::new(),
        shut: Vec::new(),
        nodes: None,
        pools: None,
        neighbours: Vec::new(),
        limits,
        first: "",
    }
}

/// Prints how replicas are spread, and counts what must not be.
fn check(cluster: &Cluster, volumes: &[Volume], limits: Limits) -> usize {
    let (mut same_zone, mut same_rack, mut broken) = (0, 0, 0);
    for volume in volumes {
        let nodes: Vec<&str> = volume.replicas.iter().map(|r| r.0.as_str()).collect();
        let (zones, racks) = cluster.shared(&nodes);
        same_zone += usize::from(zones > 0);
        same_rack += usize::from(racks > 0);
        let labels = |node: &&str| cluster.index(node).map(|i| &cluster.nodes()[i].labels);
        let flash = |node: &&str| labels(node).is_some_and(|l| l["disk"] == "ssd");
        broken += usize::from(volume.rules == Some(0) && !nodes.iter().any(flash));
    }
    let pools = cluster.nodes().iter().flat_map(|n| &n.pools);
    let beyond = |p: &&Pool| {
        limits
            .provisionable(p)
            .is_some_and(|most| p.provisioned_bytes > most)
    };
    let beyond = pools.filter(beyond).count();
    println!(
        "spread: {same_zone} volumes with two replicas in one zone, {same_rack} in one rack; {broken} rules broken; {beyond} pools beyond the limit"
    );
    same_zone + same_rack + broken + beyond
}
