//! Runs a coordinator's states on a reactor, and gives its users writes, reads and flushes to await.
//!
//! Sessions and the KVDB stand behind [`Peers`] and [`SetStore`]: what they are told goes out through them, what they have to say comes in by
//! [`Driver::event`]. A replica on this node is a member like any: its `Peers` hands it the same messages by a direct call, so that a promise fences it as it
//! does others; [`Peers::near`] names it, and reads ask it first.
//!
//! Nothing waits without a bound: commands that wait for too long fail with [`Failed::Stalled`] after the volume's limit.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use keelblock_hugepages::Buffer;

use super::flush::Token;
use super::members::Place;
use super::message::{Action, Event, Failed, Message, Wish};
use super::reading::Pinned;
use super::resync::progress::Report;
use super::resync::repair::{self, Repairs};
use super::resync::{self, Resyncs};
use super::ring::Limits;
use super::set::{NotNow, Request, VolumeRecord};
use super::state::{Config, Machine, ReplicaStatus, Standing};
use crate::cipher::Cipher;
use crate::reactor::{Handle, Nanos, Notify};
use crate::replication::held::Held;
use crate::replication::seam::{Entry, Id};
use crate::replication::session::Burden;
use crate::replication::wire::record::flag;
use crate::replication::wire::resync::{self as wire, AskLeaf, AskSummaries, Tree};
use crate::store::map::LeafShape;
use crate::store::types::{BLOCK_BYTES, Stamp};

/// Why a replica did not give blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRead {
    /// They are damaged there.
    #[error("the blocks are damaged on this replica")]
    Damaged,
    /// It did not answer, or refused.
    #[error("the replica did not answer")]
    Away,
}

/// Why a copy was not done, or is not known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCopied {
    /// There is no space.
    #[error("the replica has no space")]
    Full,
    /// A drive of it failed.
    #[error("a drive of the replica failed")]
    Failed,
    /// It did not answer, or refused.
    #[error("the replica did not answer")]
    Away,
}

impl From<wire::NotCopied> for NotCopied {
    fn from(not: wire::NotCopied) -> Self {
        match not {
            wire::NotCopied::Full => Self::Full,
            wire::NotCopied::Failed => Self::Failed,
        }
    }
}

/// A record that is copied, without its data in it.
#[derive(Debug)]
pub struct Copying {
    /// What it does.
    pub record: Held,
    /// Its data, if it has some.
    pub data: Option<(Rc<Buffer>, Range<usize>)>,
    /// What is there is replaced if it is at or below this (of the coordinator's epoch); `None`: only if it is this very record's, damaged.
    pub s0: Option<Stamp>,
}

impl Copying {
    /// Bytes of data.
    pub fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |(_, part)| part.len())
    }

    /// Its position and flags on the wire.
    pub(super) fn place(&self) -> (u64, u8) {
        match self.s0 {
            Some(s0) => (s0.seq, 0),
            None => (0, flag::REPAIR),
        }
    }
}

/// The way to replicas.
#[allow(async_fn_in_trait, reason = "a reactor has one thread")]
pub trait Peers: 'static {
    /// Says something to a replica, in order; it is lost with the session.
    fn send(&self, to: Place, replica: Id, message: Message);

    /// What of records the session to it takes now.
    fn credit(&self, to: Place) -> Limits;

    /// Ends the session to it: it broke the protocol. `Lost` follows.
    fn cut(&self, to: Place);

    /// There is another replica, at this place: from now on it may be reached.
    fn added(&self, at: Place, replica: Id);

    /// Nothing is said any more to the replica at this place.
    fn gone(&self, at: Place);

    /// The replica that is cheapest to ask: the one on this node.
    fn near(&self) -> Option<Place>;

    /// How the node of a replica is, as far as is known.
    fn burden(&self, of: Place) -> Burden;

    /// Reads blocks into the beginning of a buffer, with their entries in order. The answer is of this epoch; it comes within a bound.
    async fn read(
        &self,
        from: Place,
        tree: Tree,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, NotRead>);

    /// What a replica's lane is compared by. `Damaged`: its drive failed, or a page of its map is damaged.
    async fn summaries(&self, from: Place, ask: AskSummaries) -> Result<Vec<u32>, NotRead>;

    /// Entries of a leaf from its first block on, as far as there are some.
    async fn leaf(&self, from: Place, ask: AskLeaf) -> Result<Vec<Entry>, NotRead>;

    /// Copies at most 1 MiB to a replica, within its credits. Done when it is written there, or was left alone as something newer is.
    async fn copy(&self, to: Place, copies: &[Copying]) -> Result<(), NotCopied>;

    /// Bytes of frames to and from a replica for comparing and copying, since it has a way.
    fn moved(&self, with: Place) -> u64;
}

