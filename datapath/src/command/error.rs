//! Why a command failed, and which status that is.

use tonic::{Code, Status};

use crate::device::{DeviceError, IoError};
use crate::nvmf::seam::ExportError;
use crate::store::table::TableError;
use crate::store::{DriveError, NameError, PoolError, VolumeId};
use crate::volume::OpenError;

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
    #[error("a drive cannot be opened: {0}")]
    Open(#[from] OpenError),
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
    /// It is exported.
    #[error("volume {volume} is exported as {nqn}: unexport it first")]
    Exported {
        /// The volume.
        volume: VolumeId,
        /// An export of it.
        nqn: String,
    },
    /// Part of it is on a drive that is not there.
    #[error("volume {0} is incomplete: open its pool with all drives first")]
    Incomplete(VolumeId),
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
            Self::Open(_) => Code::Internal,
            Self::Pool(e) => pool_code(e),
            Self::NoPool(_) | Self::NoVolume(_) => Code::NotFound,
            Self::Exported { .. }
            | Self::Incomplete(_)
            | Self::OtherPath { .. }
            | Self::OtherPool { .. } => Code::FailedPrecondition,
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

fn pool_code(e: &PoolError) -> Code {
    match e {
        PoolError::Full { .. } | PoolError::Table(TableError::Full) => Code::ResourceExhausted,
        PoolError::Exists { .. } => Code::AlreadyExists,
        PoolError::Unknown { .. } => Code::NotFound,
        PoolError::Shrink { .. }
        | PoolError::Twice { .. }
        | PoolError::Table(TableError::Size { .. } | TableError::DriveSize { .. }) => {
            Code::InvalidArgument
        }
        PoolError::Degraded { .. } | PoolError::Incomplete { .. } => Code::FailedPrecondition,
        PoolError::TwoHomes { .. } | PoolError::Table(_) => Code::DataLoss,
        PoolError::Io { source, .. } => io_code(*source),
        PoolError::Drive(e) => match e {
            DriveError::Blank { .. } | DriveError::Another { .. } | DriveError::Shrunk { .. } => {
                Code::FailedPrecondition
            }
            DriveError::Corrupt { .. } => Code::DataLoss,
            DriveError::Table { .. } => Code::InvalidArgument,
            DriveError::Io { source, .. } => io_code(*source),
        },
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
