//! Channels: what a user of sessions sees. Frames out through a [`Channel`], frames in through a [`Handler`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::{Rc, Weak};

use keelblock_hugepages::Buffer;

use super::credit::{Credit, Grants, OverCredit};
use super::down::Down;
use super::gate::Gate;
use super::state::{Info, Session};
use crate::replication::wire::WireError;
use crate::replication::wire::frame::Kind;

/// A channel's number within its session, from 1 on; 0 is the session itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelNo(pub u32);

impl fmt::Display for ChannelNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A frame that came. Its header and checksum are right, its body is yet to be read.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// The sender's epoch: to be compared, in every frame (rule 1).
    pub epoch: u32,
    /// The body.
    pub body: &'a [u8],
    /// Its data, in the pieces of [`Handler::layout`], each at the beginning of its buffer. Buffers that are left here are given back.
    pub data: &'a mut Vec<Buffer>,
    /// Bytes of data, all pieces together.
    pub bytes: usize,
}

/// Why a handler does not take a frame: the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is not what such a frame is.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// More was sent than was granted.
    #[error(transparent)]
    OverCredit(#[from] OverCredit),
    /// No such frame may come now.
    #[error("it may not come here: {0}")]
    Sequence(&'static str),
}

/// Why a channel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed it, and everything that was admitted has completed.
    Closed,
    /// It was refused (the frame came before, or was sent by this side).
    Refused,
    /// Its session ended.
    Down(Down),
}

/// Takes the frames of a channel.
///
/// All calls are made on the reactor, in the order of the frames, outside of any borrow of the session's: a handler may send, open and close in them. They
/// must not take long: what waits is given to a task, with its [`Admitted`].
pub trait Handler {
    /// Into which buffers the data of a frame shall be received: appends their lengths, in order, each from 1 byte to 1 MiB, `data` together. So each
    /// record's blocks are at the beginning of a buffer of their own. Without an opinion all is in one buffer.
    ///
    /// # Errors
    /// The body is none of this kind, or does not match: the session ends.
    fn layout(
        &self,
        kind: Kind,
        body: &[u8],
        data: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        let _ = (kind, body);
        pieces.push(data);
        Ok(())
    }

    /// A frame. It is admitted until `admitted` and all its clones are dropped: a newer session of the same peer, and the end of a channel that is being
    /// closed, wait for that.
    ///
    /// # Errors
    /// It breaks a bound: the session ends, with this as its reason.
    fn frame(&self, frame: Frame<'_>, admitted: Admitted) -> Result<(), Broken>;

    /// The last call: nothing comes any more, and nothing can be sent. What was admitted may still run. For an acceptor's handler it is a good place to
    /// let go of its [`Channel`].
    fn ended(&self, why: &Ended);
}

/// Who takes the channels that peers open.
pub trait Service {
    /// The first frame of a new channel: Open or Promise. If somebody is returned, it gets this frame too, as its first. `None`: refused; what is to be
    /// said about it has been sent on `channel` (Refused), or nothing is.
    ///
    /// # Errors
    /// The body is none of its kind: the session ends.
    fn open(
        &self,
        channel: &Channel,
        kind: Kind,
        epoch: u32,
        body: &[u8],
    ) -> Result<Option<Rc<dyn Handler>>, Broken>;
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Too much waits to be sent: [`Channel::room`].
    #[error("too much waits to be sent to the peer")]
    Full,
    /// The channel or its session has ended, or we closed it.
    #[error("the channel has ended")]
    Ended,
}

/// What is known of a channel.
pub(super) struct State {
    pub(super) session: Weak<Session>,
    /// 0 until its first frame is sent: numbers rise in the order in which the peer sees them.
    pub(super) number: Cell<u32>,
    pub(super) handler: RefCell<Option<Rc<dyn Handler>>>,
    pub(super) gate: Gate,
    /// We sent Close, or Refused: nothing more is sent.
    pub(super) shut: Cell<bool>,
    /// The peer sent Close: nothing more may come.
    pub(super) shut_by_peer: Cell<bool>,
    /// It is no longer in its session's table.
    pub(super) gone: Cell<bool>,
}

/// A channel of one session. It ends with the session: after a reconnect there are others. Cheap to clone; a handler that keeps one must let go of it when it has ended.
#[derive(Clone)]
pub struct Channel {
    pub(super) session: Rc<Session>,
    pub(super) state: Rc<State>,
}

impl Channel {
    /// Sends a frame: header and body are copied, data are referred to until they have gone out. The first frame of a channel is Open or Promise.
    /// It is on its way at the end of this pass. Nobody knows whether it arrives.
    ///
    /// # Errors
    /// [`NotSent`]; then nothing was taken.
    ///
    /// # Panics
    /// If body or data are longer than a frame may have, or data are not whole blocks; if it is a Close, for which there is [`Channel::close`].
    pub fn send(
        &self,
        kind: Kind,
        epoch: u32,
        body: impl FnOnce(&mut Vec<u8>),
        data: impl IntoIterator<Item = (Rc<Buffer>, Range<usize>)>,
    ) -> Result<(), NotSent> {
        assert!(kind != Kind::Close, "a channel is closed by close()");
        let state = &self.state;
        if self.has_ended() {
            return Err(NotSent::Ended);
        }
        if self.session.is_full() {
            return Err(NotSent::Full);
        }
        if state.number.get() == 0 {
            assert!(
                matches!(kind, Kind::Open | Kind::Promise),
                "a channel begins with Open or Promise, not {kind:?}"
            );
            self.session.begin(state)?;
        }
        self.session
            .push(kind, (state.number.get(), epoch), body, data);
        if kind == Kind::Refused {
            state.shut.set(true);
            self.session.leave(state, Ended::Refused);
        }
        Ok(())
    }

