//! The types between the transport half and the controller half of the target.
//!
//! The controller half (`nvmf::subsystem::Subsystem`) is sans-I/O and synchronous. Its methods, all called on the home reactor, are
//!
//! ```text
//! impl Subsystem {
//!     fn new(config: ExportConfig, identity: &NodeIdentity, now: Nanos) -> Result<Self, ExportError>; // a subsystem with namespaces
//!     fn discovery(identity: &NodeIdentity, now: Nanos) -> Self;                      // the discovery subsystem (home: reactor 0)
//!     fn update(&mut self, config: ExportConfig, now: Nanos) -> Result<(), ExportError>; // export again: hosts, namespaces, sizes, ANA
//!     fn set_discovery_log(&mut self, entries: Vec<DiscoveryEntry>, now: Nanos);      // discovery only
//!     fn remove(&mut self, now: Nanos);                                               // unexport: closes every controller
//!     fn config(&self) -> &ExportConfig;   fn controllers(&self) -> Vec<ControllerInfo>;
//!     fn view(&self) -> Arc<ViewSpec>;
//!
//!     fn connect_admin(&mut self, req: &ConnectRequest, now: Nanos) -> Result<Grant, ConnectError>;
//!     fn connect_io(&mut self, req: &ConnectRequest, now: Nanos) -> Result<Grant, ConnectError>;
//!     fn queue_gone(&mut self, cntlid: u16, qid: u16, now: Nanos);                    // its connection ended, whoever ended it
//!     fn admin(&mut self, cmd: CommandRef, sqe: &SqeBytes, data: &[u8], now: Nanos) -> Outcome;       // admin queue, fabrics included
//!     fn reservation(&mut self, cmd: CommandRef, sqe: &SqeBytes, data: &[u8], now: Nanos) -> Outcome; // 0Dh 0Eh 11h 15h, from I/O queues
//!     fn activity(&mut self, cntlid: u16, now: Nanos);                                // commands arrived on an I/O queue (TBKAS)
//!     fn commit_reservation(&mut self, nsid: u32, generation: u64, now: Nanos);       // control has it in the KVDB
//!     fn published(&mut self, generation: u64, now: Nanos);                           // every reactor acknowledged that view
//!     fn flushed(&mut self, cntlid: u16, now: Nanos);                                 // answers Effect::Flush
//!     fn log_error(&mut self, error: ErrorReport, now: Nanos);                        // an I/O command failed on a controller's queue
//!
//!     fn set_counters(&mut self, counters: IoCounters);                               // since start, before SMART is asked for
//!
//!     fn deadline(&self) -> Option<Nanos>;   fn expire(&mut self, now: Nanos);        // keep-alive, reservation waits, shutdowns
//!     fn next_effect(&mut self) -> Option<Effect>;                                    // drained by the transport after every call above
//! }
//! ```
//!
//! Command data is in hand (and its digest checked) when `admin` or `reservation` is called: the transport knows from the opcode's
//! transfer bits and the SGL how much to fetch, and refuses a bad SGL itself. The two halves never hold a borrow of each other.

use std::net::SocketAddr;
use std::sync::Arc;

/// Monotonic nanoseconds, as the reactor's clock gives them.
pub type Nanos = u64;

/// A submission queue entry as it was on the wire (NVMe Base 2.1, figure 92).
pub type SqeBytes = [u8; 64];

/// The host identifier of a Connect command: 16 bytes.
pub type HostId = [u8; 16];

/// The well-known NQN of the discovery subsystem (NVMe Base 2.1, 4.7).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// CAP.MQES: the largest SQSIZE value (0's based) that an I/O queue may ask for; 1024 entries.
pub const MQES: u16 = 1023;
/// The largest SQSIZE (0's based) of an admin queue.
pub const ADMIN_SQSIZE_MAX: u16 = 127;
/// I/O queues per controller (the answer to Set Features 07h, 1's based).
pub const IO_QUEUES_MAX: u16 = 128;
/// Identify MDTS: a power of two of 4 KiB pages; 1 MiB.
pub const MDTS: u8 = 8;
/// Largest data transfer of one command, bytes.
pub const MAX_TRANSFER_BYTES: usize = 4096 << MDTS;
/// In-capsule data of an I/O queue, bytes: IOCCSZ = (64 + this) / 16. Admin capsules take as much.
pub const IN_CAPSULE_BYTES: usize = 8192;
/// The shortest distance of two `activity` reports of one connection.
pub const ACTIVITY_INTERVAL_NS: u64 = 200_000_000;

