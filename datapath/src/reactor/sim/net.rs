//! The simulated network: TCP connections as two byte streams, whose segments take their time.
//!
//! A stream keeps its order, as TCP does, but is cut into arbitrary pieces. A direction that is cut holds its segments back until it is
//! healed, so a connection over it is half-open and nobody is told. Closing arrives behind the data. Segments for an end that is gone are
//! answered with a reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::super::error::NetError;
use super::super::handle::Core;
use super::{Event, NodeId, World};

/// Bytes that a stream holds, under way and unread, before its sender must wait.
const WINDOW: usize = 256 << 10;
/// Connections that may wait to be accepted.
const BACKLOG: usize = 1024;
const FIRST_PORT: u16 = 20_000;

/// Faults that are on now.
#[derive(Debug)]
pub struct NetFaults {
    /// Shortest and longest usual time of a segment.
    pub latency: (Duration, Duration),
    /// The same of single directions, from a node to a node.
    pub slow: BTreeMap<(NodeId, NodeId), (Duration, Duration)>,
    /// Directions, from a node to a node, in which nothing arrives.
    pub cut: BTreeSet<(NodeId, NodeId)>,
}

impl NetFaults {
    /// Nothing passes between the two, in either direction.
    pub fn partition(&mut self, a: NodeId, b: NodeId) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Everything passes again, and no direction is slower than others.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.slow.clear();
    }
}

impl Default for NetFaults {
    fn default() -> Self {
        NetFaults {
            latency: (Duration::from_micros(5), Duration::from_micros(50)),
            slow: BTreeMap::new(),
            cut: BTreeSet::new(),
        }
    }
}

/// What travels.
#[derive(Debug)]
enum Message {
    Data(Vec<u8>),
    Close,
    Reset,
    /// A wish to connect, with the asking end, to a listener.
    Connect(SocketAddr),
    /// The answer: accepted by this end.
    Accepted(u64),
    Refused,
}

