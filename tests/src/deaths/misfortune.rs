//! What can happen to a cluster of several nodes, and how it is done.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keelblock_nvme::Status;
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::process::Signal;

use super::cuts::{Cuts, KVDB, Party};
use super::drives;
use super::groups::Groups;
use super::host::{self, Shared};
use crate::cluster::{Cluster, kill};
use crate::etcd::Etcd;
use crate::several::{Held, VOLUME, kvdb_pid};
use crate::workload::Target;

/// Longest pause of a process, cut, or failure of a drive.
const PAUSE_MS: u64 = 8_000;
/// A drive that fails takes writes below one of these places only.
const PLACES: [u64; 3] = [1 << 20, 16 << 20, 64 << 20];
/// Name of the volume that fills a node's pool.
const BALLAST: &str = "ballast";
/// As long as a node is gone at least: others have its volumes by then.
const GONE: Duration = Duration::from_secs(6);
/// Longest wait until a pool is full.
const FILLING: Duration = Duration::from_secs(60);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Misfortune {
    /// The data path that coordinates is killed.
    Coordinator,
    /// One that only holds a replica is.
    Replica,
    /// The control process of the coordinator's node is.
    Control,
    /// All processes of the coordinator's node are, at once.
    Node,
    /// The same, and nobody starts them again for a while: its volumes are attached elsewhere.
    NodeGone,
    /// All processes of another node are, at once.
    OtherNode,
    /// All data paths are, at once.
    AllDatapaths,
    /// The coordinating data path stands still for a while.
    CoordinatorPaused,
    /// One that only holds a replica does.
    ReplicaPaused,
    /// The key-value database does.
    KvdbPaused,
    /// A member of etcd is killed, and comes back after a while.
    EtcdMember,
    /// One stands still.
    EtcdMemberPaused,
    /// All of them are killed, and come back after a while.
    EtcdAll,
    /// Nobody hears the coordinator's node for a while, and it hears nobody.
    CoordinatorAlone,
    /// The same with a node that only holds a replica.
    ReplicaAlone,
    /// The coordinator's node and one with a replica do not hear each other.
    PairCut,
    /// What the coordinator's node sends to one with a replica is lost; the other way it is not.
    CoordinatorNotHeard,
    /// What a node with a replica sends to the coordinator's is lost.
    ReplicaNotHeard,
    /// The coordinator's node and the key-value database do not hear each other.
    CoordinatorWithoutKvdb,
    /// Hosts do not reach the coordinator's node.
    CoordinatorWithoutHosts,
    /// The drive of the coordinator's node takes no writes for a while; then its data path is started again.
    CoordinatorDrive,
    /// The same with the drive of a node that only holds a replica.
    ReplicaDrive,
    /// The pool of a node that only holds a replica is full for a while.
    ReplicaFull,
}

use Misfortune::*;

/// What processes do.
pub const DEATHS: [Misfortune; 9] = [
    Coordinator,
    Replica,
    Control,
    Node,
    NodeGone,
    OtherNode,
    AllDatapaths,
    CoordinatorPaused,
    ReplicaPaused,
];
/// What becomes of the key-value database that `up` serves.
pub const KVDB_OF_UP: [Misfortune; 1] = [KvdbPaused];
/// What becomes of etcd.
pub const ETCD: [Misfortune; 3] = [EtcdMember, EtcdMemberPaused, EtcdAll];
/// What the network does.
pub const CUTS: [Misfortune; 7] = [
    CoordinatorAlone,
    ReplicaAlone,
    PairCut,
    CoordinatorNotHeard,
    ReplicaNotHeard,
    CoordinatorWithoutKvdb,
    CoordinatorWithoutHosts,
];
/// What drives do.
pub const DRIVES: [Misfortune; 3] = [CoordinatorDrive, ReplicaDrive, ReplicaFull];

/// Where it happens.
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The key-value database, unless `up` serves it.
    pub etcd: Option<&'a Etcd>,
    /// What hosts are told.
    pub shared: &'a Shared,
    /// Groups of the nodes' processes, if there are any: without them nothing can be cut.
    pub groups: Option<&'a Groups>,
    /// The nodes, in the ready file's order, and the key-value database.
    pub parties: Vec<Party>,
}

