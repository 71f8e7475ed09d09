//! A few buffers that a reactor sets aside for operations that need one more than they brought (read-modify-write, compare, verify).
//!
//! They come from here and not from the pool because whoever needs one holds a range, and perhaps the pool's last buffer: waiting for the
//! pool then could be waiting for oneself. A holder of a scratch buffer waits for nothing but the store.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use keelblock_hugepages::{Buffer, BufferPool};

/// Bytes of a small one, for what goes in pieces.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;
/// How many of them a reactor has.
const SCRATCH_BUFFERS: usize = 8;
/// Bytes of a large one: a write that begins or ends inside of a block is put together in it, so that it stays one write.
pub(super) const LARGE_BYTES: usize = 1 << 20;
const LARGE_BUFFERS: usize = 2;
/// Room for waiting operations.
const WAITERS_AT_START: usize = 256;

pub(super) struct Scratch {
    small: Free,
    large: Free,
}

struct Free {
    buffers: RefCell<Vec<Buffer>>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Free {
    fn new(pool: &BufferPool, count: usize, bytes: usize) -> Option<Self> {
        let buffers = (0..count).map(|_| pool.try_take(bytes));
        Some(Self {
            buffers: RefCell::new(buffers.collect::<Option<_>>()?),
            waiting: RefCell::new(VecDeque::with_capacity(WAITERS_AT_START)),
        })
    }
}

impl Scratch {
    /// Takes them from the pool; `None` if the pool is too small for that.
    pub fn new(pool: &BufferPool) -> Option<Self> {
        Some(Self {
            large: Free::new(pool, LARGE_BUFFERS, LARGE_BYTES)?,
            small: Free::new(pool, SCRATCH_BUFFERS, SCRATCH_BYTES)?,
        })
    }

    fn of(&self, bytes: usize) -> &Free {
        assert!(bytes <= LARGE_BYTES, "more than a scratch buffer holds");
        match bytes <= SCRATCH_BYTES {
            true => &self.small,
            false => &self.large,
        }
    }

    /// One of at least so many bytes.
    pub async fn take(&self, bytes: usize) -> Buffer {
        let free = self.of(bytes);
        poll_fn(|cx| match free.buffers.borrow_mut().pop() {
            Some(buffer) => Poll::Ready(buffer),
            None => {
                free.waiting.borrow_mut().push_back(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    pub fn give(&self, buffer: Buffer) {
        let free = self.of(buffer.len());
        free.buffers.borrow_mut().push(buffer);
        if let Some(waker) = free.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }
}
