//! Operations with the kernel: each has an entry in a table that owns its buffer until the completion, whatever happens to the future
//! that waits for it (RULES S12).

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, squeue, types};
use keelblock_hugepages::Buffer;

use super::super::handle::Core;

/// What a completion belongs to, in the top byte of its user data.
pub(super) const KIND_OP: u64 = 0;
/// A socket's readiness to read.
pub(super) const KIND_READABLE: u64 = 1;
/// A socket's readiness to write.
pub(super) const KIND_WRITABLE: u64 = 2;
/// The bell.
pub(super) const KIND_BELL: u64 = 3;
/// A cancellation, whose result nobody needs.
pub(super) const KIND_NONE: u64 = 4;

/// User data: kind, 24 bits of generation, index.
pub(super) fn user_data(kind: u64, generation: u32, index: u32) -> u64 {
    kind << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index)
}

/// Undoes [`user_data`].
pub(super) fn split(data: u64) -> (u64, u32, u32) {
    (data >> 56, (data >> 32) as u32 & 0xff_ffff, data as u32)
}

#[derive(Debug)]
enum State {
    Free,
    /// With the kernel.
    Waiting(Waker),
    /// With the kernel, and nobody waits.
    Abandoned,
    /// Completed with this result.
    Done(i32),
}

#[derive(Debug)]
struct Entry {
    state: State,
    buffer: Option<Buffer>,
    /// When it was submitted; 0 if its latency is of no interest.
    submitted: u64,
}

/// All operations with the kernel.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

/// As many entries as there can be operations exist from the beginning; tasks that do I/O themselves add theirs.
const ENTRIES_AT_START: usize = 4096 + 256;

impl Table {
    pub(super) fn new() -> Self {
        let entries = (0..ENTRIES_AT_START)
            .map(|_| Entry {
                state: State::Free,
                buffer: None,
                submitted: 0,
            })
            .collect();
        Table {
            entries,
            free: (0..ENTRIES_AT_START as u32).rev().collect(),
        }
    }

    fn add(&mut self, entry: Entry) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// Notes a completion; returns its time of submission, and the buffer if nobody waits for it.
    pub(super) fn complete(&mut self, index: u32, result: i32) -> (u64, Option<Buffer>) {
        let entry = &mut self.entries[index as usize];
        let submitted = entry.submitted;
        match std::mem::replace(&mut entry.state, State::Done(result)) {
            State::Waiting(waker) => {
                waker.wake();
                (submitted, None)
            }
            State::Abandoned => {
                entry.state = State::Free;
                self.free.push(index);
                (submitted, entry.buffer.take())
            }
            state => unreachable!("completion of an operation that is {state:?}"),
        }
    }

    /// Operations that the kernel still has.
    pub(super) fn with_kernel(&self) -> usize {
        self.entries
            .iter()
            .filter(|e| matches!(e.state, State::Waiting(_) | State::Abandoned))
            .count()
    }
}

/// An operation, given to the kernel when first polled. Yields its result (negative errno) and its buffer.
pub(crate) struct KernelOp {
    core: Rc<Core>,
    /// Until it is given away.
    entry: Option<(squeue::Entry, Option<Buffer>)>,
    index: u32,
    timed: bool,
    /// Ask the kernel to cancel it when dropped early: for waits, which otherwise might never complete.
    cancel: bool,
}

impl KernelOp {
    /// An operation on `buffer`.
    ///
    /// # Safety
    /// `entry` points to nothing but bytes of `buffer` and memory that lives as long as the ring.
    pub(crate) unsafe fn new(core: Rc<Core>, entry: squeue::Entry, buffer: Option<Buffer>) -> Self {
        KernelOp {
            core,
            entry: Some((entry, buffer)),
            index: 0,
            timed: true,
            cancel: false,
        }
    }

    /// A wait for readiness: its latency says nothing, and dropping it cancels it.
    pub(crate) fn poll_fd(core: Rc<Core>, fd: i32, events: u32) -> Self {
        let entry = opcode::PollAdd::new(types::Fd(fd), events).build();
        KernelOp {
            core,
            entry: Some((entry, None)),
            index: u32::MAX,
            timed: false,
            cancel: true,
        }
    }

    fn submit(&mut self, waker: &Waker) {
        let Some((entry, buffer)) = self.entry.take() else {
            return;
        };
        let uring = self.core.uring();
        let submitted = if self.timed { self.core.now.get().0 } else { 0 };
        let state = State::Waiting(waker.clone());
        self.index = uring.table.borrow_mut().add(Entry {
            state,
            buffer,
            submitted,
        });
        if self.timed {
            let mut latency = uring.latency.get();
            latency.in_flight += 1;
            latency.submitted = submitted;
            uring.latency.set(latency);
        }
        // SAFETY: the table's entry owns the buffer until the completion has been reaped.
        unsafe { uring.push(&entry.user_data(user_data(KIND_OP, 0, self.index))) };
    }
}

impl Future for KernelOp {
    type Output = (i32, Option<Buffer>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.entry.is_some() {
            self.submit(cx.waker());
            return Poll::Pending;
        }
        let mut table = self.core.uring().table.borrow_mut();
        let entry = &mut table.entries[self.index as usize];
        match &mut entry.state {
            State::Done(result) => {
                let out = (*result, entry.buffer.take());
                entry.state = State::Free;
                table.free.push(self.index);
                drop(table);
                self.index = u32::MAX;
                Poll::Ready(out)
            }
            State::Waiting(waker) => {
                if !waker.will_wake(cx.waker()) {
                    *waker = cx.waker().clone();
                }
                Poll::Pending
            }
            state => unreachable!("waiting for an operation that is {state:?}"),
        }
    }
}

impl Drop for KernelOp {
    fn drop(&mut self) {
        if self.entry.is_some() || self.index == u32::MAX {
            return;
        }
        let uring = self.core.uring();
        let mut table = uring.table.borrow_mut();
        let entry = &mut table.entries[self.index as usize];
        if let State::Done(_) = entry.state {
            entry.state = State::Free;
            let buffer = entry.buffer.take();
            table.free.push(self.index);
            drop((table, buffer));
            return;
        }
        entry.state = State::Abandoned;
        drop(table);
        if self.cancel {
            let target = user_data(KIND_OP, 0, self.index);
            let cancel = opcode::AsyncCancel::new(target)
                .build()
                .user_data(user_data(KIND_NONE, 0, 0));
            // SAFETY: a cancellation points to nothing.
            unsafe { uring.push(&cancel) };
        }
    }
}
