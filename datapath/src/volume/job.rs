//! Work that one reactor has another do: a closure goes there, and its answer comes back.
//!
//! What is slow or rare goes this way: opening volumes and drives, snapshots, space. It may allocate; operations of hosts do not come by here.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::Hub;
use super::mail::{Body, Message};
use crate::reactor::ReactorId;

/// What came of a job.
pub(super) type Answer = Box<dyn Any + Send>;
type Work = Pin<Box<dyn Future<Output = Answer>>>;

/// A closure on its way to the reactor that runs it.
pub(super) struct Job(Box<dyn FnOnce(Hub) -> Work + Send>);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Job {
    fn new<T, F, Fut>(work: F) -> Self
    where
        T: Send + 'static,
        F: FnOnce(Hub) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        Self(Box::new(move |hub| {
            Box::pin(async move { Box::new(work(hub).await) as Answer })
        }))
    }

    pub fn run(self, hub: Hub) -> Work {
        (self.0)(hub)
    }
}

enum Wait {
    Waiting(Waker),
    Done(Answer),
}

/// Jobs whose answer this reactor waits for.
#[derive(Default)]
pub(super) struct Tickets {
    waits: RefCell<BTreeMap<u64, Wait>>,
    next: std::cell::Cell<u64>,
}

impl Tickets {
    fn begin(&self) -> u64 {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let wait = Wait::Waiting(Waker::noop().clone());
        self.waits.borrow_mut().insert(ticket, wait);
        ticket
    }

    /// An answer came; nobody may wait for it any more.
    pub fn answer(&self, ticket: u64, answer: Answer) {
        let mut waits = self.waits.borrow_mut();
        let Some(wait) = waits.get_mut(&ticket) else {
            return;
        };
        if let Wait::Waiting(waker) = std::mem::replace(wait, Wait::Done(answer)) {
            drop(waits);
            waker.wake();
        }
    }
}

/// A job that was sent. Dropping it gives up its answer, not the job.
pub(super) struct Sent<T> {
    hub: Hub,
    ticket: u64,
    answer: PhantomData<T>,
}

impl<T: 'static> Sent<T> {
    pub async fn answer(self) -> T {
        let answer = poll_fn(|cx| {
            let mut waits = self.hub.0.tickets.waits.borrow_mut();
            match waits.remove(&self.ticket) {
                Some(Wait::Done(answer)) => Poll::Ready(answer),
                _ => {
                    waits.insert(self.ticket, Wait::Waiting(cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
        *answer.downcast().expect("a job answers with its own type")
    }
}

impl<T> Drop for Sent<T> {
    fn drop(&mut self) {
        self.hub.0.tickets.waits.borrow_mut().remove(&self.ticket);
    }
}

impl Hub {
    /// Runs `work` on a reactor, this one too, and gives its answer. It runs to its end even if nobody waits for that.
    pub async fn run_on<T, F, Fut>(&self, to: ReactorId, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(Hub) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        self.send_job(to, work).await.answer().await
    }

    /// Runs `work` on every reactor at once; answers by reactor.
    pub async fn run_on_all<T, F, Fut>(&self, work: F) -> Vec<T>
    where
        T: Send + 'static,
        F: FnOnce(Hub) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let reactors = self.0.handle().reactors();
        let mut sent = Vec::with_capacity(usize::from(reactors));
        for reactor in (0..reactors).map(ReactorId) {
            sent.push(self.send_job(reactor, work.clone()).await);
        }
        let mut answers = Vec::with_capacity(sent.len());
        for job in sent {
            answers.push(job.answer().await);
        }
        answers
    }

    /// The same for one reactor, without waiting for the answer yet.
    pub(super) async fn send_job<T, F, Fut>(&self, to: ReactorId, work: F) -> Sent<T>
    where
        T: Send + 'static,
        F: FnOnce(Hub) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let shared = &self.0;
        let sent = Sent {
            hub: self.clone(),
            ticket: shared.tickets.begin(),
            answer: PhantomData,
        };
        let (ticket, job) = (sent.ticket, Job::new(work));
        if to == shared.here() {
            let this = Rc::clone(shared);
            shared.handle().spawn("volume job", async move {
                let answer = job.run(Hub(Rc::clone(&this))).await;
                this.tickets.answer(ticket, answer);
            });
        } else {
            let message = Message(Body::Job { ticket, job });
            shared.send(to, message).await;
        }
        sent
    }
}
