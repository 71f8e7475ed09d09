//! Places for handshakes whose peer has not proved who it is. There are [`HANDSHAKES_MAX`] of them, made at the start; when all are taken the oldest is
//! taken away from whoever has it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::limits::HANDSHAKES_MAX;

#[derive(Default)]
struct Slot {
    /// Who has it; 0: nobody.
    ticket: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// All places of a reactor.
pub(super) struct Waiting {
    slots: Box<[Slot]>,
    next: Cell<u64>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            slots: (0..HANDSHAKES_MAX).map(|_| Slot::default()).collect(),
            next: Cell::new(1),
        }
    }
}

impl Waiting {
    /// A free place, or the oldest. Allocates nothing.
    pub(super) fn take(self: &Rc<Self>) -> Place {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        // Free ones have the lowest ticket of all.
        let slots = self.slots.iter().enumerate();
        let oldest = slots.min_by_key(|(_, slot)| slot.ticket.get());
        let (at, slot) = oldest.expect("there are places");
        slot.ticket.set(ticket);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
        Place {
            all: self.clone(),
            at,
            ticket,
        }
    }

    /// How many are taken.
    pub(super) fn count(&self) -> usize {
        self.slots.iter().filter(|s| s.ticket.get() != 0).count()
    }
}

/// A place, until it is dropped or taken away.
pub(super) struct Place {
    all: Rc<Waiting>,
    at: usize,
    ticket: u64,
}

impl Place {
    fn slot(&self) -> Option<&Slot> {
        let slot = &self.all.slots[self.at];
        (slot.ticket.get() == self.ticket).then_some(slot)
    }

    /// What a future gives, unless the place is taken away before.
    pub(super) async fn keeping<F: Future>(&self, f: F) -> Option<F::Output> {
        let mut f = pin!(f);
        std::future::poll_fn(|cx| {
            let Some(slot) = self.slot() else {
                return Poll::Ready(None);
            };
            slot.waker.replace(Some(cx.waker().clone()));
            f.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(slot) = self.slot() {
            slot.ticket.set(0);
            slot.waker.take();
        }
    }
}