/// The way to the KVDB.
pub trait SetStore: 'static {
    /// Sends a change; [`Event::Outcome`] follows, or nothing.
    fn submit(&self, request: Request);
}

impl SetStore for Box<dyn Fn(Request)> {
    fn submit(&self, request: Request) {
        self(request);
    }
}

/// A command that waits.
#[derive(Debug, Default)]
struct Waiting {
    done: Option<Result<(), Failed>>,
    waker: Option<Waker>,
}

pub(super) struct Inner<P, K> {
    pub(super) handle: Handle,
    pub(super) machine: RefCell<Machine>,
    limit: std::time::Duration,
    /// So far replicas are compared; grows.
    pub(super) lane_blocks: Cell<u64>,
    pub(super) lanes: u8,
    pub(super) cipher: Option<Rc<dyn Cipher>>,
    /// Blocks that were read and did not match their tags.
    pub(super) not_opened: Cell<u64>,
    pub(super) resyncs: Resyncs,
    pub(super) repairs: Repairs,
    pub(super) peers: P,
    kvdb: K,
    /// Actions in order; whoever began to do them does all, also those that come meanwhile.
    actions: RefCell<VecDeque<Action>>,
    acting: Cell<bool>,
    /// Wakes the pump.
    pub(super) work: Notify,
    /// Wakes reads, and whoever waits for a standing.
    changed: Notify,
    /// Wakes whoever tells others: its standing or its set is another, or a resync begins or ends.
    pub(super) stands: Notify,
    waiting: RefCell<BTreeMap<Token, Waiting>>,
    next: Cell<Token>,
    pub(super) ended: Cell<bool>,
    this: Weak<Self>,
}

/// A coordinator at work; cheap to clone.
pub struct Driver<P: Peers, K: SetStore>(pub(super) Rc<Inner<P, K>>);

impl<P: Peers, K: SetStore> Clone for Driver<P, K> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Peers, K: SetStore> std::fmt::Debug for Driver<P, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let standing = self.standing();
        f.debug_struct("Driver")
            .field("standing", &standing)
            .finish_non_exhaustive()
    }
}

impl<P: Peers, K: SetStore> Driver<P, K> {
    /// Begins a takeover with the record that K1 made. Sessions to its replicas are told as [`Event::Connected`] when they are there.
    pub fn start(handle: &Handle, config: Config, record: VolumeRecord, peers: P, kvdb: K) -> Self {
        let limit = config.command_limit;
        let (lane_blocks, foreground) = (config.lane_blocks, config.foreground);
        let (lanes, cipher) = (config.lanes, config.cipher.clone());
        let driver = Self(Rc::new_cyclic(|this| Inner {
            handle: handle.clone(),
            machine: RefCell::new(Machine::new(config, record, handle.now())),
            limit,
            lane_blocks: Cell::new(lane_blocks),
            lanes,
            cipher,
            not_opened: Cell::new(0),
            resyncs: Resyncs::new(foreground),
            repairs: Repairs::default(),
            peers,
            kvdb,
            actions: RefCell::default(),
            acting: Cell::new(false),
            work: Notify::new(),
            changed: Notify::new(),
            stands: Notify::new(),
            waiting: RefCell::default(),
            next: Cell::new(0),
            ended: Cell::new(false),
            this: this.clone(),
        }));
        let inner = Rc::clone(&driver.0);
        handle.spawn("coordinator", async move { inner.pump().await });
        handle.spawn("coordinator: resync", resync::run(Rc::clone(&driver.0)));
        driver
    }

    /// Where it is.
    pub fn standing(&self) -> Standing {
        self.0.machine.borrow().standing()
    }

    /// Its epoch.
    pub fn epoch(&self) -> u32 {
        self.0.machine.borrow().epoch()
    }

    /// The place of a replica.
    pub fn place(&self, id: &Id) -> Option<Place> {
        self.0.machine.borrow().place(id)
    }

    /// What its records take.
    pub fn kept(&self) -> Limits {
        self.0.machine.borrow().ring().kept()
    }

