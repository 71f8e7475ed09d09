//! A connection that serves a queue: from an accepted Connect to its end.
//!
//! Two tasks share a [`Connection`]. The *reader* ([`reader`]) receives into the reactor's big buffer, takes every PDU in it apart and runs
//! the commands: those that can be served at once are answered then and there, others become operations of the reactor, or wait for data
//! ([`transfer`]). Answers go to the [`Outbox`]; the reader sends it at the end of what it received, the *writer* sends what operations
//! add and what the socket did not take. The handshake before is [`super::handshake`]'s.
//!
//! Back-pressure: while the socket does not take what there is to send, or too much is on its way, the reader takes no further command;
//! TCP then slows the host down, and nobody else.

pub mod batch;
pub mod pdu;
pub mod queue;
pub mod reader;
mod send;
pub mod transfer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::Sqe;

use self::batch::Batch;
use self::pdu::Params;
use self::queue::Queue;
use self::send::PassView;
use self::transfer::Transfers;
use super::home::Home;
use super::io::fused::Fused;
use super::limits::{OPERATIONS_PER_REACTOR, OUTBOX_BYTES};
use super::node::Node;
use super::seam::{CommandRef, Grant, HostId};
use super::view::ViewCell;
use crate::reactor::outbox::Outbox;
use crate::reactor::{Nanos, Notify, Socket};
use crate::volume::forward::dispatch::Ticket;

/// What a connection's queue is.
pub enum Role {
    /// An admin queue; it is on the subsystem's home.
    Admin(Rc<Home>),
    /// An I/O queue.
    Io(Rc<ViewCell>),
}

/// A command that waits until a buffer for its data is free.
pub struct Waiting {
    /// The command.
    pub sqe: Sqe,
    /// Bytes that it needs.
    pub len: usize,
}

/// A connection with a queue.
pub struct Connection {
    /// Our number for it.
    pub id: u64,
    /// The reactor's target state.
    pub node: Rc<Node>,
    /// The socket.
    pub socket: Socket,
    /// What ICReq settled.
    pub params: Params,
    /// Admin or I/O.
    pub role: Role,
    /// The subsystem.
    pub nqn: Arc<str>,
    /// Number of the home that granted the queue.
    pub home: u64,
    /// The host, for reservations.
    pub host: HostId,
    /// Replies to send.
    pub out: RefCell<Outbox<PassView, Buffer>>,
    /// The queue pair.
    pub queue: RefCell<Queue>,
    /// Data on its way from the host.
    pub transfers: RefCell<Transfers>,
    /// Commands that wait for a buffer, in order.
    pub waiting: RefCell<std::collections::VecDeque<Waiting>>,
    /// Commands that have their stamps on another node and wait for their data, by identifier.
    pub tickets: RefCell<BTreeMap<u16, Ticket>>,
    /// The first half of a fused pair, and pairs that wait for data.
    pub fused: RefCell<Fused>,
    /// A buffer that the reader waited for, for the capsule that it is at.
    pub spare: RefCell<Option<Buffer>>,
    /// Wakes the writer.
    pub to_send: Notify,
    /// Wakes the reader when it may take commands again.
    pub resume: Notify,
    /// Wakes whoever waits for the end of the commands in flight.
    pub drained: Notify,
    /// What the reader's present batch answered at once.
    pub batch: Batch,
    /// Bytes that reads on their way will add to the outbox.
    pub reading: Cell<usize>,
    /// Operations in the reactor's slab.
    pub operations: Cell<usize>,
    /// Nothing more is sent or taken.
    closed: Cell<bool>,
    /// The socket did not take everything; since when.
    pub blocked_since: Cell<Option<Nanos>>,
    /// The host owes H2CData: since the first R2T, or since it last completed a transfer.
    pub owing_since: Cell<Option<Nanos>>,
    /// When home was last told that the host is alive.
    pub reported: Cell<Nanos>,
    /// What is served now came at this moment at the earliest.
    pub came: Cell<Nanos>,
}

