//! Operations that wait for somebody else to finish them: a slot each, with the buffer that comes back.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

#[derive(Debug)]
enum Slot<T> {
    Free,
    Waiting(Option<Waker>),
    Done(T),
    /// Who waited has gone; what comes is dropped.
    Abandoned,
}

#[derive(Debug)]
struct Slots<T> {
    all: Vec<Slot<T>>,
    free: Vec<u32>,
}

/// Slots for values of one kind. They grow to the depth that was really seen, and stay.
#[derive(Debug)]
pub struct Tickets<T>(RefCell<Slots<T>>);

/// Names a slot to who will finish the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketNumber(u32);

/// The right to what comes.
#[derive(Debug)]
pub struct Ticket<'a, T> {
    of: &'a Tickets<T>,
    number: TicketNumber,
}

impl<T> Tickets<T> {
    /// With room for `n`.
    pub fn with_capacity(n: usize) -> Self {
        let slots = Slots {
            all: Vec::with_capacity(n),
            free: Vec::with_capacity(n),
        };
        Self(RefCell::new(slots))
    }

    /// A slot.
    pub fn issue(&self) -> Ticket<'_, T> {
        let mut slots = self.0.borrow_mut();
        let number = slots.free.pop().unwrap_or_else(|| {
            slots.all.push(Slot::Free);
            (slots.all.len() - 1) as u32
        });
        slots.all[number as usize] = Slot::Waiting(None);
        Ticket {
            of: self,
            number: TicketNumber(number),
        }
    }

    /// The operation is finished.
    ///
    /// # Panics
    /// If it was finished before.
    pub fn finish(&self, number: TicketNumber, value: T) {
        let mut slots = self.0.borrow_mut();
        let slot = &mut slots.all[number.0 as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting(waker) => {
                *slot = Slot::Done(value);
                drop(slots);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Abandoned => slots.free.push(number.0),
            Slot::Free | Slot::Done(_) => unreachable!("a ticket is finished once"),
        }
    }
}

impl<T> Ticket<'_, T> {
    /// What to give to who finishes it.
    pub fn number(&self) -> TicketNumber {
        self.number
    }

    /// Waits for it.
    pub async fn wait(self) -> T {
        poll_fn(|cx| {
            let mut slots = self.of.0.borrow_mut();
            let slot = &mut slots.all[self.number.0 as usize];
            match slot {
                Slot::Waiting(waker) => {
                    if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                        *waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                _ => match std::mem::replace(slot, Slot::Abandoned) {
                    Slot::Done(value) => {
                        *slot = Slot::Free;
                        Poll::Ready(value)
                    }
                    _ => unreachable!("a ticket has one owner"),
                },
            }
        })
        .await
    }
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        let mut slots = self.of.0.borrow_mut();
        let slot = &mut slots.all[self.number.0 as usize];
        match slot {
            Slot::Waiting(_) => *slot = Slot::Abandoned,
            _ => {
                *slot = Slot::Free;
                slots.free.push(self.number.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn what_comes_is_given_to_who_waits_and_slots_are_used_again() {
        let tickets = Tickets::<u32>::with_capacity(1);
        let mut cx = Context::from_waker(Waker::noop());
        let ticket = tickets.issue();
        let number = ticket.number();
        {
            let mut wait = pin!(ticket.wait());
            assert!(wait.as_mut().poll(&mut cx).is_pending());
            tickets.finish(number, 5);
            assert_eq!(wait.poll(&mut cx), Poll::Ready(5));
        }
        let again = tickets.issue();
        assert_eq!(again.number(), number);
        drop(again);
        // Given up while under way: free only once it is finished.
        let other = tickets.issue();
        assert_ne!(other.number(), number);
        tickets.finish(number, 6);
        assert_eq!(tickets.issue().number(), number);
    }
}
