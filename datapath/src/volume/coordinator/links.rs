//! The way to replicas over sessions: messages out as frames, frames in as events (`docs/replication.md` §§4 and 5).
//!
//! Each replica has a [`Way`]: the trunk to its node, and the channel of the session that is up. A channel that ended without its session (it was refused, or
//! both sides closed it) is opened again after a moment. What a session does not take at once waits in order, and until it has gone out the replica
//! has no credit.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::asking::Asking;
use super::comparing::{Comparing, bare, copy_frame};
use super::driver::{Copying, NotCopied, NotRead, Peers};
use super::frames::{Ends, Frame, frame, said};
use super::members::Place;
use super::message::{Event, Message, Said};
use super::ring::Limits;
use crate::reactor::Handle;
use crate::replication::seam::{Entry, Id, Kind};
use crate::replication::session::{
    self, Admitted, Amount, Broken, Burden, Channel, Down, Ended, Handler, NotSent, Rider, Trunk,
};
use crate::replication::wire::frame::Kind as FrameKind;
use crate::replication::wire::read::{self as wire, ReadDone, ReadResult};
use crate::replication::wire::resync::{AskLeaf, AskSummaries, Tree};
use crate::store::types::{BLOCK_BYTES, Crc, LaneBlock};

/// How long a replica may take to answer a read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to look at its map.
const SUMMARIES_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to copy, its credits included.
const COPY_LIMIT: Duration = Duration::from_secs(10);
/// A copy leaves so much credit to the stream.
const LEFT_RECORDS: u64 = 1024;
const LEFT_BYTES: u64 = 4 << 20;
/// While there is no credit, it is looked at again after this.
const CREDIT_AFTER: Duration = Duration::from_millis(1);
/// Before a channel is opened again whose session is still up.
const AGAIN: Duration = Duration::from_millis(50);

/// Blocks that were read.
type Read = (Vec<Entry>, Option<Buffer>);

/// The way to one replica.
struct Way {
    handle: Handle,
    ends: Ends,
    epoch: u32,
    place: Place,
    trunk: Rc<Trunk>,
    tell: Rc<dyn Fn(Event)>,
    channel: RefCell<Option<Channel>>,
    /// The channel was refused: it ends by itself, and its session has done nothing wrong.
    refused: Cell<bool>,
    /// Rises with each channel: what an old one says is not the new one's.
    generation: Cell<u64>,
    unsent: RefCell<VecDeque<Frame>>,
    draining: Cell<bool>,
    reads: Asking<u64, Read>,
    comparing: Comparing,
    next: Cell<u64>,
    stopped: Cell<bool>,
    this: Weak<Way>,
}

/// The ways to all replicas of a volume in an epoch. Replicas come and go meanwhile.
pub struct Links {
    handle: Handle,
    of: (Id, Id, u32, u8),
    tell: Rc<dyn Fn(Event)>,
    /// By place.
    ways: RefCell<BTreeMap<Place, Rc<Way>>>,
    near: Cell<Option<Place>>,
    /// To a replica that is to be added.
    offered: RefCell<Option<Route>>,
}

/// A replica, and how its node is reached.
pub struct Route {
    /// Its id.
    pub replica: Id,
    /// The trunk to its node.
    pub trunk: Rc<Trunk>,
    /// It is on this node.
    pub near: bool,
}

impl Links {
    /// Ways to the replicas of a record, in its order. `tell` is told what happens; nothing does before [`Links::connect`].
    pub fn new(
        handle: &Handle,
        (volume, incarnation, epoch, lanes): (Id, Id, u32, u8),
        routes: impl IntoIterator<Item = Route>,
        tell: Rc<dyn Fn(Event)>,
    ) -> Self {
        let links = Self {
            handle: handle.clone(),
            of: (volume, incarnation, epoch, lanes),
            tell,
            ways: RefCell::default(),
            near: Cell::new(None),
            offered: RefCell::default(),
        };
        for (n, route) in routes.into_iter().enumerate() {
            if let Some(place) = Place::new(n) {
                links.add(place, route);
            }
        }
        links
    }

