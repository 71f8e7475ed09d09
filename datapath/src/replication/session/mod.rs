//! Sessions between data paths (`docs/replication.md` §§4 and 5).
//!
//! [`identity`] is who we are and whom we know, [`handshake`] the four messages with which a session begins. An initiator has a [`Link`] to each peer, which
//! makes a session whenever there is none; an [`Acceptor`] takes them, one at a time for each (node, incarnation, reactor) ([`registry`]). In a session
//! a [`reader`] takes frames apart and calls handlers, a [`writer`] sends what they queue, a [`beat`] notices that nobody is there.
//!
//! # How it is used
//! *Initiator*: `Link::start(handle, identity, peer, owner)`. In and after [`Owner::up`], `link.open_channel(handler)` gives a [`Channel`], whose first frame is
//! Open or Promise. [`Owner::down`] comes when the session has ended, after [`Handler::ended`] of each of its channels; channels do not survive their session.
//!
//! *Acceptor*: `Acceptor::start(handle, identity, mesh, at, service)` on each reactor. [`Service::open`] decides on the first frame of each channel, and returns the
//! [`Handler`] that gets it and all that follow.
//!
//! *Frames out*: `channel.send(kind, epoch, |body| encode into it, [(buffer, range), …])`. It never waits: [`NotSent::Full`] is back-pressure, and
//! `channel.room().await` ends it. A frame that was taken goes out at the end of the pass, in order, or is lost with the session.
//!
//! *Frames in*: [`Handler::layout`] says into which buffers the data go (a record's blocks at the beginning of a buffer of its own), then [`Handler::frame`]
//! gets (kind, epoch, body, buffers) with an [`Admitted`]. Whoever works on the frame after the call keeps it, or clones of it, until the work is *completed*:
//! a newer session of the same peer does not begin before. The epoch is the handler's to compare. An error returned by a handler ends the session.
//!
//! *Ends of channels*: `channel.close(epoch)` on either side; or a sent Refused, after which nothing that still comes on it is delivered. [`Handler::ended`] is
//! always the last call.
//!
//! *Credits*: [`Channel::grants`] counts for the receiver of records, [`Channel::credit`] for their sender; both belong to the session. A sender has none before
//! the first Ack.
//!
//! A node's [`Trunks`] share one link among all volumes that have a replica on the same other node.
//!
//! Tests of users have `rig`: nodes with links on the simulated network.

pub mod accept;
mod beat;
pub mod channel;
pub mod credit;
pub mod down;
mod gate;
mod handshake;
pub mod identity;
pub mod limits;
pub mod link;
mod reader;
mod registry;
#[cfg(test)]
pub(crate) mod rig;
mod state;
#[cfg(test)]
mod tests;
pub mod trunk;
mod waiting;
mod writer;

pub use accept::{Acceptor, Mail};
pub use channel::{Admitted, Broken, Channel, ChannelNo, Ended, Frame, Handler, NotSent, Service};
pub use credit::{Amount, Credit, Grants, OverCredit};
pub use down::{Counts, Down, NoSession};
pub use identity::{BadKey, Credentials, Identity, PUBLIC_KEY_BYTES, Peer, PrivateKey};
pub use link::{Link, Owner};
pub use state::Info;
pub use trunk::{Burden, Rider, Trunk, Trunks};
