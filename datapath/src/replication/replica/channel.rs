//! A channel that a coordinator opened, and what its frames begin.
//!
//! A channel is of one epoch and one process: those of the Open or Promise that began it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::events::{Ask, Event, Key, Refusal, Sender};
use super::serve::Question;
use super::service::{Inner, reason};
use super::{Breach, NotSent, Outgoing, QUESTIONS_MAX};
use crate::reactor::Notify;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::ReplicaStore;
use crate::replication::wire::batch::Batch;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Flush, Heard, Heartbeat};
use crate::replication::wire::list::{Fetch, ListAsk};
use crate::replication::wire::open::{Feed, Open, Target};
use crate::replication::wire::promise::{Promise, Purpose, Set};
use crate::replication::wire::read::Read;
use crate::replication::wire::record::Record;
use crate::replication::wire::resync::{AskLeaf, AskSummaries, Copy};
use crate::replication::wire::snapshots::Snapshots;
use crate::store::types::{BLOCK_BYTES, Stamp};

/// What a replica knows of a channel.
pub(super) struct Chan<O: Outgoing> {
    pub key: Key,
    pub out: O,
    pub sender: Sender,
    /// Its streams may begin anywhere.
    pub subscribed: Cell<bool>,
    /// Where its streams go on was said.
    pub fed: Cell<bool>,
    /// The peer closed it: it ends when what was admitted has completed.
    pub closing: Cell<bool>,
    /// Nothing comes by it and nothing is sent any more.
    pub ended: Cell<bool>,
    /// Records, copies, questions and flushes that have not completed.
    pub under_way: Cell<usize>,
    pub copies: Cell<usize>,
    /// Number of the last flush that is done.
    pub flushed: Cell<u64>,
    /// An Ack is due, whatever moved: for what it grants.
    pub ack_due: Cell<bool>,
    /// Blocks of the records that came by it and have completed.
    pub taken: Cell<u64>,
    /// The space that the last Ack granted.
    pub space_said: Cell<u64>,
    /// A task waits for room to send the next Ack.
    pub acks_wait: Cell<bool>,
    /// An answer that found no room; only the last one counts.
    pub heard: Cell<Option<Heard>>,
    pub questions: RefCell<VecDeque<Question<O::Admitted>>>,
    /// Tasks that answer them, and those that wait for one.
    pub answering: Cell<usize>,
    pub idle: Cell<usize>,
    /// What the Set says that is being kept.
    pub set: Cell<Option<(u64, Purpose)>>,
    pub asked: Notify,
}

impl<O: Outgoing> Chan<O> {
    pub fn new(key: Key, out: O, sender: Sender) -> Self {
        Self {
            key,
            out,
            sender,
            subscribed: Cell::new(false),
            fed: Cell::new(false),
            closing: Cell::new(false),
            ended: Cell::new(false),
            under_way: Cell::new(0),
            copies: Cell::new(0),
            flushed: Cell::new(0),
            ack_due: Cell::new(false),
            taken: Cell::new(0),
            space_said: Cell::new(0),
            acks_wait: Cell::new(false),
            heard: Cell::new(None),
            questions: RefCell::default(),
            answering: Cell::new(0),
            idle: Cell::new(0),
            set: Cell::new(None),
            asked: Notify::new(),
        }
    }

    pub fn wake(&self) {
        self.asked.notify_all();
    }

    /// Something of it is under way until what is returned is dropped.
    pub fn busy(self: &Rc<Self>) -> Busy<O> {
        self.under_way.set(self.under_way.get() + 1);
        Busy(self.clone())
    }

    /// Sends, when there is room; false if the channel has ended before.
    pub async fn send(&self, kind: Kind, body: &[u8], data: &[(Rc<Buffer>, Range<usize>)]) -> bool {
        loop {
            match self.out.send(kind, self.sender.epoch, body, data) {
                Ok(()) => return true,
                Err(NotSent::Ended) => return false,
                Err(NotSent::Full) => self.out.room().await,
            }
        }
    }
}

/// Something that a channel began.
pub(super) struct Busy<O: Outgoing>(pub Rc<Chan<O>>);

