//! The coordinator of a replicated volume (`docs/replication.md` §§7 to 12): stamps, acknowledges, settles, reads, takes over, changes the set.
//!
//! All of it but [`driver`] is events in and actions out, with no I/O and no clock but the numbers it is given. [`state`] ties it together: `quorum` (who must
//! have said yes), `order` (stamps and streams), `reserve` (stamps for commands of hosts on other nodes), `ring` (everybody's place in them), `settled`, `lease`, `union` (what a takeover completes), `set` (the
//! KVDB's record), `slow`, `read` (what reads may show), `flush`. `members` and `message` are the words. [`links`] leads to replicas over sessions, in the words of
//! [`frames`]. `volume/replicated` has hosts' operations end up here.

mod asking;
mod comparing;
pub mod driver;
pub mod flush;
pub mod frames;
pub mod lease;
pub mod links;
pub mod members;
pub mod message;
pub mod order;
pub mod quorum;
pub mod read;
mod reading;
pub mod reserve;
pub mod resync;
pub mod ring;
pub mod set;
pub mod settled;
pub mod slow;
mod snapshotting;
pub mod state;
#[cfg(test)]
mod tests;
pub mod union;
mod writing;
