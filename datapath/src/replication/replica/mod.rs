//! A replica as coordinators see it (`docs/replication.md` §§5, 6, 8 and 9): frames in, records applied, answers out.
//!
//! [`state`] says what is taken from whom (its words are [`events`]), [`positions`] how far each lane's stream is, [`order`] what may be applied beside what: three pure parts, with the
//! promises and leases of the replica in the first one. [`service`] owns them on the reactor of the replica, over a
//! [`ReplicaStore`](super::seam::ReplicaStore) and the channels ([`channel`]) that coordinators opened: [`admit`] looks at what comes before anything of it is
//! applied, `apply` brings it to the store, `flush` makes it stable, `ack` says so, `fence` keeps promises, `serve` answers questions, `sets` keeps sets, `snapshots` deletes those that nobody names, `damage`
//! tells what a scrub found.
//!
//! All channels of a replica end up on one reactor: whoever accepts a session elsewhere hands its frames over.
mod ack;
pub mod admit;
mod apply;
pub mod channel;
mod damage;
pub mod door;
pub mod events;
mod fence;
mod flush;
pub mod lease;
#[cfg(test)]
pub mod memory;
#[cfg(test)]
mod memory_tree;
pub mod order;
pub mod positions;
mod serve;
pub mod service;
mod sets;
mod snapshots;
pub mod state;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::wire::WireError;
use super::wire::frame::Kind;

/// Channels of a replica: one for each reactor of a coordinator, those of the next one, and some that are about to end.
pub const CHANNELS_MAX: usize = 128;
/// Records of a replica that are with the store at once.
pub const APPLYING_MAX: usize = 512;
/// Questions of a channel that wait for an answer.
pub const QUESTIONS_MAX: usize = 1024;
/// Those of them that are with the store at once.
pub const ANSWERING_MAX: usize = 32;
/// Copies of a channel under way.
pub const COPIES_MAX: usize = 64;
/// Flushes of a channel that wait.
pub const FLUSHES_MAX: usize = 256;
/// Sets of a channel that wait to be kept.
pub const SETS_MAX: usize = 64;
/// What was written is flushed after this time, asked for or not: settled rises only over what is stable.
pub const FLUSH_AFTER: Duration = Duration::from_millis(500);
/// The longest lease that a replica gives, if nothing else is said: so long it waits after a restart.
pub const LEASE_LONGEST: Duration = Duration::from_secs(5);

/// What a peer sent makes no sense: its session is to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// It is not what such a frame is.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It may not come now.
    #[error("it may not come here: {0}")]
    Sequence(&'static str),
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Too much waits to be sent.
    #[error("too much waits to be sent to the peer")]
    Full,
    /// The channel has ended.
    #[error("the channel has ended")]
    Ended,
}

/// The way out of a channel, and what its session counts.
#[allow(async_fn_in_trait, reason = "a reactor has one thread")]
pub trait Outgoing: 'static {
    /// Something that was admitted: a newer session of the same peer waits until all of them are dropped.
    type Admitted: 'static;

    /// Sends a frame of this epoch; data are whole blocks. Refused and Close are the last ones.
    ///
    /// # Errors
    /// [`NotSent`]; then nothing was taken.
    fn send(
        &self,
        kind: Kind,
        epoch: u32,
        body: &[u8],
        data: &[(Rc<Buffer>, Range<usize>)],
    ) -> Result<(), NotSent>;

    /// Waits until sending would not say [`NotSent::Full`].
    async fn room(&self);

    /// So many records came with so many bytes of data. False: that is more than was granted.
    #[must_use]
    fn came(&self, records: u64, bytes: u64) -> bool;

    /// So many of them are done with.
    fn done(&self, records: u64, bytes: u64);

    /// Records and bytes that were granted by now, as an Ack says it.
    fn granted(&self) -> (u64, u64);
}
