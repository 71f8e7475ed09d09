//! Operations on lanes that another reactor owns: a message there, the buffers and the result back.
//!
//! A request takes one of the mesh's credits for that reactor until its reply is here, so a reply always has room.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::ByteRange;
use super::VolumeError;
use super::job::{Answer, Job};
use super::op::{Buffers, Op};
use crate::reactor::ReactorId;
use crate::reactor::mesh::CREDITS;

/// What travels between reactors for volumes.
#[derive(Debug)]
pub struct Message(pub(super) Body);

#[derive(Debug)]
pub(super) enum Body {
    Request(Request),
    Reply {
        slot: u32,
        buffers: Buffers,
        result: Result<(), VolumeError>,
    },
    Job {
        ticket: u64,
        job: Job,
    },
    JobDone {
        ticket: u64,
        answer: Answer,
    },
}

#[derive(Debug)]
pub(super) struct Request {
    pub from: ReactorId,
    /// Of the sender's [`Pending`].
    pub slot: u32,
    pub volume: u32,
    pub op: Op,
    pub at: ByteRange,
    pub buffers: Buffers,
}

type Reply = (Buffers, Result<(), VolumeError>);

#[derive(Debug)]
enum Wait {
    Free,
    Waiting(Waker),
    Done(Reply),
    /// The operation was dropped; its reply is still to come.
    Abandoned,
}

/// Requests that this reactor waits for.
#[derive(Debug)]
pub(super) struct Pending {
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    waits: Vec<Wait>,
    free: Vec<u32>,
}

impl Pending {
    /// With room for every request that credits allow; more only while operations wait for a credit.
    pub fn new(reactors: u16) -> Self {
        let slots = CREDITS * usize::from(reactors);
        let inner = Inner {
            waits: (0..slots).map(|_| Wait::Free).collect(),
            free: (0..slots as u32).rev().collect(),
        };
        Self {
            inner: RefCell::new(inner),
        }
    }

    /// Gives a slot for a request, which must see a reply once the request was sent.
    pub fn begin(&self) -> Slot<'_> {
        let mut inner = self.inner.borrow_mut();
        let number = inner.free.pop().unwrap_or_else(|| {
            inner.waits.push(Wait::Free);
            (inner.waits.len() - 1) as u32
        });
        inner.waits[number as usize] = Wait::Waiting(Waker::noop().clone());
        Slot {
            pending: self,
            number,
            sent: false,
        }
    }

    /// A reply came. Returns false if there is no such request.
    pub fn complete(&self, slot: u32, reply: Reply) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Some(wait) = inner.waits.get_mut(slot as usize) else {
            return false;
        };
        match std::mem::replace(wait, Wait::Free) {
            Wait::Waiting(waker) => {
                *wait = Wait::Done(reply);
                drop(inner);
                waker.wake();
                true
            }
            Wait::Abandoned => {
                inner.free.push(slot);
                true
            }
            Wait::Free | Wait::Done(_) => false,
        }
    }
}

/// The place of one request that is under way.
pub(super) struct Slot<'a> {
    pending: &'a Pending,
    number: u32,
    sent: bool,
}

impl Slot<'_> {
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The request is on its way: a reply will come, whoever waits for it.
    pub fn sent(mut self) -> Self {
        self.sent = true;
        self
    }

    /// Waits for the reply to a request that was sent.
    pub async fn reply(self) -> Reply {
        debug_assert!(self.sent);
        poll_fn(|cx| {
            let mut inner = self.pending.inner.borrow_mut();
            let wait = &mut inner.waits[self.number as usize];
            match wait {
                Wait::Waiting(waker) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                _ => match std::mem::replace(wait, Wait::Free) {
                    Wait::Done(reply) => Poll::Ready(reply),
                    other => unreachable!("a slot with an owner is {other:?}"),
                },
            }
        })
        .await
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut inner = self.pending.inner.borrow_mut();
        let wait = &mut inner.waits[self.number as usize];
        if self.sent && matches!(wait, Wait::Waiting(_)) {
            *wait = Wait::Abandoned;
        } else {
            *wait = Wait::Free;
            inner.free.push(self.number);
        }
    }
}