    /// Whether its first frame has gone: the peer knows of it.
    pub fn has_begun(&self) -> bool {
        self.state.number.get() != 0
    }

    /// Closes it: nothing more is sent; what the peer has admitted completes and is answered, then [`Handler::ended`] is called.
    pub fn close(&self, epoch: u32) {
        let state = &self.state;
        if self.has_ended() {
            return;
        }
        state.shut.set(true);
        if state.number.get() == 0 {
            return self.session.leave(state, Ended::Closed);
        }
        // One for each channel at most, so it may go beyond the bound.
        let number = (state.number.get(), epoch);
        self.session.push_own(Kind::Close, number, |_| {});
        self.session.look_closed(state);
    }

    /// Waits until [`Channel::send`] would not say [`NotSent::Full`].
    pub async fn room(&self) {
        self.session.room().await;
    }

    /// Bytes that wait to be sent in this session.
    pub fn unsent(&self) -> usize {
        self.session.unsent()
    }

    /// Whether nothing can be sent any more.
    pub fn has_ended(&self) -> bool {
        self.state.shut.get() || self.state.gone.get() || self.session.is_ended()
    }

    /// Its number; 0 before its first frame.
    pub fn number(&self) -> ChannelNo {
        ChannelNo(self.state.number.get())
    }

    /// Who is on the other side.
    pub fn info(&self) -> &Info {
        &self.session.info
    }

    /// What may be sent in this session: of the sender of records.
    pub fn credit(&self) -> &Credit {
        &self.session.credit
    }

    /// What was granted in this session: of the receiver of records.
    pub fn grants(&self) -> &Grants {
        &self.session.grants
    }

    /// Ends the whole session, as one does whose peer makes no sense.
    pub fn end_session(&self, why: Down) {
        self.session.end(why);
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("peer", &self.session.info.peer)
            .field("number", &self.state.number.get())
            .finish()
    }
}

/// Something that was admitted and has not completed. Dropping the last clone completes it.
pub struct Admitted {
    session: Rc<Gate>,
    channel: Rc<State>,
}

impl Admitted {
    pub(super) fn new(session: &Rc<Gate>, channel: &Rc<State>) -> Self {
        session.enter();
        channel.gate.enter();
        Self {
            session: session.clone(),
            channel: channel.clone(),
        }
    }
}

impl Clone for Admitted {
    fn clone(&self) -> Self {
        Self::new(&self.session, &self.channel)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.channel.gate.leave()
            && self.channel.shut_by_peer.get()
            && let Some(session) = self.channel.session.upgrade()
        {
            session.look_closed(&self.channel);
        }
        self.session.leave();
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted")
            .field("in_session", &self.session.count())
            .finish()
    }
}
