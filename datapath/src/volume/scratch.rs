//! A few buffers that a reactor sets aside for operations that need one more than they brought (read-modify-write, compare, verify).
//!
//! They come from here and not from the pool because whoever needs one holds a range, and perhaps the pool's last buffer: waiting for the
//! pool then could be waiting for oneself. A holder of a scratch buffer waits for nothing but the drive.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use keelblock_hugepages::{Buffer, BufferPool};

/// Bytes of one.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;
/// How many a reactor has.
const SCRATCH_BUFFERS: usize = 8;
/// Room for waiting operations.
const WAITERS_AT_START: usize = 256;

pub(super) struct Scratch {
    free: RefCell<Vec<Buffer>>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Scratch {
    /// Takes them from the pool; `None` if the pool is too small for that.
    pub fn new(pool: &BufferPool) -> Option<Self> {
        let buffers = (0..SCRATCH_BUFFERS).map(|_| pool.try_take(SCRATCH_BYTES));
        Some(Self {
            free: RefCell::new(buffers.collect::<Option<_>>()?),
            waiting: RefCell::new(VecDeque::with_capacity(WAITERS_AT_START)),
        })
    }

    pub async fn take(&self) -> Buffer {
        poll_fn(|cx| match self.free.borrow_mut().pop() {
            Some(buffer) => Poll::Ready(buffer),
            None => {
                self.waiting.borrow_mut().push_back(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    pub fn give(&self, buffer: Buffer) {
        self.free.borrow_mut().push(buffer);
        if let Some(waker) = self.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }
}
