//! Everything that says what a node has, at one revision of the KVDB.

use std::collections::BTreeMap;

use keelblock_api::etcd::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::record::MemberRecord;
use super::standing::unfit;
use crate::error::OpError;
use crate::records::{
    AliveRecord, AttachmentRecord, ClusterRecord, Keys, NodeRecord, PoolRecord, Registry,
    ReplicaRecord, SnapshotRecord, TaskRecord, Versioned, VolumeRecord,
};
use crate::replication::record::{Replica, ReplicaState, ReplicationRecord};

/// See the module's text.
#[derive(Debug, Default)]
pub struct World {
    /// The cluster's generation.
    pub generation: u8,
    pub nodes: BTreeMap<String, NodeRecord>,
    pub alive: BTreeMap<String, AliveRecord>,
    pub members: BTreeMap<String, Versioned<MemberRecord>>,
    pub pools: Vec<PoolRecord>,
    pub volumes: BTreeMap<Uuid, Versioned<VolumeRecord>>,
    pub snapshots: Vec<SnapshotRecord>,
    pub sets: BTreeMap<Uuid, ReplicationRecord>,
    /// What became of replicas, by volume and replica.
    pub replicas: BTreeMap<(Uuid, Uuid), ReplicaRecord>,
    pub tasks: BTreeMap<Uuid, TaskRecord>,
    pub attachments: BTreeMap<Uuid, Versioned<AttachmentRecord>>,
}

fn read<T: DeserializeOwned>(kv: &KeyValue) -> Result<T, OpError> {
    serde_json::from_slice(&kv.value).map_err(|error| {
        let key = String::from_utf8_lossy(&kv.key);
        OpError::State(format!(
            "the record {key} cannot be read, so nobody can say what its node has: {error}; was it written by a later version?"
        ))
    })
}

fn versioned<T: DeserializeOwned>(kv: &KeyValue) -> Result<Versioned<T>, OpError> {
    Ok(Versioned {
        record: read(kv)?,
        revision: kv.mod_revision,
    })
}

impl World {
    /// As it is now.
    ///
    /// # Errors
    /// The KVDB, and [`OpError::State`] of a record that cannot be read.
    pub async fn look(registry: &Registry) -> Result<Self, OpError> {
        let root = registry.keys().root();
        let listed = registry.kv().list(root).await?;
        Self::read(registry.keys(), &listed.kvs)
    }

    fn read(keys: &Keys, all: &[KeyValue]) -> Result<Self, OpError> {
        let mut world = Self::default();
        for kv in all {
            let key = kv.key.strip_prefix(keys.root().as_bytes());
            if let Some(key) = key.and_then(|k| std::str::from_utf8(k).ok()) {
                world.put(key, kv)?;
            }
        }
        Ok(world)
    }