/// A status field as completions carry it, without the phase bit: SC in bits 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StatusField(pub u16);

impl StatusField {
    /// Successful completion.
    pub const SUCCESS: Self = Self(0);
    /// Do Not Retry.
    pub const DNR: u16 = 1 << 14;

    /// A status of a code type and a code.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16) << 8 | sc as u16)
    }
    /// The same with Do Not Retry.
    pub const fn dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }
    /// Whether it is the success status.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

impl std::fmt::Debug for StatusField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}/{:02x}", self.0 >> 8 & 7, self.0 & 0xff)?;
        if self.0 & Self::DNR != 0 {
            f.write_str(" dnr")
        } else {
            Ok(())
        }
    }
}

/// A parsed Connect command: format and strings are valid, nothing else has been looked at.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The subsystem that the host asks for.
    pub subnqn: String,
    /// Host NQN: not empty, terminated, UTF-8.
    pub hostnqn: String,
    /// Host identifier.
    pub hostid: HostId,
    /// Controller id asked for; FFFFh for a dynamic one.
    pub cntlid: u16,
    /// 0 = admin queue.
    pub qid: u16,
    /// Queue size, 0's based, as on the wire.
    pub sqsize: u16,
    /// Keep-alive timeout in milliseconds (admin queue).
    pub kato_ms: u32,
    /// Connect attributes (CATTR).
    pub cattr: u8,
    /// Where the host connects from.
    pub peer: SocketAddr,
    /// Our end of that connection.
    pub local: SocketAddr,
}

/// Bit of CATTR: the host disables SQ flow control (NVMe Base 2.1, 6.3).
pub const CATTR_DISABLE_SQ_FLOW: u8 = 1 << 2;

/// What a queue's reactor must know to serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The controller that the queue belongs to.
    pub cntlid: u16,
    /// Entries of the submission queue (SQSIZE + 1).
    pub sq_entries: u32,
    /// True unless the host disabled SQ flow control: SQHD is then reported in every response.
    pub sq_flow_control: bool,
}

/// Why a Connect is refused (NVMe Base 2.1, 6.3; figure 'Connect Response').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectError {
    /// Status of the completion.
    pub status: StatusField,
    /// Invalid parameter offset, when the status is Connect Invalid Parameters.
    pub ipo: u16,
    /// True: the offset is into the data, false: into the SQE.
    pub in_data: bool,
}

/// Names one command of one queue of one connection anywhere in the process, so that it can be completed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandRef {
    /// The reactor that owns the connection.
    pub reactor: u16,
    /// That reactor's number of the connection; never reused.
    pub connection: u64,
    /// The controller of the queue.
    pub cntlid: u16,
    /// The queue.
    pub qid: u16,
    /// The command identifier.
    pub cid: u16,
}

/// The answer to a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Completion dword 0.
    pub dw0: u32,
    /// Completion dword 1.
    pub dw1: u32,
    /// Status.
    pub status: StatusField,
    /// Data for the host (empty: none), sent before the completion; never more than the command's SGL asks for is sent.
    pub data: Vec<u8>,
}

impl Reply {
    /// A reply of nothing but a status.
    pub fn status(status: StatusField) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }
}

/// What became of a command that was given to a subsystem.
#[derive(Debug)]
pub enum Outcome {
    /// Answer now.
    Done(Reply),
    /// An [`Effect::Complete`] will follow (asynchronous events, reservations that wait for the KVDB or for reactors, shutdown).
    Pending,
}

/// Which queues of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueScope {
    /// The I/O queues (controller reset, shutdown).
    Io,
    /// The admin queue too (keep-alive expiry, unexport, host no longer allowed, admin connection gone).
    All,
}

/// What a subsystem wants done. Effects are carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Completes a command whose outcome was [`Outcome::Pending`]. One whose connection is gone is dropped.
    Complete(CommandRef, Reply),
    /// Ends the connections of these queues; each is then reported by `queue_gone`.
    CloseQueues {
        /// The controller.
        cntlid: u16,
        /// Which of its queues.
        scope: QueueScope,
    },
    /// A new view is in force: every reactor takes it, then `published(generation)` is called.
    Publish(Arc<ViewSpec>),
    /// Flushes every namespace's volume (normal shutdown), then `flushed(cntlid)` is called.
    Flush {
        /// The controller that shuts down.
        cntlid: u16,
    },
    /// For the control process.
    Event(TargetEvent),
}

