//! The forwarder: commands of hosts on this node go to the coordinator of their volume, on another.
//!
//! A [`Forwarder`] leads to one coordinator, in one epoch; its channel is opened again when it ends. A [`Forwarding`] holds the one that is used now, for
//! commands that begin: one that has begun goes on with its own, or fails (rule 8).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::age::AGE;
use super::{
    Command, INTERRUPTED, PATH_ERROR, Phase, Status, WINDOW_BYTES, WINDOW_COMMANDS, one_piece,
    padded,
};
use crate::reactor::{Handle, Notify};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::Id;
use crate::replication::session::{
    Admitted, Broken, Channel, Ended, Frame, Handler, NotSent, Rider, Trunk,
};
use crate::replication::wire::forward::Done;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{Open, Opened, Target};
use crate::store::types::Stamp;

/// How long a command waits for a channel, or for room, before it fails.
const CHANNEL_LIMIT: Duration = Duration::from_secs(1);
/// How long a coordinator may take for a command: longer than it lets one wait for a quorum.
pub(super) const DONE_LIMIT: Duration = Duration::from_secs(15);
/// Before a channel is opened again that ended or was refused.
const AGAIN: Duration = Duration::from_millis(50);

/// A coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Of this volume.
    pub volume: Id,
    /// Its epoch.
    pub epoch: u32,
    /// Its process.
    pub incarnation: Id,
}

#[derive(Default)]
struct Waiting {
    answer: Option<(Done, Option<Buffer>)>,
    waker: Option<Waker>,
}

/// A phase that succeeded.
struct Answer {
    stamp: Option<Stamp>,
    data: Option<Buffer>,
    /// Of the channel by which it went.
    generation: u64,
}

/// The way to one coordinator.
pub struct Forwarder {
    handle: Handle,
    to: Coordinator,
    trunk: Rc<Trunk>,
    channel: RefCell<Option<Channel>>,
    /// The coordinator has said that the channel is open.
    opened: Cell<bool>,
    /// Rises with each channel: reservations of an old one are void.
    generation: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    next: Cell<u64>,
    /// Bytes of data under way.
    bytes: Cell<u64>,
    changed: Notify,
    stopped: Cell<bool>,
    this: Weak<Self>,
}

/// Stamps that a command has. Dropped, they are given back.
pub struct Reserved {
    of: Rc<Forwarder>,
    generation: u64,
    command: Command,
    stamp: Stamp,
    confirmed: bool,
}

impl Forwarder {
    /// Begins to lead there.
    pub fn start(handle: &Handle, trunk: Rc<Trunk>, to: Coordinator) -> Rc<Self> {
        let forwarder = Rc::new_cyclic(|this| Self {
            handle: handle.clone(),
            to,
            trunk: trunk.clone(),
            channel: RefCell::default(),
            opened: Cell::new(false),
            generation: Cell::new(0),
            waiting: RefCell::default(),
            next: Cell::new(0),
            bytes: Cell::new(0),
            changed: Notify::new(),
            stopped: Cell::new(false),
            this: this.clone(),
        });
        let rider: Rc<dyn Rider> = forwarder.clone();
        trunk.ride(&rider);
        forwarder
    }

    /// Where it leads to.
    pub fn to(&self) -> Coordinator {
        self.to
    }

    /// Leads nowhere any more: what is under way fails.
    pub fn stop(&self) {
        self.stopped.set(true);
        let channel = self.channel.borrow().clone();
        match channel {
            // It is told when the channel has ended, which waits for what the coordinator does.
            Some(channel) => {
                channel.close(self.to.epoch);
                self.lost();
            }
            None => self.changed.notify_all(),
        }
    }

    fn open(&self) {
        let lives = |c: &Channel| !c.has_ended();
        if self.stopped.get() || self.channel.borrow().as_ref().is_some_and(lives) {
            return;
        }
        let Some(forwarder) = self.this.upgrade() else {
            return;
        };
        let generation = self.generation.get() + 1;
        let ear = Rc::new(Ear {
            forwarder,
            generation,
        });
        let Some(channel) = self.trunk.open_channel(ear) else {
            return;
        };
        self.generation.set(generation);
        self.opened.set(false);
        let open = Open {
            volume: self.to.volume,
            incarnation: self.to.incarnation,
            to: Target::Coordinator,
        };
        let sent = channel.send(Kind::Open, self.to.epoch, |out| open.put(out), []);
        match sent {
            Ok(()) => drop(self.channel.replace(Some(channel))),
            Err(_) => self.again(),
        }
    }

