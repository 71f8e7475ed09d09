//! When to ring and when to sleep (`docs/channel.md`, "Doorbells"): the two halves of the protocol, and nothing else, so that loom can
//! check them.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A 64-bit word that both sides see. In tests also loom's.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// A sequentially consistent fence of the memory that the word is in.
    fn fence();
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Stores an index and says whether the peer sleeps on it, which then must be woken by ringing its bell.
#[must_use]
pub(super) fn publish<W: Word>(index: &W, value: u64, sleeps: &W) -> bool {
    // Release: who sees the index sees the bytes before it.
    index.store(value, Ordering::Release);
    // The index is out before we look at the flag: pairs with the fence in `may_sleep`.
    W::fence();
    if sleeps.load(Ordering::Relaxed) == 0 {
        return false;
    }
    sleeps.store(0, Ordering::Relaxed);
    true
}

/// Announces sleep, then looks again: true if the caller may wait for its bell, false if there is something to do at once.
#[must_use]
pub(super) fn may_sleep<W: Word>(sleeps: &W, changed: impl FnOnce() -> bool) -> bool {
    sleeps.store(1, Ordering::Relaxed);
    // The flag is out before we look at the index: pairs with the fence in `publish`.
    W::fence();
    if changed() {
        sleeps.store(0, Ordering::Relaxed);
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex, atomic};

    impl Word for atomic::AtomicU64 {
        fn load(&self, order: Ordering) -> u64 {
            atomic::AtomicU64::load(self, order)
        }

        fn store(&self, value: u64, order: Ordering) {
            atomic::AtomicU64::store(self, value, order);
        }

        fn fence() {
            atomic::fence(Ordering::SeqCst);
        }
    }

    /// An eventfd: a ring is kept until it is read.
    #[derive(Default)]
    struct Bell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell {
        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }

        fn wait(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    #[derive(Default)]
    struct Shared {
        index: atomic::AtomicU64,
        sleeps: atomic::AtomicU64,
        bell: Bell,
    }

    /// A producer publishes `last` times; a consumer that sleeps whenever it has seen everything must see the last. A ring that is lost
    /// leaves it asleep, which loom reports as a deadlock.
    fn nothing_is_slept_through(last: u64) {
        let mut model = loom::model::Builder::new();
        // Every schedule with up to three preemptions; all of them take minutes for two changes, and found nothing more.
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new(Shared::default());
            let producer = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    for value in 1..=last {
                        if publish(&shared.index, value, &shared.sleeps) {
                            shared.bell.ring();
                        }
                    }
                })
            };
            let mut seen = 0;
            while seen < last {
                let now = shared.index.load(Ordering::Acquire);
                if now != seen {
                    seen = now;
                    continue;
                }
                if may_sleep(&shared.sleeps, || {
                    shared.index.load(Ordering::Acquire) != seen
                }) {
                    shared.bell.wait();
                }
            }
            producer.join().unwrap();
        });
    }

    #[test]
    fn one_change_is_not_slept_through() {
        nothing_is_slept_through(1);
    }

    /// With two changes the flag that the first one clears may be the one that was set for the second.
    #[test]
    fn two_changes_are_not_slept_through() {
        nothing_is_slept_through(2);
    }
}