    fn add(&self, place: Place, route: Route) -> Rc<Way> {
        let (volume, incarnation, epoch, lanes) = self.of;
        if route.near {
            self.near.set(Some(place));
        }
        let ends = Ends {
            volume,
            replica: route.replica,
            incarnation,
            lanes,
        };
        let way = Rc::new_cyclic(|this| Way {
            handle: self.handle.clone(),
            ends,
            epoch,
            place,
            trunk: route.trunk,
            tell: self.tell.clone(),
            channel: RefCell::default(),
            refused: Cell::new(false),
            generation: Cell::new(0),
            unsent: RefCell::default(),
            draining: Cell::new(false),
            reads: Asking::default(),
            comparing: Comparing::default(),
            next: Cell::new(0),
            stopped: Cell::new(false),
            this: this.clone(),
        });
        self.ways.borrow_mut().insert(place, way.clone());
        way
    }

    /// How a replica is reached that the coordinator is about to add.
    pub fn offer(&self, route: Route) {
        self.offered.replace(Some(route));
    }

    /// Begins to speak to all of them.
    pub fn connect(&self) {
        let ways: Vec<_> = self.ways.borrow().values().cloned().collect();
        for way in ways {
            way.begin();
        }
    }

    /// Says nothing any more.
    pub fn stop(&self) {
        let ways: Vec<_> = self.ways.borrow().values().cloned().collect();
        for way in ways {
            way.stop();
        }
    }

    fn way(&self, place: Place) -> Option<Rc<Way>> {
        self.ways.borrow().get(&place).cloned()
    }
}

impl Peers for Links {
    fn send(&self, to: Place, _: Id, message: Message) {
        if let Some(way) = self.way(to) {
            way.say(&message);
        }
    }

    fn credit(&self, to: Place) -> Limits {
        let way = self.way(to).filter(|w| w.unsent.borrow().is_empty());
        let left = way.and_then(|w| w.channel.borrow().as_ref().map(|c| c.credit().left()));
        let left = left.unwrap_or_default();
        Limits {
            records: left.records.try_into().unwrap_or(usize::MAX),
            bytes: left.bytes,
        }
    }

    fn cut(&self, to: Place) {
        let way = self.way(to).filter(|w| !w.refused.get());
        let channel = way.and_then(|w| w.channel.borrow().clone());
        if let Some(channel) = channel {
            channel.end_session(Down::Stopped);
        }
    }

    fn added(&self, at: Place, replica: Id) {
        let offered = self.offered.borrow_mut().take_if(|r| r.replica == replica);
        match offered {
            // Whoever is told of it is busy with this very change.
            Some(route) => {
                let way = self.add(at, route);
                self.handle
                    .spawn("replication: a new replica", async move { way.begin() });
            }
            None => tracing::error!(?at, "how a new replica is reached is not known"),
        }
    }

    fn gone(&self, at: Place) {
        if self.near.get() == Some(at) {
            self.near.set(None);
        }
        if let Some(way) = self.ways.borrow_mut().remove(&at) {
            self.handle
                .spawn("replication: a replica goes", async move { way.stop() });
        }
    }

    fn near(&self) -> Option<Place> {
        self.near.get()
    }

    fn burden(&self, of: Place) -> Burden {
        self.way(of).map(|w| w.trunk.burden()).unwrap_or_default()
    }

    async fn read(
        &self,
        from: Place,
        tree: Tree,
        blocks: Range<u64>,
        mut into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, NotRead>) {
        let Some(way) = self.way(from) else {
            return (into, Err(NotRead::Away));
        };
        match way.read(tree, blocks).await {
            Ok((entries, data)) => {
                let placed = place(&entries, data.as_deref().unwrap_or(&[]), &mut into);
                (into, placed.map(|()| entries))
            }
            Err(why) => (into, Err(why)),
        }
    }

    async fn summaries(&self, from: Place, ask: AskSummaries) -> Result<Vec<u32>, NotRead> {
        let way = self.way(from).ok_or(NotRead::Away)?;
        let frame = bare(FrameKind::AskSummaries, |body| ask.put(body));
        way.comparing.counted(&frame);
        let asking = (&way.comparing.summaries, ask);
        way.ask(asking, frame, SUMMARIES_LIMIT).await
    }

    async fn leaf(&self, from: Place, ask: AskLeaf) -> Result<Vec<Entry>, NotRead> {
        let way = self.way(from).ok_or(NotRead::Away)?;
        let frame = bare(FrameKind::AskLeaf, |body| ask.put(body));
        way.comparing.counted(&frame);
        way.ask((&way.comparing.leaves, ask), frame, READ_LIMIT)
            .await
    }

    async fn copy(&self, to: Place, copies: &[Copying]) -> Result<(), NotCopied> {
        let way = self.way(to).ok_or(NotCopied::Away)?;
        way.copy(copies).await
    }

