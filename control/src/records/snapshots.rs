//! Snapshots, and what a clone remembers of where it came from.
use super::Phase;
use crate::auth::OwnershipRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A snapshot. It outlives its volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// Its id.
    pub snapshot_id: Uuid,
    /// Its name, unique among volumes and snapshots.
    pub name: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Of which volume.
    pub volume_id: Uuid,
    /// What that was called then.
    pub volume_name: String,
    /// The same for all that were taken at one barrier, which exist together or not at all.
    pub group: Uuid,
    /// The node that holds it.
    pub node_id: String,
    /// The pool that holds it.
    pub pool_id: Uuid,
    /// The volume's size then.
    pub size_bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was asked for, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// What is wrong with it; empty: nothing.
    pub error: String,
    /// Of a volume with several replicas: the epoch in which it is to be taken, and in no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// It was only taken for this clone: it has no name, is not shown, and goes when the clone is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_clone: Option<Uuid>,
    /// It is being taken at one moment with those of other volumes with replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<JointRecord>,
    /// Whose it is, and who else may do what with it; absent: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<OwnershipRecord>,
}

/// How far a snapshot is that is being taken with others (`docs/replication.md` §22).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointRecord {
    /// How many they are.
    pub count: u8,
    /// How far this one is.
    pub step: JointStep,
}

/// See [`JointRecord`]. In this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JointStep {
    /// It is to be put in.
    Wanted,
    /// It was, and what came behind it is held.
    Held,
    /// It was held until all were, and exists.
    Taken,
}

/// What a clone was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// The volume.
    pub volume_id: Uuid,
    /// The snapshot of it.
    pub snapshot_id: Uuid,
    /// The snapshot was only taken for this clone, and goes when the clone is there. It has no record, but of a replicated volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

impl SourceRecord {
    /// What the user named.
    pub fn parent(&self) -> Uuid {
        if self.own {
            self.volume_id
        } else {
            self.snapshot_id
        }
    }
}
