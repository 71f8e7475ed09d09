//! Waking one task of a reactor from another task of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A wake-up within one reactor. [`Notify::notify`] without a waiter is remembered, once: the next [`Notify::notified`] returns at once.
#[derive(Debug, Default)]
pub struct Notify {
    permit: Cell<bool>,
    next_id: Cell<u64>,
    waiters: RefCell<VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Waker,
    notified: bool,
}

impl Notify {
    /// Without a notification.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the task that has waited longest; if none waits, the next one does not have to.
    pub fn notify(&self) {
        match self.waiters.borrow_mut().iter_mut().find(|w| !w.notified) {
            Some(waiter) => {
                waiter.notified = true;
                waiter.waker.wake_by_ref();
            }
            None => self.permit.set(true),
        }
    }

    /// Wakes all tasks that wait, and remembers nothing.
    pub fn notify_all(&self) {
        for waiter in self.waiters.borrow_mut().iter_mut().filter(|w| !w.notified) {
            waiter.notified = true;
            waiter.waker.wake_by_ref();
        }
    }

    /// Waits for a notification.
    pub fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            id: None,
        }
    }
}

/// Future of [`Notify::notified`].
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    id: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        let mut waiters = notify.waiters.borrow_mut();
        let Some(id) = self.id else {
            if notify.permit.take() {
                return Poll::Ready(());
            }
            let id = notify.next_id.get();
            notify.next_id.set(id + 1);
            waiters.push_back(Waiter {
                id,
                waker: cx.waker().clone(),
                notified: false,
            });
            self.id = Some(id);
            return Poll::Pending;
        };
        let Some(at) = waiters.iter().position(|w| w.id == id) else {
            return Poll::Ready(());
        };
        if waiters[at].notified {
            waiters.remove(at);
            self.id = None;
            return Poll::Ready(());
        }
        if !waiters[at].waker.will_wake(cx.waker()) {
            waiters[at].waker = cx.waker().clone();
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut waiters = self.notify.waiters.borrow_mut();
        let Some(at) = waiters.iter().position(|w| w.id == id) else {
            return;
        };
        let unused = waiters.remove(at).is_some_and(|w| w.notified);
        drop(waiters);
        if unused {
            // We were told and did not listen: tell the next one.
            self.notify.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(f: &mut Notified<'_>) -> bool {
        Pin::new(f)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn a_notification_before_waiting_counts_once() {
        let notify = Notify::new();
        notify.notify();
        notify.notify();
        assert!(poll(&mut notify.notified()));
        assert!(!poll(&mut notify.notified()));
    }

    #[test]
    fn waiters_are_served_in_order_and_a_dropped_one_passes_it_on() {
        let notify = Notify::new();
        let (mut a, mut b) = (notify.notified(), notify.notified());
        assert!(!poll(&mut a) && !poll(&mut b));
        notify.notify();
        assert!(!poll(&mut b));
        drop(a);
        assert!(poll(&mut b));
        assert!(!poll(&mut notify.notified()));
    }

    #[test]
    fn all_are_woken_and_nothing_is_remembered() {
        let notify = Notify::new();
        let (mut a, mut b) = (notify.notified(), notify.notified());
        assert!(!poll(&mut a) && !poll(&mut b));
        notify.notify_all();
        assert!(poll(&mut a) && poll(&mut b));
        assert!(!poll(&mut notify.notified()));
    }
}
