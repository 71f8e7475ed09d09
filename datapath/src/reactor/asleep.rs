//! The handshake between one who goes to sleep and those who give it work.
//!
//! The sleeper announces itself, and *then* looks for work once more; a producer publishes work, and *then* looks for the sleeper. The
//! fence between the two steps on either side makes sure that at least one of them sees the other, so work never lies in front of a
//! sleeper. Only one of several producers gets to ring.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether one sleeps, or is about to.
pub(crate) struct Asleep(AtomicBool);

impl Asleep {
    pub(crate) fn new() -> Self {
        Asleep(AtomicBool::new(false))
    }

    /// The sleeper: look for work after this, and only sleep if there is none.
    pub(crate) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The sleeper: awake, or stayed awake.
    pub(crate) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// A producer, after publishing work: whether it must ring.
    pub(crate) fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
            && self
                .0
                .compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::{Arc, Notify};

    /// Sleeps on a bell as reactors do, until both producers' work has been seen. Loom reports a deadlock if a ring is lost.
    #[test]
    fn work_never_lies_in_front_of_a_sleeper() {
        let mut model = loom::model::Builder::new();
        // Three threads: exhaustive search takes hours, three preemptions a second.
        model.preemption_bound = Some(3);
        model.check(|| {
            let parts = Arc::new((
                Asleep::new(),
                [AtomicUsize::new(0), AtomicUsize::new(0)],
                Notify::new(),
            ));
            let producers: Vec<_> = (0..2)
                .map(|i| {
                    let parts = parts.clone();
                    loom::thread::spawn(move || {
                        parts.1[i].store(1, Ordering::Relaxed);
                        if parts.0.must_ring() {
                            parts.2.notify();
                        }
                    })
                })
                .collect();
            let all_seen = || parts.1.iter().all(|work| work.load(Ordering::Relaxed) == 1);
            while !all_seen() {
                parts.0.announce();
                if all_seen() {
                    parts.0.end();
                    break;
                }
                parts.2.wait();
                parts.0.end();
            }
            for producer in producers {
                producer.join().unwrap();
            }
        });
    }
}
