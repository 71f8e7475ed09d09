//! gRPC over shared memory between the control process and the data path of a node (`docs/channel.md`).
//!
//! The data path [`Listener::bind`]s a Unix socket and serves tonic on the streams that come out of it; control [`connect`]s and gets
//! a tonic channel that reconnects by itself, and the stats page. A [`ChannelStream`] is a byte stream like a socket's, made of two
//! `ring`s and, so that an idle side can sleep, two `doorbell`s; the socket that brought them only tells when the peer has died.
//! The peer may be dead, restarted or wrong at any time: its indices are copied and then checked, and nothing here waits without an end.

mod connect;
mod doorbell;
mod listener;
mod ring;
mod socket;
mod stream;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::{StatsSource, connect, handshake};
pub use listener::{Incoming, Listener};
pub use stream::{ChannelStream, PeerInfo};

/// Bytes of data in each ring: some of HTTP/2's frames, so that large messages keep both sides busy.
const RING_BYTES: usize = 256 << 10;
/// Connections that a server holds at a time: one control process, its successor, and tools.
const CONNECTIONS_MAX: usize = 16;
/// From connecting to having the rings. The server answers at once or is not there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection with calls in flight is asked for a sign of life this often ...
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// ... and given up when none comes in this time.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a channel could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The path cannot be that of a socket.
    #[error("{path} cannot be a socket's path: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// Another process serves on the path.
    #[error("another process answers on {path}: is a data path already running there?")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// There is something else than a socket at the path.
    #[error("{path} exists and is no socket")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The peer is neither of our user nor root.
    #[error("the process behind the channel belongs to user {uid}, not to ours and not to root")]
    Credentials {
        /// User of the peer.
        uid: u32,
    },
    /// The peer closed the connection instead of greeting.
    #[error("the data path closed the connection at once (too many connections, or it is ending)")]
    Refused,
    /// The greeting did not come in time.
    #[error("the data path did not answer within {}s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The greeting is not what it should be.
    #[error("the data path's greeting is wrong: {what}")]
    Greeting {
        /// What is wrong.
        what: &'static str,
    },
    /// The data path speaks another version of the channel.
    #[error(
        "the data path speaks version {found} of the channel, this program version {}",
        socket::VERSION
    )]
    Version {
        /// The data path's version.
        found: u32,
    },
    /// The shared memory could not be made or mapped.
    #[error("channel: {0}")]
    Region(#[from] keelblock_hugepages::RegionError),
    /// The stats page that came with the channel cannot be used.
    #[error(transparent)]
    Stats(#[from] crate::stats::StatsError),
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl ChannelError {
    fn system(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> ChannelError {
        move |e| ChannelError::System {
            call,
            source: e.into(),
        }
    }

    fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> ChannelError {
        move |source| ChannelError::System { call, source }
    }
}

#[cfg(test)]
mod tests;
