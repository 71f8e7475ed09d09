//! Counting what a batch answered at once: one look at the clock when it was received, one when its answers had been sent, and that is
//! the latency of every command in it, as the host sees it but for the network.

use std::cell::Cell;

use crate::nvmf::view::{Namespace, View};
use crate::reactor::{Handle, Nanos};

/// Counters of one batch of one namespace; another namespace's are recorded without waiting for the end.
#[derive(Default)]
pub struct Batch {
    since: Cell<Nanos>,
    index: Cell<usize>,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
    writes: Cell<u64>,
    write_bytes: Cell<u64>,
}

#[inline]
fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

impl Batch {
    /// Bytes have been received.
    #[inline]
    pub fn begin(&self, handle: &Handle) {
        self.since.set(handle.clock());
    }

    /// A read was answered.
    #[inline]
    pub fn read(&self, ns: &Namespace, bytes: u64) {
        self.index.set(ns.index);
        add(&self.reads, 1);
        add(&self.read_bytes, bytes);
    }

    /// A write was answered.
    #[inline]
    pub fn write(&self, ns: &Namespace, bytes: u64) {
        self.index.set(ns.index);
        add(&self.writes, 1);
        add(&self.write_bytes, bytes);
    }

    /// Whether commands of another namespace than this are counted.
    #[inline]
    pub fn is_of_another(&self, ns: &Namespace) -> bool {
        self.index.get() != ns.index && self.reads.get() + self.writes.get() > 0
    }

    /// Records the batch: its answers are with the socket.
    #[inline]
    pub fn record(&self, handle: &Handle, view: &View) {
        let (reads, writes) = (self.reads.take(), self.writes.take());
        let (read_bytes, write_bytes) = (self.read_bytes.take(), self.write_bytes.take());
        if reads + writes == 0 {
            return;
        }
        let Some(stats) = view
            .namespaces
            .get(self.index.get())
            .and_then(|ns| ns.stats.as_ref())
        else {
            return;
        };
        let ns = handle.clock().0.saturating_sub(self.since.get().0);
        if reads > 0 {
            stats.reads_done(reads, read_bytes, ns);
        }
        if writes > 0 {
            stats.writes_done(writes, write_bytes, ns);
        }
    }
}