    /// Up to where a lane is settled.
    pub fn settled(&self, lane: u8) -> Stamp {
        self.0.machine.borrow().settled().of(lane)
    }

    /// Lanes have so many blocks from now on, and not fewer than before. Before anything is written to those that are new: what a pass that runs does not compare
    /// is then above its s0.
    pub fn grow(&self, lane_blocks: u64) {
        let before = self.0.lane_blocks.get();
        self.0.lane_blocks.set(before.max(lane_blocks));
    }

    /// How far the resync of a replica is; `None`: there is none now.
    pub fn resync(&self) -> Option<Report> {
        self.0.resyncs.progress.report()
    }

    /// Blocks that were read and are not what was encrypted, so far.
    pub fn not_opened(&self) -> u64 {
        self.0.not_opened.get()
    }

    /// The ways that it was given.
    pub fn peers(&self) -> &P {
        &self.0.peers
    }

    /// Something happened: a replica said something, a change has an outcome, somebody wants another set.
    pub fn event(&self, event: Event) {
        self.0.event(event);
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// [`Failed::Ended`]; [`Failed::Stalled`] after the volume's limit.
    pub async fn serving(&self) -> Result<(), Failed> {
        let until = self.0.handle.now() + self.0.limit;
        loop {
            match self.standing() {
                Standing::Serving | Standing::InDoubt | Standing::Stalled => return Ok(()),
                Standing::Ended(_) => return Err(Failed::Ended),
                _ => self.0.wait(until).await?,
            }
        }
    }

    /// Whether a change of the set can be begun with now.
    ///
    /// # Errors
    /// [`NotNow`].
    pub fn may(&self, wish: &Wish) -> Result<(), NotNow> {
        self.0.machine.borrow().may(wish)
    }

    /// Begins with a change of the set. What comes of it is seen in the record: it may be given up, and be asked for again.
    ///
    /// # Errors
    /// [`NotNow`]: it is not begun with.
    pub fn change(&self, wish: Wish) -> Result<(), NotNow> {
        self.may(&wish)?;
        self.0.event(Event::Change(wish));
        Ok(())
    }

    /// What `work` gives, within the time that the volume's commands may take.
    ///
    /// # Errors
    /// [`Failed::Stalled`].
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Failed> {
        let inner = &self.0;
        let done = inner.handle.timeout(inner.limit, work).await;
        done.map_err(|_| Failed::Stalled)
    }

    /// The record as it is known.
    pub fn record(&self) -> VolumeRecord {
        self.0.machine.borrow().record().clone()
    }

    /// Waits until its standing or its set may be another, or a resync begins or ends.
    pub async fn stands(&self) {
        self.0.stands.notified().await;
    }

    /// What is known of each replica, in the record's order.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.0.machine.borrow().replicas()
    }

    /// Makes all that was acknowledged before stable.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn flush(&self) -> Result<(), Failed> {
        let command = self.0.command();
        self.0.event(Event::Flush(command.token));
        command.done().await
    }

    /// Ends, as soon as what is stamped has settled or a moment has passed; leases are given back.
    pub async fn detach(&self) {
        self.0.event(Event::Detach);
        while !self.0.ended.get() {
            self.0.changed.notified().await;
        }
    }

    /// Reads blocks into the beginning of a buffer.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn read(
        &self,
        lane: u8,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<(), Failed>) {
        let until = self.0.handle.now() + self.0.limit;
        let reading = loop {
            let reading = self.0.machine.borrow_mut().begin_read(lane, blocks.clone());
            if let Some(reading) = reading {
                break reading;
            }
            if self.0.ended.get() {
                return (into, Err(Failed::Ended));
            }
            if let Err(failed) = self.0.wait(until).await {
                return (into, Err(failed));
            }
        };
        // A heartbeat may have to be sent for it.
        self.0.work.notify();
        let needs_replica = reading.needs_replica;
        let pinned = Pinned {
            inner: &self.0,
            reading: Some(reading),
        };
        pinned.go(lane, blocks, into, needs_replica, until).await
    }
}

impl<P: Peers, K: SetStore> Inner<P, K> {
    /// Of its replicas' leaves.
    pub(super) fn shape(&self) -> LeafShape {
        LeafShape::of(self.cipher.is_some())
    }

    /// Bytes of the volume.
    pub(super) fn total_bytes(&self) -> u64 {
        let lanes = self.machine.borrow().ring().lanes().count() as u64;
        lanes * self.lane_blocks.get() * BLOCK_BYTES as u64
    }

