//! What is known of a volume at a moment. Records are shared with [`super::Seen`], not copied: there may be thousands, and each is looked at often.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::records::{
    AttachmentRecord, ReplicaRecord, SnapshotRecord, TaskRecord, Versioned, VolumeRecord,
};
use crate::replication::record::ReplicationRecord;

/// A record as it was read: it is not changed, but another takes its place.
pub type Kept<T> = Arc<Versioned<T>>;

/// What is known of a volume, at a moment.
#[derive(Debug, Clone)]
pub struct Now {
    /// Its id.
    pub id: Uuid,
    /// Its record.
    pub volume: Option<Kept<VolumeRecord>>,
    /// Its replicas and who coordinates them.
    pub set: Option<Kept<ReplicationRecord>>,
    /// Since when that is so, as far as was seen.
    pub set_since: Option<Instant>,
    /// Where it is attached.
    pub attachment: Option<Kept<AttachmentRecord>>,
    /// Since when that is so, as far as was seen.
    pub attached_since: Option<Instant>,
    /// What became of its replicas.
    pub replicas: BTreeMap<Uuid, Versioned<ReplicaRecord>>,
    /// The task that changes them, or the last one that did.
    pub task: Option<Kept<TaskRecord>>,
    /// Its snapshots, the oldest first.
    pub snapshots: Vec<Kept<SnapshotRecord>>,
}

/// What is kept beside the record of a volume.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Its replicas and who coordinates them.
    pub set: Option<Kept<ReplicationRecord>>,
    /// Where it is attached, or only coordinated.
    pub attachment: Option<Kept<AttachmentRecord>>,
    /// The task that changes its replicas, or the last one that did.
    pub task: Option<Kept<TaskRecord>>,
}

/// Whom a change concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// These volumes.
    pub volumes: HashSet<Uuid>,
    /// Nodes: where they are, or who they are.
    pub nodes: bool,
    /// Whether nodes live.
    pub alive: bool,
}
