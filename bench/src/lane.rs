//! One queue pair at its depth: what is in flight on it, and the buffers.

use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{Completion, Namespace, Payload, QueuePair};
use keelblock_nvme::{Sqe, opcode};
use rand::RngCore;

use crate::ledger::{Ledger, Mismatch};
use crate::report::{Tally, Verified};
use crate::workload::Io;

/// How often to look for an extent without a write in flight before giving up for now.
const CONFLICT_TRIES: usize = 64;

/// An I/O in flight.
#[derive(Clone, Copy)]
struct Pending {
    io: Io,
    since: Instant,
    /// Of a read: what was acknowledged when it was issued.
    oldest: u32,
}

/// What all lanes share.
pub(crate) struct Shared {
    pub(crate) namespace: Namespace,
    pub(crate) io_bytes: usize,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) verified: Verified,
    pub(crate) reads: Tally,
    pub(crate) writes: Tally,
    pub(crate) first_error: Option<String>,
}

impl Shared {
    fn mismatch(&mut self, mismatch: Mismatch) {
        self.verified.mismatches += 1;
        self.verified
            .first_mismatch
            .get_or_insert_with(|| mismatch.to_string());
    }
}

/// A queue pair under load.
pub(crate) struct Lane {
    pub(crate) pair: QueuePair,
    pub(crate) depth: usize,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    buffers: Vec<Vec<u8>>,
    done: Vec<Completion>,
}

impl Lane {
    /// Allocates all that the lane will need.
    pub(crate) fn new(pair: QueuePair, io_bytes: usize, rng: &mut impl RngCore) -> Self {
        let depth = pair.free();
        let buffer = || {
            let mut b = vec![0; io_bytes];
            rng.fill_bytes(&mut b);
            b
        };
        let buffers = std::iter::repeat_with(buffer).take(depth).collect();
        Self {
            pair,
            depth,
            pending: vec![None; depth],
            free: (0..depth).collect(),
            buffers,
            done: Vec::with_capacity(depth),
        }
    }

    /// Whether another I/O can be issued.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.depth
    }

    /// Issues an I/O; its latency counts from `since`. `next` gives the next I/O, and is asked again while the one it gave writes where
    /// a write is in flight. Returns false if there is no I/O that could be issued.
    pub(crate) fn issue(
        &mut self,
        mut next: impl FnMut() -> Option<Io>,
        since: Instant,
        shared: &mut Shared,
    ) -> bool {
        let (Some(mut buffer), Some(tag)) = (self.buffers.pop(), self.free.pop()) else {
            return false;
        };
        for _ in 0..CONFLICT_TRIES {
            let Some(io) = next() else { break };
            let admitted = match &mut shared.ledger {
                Some(ledger) if io.write => ledger.begin_write(io.extent, &mut buffer),
                _ => true,
            };
            if !admitted {
                continue;
            }
            let oldest = shared.ledger.as_ref().map_or(0, |l| l.oldest(io.extent));
            self.pending[tag] = Some(Pending { io, since, oldest });
            let (op, payload) = if io.write {
                (opcode::io::WRITE, Payload::Send(buffer))
            } else {
                (opcode::io::READ, Payload::Receive(buffer))
            };
            let blocks = (shared.io_bytes / shared.namespace.block_bytes as usize) as u32;
            let sqe = Sqe::io(
                op,
                shared.namespace.nsid,
                io.extent * u64::from(blocks),
                blocks,
            );
            let submitted = self.pair.submit(tag as u64, sqe, payload);
            assert!(
                submitted.is_ok(),
                "the queue pair has as many slots as the lane"
            );
            return true;
        }
        self.buffers.push(buffer);
        self.free.push(tag);
        false
    }

    /// Sends, receives, and accounts for what completed; returns how much did.
    pub(crate) fn poll(&mut self, shared: &mut Shared) -> keelblock_nvme::initiator::Result<usize> {
        let n = self.pair.poll(&mut self.done)?;
        if n == 0 {
            return Ok(0);
        }
        let now = Instant::now();
        for done in self.done.drain(..) {
            let tag = done.tag as usize;
            let Some(pending) = self.pending[tag].take() else {
                continue;
            };
            complete(
                &pending,
                &done,
                now.saturating_duration_since(pending.since),
                shared,
            );
            self.buffers.push(done.buffer);
            self.free.push(tag);
        }
        Ok(n)
    }
}

fn complete(pending: &Pending, done: &Completion, latency: Duration, shared: &mut Shared) {
    let Pending { io, oldest, .. } = *pending;
    let status = done.status();
    let whole = io.write || done.received == shared.io_bytes;
    let ok = status.is_success() && whole;
    if let Some(ledger) = &mut shared.ledger {
        if io.write {
            ledger.end_write(io.extent, ok);
        } else if ok {
            match ledger.check(io.extent, oldest, &done.buffer) {
                Ok(blocks) => shared.verified.blocks_checked += blocks,
                Err(mismatch) => shared.mismatch(mismatch),
            }
        }
    }
    let tally = if io.write {
        &mut shared.writes
    } else {
        &mut shared.reads
    };
    if ok {
        tally.record(latency);
        return;
    }
    tally.errors += 1;
    shared.first_error.get_or_insert_with(|| {
        let what = if io.write { "write" } else { "read" };
        let why = if whole {
            status.to_string()
        } else {
            format!("success, with {} bytes", done.received)
        };
        format!("{what} of extent {}: {why}", io.extent)
    });
}
