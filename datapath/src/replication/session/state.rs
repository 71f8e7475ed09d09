//! A session: what its reader, its writer, its channels and its owner share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use keelblock_hugepages::Buffer;

use super::beat;
use super::channel::{Channel, Ended, Handler, NotSent, Service, State};
use super::credit::{Credit, Grants};
use super::down::{Counts, Down};
use super::gate::Gate;
use super::identity::{Identity, PUBLIC_KEY_BYTES};
use super::limits::CHANNELS_MAX;
use super::reader::Reader;
use super::writer::{self, Outgoing};
use crate::reactor::{Handle, Notify, Socket};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::hello::{PeerId, Side};

/// Whose session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The other node.
    pub peer: PeerId,
    /// Its data-path process.
    pub incarnation: [u8; 16],
    /// The address it has in this session.
    pub address: SocketAddr,
    /// The initiator's reactor.
    pub reactor: u16,
    /// Rises with each session of (initiator's process, reactor, acceptor).
    pub number: u64,
    /// The version that both speak.
    pub version: u16,
    /// The peer's public key, as the handshake was checked with.
    pub key: [u8; PUBLIC_KEY_BYTES],
}

/// The channels of a session.
#[derive(Default)]
pub(super) struct Table {
    pub(super) open: BTreeMap<u32, Rc<State>>,
    /// The highest number that there was.
    pub(super) last: u32,
    /// Have left the table, and their handlers are to be told.
    leaving: Vec<(Rc<State>, Ended)>,
}

/// A session between two reactors.
pub(super) struct Session {
    pub(super) handle: Handle,
    pub(super) socket: Socket,
    pub(super) side: Side,
    pub(super) info: Info,
    identity: Rc<Identity>,
    pub(super) counts: Rc<Counts>,
    pub(super) out: RefCell<Outgoing>,
    pub(super) to_send: Notify,
    room: Notify,
    pub(super) gate: Rc<Gate>,
    pub(super) table: RefCell<Table>,
    /// Who takes channels that the peer opens: the acceptor's.
    pub(super) service: Option<Rc<dyn Service>>,
    pub(super) credit: Credit,
    pub(super) grants: Grants,
    /// Receives that brought something.
    pub(super) heard: Cell<u64>,
    /// The reader waits for the reactor's pool.
    pub(super) starved: Cell<bool>,
    ended: RefCell<Option<Down>>,
    over: Notify,
}

impl Session {
    pub(super) fn new(
        handle: &Handle,
        identity: &Rc<Identity>,
        socket: Socket,
        info: Info,
        service: Option<Rc<dyn Service>>,
        counts: &Rc<Counts>,
    ) -> Rc<Self> {
        counts.begun();
        Rc::new(Self {
            handle: handle.clone(),
            socket,
            side: match service {
                Some(_) => Side::Acceptor,
                None => Side::Initiator,
            },
            info,
            identity: identity.clone(),
            counts: counts.clone(),
            out: RefCell::default(),
            to_send: Notify::new(),
            room: Notify::new(),
            gate: Rc::default(),
            table: RefCell::default(),
            service,
            credit: Credit::default(),
            grants: Grants::default(),
            heard: Cell::new(0),
            starved: Cell::new(false),
            ended: RefCell::default(),
            over: Notify::new(),
        })
    }

    /// Serves it until it ends, and tells all channels. Nothing is delivered afterwards.
    pub(super) async fn run(self: &Rc<Self>) -> Down {
        let letting_go = LettingGo(self.clone());
        let (a, b) = (self.clone(), self.clone());
        self.handle
            .spawn("replication-writer", async move { writer::write(a).await });
        self.handle
            .spawn("replication-beat", async move { beat::beat(b).await });
        let why = Reader::new(self.clone()).run().await;
        self.end(why);
        let why = self.why();
        self.counts.ended(&why);
        let Info { peer, number, .. } = self.info;
        match why.is_breach() {
            true => tracing::error!(?peer, number, reason = %why, "replication session ended"),
            false => tracing::info!(?peer, number, reason = %why, "replication session ended"),
        }
        self.end_channels();
        let open = std::mem::take(&mut self.table.borrow_mut().open);
        for state in open.values() {
            state.gone.set(true);
            tell(state, &Ended::Down(why.clone()));
        }
        drop(letting_go);
        why
    }

