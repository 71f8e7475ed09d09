//! Timers: a binary heap whose entries know their place, so that a timer that is dropped leaves at once (most time limits never fire).
//! Deadlines are exact, equal ones fire in the order of their making, and nothing is allocated once the heap has seen its largest size.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Nanos;
use super::handle::Core;

/// A timer's number while it waits.
pub(crate) type TimerId = u32;

#[derive(Debug)]
struct Entry {
    deadline: Nanos,
    sequence: u64,
    /// Place in the heap.
    place: u32,
    waker: Option<Waker>,
}

/// All timers of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: Vec<Entry>,
    free: Vec<TimerId>,
    heap: Vec<TimerId>,
    sequence: u64,
}

impl Timers {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Timers {
            entries: Vec::with_capacity(n),
            free: Vec::with_capacity(n),
            heap: Vec::with_capacity(n),
            sequence: 0,
        }
    }

    /// Adds a timer.
    pub(crate) fn add(&mut self, deadline: Nanos, waker: Waker) -> TimerId {
        self.sequence += 1;
        let place = self.heap.len() as u32;
        let entry = Entry {
            deadline,
            sequence: self.sequence,
            place,
            waker: Some(waker),
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as TimerId
            }
        };
        self.heap.push(id);
        self.rise(place as usize);
        id
    }

    /// Replaces a waiting timer's waker.
    pub(crate) fn renew(&mut self, id: TimerId, waker: &Waker) {
        match &mut self.entries[id as usize].waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Removes a timer, fired or not. Its number may be used again afterwards.
    pub(crate) fn remove(&mut self, id: TimerId) {
        let place = self.entries[id as usize].place;
        if place != FIRED {
            self.take_out(place as usize);
        }
        self.entries[id as usize].waker = None;
        self.free.push(id);
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.heap
            .first()
            .map(|id| self.entries[*id as usize].deadline)
    }

    /// Wakes everything that is due; returns how many that were.
    pub(crate) fn fire(&mut self, now: Nanos) -> usize {
        let mut fired = 0;
        while let Some(&id) = self.heap.first() {
            if self.entries[id as usize].deadline > now {
                break;
            }
            self.take_out(0);
            let entry = &mut self.entries[id as usize];
            entry.place = FIRED;
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
            fired += 1;
        }
        fired
    }

    fn fired(&self, id: TimerId) -> bool {
        self.entries[id as usize].place == FIRED
    }

    fn key(&self, place: usize) -> (Nanos, u64) {
        let entry = &self.entries[self.heap[place] as usize];
        (entry.deadline, entry.sequence)
    }

    fn take_out(&mut self, place: usize) {
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.settle(place);
            self.sink(place);
            self.rise(place);
        }
    }

    /// Notes that the timer at `place` is there.
    fn settle(&mut self, place: usize) {
        let id = self.heap[place];
        self.entries[id as usize].place = place as u32;
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.settle(a);
        self.settle(b);
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.key(place) < self.key((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let least = if right < self.heap.len() && self.key(right) < self.key(left) {
                right
            } else {
                left
            };
            if self.key(place) <= self.key(least) {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }
}

const FIRED: u32 = u32::MAX;

/// Future of [`super::Handle::sleep`].
pub struct Sleep {
    core: Rc<Core>,
    deadline: Nanos,
    id: Option<TimerId>,
}

impl Sleep {
    pub(crate) fn new(core: Rc<Core>, deadline: Nanos) -> Self {
        Sleep {
            core,
            deadline,
            id: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.core.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        match self.id {
            None => {
                let id = self
                    .core
                    .timers
                    .borrow_mut()
                    .add(self.deadline, cx.waker().clone());
                self.id = Some(id);
            }
            Some(id) if self.core.timers.borrow().fired(id) => return Poll::Ready(()),
            Some(id) => self.core.timers.borrow_mut().renew(id, cx.waker()),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.core.timers.borrow_mut().remove(id);
        }
    }
}

/// The time limit passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time limit of {limit:?} passed")]
pub struct Elapsed {
    /// The limit.
    pub limit: Duration,
}

/// Future of [`super::Handle::timeout`].
pub struct Timeout<F> {
    pub(crate) inner: F,
    pub(crate) sleep: Sleep,
    pub(crate) limit: Duration,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `inner` is pinned with us and never moved out; `sleep` is Unpin.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above.
        if let Poll::Ready(out) = unsafe { Pin::new_unchecked(&mut this.inner) }.poll(cx) {
            return Poll::Ready(Ok(out));
        }
        match Pin::new(&mut this.sleep).poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Elapsed { limit: this.limit })),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    proptest! {
        #[test]
        fn timers_fire_when_due_and_only_then(steps in prop::collection::vec((0u8..4, 0u64..1000, any::<prop::sample::Index>()), 1..300)) {
            let mut timers = Timers::default();
            let mut waiting: Vec<(u64, TimerId, Arc<Flag>)> = Vec::new();
            let mut now = 0;
            for (what, n, which) in steps {
                match what {
                    0 | 1 => {
                        let flag = Arc::new(Flag(AtomicBool::new(false)));
                        let id = timers.add(Nanos(now + n + 1), Waker::from(flag.clone()));
                        waiting.push((now + n + 1, id, flag));
                    }
                    2 if !waiting.is_empty() => {
                        let (_, id, flag) = waiting.swap_remove(which.index(waiting.len()));
                        timers.remove(id);
                        prop_assert!(!flag.0.load(Ordering::Relaxed));
                    }
                    _ => {
                        now += n / 4;
                        let fired = timers.fire(Nanos(now));
                        let (due, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|w| w.0 <= now);
                        prop_assert_eq!(fired, due.len());
                        for (_, id, flag) in due {
                            prop_assert!(flag.0.load(Ordering::Relaxed));
                            timers.remove(id);
                        }
                        waiting = rest;
                    }
                }
                prop_assert_eq!(timers.next().map(|n| n.0), waiting.iter().map(|w| w.0).min());
                prop_assert!(waiting.iter().all(|w| !w.2.0.load(Ordering::Relaxed)));
            }
        }
    }
}
