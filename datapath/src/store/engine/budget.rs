//! Memory for cached blocks: one budget for all drives of a process, whichever reactors they are on (`DESIGN.md` §9).
//!
//! Each open drive has a [`Share`]. It grows a piece at a time while there is memory that nobody has. When there is none, a drive that has less
//! than its equal part asks those that have more, and these give back what is above theirs; until the drive has its part, nobody else takes
//! anything beyond his. So one busy drive may use everything, and never keeps another from its part.
//!
//! Counters are atomic since drives are on several threads. The lock is only taken when a drive asks, comes or goes.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use super::super::types::BLOCK_BYTES;

/// Blocks by which a share grows.
const PIECE: usize = 64;
/// Blocks that each drive has, whatever the others do.
pub const LEAST: usize = 16;

#[derive(Debug)]
struct Shared {
    blocks: usize,
    /// Blocks that no share has.
    free: AtomicUsize,
    shares: AtomicUsize,
    /// Shares that asked, and have not got their part yet.
    asking: AtomicUsize,
    next_share: AtomicU64,
    /// Who is told that somebody asks.
    told: Mutex<Vec<(u64, Waker)>>,
}

impl Shared {
    /// What each share may have in any case.
    fn part(&self) -> usize {
        (self.blocks / self.shares.load(Relaxed).max(1)).max(LEAST)
    }

    /// Takes up to so many blocks of what is free.
    fn take(&self, blocks: usize) -> usize {
        let left = |free: usize| (free > 0).then(|| free - free.min(blocks));
        let before = self.free.fetch_update(Relaxed, Relaxed, left);
        before.map_or(0, |free| free.min(blocks))
    }

    /// Wakes everybody who waits to be asked.
    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(|e| e.into_inner());
        let all = std::mem::take(&mut *told);
        drop(told);
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Memory for cached data and pages of all drives of a process. Cheap to clone: clones are one budget.
#[derive(Clone, Debug)]
pub struct CacheBudget(Arc<Shared>);

impl CacheBudget {
    /// Of a process that is not told otherwise.
    pub const BYTES_DEFAULT: u64 = 128 << 20;

    /// Of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let blocks = usize::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        Self(Arc::new(Shared {
            blocks,
            free: AtomicUsize::new(blocks),
            shares: AtomicUsize::new(0),
            asking: AtomicUsize::new(0),
            next_share: AtomicU64::new(0),
            told: Mutex::default(),
        }))
    }

    /// A drive's share, for as long as it is open.
    pub fn share(&self) -> Share {
        let shared = &self.0;
        shared.shares.fetch_add(1, Relaxed);
        Share {
            number: shared.next_share.fetch_add(1, Relaxed),
            taken: Cell::new(shared.take(LEAST)),
            asking: Cell::new(false),
            closed: Cell::new(false),
            of: shared.clone(),
        }
    }

    /// Bytes that shares have, of all.
    #[cfg(test)]
    pub fn used_bytes(&self) -> u64 {
        let free = self.0.free.load(Relaxed);
        ((self.0.blocks - free) * BLOCK_BYTES) as u64
    }
}

impl Default for CacheBudget {
    fn default() -> Self {
        Self::new(Self::BYTES_DEFAULT)
    }
}

/// What one drive has of a budget. Lives on the drive's reactor.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shared>,
    number: u64,
    taken: Cell<usize>,
    asking: Cell<bool>,
    closed: Cell<bool>,
}

impl Share {
    /// Blocks that the drive may hold.
    pub fn blocks(&self) -> usize {
        self.taken.get().max(LEAST)
    }

    /// Blocks of the whole budget.
    pub fn blocks_of_all(&self) -> usize {
        self.of.blocks.max(LEAST)
    }

    /// Takes more, if there is more to be had; if not, and it has less than its part, others are asked for it.
    pub fn grow(&self) -> bool {
        let (taken, part) = (self.taken.get(), self.of.part());
        if taken >= part && self.of.asking.load(Relaxed) > 0 {
            return false;
        }
        let got = self.of.take(PIECE);
        self.taken.set(taken + got);
        if self.asking.get() && taken + got >= part {
            self.asking.set(false);
            self.of.asking.fetch_sub(1, Relaxed);
        }
        if got == 0 && taken < part && !self.asking.replace(true) {
            self.of.asking.fetch_add(1, Relaxed);
            self.of.tell();
        }
        got > 0
    }

