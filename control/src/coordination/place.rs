//! What placement looks at (`crate::placement`), from what is seen of the KVDB; and its answers in words.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Seen;
use super::seen::Life;
use crate::error::OpError;
use crate::membership::unfit;
use crate::placement::{Cluster, Neighbour, NoPlace, Node, Outcome, Pool, Request, Verdict};
use crate::records::{AliveRecord, NodeRecord, VolumeRecord};

/// Most nodes that an error names with their reasons.
const NAMED_MAX: usize = 16;

impl Seen {
    /// All nodes, their pools, and what is provisioned in those.
    /// `loads`: how busy they are, in percent; 0 of those that are not in it.
    pub(crate) fn cluster(&self, loads: &BTreeMap<String, u8>) -> Cluster {
        let node = |node: &NodeRecord| {
            let life = self.alive().get(&node.node_id);
            let says = life.map(|Life { says, .. }| says);
            let member = self.member(&node.node_id);
            let pools = says.map(|s| self.pools(s, &node.node_id));
            Node {
                node_id: node.node_id.clone(),
                labels: member.map(|m| m.labels.clone()).unwrap_or_default(),
                refused: unable(node, says)
                    .or(member.and_then(unfit))
                    .map(str::to_owned),
                load_percent: loads.get(&node.node_id).copied().unwrap_or(0),
                pools: pools.unwrap_or_default(),
            }
        };
        Cluster::new(self.nodes().map(node).collect())
    }

    fn pools(&self, says: &AliveRecord, node_id: &str) -> Vec<Pool> {
        let pool = |p: &crate::records::PoolSpace| {
            let (replicas, provisioned_bytes) = self.provisioned_in(node_id, p.pool_id);
            Pool {
                pool_id: p.pool_id,
                // What lies in memory is lost with the process, and with it a copy that others count on (rule 9).
                memory: p.memory,
                total_bytes: p.total_bytes,
                free_bytes: p.free_bytes,
                provisioned_bytes,
                replicas,
            }
        };
        says.pools.iter().map(pool).collect()
    }

    /// Volumes that a rule of a volume may speak of, or whose rules may speak of it: all but itself, if any rule speaks of volumes at all.
    pub(crate) fn neighbours(&self, volume: Option<Uuid>, all: bool) -> Vec<Neighbour<'_>> {
        // One in the trashcan is in nobody's way.
        let other = |v: &&VolumeRecord| Some(v.volume_id) != volume && v.trashed.is_none();
        let one = |v| {
            let nodes = match self.single(v) {
                Some(single) => vec![single.node_id.as_str()],
                None => {
                    let replicas = &self.set(v)?.replicas;
                    replicas.iter().map(|r| r.node_id.as_str()).collect()
                }
            };
            Some(neighbour(self.volume_record(v).filter(other)?, nodes))
        };
        match all {
            true => {
                let all = self.volume_records().map(|v| v.volume_id);
                all.filter_map(one).collect()
            }
            // There may be thousands, and few have rules.
            false => self.speaking().filter_map(one).collect(),
        }
    }
}

fn neighbour<'a>(volume: &'a VolumeRecord, nodes: Vec<&'a str>) -> Neighbour<'a> {
    Neighbour {
        name: &volume.name,
        labels: &volume.labels,
        rules: volume.placement.as_ref(),
        nodes,
    }
}

/// Why a node can have no replica, whatever room it has.
fn unable(node: &NodeRecord, alive: Option<&AliveRecord>) -> Option<&'static str> {
    match alive {
        None => Some("it is away"),
        Some(alive) if alive.incarnation.is_empty() => Some("its data path is away"),
        Some(_) if node.replication_address.is_empty() => {
            Some("its data path was started without --replication")
        }
        Some(_) => None,
    }
}

/// That there is no placement, in words.
pub(crate) fn no_place(none: &NoPlace<'_>, request: &Request<'_>) -> OpError {
    let verdicts = none.explain();
    let able: Vec<String> = verdicts
        .iter()
        .filter(|v| v.outcome == Outcome::Able)
        .map(|v| v.node_id.clone())
        .collect();
    let mut others: Vec<String> = verdicts.iter().filter_map(refused).collect();
    let more = others.len().saturating_sub(NAMED_MAX);
    others.truncate(NAMED_MAX);
    if more > 0 {
        others.push(format!("and {more} more"));
    }
    if none.by_rules() {
        let why = match none.gave_up {
            true => "none was found that keeps the required rules",
            false => "none keeps the required rules",
        };
        return OpError::State(format!(
            "of the {} nodes that can have a replica no {} were found that go together: {why} of the volume's placement \
             (`keelctl volume create … --explain` says what each node can do)",
            able.len(),
            none.wanted()
        ));
    }
    if let (Some([one]), false) = (request.nodes.as_deref(), others.is_empty()) {
        let said = verdicts.iter().find(|v| v.node_id == **one);
        if let Some(Outcome::Refused(why)) = said.map(|v| &v.outcome) {
            return OpError::State(format!("node {one} cannot have a replica: {why}"));
        }
    }
    match request.held.is_empty() && request.shut.is_empty() {
        true => OpError::TooFewNodes {
            wanted: none.wanted(),
            found: able,
            others,
        },
        false => OpError::NoNode {
            has: request.held.iter().map(|n| (*n).to_owned()).collect(),
            others,
        },
    }
}

