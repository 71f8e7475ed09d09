//! The words of a replica's state: who speaks, what happens to it, and what is to be done then.

use std::time::Duration;

use crate::reactor::Nanos;
use crate::replication::seam::{Id, Promise, Standing};

/// Names a channel of this replica: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// Whom frames of a channel are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its epoch.
    pub epoch: u32,
    /// Its process.
    pub incarnation: Id,
}

/// A promise that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of whom.
    pub sender: Sender,
    /// Which K1.
    pub attempt: Id,
    /// Version of the set's record.
    pub version: u64,
}

/// Why something is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The epoch is lower than one that was promised, or asked for.
    Lower,
    /// The epoch is higher than the one that was promised: epochs rise by promises only.
    NotPromised,
    /// The epoch is another process's (rule 2), or another attempt's.
    Incarnation,
    /// Nothing was opened in this epoch.
    NotOpen,
    /// Only one that is copied to becomes level.
    NotResyncing,
    /// A longer lease was asked for than this replica gives.
    Lease,
    /// A drive failed.
    Failed,
    /// It is not complete, and never this replica again (rule 9).
    Incomplete,
}

/// The rows of §6's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has promised nothing.
    Fresh,
    /// It takes everything of this epoch.
    Following(Sender),
    /// It was asked for this epoch, and takes nothing.
    Promising(Sender),
    /// It takes what a takeover sends.
    Promised(Sender),
    /// As following, and it is copied to.
    Resyncing(Sender),
    /// It takes nothing.
    Incomplete,
}

/// What happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A promise is asked for.
    Promise(Key, Ask),
    /// What was admitted before the last [`Action::Drain`] has run out and is stable, or a drive failed.
    Drained(Result<(), ()>),
    /// The time of the last [`Action::WaitUntil`] has come.
    Time,
    /// The last [`Action::Keep`] is durable, or a drive failed.
    Kept(Result<(), ()>),
    /// A channel is opened; `subscribe`: the stream begins anew, and it will be copied to.
    Open {
        /// By which channel.
        by: Key,
        /// Of whom.
        sender: Sender,
        /// It is copied to.
        subscribe: bool,
        /// T.
        lease: Duration,
    },
    /// The coordinator says what it is now: `Promised` if a set that is durable here names it, `Resyncing` if that does not; `Level` if it was copied to,
    /// and the set of this version may name it. One at a time.
    Stand {
        /// By which channel.
        by: Key,
        /// What it is.
        standing: Standing,
        /// Version of the set.
        version: u64,
    },
    /// A channel is gone: nothing can be answered on it.
    Gone(Key),
    /// It lost a lane, or its promise.
    Lost,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// From now on nothing is taken, and no ack is sent: what waits to be applied is dropped.
    Fence,
    /// A higher epoch is promised: refuse and end all channels of others.
    EndLower,
    /// Let what was admitted run out, then flush; [`Event::Drained`].
    Drain,
    /// [`Event::Time`] at this time.
    WaitUntil(Nanos),
    /// Keep the promise durably; [`Event::Kept`].
    Keep(Promise),
    /// Positions of streams begin anew: it is another epoch's stream.
    NewStreams,
    /// By this channel a stream may begin anywhere: what is in front comes by copies.
    Subscribed(Key),
    /// Answer Promised, with a new list.
    AnswerPromise(Key),
    /// Answer Opened.
    AnswerOpen(Key),
    /// Answer that the standing of [`Event::Stand`] is kept.
    AnswerStanding(Key),
    /// Answer Refused, with this epoch; the channel ends.
    Refuse(Key, Refusal, u32),
}

/// Whom a promise was made to.
pub fn sender(promise: &Promise) -> Sender {
    Sender {
        epoch: promise.epoch,
        incarnation: promise.incarnation,
    }
}