    fn moved(&self, with: Place) -> u64 {
        self.way(with).map_or(0, |w| w.comparing.moved())
    }
}

/// Puts blocks where they belong, and zeroes where there are none.
fn place(entries: &[Entry], data: &[u8], into: &mut Buffer) -> Result<(), NotRead> {
    let mut data = data.chunks_exact(BLOCK_BYTES);
    for (entry, block) in entries.iter().zip(into.chunks_exact_mut(BLOCK_BYTES)) {
        match entry.kind {
            Kind::Data => {
                let bytes = data.next().ok_or(NotRead::Away)?;
                if Crc::of(bytes) != entry.crc {
                    return Err(NotRead::Damaged);
                }
                block.copy_from_slice(bytes);
            }
            _ => block.fill(0),
        }
    }
    Ok(())
}

impl Rider for Way {
    fn up(&self) {
        self.open();
    }
}

impl Way {
    fn begin(self: &Rc<Self>) {
        let rider: Rc<dyn Rider> = self.clone();
        self.trunk.ride(&rider);
    }

    fn stop(&self) {
        self.stopped.set(true);
        self.unsent.borrow_mut().clear();
        if let Some(channel) = self.channel.take() {
            channel.close(self.epoch);
        }
    }

    fn open(&self) {
        // One that had not begun is told nothing when its session ends.
        let lives = |c: &Channel| !c.has_ended();
        if self.stopped.get() || self.channel.borrow().as_ref().is_some_and(lives) {
            return;
        }
        let Some(way) = self.this.upgrade() else {
            return;
        };
        let generation = self.generation.get() + 1;
        let ear = Rc::new(Ear { way, generation });
        let Some(channel) = self.trunk.open_channel(ear) else {
            return;
        };
        self.generation.set(generation);
        self.refused.set(false);
        self.channel.replace(Some(channel));
        (self.tell)(Event::Connected(self.place));
    }

    fn say(&self, message: &Message) {
        let channel = self.channel.borrow().clone();
        let Some(channel) = channel else {
            return;
        };
        if matches!(message, Message::Close) {
            return channel.close(self.epoch);
        }
        if let Message::Batch { records, .. } = message {
            let bytes = records.iter().map(|r| {
                r.held.record(r.position, r.flags).data_blocks() as u64 * BLOCK_BYTES as u64
            });
            let amount = Amount::new(records.len() as u64, bytes.sum());
            if !channel.credit().take(amount) {
                // It was looked at in this pass; to send more than is granted would break the session as well.
                tracing::error!("a batch of more than was granted");
                return channel.end_session(Down::Stopped);
            }
        }
        let frame = frame(&self.ends, message, self.handle.now().0);
        self.send(&channel, frame);
    }

    fn send(&self, channel: &Channel, frame: Frame) {
        let waits = !self.unsent.borrow().is_empty();
        let unsent = match waits {
            true => Some(frame),
            false => try_send(channel, self.epoch, frame),
        };
        let Some(frame) = unsent else { return };
        self.unsent.borrow_mut().push_back(frame);
        if !self.draining.replace(true)
            && let Some(way) = self.this.upgrade()
        {
            self.handle
                .spawn("replication: unsent", async move { way.drain().await });
        }
    }

    async fn drain(&self) {
        loop {
            let generation = self.generation.get();
            let channel = self.channel.borrow().clone();
            let Some(channel) = channel else { break };
            channel.room().await;
            if generation != self.generation.get() {
                // What waits now was said on another channel.
                continue;
            }
            let next = self.unsent.borrow_mut().pop_front();
            let Some(frame) = next else { break };
            if let Some(frame) = try_send(&channel, self.epoch, frame) {
                self.unsent.borrow_mut().push_front(frame);
            }
        }
        self.draining.set(false);
        // While something waited there was no credit: there is some now, and nobody else says so.
        (self.tell)(Event::Tick);
    }

    /// Sends a question, and waits for its answer.
    async fn ask<K: PartialEq, A>(
        &self,
        (asking, key): (&Asking<K, A>, K),
        frame: Frame,
        limit: Duration,
    ) -> Result<A, NotRead> {
        let channel = self.channel.borrow().clone();
        // A channel may have ended and another one be there since it was decided whom to ask.
        let begun = channel.filter(Channel::has_begun);
        let channel = begun.ok_or(NotRead::Away)?;
        let asked = asking.begin(key);
        self.send(&channel, frame);
        asked.answered(&self.handle, limit).await
    }

