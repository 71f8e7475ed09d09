//! Hosts that break the protocol, over live connections, as fast as they can; next to them a verified workload on another
//! volume, which must never see an error, and afterwards the target must have its file descriptors and memory back.
//!
//! [`capsule`] makes PDUs: well formed ones with nonsense inside, which the target must answer with statuses, and broken ones,
//! which may cost the connection. [`peer`] is one connection: it behaves up to some stage, then misbehaves in one of many ways,
//! and leaves. A PDU counts when the target's socket took it and nothing before it on that connection was broken.
mod capsule;
mod peer;

use crate::cluster::Cluster;
use crate::workload::{Target, WhenLost, Workload, fill_volume};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the target may take to close what junk left open: longer than its limit for half-open connections.
const TIDY_LIMIT: Duration = Duration::from_secs(60);
/// Connections a thread makes before it gives up on a target that does not let it in.
const REFUSALS_MAX: u32 = 200;
/// Share of the PDUs that warm the target up, before its memory is looked at.
const WARM_UP: u64 = 10;
/// What resident memory may have grown by since then: allocators keep some.
const RSS_SLACK: u64 = 16 << 20;

/// How often the volume is written whole first: more than its drive has blocks, since each write takes new ones.
const FILLS: u32 = 16;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// PDUs to send.
    pub pdus: u64,
    /// Decides everything that is random (but not how threads interleave).
    pub seed: u64,
    /// Misbehaving hosts at a time.
    pub threads: u64,
    /// Print progress.
    pub verbose: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// PDUs that the target was sent.
    pub pdus: u64,
    /// Connections made.
    pub connections: u64,
    /// PDUs that it answered with.
    pub answers: u64,
    /// Commands of the verified workload meanwhile.
    pub verified: u64,
    /// How long it took.
    pub seconds: f64,
    /// Resident memory of the data path after warming up, and at the end.
    pub rss: (u64, u64),
    /// Its file descriptors before and after.
    pub descriptors: (usize, usize),
}

/// Counters that all misbehaving hosts share.
#[derive(Debug, Default)]
struct Counters {
    pdus: AtomicU64,
    connections: AtomicU64,
    answers: AtomicU64,
}

/// Fuzzes the volume `fuzzed` of a cluster while `verified`, another one, is used properly.
///
/// # Errors
/// The first thing that was wrong with the target.
pub fn run(cluster: &Cluster, config: Config) -> Result<Report, String> {
    let ready = cluster.ready();
    let pid = ready.nodes[0]
        .datapath_pid
        .ok_or("the data path does not run")?;
    let target = |name: &str| Target {
        address: ready.nodes[0].nvme,
        nqn: ready.volume(name).nqn.clone(),
        nsid: 1,
    };
    // What the junk overwrites goes to new blocks of a drive in memory: all of them shall be there before memory is looked at.
    let victim = target("fuzzed");
    for _ in 0..FILLS {
        fill_volume(&victim)?;
    }
    let workload = Workload::start(target("verified"), config.seed, WhenLost::Fail);
    let start = Instant::now();
    let descriptors = descriptors(pid)?;
    let counters = Counters::default();
    storm(
        &victim,
        Config {
            pdus: config.pdus / WARM_UP,
            ..config
        },
        &counters,
    )?;
    let rss = rss(pid)?;
    storm(&victim, config, &counters)?;
    let seconds = start.elapsed().as_secs_f64();
    let verified = workload
        .finish()
        .map_err(|e| format!("the verified workload saw an error: {e}"))?;
    let same = cluster.ready().nodes[0].datapath_pid == Some(pid);
    if !same {
        return Err("the data path died".into());
    }
    let (after, rss_after) = wait_until_tidy(pid, descriptors, rss)?;
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Ok(Report {
        pdus: load(&counters.pdus),
        connections: load(&counters.connections),
        answers: load(&counters.answers),
        verified,
        seconds,
        rss: (rss, rss_after),
        descriptors: (descriptors, after),
    })
}

/// All misbehaving hosts, until together they have sent what is asked for.
fn storm(victim: &Target, config: Config, counters: &Counters) -> Result<(), String> {
    std::thread::scope(|scope| {
        let host = |thread: u64| {
            let mut rng =
                SmallRng::seed_from_u64(config.seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            move || one_host(victim, config, counters, &mut rng, thread == 0)
        };
        let hosts: Vec<_> = (0..config.threads).map(|t| scope.spawn(host(t))).collect();
        hosts.into_iter().try_for_each(|h| {
            h.join()
                .unwrap_or_else(|_| Err("a misbehaving host panicked".into()))
        })
    })
}

fn one_host(
    victim: &Target,
    config: Config,
    counters: &Counters,
    rng: &mut SmallRng,
    talks: bool,
) -> Result<(), String> {
    let mut refusals = 0;
    let mut shown = Instant::now();
    while counters.pdus.load(Ordering::Relaxed) < config.pdus {
        match peer::misbehave(victim, &mut SmallRng::seed_from_u64(rng.random())) {
            Ok(done) => {
                refusals = 0;
                counters.pdus.fetch_add(done.pdus, Ordering::Relaxed);
                counters.answers.fetch_add(done.answers, Ordering::Relaxed);
                counters
                    .connections
                    .fetch_add(done.connections, Ordering::Relaxed);
            }
            Err(error) => {
                refusals += 1;
                if refusals > REFUSALS_MAX {
                    return Err(format!("the target lets nobody in: {error}"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if talks && config.verbose && shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            println!(
                "{} of {} PDUs",
                counters.pdus.load(Ordering::Relaxed),
                config.pdus
            );
        }
    }
    Ok(())
}

/// Waits until the target has closed what the hosts left and given back its memory.
fn wait_until_tidy(
    pid: u32,
    descriptors_before: usize,
    rss_before: u64,
) -> Result<(usize, u64), String> {
    let deadline = Instant::now() + TIDY_LIMIT;
    loop {
        let (fds, bytes) = (descriptors(pid)?, rss(pid)?);
        if fds <= descriptors_before && bytes <= rss_before + RSS_SLACK {
            return Ok((fds, bytes));
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{} s after the last junk the data path has {fds} file descriptors, {descriptors_before} before, and {} MiB \
                 resident, {} after warming up",
                TIDY_LIMIT.as_secs(),
                bytes >> 20,
                rss_before >> 20
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn descriptors(pid: u32) -> Result<usize, String> {
    let dir = fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|e| format!("the data path is gone: {e}"))?;
    Ok(dir.count())
}

/// Resident memory in bytes.
fn rss(pid: u32) -> Result<u64, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|e| format!("the data path is gone: {e}"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .map_err(|e| format!("VmRSS {line}: {e}"))?;
    Ok(kib << 10)
}
