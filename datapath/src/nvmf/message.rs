//! What reactors tell each other about the target. Rings keep order per pair of reactors, which home relies on: a view before the queue
//! that needs it, a queue before the order to close it.

use std::net::SocketAddr;
use std::sync::Arc;

use keelblock_nvme::Sqe;

use super::conn::pdu::Params;
use super::seam::{
    CommandRef, ConnectRequest, ControllerInfo, DiscoveryEntry, ErrorReport, ExportConfig,
    ExportError, Grant, HostId, QueueScope, Reply, TargetEvent, ViewSpec,
};
use crate::reactor::DetachedSocket;

/// A connection that has sent a Connect command, on its way to the home of the subsystem.
pub struct Candidate {
    /// The socket.
    pub socket: DetachedSocket,
    /// Its negotiated parameters.
    pub params: Params,
    /// Bytes received behind the Connect.
    pub rest: Vec<u8>,
    /// The command.
    pub request: ConnectRequest,
    /// Its identifier.
    pub cid: u16,
    /// Connects that were refused on this connection so far.
    pub attempts: u32,
}

/// A granted I/O queue, on its way to the reactor that serves it.
pub struct Granted {
    /// The socket.
    pub socket: DetachedSocket,
    /// Its negotiated parameters.
    pub params: Params,
    /// Bytes received behind the Connect.
    pub rest: Vec<u8>,
    /// The subsystem.
    pub nqn: Arc<str>,
    /// The host.
    pub host: HostId,
    /// The queue.
    pub qid: u16,
    /// The Connect's identifier.
    pub cid: u16,
    /// Controller and size.
    pub grant: Grant,
    /// Number of its home.
    pub home: u64,
}

/// A message between the reactors' parts of the target.
pub struct Mail(pub(super) Message);

/// Between reactors.
pub enum Message {
    /// To home: validate this Connect.
    Connect(Box<Candidate>),
    /// From home: serve this queue.
    Serve(Box<Granted>),
    /// To home: a queue's connection ended.
    QueueGone {
        nqn: Arc<str>,
        home: u64,
        cntlid: u16,
        qid: u16,
    },
    /// From home: end these queues.
    CloseQueues {
        nqn: Arc<str>,
        cntlid: u16,
        scope: QueueScope,
    },
    /// From home: the view of a subsystem. Acknowledged by `Published`.
    Publish { home: u64, view: Arc<ViewSpec> },
    /// To home: a view is in force here.
    Published {
        nqn: Arc<str>,
        home: u64,
        generation: u64,
    },
    /// From home: the subsystem is gone.
    Forget { nqn: Arc<str> },
    /// To home: commands came on an I/O queue.
    Activity { nqn: Arc<str>, cntlid: u16 },
    /// To home: a reservation command.
    Reservation {
        nqn: Arc<str>,
        cmd: CommandRef,
        sqe: Box<Sqe>,
        data: Vec<u8>,
    },
    /// From home: a forwarded command completes.
    Complete { cmd: CommandRef, reply: Reply },
    /// To home: an I/O command failed.
    Failed { nqn: Arc<str>, report: ErrorReport },
    /// To home, from the main reactor: a command of the control process.
    Ask { id: u64, request: Request },
    /// Back to the main reactor.
    Answer { id: u64, answer: Answer },
    /// To the main reactor: for the control process.
    Event(TargetEvent),
}

/// What the main reactor asks a home.
pub enum Request {
    /// Export, or change an export.
    Export(Box<ExportConfig>),
    /// Remove it.
    Unexport { nqn: Arc<str> },
    /// What is it, who is connected?
    Inspect { nqn: Arc<str> },
    /// A reservation is in the KVDB.
    CommitReservation {
        nqn: Arc<str>,
        nsid: u32,
        generation: u64,
    },
}

/// What a home answers.
pub enum Answer {
    /// Done.
    Done,
    /// An export was refused.
    Refused(ExportError),
    /// An export as it is; `None`: unknown.
    Export(Option<Box<(ExportConfig, Vec<ControllerInfo>)>>),
}

/// The discovery log's entry of an export.
pub fn discovery_entry(config: &ExportConfig, address: SocketAddr) -> DiscoveryEntry {
    DiscoveryEntry {
        nqn: config.nqn.clone(),
        address,
        allowed_hosts: config.allowed_hosts.clone(),
    }
}
