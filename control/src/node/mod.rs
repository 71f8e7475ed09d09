//! This node: what it is, and every change that it can make to volumes (`volumes`), their snapshots (`snapshots`), clones (`clones`) and exports
//! (`exports`), to their replicas (`replicated`, `ha`), whose nodes are chosen (`placing`; `room`: what is not chosen has limits, too), and moved elsewhere by a plan (`rebalance`), to the drives of its pool (`drives`, `resize`), scans of it (`scans`), and what it reports (`alerts`).
//!
//! A change is written to the KVDB as an intention where it can be interrupted, then done in the data path, then confirmed; what was
//! interrupted is completed when the data path or this process is back (`datapath::reconcile`). One change at a time.

mod alerts;
mod clones;
mod drives;
mod errands;
mod exports;
mod ha;
mod ha_found;
mod placing;
mod rebalance;
mod replacing;
mod replicated;
mod replicated_clones;
mod replicated_groups;
mod replicated_restore;
mod replicated_size;
mod replicated_snapshots;
mod resize;
mod room;
mod scans;
mod snapshots;
mod trash;
mod volumes;
mod wishes;

pub use alerts::AlertFilter;
pub use drives::Replaced;
pub(crate) use ha::HaWish;
pub(crate) use rebalance::NamedPlan;
pub use replicated::REPLICAS_MAX;
pub(crate) use replicated::level;
pub use resize::{ResizeFactor, ResizeHow};
pub use scans::ScanReport;
pub(crate) use scans::Steer;
pub use snapshots::SnapshotWish;
pub(crate) use wishes::check_labels;
pub use wishes::{VolumeChange, VolumeWish};

use crate::config::{Config, DriveSpec};
use crate::coordination::{Coordination, Pokes};
use crate::datapath::Link;
use crate::error::OpError;
use crate::gossip::Board;
use crate::membership::TokenSource;
use crate::names;
use crate::records::{ClusterRecord, DriveRecord, NodeRecord, PoolRecord, Registry, unix_ms};
use crate::secrets::Source;
use crate::system;
use keelblock_api::datapath::HelloReply;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;
use zeroize::Zeroizing;

/// How long a change waits for the one before it.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);

/// The pool that this node was started with.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// Its record.
    pub record: PoolRecord,
    /// For files that are to be made: their sizes.
    pub sizes: HashMap<Uuid, u64>,
}

impl PoolSpec {
    /// From the command line; `None` without drives. All must be memory, or none.
    pub fn new(
        cluster_id: &str,
        node_id: &str,
        name: &str,
        drives: &[DriveSpec],
    ) -> Result<Option<Self>, OpError> {
        if drives.is_empty() {
            return Ok(None);
        }
        let memory = drives[0].is_memory();
        if drives.iter().any(|d| d.is_memory() != memory) {
            return Err(OpError::invalid(
                "--drive",
                "a pool is all memory or all drives, as memory is lost at the end",
            ));
        }
        let pool_id = names::pool_id(cluster_id, node_id, name);
        let mut sizes = HashMap::new();
        let mut records = Vec::new();
        for (index, drive) in drives.iter().enumerate() {
            // Memory has no path that tells one from the other.
            let called = if memory {
                format!("memory-{index}")
            } else {
                drive.path.clone()
            };
            let drive_id = names::drive_id(pool_id, &called);
            if sizes.insert(drive_id, drive.size_bytes).is_some() {
                return Err(OpError::invalid(
                    "--drive",
                    format!("{} is given twice", drive.path),
                ));
            }
            records.push(DriveRecord {
                drive_id,
                path: drive.path.clone(),
                added: false,
                size_bytes: 0,
                fresh: false,
            });
        }
        let record = PoolRecord {
            pool_id,
            name: name.into(),
            node_id: node_id.into(),
            memory,
            drives: records,
            removed: Vec::new(),
            last_resize: None,
        };
        Ok(Some(Self { record, sizes }))
    }
}

/// This node.
#[derive(Debug)]
pub struct Node {
    cluster_id: String,
    node_id: String,
    sdk: SocketAddr,
    rest: SocketAddr,
    gossip_address: SocketAddr,
    gossip: Board,
    /// The records.
    pub registry: Registry,
    /// The data path.
    pub link: Link,
    /// Its pool.
    pub pool: Option<PoolSpec>,
    /// Replicated volumes.
    pub(crate) coordination: Coordination,
    key_source: Source,
    configuration: String,
    diags_files: Vec<PathBuf>,
    identity: Uuid,
    labels: BTreeMap<String, String>,
    token_source: TokenSource,
    /// The cluster's first token, which signs gossip; empty: there was none when this node started.
    first_token: OnceLock<Zeroizing<Vec<u8>>>,
    serves_kvdb: bool,
    changing: Mutex<()>,
    /// Replicas are placed one after the other.
    placing: Mutex<()>,
}

