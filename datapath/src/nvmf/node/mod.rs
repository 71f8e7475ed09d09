//! A reactor's part of the target: its connections, its views, the subsystems that are at home here, its mail.
//!
//! `mail` takes messages in and sends them, `at_home` is what a home does with them, `serve` what a reactor does that connections are
//! handed to. Here is what all of them share, and what connections tell and ask.

mod at_home;
mod mail;
mod serve;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::Sqe;

use super::conn::Connection;
use super::foreign::Foreign;
use super::handshake;
use super::home::Home;
use super::limits::{
    CONNECTIONS_PER_REACTOR, HALF_OPEN_PER_REACTOR, RECV_BYTES, TRANSFER_SHARE_OF_POOL,
};
use super::message::{Mail, Message};
use super::seam::{ErrorReport, NodeIdentity};
use super::target::MainPart;
use super::view::{ViewCell, Volumes};
use crate::device::View;
use crate::reactor::{Endpoint, Handle, Listener, NetError, Notify, ReactorId, Socket};
use crate::volume::forward::age::Steady;

/// What one reactor has of the target.
pub struct Node {
    /// The reactor.
    pub handle: Handle,
    /// Its number.
    pub id: ReactorId,
    /// Where this node listens.
    pub address: SocketAddr,
    /// Its handles of volumes.
    pub volumes: Box<dyn Volumes>,
    /// Operations of all connections in the reactor's slab.
    pub operations: Cell<usize>,
    /// On the main reactor: what the control process is served from.
    pub(super) main: Option<MainPart>,
    identity: NodeIdentity,
    endpoint: Endpoint<Mail>,
    /// Messages that wait for room in a ring, and those to ourselves. Bounded by what connections and commands there are.
    outgoing: RefCell<VecDeque<(ReactorId, Message)>>,
    to_send: Notify,
    homes: RefCell<BTreeMap<Arc<str>, Rc<Home>>>,
    views: RefCell<BTreeMap<Arc<str>, Rc<ViewCell>>>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next_connection: Cell<u64>,
    half_open: RefCell<BTreeMap<u64, Weak<Socket>>>,
    sockets: Cell<usize>,
    next_reactor: Cell<u16>,
    /// I/O queues that subsystems at home here have on each reactor.
    queues: RefCell<Vec<u32>>,
    receive_buffer: Cell<Box<[u8]>>,
    waiting_for_operations: RefCell<Vec<Weak<Connection>>>,
    /// Of the read at hand; kept for its memory.
    pub views_of_read: RefCell<Vec<View>>,
    watch: Notify,
    /// Bytes that all transfers have buffers for.
    transfer_bytes: Cell<usize>,
    /// Who waits for a buffer of the pool.
    waiting_for_buffers: Cell<usize>,
    /// Some transfer ended.
    pub transfers_moved: Notify,
    /// Since there is a replicated volume.
    steady: OnceCell<Rc<Steady>>,
    /// Commands that came from other nodes and are done here, by host.
    pub foreign: Foreign,
}

/// The reactor that a subsystem is at home on: the same on every reactor, without a directory (FNV-1a of the NQN).
pub fn home_of(nqn: &str, reactors: u16) -> ReactorId {
    if nqn == super::seam::DISCOVERY_NQN {
        return ReactorId(0);
    }
    let hash = nqn.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    ReactorId((hash % u64::from(reactors)) as u16)
}

