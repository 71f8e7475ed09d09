//! Flushes: one FLUSH of the drive serves all who wait, and makes durable what was complete when it was issued (`docs/store-format.md` §9).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::{Inner, StoreError};
use crate::reactor::{Nanos, Notify};

/// What was written is flushed after this time, asked for or not.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// And after so many bytes: what was not flushed is read by an opening after a crash.
const FLUSH_AFTER_BYTES: u64 = 128 << 20;

/// The flusher's part of a store.
#[derive(Debug, Default)]
pub struct Flusher {
    /// The number of the last flush that was issued.
    issued: Cell<u64>,
    /// The number of the last one that was done.
    done: Cell<u64>,
    /// The highest number that somebody waits for.
    wanted: Cell<u64>,
    ask: Notify,
    finished: Notify,
    failed: Cell<Option<StoreError>>,
    /// Bytes written since the last flush was issued, and when the first of them was.
    dirty_bytes: Cell<u64>,
    dirty_since: Cell<Option<Nanos>>,
    /// Flushes of the drive so far.
    pub count: Cell<u64>,
}

impl Inner {
    /// What completed before is on stable media afterwards.
    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        if !self.volatile {
            return Ok(());
        }
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::FlushDropped) {
            return Ok(());
        }
        // One that is under way was issued before: it does not count.
        let number = self.flusher.issued.get() + 1;
        self.flusher
            .wanted
            .set(self.flusher.wanted.get().max(number));
        self.flusher.ask.notify();
        while self.flusher.done.get() < number {
            if let Some(e) = self.flusher.failed.get() {
                return Err(e);
            }
            if self.stopped.get() {
                return Err(StoreError::Closed);
            }
            self.flusher.finished.notified().await;
        }
        Ok(())
    }

    /// Wakes whoever waits for a flush: it will not come.
    pub(super) fn wake_flushers(&self) {
        self.flusher.finished.notify_all();
        self.flusher.ask.notify();
    }

    /// Something was written that no flush covers.
    pub(super) fn wrote(&self, bytes: u64) {
        if !self.volatile {
            return;
        }
        let dirty = self.flusher.dirty_bytes.get() + bytes;
        self.flusher.dirty_bytes.set(dirty);
        if self.flusher.dirty_since.get().is_none() {
            self.flusher.dirty_since.set(Some(self.handle.now()));
            self.flusher.ask.notify();
        } else if dirty >= FLUSH_AFTER_BYTES {
            self.flusher.ask.notify();
        }
    }

    /// A flush is due as soon as the journal's tail waits for it: otherwise the journal fills, and a checkpoint is done for nothing but its tail.
    pub(super) fn look_at_tail(&self) {
        if self.volatile && self.journal.wants_flush() {
            self.flusher.ask.notify();
        }
    }

    /// Flushes as it is asked, and when time or volume says so.
    pub(super) async fn run_flusher(self: Rc<Self>) {
        while !self.stopped.get() && self.flusher.failed.get().is_none() {
            let f = &self.flusher;
            let asked = f.wanted.get() > f.issued.get();
            let due = f.dirty_since.get().map(|since| since + FLUSH_AFTER);
            let much = f.dirty_bytes.get() >= FLUSH_AFTER_BYTES || self.journal.wants_flush();
            if asked || much || due.is_some_and(|due| due <= self.handle.now()) {
                self.flush_once().await;
                continue;
            }
            match due {
                // Time that passes without anybody asking costs one wake-up.
                Some(due) => {
                    let wait = due.since(self.handle.now());
                    let _ = self.handle.timeout(wait, f.ask.notified()).await;
                }
                None => f.ask.notified().await,
            }
        }
    }

    async fn flush_once(self: &Rc<Self>) {
        let f = &self.flusher;
        let number = f.issued.get() + 1;
        f.issued.set(number);
        f.dirty_bytes.set(0);
        f.dirty_since.set(None);
        f.count.set(f.count.get() + 1);
        let candidate = self.journal.durable_candidate();
        let tag = self.reclaim.flush_issued();
        let flushed = self.device.flush().await;
        match flushed {
            Ok(()) => {
                f.done.set(number);
                self.reclaim.flush_done(tag);
                self.reclaim_ready();
                self.journal.flushed(candidate);
                if !self.in_memory() && self.journal.watermark_is_news() {
                    self.journal.appended.notify();
                }
            }
            Err(e) => f.failed.set(Some(StoreError::Io(e))),
        }
        f.finished.notify_all();
    }

    /// On a drive without a volatile cache what is complete is flushed.
    pub(super) fn reclaim_flushed(&self) {
        let tag = self.reclaim.flush_issued();
        self.reclaim.flush_done(tag);
        self.reclaim_ready();
    }

    /// Blocks that nobody needs any more become free.
    pub(super) fn reclaim_ready(&self) {
        let mut space = self.space.borrow_mut();
        self.reclaim.take_ready(|block| {
            self.cache.remove(block);
            space.release(block);
        });
    }
}
