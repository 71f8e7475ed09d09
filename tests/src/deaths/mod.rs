//! Three to five nodes, volumes with three replicas, hosts with a path to each node, and at random: processes that are killed or paused, packets that are dropped, drives that fail and
//! fill up. No acknowledged write is lost or older than it was, and everything is in sync again after each.
//!
//! This is about real processes and sockets; the simulator is the place for power cuts and all that needs many tries. What is random is decided by the seed but for time.

pub mod cuts;
mod drives;
mod groups;
pub(crate) mod host;
pub(crate) mod left_over;
mod misfortune;

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::several::{VOLUME, locate_volume, volume_at};
use crate::workload::Target;
use groups::Groups;
use host::{BLOCKS, Host, Shared};
pub use misfortune::Misfortune;
use misfortune::Scene;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Hosts, each with one command in flight.
const HOSTS: u64 = 4;
/// How often states are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Of `up`. Drives are small, so that one is soon full.
const ARGS: [&str; 4] = ["--size", "256M", "--reactors", "1"];
/// Replicas of each volume.
pub(crate) const REPLICAS: usize = 3;
/// Members of etcd.
pub(crate) const ETCD_MEMBERS: usize = 3;

/// The volumes: where there are more nodes than replicas, two, so that each node has something.
pub(crate) fn volumes(nodes: usize) -> &'static [&'static str] {
    match nodes {
        ..=REPLICAS => &[VOLUME],
        _ => &[VOLUME, "s"],
    }
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long.
    pub seconds: u64,
    /// Decides everything that is random but time.
    pub seed: u64,
    /// The network is cut, too. [`cuts::leave`] was called.
    pub cuts: bool,
    /// Drives fail and fill up, too.
    pub drives: bool,
    /// How many nodes, 3 to 5.
    pub nodes: u16,
    /// An etcd of three members is the key-value database, and dies, too.
    pub etcd: bool,
    /// Only these misfortunes; empty: all that are possible.
    pub only: Vec<Misfortune>,
    /// Each begins when all is well.
    pub one_by_one: bool,
}

impl Plan {
    /// Deaths of processes of three nodes.
    pub fn new(seconds: u64, seed: u64) -> Self {
        Self {
            seconds,
            seed,
            cuts: false,
            drives: false,
            nodes: 3,
            etcd: false,
            only: Vec::new(),
            one_by_one: false,
        }
    }
}

impl Plan {
    fn misfortunes(&self) -> Vec<Misfortune> {
        if !self.only.is_empty() {
            return self.only.clone();
        }
        let mut all = misfortune::DEATHS.to_vec();
        match self.etcd {
            true => all.extend(misfortune::ETCD),
            false => all.extend(misfortune::KVDB_OF_UP),
        }
        if self.cuts {
            all.extend(misfortune::CUTS);
        }
        if self.drives {
            all.extend(misfortune::DRIVES);
        }
        all
    }
}

/// What was done, and how long hosts waited.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Reads that were compared.
    pub reads: u64,
    /// Of each misfortune, the longest time that a command took from it until all was well.
    pub stalls: BTreeMap<Misfortune, Vec<Duration>>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times: usize = self.stalls.values().map(Vec::len).sum();
        let (writes, reads) = (self.writes, self.reads);
        writeln!(
            f,
            "{times} misfortunes, {writes} writes, {reads} reads compared; longest wait of a command:"
        )?;
        for (what, stalls) in &self.stalls {
            let mut sorted = stalls.clone();
            sorted.sort();
            let (median, most) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
            let n = sorted.len();
            writeln!(
                f,
                "{what:?}: {n} times, median {median:.1?}, at most {most:.1?}"
            )?;
        }
        Ok(())
    }
}

