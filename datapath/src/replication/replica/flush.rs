//! Flushes: asked for by the coordinator, or due because something was written a while ago.
//!
//! A Flush waits until all that was admitted before it is written, then for a flush of the store that begins after that. One flush of the store serves all
//! who wait.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::apply::why;
use super::channel::Chan;
use super::events::Key;
use super::service::Inner;
use super::{Breach, FLUSH_AFTER, FLUSHES_MAX, Outgoing};
use crate::reactor::{Handle, Nanos, Notify};
use crate::replication::seam::{ReplicaError, ReplicaStore};

#[derive(Debug)]
struct Wait {
    by: Key,
    number: u64,
    /// What was admitted when it came, by lane.
    admitted: Vec<u64>,
}

/// Flushes that wait.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    waits: RefCell<Vec<Wait>>,
    /// When the first was written of what no flush covers.
    dirty_since: Cell<Option<Nanos>>,
    ask: Notify,
}

impl Flushes {
    /// Something was written.
    pub fn wrote(&self, handle: &Handle) {
        if self.dirty_since.get().is_none() {
            self.dirty_since.set(Some(handle.now()));
            self.ask.notify();
        }
    }

    /// Positions moved: one that waits may be due.
    pub fn look(&self) {
        if !self.waits.borrow().is_empty() {
            self.ask.notify();
        }
    }

    pub fn wake(&self) {
        self.ask.notify();
    }

    /// A channel is gone.
    pub fn forget(&self, by: Key) {
        self.waits.borrow_mut().retain(|w| w.by != by);
    }

    /// All that wait are of an epoch that is over.
    pub fn clear(&self) {
        self.waits.borrow_mut().clear();
    }

    /// Whether a channel has some that wait.
    pub fn has(&self, by: Key) -> bool {
        self.waits.borrow().iter().any(|w| w.by == by)
    }

    /// Those for which everything is written.
    fn take_due(&self, written: &[u64]) -> Vec<(Key, u64)> {
        let mut due = Vec::new();
        self.waits.borrow_mut().retain(|w| {
            let all = w.admitted.iter().zip(written).all(|(a, w)| a <= w);
            if all {
                due.push((w.by, w.number));
            }
            !all
        });
        due
    }
}

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// A Flush of an admitted channel.
    pub(super) fn admit_flush(&self, chan: &Chan<O>, number: u64) -> Result<(), Breach> {
        let mut waits = self.flushes.waits.borrow_mut();
        let of_it = waits.iter().filter(|w| w.by == chan.key);
        let (count, last) = of_it.fold((0, 0), |(n, last), w| (n + 1, w.number.max(last)));
        if number <= last.max(chan.flushed.get()) {
            return Err(Breach::Sequence("a flush with an old number"));
        }
        if count >= FLUSHES_MAX {
            return Err(Breach::Sequence("more flushes than may wait"));
        }
        let lanes = self.lanes.borrow();
        waits.push(Wait {
            by: chan.key,
            number,
            admitted: lanes.iter().map(|l| l.stream.admitted()).collect(),
        });
        drop(waits);
        self.flushes.ask.notify();
        Ok(())
    }

    /// The task that flushes.
    pub(super) async fn run_flushes(self: Rc<Self>) {
        while !self.stopped.get() {
            let f = &self.flushes;
            let marks: Vec<_> = {
                let lanes = self.lanes.borrow();
                lanes.iter().map(|l| l.stream.mark()).collect()
            };
            let due = f.take_due(&marks);
            let now = self.handle.now();
            let at = f.dirty_since.get().map(|since| since + FLUSH_AFTER);
            if due.is_empty() && at.is_none_or(|at| at > now) {
                match at {
                    // It passed, or somebody asked: both are looked at.
                    Some(at) => drop(self.handle.timeout(at.since(now), f.ask.notified()).await),
                    None => f.ask.notified().await,
                }
                continue;
            }
            let streams = self.streams.get();
            f.dirty_since.set(None);
            match self.store.flush().await {
                Ok(()) if streams == self.streams.get() => self.flushed(&marks, &due),
                Ok(()) => {}
                Err(ReplicaError::Incomplete(_)) => self.lost(),
                Err(error) => {
                    // What is written may be gone: nobody is told that it is stable.
                    for chan in self.all_channels() {
                        self.refuse(&chan, why(&error));
                    }
                }
            }
        }
    }

    fn flushed(&self, marks: &[u64], due: &[(Key, u64)]) {
        for (lane, mark) in self.lanes.borrow_mut().iter_mut().zip(marks) {
            lane.moved |= lane.stream.flushed(*mark);
        }
        for (by, number) in due {
            if let Some(chan) = self.chan(*by) {
                chan.flushed.set(chan.flushed.get().max(*number));
                chan.ack_due.set(true);
            }
        }
        self.ack.notify();
    }
}