    fn put(&mut self, key: &str, kv: &KeyValue) -> Result<(), OpError> {
        let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
        let id = Uuid::try_parse(rest).ok();
        match (kind, id) {
            ("cluster", _) => self.generation = read::<ClusterRecord>(kv)?.generation,
            ("nodes", _) => drop(self.nodes.insert(rest.into(), read(kv)?)),
            ("alive", _) => drop(self.alive.insert(rest.into(), read(kv)?)),
            ("members", _) => drop(self.members.insert(rest.into(), versioned(kv)?)),
            ("pools", _) => self.pools.push(read(kv)?),
            ("volumes", Some(id)) => drop(self.volumes.insert(id, versioned(kv)?)),
            ("snapshots", Some(_)) => self.snapshots.push(read(kv)?),
            ("replication", Some(id)) => drop(self.sets.insert(id, read(kv)?)),
            ("tasks", Some(id)) => drop(self.tasks.insert(id, read(kv)?)),
            ("attachments", Some(id)) => drop(self.attachments.insert(id, versioned(kv)?)),
            ("replicas", None) => {
                let ids = rest.split_once('/');
                let parse =
                    |(v, r): (&str, &str)| Uuid::try_parse(v).ok().zip(Uuid::try_parse(r).ok());
                if let Some(ids) = ids.and_then(parse) {
                    self.replicas.insert(ids, read(kv)?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A node says that it lives, and that its data path can be used.
    pub fn works(&self, node: &str) -> bool {
        let says = self.alive.get(node);
        says.is_some_and(|a| !a.incarnation.is_empty())
    }

    /// What is wanted of a node.
    pub fn member(&self, node: &str) -> Option<&MemberRecord> {
        self.members.get(node).map(|m| &m.record)
    }

    /// Why a node gets nothing new; `None`: it may.
    pub fn unfit(&self, node: &str) -> Option<&'static str> {
        self.member(node).and_then(unfit)
    }

    /// It has a pool.
    pub fn is_storage(&self, node: &str) -> bool {
        self.pools.iter().any(|p| p.node_id == node)
    }

    /// The name of a volume, or its id.
    pub fn name(&self, id: Uuid) -> String {
        let volume = self.volumes.get(&id).map(|v| &v.record.name);
        volume
            .filter(|n| !n.is_empty())
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }

    /// Replicas that are there to stay.
    pub fn staying(set: &ReplicationRecord) -> impl Iterator<Item = &Replica> {
        set.replicas
            .iter()
            .filter(|r| r.state != ReplicaState::Leaving)
    }

    /// A member whose data are there, on a node that works.
    pub fn is_good(&self, volume: Uuid, replica: &Replica) -> bool {
        let known = self.replicas.get(&(volume, replica.replica_id));
        let well = known.is_none_or(|r| !r.lost && r.error.is_empty());
        replica.state == ReplicaState::Member && well && self.works(&replica.node_id)
    }

    /// Members of a volume on other nodes that have everything and can be reached.
    pub fn good_elsewhere<'a>(
        &'a self,
        volume: Uuid,
        set: &'a ReplicationRecord,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Replica> {
        let all = set.replicas.iter().filter(move |r| r.node_id != node);
        all.filter(move |r| self.is_good(volume, r))
    }

    /// Why a node that has no replica of a volume cannot have one; `None`: it can.
    pub fn cannot_have(&self, node: &NodeRecord) -> Option<&'static str> {
        let Some(says) = self.alive.get(&node.node_id) else {
            return Some("it is away");
        };
        if let Some(why) = self.unfit(&node.node_id) {
            return Some(why);
        }
        if says.incarnation.is_empty() {
            return Some("its data path is away");
        }
        if node.replication_address.is_empty() {
            return Some("its data path was started without --replication");
        }
        match says.pools.iter().any(|p| !p.memory && p.free_bytes > 0) {
            true => None,
            false => Some("it has no room on drives"),
        }
    }

    /// Whether a node may coordinate.
    pub fn may_coordinate(&self, node: &NodeRecord) -> bool {
        self.works(&node.node_id)
            && self.unfit(&node.node_id).is_none()
            && !node.replication_address.is_empty()
    }

    /// Volumes that are attached to a node for hosts, or are just leaving it.
    pub fn attached(&self, node: &str) -> u32 {
        let at = self.attachments.values().filter(|a| {
            let here = a.record.node_id == node || a.record.moved_from.as_deref() == Some(node);
            here && !a.record.errand
        });
        u32::try_from(at.count()).unwrap_or(u32::MAX)
    }

    /// Storage nodes that are members, and how many of them live.
    pub fn quorum(&self) -> (usize, usize) {
        let is_member = |id: &str| {
            let state = self.member(id).map(|m| m.state);
            state != Some(super::MemberState::Decommissioned)
        };
        let storage = self
            .nodes
            .keys()
            .filter(|id| self.is_storage(id) && is_member(id));
        let lives = storage.clone().filter(|id| self.alive.contains_key(*id));
        (storage.count(), lives.count())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::records::{PathState, Phase, PoolSpace, ReplicatedRecord};

    pub fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// So many nodes n1, n2, …, all well, each with a drive.
    pub fn world(nodes: u8) -> World {
        let mut world = World::default();
        for n in 1..=nodes {
            let node = NodeRecord {
                node_id: format!("n{n}"),
                version: String::new(),
                hostname: String::new(),
                nvme_address: String::new(),
                sdk_address: String::new(),
                rest_address: String::new(),
                replication_address: "127.0.0.1:1".into(),
                public_key: String::new(),
                gossip_address: String::new(),
            };
            let space = PoolSpace {
                pool_id: id(100 + u128::from(n)),
                memory: false,
                total_bytes: 100,
                free_bytes: 50,
            };
            let says = AliveRecord {
                pid: 1,
                incarnation: format!("process {n}"),
                pools: vec![space],
            };
            world.pools.push(PoolRecord {
                pool_id: id(100 + u128::from(n)),
                name: "default".into(),
                node_id: node.node_id.clone(),
                memory: false,
                drives: Vec::new(),
                removed: Vec::new(),
                last_resize: None,
            });
            let member = MemberRecord::new(&node.node_id, id(n.into()), 1);
            let member = Versioned {
                record: member,
                revision: n.into(),
            };
            world.members.insert(node.node_id.clone(), member);
            world.alive.insert(node.node_id.clone(), says);
            world.nodes.insert(node.node_id.clone(), node);
        }
        world
    }

    pub fn volume_record(n: u128, name: &str) -> VolumeRecord {
        VolumeRecord {
            volume_id: id(n),
            name: name.into(),
            phase: Phase::Ready,
            node_id: String::new(),
            pool_id: Uuid::nil(),
            replicated: Some(ReplicatedRecord {
                lanes: 1,
                volatile_cache: true,
                minimum: None,
                growing_to: None,
            }),
            size_bytes: 4096,
            block_bytes: 4096,
            sticky: false,
            encrypted: false,
            labels: BTreeMap::new(),
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: 1,
            detached_unix_ms: 0,
            error: String::new(),
            source: None,
            restoring: None,
            placement: None,
            trashed: None,
            asked_bytes: None,
            ownership: None,
        }
    }

    impl World {
        pub fn member_mut(&mut self, node: &str) -> &mut MemberRecord {
            &mut self.members.get_mut(node).unwrap().record
        }

        /// A volume with replicas on these nodes; replica ids are 1000 × volume + node.
        pub fn replicated(&mut self, n: u128, name: &str, on: &[u8], minimum: u8) {
            let replica = |node: &u8| {
                let (node, at) = (u128::from(*node), format!("n{node}"));
                (id(1000 * n + node), at, id(100 + node))
            };
            let wanted = u8::try_from(on.len()).unwrap();
            let set = ReplicationRecord::new(0, on.iter().map(replica), minimum, wanted).unwrap();
            for r in &set.replicas {
                let made = ReplicaRecord {
                    node_id: r.node_id.clone(),
                    made: true,
                    error: String::new(),
                    lost: false,
                };
                self.replicas.insert((id(n), r.replica_id), made);
            }
            self.sets.insert(id(n), set);
            let record = volume_record(n, name);
            self.volumes.insert(
                id(n),
                Versioned {
                    record,
                    revision: 7,
                },
            );
        }

        pub fn attach(&mut self, n: u128, node: &str) {
            let record = AttachmentRecord {
                volume_id: id(n),
                node_id: node.into(),
                subsystem_of: id(n),
                nsid: 1,
                path_state: PathState::Optimized,
                attached_unix_ms: 1,
                moved_from: None,
                errand: false,
            };
            self.attachments.insert(
                id(n),
                Versioned {
                    record,
                    revision: 9,
                },
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_by_its_key() {
        let keys = Keys::new("c");
        let kv = KeyValue {
            key: keys.replication(id(1)).into_bytes(),
            value: b"{}".to_vec(),
            ..Default::default()
        };
        let error = World::read(&keys, &[kv]).unwrap_err().to_string();
        assert!(error.contains("/c/replication/"), "{error}");
    }

    #[test]
    fn quorum_is_of_storage_nodes_that_are_members() {
        let mut w = world(4);
        w.pools.retain(|p| p.node_id != "n4");
        assert_eq!(w.quorum(), (3, 3));
        w.alive.remove("n1");
        assert_eq!(w.quorum(), (3, 2));
        w.member_mut("n1").state = super::super::MemberState::Decommissioned;
        assert_eq!(w.quorum(), (2, 2));
    }
}
