//! A key-value database that is away for long, an etcd whose processes are killed or stand still, under three nodes with hosts that write: what they do is counted each second, before,
//! meanwhile and afterwards. No I/O fails, nothing is taken over, and afterwards all is as it was.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE};
use crate::deaths::host::{BLOCKS, Host, Shared};
use crate::deaths::{ETCD_MEMBERS, is_well, left_over, progress};
use crate::etcd::{self, Etcd};
use crate::several::{VOLUME, locate, volume_at};
use crate::workload::Target;

/// Hosts, each with one command in flight.
const HOSTS: u64 = 4;
const NODES: usize = 3;
/// Seconds that are counted before and afterwards.
const AROUND: u64 = 15;
/// After the return, nodes begin with what waited.
const RETURN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
const _: () = assert!(HOSTS * BLOCKS * 4096 <= 64 << 20, "hosts fit the volume");

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long it is away.
    pub seconds: u64,
    /// Its processes stand still, and are not killed.
    pub pause: bool,
    /// Decides everything that is random but time.
    pub seed: u64,
}

/// What hosts did in a time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Phase {
    /// Commands of each second.
    pub each_s: Vec<u64>,
    /// The longest that one took.
    pub longest: Duration,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.each_s.clone();
        sorted.sort_unstable();
        let at = |n: usize| sorted.get(n).copied().unwrap_or(0);
        write!(
            f,
            "{} s, {} commands; each second: median {}, fewest {}, most {}; the longest took {:.0?}",
            sorted.len(),
            sorted.iter().sum::<u64>(),
            at(sorted.len() / 2),
            at(0),
            at(sorted.len().saturating_sub(1)),
            self.longest
        )
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Before it went.
    pub before: Phase,
    /// While it was away.
    pub away: Phase,
    /// From its return on.
    pub after: Phase,
    /// From the return until all nodes say that they live, and the volume is served with all replicas in sync.
    pub well_again: Duration,
    /// From the return until a volume was made.
    pub changes_again: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "before: {}", self.before)?;
        writeln!(f, "away:   {}", self.away)?;
        writeln!(f, "after:  {}", self.after)?;
        write!(
            f,
            "nothing failed, nobody took over; all well {:.1?} after the return, a volume was made after {:.1?}",
            self.well_again, self.changes_again
        )
    }
}

/// Runs it.
///
/// # Errors
/// What does not hold, in words; or what this machine lacks.
///
/// # Panics
/// If the cluster cannot be made; with all logs.
pub fn run(plan: Plan) -> Result<Report, String> {
    if !etcd::is_there() {
        return Err("this needs etcd (Debian: etcd-server and etcd-client)".into());
    }
    let builder = Cluster::builder()
        .arg(&["--nodes", "3", "--size", "256M", "--reactors", "1"])
        .volume("r:64M:3");
    let etcd = Etcd::start(builder.dir().join("etcd"), ETCD_MEMBERS)?;
    let cluster = builder.arg(&["--etcd", &etcd.endpoints()]).start();
    let paths: Vec<Target> = (0..NODES)
        .map(|node| volume_at(&cluster, VOLUME, node))
        .collect();
    let shared = Shared::default();
    let mut report = Report::default();
    std::thread::scope(|scope| {
        for n in 0..HOSTS {
            let host = Host::new(&shared, &paths, n, plan.seed);
            scope.spawn(|| host.run());
        }
        progress(&shared);
        if let Err(why) = outage(plan, &etcd, &cluster, &shared, &mut report) {
            shared.say(why);
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    match shared.wrong.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(wrong) => Err(format!("{wrong}\n{report}\n{}", cluster.logs())),
        None => Ok(report),
    }
}

fn outage(
    plan: Plan,
    etcd: &Etcd,
    cluster: &Cluster,
    shared: &Shared,
    report: &mut Report,
) -> Result<(), String> {
    until_well(cluster)?;
    let epoch = served(cluster)?;
    report.before = count(shared, AROUND);
    for n in 0..etcd.count() {
        match plan.pause {
            true => etcd.stand_still(n, true),
            false => etcd.end(n),
        }
    }
    report.away = count(shared, plan.seconds);
    for n in 0..etcd.count() {
        match plan.pause {
            true => etcd.stand_still(n, false),
            false => etcd.begin(n)?,
        }
    }
    let back = Instant::now();
    let after = std::thread::scope(|scope| {
        let after = scope.spawn(|| count(shared, AROUND));
        let again: Result<(Duration, Duration), String> = (|| {
            etcd.until_it_answers()?;
            until_alive(etcd, cluster)?;
            until_well(cluster)?;
            let well = back.elapsed();
            until_made(cluster)?;
            Ok((well, back.elapsed()))
        })();
        let after = after.join().map_err(|_| "the count ended".to_owned())?;
        let (well, changes) = again?;
        Ok::<_, String>((after, well, changes))
    });
    (report.after, report.well_again, report.changes_again) = after?;
    std::thread::sleep(RETURN);
    let now = served(cluster)?;
    if now != epoch {
        return Err(format!(
            "epoch and coordinator were {epoch:?}, and are {now:?}: somebody took over"
        ));
    }
    if let Some(n) = report.away.each_s.iter().position(|n| *n == 0) {
        return Err(format!("hosts did nothing in second {n} of it"));
    }
    left_over::nothing(etcd, cluster)
}

/// What hosts do in so many seconds.
fn count(shared: &Shared, seconds: u64) -> Phase {
    let done = || shared.writes.load(Ordering::Relaxed) + shared.reads.load(Ordering::Relaxed);
    shared.longest_us.store(0, Ordering::Relaxed);
    let (began, mut before) = (Instant::now(), done());
    let mut phase = Phase::default();
    for n in 1..=seconds {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let until = began + Duration::from_secs(n);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        let now = done();
        phase.each_s.push(now - before);
        before = now;
    }
    phase.longest = Duration::from_micros(shared.longest_us.load(Ordering::Relaxed));
    phase
}

fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("waited in vain until {what}"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn until_well(cluster: &Cluster) -> Result<(), String> {
    until("all replicas are in sync", || {
        locate(cluster, 0).is_some_and(|found| is_well(&found))
    })
}

fn until_alive(etcd: &Etcd, cluster: &Cluster) -> Result<(), String> {
    let prefix = format!("/{}/alive/", cluster.ready().cluster_id);
    until("all nodes say that they live", || {
        etcd.keys(&prefix).is_ok_and(|keys| keys.len() == NODES)
    })
}

/// Makes a volume, and takes it away again.
fn until_made(cluster: &Cluster) -> Result<(), String> {
    let create = ["volume", "create", "new", "--size", "16M", "--no-attach"];
    until("a volume is made", || {
        cluster.keelctl(&create).status.success()
    })?;
    until("it is taken away", || {
        let gone = cluster.keelctl(&["volume", "delete", "new", "--force"]);
        gone.status.success()
    })
}

/// Who serves the volume, and in which epoch.
fn served(cluster: &Cluster) -> Result<(Value, Value), String> {
    let found = locate(cluster, 0).ok_or("nobody says where the volume is")?;
    Ok((found["coordinator"].clone(), found["epoch"].clone()))
}
