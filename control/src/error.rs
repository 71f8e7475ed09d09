//! What can go wrong in an operation of the control plane. One place turns it into a gRPC status, and so into REST's error.
use crate::kvdb::KvError;
use tonic::{Code, Status};

/// Why an operation was not done. The message says what, to what, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpError {
    /// A required field is missing.
    #[error("{field} is required: {hint}")]
    Missing {
        /// Which.
        field: &'static str,
        /// What to put there.
        hint: &'static str,
    },
    /// A field has a value that is not possible.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A field that this version does not support is set.
    #[error("{field} is not supported{why}")]
    Unsupported {
        /// Which.
        field: String,
        /// Why, if there is more to say.
        why: &'static str,
    },
    /// There is no such thing.
    #[error("{kind} {name} does not exist")]
    NotFound {
        /// Kind of thing.
        kind: &'static str,
        /// Its name or id, as given.
        name: String,
    },
    /// The name is taken by a volume that is not what was asked for.
    #[error("{name} exists, with {what}")]
    Exists {
        /// The name.
        name: String,
        /// In what it differs.
        what: String,
    },
    /// The state does not allow it.
    #[error("{0}")]
    State(String),
    /// Who asks may not.
    #[error("{0}")]
    Denied(String),
    /// No room.
    #[error("{0}")]
    NoSpace(String),
    /// Too few nodes can have a replica.
    #[error(
        "{wanted} replicas need {wanted} nodes that live and have drives, and there are {}{}{}",
        .found.len(), if .found.is_empty() { String::new() } else { format!(": {}", .found.join(", ")) },
        if .others.is_empty() { String::new() } else { format!(" ({})", .others.join("; ")) }
    )]
    TooFewNodes {
        /// Replicas that were asked for.
        wanted: usize,
        /// Nodes that can have one.
        found: Vec<String>,
        /// The others, each with the reason.
        others: Vec<String>,
    },
    /// No node can have one replica more.
    #[error(
        "no node can have one replica more ({})",
        .has.iter().map(|n| format!("{n}: it has one")).chain(.others.iter().cloned()).collect::<Vec<_>>().join("; ")
    )]
    NoNode {
        /// Nodes that have one.
        has: Vec<String>,
        /// The others, each with the reason.
        others: Vec<String>,
    },
    /// Somebody else changed the same record at the same time, several times over.
    #[error("{what} was changed by somebody else at the same time: try again")]
    Contended {
        /// What was to be changed.
        what: String,
    },
    /// It was given up, and nothing has changed, as something else was in its way.
    #[error("{0}")]
    Busy(String),
    /// Something that is needed does not answer; what was asked for may be tried again.
    #[error("{0}")]
    Unavailable(String),
    /// The data path does not answer.
    #[error(
        "the data path of this node cannot be used ({reason}): see that keelblock-datapath runs with --socket {socket}; this \
         process connects to it by itself, then try again"
    )]
    Datapath {
        /// What was seen.
        reason: String,
        /// Where it should be.
        socket: String,
    },
    /// This version cannot do it.
    #[error("{0}")]
    NotYet(String),
    /// This node was decommissioned: its process ends, for good.
    #[error("{0}")]
    Left(String),
    /// A record or an answer is not what it must be.
    #[error("{0}")]
    Internal(String),
}

impl OpError {
    /// A field with an impossible value.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    /// No such volume.
    pub fn no_volume(name: impl Into<String>) -> Self {
        Self::NotFound {
            kind: "volume",
            name: name.into(),
        }
    }

    /// No such snapshot.
    pub fn no_snapshot(name: impl Into<String>) -> Self {
        Self::NotFound {
            kind: "snapshot",
            name: name.into(),
        }
    }

    /// Whether what was asked for may have been done nevertheless, or may be done by trying again: nobody refused it.
    pub fn is_uncertain(&self) -> bool {
        self.code() == Code::Unavailable
    }

    /// Its gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Invalid { .. } | Self::Unsupported { .. } => {
                Code::InvalidArgument
            }
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::State(_) | Self::TooFewNodes { .. } | Self::NoNode { .. } | Self::Left(_) => {
                Code::FailedPrecondition
            }
            Self::Denied(_) => Code::PermissionDenied,
            Self::NoSpace(_) => Code::ResourceExhausted,
            Self::Contended { .. } | Self::Busy(_) => Code::Aborted,
            Self::Unavailable(_) | Self::Datapath { .. } => Code::Unavailable,
            Self::NotYet(_) => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<OpError> for Status {
    fn from(error: OpError) -> Self {
        Status::new(error.code(), error.to_string())
    }
}

impl From<KvError> for OpError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Unavailable { .. } => {
                Self::Unavailable(format!("{error}; start it, volumes in use go on meanwhile"))
            }
            other => Self::Internal(other.to_string()),
        }
    }
}
