//! Buffers that a store sets aside when it opens.
//!
//! They come from here and not from the pool because whoever needs one works for operations that hold the pool's buffers: waiting for the
//! pool then could be waiting for oneself. A holder of one waits for nothing but the drive.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use keelblock_hugepages::{Buffer, BufferPool};

use crate::reactor::Notify;

#[derive(Debug)]
struct Set {
    free: RefCell<Vec<Buffer>>,
    /// One was given back. Each waiter is known once, however often it is polled: a wake-up must not go to who waits no more.
    returned: Notify,
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
            returned: Notify::new(),
        })))
    }

    /// One, when one is free.
    pub async fn take(&self) -> Borrowed {
        let buffer = loop {
            let free = self.0.free.borrow_mut().pop();
            match free {
                Some(buffer) => break buffer,
                None => self.0.returned.notified().await,
            }
        };
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
        self.of.0.returned.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// A task that joins several waits is polled at each wake-up of any: this must not leave wakers behind that swallow later ones.
    #[test]
    fn a_buffer_that_comes_back_wakes_somebody_who_still_waits() {
        let pool = BufferPool::new(2 << 20, || {}).unwrap();
        let set = BufferSet::new(&pool, 4096, 1).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(set.take()).poll(&mut cx) else {
            panic!("one is free");
        };
        let mut early = pin!(set.take());
        for _ in 0..3 {
            assert!(early.as_mut().poll(&mut cx).is_pending());
        }
        drop(first);
        let Poll::Ready(second) = early.as_mut().poll(&mut cx) else {
            panic!("it came back");
        };
        let woken = std::sync::Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut late = pin!(set.take());
        assert!(
            late.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(second);
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
