//! What is looked at: nodes with their pools and fault domains, and other volumes.
use super::Rules;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its id.
    pub pool_id: Uuid,
    /// Its content ends with its process.
    pub memory: bool,
    /// What it can hold.
    pub total_bytes: u64,
    /// What new data may take.
    pub free_bytes: u64,
    /// Sizes of the volumes with a replica in it.
    pub provisioned_bytes: u64,
    /// How many those are.
    pub replicas: u32,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub node_id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Why it may have no new replica; `None`: it may.
    pub refused: Option<String>,
    /// Part of the time in which its reactors are busy, in percent.
    pub load_percent: u8,
    /// Its pools.
    pub pools: Vec<Pool>,
}

/// Another volume.
#[derive(Debug, Clone)]
pub struct Neighbour<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its rules.
    pub rules: Option<&'a Rules>,
    /// Nodes with a replica of it.
    pub nodes: Vec<&'a str>,
}

/// Region, zone, rack: what a node's domains are called. Each has a number that is another one wherever the domain is another one.
pub(super) const LEVELS: [&str; 3] = ["region", "zone", "rack"];
/// Labels of each.
const LABELS: [&[&str]; 3] = [
    &["region", "topology.kubernetes.io/region"],
    &["zone", "topology.kubernetes.io/zone"],
    &["rack"],
];

/// Numbers of a node's region, zone and rack.
pub(super) type Domains = [u32; 3];

/// Nodes, in the order of their ids, and their fault domains.
#[derive(Debug, Clone)]
pub struct Cluster {
    nodes: Vec<Node>,
    domains: Vec<Domains>,
    regions: Vec<u32>,
}

/// The level that a topology key speaks of.
fn level(key: &str) -> Option<usize> {
    LABELS.iter().position(|names| names.contains(&key))
}

/// Whether a topology key speaks of regions.
pub(super) fn is_region(key: &str) -> bool {
    level(key) == Some(0)
}

impl Cluster {
    /// Of these nodes, each given once.
    pub fn new(mut nodes: Vec<Node>) -> Self {
        nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        let mut numbers: HashMap<(usize, u32, Option<&str>), u32> = HashMap::new();
        let mut domains = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let mut within = 0;
            let mut of_node = [0; 3];
            for (level, number) in of_node.iter_mut().enumerate() {
                let name = label_of(node, level);
                // 0 is what everything is within.
                let next = numbers.len() as u32 + 1;
                within = *numbers.entry((level, within, name)).or_insert(next);
                *number = within;
            }
            domains.push(of_node);
        }
        let mut named: Vec<(Option<&str>, u32)> = nodes
            .iter()
            .zip(&domains)
            .map(|(n, d)| (label_of(n, 0), d[0]))
            .collect();
        named.sort_unstable();
        named.dedup();
        let regions = named.into_iter().map(|(_, number)| number).collect();
        Self {
            regions,
            domains,
            nodes,
        }
    }

    /// Its nodes, by id.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where a node is among [`Self::nodes`].
    pub fn index(&self, node_id: &str) -> Option<usize> {
        let by = |n: &Node| n.node_id.as_str().cmp(node_id);
        self.nodes.binary_search_by(by).ok()
    }

    /// Counts a replica in a pool, or, with `gone`, one less.
    pub fn count(&mut self, node_id: &str, pool_id: Uuid, size_bytes: u64, gone: bool) {
        let Some(pool) = self.pool_mut(node_id, pool_id) else {
            return;
        };
        if gone {
            pool.provisioned_bytes = pool.provisioned_bytes.saturating_sub(size_bytes);
            pool.replicas = pool.replicas.saturating_sub(1);
        } else {
            pool.provisioned_bytes = pool.provisioned_bytes.saturating_add(size_bytes);
            pool.replicas += 1;
        }
    }

    /// So much is written to a pool.
    pub fn fill(&mut self, node_id: &str, pool_id: Uuid, bytes: u64) {
        if let Some(pool) = self.pool_mut(node_id, pool_id) {
            pool.free_bytes = pool.free_bytes.saturating_sub(bytes);
        }
    }

    fn pool_mut(&mut self, node_id: &str, pool_id: Uuid) -> Option<&mut Pool> {
        let at = self.index(node_id)?;
        let mut pools = self.nodes[at].pools.iter_mut();
        pools.find(|p| p.pool_id == pool_id)
    }

    /// Region, zone and rack of a node.
    pub(super) fn domains(&self, node: usize) -> Domains {
        self.domains[node]
    }

    /// All regions, by name; nodes that do not say theirs come first.
    pub(super) fn regions(&self) -> &[u32] {
        &self.regions
    }

    /// What a node calls its domain of a level.
    pub(super) fn name(&self, node: usize, level: usize) -> &str {
        label_of(&self.nodes[node], level).unwrap_or("(none said)")
    }

    /// For each node, a number of its domain by a topology key; `None`: it does not say.
    pub(super) fn by_key(&self, key: &str) -> Vec<Option<u32>> {
        if key.is_empty() || key == "node" {
            return (0..self.nodes.len() as u32).map(Some).collect();
        }
        if let Some(level) = level(key) {
            let said = |(n, d): (&Node, &Domains)| label_of(n, level).map(|_| d[level]);
            return self.nodes.iter().zip(&self.domains).map(said).collect();
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut number = |value| {
            let next = numbers.len() as u32;
            *numbers.entry(value).or_insert(next)
        };
        let said = self.nodes.iter().map(|n| n.labels.get(key));
        said.map(|v| v.map(|v| number(v.as_str()))).collect()
    }
}

fn label_of(node: &Node, level: usize) -> Option<&str> {
    let mut names = LABELS[level].iter();
    names.find_map(|name| node.labels.get(*name).map(String::as_str))
}