    /// Ends it, if it has not ended: the first reason counts. Nothing is sent, received or delivered afterwards.
    pub(super) fn end(&self, why: Down) {
        if self.is_ended() {
            return;
        }
        self.ended.replace(Some(why));
        self.socket.shutdown();
        self.out.borrow_mut().clear();
        self.over.notify_all();
        self.room.notify_all();
        self.credit.wake();
        self.to_send.notify();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Whether the peer is still in the list of nodes, under the key that it proved.
    pub(super) fn is_listed(&self) -> bool {
        let peer = self.identity.peer(&self.info.peer);
        peer.is_some_and(|p| p.key == self.info.key)
    }

    /// Why it ended.
    pub(super) fn why(&self) -> Down {
        self.ended.borrow().clone().unwrap_or(Down::Stopped)
    }

    /// What a future gives, unless the session ends before.
    pub(super) async fn unless_ended<F: Future>(&self, f: F) -> Option<F::Output> {
        let mut f = pin!(f);
        let mut over = pin!(self.over.notified());
        std::future::poll_fn(|cx| {
            if self.is_ended() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(out) = f.as_mut().poll(cx) {
                return Poll::Ready(Some(out));
            }
            let _ = over.as_mut().poll(cx);
            Poll::Pending
        })
        .await
    }

    pub(super) fn is_full(&self) -> bool {
        self.out.borrow().is_full()
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.borrow().unsent()
    }

    pub(super) async fn room(&self) {
        while self.is_full() && !self.is_ended() {
            self.room.notified().await;
        }
    }

    /// Queues a frame, whatever the bound.
    pub(super) fn push(
        &self,
        kind: Kind,
        channel_and_epoch: (u32, u32),
        fill: impl FnOnce(&mut Vec<u8>),
        data: impl IntoIterator<Item = (Rc<Buffer>, Range<usize>)>,
    ) {
        // Body and data are written by somebody else's code: nothing is borrowed meanwhile.
        let mut scratch = self.out.borrow_mut().take_scratch();
        fill(&mut scratch.body);
        scratch.add_data(data);
        let mut out = self.out.borrow_mut();
        out.push(kind, channel_and_epoch, scratch);
        drop(out);
        self.to_send.notify();
    }

    /// Queues a frame of the session's own. A peer that makes us say more than it reads is no peer.
    pub(super) fn push_own(
        &self,
        kind: Kind,
        channel_and_epoch: (u32, u32),
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.out.borrow().is_flooded() {
            return self.end(Down::Unread);
        }
        self.push(kind, channel_and_epoch, fill, []);
    }

    /// Sends what is queued. `Ok(false)`: the socket is full.
    pub(super) fn flush(&self) -> Result<bool, Down> {
        if self.is_ended() {
            return Err(self.why());
        }
        let mut out = self.out.borrow_mut();
        let flushed = out.flush(
            |parts| self.socket.try_send(parts),
            || self.room.notify_all(),
        );
        flushed.map_err(Down::from)
    }

    /// A channel of ours, without a number so far.
    pub(super) fn channel(self: &Rc<Self>, handler: Rc<dyn Handler>) -> Channel {
        Channel {
            session: self.clone(),
            state: new_state(self, 0, Some(handler)),
        }
    }

    /// Gives a channel of ours its number.
    pub(super) fn begin(&self, state: &Rc<State>) -> Result<(), NotSent> {
        let mut table = self.table.borrow_mut();
        if table.open.len() >= CHANNELS_MAX {
            return Err(NotSent::Full);
        }
        let Some(number) = table.last.checked_add(1) else {
            drop(table);
            // Four thousand million channels: the next session counts from 1 again.
            self.end(Down::Stopped);
            return Err(NotSent::Ended);
        };
        table.last = number;
        state.number.set(number);
        table.open.insert(number, state.clone());
        Ok(())
    }

    /// A channel leaves the table; its handler is told soon.
    pub(super) fn leave(&self, state: &Rc<State>, why: Ended) {
        if state.gone.replace(true) {
            return;
        }
        let mut table = self.table.borrow_mut();
        table.open.remove(&state.number.get());
        table.leaving.push((state.clone(), why));
        drop(table);
        self.to_send.notify();
    }

    /// The end of a channel that the peer closed, once all that was admitted has completed: our Close is the last frame on it.
    pub(super) fn look_closed(&self, state: &Rc<State>) {
        let due = state.shut_by_peer.get() && state.gate.is_idle();
        if !due || state.gone.get() || self.is_ended() {
            return;
        }
        if !state.shut.replace(true) {
            self.push_own(Kind::Close, (state.number.get(), 0), |_| {});
        }
        self.leave(state, Ended::Closed);
    }

    /// Tells the handlers of channels that left.
    pub(super) fn end_channels(&self) {
        loop {
            let next = self.table.borrow_mut().leaving.pop();
            let Some((state, why)) = next else { return };
            tell(&state, &why);
        }
    }
}

pub(super) fn new_state(
    session: &Rc<Session>,
    number: u32,
    handler: Option<Rc<dyn Handler>>,
) -> Rc<State> {
    Rc::new(State {
        session: Rc::downgrade(session),
        number: Cell::new(number),
        handler: RefCell::new(handler),
        gate: Gate::default(),
        shut: Cell::new(false),
        shut_by_peer: Cell::new(false),
        gone: Cell::new(false),
    })
}

/// The last call of a handler.
fn tell(state: &State, why: &Ended) {
    let handler = state.handler.borrow_mut().take();
    if let Some(handler) = handler {
        handler.ended(why);
    }
}

/// However the task ends that runs a session, nobody is kept alive by it.
struct LettingGo(Rc<Session>);

impl Drop for LettingGo {
    fn drop(&mut self) {
        self.0.end(Down::Stopped);
        let table = self.0.table.take();
        for state in table
            .open
            .values()
            .chain(table.leaving.iter().map(|l| &l.0))
        {
            state.gone.set(true);
            state.handler.take();
        }
    }
}

/// A session that may be gone.
pub(super) type WeakSession = Weak<Session>;
