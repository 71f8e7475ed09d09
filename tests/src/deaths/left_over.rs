//! What the key-value database has at the end: the records of the volumes that there are, and nothing of others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::REPLICAS;
use crate::cluster::Cluster;
use crate::etcd::Etcd;

/// Kinds of records that belong to a volume: its id comes next.
const OF_VOLUMES: [&str; 8] = [
    "volumes",
    "replication",
    "replicas",
    "attachments",
    "cntlids",
    "tasks",
    "secrets",
    "schedules",
];
/// What the last misfortune may still have under way.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

/// Waits until there is nothing that should not be.
///
/// # Errors
/// What is there, and should not be, or the other way round.
pub fn nothing(etcd: &Etcd, cluster: &Cluster) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look(etcd, cluster);
        if found.is_ok() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(LOOK);
    }
}

fn look(etcd: &Etcd, cluster: &Cluster) -> Result<(), String> {
    let ready = cluster.ready();
    let root = format!("/{}/", ready.cluster_id);
    let keys = etcd.keys(&root)?;
    let volumes: BTreeSet<&str> = ready.volumes.iter().map(|v| v.id.as_str()).collect();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for key in &keys {
        let path = key.strip_prefix(&root).unwrap_or(key);
        let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
        if ["snapshots", "restore"].contains(&kind) {
            return Err(format!("{key} is left over"));
        }
        if OF_VOLUMES.contains(&kind) {
            let id = rest.split('/').next().unwrap_or_default();
            if !volumes.contains(id) {
                return Err(format!("{key} is left over: there is no such volume"));
            }
            *counts.entry((kind, id)).or_default() += 1;
        }
    }
    for id in volumes {
        for (kind, wanted) in [
            ("volumes", 1),
            ("replication", 1),
            ("attachments", 1),
            ("replicas", REPLICAS),
        ] {
            let found = counts.get(&(kind, id)).copied().unwrap_or(0);
            if found != wanted {
                return Err(format!(
                    "volume {id} has {found} records {kind}/, not {wanted}"
                ));
            }
        }
    }
    let alive = keys
        .iter()
        .filter(|k| k.starts_with(&format!("{root}alive/")));
    match alive.count() {
        n if n == ready.nodes.len() => Ok(()),
        n => Err(format!("{n} nodes say that they live")),
    }
}
