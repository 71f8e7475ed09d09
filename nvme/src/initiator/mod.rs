//! A small initiator for NVMe/TCP, used by `up`, the tests and the load generator.
//!
//! A [`QueuePair`] is one connection, polled, never blocking, without allocation per command: commands wait in the outbox, leave in one
//! gathered send, their data goes from and to the submitter's own buffers. A [`Controller`] is an association: its admin queue pair,
//! keep-alive and events. An [`IoQueue`] gives blocking reads and writes to those who prefer them. [`discover`] asks a discovery
//! subsystem, and [`Backoff`] says how long to keep trying.

mod connect;
mod controller;
mod discovery;
mod error;
mod inbox;
mod io_queue;
mod options;
mod outbox;
mod queue;
mod slot;
mod socket;

pub use controller::{AsyncEvent, Controller};
pub use discovery::{DiscoveryEntry, discover};
pub use error::{Error, Result};
pub use io_queue::{IoQueue, Namespace};
pub use options::{Backoff, ConnectOptions};
pub use queue::{FABRICS_CAPSULE_BYTES, QueuePair};
pub use slot::{Completion, Payload};
pub use socket::Negotiated;
