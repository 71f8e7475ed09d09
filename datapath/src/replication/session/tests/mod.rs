//! Sessions on the simulated network and on loopback. Each file opens with what could go wrong; seeds are in every message.

mod bounds;
mod drain;
mod faults;
mod flow;
mod handshake;
mod loopback;
mod pressure;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::*;
use crate::replication::wire::frame::Kind;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A frame that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) kind: Kind,
    pub(super) epoch: u32,
    pub(super) body: Vec<u8>,
    /// The pieces of its data, in their lengths.
    pub(super) data: Vec<Vec<u8>>,
}

/// A handler that remembers, and says yes to Open.
#[derive(Default)]
pub(super) struct Taker {
    pub(super) got: RefCell<Vec<Got>>,
    /// Keeps what was admitted while it is told to.
    pub(super) holds: Cell<bool>,
    pub(super) held: RefCell<Vec<Admitted>>,
    pub(super) ended: RefCell<Option<Ended>>,
    pub(super) channel: RefCell<Option<Channel>>,
}

impl Taker {
    pub(super) fn count(&self) -> usize {
        self.got.borrow().len()
    }
}

impl Handler for Taker {
    /// Pieces as the body says them, in blocks; without a body all in one.
    fn layout(
        &self,
        _: Kind,
        body: &[u8],
        data: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        match body {
            [] => pieces.push(data),
            _ => pieces.extend(body.iter().map(|&blocks| usize::from(blocks) * 4096)),
        }
        Ok(())
    }

    fn frame(&self, frame: Frame<'_>, admitted: Admitted) -> Result<(), Broken> {
        assert!(self.ended.borrow().is_none(), "a frame after the end");
        if frame.kind == Kind::Flush && frame.body.is_empty() {
            return Err(Broken::Sequence("a flush without a number"));
        }
        let lengths: Vec<usize> = match frame.body {
            _ if frame.data.is_empty() => Vec::new(),
            [] => vec![frame.data[0].len()],
            body => body.iter().map(|&b| usize::from(b) * 4096).collect(),
        };
        let pieces = frame.data.iter().zip(&lengths);
        self.got.borrow_mut().push(Got {
            kind: frame.kind,
            epoch: frame.epoch,
            body: frame.body.to_vec(),
            data: pieces.map(|(b, &len)| b[..len].to_vec()).collect(),
        });
        if self.holds.get() {
            self.held.borrow_mut().push(admitted);
        }
        let channel = self.channel.borrow().clone();
        match (channel, frame.kind, frame.body) {
            (Some(channel), Kind::Open, _) => {
                let _ = channel.send(Kind::Opened, frame.epoch, |out| out.push(7), []);
            }
            (Some(channel), Kind::Flush, b"end") => channel.end_session(Down::Stopped),
            _ => {}
        }
        Ok(())
    }

    fn ended(&self, why: &Ended) {
        let before = self.ended.replace(Some(why.clone()));
        assert_eq!(before, None, "one end");
        self.channel.take();
    }
}

/// A service that makes a [`Taker`] for each channel; refuses volumes whose Open has an empty body.
#[derive(Default)]
pub(super) struct Takers {
    pub(super) all: RefCell<Vec<Rc<Taker>>>,
    pub(super) hold: Cell<bool>,
}

impl Takers {
    pub(super) fn last(&self) -> Rc<Taker> {
        self.all.borrow().last().expect("a channel").clone()
    }
}

impl Service for Takers {
    fn open(
        &self,
        channel: &Channel,
        _: Kind,
        epoch: u32,
        body: &[u8],
    ) -> Result<Option<Rc<dyn Handler>>, Broken> {
        if body == b"bad" {
            return Err(Broken::Sequence("not this volume"));
        }
        if body.is_empty() {
            let said = channel.send(Kind::Refused, epoch, |out| out.extend([1; 8]), []);
            assert_eq!(said, Ok(()));
            return Ok(None);
        }
        let taker = Rc::new(Taker::default());
        taker.channel.replace(Some(channel.clone()));
        taker.holds.set(self.hold.get());
        self.all.borrow_mut().push(taker.clone());
        Ok(Some(taker))
    }
}

/// A buffer of so many blocks, filled from `first` on.
pub(super) fn blocks(handle: &crate::reactor::Handle, n: usize, first: u8) -> Rc<Buffer> {
    let mut buffer = handle
        .buffers()
        .try_take(n * 4096)
        .expect("the pool has room");
    for (i, block) in buffer.chunks_mut(4096).enumerate() {
        block.fill(first.wrapping_add(i as u8));
    }
    Rc::new(buffer)
}

/// Opens a channel with a body.
pub(super) fn open(link: &Link, taker: &Rc<Taker>) -> Channel {
    let channel = link.open_channel(taker.clone()).expect("a session is up");
    channel
        .send(Kind::Open, 3, |out| out.extend_from_slice(b"volume"), [])
        .expect("an empty queue");
    channel
}
