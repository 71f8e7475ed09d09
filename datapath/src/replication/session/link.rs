//! The initiator's half: one session to a peer, made again whenever it ends.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::channel::{Channel, Handler};
use super::down::{Counts, Down, NoSession};
use super::handshake;
use super::identity::Identity;
use super::limits::{BACK_OFF_MAX, BACK_OFF_MIN, PROVEN};
use super::state::{Info, Session};
use crate::reactor::{Handle, Notify};
use crate::replication::wire::hello::PeerId;

/// Told of a link's sessions, from its task.
pub trait Owner {
    /// A session is up: channels can be opened, in this call already.
    fn up(&self, info: &Info);

    /// It ended, and all its channels have been told. Nothing of it is delivered after this.
    fn down(&self, why: &Down);

    /// An attempt to make one came to nothing; the next follows by itself.
    fn not_connected(&self, why: &NoSession) {
        let _ = why;
    }
}

struct Inner {
    handle: Handle,
    identity: Rc<Identity>,
    peer: PeerId,
    owner: Rc<dyn Owner>,
    session: RefCell<Option<Rc<Session>>>,
    counts: Rc<Counts>,
    stopped: Cell<bool>,
    stop: Notify,
}

/// A link to a peer. It lives until it is stopped; there is one for each (reactor, peer), as a second one would take the first one's sessions.
#[derive(Clone)]
pub struct Link {
    inner: Rc<Inner>,
}

impl Link {
    /// Connects, at once, and again whenever it must. Address and key are those of `identity`'s list at each attempt.
    pub fn start(
        handle: &Handle,
        identity: Rc<Identity>,
        peer: PeerId,
        owner: Rc<dyn Owner>,
    ) -> Self {
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            identity,
            peer,
            owner,
            session: RefCell::default(),
            counts: Rc::default(),
            stopped: Cell::new(false),
            stop: Notify::new(),
        });
        handle.spawn("replication-link", inner.clone().keep());
        Self { inner }
    }

    /// Opens a channel of the present session; it begins with its first frame, Open or Promise. `None`: no session is up.
    pub fn open_channel(&self, handler: Rc<dyn Handler>) -> Option<Channel> {
        let session = self.inner.session.borrow();
        let session = session.as_ref().filter(|s| !s.is_ended())?;
        Some(session.channel(handler))
    }

    /// Whose session is up, if one is.
    pub fn session(&self) -> Option<Info> {
        let session = self.inner.session.borrow();
        let up = session.as_ref().filter(|s| !s.is_ended())?;
        Some(up.info)
    }

    /// The peer.
    pub fn peer(&self) -> PeerId {
        self.inner.peer
    }

    /// What happened so far.
    pub fn counts(&self) -> Rc<Counts> {
        self.inner.counts.clone()
    }

    /// Ends the present session, for this reason; the next is made.
    pub fn reset(&self, why: Down) {
        let session = self.inner.session.borrow().clone();
        if let Some(session) = session {
            session.end(why);
        }
    }

    /// Ends the present session and makes no other. The owner is told `down` if one was up.
    pub fn stop(&self) {
        self.inner.stopped.set(true);
        self.inner.stop.notify_all();
        self.reset(Down::Stopped);
    }
}

impl Inner {
    async fn keep(self: Rc<Self>) {
        let mut wait = BACK_OFF_MIN;
        while !self.stopped.get() {
            let attempt = handshake::initiate(&self.handle, &self.identity, self.peer);
            match self.unless_stopped(attempt).await {
                None => return,
                Some(Ok((socket, info))) => {
                    let began = self.handle.now();
                    let session = Session::new(
                        &self.handle,
                        &self.identity,
                        socket,
                        info,
                        None,
                        &self.counts,
                    );
                    tracing::info!(peer = ?info.peer, number = info.number, "replication session up");
                    self.session.replace(Some(session.clone()));
                    self.owner.up(&info);
                    let why = session.run().await;
                    self.session.replace(None);
                    drop(session);
                    self.owner.down(&why);
                    if self.handle.now().since(began) >= PROVEN {
                        wait = BACK_OFF_MIN;
                    }
                }
                Some(Err(why)) => {
                    if self.counts.failed(&why) {
                        tracing::warn!(peer = ?self.peer, reason = %why, "no replication session");
                    }
                    self.owner.not_connected(&why);
                }
            }
            let pause = self.handle.sleep(jittered(wait, self.handle.random()));
            if self.unless_stopped(pause).await.is_none() {
                return;
            }
            wait = (wait * 2).min(BACK_OFF_MAX);
        }
    }

    async fn unless_stopped<F: Future>(&self, f: F) -> Option<F::Output> {
        let mut f = pin!(f);
        let mut stop = pin!(self.stop.notified());
        std::future::poll_fn(|cx| {
            if self.stopped.get() {
                return Poll::Ready(None);
            }
            let _ = stop.as_mut().poll(cx);
            f.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// From three quarters of it to all of it, so that the links of a cluster do not come all at once.
fn jittered(wait: Duration, random: u64) -> Duration {
    let quarter = wait.as_nanos() as u64 / 4;
    wait - Duration::from_nanos(random % (quarter + 1))
}
