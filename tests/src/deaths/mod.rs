//! Three nodes, a volume with three replicas, hosts with a path to each node, and processes that are killed or paused at random: no acknowledged write is lost or
//! older than it was, and everything is in sync again after each.
//!
//! This is about real processes and sockets; the simulator is the place for power cuts, cut networks and bad drives. What is random is decided by the seed but for time.

mod host;

use crate::cluster::{Cluster, PATIENCE, kill};
use crate::several::{Held, VOLUME, at, kvdb_pid, locate};
use crate::workload::Target;
use host::{BLOCKS, Host, Shared};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Hosts, each with one command in flight.
const HOSTS: u64 = 4;
/// How often states are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Longest pause of a process.
const PAUSE_MS: u64 = 8_000;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfortune {
    /// The data path that coordinates is killed.
    Coordinator,
    /// One that only holds a replica is.
    Replica,
    /// The control process of the coordinator's node is.
    Control,
    /// All processes of the coordinator's node are, at once.
    Node,
    /// All data paths are, at once.
    AllDatapaths,
    /// The coordinating data path stands still for a while.
    CoordinatorPaused,
    /// One that only holds a replica does.
    ReplicaPaused,
    /// The key-value database does.
    KvdbPaused,
}

const ALL: [Misfortune; 8] = [
    Misfortune::Coordinator,
    Misfortune::Replica,
    Misfortune::Control,
    Misfortune::Node,
    Misfortune::AllDatapaths,
    Misfortune::CoordinatorPaused,
    Misfortune::ReplicaPaused,
    Misfortune::KvdbPaused,
];

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
/// What does not hold, in words.
///
/// # Panics
/// If the cluster cannot be made, or does not heal; with all logs.
pub fn run(seconds: u64, seed: u64) -> Result<Report, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let size = ["--nodes", "3", "--size", "1G", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:3").start();
    const { assert!(HOSTS * BLOCKS * 4096 <= 64 << 20, "hosts fit the volume") };
    let paths: Vec<Target> = (0..3).map(|node| at(&cluster, node)).collect();
    let (shared, mut report) = (Shared::default(), Report::default());
    std::thread::scope(|scope| {
        for n in 0..HOSTS {
            let host = Host::new(&shared, &paths, n, seed);
            scope.spawn(|| host.run());
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && !shared.stop.load(Ordering::Relaxed) {
            progress(&shared);
            let what = ALL[random.random_range(0..ALL.len())];
            shared.longest_us.store(0, Ordering::Relaxed);
            happen(&cluster, what, &mut random);
            // One in three times the next comes before all is well.
            if random.random_ratio(1, 3) {
                let pause = Duration::from_millis(random.random_range(0..4_000));
                std::thread::sleep(pause);
            } else {
                until_well(&cluster, &shared);
            }
            let longest = Duration::from_micros(shared.longest_us.load(Ordering::Relaxed));
            report.stalls.entry(what).or_default().push(longest);
        }
        until_well(&cluster, &shared);
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
fn progress(shared: &Shared) {
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

fn happen(cluster: &Cluster, what: Misfortune, random: &mut SmallRng) {
    let ready = cluster.ready();
    let id = &ready.volume(VOLUME).coordinator;
    let first = ready.nodes.iter().position(|n| n.id == *id).unwrap_or(0);
    let other = (first + random.random_range(1..3)) % 3;
    let pause = Duration::from_millis(random.random_range(100..PAUSE_MS));
    println!("{what:?}, {first} coordinates, {pause:?}");
    let (coordinator, replica) = (&ready.nodes[first], &ready.nodes[other]);
    let end = |pids: &[Option<u32>]| {
        // Who looks after them may have found one dead since.
        pids.iter().flatten().for_each(|pid| end(*pid));
    };
    match what {
        Misfortune::Coordinator => end(&[coordinator.datapath_pid]),
        Misfortune::Replica => end(&[replica.datapath_pid]),
        Misfortune::Control => end(&[coordinator.control_pid]),
        Misfortune::Node => end(&[coordinator.datapath_pid, coordinator.control_pid]),
        Misfortune::AllDatapaths => {
            let all: Vec<_> = ready.nodes.iter().map(|n| n.datapath_pid).collect();
            end(&all);
        }
        Misfortune::CoordinatorPaused => stand_still(coordinator.datapath_pid, pause),
        Misfortune::ReplicaPaused => stand_still(replica.datapath_pid, pause),
        Misfortune::KvdbPaused => stand_still(kvdb_pid(cluster), pause),
    }
}

fn end(pid: u32) {
    if alive(pid) {
        kill(pid, Signal::KILL);
    }
}

fn alive(pid: u32) -> bool {
    std::fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

fn stand_still(pid: Option<u32>, pause: Duration) {
    let Some(pid) = pid.filter(|pid| alive(*pid)) else {
        return;
    };
    let held = Held::new(pid);
    std::thread::sleep(pause);
    drop(held);
}

/// Waits until the volume is served, and all replicas are in sync.
fn until_well(cluster: &Cluster, shared: &Shared) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while !over(shared) {
        for node in 0..3 {
            let Some(found) = locate(cluster, node) else {
                continue;
            };
            let members = found["replicas"].as_array().map_or(0, |replicas| {
                replicas.iter().filter(|r| r["state"] == "member").count()
            });
            if found["state"] == "serving" && members == 3 {
                return progress(shared);
            }
            last = Some(found);
        }
        assert!(Instant::now() < deadline, "not all is well again: {last:?}");
        std::thread::sleep(LOOK);
    }
}