impl Node {
    /// From the command line, and the identity that its data directory has; `sdk`, `rest` and `gossip_address` are where those really listen. The other half is for `coordinate`.
    pub fn new(
        config: &Config,
        identity: Uuid,
        (sdk, rest, gossip_address): (SocketAddr, SocketAddr, SocketAddr),
        registry: Registry,
        link: Link,
    ) -> Result<(Self, Pokes), OpError> {
        let (coordination, pokes) = Coordination::new();
        let node = Self {
            pool: PoolSpec::new(
                &config.cluster_id,
                &config.node_id,
                &config.pool,
                &config.drives,
            )?,
            cluster_id: config.cluster_id.clone(),
            node_id: config.node_id.clone(),
            sdk,
            rest,
            gossip_address,
            gossip: Board::default(),
            registry,
            link,
            coordination,
            key_source: config.key_source(),
            configuration: config.shown(),
            diags_files: config.diags_files.clone(),
            identity,
            labels: config.labels.iter().cloned().collect(),
            token_source: config.token_source(),
            first_token: OnceLock::new(),
            serves_kvdb: config.etcd.is_none(),
            changing: Mutex::new(()),
            placing: Mutex::new(()),
        };
        Ok((node, pokes))
    }

    /// Id of the cluster.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Id of this node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// What this process was started with, without secrets.
    pub(crate) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// Files whose ends whoever looks into a failure wants to have.
    pub(crate) fn diags_files(&self) -> &[PathBuf] {
        &self.diags_files
    }

    /// Where this node has the cluster key from.
    pub(crate) fn key_source(&self) -> &Source {
        &self.key_source
    }

    /// What tells this node from another of the same id.
    pub(crate) fn identity(&self) -> Uuid {
        self.identity
    }

    /// The labels that it was started with.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Where it has the cluster's token from.
    pub(crate) fn token_source(&self) -> &TokenSource {
        &self.token_source
    }

    /// The cluster's first token, as this node's own leads to it; `None`: it has not brought that yet. Empty: the cluster had none then.
    pub(crate) fn first_token(&self) -> Option<&Zeroizing<Vec<u8>>> {
        self.first_token.get()
    }

    /// It does not change: what is kept already is the same.
    pub(crate) fn keep_first_token(&self, token: Zeroizing<Vec<u8>>) {
        let _ = self.first_token.set(token);
    }

    /// Where it gossips.
    pub(crate) fn gossip_address(&self) -> SocketAddr {
        self.gossip_address
    }

    /// What is heard of all nodes.
    pub(crate) fn gossip(&self) -> &Board {
        &self.gossip
    }

    /// Whether this process serves the KVDB itself.
    pub(crate) fn serves_kvdb(&self) -> bool {
        self.serves_kvdb
    }

    /// Waits for the changes before, so that this one is alone.
    pub(crate) async fn exclusive(&self) -> Result<MutexGuard<'_, ()>, OpError> {
        let busy =
            |_| OpError::Unavailable("another change has not ended in time: try again".into());
        tokio::time::timeout(TURN_TIMEOUT, self.changing.lock())
            .await
            .map_err(busy)
    }

    /// Whether a pool is this node's memory.
    pub(crate) fn is_memory(&self, pool_id: Uuid) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|p| p.record.pool_id == pool_id && p.record.memory)
    }

    /// Brings the cluster's token, makes the cluster's record if there is none, and writes who and where this node is (`docs/membership.md`).
    pub async fn join(&self) -> Result<(), OpError> {
        self.bring_token().await?;
        self.bring_gossip_secret().await?;
        let key = self.registry.keys().cluster();
        let record = ClusterRecord {
            cluster_id: self.cluster_id.clone(),
            created_unix_ms: unix_ms(),
            generation: 0,
        };
        if self
            .registry
            .make(vec![(key.clone(), crate::records::encode(&record))])
            .await?
        {
            tracing::info!(cluster = self.cluster_id, "a new cluster");
        }
        // The data path may have gone on without this process: hosts and nodes still connect where it said.
        let describe = |known: Option<NodeRecord>| match known {
            Some(k) => self.record(k.nvme_address, k.replication_address, k.public_key),
            None => self.record(String::new(), String::new(), String::new()),
        };
        self.write_node(describe).await
    }

    /// Publishes where hosts and other nodes connect.
    pub(crate) async fn publish(&self, hello: &HelloReply) -> Result<(), OpError> {
        let key: String = hello
            .public_key
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let (nvme, replication) = (&hello.nvme_address, &hello.replication_address);
        let describe = |_| self.record(nvme.clone(), replication.clone(), key.clone());
        self.write_node(describe).await
    }

    fn record(
        &self,
        nvme_address: String,
        replication_address: String,
        public_key: String,
    ) -> NodeRecord {
        NodeRecord {
            node_id: self.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: system::hostname(),
            nvme_address,
            sdk_address: self.sdk.to_string(),
            rest_address: self.rest.to_string(),
            replication_address,
            public_key,
            gossip_address: self.gossip_address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(drives: &[&str]) -> Result<Option<PoolSpec>, OpError> {
        let drives: Vec<DriveSpec> = drives.iter().map(|d| d.parse().unwrap()).collect();
        PoolSpec::new("c", "n", "default", &drives)
    }

    #[test]
    fn pools_are_memory_or_drives_and_name_each_once() {
        assert!(pool(&[]).unwrap().is_none());
        assert_eq!(pool(&["/a", "/b,4096"]).unwrap().unwrap().sizes.len(), 2);
        assert_eq!(
            pool(&["memory:1M", "memory:1M"])
                .unwrap()
                .unwrap()
                .record
                .drives
                .len(),
            2
        );
        assert!(pool(&["/a", "memory:1M"]).is_err());
        assert!(pool(&["/a", "/a,4096"]).is_err());
    }
}
