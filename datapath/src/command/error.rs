//! Why a command failed, and which status that is.

use tonic::{Code, Status};

use crate::device::{DeviceError, IoError};
use crate::nvmf::seam::ExportError;
use crate::replication::node::BeginError;
use crate::replication::seam::ReplicaError;
use crate::store::engine::{OpenError, StoreError};
use crate::store::pool::PoolError;
use crate::store::{Name, NameError, VolumeId};
use crate::volume::DriveError;
use crate::volume::coordinator::message::Failed;
use crate::volume::coordinator::set::NotNow;

/// Why a command failed. The message is for the person who gave it.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A field of the request makes no sense.
    #[error("{field}: {why}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A pool or drive id.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A drive cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A drive cannot be opened.
    #[error(transparent)]
    Open(#[from] DriveError),
    /// A drive could not do it.
    #[error("drive {drive}: {source}")]
    Store {
        /// Which.
        drive: Name,
        /// What it said.
        source: StoreError,
    },
    /// The same drive was named twice.
    #[error("drive {0} is named twice")]
    Twice(Name),
    /// There is no such drive in the pool, or it is not open.
    #[error("there is no drive {0:?} open in that pool")]
    NoDrive(String),
    /// It cannot be asked what it holds.
    #[error("drive {0} is missing or failed: replace it instead")]
    DriveMissing(Name),
    /// It holds something.
    #[error(
        "drive {drive} holds {lanes} lanes and {snapshots} snapshots of lanes: evacuate it first"
    )]
    DriveInUse {
        /// Which.
        drive: Name,
        /// Live lanes on it.
        lanes: usize,
        /// Snapshots of lanes on it.
        snapshots: usize,
    },
    /// A pool keeps a drive.
    #[error("drive {0} is the only one of its pool")]
    LastDrive(Name),
    /// The drive that lanes were moved to failed in the moment in which it took them.
    #[error(
        "lanes of drive {0} were taken by a drive that failed then: open the pool again, or replace the failed drive"
    )]
    Undecided(Name),
    /// It works: what is on it would be lost.
    #[error("drive {0} works: evacuate and remove it instead")]
    DriveWorks(Name),
    /// One scrub of a pool at a time.
    #[error("pool {pool} is being scrubbed ({scrub}): wait or cancel it first")]
    Scrubbing {
        /// Which pool.
        pool: Name,
        /// By which scrub.
        scrub: String,
    },
    /// It is not the pool's last one.
    #[error("there is no scrub {0:?} of that pool")]
    NoScrub(String),
    /// I/O that was under way did not end.
    #[error(
        "the volumes' I/O did not come to rest within {seconds} s, so there is no snapshot: try again"
    )]
    Barrier {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The pool said no.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The target said no.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// There is no such pool.
    #[error("there is no pool {0:?} here: open it first")]
    NoPool(String),
    /// There is no such volume.
    #[error("there is no volume {0} here")]
    NoVolume(VolumeId),
    /// What is here of it is a replica.
    #[error("what this node has of volume {0} is a replica: that cannot be done with it by itself")]
    IsReplica(VolumeId),
    /// It is a replicated volume, or none, and the other is wanted.
    #[error("volume {0} is open here, and is no replicated one")]
    NotReplicated(VolumeId),
    /// The process does not replicate.
    #[error(
        "this data path does not replicate: start it with --replication and --identity, and greet it"
    )]
    NoReplication,
    /// It cannot begin to.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// There is another replica of the volume here.
    #[error("this node has replica {found} of volume {volume}")]
    OtherReplica {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        found: uuid::Uuid,
    },
    /// A replica cannot be used.
    #[error("replica of volume {volume}: {source}")]
    Replica {
        /// Of which volume.
        volume: VolumeId,
        /// What its store says.
        source: ReplicaError,
    },
    /// It is coordinated here.
    #[error("volume {0} is coordinated here: stop that first")]
    Served(VolumeId),
    /// A higher epoch is.
    #[error("volume {volume} is coordinated here in epoch {epoch}")]
    HigherEpoch {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: u32,
    },
    /// Nobody here coordinates it in that epoch.
    #[error("volume {volume} is not coordinated here in epoch {epoch}")]
    NotServed {
        /// The volume.
        volume: VolumeId,
        /// Asked for.
        epoch: u32,
    },
    /// Its set cannot be changed so now.
    #[error("the replicas of volume {volume} cannot be changed now: {why}")]
    NotNow {
        /// The volume.
        volume: VolumeId,
        /// Why.
        why: NotNow,
    },
    /// A snapshot was not taken, or not deleted.
    #[error("a snapshot of volume {volume}: {why}")]
    Snapshot {
        /// The volume.
        volume: VolumeId,
        /// Why.
        why: Failed,
    },
    /// It is exported.
    #[error("volume {volume} is exported as {nqn}: unexport it first")]
    Exported {
        /// The volume.
        volume: VolumeId,
        /// An export of it.
        nqn: String,
    },
    /// A drive with that id is open from another path.
    #[error("drive {drive} is open from {path}")]
    OtherPath {
        /// The drive.
        drive: String,
        /// Its path.
        path: String,
    },
    /// The id is that of a drive or volume of another pool.
    #[error("{what} belongs to pool {pool}")]
    OtherPool {
        /// What.
        what: String,
        /// Whose it is.
        pool: String,
    },
}

