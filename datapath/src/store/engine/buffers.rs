//! Buffers that a store sets aside when it opens.
//!
//! They come from here and not from the pool because whoever needs one works for operations that hold the pool's buffers: waiting for the
//! pool then could be waiting for oneself. A holder of one waits for nothing but the drive.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::task::{Poll, Waker};

use keelblock_hugepages::{Buffer, BufferPool};

#[derive(Debug)]
struct Set {
    free: RefCell<Vec<Buffer>>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Buffers of one size. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BufferSet(Rc<Set>);

/// One of them; dropping it gives it back.
#[derive(Debug)]
pub struct Borrowed {
    of: BufferSet,
    buffer: Option<Buffer>,
}

impl BufferSet {
    /// Takes `count` buffers of `bytes` from the pool; `None` if it has not so many.
    pub fn new(pool: &BufferPool, bytes: usize, count: usize) -> Option<Self> {
        let buffers = (0..count).map(|_| pool.try_take(bytes));
        let free: Option<Vec<Buffer>> = buffers.collect();
        Some(Self(Rc::new(Set {
            free: RefCell::new(free?),
            waiting: RefCell::default(),
        })))
    }

    /// One, when one is free.
    pub async fn take(&self) -> Borrowed {
        let buffer = poll_fn(|cx| match self.0.free.borrow_mut().pop() {
            Some(buffer) => Poll::Ready(buffer),
            None => {
                self.0.waiting.borrow_mut().push_back(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
        Borrowed {
            of: self.clone(),
            buffer: Some(buffer),
        }
    }
}

impl Borrowed {
    /// Lends the buffer itself to an operation that gives it back.
    pub fn lend(&mut self) -> Buffer {
        self.buffer.take().expect("lent once")
    }

    /// It is back.
    pub fn back(&mut self, buffer: Buffer) {
        self.buffer = Some(buffer);
    }
}

impl Deref for Borrowed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().expect("not lent")
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().expect("not lent")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Lent to an operation that was dropped with us: it goes back to the pool, and the set is one smaller.
        if let Some(buffer) = self.buffer.take() {
            self.of.0.free.borrow_mut().push(buffer);
        }
        if let Some(waker) = self.of.0.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }
}
