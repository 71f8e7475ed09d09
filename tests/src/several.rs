//! A cluster of several nodes, and the replicated volume [`VOLUME`] in it: who serves it, how to reach it by a certain node, and processes that stand still.
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE, kill};
use crate::workload::Target;

/// How often states are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The volume's name.
pub const VOLUME: &str = "r";

/// The place of a node in the ready file.
///
/// # Panics
/// If there is no such node.
pub fn place(cluster: &Cluster, node_id: &str) -> usize {
    let mut nodes = cluster.ready().nodes.into_iter();
    let found = nodes.position(|n| n.id == node_id);
    found.unwrap_or_else(|| panic!("no node {node_id:?} in the cluster"))
}

/// The path to the volume by a node.
pub fn at(cluster: &Cluster, node: usize) -> Target {
    volume_at(cluster, VOLUME, node)
}

/// The path to any volume by a node.
pub fn volume_at(cluster: &Cluster, volume: &str, node: usize) -> Target {
    let ready = cluster.ready();
    Target {
        address: ready.nodes[node].nvme,
        nqn: ready.volume(volume).nqn.clone(),
        nsid: 1,
    }
}

/// The node that the volume is attached to.
///
/// # Panics
/// If it is to none.
pub fn coordinator(cluster: &Cluster) -> usize {
    place(cluster, &cluster.ready().volume(VOLUME).coordinator)
}

/// What a node says of the volume; `None`: it does not answer.
pub fn locate(cluster: &Cluster, node: usize) -> Option<Value> {
    locate_volume(cluster, node, VOLUME)
}

/// What a node says of any volume; `None`: it does not answer.
pub fn locate_volume(cluster: &Cluster, node: usize, volume: &str) -> Option<Value> {
    let said = cluster.keelctl_at(node, &["volume", "locate", volume, "--json"]);
    let text = said.status.success().then_some(said.stdout)?;
    serde_json::from_slice(&text).ok()
}

/// Waits until a node says that another than `former` serves, and gives its place.
///
/// # Panics
/// If nobody does in time.
pub fn until_served_by_another(cluster: &Cluster, ask: usize, former: &str) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = locate(cluster, ask);
        if let Some(found) = &found
            && found["state"] == "serving"
            && found["coordinator"] != former
        {
            let now = found["coordinator"].as_str().expect("a node").to_owned();
            return place(cluster, &now);
        }
        assert!(Instant::now() < deadline, "nobody takes it over: {found:?}");
        std::thread::sleep(LOOK);
    }
}

/// Waits until so many replicas of a volume are in sync.
///
/// # Panics
/// If they are not in time.
pub fn until_members(cluster: &Cluster, volume: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = locate_volume(cluster, 0, volume);
        let replicas = found.as_ref().and_then(|f| f["replicas"].as_array());
        let members = replicas.map(|all| all.iter().filter(|r| r["state"] == "member").count());
        if members == Some(count) {
            return;
        }
        let late = Instant::now() >= deadline;
        assert!(!late, "not {count} replicas are in sync: {found:?}");
        std::thread::sleep(LOOK);
    }
}

/// The key-value database that the nodes share: the child of `up` that belongs to none of them.
pub fn kvdb_pid(cluster: &Cluster) -> Option<u32> {
    let up = cluster.up_pid();
    let children = std::fs::read_to_string(format!("/proc/{up}/task/{up}/children"));
    let is_kvdb = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).nth(1) == Some(b"kvdb")
    };
    let children = children.ok()?;
    let mut pids = children.split_whitespace().filter_map(|p| p.parse().ok());
    pids.find(is_kvdb)
}

/// A process that stands still while this is there. Of `up`: what dies stays dead.
pub struct Held(u32);

impl Held {
    /// Stops it.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn new(pid: u32) -> Self {
        kill(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        kill(self.0, Signal::CONT);
    }
}
