//! Every bound of the transport, with its reason. What the two halves share is in [`super::seam`].

use std::time::Duration;

use super::seam::{IN_CAPSULE_BYTES, MAX_TRANSFER_BYTES};

/// From accept to a complete ICReq. Hosts send it at once; a connection without one costs a descriptor.
pub const IC_TIMEOUT: Duration = Duration::from_secs(10);
/// From ICResp to an accepted Connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connects that a connection may have refused before it is closed.
pub const CONNECT_ATTEMPTS: u32 = 8;
/// How long a terminated connection may take to read its C2HTermReq (NVMe/TCP asks for at most 30 s).
pub const TERM_TIMEOUT: Duration = Duration::from_secs(1);
/// R2Ts hold buffers of the pool; a host that completes none of its transfers for this long loses the connection.
pub const R2T_TIMEOUT: Duration = Duration::from_secs(30);
/// The same while others wait for buffers.
pub const R2T_TIMEOUT_SCARCE: Duration = Duration::from_secs(5);
/// A reply that the host does not read for this long ends the connection.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// A closed connection waits this long for its commands in flight before it says so in the log (it goes on waiting).
pub const DRAIN_WARNING: Duration = Duration::from_secs(10);

/// Connections that a reactor has at once, half-open ones included; more are closed at accept.
pub const CONNECTIONS_PER_REACTOR: usize = 8192;
/// Half-open connections (before an accepted Connect) of a reactor; the oldest makes room, so idle ones cannot keep a host out.
pub const HALF_OPEN_PER_REACTOR: usize = 1024;

/// MAXH2CDATA: a whole transfer may come in one H2CData PDU.
pub const MAX_H2C_DATA: u32 = MAX_TRANSFER_BYTES as u32;
/// Largest CapsuleCmd PDU: header, header digest, padding to CPDA (ours is 0: 4 bytes), data, data digest.
pub const MAX_CAPSULE_PDU: usize = 72 + 4 + IN_CAPSULE_BYTES + 4;
/// Largest C2HData payload of one PDU: hosts that dislike larger ones are not known, and one header per read is cheapest.
pub const MAX_C2H_DATA: usize = MAX_TRANSFER_BYTES;

/// Operations that a reactor's connections have in its slab at once (`RULES.md` S10).
pub const OPERATIONS_PER_REACTOR: usize = 4096;

/// The reactor's shared receive buffer: what one `recv` may bring. Bounds what a connection does in one go.
pub const RECV_BYTES: usize = 256 << 10;
/// A header or capsule that was cut by the end of a receive waits in the connection's own memory, at most this much.
pub const CARRY_BYTES: usize = RECV_BYTES;
/// The outbox is sent when it holds this much, even amid a batch.
pub const FLUSH_BYTES: usize = 512 << 10;
/// Unsent bytes (and reads on their way) of a connection beyond which it takes no more commands.
pub const OUTBOX_BYTES: usize = 4 << 20;
/// Write data that one connection may have buffers for at once; the next R2T waits. One transfer is always allowed.
pub const TRANSFER_BYTES: usize = 4 << 20;
/// All connections' transfers beyond their first have at most this part of the pool (one in so many bytes), so that first ones, and
/// data in capsules and reads, find buffers however much hosts promise and do not send.
pub const TRANSFER_SHARE_OF_POOL: usize = 2;
