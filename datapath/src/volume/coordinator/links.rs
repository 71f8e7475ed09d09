//! The way to replicas over sessions: messages out as frames, frames in as events (`docs/replication.md` §§4 and 5).
//!
//! Each replica has a [`Way`]: the trunk to its node, and the channel of the session that is up. A channel that ended without its session (it was refused, or
//! both sides closed it) is opened again after a moment. What a session does not take at once waits in order, and until it has gone out the replica
//! has no credit.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::driver::{NotRead, Peers};
use super::frames::{Ends, Frame, frame, said};
use super::members::Place;
use super::message::{Event, Message, Said};
use super::ring::Limits;
use crate::reactor::Handle;
use crate::replication::seam::{Entry, Id, Kind};
use crate::replication::session::{
    self, Admitted, Amount, Broken, Channel, Down, Ended, Handler, NotSent, Rider, Trunk,
};
use crate::replication::wire::frame::Kind as FrameKind;
use crate::replication::wire::read::{Read, ReadDone, ReadResult};
use crate::store::types::{BLOCK_BYTES, Crc, LaneBlock};

/// How long a replica may take to answer a read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Before a channel is opened again whose session is still up.
const AGAIN: Duration = Duration::from_millis(50);

/// What became of a read.
type Answer = Result<(Vec<Entry>, Option<Buffer>), NotRead>;

#[derive(Default)]
struct Asked {
    answer: Option<Answer>,
    waker: Option<Waker>,
}

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
    reads: RefCell<BTreeMap<u64, Asked>>,
    next: Cell<u64>,
    stopped: Cell<bool>,
    this: Weak<Way>,
}

/// The ways to all replicas of a volume in an epoch.
pub struct Links {
    ways: Vec<Rc<Way>>,
    near: Option<Place>,
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
        let mut near = None;
        let way = |(n, route): (usize, Route)| {
            let place = Place::new(n)?;
            if route.near {
                near = Some(place);
            }
            let ends = Ends {
                volume,
                replica: route.replica,
                incarnation,
                lanes,
            };
            Some(Rc::new_cyclic(|this| Way {
                handle: handle.clone(),
                ends,
                epoch,
                place,
                trunk: route.trunk,
                tell: tell.clone(),
                channel: RefCell::default(),
                refused: Cell::new(false),
                generation: Cell::new(0),
                unsent: RefCell::default(),
                draining: Cell::new(false),
                reads: RefCell::default(),
                next: Cell::new(0),
                stopped: Cell::new(false),
                this: this.clone(),
            }))
        };
        let ways = routes.into_iter().enumerate().filter_map(way).collect();
        Self { ways, near }
    }

    /// Begins to speak to all of them.
    pub fn connect(&self) {
        for way in &self.ways {
            let rider: Rc<dyn Rider> = way.clone();
            way.trunk.ride(&rider);
        }
    }

    /// Says nothing any more.
    pub fn stop(&self) {
        for way in &self.ways {
            way.stopped.set(true);
            way.unsent.borrow_mut().clear();
            if let Some(channel) = way.channel.take() {
                channel.close(way.epoch);
            }
        }
    }

    fn way(&self, place: Place) -> Option<&Rc<Way>> {
        self.ways.get(place.index())
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

    fn near(&self) -> Option<Place> {
        self.near
    }

    async fn read(
        &self,
        from: Place,
        lane: u8,
        blocks: Range<u64>,
        mut into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, NotRead>) {
        let Some(way) = self.way(from) else {
            return (into, Err(NotRead::Away));
        };
        match way.read(lane, blocks).await {
            Ok((entries, data)) => {
                let placed = place(&entries, data.as_deref().unwrap_or(&[]), &mut into);
                (into, placed.map(|()| entries))
            }
            Err(why) => (into, Err(why)),
        }
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
    fn open(&self) {
        if self.stopped.get() || self.channel.borrow().is_some() {
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
        match frame(&self.ends, message, self.handle.now().0) {
            Some(frame) => self.send(&channel, frame),
            None => tracing::error!(?message, "this has no frame on the wire, and is not said"),
        }
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

    async fn read(&self, lane: u8, blocks: Range<u64>) -> Answer {
        let channel = self.channel.borrow().clone();
        let channel = channel.ok_or(NotRead::Away)?;
        let request = self.next.get() + 1;
        self.next.set(request);
        let read = Read {
            request,
            lane,
            first: LaneBlock(blocks.start),
            blocks: (blocks.end - blocks.start) as u32,
        };
        let mut body = Vec::new();
        read.put(&mut body);
        self.reads.borrow_mut().insert(request, Asked::default());
        let frame = Frame {
            kind: FrameKind::Read,
            body,
            data: Vec::new(),
        };
        self.send(&channel, frame);
        let answered = poll_fn(|cx| {
            let mut reads = self.reads.borrow_mut();
            let Some(asked) = reads.get_mut(&request) else {
                return Poll::Ready(Err(NotRead::Away));
            };
            match asked.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    asked.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        let answer = self.handle.timeout(READ_LIMIT, answered).await;
        self.reads.borrow_mut().remove(&request);
        answer.unwrap_or(Err(NotRead::Away))
    }

    fn answered(&self, request: u64, answer: Answer) {
        let mut reads = self.reads.borrow_mut();
        // Nobody may wait for it any more.
        if let Some(asked) = reads.get_mut(&request) {
            asked.answer = Some(answer);
            if let Some(waker) = asked.waker.take() {
                waker.wake();
            }
        }
    }

    fn read_done(&self, body: &[u8], data: &mut Vec<Buffer>, bytes: usize) -> Result<(), Broken> {
        let done = ReadDone::decode(body, bytes)?;
        let answer = match done.result {
            ReadResult::Done(entries) => {
                Ok((entries.iter().map(|e| e.entry).collect(), data.pop()))
            }
            ReadResult::Damaged(_) => Err(NotRead::Damaged),
            ReadResult::Failed => Err(NotRead::Away),
        };
        self.answered(done.request, answer);
        Ok(())
    }

    fn ended(&self, generation: u64) {
        if generation != self.generation.get() {
            return;
        }
        self.channel.replace(None);
        self.unsent.borrow_mut().clear();
        let asked: Vec<u64> = self.reads.borrow().keys().copied().collect();
        for request in asked {
            self.answered(request, Err(NotRead::Away));
        }
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