impl Scene<'_> {
    /// Lets it happen, and end where it has an end.
    ///
    /// # Errors
    /// What the machine refuses.
    pub fn happen(&self, what: Misfortune, random: &mut SmallRng) -> io::Result<()> {
        let ready = self.cluster.ready();
        let nodes = ready.nodes.len();
        let volume = match super::volumes(nodes).len() {
            1 => VOLUME,
            several => super::volumes(nodes)[random.random_range(0..several)],
        };
        let id = &ready.volume(volume).coordinator;
        let first = ready.nodes.iter().position(|n| n.id == *id).unwrap_or(0);
        let other = (first + random.random_range(1..nodes)) % nodes;
        let pause = Duration::from_millis(random.random_range(100..PAUSE_MS));
        println!("{what:?}, {first} coordinates {volume}, {other}, {pause:?}");
        let (coordinator, replica) = (&ready.nodes[first], &ready.nodes[other]);
        match what {
            Coordinator => end(&[coordinator.datapath_pid]),
            Replica => end(&[replica.datapath_pid]),
            Control => end(&[coordinator.control_pid]),
            Node => end(&[coordinator.datapath_pid, coordinator.control_pid]),
            OtherNode => end(&[replica.datapath_pid, replica.control_pid]),
            NodeGone => {
                // Who would start them again stands still.
                let held = Held::new(self.cluster.up_pid());
                end(&[coordinator.datapath_pid, coordinator.control_pid]);
                std::thread::sleep(GONE + pause);
                drop(held);
            }
            EtcdMember | EtcdMemberPaused | EtcdAll => self.etcd(what, pause, random)?,
            AllDatapaths => {
                let all: Vec<_> = ready.nodes.iter().map(|n| n.datapath_pid).collect();
                end(&all);
            }
            CoordinatorPaused => stand_still(coordinator.datapath_pid, pause),
            ReplicaPaused => stand_still(replica.datapath_pid, pause),
            KvdbPaused => stand_still(kvdb_pid(self.cluster), pause),
            CoordinatorDrive => self.fail(coordinator.datapath_pid, pause, random)?,
            ReplicaDrive => self.fail(replica.datapath_pid, pause, random)?,
            ReplicaFull => self.fill(other, pause)?,
            _ => self.cut(what, first, other, pause)?,
        }
        Ok(())
    }

    fn cut(&self, what: Misfortune, first: usize, other: usize, pause: Duration) -> io::Result<()> {
        let Some(groups) = self.groups else {
            return Err(io::Error::other("no groups, so nothing can be cut"));
        };
        let parties = &self.parties;
        let (coordinator, replica) = (&parties[first], &parties[other]);
        let kvdb = &parties[parties.len() - 1];
        let mut cuts = Cuts::new(groups);
        let mut alone = |node: &Party| {
            for party in parties.iter().filter(|p| p.name != node.name) {
                cuts.drop_between(node, party);
                cuts.drop_between(party, node);
            }
            cuts.drop_hosts_of(node);
        };
        match what {
            CoordinatorAlone => alone(coordinator),
            ReplicaAlone => alone(replica),
            PairCut => {
                cuts.drop_between(coordinator, replica);
                cuts.drop_between(replica, coordinator);
            }
            CoordinatorNotHeard => cuts.drop_between(coordinator, replica),
            ReplicaNotHeard => cuts.drop_between(replica, coordinator),
            CoordinatorWithoutKvdb => {
                cuts.drop_between(coordinator, kvdb);
                cuts.drop_between(kvdb, coordinator);
            }
            _ => cuts.drop_hosts_of(coordinator),
        }
        cuts.apply()?;
        std::thread::sleep(pause);
        let dropped = Cuts::dropped()?;
        Cuts::new(groups).apply()?;
        println!("    {dropped} packets were dropped");
        Ok(())
    }

    fn etcd(&self, what: Misfortune, pause: Duration, random: &mut SmallRng) -> io::Result<()> {
        let none = || io::Error::other("there is no etcd");
        let etcd = self.etcd.ok_or_else(none)?;
        let n = random.random_range(0..etcd.count());
        if what == EtcdMemberPaused {
            etcd.stand_still(n, true);
            std::thread::sleep(pause);
            etcd.stand_still(n, false);
            return Ok(());
        }
        let ended = match what {
            EtcdAll => 0..etcd.count(),
            _ => n..n + 1,
        };
        ended.clone().for_each(|n| etcd.end(n));
        std::thread::sleep(pause);
        for n in ended {
            etcd.begin(n).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn fail(&self, pid: Option<u32>, pause: Duration, random: &mut SmallRng) -> io::Result<()> {
        let Some(pid) = pid.filter(|pid| alive(*pid)) else {
            return Ok(());
        };
        let place = PLACES[random.random_range(0..PLACES.len())];
        println!("    no writes beyond {} MiB", place >> 20);
        drives::limit(pid, Some(place))?;
        std::thread::sleep(pause);
        // It may have died of it meanwhile; what it was cannot come back: who looks after it has started another.
        if alive(pid) {
            drives::limit(pid, None)?;
            kill(pid, Signal::KILL);
        }
        Ok(())
    }

    /// Fills the pool of a node by a volume that has nothing else to do, and takes that away again.
    fn fill(&self, node: usize, pause: Duration) -> io::Result<()> {
        let keelctl = |words: &[&str]| {
            let said = self.cluster.keelctl_at(node, words);
            match said.status.success() {
                true => Ok(()),
                false => Err(io::Error::other(format!(
                    "keelctl {words:?}: {}",
                    String::from_utf8_lossy(&said.stderr)
                ))),
            }
        };
        self.shared.full.store(true, Ordering::Relaxed);
        keelctl(&["volume", "create", BALLAST, "--size", "1G"])?;
        let said = self
            .cluster
            .keelctl_at(node, &["volume", "connect-info", BALLAST, "--json"]);
        let info: serde_json::Value = serde_json::from_slice(&said.stdout)?;
        let target = Target {
            address: self.cluster.ready().nodes[node].nvme,
            nqn: info["nqn"].as_str().unwrap_or_default().to_owned(),
            nsid: 1,
        };
        let written = write_until_full(&target).map_err(io::Error::other)?;
        println!("    full after {written} MiB");
        std::thread::sleep(pause);
        keelctl(&["volume", "delete", BALLAST, "--force"])
    }
}

/// Writes 1 MiB after the other until there is no room; how many there was room for.
fn write_until_full(target: &Target) -> Result<u64, String> {
    let (_controller, mut queue, ns) = host::connect(target).map_err(|e| e.to_string())?;
    let data = vec![0x5a; 1 << 20];
    let began = Instant::now();
    let mut written = 0;
    while began.elapsed() < FILLING {
        match queue.write(&ns, written * 256, &data) {
            Ok(()) => written += 1,
            Err(e) if e.status().is_some_and(|s| s.is(Status::CAPACITY_EXCEEDED)) => {
                return Ok(written);
            }
            Err(e) => return Err(format!("filling a pool: {e}")),
        }
    }
    Err(format!(
        "a pool is not full after {written} MiB and {FILLING:?}"
    ))
}

/// The nodes, in the ready file's order, and the key-value database: who can be cut off, and by which ports.
///
/// # Errors
/// A data path that does not say where it listens.
pub fn parties(cluster: &Cluster) -> io::Result<Vec<Party>> {
    let ready = cluster.wait_until("all data paths run", |ready| {
        ready.nodes.iter().all(|n| n.datapath_pid.is_some())
    });
    let mut parties = Vec::new();
    for node in &ready.nodes {
        parties.push(Party {
            name: node.id.clone(),
            ports: vec![replication_port(node.datapath_pid.unwrap_or_default())?],
            hosts: vec![node.nvme.port()],
        });
    }
    parties.push(Party {
        name: KVDB.into(),
        ports: kvdb_ports(&ready.nodes[0].kvdb),
        hosts: Vec::new(),
    });
    Ok(parties)
}

/// Of all members.
fn kvdb_ports(at: &str) -> Vec<u16> {
    let ports = at.split(',').filter_map(|one| one.rsplit(':').next());
    ports.filter_map(|port| port.parse().ok()).collect()
}

/// The port that a data path listens on for others, which it says nowhere but in its arguments.
fn replication_port(pid: u32) -> io::Result<u16> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let mut words = line.split('\0');
    words
        .any(|word| word == "--replication")
        .then(|| words.next())
        .flatten()
        .and_then(|at| at.parse::<std::net::SocketAddr>().ok())
        .map(|at| at.port())
        .ok_or_else(|| io::Error::other(format!("process {pid} listens for no other: {line}")))
}

fn end(pids: &[Option<u32>]) {
    // Who looks after them may have found one dead since.
    for pid in pids.iter().flatten().filter(|pid| alive(**pid)) {
        kill(*pid, Signal::KILL);
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