impl<O: Outgoing> Drop for Busy<O> {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// The other end of a channel's session gives its frames to this.
pub struct Channel<S: ReplicaStore, O: Outgoing> {
    inner: Rc<Inner<S, O>>,
    chan: Rc<Chan<O>>,
}

impl<S: ReplicaStore, O: Outgoing> std::fmt::Debug for Channel<S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("sender", &self.chan.sender)
            .field("ended", &self.chan.ended.get())
            .finish()
    }
}

/// Lengths of the buffers into which the data of a Batch or Copy are received: each record's blocks at the beginning of one of its own.
///
/// # Errors
/// It is no such body.
pub fn layout(kind: Kind, body: &[u8], data: usize, pieces: &mut Vec<usize>) -> Result<(), Breach> {
    let batch = match kind {
        Kind::Batch => Batch::decode(body, data)?,
        Kind::Copy => Copy::decode(body, data)?.batch,
        _ => {
            pieces.extend((data > 0).then_some(data));
            return Ok(());
        }
    };
    let blocks = batch.records().map(|r: Record<'_>| r.data_blocks());
    pieces.extend(blocks.filter(|n| *n > 0).map(|n| n * BLOCK_BYTES));
    Ok(())
}

impl<S: ReplicaStore, O: Outgoing> Channel<S, O> {
    pub(super) fn new(inner: Rc<Inner<S, O>>, chan: Rc<Chan<O>>) -> Self {
        Self { inner, chan }
    }

    /// Nothing comes any more: its session has ended, or it was closed. What was admitted runs on.
    pub fn ended(&self) {
        self.inner.gone(&self.chan);
    }

    /// A frame came, with so many bytes of data in pieces as [`layout`] says. `admitted` is kept until what it begins has completed.
    ///
    /// # Errors
    /// [`Breach`]: the session is to end.
    pub fn frame(
        &self,
        kind: Kind,
        epoch: u32,
        body: &[u8],
        (data, bytes): (Vec<Buffer>, usize),
        admitted: O::Admitted,
    ) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        if chan.ended.get() || inner.stopped.get() {
            // It was refused; this was sent before the peer knew.
            return Ok(());
        }
        if epoch != chan.sender.epoch {
            return Err(Breach::Sequence("another epoch than the channel's"));
        }
        if chan.closing.get() {
            return Err(Breach::Sequence("a frame behind Close"));
        }
        match kind {
            Kind::Promise => return self.promise(&Promise::decode(body)?),
            Kind::Open => return self.open(&Open::decode(body)?),
            Kind::Heartbeat => return self.heartbeat(&Heartbeat::decode(body)?),
            Kind::Close => {
                chan.closing.set(true);
                inner.ack.notify();
                return Ok(());
            }
            _ => {}
        }
        if let Err(why) = inner.state.borrow().admits(chan.sender)
            && !planted::is(Bug::FenceSkipped)
        {
            return self.not_admitted(why);
        }
        match kind {
            Kind::Feed => self.feed(&Feed::decode(body)?),
            Kind::Batch => {
                let batch = Batch::decode(body, bytes)?;
                inner.admit_batch(chan, &batch, data, admitted)
            }
            Kind::Copy => {
                let copy = Copy::decode(body, bytes)?;
                inner.admit_copy(chan, &copy, data, admitted)
            }
            Kind::Flush => inner.admit_flush(chan, Flush::decode(body)?.number),
            Kind::Set => inner.admit_set(chan, &Set::decode(body)?, admitted),
            Kind::Snapshots => inner.admit_snapshots(chan, &Snapshots::decode(body)?, admitted),
            Kind::List => self.ask(Question::List(ListAsk::decode(body)?, admitted)),
            Kind::Fetch => self.ask(Question::Fetch(Fetch::decode(body)?, admitted)),
            Kind::Read => self.ask(Question::Read(Read::decode(body)?, admitted)),
            Kind::AskSummaries => {
                self.ask(Question::Summaries(AskSummaries::decode(body)?, admitted))
            }
            Kind::AskLeaf => self.ask(Question::Leaf(AskLeaf::decode(body)?, admitted)),
            _ => Err(Breach::Sequence("a replica takes no such frame")),
        }
    }

    /// What comes while a higher epoch is being promised is dropped unanswered: its sender is told with the promise, or by a Heard.
    fn not_admitted(&self, why: Refusal) -> Result<(), Breach> {
        let silent = {
            let state = self.inner.state.borrow();
            why == Refusal::Lower && state.is_promising()
        };
        if !silent {
            self.inner.refuse(&self.chan, reason(why));
        }
        Ok(())
    }

    fn promise(&self, asked: &Promise) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        if asked.incarnation != chan.sender.incarnation {
            return Err(Breach::Sequence("another process than the channel's"));
        }
        let ask = Ask {
            sender: chan.sender,
            attempt: asked.attempt,
            version: asked.version,
        };
        inner.event(Event::Promise(chan.key, ask));
        Ok(())
    }

    fn open(&self, open: &Open) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        if open.incarnation != chan.sender.incarnation {
            return Err(Breach::Sequence("another process than the channel's"));
        }
        let Target::Replica {
            lease_ms,
            subscribe,
            lanes,
            ..
        } = open.to
        else {
            return Err(Breach::Sequence("no coordinator is here"));
        };
        if lanes != inner.store.lanes() {
            return Err(Breach::Sequence("another number of lanes"));
        }
        inner.event(Event::Open {
            by: chan.key,
            sender: chan.sender,
            subscribe,
            lease: Duration::from_millis(lease_ms.into()),
        });
        Ok(())
    }

    fn heartbeat(&self, heartbeat: &Heartbeat<'_>) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        let beat = heartbeat.beat;
        let now = inner.handle.now();
        let answer = {
            let mut state = inner.state.borrow_mut();
            state.heartbeat(chan.sender, beat.release, now)
        };
        let lease = match answer {
            Ok(lease) => lease,
            Err(Refusal::NotOpen) => return Err(Breach::Sequence("a heartbeat before Open")),
            Err(why) => return self.not_admitted(why),
        };
        if beat.release {
            inner.event(Event::Time);
        }
        if inner.admits(chan) {
            let settled = heartbeat.settled.iter().map(|s| (s.lane, s.stamp));
            inner.settle(settled)?;
        }
        chan.heard.set(Some(Heard {
            number: beat.number,
            sent_ns: beat.sent_ns,
            lease,
        }));
        inner.say_heard(chan);
        // Space comes back by itself, and who was refused for want of it sends nothing that is acknowledged.
        if inner.space_of(chan) != chan.space_said.get() {
            chan.ack_due.set(true);
            inner.ack.notify();
        }
        Ok(())
    }

    fn feed(&self, feed: &Feed<'_>) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        if chan.fed.replace(true) {
            return Err(Breach::Sequence("a second Feed"));
        }
        let mut lanes = inner.lanes.borrow_mut();
        if feed.lanes.len() != lanes.len() {
            return Err(Breach::Sequence("another number of lanes"));
        }
        // A copy that runs still is of an older subscription: what was erased must stay known to it.
        let outside = inner.state.borrow().outside() && inner.running.get() == 0;
        for ((number, lane), on) in (0_u8..).zip(lanes.iter_mut()).zip(feed.lanes.iter()) {
            if !lane.stream.feed(on.after, chan.subscribed.get()) {
                return Err(Breach::Sequence("a stream that goes on beyond a gap"));
            }
            if chan.subscribed.get() && on.s0 != (Stamp { epoch: 0, seq: 0 }) {
                lane.s0 = Some(on.s0);
                if outside {
                    inner.store.copied_from(number, on.s0);
                }
            }
        }
        Ok(())
    }

    fn ask(&self, question: Question<O::Admitted>) -> Result<(), Breach> {
        let (inner, chan) = (&self.inner, &self.chan);
        if usize::from(question.lane()) >= inner.lanes.borrow().len() {
            return Err(Breach::Sequence("a lane that is not there"));
        }
        if chan.questions.borrow().len() >= QUESTIONS_MAX {
            return Err(Breach::Sequence("more questions than may wait"));
        }
        chan.questions.borrow_mut().push_back(question);
        inner.answer_questions(chan);
        Ok(())
    }
}
