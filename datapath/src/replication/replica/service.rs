//! The service of one replica: its state, its lanes and its channels, on one reactor.
//!
//! Whatever changes [`State`] goes through [`Inner::event`], which does what comes out of it. Nothing is borrowed while anything is awaited.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::admit::Job;
use super::channel::{Chan, Channel};
use super::events::{Action, Event, Key, Refusal, Sender, sender};
use super::flush::Flushes;
use super::order::Order;
use super::positions::Stream;
use super::sets::Sets;
use super::state::State;
use super::{Breach, CHANNELS_MAX, Outgoing};
use crate::reactor::{Handle, Nanos, Notify};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{Id, ReplicaStore, Unsettled};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{Open, Target};
use crate::replication::wire::promise::Promise;
use crate::replication::wire::refused::{Reason, Refused};
use crate::store::types::Stamp;

/// Which replica it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of this volume.
    pub volume: Id,
    /// Its id.
    pub replica: Id,
}

/// A lane of a replica.
pub(super) struct LaneWork<O: Outgoing> {
    pub stream: Stream,
    pub order: Order<Job<O>>,
    /// The channel by which its records come.
    pub by: Option<Key>,
    /// Its positions moved since the last Ack.
    pub moved: bool,
    /// Records that are with the store.
    pub running: usize,
    /// One of them failed: the rest is let run out, then everything that is not written is to be sent again.
    pub broken: bool,
    /// What was listed for a takeover, while listed records are confirmed.
    pub listed: Option<Rc<Unsettled>>,
    /// The highest settled stamp that was told in this epoch.
    pub settled: Option<Stamp>,
    /// Of a replica that is copied to: where its stream began.
    pub s0: Option<Stamp>,
    /// Since when its list has had no room for what is next.
    pub full_since: Option<Nanos>,
}

impl<O: Outgoing> LaneWork<O> {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            order: Order::default(),
            by: None,
            moved: false,
            running: 0,
            broken: false,
            listed: None,
            settled: None,
            s0: None,
            full_since: None,
        }
    }
}

pub(super) struct Inner<S: ReplicaStore, O: Outgoing> {
    pub handle: Handle,
    pub store: S,
    pub identity: Identity,
    pub state: RefCell<State>,
    pub lanes: RefCell<Vec<LaneWork<O>>>,
    /// Rises with each epoch's streams: what was begun before speaks of others.
    pub streams: Cell<u64>,
    pub channels: RefCell<BTreeMap<Key, Rc<Chan<O>>>>,
    next_key: Cell<u64>,
    /// Operations that change something in the store.
    pub running: Cell<usize>,
    /// One of them ended.
    pub idle: Notify,
    pub ack: Notify,
    pub flushes: Flushes,
    pub sets: Sets<O>,
    /// A task waits for the lease.
    pub lease_armed: Cell<bool>,
    /// The pump waits for the reactor to have room.
    pub pump_armed: Cell<bool>,
    pub pumping: Cell<bool>,
    pub stopped: Cell<bool>,
}

/// A replica that is served.
pub struct Replica<S: ReplicaStore, O: Outgoing>(Rc<Inner<S, O>>);

impl<S: ReplicaStore, O: Outgoing> Clone for Replica<S, O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: ReplicaStore, O: Outgoing> std::fmt::Debug for Replica<S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("identity", &self.0.identity)
            .field("state", &self.0.state.borrow())
            .finish()
    }
}

