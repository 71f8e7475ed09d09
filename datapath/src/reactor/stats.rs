//! Counters of one reactor: relaxed atomics that it alone writes and anyone may read.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owner may call this: it is no atomic addition, which would cost ten times as much.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Sets the value. Only the owner may call this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a reactor, in the order of its block in the statistics page. Times are nanoseconds since its start.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ReactorStats {
    /// Time in passes that did something.
    pub busy_ns: Counter,
    /// Time in passes that found nothing to do.
    pub idle_ns: Counter,
    /// Time asleep in the kernel.
    pub asleep_ns: Counter,
    /// Processor time of the thread.
    pub cpu_ns: Counter,
    /// Passes.
    pub passes: Counter,
    /// Passes that found nothing to do.
    pub empty_passes: Counter,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Times another thread's waking reached it.
    pub remote_wakes: Counter,
    /// Tasks polled, operations included.
    pub polls: Counter,
    /// I/O operations started in the slab.
    pub ops_started: Counter,
    /// I/O operations in the slab now.
    pub ops_in_flight: Counter,
    /// Long-lived tasks now.
    pub tasks: Counter,
    /// Kernel operations in flight in the io_uring now (ring depth).
    pub ring_depth: Counter,
    /// Calls of `io_uring_enter`.
    pub enters: Counter,
    /// Tasks that held the core longer than the watchdog allows.
    pub stalls: Counter,
    /// The longest that a task held the core.
    pub stall_ns_max: Counter,
    /// NVMe commands taken in.
    pub commands: Counter,
    /// Sockets now.
    pub sockets: Counter,
    /// Sockets polled in every pass now.
    pub sockets_active: Counter,
    /// Bytes of buffers in use now.
    pub buffer_bytes_used: Counter,
    /// Budget of buffers in bytes.
    pub buffer_bytes_total: Counter,
}

/// Number of counters.
pub const COUNTERS: usize = size_of::<ReactorStats>() / 8;

const _: () = assert!(size_of::<ReactorStats>() == 21 * 8);

impl ReactorStats {
    /// All values, in order.
    pub fn values(&self) -> [u64; COUNTERS] {
        [
            &self.busy_ns,
            &self.idle_ns,
            &self.asleep_ns,
            &self.cpu_ns,
            &self.passes,
            &self.empty_passes,
            &self.sleeps,
            &self.remote_wakes,
            &self.polls,
            &self.ops_started,
            &self.ops_in_flight,
            &self.tasks,
            &self.ring_depth,
            &self.enters,
            &self.stalls,
            &self.stall_ns_max,
            &self.commands,
            &self.sockets,
            &self.sockets_active,
            &self.buffer_bytes_used,
            &self.buffer_bytes_total,
        ]
        .map(Counter::get)
    }
}
