//! What can go wrong between this host and a controller.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Status;
use crate::nqn::NqnError;
use crate::pdu::{PduError, TermReq};

/// An initiator's error. All but [`Error::Refused`], [`Error::ShortTransfer`] and [`Error::Unsuitable`] end the connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TCP connection.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The target.
        addr: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The socket failed.
    #[error("connection failed: {0}")]
    Socket(#[from] std::io::Error),
    /// The controller closed the connection, or it failed before.
    #[error("the connection is closed")]
    Closed,
    /// An answer did not come in time.
    #[error("no answer to {what} within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The controller sent a PDU that breaks the protocol.
    #[error("the controller broke the protocol: {0}")]
    Protocol(#[from] PduError),
    /// The digest of data from the controller does not match.
    #[error("the data of command {cid} does not match its digest")]
    DataDigest {
        /// The command's identifier.
        cid: u16,
    },
    /// The controller sent a Terminate Connection Request.
    #[error("the controller ended the connection: fatal error status {:#x}, information {:#x}", .0.fes, .0.fei)]
    Terminated(TermReq),
    /// A command completed with a status other than success.
    #[error("{what}: {status}")]
    Refused {
        /// The command.
        what: &'static str,
        /// Its status.
        status: Status,
        /// Dword 0 of the completion.
        dw0: u32,
    },
    /// A command succeeded but moved fewer bytes than asked for.
    #[error("{what}: {got} of {want} bytes came")]
    ShortTransfer {
        /// The command.
        what: &'static str,
        /// Bytes asked for.
        want: usize,
        /// Bytes that came.
        got: usize,
    },
    /// The controller did not become ready, or reports a fatal status.
    #[error("the controller is not ready: CSTS is {csts:#x}")]
    NotReady {
        /// Its status register.
        csts: u32,
    },
    /// The controller asks for in-band authentication, which this initiator does not speak.
    #[error("the controller asks for authentication")]
    AuthenticationRequired,
    /// A name that cannot be an NQN.
    #[error(transparent)]
    Name(#[from] NqnError),
    /// A request that makes no sense, or that this controller cannot do.
    #[error("{0}")]
    Unsuitable(&'static str),
}

impl Error {
    /// The status of a refused command.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether a new connection might do better: everything about the path, nothing about the request.
    pub fn is_transport(&self) -> bool {
        use Error::*;
        matches!(
            self,
            Connect { .. }
                | Socket(_)
                | Closed
                | Timeout { .. }
                | Protocol(_)
                | DataDigest { .. }
                | Terminated(_)
                | NotReady { .. }
        )
    }
}

/// Short form.
pub type Result<T> = std::result::Result<T, Error>;
