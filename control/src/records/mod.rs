//! What the control plane keeps in the KVDB (`docs/kvdb.md`): the records, their keys, and reading and changing them.

mod alerts;
mod keys;
mod options;
mod registry;
mod scans;
mod snapshots;
mod tasks;
mod types;

pub use alerts::{AlertKind, AlertRecord, Resource, Severity};
pub use keys::Keys;
pub use options::{AwayRecord, OptionsRecord, REPLACE_AFTER_S_MIN};
pub use registry::{Found, Registry, Versioned, encode};
pub(crate) use registry::{snapshot_is_there, volume_is_there};
pub use scans::{ScanRecord, ScanResult, ScanState, Schedule};
pub use snapshots::{JointRecord, JointStep, SnapshotRecord, SourceRecord};
pub use tasks::{TaskKind, TaskRecord, TaskReplica, TaskState, TaskStep};
pub use types::*;