impl CommandError {
    /// A field that makes no sense.
    pub fn field(field: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::Field { field, why }
    }

    fn code(&self) -> Code {
        match self {
            Self::Field { .. }
            | Self::Name(_)
            | Self::Export(ExportError::Namespace(_) | ExportError::ControllerIds(..)) => {
                Code::InvalidArgument
            }
            Self::Export(_) => Code::DataLoss,
            Self::Device(e) => device_code(e),
            Self::Open(e) => match e {
                DriveError::Device(e) => device_code(e),
                DriveError::Another { .. } => Code::FailedPrecondition,
                DriveError::Store { why, .. } => open_code(why),
            },
            Self::Store { source, .. } => store_code(*source),
            Self::Pool(e) => pool_code(e),
            Self::NoPool(_)
            | Self::NoVolume(_)
            | Self::NoDrive(_)
            | Self::NoScrub(_)
            | Self::NotServed { .. } => Code::NotFound,
            Self::Snapshot { why, .. } => match why {
                Failed::TooMany => Code::ResourceExhausted,
                // It may be later.
                _ => Code::Unavailable,
            },
            Self::OtherReplica { .. } => Code::AlreadyExists,
            Self::Begin(_) => Code::Internal,
            Self::Replica { source, .. } => match source {
                ReplicaError::Full => Code::ResourceExhausted,
                ReplicaError::Drive(_) => Code::Internal,
                ReplicaError::NotBuilt(_) => Code::Unimplemented,
                _ => Code::DataLoss,
            },
            Self::Twice(_) => Code::InvalidArgument,
            // Nothing is wrong with what was asked for, or with the node: the same again may work.
            Self::Barrier { .. } => Code::Aborted,
            Self::Exported { .. }
            | Self::IsReplica(_)
            | Self::NotReplicated(_)
            | Self::NoReplication
            | Self::Served(_)
            | Self::HigherEpoch { .. }
            | Self::NotNow { .. }
            | Self::Scrubbing { .. }
            | Self::DriveMissing(_)
            | Self::DriveInUse { .. }
            | Self::LastDrive(_)
            | Self::Undecided(_)
            | Self::DriveWorks(_)
            | Self::OtherPath { .. }
            | Self::OtherPool { .. } => Code::FailedPrecondition,
        }
    }

    /// Whether a drive is to blame, and not what was asked for: a pool can open without it.
    pub(super) fn is_of_the_drive(&self) -> bool {
        match self {
            Self::Device(e) => !matches!(e, DeviceError::Spec { .. }),
            Self::Open(_) => true,
            _ => false,
        }
    }
}

fn device_code(e: &DeviceError) -> Code {
    match e {
        DeviceError::Spec { .. } | DeviceError::TooSmall { .. } | DeviceError::Kind { .. } => {
            Code::InvalidArgument
        }
        DeviceError::Missing { .. } | DeviceError::Directory { .. } => Code::NotFound,
        DeviceError::Full { .. } | DeviceError::Memory { .. } => Code::ResourceExhausted,
        DeviceError::Permission { .. } => Code::PermissionDenied,
        DeviceError::Busy { .. } => Code::FailedPrecondition,
        DeviceError::Open { .. } | DeviceError::Reactor { .. } => Code::Internal,
    }
}

fn open_code(e: &OpenError) -> Code {
    match e {
        OpenError::Blank
        | OpenError::NotBlank
        | OpenError::Shrunk { .. }
        | OpenError::Another { .. } => Code::FailedPrecondition,
        OpenError::TooSmall { .. } => Code::InvalidArgument,
        OpenError::Corrupt { .. } => Code::DataLoss,
        OpenError::Io { source, .. } => io_code(*source),
        OpenError::Memory => Code::ResourceExhausted,
    }
}

fn store_code(e: StoreError) -> Code {
    match e {
        StoreError::Full => Code::ResourceExhausted,
        StoreError::Checksum { .. }
        | StoreError::Poisoned { .. }
        | StoreError::Page { .. }
        | StoreError::Lost => Code::DataLoss,
        StoreError::Io(e) => io_code(e),
        StoreError::Unknown => Code::NotFound,
        StoreError::Exists => Code::AlreadyExists,
        StoreError::Replica => Code::FailedPrecondition,
        StoreError::Closed => Code::Unavailable,
    }
}

fn pool_code(e: &PoolError) -> Code {
    match e {
        PoolError::NoDrive { .. } | PoolError::NoRoom { .. } => Code::ResourceExhausted,
        PoolError::Exists { .. }
        | PoolError::NotThatClone { .. }
        | PoolError::OtherVolume { .. } => Code::AlreadyExists,
        PoolError::Unknown { .. } | PoolError::NoSnapshot { .. } => Code::NotFound,
        PoolError::Shrink { .. } | PoolError::Size { .. } => Code::InvalidArgument,
        PoolError::Degraded { .. } => Code::FailedPrecondition,
        PoolError::Incomplete { .. } | PoolError::Partial { .. } => Code::DataLoss,
    }
}

fn io_code(e: IoError) -> Code {
    match e {
        IoError::NoSpace => Code::ResourceExhausted,
        IoError::Unreadable => Code::DataLoss,
        IoError::Failed | IoError::OutOfRange => Code::Internal,
    }
}

impl From<CommandError> for Status {
    fn from(e: CommandError) -> Self {
        Status::new(e.code(), e.to_string())
    }
}
