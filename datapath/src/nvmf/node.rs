//! A reactor's part of the target: its connections, its views, the subsystems that are at home here, its mail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::Sqe;

use super::conn::{Connection, Parts, Role, reader};
use super::connect;
use super::handshake;
use super::home::Home;
use super::limits::{
    CONNECTIONS_PER_REACTOR, DRAIN_WARNING, HALF_OPEN_PER_REACTOR, RECV_BYTES,
    TRANSFER_SHARE_OF_POOL,
};
use super::message::{Answer, Candidate, Granted, Mail, Message, Request};
use super::seam::{
    CATTR_DISABLE_SQ_FLOW, CommandRef, ConnectError, ErrorReport, HostId, NodeIdentity, Outcome,
    QueueScope, ViewSpec,
};
use super::status;
use super::subsystem::Subsystem;
use super::target::MainPart;
use super::view::{View, ViewCell, Volumes};
use crate::reactor::{Endpoint, Handle, Listener, NetError, Notify, ReactorId, Socket};

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
    receive_buffer: Cell<Box<[u8]>>,
    waiting_for_operations: RefCell<Vec<Weak<Connection>>>,
    watch: Notify,
    /// Bytes that all transfers have buffers for.
    transfer_bytes: Cell<usize>,
    /// Who waits for a buffer of the pool.
    waiting_for_buffers: Cell<usize>,
    /// Some transfer ended.
    pub transfers_moved: Notify,
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
            receive_buffer: Cell::new(vec![0; RECV_BYTES].into_boxed_slice()),
            waiting_for_operations: RefCell::default(),
            watch: Notify::new(),
            transfer_bytes: Cell::new(0),
            waiting_for_buffers: Cell::new(0),
            transfers_moved: Notify::new(),
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

    // ---- mail

    /// Sends a message; one to ourselves is handled soon, never within this call.
    pub fn send(&self, to: ReactorId, message: Message) {
        self.outgoing.borrow_mut().push_back((to, message));
        self.to_send.notify();
    }

    /// Sends to every reactor, this one included.
    pub fn broadcast(&self, mut message: impl FnMut() -> Message) {
        for to in 0..self.handle.reactors() {
            self.send(ReactorId(to), message());
        }
    }

    /// Sends to the home of a subsystem.
    pub fn send_home(&self, nqn: &str, message: Message) {
        self.send(home_of(nqn, self.handle.reactors()), message);
    }

    async fn deliver(self: Rc<Self>) {
        loop {
            let next = self.outgoing.borrow_mut().pop_front();
            match next {
                None => self.to_send.notified().await,
                Some((to, message)) if to == self.id => self.receive(to, message),
                Some((to, message)) => self.endpoint.send(to, Mail(message)).await,
            }
        }
    }

    fn receive(self: &Rc<Self>, from: ReactorId, message: Message) {
        let now = self.handle.now().0;
        match message {
            Message::Connect(candidate) => self.connect(*candidate),
            Message::Serve(granted) => self.serve(*granted),
            Message::QueueGone {
                nqn,
                home,
                cntlid,
                qid,
            } => {
                self.at_this_home(&nqn, home, |home| {
                    home.run(|s| s.queue_gone(cntlid, qid, now))
                });
            }
            Message::CloseQueues { nqn, cntlid, scope } => self.close_queues(&nqn, cntlid, scope),
            Message::Publish { home, view } => self.take_view(home, view),
            Message::Published {
                nqn,
                home,
                generation,
            } => {
                self.at_this_home(&nqn, home, |home| home.acknowledge(generation));
            }
            Message::Forget { nqn } => {
                self.views.borrow_mut().remove(&nqn);
            }
            Message::Activity { nqn, cntlid } => {
                self.at_home(&nqn, |home| home.run(|s| s.activity(cntlid, now)));
            }
            Message::Reservation {
                nqn,
                cmd,
                sqe,
                data,
            } => self.reserve(from, &nqn, cmd, &sqe, &data),
            Message::Complete { cmd, reply } => {
                let conn = self.connections.borrow().get(&cmd.connection).cloned();
                if let Some(conn) = conn {
                    conn.complete_reply(usize::MAX, cmd.cid, reply);
                }
            }
            Message::Failed { nqn, report } => {
                self.at_home(&nqn, |home| home.run(|s| s.log_error(report, now)));
            }
            Message::Ask { id, request } => {
                let node = self.clone();
                self.handle.spawn("nvmf-ask", async move {
                    let answer = node.answer(request).await;
                    node.send(from, Message::Answer { id, answer });
                });
            }
            Message::Answer { id, answer } => {
                if let Some(main) = &self.main {
                    main.answered(id, answer);
                }
            }
            Message::Event(event) => {
                if let Some(main) = &self.main {
                    main.event(event);
                }
            }
        }
    }

    // ---- subsystems at home here

    fn at_home(&self, nqn: &str, then: impl FnOnce(&Rc<Home>)) {
        let home = self.homes.borrow().get(nqn).cloned();
        if let Some(home) = home {
            then(&home);
        }
    }

    /// The same, unless another of that name took its place meanwhile.
    fn at_this_home(&self, nqn: &str, number: u64, then: impl FnOnce(&Rc<Home>)) {
        self.at_home(nqn, |home| {
            if home.number == number {
                then(home);
            }
        });
    }

    /// Takes in a subsystem whose home this is.
    pub(super) fn add_home(self: &Rc<Self>, nqn: Arc<str>, subsystem: Subsystem) -> Rc<Home> {
        let home = Home::new(self, nqn.clone(), self.next_connection(), subsystem);
        self.homes.borrow_mut().insert(nqn, home.clone());
        home
    }

    async fn answer(self: &Rc<Self>, request: Request) -> Answer {
        let now = self.handle.now().0;
        let find = |nqn: &str| self.homes.borrow().get(nqn).cloned();
        match request {
            Request::Export(config) => {
                let home = match find(&config.nqn) {
                    Some(home) => match home.run(|s| s.update(*config, now)) {
                        Ok(()) => home,
                        Err(refused) => return Answer::Refused(refused),
                    },
                    None => {
                        let nqn = config.nqn.clone();
                        match Subsystem::new(*config, &self.identity, now) {
                            Ok(subsystem) => self.add_home(nqn, subsystem),
                            Err(refused) => return Answer::Refused(refused),
                        }
                    }
                };
                home.publish(home.look(|s| s.view()));
                home.run(|_| ());
                home.settle().await;
                Answer::Done
            }
            Request::Unexport { nqn } => {
                let home = self.homes.borrow_mut().remove(&nqn);
                if let Some(home) = home {
                    home.run(|s| s.remove(now));
                    home.remove();
                    self.broadcast(|| Message::Forget { nqn: nqn.clone() });
                }
                Answer::Done
            }
            Request::Inspect { nqn } => Answer::Export(
                find(&nqn)
                    .map(|home| Box::new(home.look(|s| (s.config().clone(), s.controllers())))),
            ),
            Request::CommitReservation {
                nqn,
                nsid,
                generation,
            } => {
                if let Some(home) = find(&nqn) {
                    home.run(|s| s.commit_reservation(nsid, generation, now));
                }
                Answer::Done
            }
        }
    }

    /// A connection asks for a queue: to the home of its subsystem with it.
    pub fn admit(&self, candidate: Candidate) {
        let home = home_of(&candidate.request.subnqn, self.handle.reactors());
        self.send(home, Message::Connect(Box::new(candidate)));
    }

    fn connect(self: &Rc<Self>, candidate: Candidate) {
        let home = self
            .homes
            .borrow()
            .get(candidate.request.subnqn.as_str())
            .cloned();
        let request = &candidate.request;
        let now = self.handle.now().0;
        let unknown = ConnectError {
            status: status::CONNECT_PARAMETERS,
            ipo: 256,
            in_data: true,
        };
        let granted = home.as_ref().ok_or(unknown).and_then(|home| {
            home.run(|s| {
                if request.qid == 0 {
                    s.connect_admin(request, now)
                } else {
                    s.connect_io(request, now)
                }
            })
        });
        let (home, grant) = match (home, granted) {
            (Some(home), Ok(grant)) => (home, grant),
            (_, Err(refused)) => {
                let node = self.clone();
                self.handle.spawn("nvmf-handshake", async move {
                    handshake::again(node, candidate, connect::refusal(refused)).await;
                });
                return;
            }
            (None, Ok(_)) => unreachable!("a grant comes from a home"),
        };
        debug_assert_eq!(
            grant.sq_flow_control,
            request.cattr & CATTR_DISABLE_SQ_FLOW == 0
        );
        let Candidate {
            socket,
            params,
            rest,
            request,
            cid,
            ..
        } = candidate;
        let (nqn, host, qid) = (home.nqn.clone(), request.hostid, request.qid);
        let granted = Granted {
            socket,
            params,
            rest,
            nqn,
            host,
            qid,
            cid,
            grant,
            home: home.number,
        };
        if qid == 0 {
            self.run_connection(granted, Role::Admin(home));
        } else {
            let to = self.next_reactor.get();
            self.next_reactor.set((to + 1) % self.handle.reactors());
            self.send(ReactorId(to), Message::Serve(Box::new(granted)));
        }
    }

    fn reserve(&self, from: ReactorId, nqn: &str, cmd: CommandRef, sqe: &Sqe, data: &[u8]) {
        let now = self.handle.now().0;
        let home = self.homes.borrow().get(nqn).cloned();
        let outcome = match home {
            Some(home) => home.run(|s| s.reservation(cmd, &sqe.0, data, now)),
            None => Outcome::Done(super::seam::Reply::status(status::INVALID_NAMESPACE)),
        };
        if let Outcome::Done(mut reply) = outcome {
            reply.data.truncate(Home::data_room(sqe));
            self.send(from, Message::Complete { cmd, reply });
        }
    }

    // ---- connections here

    fn serve(self: &Rc<Self>, granted: Granted) {
        let cell = self.view_cell(&granted.nqn);
        self.run_connection(granted, Role::Io(cell));
    }

    fn run_connection(self: &Rc<Self>, granted: Granted, role: Role) {
        let Granted {
            socket,
            params,
            rest,
            nqn,
            host,
            qid,
            cid,
            grant,
            home,
        } = granted;
        let socket = self.handle.adopt(socket);
        let conn = Connection::new(
            self,
            Parts {
                socket,
                params,
                role,
                nqn,
                host,
                home,
                grant,
                qid,
            },
        );
        self.connections.borrow_mut().insert(conn.id, conn.clone());
        self.sockets.set(self.sockets.get() + 1);
        let reply = connect::granted(grant.cntlid);
        conn.put_completion(cid, reply.dw0, reply.dw1, reply.status);
        let (node, writer) = (self.clone(), conn.clone());
        self.handle
            .spawn("nvmf-writer", async move { writer.write().await });
        self.handle.spawn("nvmf-reader", async move {
            if let Role::Io(cell) = &conn.role {
                cell.queue(true);
                for ns in &cell.get().namespaces {
                    ns.volume.place(node.id);
                }
            }
            reader::read(conn.clone(), rest).await;
            node.end_connection(conn).await;
        });
    }

    /// Waits for the commands in flight, forgets the connection, and tells home.
    async fn end_connection(&self, conn: Rc<Connection>) {
        conn.release();
        while conn.operations.get() > 0 {
            if self
                .handle
                .timeout(DRAIN_WARNING, conn.drained.notified())
                .await
                .is_err()
            {
                tracing::warn!(nqn = %conn.nqn, peer = %conn.socket.peer(), commands = conn.operations.get(),
                    "a closed connection still has commands in flight");
            }
        }
        if let Role::Io(cell) = &conn.role {
            cell.queue(false);
        }
        self.connections.borrow_mut().remove(&conn.id);
        self.sockets.set(self.sockets.get() - 1);
        let (cntlid, qid) = {
            let queue = conn.queue.borrow();
            (queue.grant.cntlid, queue.qid)
        };
        self.send_home(
            &conn.nqn,
            Message::QueueGone {
                nqn: conn.nqn.clone(),
                home: conn.home,
                cntlid,
                qid,
            },
        );
    }

    fn close_queues(&self, nqn: &str, cntlid: u16, scope: QueueScope) {
        let ours = |conn: &&Rc<Connection>| {
            let queue = conn.queue.borrow();
            *conn.nqn == *nqn
                && queue.grant.cntlid == cntlid
                && (scope == QueueScope::All || queue.qid != 0)
        };
        let all: Vec<Rc<Connection>> = self
            .connections
            .borrow()
            .values()
            .filter(ours)
            .cloned()
            .collect();
        all.iter().for_each(|conn| conn.close());
    }

    /// The cell of a subsystem's view here.
    pub fn view_cell(&self, nqn: &Arc<str>) -> Rc<ViewCell> {
        self.views
            .borrow_mut()
            .entry(nqn.clone())
            .or_insert_with(|| Rc::new(ViewCell::new()))
            .clone()
    }

    /// Puts a view in force, and acknowledges when no command that it fences off is in flight.
    fn take_view(self: &Rc<Self>, home: u64, spec: Arc<ViewSpec>) {
        let cell = self.view_cell(&spec.nqn);
        if spec.generation >= cell.get().generation {
            cell.set(View::new(&spec, &*self.volumes));
        }
        let done = Message::Published {
            nqn: spec.nqn.clone(),
            home,
            generation: spec.generation,
        };
        let fenced: Vec<HostId> = spec
            .namespaces
            .iter()
            .flat_map(|ns| ns.drain.iter().copied())
            .collect();
        if fenced.is_empty() {
            self.send_home(&spec.nqn, done);
            return;
        }
        let node = self.clone();
        self.handle.spawn("nvmf-fence", async move {
            node.drain(&spec.nqn, &fenced).await;
            node.send_home(&spec.nqn, done);
        });
    }

    /// Waits until no operation of these hosts on a subsystem is in flight here.
    async fn drain(&self, nqn: &str, hosts: &[HostId]) {
        loop {
            let busy = |conn: &&Rc<Connection>| {
                *conn.nqn == *nqn && hosts.contains(&conn.host) && conn.operations.get() > 0
            };
            let next = self.connections.borrow().values().find(busy).cloned();
            match next {
                None => return,
                Some(conn) => conn.drained.notified().await,
            }
        }
    }

    // ---- what connections tell

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

    // ---- buffers

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

    // ---- the watch

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

    /// Opens the listening socket.
    pub(super) fn listen(handle: &Handle, at: SocketAddr) -> Result<Listener, NetError> {
        handle.listen(at)
    }
}
