//! The coordinator's side of forwarding: channels that other nodes open, and the commands that come by them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::age::AGE;
use super::send::DONE_LIMIT;
use super::{
    Command, Data, Hosted, INTERRUPTED, PATH_ERROR, Phase, Status, WINDOW_BYTES, WINDOW_COMMANDS,
    one_piece, padded,
};
use crate::reactor::Handle;
use crate::replication::replica::door::Coordinators;
use crate::replication::seam::Id;
use crate::replication::session::{Admitted, Broken, Channel, Ended, Frame, Handler, NotSent};
use crate::replication::wire::forward::Done;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{Open, encode_opened};
use crate::replication::wire::refused::{Reason, Refused};
use crate::store::types::Stamp;

/// Volumes that are coordinated here, for commands from other nodes.
pub struct Doors {
    handle: Handle,
    open: RefCell<BTreeMap<Id, Door>>,
    /// Of commands, whatever channel they came by.
    keys: Rc<Cell<u64>>,
}

#[derive(Clone)]
struct Door {
    epoch: u32,
    incarnation: Id,
    by: Rc<dyn Hosted>,
}

impl Doors {
    /// None yet.
    pub fn new(handle: &Handle) -> Self {
        Self {
            handle: handle.clone(),
            open: RefCell::default(),
            keys: Rc::default(),
        }
    }

    /// A volume is coordinated here, in this epoch of this process.
    pub fn serve(&self, volume: Id, (epoch, incarnation): (u32, Id), by: Rc<dyn Hosted>) {
        let door = Door {
            epoch,
            incarnation,
            by,
        };
        self.open.borrow_mut().insert(volume, door);
    }

    /// It is no more, in this epoch. What comes by channels that are there gets a path error from whoever did it.
    pub fn end(&self, volume: &Id, epoch: u32) {
        let mut open = self.open.borrow_mut();
        if open.get(volume).is_some_and(|d| d.epoch == epoch) {
            open.remove(volume);
        }
    }
}

impl Coordinators for Doors {
    fn open(
        &self,
        channel: &Channel,
        epoch: u32,
        open: &Open,
    ) -> Result<Option<Rc<dyn Handler>>, Broken> {
        let door = self.open.borrow().get(&open.volume).cloned();
        let same = |d: &Door| d.epoch == epoch && d.incarnation == open.incarnation;
        let Some(door) = door.clone().filter(same) else {
            let epoch_here = door.map_or(0, |d| d.epoch);
            let refused = Refused {
                reason: Reason::NotServed,
                epoch: epoch_here,
            };
            // Without room for it the peer is told nothing, and asks again.
            let _ = channel.send(Kind::Refused, epoch, |out| refused.put(out), []);
            return Ok(None);
        };
        Ok(Some(Rc::new(Taking(Rc::new(Inner {
            handle: self.handle.clone(),
            epoch,
            by: door.by,
            channel: RefCell::new(Some(channel.clone())),
            reserved: RefCell::default(),
            running: Cell::new(0),
            bytes: Cell::new(0),
            keys: self.keys.clone(),
        })))))
    }
}

/// A command that stamps were given to.
struct Reserved {
    key: u64,
    stamp: Stamp,
    command: Command,
}

struct Inner {
    handle: Handle,
    epoch: u32,
    by: Rc<dyn Hosted>,
    /// Until it has ended.
    channel: RefCell<Option<Channel>>,
    /// By the forwarder's numbers.
    reserved: RefCell<BTreeMap<u64, Reserved>>,
    running: Cell<usize>,
    bytes: Cell<u64>,
    keys: Rc<Cell<u64>>,
}

/// A forwarder's channel.
struct Taking(Rc<Inner>);

impl Handler for Taking {
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

    fn frame(&self, frame: Frame<'_>, admitted: Admitted) -> Result<(), Broken> {
        let inner = &self.0;
        if frame.epoch != inner.epoch {
            return Err(Broken::Sequence("a frame of another epoch"));
        }
        match frame.kind {
            Kind::Open => {
                inner.reply(Kind::Opened, |out| encode_opened(out, [0; 16], &[]));
                Ok(())
            }
            Kind::Command => {
                let command = Command::decode(frame.body, frame.bytes)?;
                inner.command(command, frame.data.pop(), admitted)
            }
            _ => Err(Broken::Sequence("it is no command")),
        }
    }

    fn ended(&self, _: &Ended) {
        self.0.channel.take();
        // Nobody confirms them any more.
        for reserved in std::mem::take(&mut *self.0.reserved.borrow_mut()).into_values() {
            self.0.by.unreserve(reserved.key);
        }
    }
}

impl Inner {
    fn next_key(&self) -> u64 {
        self.keys.set(self.keys.get() + 1);
        self.keys.get()
    }