    async fn copy(&self, copies: &[Copying]) -> Result<(), NotCopied> {
        let bytes: u64 = copies.iter().map(|c| c.bytes() as u64).sum();
        let amount = Amount::new(copies.len() as u64, bytes);
        let generation = self.generation.get();
        let until = self.handle.now() + COPY_LIMIT;
        loop {
            let channel = self.channel.borrow().clone();
            let there = channel.filter(|_| generation == self.generation.get());
            let channel = there.ok_or(NotCopied::Away)?;
            let left = channel.credit().left();
            // What waits to be sent is older than this.
            let enough = self.unsent.borrow().is_empty()
                && left.records >= amount.records + LEFT_RECORDS
                && left.bytes >= amount.bytes + LEFT_BYTES;
            if enough && channel.credit().take(amount) {
                break;
            }
            if self.handle.now() >= until {
                return Err(NotCopied::Away);
            }
            self.handle.sleep(CREDIT_AFTER).await;
        }
        let request = self.number();
        let frame = copy_frame(request, copies);
        self.comparing.counted(&frame);
        let asking = (&self.comparing.copies, request);
        match self.ask(asking, frame, COPY_LIMIT).await {
            Ok(result) => result.map_err(NotCopied::from),
            Err(_) => Err(NotCopied::Away),
        }
    }

    fn number(&self) -> u64 {
        let request = self.next.get() + 1;
        self.next.set(request);
        request
    }

    async fn read(&self, tree: Tree, blocks: Range<u64>) -> Result<Read, NotRead> {
        let request = self.number();
        let read = wire::Read {
            request,
            tree,
            first: LaneBlock(blocks.start),
            blocks: (blocks.end - blocks.start) as u32,
        };
        let frame = bare(FrameKind::Read, |body| read.put(body));
        self.ask((&self.reads, request), frame, READ_LIMIT).await
    }

    fn read_done(&self, body: &[u8], data: &mut Vec<Buffer>, bytes: usize) -> Result<(), Broken> {
        let done = ReadDone::decode(body, bytes)?;
        let answer = match done.result {
            ReadResult::Done(entries) => Ok((entries.iter().collect(), data.pop())),
            ReadResult::Damaged(_) => Err(NotRead::Damaged),
            ReadResult::Failed => Err(NotRead::Away),
        };
        self.reads.answer(&done.request, answer);
        Ok(())
    }

    fn ended(&self, generation: u64) {
        if generation != self.generation.get() {
            return;
        }
        self.channel.replace(None);
        self.unsent.borrow_mut().clear();
        self.reads.end();
        self.comparing.end();
        (self.tell)(Event::Lost(self.place));
        if !self.stopped.get()
            && let Some(way) = self.this.upgrade()
        {
            self.handle.spawn("replication: again", async move {
                way.handle.sleep(AGAIN).await;
                way.open();
            });
        }
    }
}

/// What was not taken is given back.
fn try_send(channel: &Channel, epoch: u32, frame: Frame) -> Option<Frame> {
    let body = |out: &mut Vec<u8>| out.extend_from_slice(&frame.body);
    match channel.send(frame.kind, epoch, body, frame.data.iter().cloned()) {
        Err(NotSent::Full) => Some(frame),
        // It is lost with the session.
        Ok(()) | Err(NotSent::Ended) => None,
    }
}

/// Hears what comes on one channel.
struct Ear {
    way: Rc<Way>,
    generation: u64,
}

impl Handler for Ear {
    fn frame(&self, frame: session::Frame<'_>, _: Admitted) -> Result<(), Broken> {
        let way = &self.way;
        if frame.kind == FrameKind::ReadDone {
            return way.read_done(frame.body, frame.data, frame.bytes);
        }
        if way.comparing.heard(frame.kind, frame.body)? {
            return Ok(());
        }
        let said = said(frame.kind, frame.body, frame.data, frame.bytes)?;
        if let Said::Ack { head, .. } = &said {
            let channel = way.channel.borrow().clone();
            if let Some(channel) = channel {
                channel
                    .credit()
                    .granted(Amount::new(head.records, head.bytes));
            }
        }
        way.refused.set(matches!(said, Said::Refused { .. }));
        (way.tell)(Event::Said(way.place, said));
        Ok(())
    }

    fn ended(&self, why: &Ended) {
        tracing::debug!(?why, "a channel to a replica ended");
        self.way.ended(self.generation);
    }
}