    fn is_asked(&self) -> bool {
        self.of.asking.load(Relaxed) > 0 && self.taken.get() > self.of.part()
    }

    /// Waits until others want what it has above its part; false: it was closed.
    pub async fn asked(&self) -> bool {
        poll_fn(|cx| {
            if !self.closed.get() && !self.is_asked() {
                let mut told = self.of.told.lock().unwrap_or_else(|e| e.into_inner());
                told.retain(|(number, _)| *number != self.number);
                told.push((self.number, cx.waker().clone()));
                // Whoever asked before the lock was taken was not told of us.
                if !self.is_asked() {
                    return Poll::Pending;
                }
            }
            Poll::Ready(!self.closed.get())
        })
        .await
    }

    /// Does not hold more than its part any more; what is above it can be taken by others once `shrunk` has returned.
    pub fn give(&self, shrunk: impl FnOnce(usize)) {
        let (taken, part) = (self.taken.get(), self.of.part());
        if taken > part {
            self.taken.set(part);
            shrunk(self.blocks());
            self.of.free.fetch_add(taken - part, Relaxed);
        }
    }

    /// Its drive is closed: nobody waits any more.
    pub fn close(&self) {
        self.closed.set(true);
        self.of.tell();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut told = self.of.told.lock().unwrap_or_else(|e| e.into_inner());
        told.retain(|(number, _)| *number != self.number);
        drop(told);
        if self.asking.get() {
            self.of.asking.fetch_sub(1, Relaxed);
        }
        self.of.shares.fetch_sub(1, Relaxed);
        self.of.free.fetch_add(self.taken.get(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn fill(share: &Share) {
        while share.grow() {}
    }

    #[test]
    fn one_drive_has_everything_and_gives_the_others_their_part() {
        let budget = CacheBudget::new(1000 * BLOCK);
        let first = budget.share();
        assert_eq!(first.blocks(), LEAST);
        fill(&first);
        assert_eq!(first.blocks(), 1000);
        assert_eq!(budget.used_bytes(), 1000 * BLOCK);
        let mut cx = Context::from_waker(Waker::noop());
        let mut asked = pin!(first.asked());
        assert!(asked.as_mut().poll(&mut cx).is_pending());
        // There is nothing: it has the least, and asks.
        let second = budget.share();
        assert!(!second.grow());
        assert_eq!(second.blocks(), LEAST);
        assert_eq!(asked.as_mut().poll(&mut cx), Poll::Ready(true));
        let mut held = 1000;
        first.give(|blocks| held = blocks);
        assert_eq!((held, first.blocks()), (500, 500));
        // What was given is not taken back before the other has its part.
        assert!(!first.grow());
        fill(&second);
        assert_eq!(second.blocks(), 500);
        assert_eq!(budget.used_bytes(), 1000 * BLOCK);
        drop(second);
        fill(&first);
        assert_eq!(first.blocks(), 1000);
    }

    #[test]
    fn a_drive_that_asked_and_went_keeps_nothing_from_anybody() {
        let budget = CacheBudget::new(256 * BLOCK);
        let first = budget.share();
        fill(&first);
        let second = budget.share();
        assert!(!second.grow());
        drop(second);
        first.give(|_| unreachable!("it has the only part"));
        let mut cx = Context::from_waker(Waker::noop());
        {
            let mut asked = pin!(first.asked());
            assert!(asked.as_mut().poll(&mut cx).is_pending());
            first.close();
            assert_eq!(asked.as_mut().poll(&mut cx), Poll::Ready(false));
        }
        drop(first);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn drives_on_many_threads_never_have_more_than_there_is() {
        let budget = CacheBudget::new(4096 * BLOCK);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let share = budget.share();
                        for _ in 0..40 {
                            share.grow();
                            share.give(|_| ());
                            assert!(budget.used_bytes() <= 4096 * BLOCK);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used_bytes(), 0);
        assert_eq!(budget.0.asking.load(Relaxed), 0);
    }
}
