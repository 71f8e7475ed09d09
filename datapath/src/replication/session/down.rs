//! Why there is no session, or no longer one: what is logged, counted and told.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::channel::{Broken, ChannelNo};
use crate::reactor::NetError;
use crate::replication::wire::WireError;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::hello::Refusal;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// We ended it.
    #[error("ended here")]
    Stopped,
    /// The same peer has a newer one.
    #[error("a newer session of the same peer took its place")]
    Replaced,
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// It was taken off the list of nodes, or has another key there.
    #[error("the peer is no longer in the list of nodes under its key")]
    Unlisted,
    /// Nothing came for a while.
    #[error("nothing was heard of the peer for {beats} s")]
    Silent {
        /// How long, in beats.
        beats: u32,
    },
    /// No buffers for what came: the reactor's pool is used up.
    #[error("no buffers for what the peer sends came free within {beats} s")]
    Buffers {
        /// How long, in beats.
        beats: u32,
    },
    /// A frame is none.
    #[error("the peer sent what is no frame: {0}")]
    Wire(#[from] WireError),
    /// A frame is missing, or came twice.
    #[error("frame {got} came where {expected} was to")]
    Number {
        /// The one that was due.
        expected: u32,
        /// The one that came.
        got: u32,
    },
    /// The other side sends such frames.
    #[error("this side does not send {kind:?}")]
    Direction {
        /// What came.
        kind: Kind,
    },
    /// Data came with a frame that has none.
    #[error("{kind:?} came with {bytes} bytes of data, which it has not")]
    Data {
        /// What came.
        kind: Kind,
        /// Of data.
        bytes: u32,
    },
    /// A frame for a channel that is not there, or that the peer has closed.
    #[error("{kind:?} came for channel {channel}, which is not open")]
    Channel {
        /// What came.
        kind: Kind,
        /// For which.
        channel: ChannelNo,
    },
    /// More channels than a session has.
    #[error("the peer opens more channels than a session has")]
    Channels,
    /// It does not read what it makes us say.
    #[error("the peer does not read what it asks for")]
    Unread,
    /// Whoever takes the frames of a channel says that one breaks a bound.
    #[error("{kind:?} on channel {channel}: {error}")]
    Frame {
        /// What came.
        kind: Kind,
        /// On which.
        channel: ChannelNo,
        /// What is wrong.
        error: Broken,
    },
}

impl Down {
    /// Its name, for counting.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Replaced => "replaced",
            Self::Closed => "closed",
            Self::Broken(_) => "broken",
            Self::Unlisted => "unlisted",
            Self::Silent { .. } => "silent",
            Self::Buffers { .. } => "buffers",
            Self::Wire(_) => "wire",
            Self::Number { .. } => "number",
            Self::Direction { .. } => "direction",
            Self::Data { .. } => "data",
            Self::Channel { .. } => "channel",
            Self::Channels => "channels",
            Self::Unread => "unread",
            Self::Frame { .. } => "frame",
        }
    }

    /// Whether the peer broke the protocol, and not just the network or a process ended.
    pub fn is_breach(&self) -> bool {
        !matches!(
            self,
            Self::Stopped
                | Self::Replaced
                | Self::Closed
                | Self::Broken(_)
                | Self::Unlisted
                | Self::Silent { .. }
                | Self::Buffers { .. }
        )
    }
}

impl From<NetError> for Down {
    fn from(error: NetError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Why a handshake came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSession {
    /// The list of nodes is not there yet, or the peer is not in it.
    #[error("the node is not in the list of nodes")]
    Unknown,
    /// It could not be connected to, or the connection broke.
    #[error("{0}")]
    Net(String),
    /// The other side closed the connection.
    #[error("the connection was closed amid the handshake")]
    Closed,
    /// It took too long.
    #[error("the handshake took too long")]
    Late,
    /// A message is none.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The peer refused us.
    #[error("the peer refused: {0:?}")]
    Refused(Refusal),
    /// We refused the peer.
    #[error("the peer was refused: {0:?}")]
    Refusing(Refusal),
    /// The answer is not one to what we said.
    #[error("the answer has another {0}")]
    Answer(&'static str),
    /// The acceptor is not the node that it says it is.
    #[error("the signature is not that of the node that was called")]
    Signature,
    /// Too many handshakes were under way.
    #[error("it gave way to another handshake")]
    Displaced,
    /// We ended it.
    #[error("ended here")]
    Stopped,
}

impl NoSession {
    /// Its name, for counting.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Net(_) => "net",
            Self::Closed => "closed",
            Self::Late => "late",
            Self::Wire(_) => "wire",
            Self::Refused(r) | Self::Refusing(r) => match r {
                Refusal::Version => "version",
                Refusal::Cluster => "cluster",
                Refusal::Node => "node",
                Refusal::Signature => "signature",
                Refusal::Busy => "busy",
                Refusal::NotYet => "not yet",
            },
            Self::Answer(_) => "answer",
            Self::Signature => "signature of the acceptor",
            Self::Displaced => "displaced",
            Self::Stopped => "stopped",
        }
    }
}

impl From<NetError> for NoSession {
    fn from(error: NetError) -> Self {
        Self::Net(error.to_string())
    }
}

/// How often what happened, by name.
#[derive(Debug, Default)]
pub struct Counts {
    begun: std::cell::Cell<u64>,
    ended: RefCell<BTreeMap<&'static str, u64>>,
    failed: RefCell<BTreeMap<&'static str, u64>>,
}

impl Counts {
    pub(super) fn begun(&self) {
        self.begun.set(self.begun.get() + 1);
    }

    pub(super) fn ended(&self, why: &Down) {
        *self.ended.borrow_mut().entry(why.name()).or_default() += 1;
    }

    /// Returns whether it is worth a line in the log: the first, the second, the fourth… of its kind, as strangers may come as often as they like.
    pub(super) fn failed(&self, why: &NoSession) -> bool {
        let mut failed = self.failed.borrow_mut();
        let count = failed.entry(why.name()).or_default();
        *count += 1;
        count.is_power_of_two()
    }

    /// Sessions that began.
    pub fn sessions(&self) -> u64 {
        self.begun.get()
    }

    /// Sessions that ended for this reason ([`Down::name`]).
    pub fn sessions_ended(&self, why: &str) -> u64 {
        self.ended.borrow().get(why).copied().unwrap_or(0)
    }

    /// Handshakes that came to nothing for this reason ([`NoSession::name`]).
    pub fn handshakes_failed(&self, why: &str) -> u64 {
        self.failed.borrow().get(why).copied().unwrap_or(0)
    }
}
