//! The command service: what the control process asks over the channel (`keelblock/datapath.proto`), done.
//!
//! There are two sides. The `service` side runs on the service thread: it checks requests, does what blocks (creating and locking
//! drives), and sends a job to reactor 0. The `commander` side lives on reactor 0 and knows pools (`pools`, `drives`, `evacuate`), volumes (`provision`),
//! snapshots (`snapshots`), replicas and coordinators (`replication`), scrubs (`scrub`) and exports; a job runs there and its answer goes back, waited for with a bound. What drives hold it asks of
//! their homes each time, and decides by `store::pool`. Changes of that happen one at a time; everything else goes on beside them. Events
//! of the target and of drives go the other way (`events`). `error` turns what fails into a status.

mod commander;
mod convert;
mod drives;
mod error;
mod evacuate;
mod events;
mod pools;
mod prepare;
mod provision;
mod replication;
mod scrub;
mod service;
mod snapshots;
mod volumes;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

pub use commander::Commander;

pub use error::CommandError;
pub use events::{EventSink, Events, channel as event_channel, unix_ms};
pub use prepare::PreparedDrive;
pub use replication::Replicating;
pub use service::{Facts, Service};
pub use volumes::HubVolumes;

/// Jobs that wait for reactor 0 at most; more are refused.
pub const JOBS_MAX: usize = 256;

/// Something to be done on reactor 0.
pub type Job = Box<dyn FnOnce(Rc<Commander>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;
