//! Reactors: one thread per core, each with its own executor, timers, buffers, io_uring and sockets.
//!
//! Everything outside a reactor is reached through its [`Handle`]: time, disks, network, randomness. Tasks are plain `async` code that
//! never leaves its reactor: long-lived ones are boxed ([`Handle::spawn`]), I/O operations live in a fixed slab ([`Handle::start`]).
//! Reactors share nothing mutable and talk over a [`mesh()`] of bounded rings. A reactor spins while there is work and sleeps in
//! `io_uring_enter` when there has been none for a while; whoever gives it work then rings its bell (`wake`).
//!
//! A pass: reap completions, fire timers, run the tasks that were ready at its beginning, poll the active sockets, submit.

mod asleep;
pub mod disk;
pub mod error;
mod executor;
mod handle;
pub mod mesh;
pub mod notify;
pub mod outbox;
pub mod ring;
pub mod run;
pub mod sim;
pub mod socket;
pub mod stats;
#[cfg(test)]
mod tests;
pub mod timer;
mod uring;
mod wake;
mod wakecell;

pub use disk::{Disk, DiskSpec};
pub use error::{DiskError, NetError, SlabFull, StartError};
pub use executor::{OP_BYTES, OPS_MAX, TaskId};
pub use handle::Handle;
pub use keelblock_hugepages::{Buffer, BufferPool};
pub use mesh::{Endpoint, mesh};
pub use notify::Notify;
pub use run::{Config, Poll, Reactors, run};
pub use socket::{DetachedSocket, Listener, Socket};
pub use stats::ReactorStats;
pub use timer::{Elapsed, Sleep};

use std::time::Duration;

/// Number of a reactor in its process, from 0; 0 is the main reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReactorId(pub u16);

impl std::fmt::Display for ReactorId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A time of the monotonic clock (of the virtual one in a simulation), in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Nanos {
    type Output = Nanos;

    fn add(self, d: Duration) -> Nanos {
        Nanos(
            self.0
                .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}
