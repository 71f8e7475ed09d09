//! The acceptor's half: connections in, sessions out.
//!
//! The main reactor listens and hears each Hello; then the connection goes to the reactor that the Hello asks for, modulo how many there are, over the
//! mesh. So all sessions of one (node, incarnation, reactor) meet on one reactor, and nothing is shared.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use super::channel::Service;
use super::down::{Counts, Down, NoSession};
use super::handshake::{self, Proven};
use super::identity::Identity;
use super::limits::HANDSHAKE_TIME;
use super::registry::{Key, Registry};
use super::state::{Info, Session};
use super::waiting::Waiting;
use crate::reactor::{
    DetachedSocket, Endpoint, Handle, Listener, Nanos, NetError, Notify, ReactorId, Socket,
};
use crate::replication::wire::hello::{HELLO_BYTES, Hello, Refusal, Side};

/// Wait after an accept that failed for want of descriptors: those that end give some back.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// A connection on its way to the reactor that was asked for.
pub struct Mail {
    socket: DetachedSocket,
    hello: Box<[u8; HELLO_BYTES]>,
    until: Nanos,
}

struct Inner {
    handle: Handle,
    identity: Rc<Identity>,
    mesh: Endpoint<Mail>,
    service: Rc<dyn Service>,
    registry: Registry,
    waiting: Rc<Waiting>,
    counts: Rc<Counts>,
    stopped: Cell<bool>,
    stop: Notify,
}

/// Accepts sessions on one reactor.
#[derive(Clone)]
pub struct Acceptor {
    inner: Rc<Inner>,
    at: SocketAddr,
}

impl Acceptor {
    /// Starts it. The main reactor (0) listens at `at`; on each reactor one is started, and `mesh` joins them. `service` decides on the channels that
    /// peers open.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(
        handle: &Handle,
        identity: Rc<Identity>,
        mesh: Endpoint<Mail>,
        mut at: SocketAddr,
        service: Rc<dyn Service>,
    ) -> Result<Self, NetError> {
        let listener = match handle.id() {
            ReactorId(0) => Some(handle.listen(at)?),
            _ => None,
        };
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            identity,
            mesh,
            service,
            registry: Registry::default(),
            waiting: Rc::default(),
            counts: Rc::default(),
            stopped: Cell::new(false),
            stop: Notify::new(),
        });
        if let Some(listener) = listener {
            at = listener.local_addr();
            handle.spawn("replication-accept", inner.clone().accept(listener));
        }
        handle.spawn("replication-mail", inner.clone().take_mail());
        Ok(Self { inner, at })
    }

    /// Where the node listens, with the port that was chosen if the main reactor was asked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// What happened so far.
    pub fn counts(&self) -> Rc<Counts> {
        self.inner.counts.clone()
    }

    /// Handshakes under way on this reactor whose peer has not proved who it is.
    pub fn handshakes(&self) -> usize {
        self.inner.waiting.count()
    }

    /// Sessions that are up on this reactor.
    pub fn sessions(&self) -> Vec<Info> {
        let live = self.inner.registry.live();
        live.iter().map(|s| s.info).collect()
    }

    /// Accepts no more, and ends all sessions of this reactor.
    pub fn stop(&self) {
        self.inner.stopped.set(true);
        self.inner.stop.notify_all();
        for session in self.inner.registry.live() {
            session.end(Down::Stopped);
        }
    }
}

impl Inner {
    /// What a future gives, unless the acceptor is stopped before.
    async fn unless_stopped<T>(&self, f: impl Future<Output = T>) -> Option<T> {
        let mut f = std::pin::pin!(f);
        let mut stop = std::pin::pin!(self.stop.notified());
        std::future::poll_fn(|cx| {
            if self.stopped.get() {
                return std::task::Poll::Ready(None);
            }
            let _ = stop.as_mut().poll(cx);
            f.as_mut().poll(cx).map(Some)
        })
        .await
    }

