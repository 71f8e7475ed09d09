//! The node's data path, as the control process sees it.
//!
//! `link` is the connection: calls over the shared-memory channel, each bounded in time, and the stats page. `supervisor` keeps it:
//! whenever the data path (or this process) has come back, it says hello, opens the pool, hears events (`events`) and
//! re-applies what the KVDB says (`reconcile`), and only then lets changes through. Nothing here takes exports away when this
//! process ends: hosts go on.

mod events;
mod link;
mod pool;
mod reconcile;
mod supervisor;

pub use link::{CALL_TIMEOUT, Link, LinkState};
pub(crate) use reconcile::create_request;
pub use supervisor::supervise;
