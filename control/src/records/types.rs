//! The records. JSON in the KVDB; an unknown field is an error, since a later version wrote it and would lose it.
use super::SourceRecord;
use crate::auth::OwnershipRecord;
use crate::placement::Rules;
use keelblock_api::datapath::AnaState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRecord {
    /// Its id.
    pub cluster_id: String,
    /// When it was made, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// Raised when the KVDB is restored: epochs begin with it (`docs/replication.md` §2).
    #[serde(default)]
    pub generation: u8,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    /// Its id.
    pub node_id: String,
    /// Version of its control process.
    pub version: String,
    /// Its machine.
    pub hostname: String,
    /// Where hosts connect; empty until its data path has said so.
    pub nvme_address: String,
    /// Where its SDK is.
    pub sdk_address: String,
    /// Where its REST gateway is.
    pub rest_address: String,
    /// Where other nodes' data paths connect; empty: it was started without replication, or has not said yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replication_address: String,
    /// By which it proves who it is there (Ed25519, 64 hex digits).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub public_key: String,
    /// Where it gossips; empty: it does not, as it is of an older version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gossip_address: String,
}

/// What a node says of itself while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliveRecord {
    /// Process id of its control process.
    pub pid: u32,
    /// Of its data path; empty while that cannot be used.
    pub incarnation: String,
    /// Room in its pools.
    pub pools: Vec<PoolSpace>,
}

/// Room in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpace {
    /// The pool.
    pub pool_id: Uuid,
    /// Whether its content ends with the data path.
    pub memory: bool,
    /// What it can hold.
    pub total_bytes: u64,
    /// What new data may take.
    pub free_bytes: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    /// Its id.
    pub pool_id: Uuid,
    /// What its node calls it.
    pub name: String,
    /// Its node.
    pub node_id: String,
    /// Whether it is only memory: its content ends with the data path.
    pub memory: bool,
    /// Its drives.
    pub drives: Vec<DriveRecord>,
    /// Paths of the command line whose drives have left the pool: they are not opened again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// The last change of its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resize: Option<ResizeRecord>,
}

/// How a change of a pool's size went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRecord {
    /// What was asked for.
    pub wanted_bytes: u64,
    /// Why it was not done; empty: it was.
    pub error: String,
}

/// A drive of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveRecord {
    /// Its id.
    pub drive_id: Uuid,
    /// Its path.
    pub path: String,
    /// Whether it came by a command, and is not among the process' own drives.
    #[serde(default, skip_serializing_if = "is_false")]
    pub added: bool,
    /// For a file that an added drive is to be made as: its size.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size_bytes: u64,
    /// It is being added: nothing is on it yet, and it may be formatted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fresh: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its space is being taken.
    Creating,
    /// It can be used.
    Ready,
    /// Its space is being given back.
    Deleting,
    /// Deleted, but for its snapshots: of a replicated volume.
    Kept,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// Its id.
    pub volume_id: Uuid,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The node that holds it; empty if it is replicated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_id: String,
    /// The pool that holds it; nil if it is replicated.
    #[serde(default, skip_serializing_if = "Uuid::is_nil")]
    pub pool_id: Uuid,
    /// Of a replicated volume: what every node must know. Where its replicas are is in `replication/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicated: Option<ReplicatedRecord>,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// It cannot be deleted.
    pub sticky: bool,
    /// Its blocks are encrypted; its keys are in `secrets/`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub encrypted: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether any host may connect; `allowed_hosts` is empty then.
    pub any_host: bool,
    /// NQNs of the hosts that may connect.
    pub allowed_hosts: Vec<String>,
    /// When it was made, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// When it was last detached, ms since the Unix epoch; 0: never.
    pub detached_unix_ms: u64,
    /// What is wrong with it; empty: nothing.
    pub error: String,
    /// Of a clone: what it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRecord>,
    /// It is being set back to this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<Uuid>,
    /// What was wished for the place of its replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Rules>,
    /// It was deleted, and is in the trashcan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed: Option<TrashedRecord>,
    /// Of a volume with a single copy: the size that its pool is being asked for. It is counted where pools have limits, and has it when `size_bytes` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_bytes: Option<u64>,
    /// Whose it is, and who else may do what with it; absent: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<OwnershipRecord>,
}

/// That a volume is in the trashcan. Its name is another one meanwhile, so that its own is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrashedRecord {
    /// Its name.
    pub name: String,
    /// When it was deleted, ms since the Unix epoch.
    pub deleted_unix_ms: u64,
    /// When it is deleted for good.
    pub until_unix_ms: u64,
}

/// How the trashcan is to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrashOptions {
    /// For how long deleted volumes are kept; 0: not at all.
    pub keep_minutes: u64,
}

impl VolumeRecord {
    /// That it is in the trashcan, where it is not being deleted already.
    pub fn in_trash(&self) -> Option<&TrashedRecord> {
        self.trashed.as_ref().filter(|_| self.phase == Phase::Ready)
    }

    /// The size that whoever serves it is to have: also the one that it is getting.
    pub fn served_bytes(&self) -> u64 {
        let growing = self.replicated.as_ref().and_then(|r| r.growing_to);
        self.size_bytes.max(growing.unwrap_or(0))
    }

    /// The size that is counted in pools of it.
    pub fn counted_bytes(&self) -> u64 {
        self.served_bytes().max(self.asked_bytes.unwrap_or(0))
    }
}