/// Why the reader takes no further command now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The host does not read fast enough, or what is on its way fills the outbox.
    Outbox,
    /// The reactor has as many operations as it may have.
    Operations,
    /// The capsule's data needs a buffer of this many bytes.
    Buffer(usize),
}

/// What a new connection is made of.
pub struct Parts {
    /// The socket.
    pub socket: Socket,
    /// What ICReq settled.
    pub params: Params,
    /// Admin or I/O.
    pub role: Role,
    /// The subsystem.
    pub nqn: Arc<str>,
    /// The host.
    pub host: HostId,
    /// Number of the home that granted it.
    pub home: u64,
    /// The queue's grant.
    pub grant: Grant,
    /// The queue.
    pub qid: u16,
}

impl Connection {
    /// A connection whose Connect command has been granted.
    pub fn new(node: &Rc<Node>, parts: Parts) -> Rc<Self> {
        let Parts {
            socket,
            params,
            role,
            nqn,
            home,
            host,
            grant,
            qid,
        } = parts;
        Rc::new(Self {
            id: node.next_connection(),
            node: node.clone(),
            socket,
            params,
            role,
            nqn,
            home,
            host,
            out: RefCell::default(),
            queue: RefCell::new(Queue::new(grant, qid)),
            transfers: RefCell::default(),
            waiting: RefCell::default(),
            tickets: RefCell::default(),
            fused: RefCell::default(),
            spare: RefCell::default(),
            to_send: Notify::new(),
            resume: Notify::new(),
            drained: Notify::new(),
            batch: Batch::default(),
            reading: Cell::new(0),
            operations: Cell::new(0),
            closed: Cell::new(false),
            blocked_since: Cell::new(None),
            owing_since: Cell::new(None),
            reported: Cell::new(node.handle.now()),
            came: Cell::new(node.handle.now()),
        })
    }

    /// Names one of its commands.
    pub fn command_ref(&self, cid: u16) -> CommandRef {
        let queue = self.queue.borrow();
        CommandRef {
            reactor: self.node.id.0,
            connection: self.id,
            cntlid: queue.grant.cntlid,
            qid: queue.qid,
            cid,
        }
    }

    /// Whether it has been closed.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends it: nothing more is sent or taken in, both tasks end, commands in flight run out.
    pub fn close(&self) {
        if !self.closed.get() {
            self.socket.shutdown();
            self.mute();
        }
    }

    /// The same, but the socket stays open for a last word.
    pub fn mute(&self) {
        if !self.closed.replace(true) {
            self.out.borrow_mut().clear();
            self.to_send.notify();
            self.resume.notify();
            self.node.transfers_moved.notify_all();
        }
    }

    /// Why no command can be taken now.
    #[inline]
    pub fn hold(&self) -> Option<Hold> {
        let unsent = self.out.borrow().unsent();
        if unsent > 0 && self.blocked_since.get().is_some()
            || unsent + self.reading.get() >= OUTBOX_BYTES
        {
            return Some(Hold::Outbox);
        }
        (self.node.operations.get() >= OPERATIONS_PER_REACTOR).then_some(Hold::Operations)
    }

    /// Gives back what an ended connection holds for commands that will not come.
    pub fn release(&self) {
        let transfers = self.transfers.take();
        if transfers.bytes() > 0 {
            self.node.transfer_ended(transfers.bytes());
        }
        self.waiting.borrow_mut().clear();
        drop(self.tickets.take());
        self.fused.take();
        self.spare.take();
        self.owing_since.set(None);
        self.blocked_since.set(None);
    }

    /// An operation of this connection begins.
    pub fn operation_begins(&self) {
        self.operations.set(self.operations.get() + 1);
        self.node.operations.set(self.node.operations.get() + 1);
    }

    /// An operation of this connection ended.
    pub fn operation_ended(&self) {
        self.operations.set(self.operations.get() - 1);
        self.node.operation_ended();
        self.resume.notify();
        self.look_drained();
    }

    /// Tells whoever waits for the end of the commands in flight.
    pub fn look_drained(&self) {
        if self.operations.get() == 0 {
            self.drained.notify();
        }
    }
}
