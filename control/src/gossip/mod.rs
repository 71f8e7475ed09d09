//! What control processes tell each other over UDP: that they live and how busy they are (`docs/gossip.md`). A hint: nothing is taken over, excluded, fenced or refused by it.
//!
//! `peer` is who takes part, `wire` how that and SWIM's messages are bytes, `stats` how busy a node is, `seal` keeps strangers out; `engine` is all of it without I/O and with a clock
//! given by numbers, over the crate `foca`; `board` is what others may know of it, `observe` looks at this node, `run` has the socket and the timers, and `tell` has the data path know.

mod board;
mod engine;
mod observe;
mod peer;
mod run;
mod seal;
mod secret;
mod stats;
mod tell;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use board::{Board, Heard, STALE};
pub(crate) use run::{bind, gossip};
pub(crate) use secret::GossipRecord;
pub(crate) use stats::{NodeStats, PoolStats};
pub(crate) use tell::tell_loads;