    pub(super) fn event(&self, event: Event) {
        let now = self.handle.now();
        let actions = self.machine.borrow_mut().apply(event, now);
        self.act(actions);
        self.work.notify();
        self.changed.notify_all();
    }

    /// Once per pass in which something happened, and at the deadline.
    async fn pump(self: Rc<Self>) {
        while !self.ended.get() {
            let now = self.handle.now();
            let credit = |place| self.peers.credit(place);
            let actions = self.machine.borrow_mut().pump(now, &credit);
            if !actions.is_empty() {
                self.act(actions);
                self.changed.notify_all();
            }
            let deadline = self.machine.borrow().deadline(now);
            match deadline {
                None => self.work.notified().await,
                Some(at) => {
                    let left = at.since(now);
                    // Whichever comes first.
                    let _ = self.handle.timeout(left, self.work.notified()).await;
                }
            }
        }
    }

    pub(super) fn act(&self, actions: Vec<Action>) {
        self.actions.borrow_mut().extend(actions);
        if self.acting.replace(true) {
            return;
        }
        loop {
            let next = self.actions.borrow_mut().pop_front();
            let Some(action) = next else { break };
            self.act_one(action);
        }
        self.acting.set(false);
    }

    fn act_one(&self, action: Action) {
        if matches!(
            action,
            Action::Ended(_) | Action::Serving | Action::Stalled(_) | Action::SetChanged
        ) {
            self.stands.notify_all();
        }
        match action {
            Action::Send(place, message) => {
                let replica = self.machine.borrow().replica(place);
                if let Some(replica) = replica {
                    self.peers.send(place, replica, message);
                }
            }
            Action::Submit(request) => self.kvdb.submit(request),
            Action::Done(token, result) => {
                // Who does not wait any more is told nothing.
                if let Some(waiting) = self.waiting.borrow_mut().get_mut(&token) {
                    waiting.done = Some(result);
                    if let Some(waker) = waiting.waker.take() {
                        waker.wake();
                    }
                }
            }
            Action::Cut(place) => self.peers.cut(place),
            Action::Added(place) => {
                let replica = self.machine.borrow().replica(place);
                if let Some(replica) = replica {
                    self.peers.added(place, replica);
                }
            }
            Action::Gone(place) => self.peers.gone(place),
            Action::Ended(end) => {
                tracing::info!(?end, "a coordinator has ended");
                self.ended.set(true);
            }
            Action::Serving => tracing::info!("a volume is served"),
            Action::Stalled(true) => tracing::warn!("too few replicas are reachable: writes wait"),
            Action::Stalled(false) => tracing::info!("enough replicas are reachable again"),
            Action::SetChanged => {
                let machine = self.machine.borrow();
                tracing::info!(sets = ?machine.sets(), "the in-sync set has changed");
            }
            Action::Repair(place, lane, block) => {
                if let Some(this) = self.this.upgrade() {
                    repair::damaged(&this, place, lane, block..block + 1);
                }
            }
            Action::NotMet(Wish::Join(_)) => self.resyncs.not_met.set(true),
            Action::NotMet(wish) => tracing::info!(?wish, "a change of the set was not made"),
        }
    }

    /// Waits for a change, until then.
    pub(super) async fn wait(&self, until: Nanos) -> Result<(), Failed> {
        let left = until.since(self.handle.now());
        if left.is_zero() {
            return Err(Failed::Stalled);
        }
        // That nothing changed is seen by whoever looks again.
        let _ = self.handle.timeout(left, self.changed.notified()).await;
        Ok(())
    }

    pub(super) fn command(&self) -> Command<'_> {
        let token = self.next.get() + 1;
        self.next.set(token);
        let mut waiting = self.waiting.borrow_mut();
        waiting.insert(token, Waiting::default());
        drop(waiting);
        Command {
            token,
            waiting: &self.waiting,
        }
    }
}

/// A command that somebody waits for; dropped, nobody does.
pub(super) struct Command<'a> {
    pub(super) token: Token,
    waiting: &'a RefCell<BTreeMap<Token, Waiting>>,
}

impl Command<'_> {
    pub(super) async fn done(&self) -> Result<(), Failed> {
        poll_fn(|cx| {
            let mut all = self.waiting.borrow_mut();
            let waiting = all.get_mut(&self.token).expect("until this is dropped");
            match waiting.done {
                Some(done) => Poll::Ready(done),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.token);
    }
}