#[derive(Debug)]
struct Travelling {
    from: NodeId,
    to: NodeId,
    /// The end it goes to; for `Connect` the end that asks.
    end: u64,
    message: Message,
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    node: NodeId,
    peer: Option<u64>,
    peer_node: NodeId,
    received: VecDeque<u8>,
    /// Bytes that we sent and the peer has not read.
    outstanding: usize,
    /// When our last segment arrives: the next one comes later.
    last_arrival: u64,
    closed_by_peer: bool,
    shut: bool,
    broken: Option<i32>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn wake(&mut self) {
        for waker in self.reader.take().into_iter().chain(self.writer.take()) {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct Listening {
    node: NodeId,
    queue: VecDeque<u64>,
    waker: Option<Waker>,
}

/// All of the network.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(super) faults: NetFaults,
    ends: BTreeMap<u64, End>,
    listeners: BTreeMap<SocketAddr, Listening>,
    travelling: BTreeMap<u64, Travelling>,
    /// Held back by a cut, in order of arrival.
    held: Vec<u64>,
    ports: u16,
}

fn new_end(node: NodeId, peer: Option<u64>, peer_node: NodeId) -> End {
    End {
        node,
        peer,
        peer_node,
        received: VecDeque::new(),
        outstanding: 0,
        last_arrival: 0,
        closed_by_peer: false,
        shut: false,
        broken: None,
        reader: None,
        writer: None,
    }
}

impl World {
    /// Sends a message behind all that the same end sent before.
    fn travel(&self, by: Option<u64>, travelling: Travelling) {
        let id = self.fresh();
        let mut net = self.net.borrow_mut();
        let way = (travelling.from, travelling.to);
        let of_way = net.faults.slow.get(&way).copied();
        let (from, to) = of_way.unwrap_or(net.faults.latency);
        let mut at = self.now.get() + self.delay(from, to);
        if let Some(end) = by.and_then(|by| net.ends.get_mut(&by)) {
            at = at.max(end.last_arrival + 1);
            end.last_arrival = at;
        }
        net.travelling.insert(id, travelling);
        self.after(at - self.now.get(), Event::Net(id));
    }

    /// A message arrives, unless its way is cut.
    pub(super) fn net_arrives(&self, id: u64) {
        let message = {
            let mut net = self.net.borrow_mut();
            let Some(t) = net.travelling.get(&id) else {
                return;
            };
            // What follows a held message waits behind it.
            let behind = net.held.iter().any(|h| {
                net.travelling
                    .get(h)
                    .is_some_and(|held| held.end == t.end && held.to == t.to)
            });
            if net.faults.cut.contains(&(t.from, t.to)) || behind {
                net.held.push(id);
                return;
            }
            net.travelling.remove(&id)
        };
        let Some(t) = message else { return };
        self.trace(5, t.end, u64::from(t.to.0));
        self.deliver(t);
    }

    fn deliver(&self, t: Travelling) {
        match t.message {
            Message::Connect(at) => self.connect_arrives(t.from, t.end, at),
            message => {
                let mut net = self.net.borrow_mut();
                let Some(end) = net.ends.get_mut(&t.end) else {
                    let reset = matches!(message, Message::Data(_));
                    drop(net);
                    if reset {
                        self.reset_sender_of(t.end, t.to, t.from);
                    }
                    return;
                };
                match message {
                    Message::Data(bytes) => end.received.extend(bytes),
                    Message::Close => end.closed_by_peer = true,
                    Message::Reset => end.broken = Some(libc::ECONNRESET),
                    Message::Refused => end.broken = Some(libc::ECONNREFUSED),
                    Message::Accepted(peer) => end.peer = Some(peer),
                    Message::Connect(_) => {}
                }
                end.wake();
            }
        }
    }

    /// Data came for an end that is gone: its peer is told.
    fn reset_sender_of(&self, gone: u64, from: NodeId, to: NodeId) {
        let peer = self
            .net
            .borrow()
            .ends
            .iter()
            .find(|(_, end)| end.peer == Some(gone))
            .map(|(id, _)| *id);
        if let Some(end) = peer {
            self.travel(
                None,
                Travelling {
                    from,
                    to,
                    end,
                    message: Message::Reset,
                },
            );
        }
    }

    fn connect_arrives(&self, from: NodeId, asking: u64, at: SocketAddr) {
        let id = self.fresh();
        let mut net = self.net.borrow_mut();
        let net_ref = &mut *net;
        let (to, message) = match net_ref.listeners.get_mut(&at) {
            Some(listening) if listening.queue.len() < BACKLOG => {
                listening.queue.push_back(id);
                if let Some(waker) = listening.waker.take() {
                    waker.wake();
                }
                net_ref
                    .ends
                    .insert(id, new_end(listening.node, Some(asking), from));
                (listening.node, Message::Accepted(id))
            }
            _ => (from, Message::Refused),
        };
        drop(net);
        let by = matches!(message, Message::Accepted(_)).then_some(id);
        self.travel(
            by,
            Travelling {
                from: to,
                to: from,
                end: asking,
                message,
            },
        );
    }

    /// Faults changed: what was held back and need not be any more arrives now, in order.
    pub(super) fn net_released(&self) {
        let held = std::mem::take(&mut self.net.borrow_mut().held);
        for id in held {
            self.net_arrives(id);
        }
    }

    /// A process ended: its kernel closes what it had open.
    pub(super) fn net_killed(&self, node: NodeId) {
        let mine: Vec<u64> = self
            .net
            .borrow()
            .ends
            .iter()
            .filter(|(_, e)| e.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in mine {
            self.close(id);
        }
        self.net
            .borrow_mut()
            .listeners
            .retain(|_, l| l.node != node);
    }

    /// A machine lost power: its ends are gone, and nobody is told.
    pub(super) fn net_vanished(&self, node: NodeId) {
        let mut net = self.net.borrow_mut();
        net.ends.retain(|_, e| e.node != node);
        net.listeners.retain(|_, l| l.node != node);
        net.travelling.retain(|_, t| t.from != node && t.to != node);
    }

    pub(super) fn net_reset(&self, a: NodeId, b: NodeId) {
        for end in self.net.borrow_mut().ends.values_mut() {
            if (end.node, end.peer_node) == (a, b) || (end.node, end.peer_node) == (b, a) {
                end.broken = Some(libc::ECONNRESET);
                end.wake();
            }
        }
    }

    /// Forgets an end and tells the other one.
    fn close(&self, id: u64) {
        let closing = {
            let net = self.net.borrow();
            net.ends
                .get(&id)
                .and_then(|e| Some((e.peer?, e.node, e.peer_node, e.broken.is_none() && !e.shut)))
        };
        if let Some((end, from, to, true)) = closing {
            self.travel(
                Some(id),
                Travelling {
                    from,
                    to,
                    end,
                    message: Message::Close,
                },
            );
        }
        self.net.borrow_mut().ends.remove(&id);
    }
}

fn broken(errno: i32) -> NetError {
    NetError::Broken {
        source: io::Error::from_raw_os_error(errno),
    }
}

/// A connected simulated socket.
pub(crate) struct SimSocket {
    world: Rc<World>,
    id: u64,
    /// Given away: somebody else closes it.
    detached: bool,
    peer: SocketAddr,
}

impl SimSocket {
    pub(crate) fn adopt(core: &Rc<Core>, id: u64, peer: SocketAddr) -> Self {
        SimSocket {
            world: core.sim().world.clone(),
            id,
            detached: false,
            peer,
        }
    }

    pub(crate) async fn connect(core: &Rc<Core>, to: SocketAddr) -> Result<Self, NetError> {
        let (world, node) = (core.sim().world.clone(), core.sim().node);
        let id = world.fresh();
        let there = world
            .net
            .borrow()
            .listeners
            .get(&to)
            .map_or(node, |l| l.node);
        world
            .net
            .borrow_mut()
            .ends
            .insert(id, new_end(node, None, there));
        let socket = SimSocket {
            world,
            id,
            detached: false,
            peer: to,
        };
        socket.world.travel(
            Some(id),
            Travelling {
                from: node,
                to: there,
                end: id,
                message: Message::Connect(to),
            },
        );
        poll_fn(|cx| {
            socket.with(|end| match (end.broken, end.peer) {
                (Some(errno), _) => Poll::Ready(Err(NetError::Connect {
                    to,
                    source: io::Error::from_raw_os_error(errno),
                })),
                (None, Some(_)) => Poll::Ready(Ok(())),
                (None, None) => {
                    end.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
        })
        .await?;
        Ok(socket)
    }

    /// With our end; one that vanished counts as broken.
    fn with<R>(&self, f: impl FnOnce(&mut End) -> R) -> R {
        let mut net = self.world.net.borrow_mut();
        match net.ends.get_mut(&self.id) {
            Some(end) => f(end),
            None => f(&mut End {
                broken: Some(libc::ECONNRESET),
                ..new_end(NodeId(0), None, NodeId(0))
            }),
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Takes what has arrived into `parts`; `None` if there is nothing.
    pub(crate) fn try_recv<'b>(
        &self,
        parts: impl Iterator<Item = &'b mut [u8]>,
    ) -> Result<Option<usize>, NetError> {
        let mut taken = 0;
        let (outcome, peer) = self.with(|end| {
            for part in parts {
                let count = part.len().min(end.received.len());
                let (first, second) = end.received.as_slices();
                let split = count.min(first.len());
                part[..split].copy_from_slice(&first[..split]);
                part[split..count].copy_from_slice(&second[..count - split]);
                end.received.drain(..count);
                taken += count;
            }
            let outcome = match (taken, end.broken) {
                (0, Some(errno)) => Err(broken(errno)),
                (0, None) if end.closed_by_peer || end.shut => Ok(Some(0)),
                (0, None) => Ok(None),
                (n, _) => Ok(Some(n)),
            };
            (outcome, end.peer)
        });
        if taken > 0
            && let Some(sender) = self
                .world
                .net
                .borrow_mut()
                .ends
                .get_mut(&peer.unwrap_or(self.id))
        {
            sender.outstanding = sender.outstanding.saturating_sub(taken);
            if let Some(writer) = sender.writer.take() {
                writer.wake();
            }
        }
        outcome
    }

    pub(crate) async fn recv(&self, buf: &mut [u8]) -> Result<usize, NetError> {
        if buf.is_empty() {
            return Ok(0);
        }
        poll_fn(|cx| match self.try_recv(std::iter::once(&mut *buf)) {
            Ok(Some(n)) => Poll::Ready(Ok(n)),
            Ok(None) => self.wait_to_read(cx),
            Err(e) => Poll::Ready(Err(e)),
        })
        .await
    }

    fn wait_to_read<T>(&self, cx: &Context<'_>) -> Poll<T> {
        self.with(|end| end.reader = Some(cx.waker().clone()));
        Poll::Pending
    }

    pub(crate) async fn readable(&self) {
        poll_fn(|cx| {
            if self.with(|end| {
                !end.received.is_empty() || end.closed_by_peer || end.shut || end.broken.is_some()
            }) {
                return Poll::Ready(());
            }
            self.wait_to_read(cx)
        })
        .await;
    }

    pub(crate) fn try_send(&self, parts: &[IoSlice<'_>]) -> Result<usize, NetError> {
        let total: usize = parts.iter().map(|p| p.len()).sum();
        let (room, route) = self.with(|end| match (end.broken, end.shut) {
            (Some(errno), _) => (Err(broken(errno)), None),
            (None, true) => (Err(broken(libc::EPIPE)), None),
            (None, false) => (
                Ok(WINDOW - end.outstanding.min(WINDOW)),
                end.peer.map(|p| (p, end.node, end.peer_node)),
            ),
        });
        let (room, Some((peer, from, to))) = (room?, route) else {
            return Ok(0);
        };
        let n = room.min(total);
        let mut bytes = Vec::with_capacity(n);
        for part in parts {
            let count = part.len().min(n - bytes.len());
            bytes.extend_from_slice(&part[..count]);
        }
        self.with(|end| end.outstanding += n);
        while !bytes.is_empty() {
            // Often whole, sometimes in pieces: readers must not depend on it.
            let piece = if self.world.below(4) == 0 {
                1 + self.world.below(bytes.len() as u64) as usize
            } else {
                bytes.len()
            };
            let rest = bytes.split_off(piece);
            let message = Message::Data(std::mem::replace(&mut bytes, rest));
            self.world.travel(
                Some(self.id),
                Travelling {
                    from,
                    to,
                    end: peer,
                    message,
                },
            );
        }
        Ok(n)
    }

    pub(crate) async fn writable(&self) {
        poll_fn(|cx| {
            self.with(|end| {
                if end.broken.is_some() || end.shut || end.outstanding < WINDOW {
                    return Poll::Ready(());
                }
                end.writer = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }

    pub(crate) fn shutdown(&self) {
        let route = self.with(|end| {
            let first = !std::mem::replace(&mut end.shut, true) && end.broken.is_none();
            end.wake();
            end.peer
                .filter(|_| first)
                .map(|p| (p, end.node, end.peer_node))
        });
        if let Some((end, from, to)) = route {
            self.world.travel(
                Some(self.id),
                Travelling {
                    from,
                    to,
                    end,
                    message: Message::Close,
                },
            );
        }
    }

    pub(crate) fn detach(mut self) -> u64 {
        self.detached = true;
        self.id
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        if !self.detached {
            self.world.close(self.id);
        }
    }
}

/// A simulated listening socket.
pub(crate) struct SimListener {
    core: Rc<Core>,
    at: SocketAddr,
}

impl SimListener {
    pub(crate) fn open(core: &Rc<Core>, mut at: SocketAddr) -> Result<Self, NetError> {
        let mut net = core.sim().world.net.borrow_mut();
        if at.port() == 0 {
            at.set_port(FIRST_PORT + net.ports);
            net.ports += 1;
        }
        if net.listeners.contains_key(&at) {
            return Err(NetError::InUse { at });
        }
        net.listeners.insert(
            at,
            Listening {
                node: core.sim().node,
                queue: VecDeque::new(),
                waker: None,
            },
        );
        Ok(SimListener {
            core: core.clone(),
            at,
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.at
    }

    pub(crate) async fn accept(&self) -> Result<SimSocket, NetError> {
        let id = poll_fn(|cx| {
            let mut net = self.core.sim().world.net.borrow_mut();
            let Some(listening) = net.listeners.get_mut(&self.at) else {
                return Poll::Pending;
            };
            match listening.queue.pop_front() {
                Some(id) => Poll::Ready(id),
                None => {
                    listening.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        // Peers have no ports of their own here; their end's number tells them apart.
        let peer = SocketAddr::new(self.at.ip(), (id % 40_000) as u16 + 20_000);
        Ok(SimSocket::adopt(&self.core, id, peer))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let world = self.core.sim().world.clone();
        let waiting = world
            .net
            .borrow_mut()
            .listeners
            .remove(&self.at)
            .map(|l| l.queue)
            .unwrap_or_default();
        for id in waiting {
            world.close(id);
        }
    }
}