    fn again(&self) {
        let Some(this) = self.this.upgrade().filter(|_| !self.stopped.get()) else {
            return;
        };
        self.handle.spawn("forward: again", async move {
            this.handle.sleep(AGAIN).await;
            this.open();
        });
    }

    /// What waits for an answer gets none.
    fn lost(&self) {
        self.channel.replace(None);
        self.opened.set(false);
        for (request, waiting) in self.waiting.borrow_mut().iter_mut() {
            let lost = Done {
                request: *request,
                status: PATH_ERROR,
                stamp: None,
            };
            waiting.answer.get_or_insert((lost, None));
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
        self.changed.notify_all();
    }

    /// Waits until there is an open channel and this is so, for a while at most.
    async fn until(
        &self,
        generation: Option<u64>,
        is: impl Fn() -> bool,
    ) -> Result<Channel, Status> {
        let until = self.handle.now() + CHANNEL_LIMIT;
        loop {
            let channel = self.channel.borrow().clone();
            let other = generation.is_some_and(|g| g != self.generation.get());
            match channel.filter(|_| self.opened.get()) {
                _ if self.stopped.get() || other => return Err(PATH_ERROR),
                Some(channel) if is() => return Ok(channel),
                _ => {}
            }
            let left = until.since(self.handle.now());
            if left.is_zero() {
                return Err(PATH_ERROR);
            }
            // What has changed, if anything, is seen by looking again.
            let _ = self.handle.timeout(left, self.changed.notified()).await;
        }
    }

    /// Sends a phase of a command and waits for its answer; for both together no longer than the limit.
    async fn ask(
        &self,
        command: &Command,
        generation: Option<u64>,
        data: Option<Rc<Buffer>>,
        limit: Duration,
    ) -> Result<Answer, Status> {
        let bytes = command.data();
        let room = || {
            self.bytes.get() + bytes <= WINDOW_BYTES
                && self.waiting.borrow().len() < WINDOW_COMMANDS
        };
        let channel = self.until(generation, room).await?;
        let generation = self.generation.get();
        let _under_way = UnderWay::begin(self, command.request, bytes);
        let data = data.map(|data| (data, 0..bytes as usize));
        let until = self.handle.now() + limit;
        loop {
            if generation != self.generation.get() || !self.opened.get() {
                return Err(PATH_ERROR);
            }
            let sent = channel.send(
                Kind::Command,
                self.to.epoch,
                |out| command.put(out),
                data.iter().cloned(),
            );
            match sent {
                Ok(()) => break,
                Err(NotSent::Ended) => return Err(PATH_ERROR),
                Err(NotSent::Full) => {
                    let left = until.since(self.handle.now());
                    let room = self.handle.timeout(left, channel.room()).await;
                    room.map_err(|_| PATH_ERROR)?;
                }
            }
        }
        let answered = poll_fn(|cx| {
            let mut all = self.waiting.borrow_mut();
            let waiting = all.entry(command.request).or_default();
            match waiting.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        let left = until.since(self.handle.now());
        let answered = self.handle.timeout(left, answered).await;
        let (done, data) = answered.map_err(|_| PATH_ERROR)?;
        match done.status {
            0 => Ok(Answer {
                stamp: done.stamp,
                data,
                generation,
            }),
            status => Err(status),
        }
    }

    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn done(&self, done: Done, data: Option<Buffer>) {
        let mut all = self.waiting.borrow_mut();
        // Who waited may have given up.
        if let Some(waiting) = all.get_mut(&done.request) {
            waiting.answer = Some((done, data));
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Rider for Forwarder {
    fn up(&self) {
        self.open();
    }
}

/// A place among what waits for answers, and its share of the window.
struct UnderWay<'a> {
    of: &'a Forwarder,
    request: u64,
    bytes: u64,
}

impl<'a> UnderWay<'a> {
    fn begin(of: &'a Forwarder, request: u64, bytes: u64) -> Self {
        of.bytes.set(of.bytes.get() + bytes);
        of.waiting.borrow_mut().insert(request, Waiting::default());
        Self { of, request, bytes }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.of.bytes.set(self.of.bytes.get() - self.bytes);
        self.of.waiting.borrow_mut().remove(&self.request);
        self.of.changed.notify_all();
    }
}

/// Hears what the coordinator says on one channel.
struct Ear {
    forwarder: Rc<Forwarder>,
    generation: u64,
}

impl Handler for Ear {
    fn layout(
        &self,
        _: Kind,
        _: &[u8],
        data: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        one_piece(data, pieces);
        Ok(())
    }

    fn frame(&self, frame: Frame<'_>, _: Admitted) -> Result<(), Broken> {
        let forwarder = &self.forwarder;
        if self.generation != forwarder.generation.get() {
            return Ok(());
        }
        match frame.kind {
            Kind::Opened => {
                Opened::decode(frame.body)?;
                forwarder.opened.set(true);
                forwarder.changed.notify_all();
            }
            Kind::Done => {
                let done = Done::decode(frame.body, frame.bytes)?;
                forwarder.done(done, frame.data.pop());
            }
            // It does not serve, or not yet: the channel ends, and is asked for again.
            Kind::Refused => {}
            _ => return Err(Broken::Sequence("a forwarder did not ask for it")),
        }
        Ok(())
    }

    fn ended(&self, _: &Ended) {
        let forwarder = &self.forwarder;
        if self.generation == forwarder.generation.get() {
            forwarder.lost();
            forwarder.again();
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let of = &self.of;
        let there = self.generation == of.generation.get() && of.opened.get();
        if self.confirmed || !there {
            return;
        }
        let void = Command {
            phase: Phase::Void(self.stamp),
            ..self.command
        };
        if let Some(channel) = &*of.channel.borrow() {
            // Without room for it the stamps are void when they are old.
            let _ = channel.send(Kind::Command, of.to.epoch, |out| void.put(out), []);
        }
    }
}

/// Which coordinator commands go to that begin now.
#[derive(Default)]
pub struct Forwarding {
    now: RefCell<Option<Rc<Forwarder>>>,
}

impl Forwarding {
    /// Commands that begin go there, or nowhere.
    pub fn lead(&self, to: Option<Rc<Forwarder>>) {
        if let Some(before) = self.now.replace(to) {
            before.stop();
        }
    }

    /// Where they go.
    pub fn to(&self) -> Option<Coordinator> {
        self.now.borrow().as_ref().map(|f| f.to)
    }

    fn now(&self) -> Result<Rc<Forwarder>, Status> {
        self.now.borrow().clone().ok_or(PATH_ERROR)
    }

    /// Reserves stamps for a command that modifies. Before it is confirmed it must be known that the host holds it still.
    ///
    /// # Errors
    /// What it completes with.
    pub async fn reserve(&self, command: Command) -> Result<Reserved, Status> {
        let of = self.now()?;
        let command = Command {
            request: of.number(),
            phase: Phase::Reserve,
            age_ms: AGE.as_millis() as u32,
            ..command
        };
        let answer = of.ask(&command, None, None, AGE).await?;
        let stamp = answer.stamp.ok_or(INTERRUPTED)?;
        Ok(Reserved {
            generation: answer.generation,
            of,
            command,
            stamp,
            confirmed: false,
        })
    }

    /// The host holds the command: it is done under its stamps. `data`: padded to whole blocks.
    ///
    /// # Errors
    /// What it completes with. After [`PATH_ERROR`] it may be done, or not.
    pub async fn confirm(
        &self,
        mut reserved: Reserved,
        data: Option<Rc<Buffer>>,
    ) -> Result<(), Status> {
        let command = Command {
            phase: Phase::Confirm(reserved.stamp),
            ..reserved.command
        };
        reserved.confirmed = true;
        let generation = Some(reserved.generation);
        let of = reserved.of.clone();
        let done = of.ask(&command, generation, data.clone(), DONE_LIMIT).await;
        match done {
            Err(PATH_ERROR) if planted::is(Bug::GoesToTheNext) => {
                let mut next = Box::pin(self.reserve(command)).await?;
                let command = Command {
                    phase: Phase::Confirm(next.stamp),
                    ..next.command
                };
                next.confirmed = true;
                let generation = Some(next.generation);
                let of = next.of.clone();
                of.ask(&command, generation, data, DONE_LIMIT).await?;
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Does a command that needs no stamp. What it read is at the beginning of the buffer.
    ///
    /// # Errors
    /// What it completes with.
    pub async fn ask(
        &self,
        command: Command,
        data: Option<Rc<Buffer>>,
    ) -> Result<Option<Buffer>, Status> {
        let of = self.now()?;
        let command = Command {
            request: of.number(),
            phase: Phase::Read,
            age_ms: AGE.as_millis() as u32,
            ..command
        };
        let read = of.ask(&command, None, data, DONE_LIMIT).await?.data;
        let wants = match command.operation {
            super::Operation::Read => padded(command.bytes),
            _ => 0,
        };
        match read {
            Some(read) if wants > 0 && read.len() >= wants => Ok(Some(read)),
            _ if wants == 0 => Ok(None),
            _ => Err(PATH_ERROR),
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.lead(None);
    }
}
