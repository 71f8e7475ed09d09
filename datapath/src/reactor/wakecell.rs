//! A cell for the waker of one waiting task, which any thread may wake, without a lock.
//!
//! Three states: `IDLE`, `REGISTERING` (the owner is storing a waker), `WAKING` (someone takes it out). A waker that comes while the owner
//! is registering leaves `WAKING` behind, and the owner then wakes the task itself.

use std::task::Waker;

#[cfg(not(loom))]
use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};

const IDLE: usize = 0;
const REGISTERING: usize = 1;
const WAKING: usize = 2;

pub(crate) struct WakeCell {
    state: AtomicUsize,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: the waker is only touched by whoever moved the state away from IDLE.
unsafe impl Send for WakeCell {}
// SAFETY: as above.
unsafe impl Sync for WakeCell {}

impl WakeCell {
    pub(crate) fn new() -> Self {
        WakeCell {
            state: AtomicUsize::new(IDLE),
            waker: UnsafeCell::new(None),
        }
    }

    /// Stores the waker of the task that waits. Only one task, on one thread, may do this. Check the condition again afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        match self
            .state
            .compare_exchange(IDLE, REGISTERING, Ordering::Acquire, Ordering::Acquire)
        {
            Ok(_) => {
                let old = self.with(|cell| match cell {
                    Some(old) if old.will_wake(waker) => None,
                    _ => cell.replace(waker.clone()),
                });
                drop(old);
                if self
                    .state
                    .compare_exchange(REGISTERING, IDLE, Ordering::AcqRel, Ordering::Acquire)
                    .is_err()
                {
                    // Someone wanted to wake us meanwhile, and left it to us.
                    let taken = self.with(Option::take);
                    self.state.swap(IDLE, Ordering::AcqRel);
                    if let Some(waker) = taken {
                        waker.wake();
                    }
                }
            }
            // Someone is waking: whom they wake may be an older waker, so wake the new one too.
            Err(_) => waker.wake_by_ref(),
        }
    }

    /// Wakes the task, if one is registered. From any thread. What it shall see must have been published before.
    pub(crate) fn wake(&self) {
        if self.state.fetch_or(WAKING, Ordering::AcqRel) == IDLE {
            let taken = self.with(Option::take);
            self.state.fetch_and(!WAKING, Ordering::Release);
            if let Some(waker) = taken {
                waker.wake();
            }
        }
    }

    #[cfg(not(loom))]
    fn with<R>(&self, f: impl FnOnce(&mut Option<Waker>) -> R) -> R {
        // SAFETY: the caller moved the state away from IDLE, which makes it the only one here.
        f(unsafe { &mut *self.waker.get() })
    }

    #[cfg(loom)]
    fn with<R>(&self, f: impl FnOnce(&mut Option<Waker>) -> R) -> R {
        // SAFETY: as above; loom checks it.
        self.waker.with_mut(|cell| f(unsafe { &mut *cell }))
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool;

    struct Bell(loom::sync::Notify);

    impl std::task::Wake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.notify();
        }
    }

    /// Two tasks wait in turn; loom reports a deadlock if the one that waits at the end is not woken.
    #[test]
    fn a_wake_up_is_never_lost() {
        loom::model(|| {
            let parts = Arc::new((WakeCell::new(), AtomicBool::new(false)));
            let other = parts.clone();
            let thread = loom::thread::spawn(move || {
                other.1.store(true, Ordering::Release);
                other.0.wake();
            });
            let bells = [(); 2].map(|()| std::sync::Arc::new(Bell(loom::sync::Notify::new())));
            let wakers = bells.clone().map(Waker::from);
            parts.0.register(&wakers[0]);
            if !parts.1.load(Ordering::Acquire) {
                parts.0.register(&wakers[1]);
                while !parts.1.load(Ordering::Acquire) {
                    bells[1].0.wait();
                }
            }
            thread.join().unwrap();
        });
    }
}
