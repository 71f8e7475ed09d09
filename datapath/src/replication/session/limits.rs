//! Every bound of a session, with its reason.

use std::time::Duration;

/// From accept, or from connecting, to a session; draining an older one is within it. A peer that is there needs two round trips.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Handshakes under way on a reactor whose peer has not proved who it is. The oldest gives way, so that idle strangers keep nobody out.
pub const HANDSHAKES_MAX: usize = 64;
/// (node, incarnation, reactor)s that a reactor remembers; more are refused as busy.
pub const PEERS_MAX: usize = 1024;
/// A peer whose session ended this long ago, and drained, is forgotten when room is needed or a new peer comes.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// First wait before connecting again.
pub const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// Longest one.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// A session that lived this long was worth something: the next wait is the first one again.
pub const PROVEN: Duration = Duration::from_secs(2);

/// An initiator sends a beat this often.
pub const BEAT: Duration = Duration::from_secs(1);
/// Beats without a byte from the peer after which a session ends. Counted, not measured: a process that was stopped has missed none.
pub const BEATS_MISSED_MAX: u32 = 8;

/// Bytes that wait to be sent beyond which no frame is taken. What the socket is at comes on top, at most as much again.
pub const QUEUE_BYTES: usize = 4 << 20;
/// The same in frames: small ones cost more than their bytes.
pub const QUEUE_FRAMES: usize = 4096;

/// Channels of a session.
pub const CHANNELS_MAX: usize = 4096;

/// The receive buffer: a whole header and body, and as much of what follows.
pub const RECEIVE_BYTES: usize = 128 << 10;
/// Pieces of one scattered receive.
pub const SCATTER: usize = 64;

/// Records that a session's receiver lets come before it has done with some.
pub const WINDOW_RECORDS: u64 = 4096;
/// Bytes of data, likewise.
pub const WINDOW_BYTES: u64 = 16 << 20;