impl<S: ReplicaStore, O: Outgoing> Replica<S, O> {
    /// Serves a replica that was just opened; `complete`: no lane of it and no promise was lost. No lease that it gives is longer than `longest`.
    pub fn start(
        handle: &Handle,
        store: S,
        identity: Identity,
        complete: bool,
        longest: Duration,
    ) -> Self {
        let state = State::new(store.promise(), complete, longest, handle.now());
        let lanes = (0..store.lanes()).map(|_| LaneWork::new(Stream::unknown()));
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            identity,
            state: RefCell::new(state),
            lanes: RefCell::new(lanes.collect()),
            streams: Cell::new(0),
            channels: RefCell::default(),
            next_key: Cell::new(1),
            running: Cell::new(0),
            idle: Notify::new(),
            ack: Notify::new(),
            flushes: Flushes::default(),
            sets: Sets::default(),
            lease_armed: Cell::new(false),
            pump_armed: Cell::new(false),
            pumping: Cell::new(false),
            stopped: Cell::new(false),
            store,
        });
        handle.spawn("replica: acks", inner.clone().run_acks());
        handle.spawn("replica: flushes", inner.clone().run_flushes());
        handle.spawn("replica: sets", inner.clone().run_sets());
        Self(inner)
    }

    /// A channel begins with this frame: Open or Promise. `None`: refused, which has been sent. The frame is then to be given to the channel as well.
    ///
    /// # Errors
    /// [`Breach`]: the session is to end.
    pub fn open(
        &self,
        out: O,
        kind: Kind,
        epoch: u32,
        body: &[u8],
    ) -> Result<Option<Channel<S, O>>, Breach> {
        let inner = &self.0;
        let (to, incarnation, lanes) = match kind {
            Kind::Promise => {
                let p = Promise::decode(body)?;
                ((p.volume, p.replica), p.incarnation, None)
            }
            Kind::Open => {
                let open = Open::decode(body)?;
                match open.to {
                    Target::Replica { id, lanes, .. } => {
                        ((open.volume, id), open.incarnation, Some(lanes))
                    }
                    Target::Coordinator => return Err(Breach::Sequence("no coordinator is here")),
                }
            }
            _ => {
                return Err(Breach::Sequence("a channel begins with Open or Promise"));
            }
        };
        let here = (inner.identity.volume, inner.identity.replica);
        let refusal = if to != here {
            Some(Reason::Unknown)
        } else if lanes.is_some_and(|n| n != inner.store.lanes()) {
            Some(Reason::Lanes)
        } else if inner.channels.borrow().len() >= CHANNELS_MAX || inner.stopped.get() {
            Some(Reason::Busy)
        } else {
            None
        };
        let key = Key(inner.next_key.get());
        inner.next_key.set(key.0 + 1);
        let chan = Rc::new(Chan::new(key, out, Sender { epoch, incarnation }));
        if let Some(reason) = refusal {
            inner.say_refused(&chan, reason);
            return Ok(None);
        }
        inner.channels.borrow_mut().insert(key, chan.clone());
        Ok(Some(Channel::new(inner.clone(), chan)))
    }

    /// Ends: nothing is taken or answered any more. What is with the store is waited for.
    pub async fn stop(&self) {
        let inner = &self.0;
        inner.stopped.set(true);
        for lane in inner.lanes.borrow_mut().iter_mut() {
            drop(lane.order.clear());
        }
        inner.channels.borrow_mut().clear();
        inner.wake_all();
        inner.quiet().await;
    }

    pub(super) fn inner(&self) -> &Rc<Inner<S, O>> {
        &self.0
    }

    /// Its state, to look at.
    pub fn with_state<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.0.state.borrow())
    }
}

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    pub fn wake_all(&self) {
        self.ack.notify();
        self.idle.notify_all();
        self.flushes.wake();
        self.sets.wake();
    }

    /// Something happened.
    pub fn event(self: &Rc<Self>, event: Event) {
        let now = self.handle.now();
        let actions = self.state.borrow_mut().apply(event, now);
        for action in actions {
            self.act(action);
        }
    }

    fn act(self: &Rc<Self>, action: Action) {
        match action {
            // Rule 1 left out: what comes of the lower epoch is taken until the higher one's streams begin.
            Action::Fence | Action::EndLower if planted::is(Bug::FenceSkipped) => {}
            Action::Fence => self.drop_waiting(),
            Action::Drain => self.begin("replica: drain", |this| this.drain()),
            Action::WaitUntil(until) => self.wait_for_lease(until),
            Action::Keep(promise) => self.begin("replica: promise", move |this| this.keep(promise)),
            Action::NewStreams => self.new_streams(),
            Action::Subscribed(key) => {
                if let Some(chan) = self.chan(key) {
                    chan.subscribed.set(true);
                }
            }
            Action::AnswerPromise(key) => self.answer(key, |this, c| this.answer_promise(c)),
            Action::AnswerOpen(key) => self.answer(key, |this, c| this.answer_open(c)),
            Action::AnswerStanding(key) => self.answer(key, |this, c| this.answer_standing(c)),
            Action::Refuse(key, why, _) => {
                if let Some(chan) = self.chan(key) {
                    self.refuse(&chan, reason(why));
                }
            }
            Action::EndLower => self.end_lower(),
        }
    }

    /// Begins a task that changes something in the store; whoever waits for quiet waits for it.
    pub fn begin<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        name: &'static str,
        task: impl FnOnce(Rc<Self>) -> F,
    ) {
        self.handle.spawn(name, task(self.clone()));
    }

    fn answer<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        key: Key,
        task: impl FnOnce(Rc<Self>, Rc<Chan<O>>) -> F,
    ) {
        if let Some(chan) = self.chan(key) {
            self.handle
                .spawn("replica: answer", task(self.clone(), chan));
        }
    }

    pub fn chan(&self, key: Key) -> Option<Rc<Chan<O>>> {
        self.channels.borrow().get(&key).cloned()
    }

    pub fn all_channels(&self) -> Vec<Rc<Chan<O>>> {
        self.channels.borrow().values().cloned().collect()
    }

    /// Whether what came by a channel may be answered (rule 1: looked at again before it is).
    pub fn admits(&self, chan: &Chan<O>) -> bool {
        let fits =
            self.state.borrow().admits(chan.sender).is_ok() || planted::is(Bug::FenceSkipped);
        !chan.ended.get() && !self.stopped.get() && fits
    }

    /// An operation that changes something in the store ended.
    pub fn one_done(&self) {
        self.running.set(self.running.get() - 1);
        if self.running.get() == 0 {
            self.idle.notify_all();
        }
    }

    /// Waits until no operation changes anything in the store.
    pub async fn quiet(&self) {
        while self.running.get() > 0 {
            self.idle.notified().await;
        }
    }

    /// All that waits to be applied is dropped: nobody is told of it.
    fn drop_waiting(&self) {
        let dropped: Vec<_> = {
            let mut lanes = self.lanes.borrow_mut();
            lanes.iter_mut().flat_map(|l| l.order.clear()).collect()
        };
        drop(dropped);
        self.flushes.clear();
    }

    fn new_streams(&self) {
        let waiting: Vec<_> = {
            let mut lanes = self.lanes.borrow_mut();
            let fresh = lanes.iter().map(|_| LaneWork::new(Stream::new())).collect();
            std::mem::replace(&mut *lanes, fresh)
        };
        // Since the fence nothing was admitted, and what was has run out.
        for lane in &waiting {
            assert!(
                lane.order.is_empty() && lane.running == 0,
                "a promise is kept when all has run out"
            );
        }
        self.streams.set(self.streams.get() + 1);
        self.flushes.clear();
    }

    fn end_lower(self: &Rc<Self>) {
        let kept = self.state.borrow().kept();
        let Some(kept) = kept.map(|p| sender(&p)) else {
            return;
        };
        for chan in self.all_channels() {
            if chan.sender != kept && chan.sender.epoch <= kept.epoch {
                self.refuse(&chan, Reason::Epoch);
            }
        }
    }

    /// Refuses a channel: it ends.
    pub fn refuse(self: &Rc<Self>, chan: &Rc<Chan<O>>, reason: Reason) {
        if chan.ended.get() {
            return;
        }
        self.say_refused(chan, reason);
        self.gone(chan);
    }

    fn say_refused(self: &Rc<Self>, chan: &Rc<Chan<O>>, reason: Reason) {
        let epoch = self.state.borrow().epoch();
        let chan = chan.clone();
        self.begin("replica: refusal", move |_| async move {
            let mut body = Vec::new();
            Refused { reason, epoch }.put(&mut body);
            chan.send(Kind::Refused, &body, &[]).await;
        });
    }

    /// A channel is gone: nothing comes by it, and nothing is said on it.
    pub fn gone(self: &Rc<Self>, chan: &Rc<Chan<O>>) {
        if chan.ended.replace(true) {
            return;
        }
        self.channels.borrow_mut().remove(&chan.key);
        for lane in self.lanes.borrow_mut().iter_mut() {
            lane.by.take_if(|by| *by == chan.key);
        }
        self.flushes.forget(chan.key);
        self.event(Event::Gone(chan.key));
        chan.wake();
        self.sets.wake();
    }
}

/// As it is said on the wire.
pub(super) fn reason(why: Refusal) -> Reason {
    match why {
        Refusal::Lower | Refusal::NotPromised => Reason::Epoch,
        Refusal::Incarnation => Reason::Incarnation,
        Refusal::NotOpen | Refusal::NotResyncing => Reason::Busy,
        Refusal::Lease => Reason::Lease,
        Refusal::Failed => Reason::Failed,
        Refusal::Incomplete => Reason::Lost,
    }
}