/// What all nodes must know of a replicated volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicatedRecord {
    /// Its lanes, for good.
    pub lanes: u8,
    /// Hosts are told of a volatile cache: what they did not flush may be lost if a quorum loses power at once.
    pub volatile_cache: bool,
    /// Nothing is to be served by fewer replicas, as somebody said; absent: as follows from how many there are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<u8>,
    /// The size that it is getting, in bytes: above `size_bytes`, which it is when whoever serves the volume has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing_to: Option<u64>,
}

/// What has become of a replica: written by its node. It is there before the replica is, and until it is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRecord {
    /// Its node.
    pub node_id: String,
    /// It was made: if it is not there any more, it is lost, and never made again.
    pub made: bool,
    /// What is wrong with it; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Its data are gone for good: it never is a copy again, and another is to take its place.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
}

/// A node's path to a volume, as hosts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// The best one.
    Optimized,
    /// Works, slower.
    NonOptimized,
    /// Does not work now.
    Inaccessible,
    /// Will not work again.
    PersistentLoss,
    /// About to change.
    Change,
}

impl PathState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Optimized,
        Self::NonOptimized,
        Self::Inaccessible,
        Self::PersistentLoss,
        Self::Change,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Optimized => "optimized",
            Self::NonOptimized => "non-optimized",
            Self::Inaccessible => "inaccessible",
            Self::PersistentLoss => "persistent-loss",
            Self::Change => "change",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// As the data path has it.
    pub fn ana(self) -> AnaState {
        match self {
            Self::Optimized => AnaState::AnaOptimized,
            Self::NonOptimized => AnaState::AnaNonOptimized,
            Self::Inaccessible => AnaState::AnaInaccessible,
            Self::PersistentLoss => AnaState::AnaPersistentLoss,
            Self::Change => AnaState::AnaChange,
        }
    }
}

/// Where a volume is exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentRecord {
    /// The volume.
    pub volume_id: Uuid,
    /// The node that exports it; of a replicated one, the node that coordinates it.
    pub node_id: String,
    /// The volume whose subsystem it is in: itself, unless it is a further namespace of another's.
    pub subsystem_of: Uuid,
    /// Its namespace id there.
    pub nsid: u32,
    /// The path's state; of a further namespace, that of the subsystem counts.
    pub path_state: PathState,
    /// Since when, ms since the Unix epoch.
    pub attached_unix_ms: u64,
    /// Of a replicated volume that was moved while it was used: the node that ends serving it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<String>,
    /// Of a replicated volume: it is only coordinated there, for its snapshots, and for hosts it is attached nowhere.
    #[serde(default, skip_serializing_if = "is_false")]
    pub errand: bool,
}

impl AttachmentRecord {
    /// Whether it is a further namespace of another volume's subsystem.
    pub fn is_further(&self) -> bool {
        self.subsystem_of != self.volume_id
    }
}

/// The controller ids that each node may hand out for a volume's subsystem (`RULES.md` S11: equal ones make Linux refuse the
/// second path).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CntlidRecord {
    /// Slot by node id.
    pub slots: BTreeMap<String, u32>,
}

impl CntlidRecord {
    /// Nodes that can export one volume.
    pub const SLOTS: u32 = 64;
    /// Controllers of a volume on one node. 64 × 1023 fit below FFF0h, where the reserved ids begin.
    pub const PER_SLOT: u32 = 1023;

    /// The slot of a node, taking the first free one if it has none; `None`: all are taken.
    pub fn grant(&mut self, node_id: &str) -> Option<u32> {
        if let Some(slot) = self.slots.get(node_id) {
            return Some(*slot);
        }
        let free = (0..Self::SLOTS).find(|slot| !self.slots.values().any(|s| s == slot))?;
        self.slots.insert(node_id.to_owned(), free);
        Some(free)
    }

    /// First and last id of a slot.
    pub fn range(slot: u32) -> (u32, u32) {
        (slot * Self::PER_SLOT + 1, (slot + 1) * Self::PER_SLOT)
    }
}

const _: () = assert!(CntlidRecord::SLOTS * CntlidRecord::PER_SLOT < 0xfff0);

/// Now, ms since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_ids_of_nodes_are_apart_and_stay() {
        let mut record = CntlidRecord::default();
        let mut ranges = Vec::new();
        for node in 0..CntlidRecord::SLOTS {
            ranges.push(CntlidRecord::range(
                record.grant(&format!("n{node}")).unwrap(),
            ));
        }
        assert!(record.grant("one more").is_none());
        assert_eq!(CntlidRecord::range(record.grant("n7").unwrap()), ranges[7]);
        ranges.sort();
        assert!(ranges[0].0 >= 1 && ranges.windows(2).all(|w| w[0].1 < w[1].0));
        assert!(ranges.last().unwrap().1 <= 0xffef);
    }

    #[test]
    fn a_record_of_a_later_version_is_not_read() {
        let text = r#"{"cluster_id":"c","created_unix_ms":1,"new":true}"#;
        assert!(serde_json::from_str::<ClusterRecord>(text).is_err());
    }

    #[test]
    fn path_states_are_named_as_they_are_stored() {
        for state in PathState::ALL {
            assert_eq!(PathState::from_name(state.name()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