impl Node {
    /// Makes a reactor's part and starts its tasks.
    pub(super) fn start(
        handle: Handle,
        endpoint: Endpoint<Mail>,
        volumes: Box<dyn Volumes>,
        identity: NodeIdentity,
        main: Option<MainPart>,
    ) -> Rc<Self> {
        let node = Rc::new(Self {
            id: handle.id(),
            address: identity.address,
            handle: handle.clone(),
            volumes,
            operations: Cell::new(0),
            main,
            identity,
            endpoint,
            outgoing: RefCell::default(),
            to_send: Notify::new(),
            homes: RefCell::default(),
            views: RefCell::default(),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            half_open: RefCell::default(),
            sockets: Cell::new(0),
            next_reactor: Cell::new(0),
            queues: RefCell::new(vec![0; usize::from(handle.reactors())]),
            receive_buffer: Cell::new(vec![0; RECV_BYTES].into_boxed_slice()),
            waiting_for_operations: RefCell::default(),
            views_of_read: RefCell::default(),
            watch: Notify::new(),
            transfer_bytes: Cell::new(0),
            waiting_for_buffers: Cell::new(0),
            transfers_moved: Notify::new(),
            steady: OnceCell::new(),
            foreign: Foreign::default(),
        });
        let (a, b, c) = (node.clone(), node.clone(), node.clone());
        handle.spawn("nvmf-mail-in", async move {
            loop {
                let (from, message) = a.endpoint.recv().await;
                a.receive(from, message.0);
            }
        });
        handle.spawn("nvmf-mail-out", async move { b.deliver().await });
        handle.spawn("nvmf-watch", async move { super::watch::watch(c).await });
        node
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(self: Rc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(socket) => self.accepted(socket),
                Err(error) => {
                    // out of descriptors, most likely: those that end give some back
                    tracing::warn!(%error, "accept failed");
                    self.handle
                        .sleep(std::time::Duration::from_millis(100))
                        .await;
                }
            }
        }
    }

    fn accepted(self: &Rc<Self>, socket: Socket) {
        if self.sockets.get() >= CONNECTIONS_PER_REACTOR {
            tracing::warn!(peer = %socket.peer(), "connection refused: {CONNECTIONS_PER_REACTOR} are open");
            return;
        }
        self.sockets.set(self.sockets.get() + 1);
        let node = self.clone();
        self.handle.spawn("nvmf-handshake", async move {
            handshake::begin(node.clone(), socket).await;
            node.sockets.set(node.sockets.get() - 1);
        });
    }

    /// Counts a half-open connection; the oldest gives way when there are too many.
    pub fn half_open(&self, socket: &Rc<Socket>) -> u64 {
        let mut half_open = self.half_open.borrow_mut();
        if half_open.len() >= HALF_OPEN_PER_REACTOR
            && let Some(oldest) = half_open
                .pop_first()
                .and_then(|(_, socket)| socket.upgrade())
        {
            oldest.shutdown();
        }
        let id = self.next_connection();
        half_open.insert(id, Rc::downgrade(socket));
        id
    }

    /// It has a queue, or is gone.
    pub fn no_longer_half_open(&self, id: u64) {
        self.half_open.borrow_mut().remove(&id);
    }

    /// A number for a connection.
    pub fn next_connection(&self) -> u64 {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        id
    }

    /// The buffer that receives go into; it comes back with [`Node::give_receive_buffer`] in the same step.
    #[inline]
    pub fn take_receive_buffer(&self) -> Box<[u8]> {
        self.receive_buffer.take()
    }

    /// See [`Node::take_receive_buffer`].
    #[inline]
    pub fn give_receive_buffer(&self, buf: Box<[u8]>) {
        self.receive_buffer.set(buf);
    }
    /// Tells home that commands came.
    pub fn report_activity(&self, conn: &Connection) {
        let cntlid = conn.queue.borrow().grant.cntlid;
        self.send_home(
            &conn.nqn,
            Message::Activity {
                nqn: conn.nqn.clone(),
                cntlid,
            },
        );
    }

    /// Tells home of a failed command.
    pub fn report_error(&self, conn: &Connection, report: ErrorReport) {
        self.send_home(
            &conn.nqn,
            Message::Failed {
                nqn: conn.nqn.clone(),
                report,
            },
        );
    }

    /// Gives a reservation command to home.
    pub fn forward_reservation(&self, conn: &Connection, sqe: &Sqe, data: Vec<u8>) {
        let cmd = conn.command_ref(sqe.cid());
        let message = Message::Reservation {
            nqn: conn.nqn.clone(),
            cmd,
            sqe: Box::new(*sqe),
            data,
        };
        self.send_home(&conn.nqn, message);
    }

    /// An operation of one of our connections ended.
    pub fn operation_ended(&self) {
        self.operations.set(self.operations.get() - 1);
        if !self.waiting_for_operations.borrow().is_empty() {
            for conn in self
                .waiting_for_operations
                .take()
                .iter()
                .filter_map(Weak::upgrade)
            {
                conn.resume.notify();
            }
        }
    }

    /// Wakes this connection's reader when an operation has ended.
    pub fn wait_for_operations(&self, conn: &Rc<Connection>) {
        self.waiting_for_operations
            .borrow_mut()
            .push(Rc::downgrade(conn));
    }

    /// Whether a transfer of `len` bytes that is not its connection's only one may have a buffer.
    pub fn may_transfer(&self, len: usize) -> bool {
        let pool = self.handle.buffers().span().1;
        self.waiting_for_buffers.get() == 0
            && self.transfer_bytes.get() + len <= pool / TRANSFER_SHARE_OF_POOL
    }

    /// A transfer has its buffer.
    pub fn transfer_began(&self, len: usize) {
        self.transfer_bytes.set(self.transfer_bytes.get() + len);
    }

    /// Transfers ended, or their connection.
    pub fn transfer_ended(&self, len: usize) {
        self.transfer_bytes.set(self.transfer_bytes.get() - len);
        self.transfers_moved.notify_all();
    }

    /// Waits for a buffer. Meanwhile hosts that hold buffers and do not send have less time.
    pub async fn take_buffer(&self, len: usize) -> Buffer {
        if let Some(buffer) = self.handle.buffers().try_take(len) {
            return buffer;
        }
        self.waiting_for_buffers
            .set(self.waiting_for_buffers.get() + 1);
        let buffer = self.handle.buffers().take(len).await;
        self.waiting_for_buffers
            .set(self.waiting_for_buffers.get() - 1);
        buffer
    }

    /// Whether somebody waits for a buffer.
    pub fn buffers_are_scarce(&self) -> bool {
        self.waiting_for_buffers.get() > 0
    }

    /// Some host owes us something: the watch looks at the clock while that is so.
    pub fn watch(&self) {
        self.watch.notify();
    }

    /// Waits until [`Node::watch`] was called.
    pub async fn watched(&self) {
        self.watch.notified().await;
    }

    /// All connections.
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// Since when this reactor has not been stopped.
    pub fn steady(&self) -> &Steady {
        self.steady.get_or_init(|| Steady::start(&self.handle))
    }

    /// The clock is looked at while there are connections, in whose sockets something may wait.
    pub(super) fn keep_steady(&self) {
        if let Some(steady) = self.steady.get() {
            steady.watch(!self.connections.borrow().is_empty(), self.handle.now());
        }
    }

    /// Opens the listening socket.
    pub(super) fn listen(handle: &Handle, at: SocketAddr) -> Result<Listener, NetError> {
        handle.listen(at)
    }
}
