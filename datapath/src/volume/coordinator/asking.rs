//! Questions to a replica that wait for an answer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::driver::NotRead;
use crate::reactor::Handle;

type Answer<A> = Result<A, NotRead>;

struct Waiting<K, A> {
    number: u64,
    key: K,
    answer: Option<Answer<A>>,
    waker: Option<Waker>,
}

/// Questions of one kind: `K` is what an answer names.
pub(super) struct Asking<K, A> {
    next: Cell<u64>,
    waiting: RefCell<Vec<Waiting<K, A>>>,
}

impl<K, A> Default for Asking<K, A> {
    fn default() -> Self {
        Self {
            next: Cell::new(0),
            waiting: RefCell::default(),
        }
    }
}

/// A question; dropped, nobody waits for its answer.
pub(super) struct Asked<'a, K, A> {
    of: &'a Asking<K, A>,
    number: u64,
}

impl<K: PartialEq, A> Asking<K, A> {
    /// Somebody is about to ask.
    pub fn begin(&self, key: K) -> Asked<'_, K, A> {
        let number = self.next.get() + 1;
        self.next.set(number);
        self.waiting.borrow_mut().push(Waiting {
            number,
            key,
            answer: None,
            waker: None,
        });
        Asked { of: self, number }
    }

    /// An answer came; the oldest question that it fits has it.
    pub fn answer(&self, key: &K, answer: Answer<A>) {
        let mut waiting = self.waiting.borrow_mut();
        let fits = |w: &&mut Waiting<K, A>| w.key == *key && w.answer.is_none();
        // Nobody may wait for it any more.
        if let Some(found) = waiting.iter_mut().find(fits) {
            found.answer = Some(answer);
            if let Some(waker) = found.waker.take() {
                waker.wake();
            }
        }
    }

    /// No answer comes any more.
    pub fn end(&self) {
        for waiting in self.waiting.borrow_mut().iter_mut() {
            waiting.answer.get_or_insert(Err(NotRead::Away));
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
    }
}

impl<K, A> Asked<'_, K, A> {
    /// Waits for the answer, for so long at most.
    pub async fn answered(self, handle: &Handle, limit: Duration) -> Answer<A> {
        let answered = poll_fn(|cx| {
            let mut all = self.of.waiting.borrow_mut();
            let found = all.iter_mut().find(|w| w.number == self.number);
            let waiting = found.expect("it is there until this is dropped");
            match waiting.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        let answer = handle.timeout(limit, answered).await;
        answer.unwrap_or(Err(NotRead::Away))
    }
}

impl<K, A> Drop for Asked<'_, K, A> {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting.borrow_mut();
        waiting.retain(|w| w.number != self.number);
    }
}