/// Runs for so long.
///
/// # Errors
/// What does not hold, in words; or what this machine lacks.
///
/// # Panics
/// If the cluster cannot be made, or does not heal; with all logs.
pub fn run(plan: Plan) -> Result<Report, String> {
    let lacks = |e: std::io::Error| format!("cuts and failing drives need root: {e}");
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let all = plan.misfortunes();
    let count = usize::from(plan.nodes);
    let number = plan.nodes.to_string();
    let mut builder = Cluster::builder().arg(&ARGS).arg(&["--nodes", &number]);
    for volume in volumes(count) {
        builder = builder.volume(&format!("{volume}:64M:{REPLICAS}"));
    }
    let etcd = match plan.etcd {
        true => Some(Etcd::start(builder.dir().join("etcd"), ETCD_MEMBERS)?),
        false => None,
    };
    if let Some(etcd) = &etcd {
        builder = builder.arg(&["--etcd", &etcd.endpoints()]);
    }
    let nodes = (1..=count).map(|n| format!("node-{n}"));
    let names: Vec<String> = nodes.chain([cuts::KVDB.to_owned()]).collect();
    let mut groups = None;
    if plan.cuts || plan.drives {
        let made = groups.insert(Groups::new(&names).map_err(lacks)?);
        let programs = builder.dir().join("programs");
        made.wrap(&programs, drives::SIGNAL).map_err(lacks)?;
        builder = builder.programs(programs);
    }
    let cluster = builder.start();
    const { assert!(HOSTS * BLOCKS * 4096 <= 64 << 20, "hosts fit the volume") };
    let ways = |volume: &&str| {
        (0..count)
            .map(|node| volume_at(&cluster, volume, node))
            .collect()
    };
    let paths: Vec<Vec<Target>> = volumes(count).iter().map(ways).collect();
    let (shared, mut report) = (Shared::default(), Report::default());
    let scene = Scene {
        cluster: &cluster,
        etcd: etcd.as_ref(),
        shared: &shared,
        groups: groups.as_ref(),
        parties: misfortune::parties(&cluster).map_err(|e| e.to_string())?,
    };
    std::thread::scope(|scope| {
        for n in 0..HOSTS {
            let paths = &paths[n as usize % paths.len()];
            let host = Host::new(&shared, paths, n, plan.seed);
            scope.spawn(|| host.run());
        }
        let until = Instant::now() + Duration::from_secs(plan.seconds);
        while Instant::now() < until && !shared.stop.load(Ordering::Relaxed) {
            progress(&shared);
            let what = all[random.random_range(0..all.len())];
            shared.longest_us.store(0, Ordering::Relaxed);
            shared.full.store(false, Ordering::Relaxed);
            if let Err(why) = scene.happen(what, &mut random) {
                shared.say(format!("{what:?}: {why}"));
            }
            // One in three times the next comes before all is well.
            if !plan.one_by_one && random.random_ratio(1, 3) {
                let pause = Duration::from_millis(random.random_range(0..4_000));
                std::thread::sleep(pause);
            } else {
                until_well(&cluster, &shared);
            }
            let longest = Duration::from_micros(shared.longest_us.load(Ordering::Relaxed));
            report.stalls.entry(what).or_default().push(longest);
        }
        until_well(&cluster, &shared);
        if let Some(etcd) = &etcd
            && let Err(why) = left_over::nothing(etcd, &cluster)
        {
            shared.say(why);
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    (report.writes, report.reads) = (
        shared.writes.load(Ordering::Relaxed),
        shared.reads.load(Ordering::Relaxed),
    );
    match shared.wrong.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(wrong) => Err(format!("{wrong}\n{report}\n{}", cluster.logs())),
        None => Ok(report),
    }
}

/// Waits until hosts get on.
pub(crate) fn progress(shared: &Shared) {
    let before = shared.writes.load(Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    while shared.writes.load(Ordering::Relaxed) < before + 50 && !over(shared) {
        assert!(Instant::now() < deadline, "hosts do not get on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn over(shared: &Shared) -> bool {
    shared.stop.load(Ordering::Relaxed)
}

/// Waits until all volumes are served, and all replicas are in sync.
fn until_well(cluster: &Cluster, shared: &Shared) {
    let deadline = Instant::now() + PATIENCE;
    let count = cluster.ready().nodes.len();
    for volume in volumes(count) {
        let mut last = None;
        while !over(shared) {
            let mut said = (0..count).filter_map(|node| locate_volume(cluster, node, volume));
            if said.any(|found| {
                let well = is_well(&found);
                last = Some(found);
                well
            }) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "volume {volume} is not well again: {last:?}"
            );
            std::thread::sleep(LOOK);
        }
    }
    progress(shared);
}

/// It is served, and all of its replicas are in sync.
pub(crate) fn is_well(found: &Value) -> bool {
    let members = found["replicas"].as_array().map_or(0, |replicas| {
        replicas.iter().filter(|r| r["state"] == "member").count()
    });
    found["state"] == "serving" && members == REPLICAS
}