fn refused(verdict: &Verdict) -> Option<String> {
    match &verdict.outcome {
        Outcome::Refused(why) => Some(format!("{}: {why}", verdict.node_id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Keys, PoolSpace, encode};
    use keelblock_api::etcd::mvccpb::KeyValue;

    const GIB: u64 = 1 << 30;
    const POOL: Uuid = Uuid::from_u128(1);

    fn node(id: &str) -> (NodeRecord, AliveRecord) {
        let record = NodeRecord {
            node_id: id.into(),
            version: String::new(),
            hostname: String::new(),
            nvme_address: String::new(),
            sdk_address: String::new(),
            rest_address: String::new(),
            replication_address: "127.0.0.1:9022".into(),
            public_key: String::new(),
            gossip_address: String::new(),
        };
        let alive = AliveRecord {
            pid: 1,
            incarnation: "x".into(),
            pools: vec![PoolSpace {
                pool_id: POOL,
                memory: false,
                total_bytes: 100 * GIB,
                free_bytes: 9 * GIB,
            }],
        };
        (record, alive)
    }

    fn seen(nodes: &[(NodeRecord, Option<AliveRecord>)]) -> Seen {
        let keys = Keys::new("c");
        let put = |key: String, value: Vec<u8>| KeyValue {
            key: key.into_bytes(),
            value,
            ..Default::default()
        };
        let mut all = Vec::new();
        for (node, alive) in nodes {
            all.push(put(keys.node(&node.node_id), encode(node)));
            let says = alive.as_ref().map(encode);
            all.extend(says.map(|s| put(keys.alive(&node.node_id), s)));
        }
        Seen::read(&keys, &all, &mut Seen::default())
    }

    fn request(labels: &BTreeMap<String, String>, replicas: usize) -> Request<'_> {
        Request {
            size_bytes: GIB,
            replicas,
            labels,
            rules: None,
            held: Vec::new(),
            shut: Vec::new(),
            nodes: None,
            pools: None,
            neighbours: Vec::new(),
            limits: Default::default(),
            first: "",
        }
    }

    #[tokio::test]
    async fn of_equal_nodes_the_calm_one_gets_it() {
        let nodes = ["a", "b", "c"].map(|id| {
            let (record, alive) = node(id);
            (record, Some(alive))
        });
        let labels = BTreeMap::new();
        let picked = |loads: &[(&str, u8)]| {
            let loads = loads.iter().map(|(id, load)| ((*id).to_owned(), *load));
            let cluster = seen(&nodes).cluster(&loads.collect());
            cluster.choose(&request(&labels, 1)).unwrap().picks()
        };
        assert_eq!(picked(&[]), [("a".to_owned(), POOL)]);
        let busy = picked(&[("a", 80), ("b", 30), ("c", 10)]);
        assert_eq!(busy, [("c".to_owned(), POOL)]);
        // Of one that is not heard nothing is known: it counts as calm.
        assert_eq!(picked(&[("a", 80), ("c", 10)]), [("b".to_owned(), POOL)]);
    }

    #[tokio::test]
    async fn who_cannot_have_one_is_named_with_the_reason() {
        let mut nodes = ["a", "b", "c", "d", "e", "f"].map(|id| {
            let (record, alive) = node(id);
            (record, Some(alive))
        });
        nodes[1].1 = None;
        let alive = |n: &mut (NodeRecord, Option<AliveRecord>)| n.1.take().unwrap();
        let mut quiet = alive(&mut nodes[2]);
        quiet.incarnation.clear();
        nodes[2].1 = Some(quiet);
        nodes[3].0.replication_address.clear();
        let mut memory = alive(&mut nodes[4]);
        memory.pools[0].memory = true;
        nodes[4].1 = Some(memory);
        let mut bare = alive(&mut nodes[5]);
        bare.pools.clear();
        nodes[5].1 = Some(bare);
        let cluster = seen(&nodes).cluster(&BTreeMap::new());
        let labels = BTreeMap::new();
        let mut wish = request(&labels, 3);
        let error = no_place(&cluster.choose(&wish).unwrap_err(), &wish).to_string();
        for says in [
            "3 nodes",
            "1: a",
            "b: it is away",
            "c: its data path",
            "d: its data path was started",
            "e: its pool is memory",
            "f: it has no pool",
        ] {
            assert!(error.contains(says), "{error} does not say {says}");
        }
        wish.replicas = 1;
        assert_eq!(
            cluster.choose(&wish).unwrap().picks(),
            [("a".to_owned(), POOL)]
        );
        wish.held = vec!["a"];
        let error = no_place(&cluster.choose(&wish).unwrap_err(), &wish).to_string();
        for says in ["a: it has one", "b: it is away", "f: it has no pool"] {
            assert!(error.contains(says), "{error} does not say {says}");
        }
        wish.nodes = Some(vec!["b"]);
        let error = no_place(&cluster.choose(&wish).unwrap_err(), &wish).to_string();
        assert_eq!(error, "node b cannot have a replica: it is away");
    }
}