/// Events that the control process keeps or reports (`keelblock.datapath.v1.Event`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetEvent {
    /// Reservation state that must be committed before the command that made it completes.
    ReservationChanged {
        /// Subsystem.
        nqn: Arc<str>,
        /// Namespace.
        nsid: u32,
        /// Rises with each change.
        generation: u64,
        /// The state, opaque to control.
        state: Vec<u8>,
    },
    /// A host has an admin queue.
    HostConnected {
        /// Subsystem.
        nqn: Arc<str>,
        /// The host.
        host_nqn: String,
        /// Where it connected from.
        peer: SocketAddr,
    },
    /// Its admin queue ended.
    HostDisconnected {
        /// Subsystem.
        nqn: Arc<str>,
        /// The host.
        host_nqn: String,
        /// Where it connected from.
        peer: SocketAddr,
    },
}

/// An I/O command that failed, for the error log page of its controller.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport {
    /// The command.
    pub cmd: CommandRef,
    /// What it completed with.
    pub status: StatusField,
    /// Its namespace.
    pub nsid: u32,
    /// Its first LBA.
    pub lba: u64,
}

/// Asymmetric namespace access states; the numbers are those of the ANA log page (NVMe Base 2.1, 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum AnaState {
    /// Serve.
    #[default]
    Optimized = 1,
    /// Serve, another path is better.
    NonOptimized = 2,
    /// Refuse with Asymmetric Access Inaccessible.
    Inaccessible = 3,
    /// Refuse with Asymmetric Access Persistent Loss.
    PersistentLoss = 4,
    /// Refuse with Asymmetric Access Transition.
    Change = 15,
}

/// What an export is: the settled form of `keelblock.datapath.v1.ExportRequest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// Subsystem NQN.
    pub nqn: Arc<str>,
    /// Serial number, at most 20 printable ASCII characters.
    pub serial: String,
    /// Namespaces, ascending by NSID.
    pub namespaces: Vec<NamespaceConfig>,
    /// Hosts that may connect; `None`: any.
    pub allowed_hosts: Option<Vec<String>>,
    /// State of every namespace on this node.
    pub ana_state: AnaState,
    /// CNTLIDs that may be handed out, inclusive.
    pub cntlid_min: u16,
    /// See `cntlid_min`.
    pub cntlid_max: u16,
}

/// A namespace of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Namespace id, 1 and up.
    pub nsid: u32,
    /// The volume behind it (a UUID).
    pub volume: [u8; 16],
    /// log2 of the LBA size: 9 or 12.
    pub lba_shift: u8,
    /// Size in LBAs, as the volume has it now.
    pub blocks: u64,
    /// NGUID, the same on every node for ever.
    pub nguid: [u8; 16],
    /// UUID of the namespace.
    pub uuid: [u8; 16],
    /// Reservation state as the KVDB has it; empty: none.
    pub reservation: Vec<u8>,
    /// The volume has a volatile write cache beneath.
    pub volatile_cache: bool,
}

/// Who we are, for Identify and the discovery log.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Firmware revision: the product's version, at most 8 characters.
    pub firmware: String,
    /// Model number, at most 40 characters.
    pub model: String,
    /// Where hosts reach this node.
    pub address: SocketAddr,
}

/// An entry of the discovery log page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// The subsystem.
    pub nqn: Arc<str>,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Hosts that see it; `None`: any.
    pub allowed_hosts: Option<Vec<String>>,
}

/// A controller, for `ListSubsystems`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Controller id.
    pub cntlid: u16,
    /// Its host.
    pub host_nqn: String,
    /// Its host's identifier.
    pub host_id: HostId,
    /// Where its admin queue comes from.
    pub peer: SocketAddr,
    /// I/O queues that it has now.
    pub io_queues: u32,
}

/// What a reactor must know of a subsystem to serve I/O: what is sent to it. The transport makes its own `View` of it, with handles.
#[derive(Clone, Debug)]
pub struct ViewSpec {
    /// The subsystem.
    pub nqn: Arc<str>,
    /// Rises with each publication.
    pub generation: u64,
    /// Ascending by NSID.
    pub namespaces: Vec<NamespaceView>,
}