    fn command(
        self: &Rc<Self>,
        command: Command,
        data: Option<Buffer>,
        admitted: Admitted,
    ) -> Result<(), Broken> {
        match command.phase {
            Phase::Reserve => self.reserve(command),
            Phase::Void(stamp) => {
                // It may have been void already.
                if let Some(reserved) = self.take_reserved(command.request, stamp) {
                    self.by.unreserve(reserved.key);
                }
            }
            Phase::Confirm(stamp) => match self.take_reserved(command.request, stamp) {
                Some(reserved) if same(&reserved.command, &command) => {
                    self.run((reserved.key, true), command, data, admitted);
                }
                Some(reserved) => {
                    self.by.unreserve(reserved.key);
                    return Err(Broken::Sequence("another command than was reserved for"));
                }
                None => self.done(command.request, PATH_ERROR, None),
            },
            Phase::Read => self.run((self.next_key(), false), command, data, admitted),
        }
        Ok(())
    }

    fn reserve(&self, command: Command) {
        let under_way = self.reserved.borrow().len() + self.running.get();
        let age = command.age_ms.min(AGE.as_millis() as u32);
        let given = match under_way < WINDOW_COMMANDS {
            true => {
                let key = self.next_key();
                let asked = Command {
                    age_ms: age,
                    ..command
                };
                self.by.reserve(key, &asked).map(|stamp| (key, stamp))
            }
            false => Err(INTERRUPTED),
        };
        match given {
            Ok((key, stamp)) => {
                let reserved = Reserved {
                    key,
                    stamp,
                    command,
                };
                let before = self.reserved.borrow_mut().insert(command.request, reserved);
                // A number that is used twice is a forwarder's mistake, which costs it the first one.
                if let Some(before) = before {
                    self.by.unreserve(before.key);
                }
                self.done(command.request, 0, Some(stamp));
            }
            Err(status) => self.done(command.request, status, None),
        }
    }

    fn take_reserved(&self, request: u64, stamp: Stamp) -> Option<Reserved> {
        let mut all = self.reserved.borrow_mut();
        let same = all.get(&request).is_some_and(|r| r.stamp == stamp);
        same.then(|| all.remove(&request)).flatten()
    }

    fn run(
        self: &Rc<Self>,
        (key, reserved): (u64, bool),
        command: Command,
        data: Option<Buffer>,
        admitted: Admitted,
    ) {
        let bytes = command.data();
        // A forwarder that has given up waiting for an answer counts one less than there are here.
        if self.bytes.get() + bytes > WINDOW_BYTES || self.running.get() >= WINDOW_COMMANDS {
            if reserved {
                self.by.unreserve(key);
            }
            return self.done(command.request, INTERRUPTED, None);
        }
        self.bytes.set(self.bytes.get() + bytes);
        self.running.set(self.running.get() + 1);
        let (inner, ended) = (self.clone(), self.by.run(key, command, data));
        self.handle.spawn("forwarded command", async move {
            let (status, data) = ended.await;
            if reserved {
                inner.by.unreserve(key);
            }
            // What was read is here until it is sent, so the command counts until then. Later than this nobody waits for it.
            let answered = inner.answer(command, status, data);
            let _ = inner.handle.timeout(DONE_LIMIT, answered).await;
            inner.bytes.set(inner.bytes.get() - bytes);
            inner.running.set(inner.running.get() - 1);
            drop(admitted);
        });
    }

    fn done(&self, request: u64, status: Status, stamp: Option<Stamp>) {
        let done = Done {
            request,
            status,
            stamp,
        };
        self.reply(Kind::Done, |out| done.put(out));
    }

    /// Without room for it the forwarder is told nothing, and gives up after a while.
    fn reply(&self, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) {
        if let Some(channel) = &*self.channel.borrow() {
            let _ = channel.send(kind, self.epoch, body, []);
        }
    }

    async fn answer(&self, command: Command, status: Status, data: Data) {
        let done = Done {
            request: command.request,
            status,
            stamp: None,
        };
        let data = data.filter(|_| status == 0);
        let data = data.map(|data| (data, 0..padded(command.bytes)));
        loop {
            let channel = self.channel.borrow().clone();
            let Some(channel) = channel else { return };
            let sent = channel.send(
                Kind::Done,
                self.epoch,
                |out| done.put(out),
                data.iter().cloned(),
            );
            match sent {
                Err(NotSent::Full) => channel.room().await,
                Ok(()) | Err(NotSent::Ended) => return,
            }
        }
    }
}

/// Whether two phases are of one command.
fn same(a: &Command, b: &Command) -> bool {
    let key = |c: &Command| Command {
        phase: Phase::Reserve,
        age_ms: 1,
        ..*c
    };
    key(a) == key(b)
}
