//! Alerts: what went wrong, or is worth knowing. The same thing again raises a count.
use keelblock_api::openstorage::{ResourceType, SeverityType};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Under which the ids of alerts are made.
const NAMESPACE: Uuid = Uuid::from_u128(0x9a41_3a0e_52d7_4c11_8f0b_6b65_656c_616c);

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Data or service are lost or about to be.
    Alarm,
    /// It will get worse unless somebody does something.
    Warning,
    /// Something has happened.
    Notify,
}

impl Severity {
    /// As the SDK has it; lower is worse.
    pub fn sdk(self) -> SeverityType {
        match self {
            Self::Alarm => SeverityType::Alarm,
            Self::Warning => SeverityType::Warning,
            Self::Notify => SeverityType::Notify,
        }
    }
}

/// Of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// A volume or snapshot.
    Volume,
    /// A drive.
    Drive,
    /// A pool.
    Pool,
    /// A node.
    Node,
}

impl Resource {
    /// As the SDK has it.
    pub fn sdk(self) -> ResourceType {
        match self {
            Self::Volume => ResourceType::Volume,
            Self::Drive => ResourceType::Drive,
            Self::Pool => ResourceType::Pool,
            Self::Node => ResourceType::Node,
        }
    }
}

/// What alerts are about. The numbers are the SDK's `alert_type`, and stay (`docs/sdk.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A drive failed: it takes no more writes, or is not there.
    DriveFailed = 1,
    /// A block is not what was written.
    ChecksumError = 2,
    /// A drive has been emptied.
    DriveEvacuated = 3,
    /// A pool has little room, or none.
    PoolSpaceLow = 4,
    /// A scan has ended.
    ScanDone = 5,
    /// A volume lost data, or cannot be used.
    VolumeError = 6,
    /// A drive cannot read a block.
    ReadError = 7,
    /// The replicas of a volume were changed, or could not be.
    ReplicasChanged = 8,
    /// A snapshot that was due was not taken.
    SnapshotFailed = 9,
    /// A node is no member any more.
    NodeLeft = 10,
    /// A replica is lost, or its node is away for long: another is made, or cannot be.
    ReplicaLost = 11,
}

impl AlertKind {
    /// What it is about.
    pub fn resource(self) -> Resource {
        match self {
            Self::DriveFailed | Self::ChecksumError | Self::DriveEvacuated | Self::ReadError => {
                Resource::Drive
            }
            Self::PoolSpaceLow | Self::ScanDone => Resource::Pool,
            Self::NodeLeft => Resource::Node,
            Self::VolumeError
            | Self::ReplicasChanged
            | Self::SnapshotFailed
            | Self::ReplicaLost => Resource::Volume,
        }
    }

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::DriveFailed => "drive-failed",
            Self::ChecksumError => "checksum-error",
            Self::DriveEvacuated => "drive-evacuated",
            Self::PoolSpaceLow => "pool-space-low",
            Self::ScanDone => "scan-done",
            Self::VolumeError => "volume-error",
            Self::ReadError => "read-error",
            Self::ReplicasChanged => "replicas-changed",
            Self::SnapshotFailed => "snapshot-failed",
            Self::NodeLeft => "node-decommissioned",
            Self::ReplicaLost => "replica-lost",
        }
    }
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertRecord {
    /// Its id.
    pub id: i64,
    /// What it is about.
    pub kind: AlertKind,
    /// Which drive, pool or volume.
    pub resource_id: String,
    /// Tells alerts of one kind and resource apart; often empty.
    pub tag: String,
    /// How bad.
    pub severity: Severity,
    /// In words, with what to do.
    pub message: String,
    /// How often.
    pub count: u64,
    /// ms since the Unix epoch.
    pub first_seen_unix_ms: u64,
    /// ms since the Unix epoch.
    pub last_seen_unix_ms: u64,
    /// It is over.
    pub cleared: bool,
}

impl AlertRecord {
    /// The id that what is said here always has.
    pub fn id_of(kind: AlertKind, resource_id: &str, tag: &str) -> i64 {
        let text = format!("{}/{resource_id}/{tag}", kind.name());
        let id = Uuid::new_v5(&NAMESPACE, text.as_bytes());
        // 63 bits of it, and never 0.
        (id.as_u64_pair().0 >> 1).max(1) as i64
    }
}