/// Why an export is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The stored reservation state is damaged; serving without it could let a fenced host write.
    #[error("reservation state of namespace {nsid}: {reason}")]
    Reservation {
        /// The namespace.
        nsid: u32,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// A namespace id of 0 or beyond what Identify says, or twice the same.
    #[error("namespace id {0} is out of range or given twice")]
    Namespace(u32),
    /// No controller ids, or ones that NVMe reserves.
    #[error("controller ids {0} to {1} are not a range within 1 to 65519")]
    ControllerIds(u16, u16),
}

/// What a subsystem's volumes did since start, for the SMART log page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Read commands, and compares.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes that hosts read.
    pub read_bytes: u64,
    /// Bytes that hosts wrote.
    pub write_bytes: u64,
    /// Unrecovered errors of media.
    pub media_errors: u64,
}

/// A namespace as the I/O path sees it.
#[derive(Clone, Debug)]
pub struct NamespaceView {
    /// Namespace id.
    pub nsid: u32,
    /// The volume behind it.
    pub volume: [u8; 16],
    /// log2 of the LBA size: 9 or 12.
    pub lba_shift: u8,
    /// Size in LBAs.
    pub blocks: u64,
    /// Access through this node.
    pub ana: AnaState,
    /// What reservations allow.
    pub reservation: ReservationView,
    /// Hosts that were preempted with abort: a reactor acknowledges this view only when no command of theirs on this namespace is in
    /// flight there. Almost always empty.
    pub drain: Vec<HostId>,
}

/// Reservation types (NVMe Base 2.1, figure 'Reservation Types'); the numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ReservationType {
    /// No reservation is held.
    #[default]
    None = 0,
    /// Write Exclusive.
    WriteExclusive = 1,
    /// Exclusive Access.
    ExclusiveAccess = 2,
    /// Write Exclusive, registrants only.
    WriteExclusiveRegistrants = 3,
    /// Exclusive Access, registrants only.
    ExclusiveAccessRegistrants = 4,
    /// Write Exclusive, all registrants.
    WriteExclusiveAll = 5,
    /// Exclusive Access, all registrants.
    ExclusiveAccessAll = 6,
}

/// The part of a namespace's reservation state that I/O is checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationView {
    /// The kind held.
    pub kind: ReservationType,
    /// The holder, for the kinds that have one.
    pub holder: Option<HostId>,
    /// Every registrant.
    pub registrants: Vec<HostId>,
}

impl ReservationView {
    /// Whether `host` may read (or, with `write`, change) the namespace (NVMe Base 2.1, figure 'Command Behavior in the Presence of a
    /// Reservation'). Write includes Write Zeroes, Dataset Management, the write of a fused pair, and Flush counts as one.
    pub fn allows(&self, host: &HostId, write: bool) -> bool {
        use ReservationType::*;
        let registrant = || self.registrants.contains(host);
        let holder = || self.holder.as_ref() == Some(host);
        match self.kind {
            None => true,
            WriteExclusive => !write || holder(),
            ExclusiveAccess => holder(),
            WriteExclusiveRegistrants | WriteExclusiveAll => !write || registrant(),
            ExclusiveAccessRegistrants | ExclusiveAccessAll => registrant(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_table() {
        use ReservationType::*;
        let (holder, registrant, stranger) = ([1; 16], [2; 16], [3; 16]);
        // kind, then (read, write) of the holder, of another registrant, of a stranger
        let table = [
            (None, [(true, true), (true, true), (true, true)]),
            (WriteExclusive, [(true, true), (true, false), (true, false)]),
            (
                ExclusiveAccess,
                [(true, true), (false, false), (false, false)],
            ),
            (
                WriteExclusiveRegistrants,
                [(true, true), (true, true), (true, false)],
            ),
            (
                ExclusiveAccessRegistrants,
                [(true, true), (true, true), (false, false)],
            ),
            (
                WriteExclusiveAll,
                [(true, true), (true, true), (true, false)],
            ),
            (
                ExclusiveAccessAll,
                [(true, true), (true, true), (false, false)],
            ),
        ];
        for (kind, rows) in table {
            let view = ReservationView {
                kind,
                holder: Some(holder),
                registrants: vec![holder, registrant],
            };
            for (host, (read, write)) in [holder, registrant, stranger].iter().zip(rows) {
                assert_eq!(view.allows(host, false), read, "{kind:?} {host:?} read");
                assert_eq!(view.allows(host, true), write, "{kind:?} {host:?} write");
            }
        }
    }
}