    async fn accept(self: Rc<Self>, listener: Listener) {
        while let Some(accepted) = self.unless_stopped(listener.accept()).await {
            match accepted {
                Ok(socket) => {
                    let inner = self.clone();
                    let hearing = async move { inner.hear(socket).await };
                    // In a slot of the slab: a stranger costs no allocation.
                    if self.handle.start("replication-hello", hearing).is_err() {
                        self.counts.failed(&NoSession::Displaced);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "replication: accept failed");
                    self.handle.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Hears a Hello, and gives the connection to the reactor that it asks for.
    async fn hear(self: Rc<Self>, socket: Socket) {
        let until = self.handle.now() + HANDSHAKE_TIME;
        let place = self.waiting.take();
        let hearing = self
            .handle
            .timeout(HANDSHAKE_TIME, handshake::hear(&socket));
        let heard = match place.keeping(hearing).await {
            None => Err(NoSession::Displaced),
            Some(Err(_)) => Err(NoSession::Late),
            Some(Ok(heard)) => heard,
        };
        drop(place);
        let heard = heard.and_then(|heard| {
            let hello = Hello::decode(&heard, Side::Initiator)?;
            handshake::look(&self.identity, &hello).map_err(NoSession::Refusing)?;
            Ok((heard, hello.reactor))
        });
        let (heard, asked) = match heard {
            Ok(heard) => heard,
            Err(why) => return self.failed(&socket, &why),
        };
        let mail = Mail {
            socket: socket.detach(),
            hello: Box::new(heard),
            until,
        };
        let to = ReactorId(asked % self.handle.reactors());
        if to == self.handle.id() {
            return self.serve(mail);
        }
        if let Err(mail) = self.mesh.try_send(to, mail) {
            let socket = self.handle.adopt(mail.socket);
            self.failed(&socket, &NoSession::Refusing(Refusal::Busy));
        }
    }

    async fn take_mail(self: Rc<Self>) {
        while let Some((_, mail)) = self.unless_stopped(self.mesh.recv()).await {
            self.serve(mail);
        }
    }

    fn serve(self: &Rc<Self>, mail: Mail) {
        let inner = self.clone();
        self.handle.spawn("replication-session", async move {
            let socket = inner.handle.adopt(mail.socket);
            let left = mail.until.since(inner.handle.now());
            let admitted = inner.admit(&socket, &mail.hello);
            let admitted = inner.handle.timeout(left, admitted).await;
            match admitted.unwrap_or(Err(NoSession::Late)) {
                Ok(proven) => inner.run(socket, proven).await,
                Err(why) => inner.failed(&socket, &why),
            }
        });
    }

    /// Lets the peer prove who it is, and waits until its older session has drained.
    async fn admit(&self, socket: &Socket, heard: &[u8; HELLO_BYTES]) -> Result<Proven, NoSession> {
        let place = self.waiting.take();
        let proving = handshake::prove(&self.handle, &self.identity, socket, heard);
        let proven = place.keeping(proving).await;
        let proven = proven.unwrap_or(Err(NoSession::Displaced))?;
        drop(place);
        let Hello { session, .. } = proven.hello;
        let claimed = self
            .registry
            .claim(&self.handle, Key::of(&proven.hello), session);
        claimed.await.map_err(NoSession::Refusing)?;
        match self.stopped.get() {
            false => Ok(proven),
            true => Err(NoSession::Stopped),
        }
    }

    /// From the claim to here nothing has waited.
    async fn run(&self, socket: Socket, proven: Proven) {
        let Proven {
            hello,
            version,
            key: public_key,
            ready,
        } = proven;
        let info = Info {
            peer: hello.from,
            incarnation: hello.incarnation,
            address: socket.peer(),
            reactor: hello.reactor,
            number: hello.session,
            version,
            key: public_key,
        };
        let service = Some(self.service.clone());
        let session = Session::new(
            &self.handle,
            &self.identity,
            socket,
            info,
            service,
            &self.counts,
        );
        session.out.borrow_mut().preface(&ready);
        let key = Key::of(&hello);
        self.registry.install(key, &session);
        tracing::info!(peer = ?info.peer, number = info.number, "replication session accepted");
        session.run().await;
        self.registry.ended(&self.handle, &key);
    }

    fn failed(&self, socket: &Socket, why: &NoSession) {
        handshake::refuse(socket, why);
        if self.counts.failed(why) {
            let peer = socket.peer();
            tracing::warn!(%peer, reason = %why, "replication handshake refused");
        }
    }
}
