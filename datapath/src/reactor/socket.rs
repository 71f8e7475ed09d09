//! TCP sockets: real ones, and in a simulation those of a network that fails.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::error::NetError;
use super::handle::{Core, Driver};
use super::sim::net::{SimListener, SimSocket};
use super::uring::net::{UringListener, UringSocket};

/// A connection. One task reads from it and one writes to it; both may be the same.
pub struct Socket {
    kind: Kind,
}

enum Kind {
    Uring(UringSocket),
    Sim(SimSocket),
}

impl Socket {
    pub(crate) fn adopt(core: &Rc<Core>, socket: DetachedSocket) -> Self {
        let kind = match (&core.driver, socket.kind) {
            (Driver::Uring(_), Detached::Fd(fd)) => {
                Kind::Uring(UringSocket::new(core, fd, socket.peer))
            }
            (Driver::Sim(_), Detached::Sim(id)) => {
                Kind::Sim(SimSocket::adopt(core, id, socket.peer))
            }
            _ => unreachable!("sockets stay in their world"),
        };
        Socket { kind }
    }

    pub(crate) async fn connect(core: &Rc<Core>, to: SocketAddr) -> Result<Self, NetError> {
        let kind = match &core.driver {
            Driver::Uring(_) => Kind::Uring(UringSocket::connect(core, to).await?),
            Driver::Sim(_) => Kind::Sim(SimSocket::connect(core, to).await?),
        };
        Ok(Socket { kind })
    }

    /// Receives what there is, at least one byte; 0 means that the peer has closed its side.
    ///
    /// # Errors
    /// [`NetError::Broken`].
    pub async fn recv(&self, buf: &mut [u8]) -> Result<usize, NetError> {
        match &self.kind {
            Kind::Uring(s) => s.recv(buf).await,
            Kind::Sim(s) => s.recv(buf).await,
        }
    }

    /// Receives what there is into `parts`, in order, without waiting: `None` if there is nothing yet ([`Socket::readable`]), 0 bytes if
    /// the peer has closed its side.
    ///
    /// # Errors
    /// [`NetError::Broken`].
    pub fn try_recv(&self, parts: &mut [IoSliceMut<'_>]) -> Result<Option<usize>, NetError> {
        match &self.kind {
            Kind::Uring(s) => s.try_recv(parts),
            Kind::Sim(s) => s.try_recv(parts.iter_mut().map(|part| &mut **part)),
        }
    }

    /// Waits until there may be something to receive: of a socket that data flows on until the next pass, of a quiet one until the
    /// kernel says so.
    pub async fn readable(&self) {
        match &self.kind {
            Kind::Uring(s) => s.readable().await,
            Kind::Sim(s) => s.readable().await,
        }
    }

    /// Sends as much of `parts`, in order, as there is room for; 0 means that there is none ([`Socket::writable`]).
    ///
    /// # Errors
    /// [`NetError::Broken`].
    pub fn try_send(&self, parts: &[IoSlice<'_>]) -> Result<usize, NetError> {
        match &self.kind {
            Kind::Uring(s) => s.try_send(parts),
            Kind::Sim(s) => s.try_send(parts),
        }
    }

    /// Waits until there is room to send, or the connection is broken, which the next [`Socket::try_send`] says.
    ///
    /// # Errors
    /// [`NetError::Broken`].
    pub async fn writable(&self) -> Result<(), NetError> {
        match &self.kind {
            Kind::Uring(s) => s.writable().await,
            Kind::Sim(s) => {
                s.writable().await;
                Ok(())
            }
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`NetError::Broken`].
    pub async fn send_all(&self, mut bytes: &[u8]) -> Result<(), NetError> {
        while !bytes.is_empty() {
            match self.try_send(&[IoSlice::new(bytes)])? {
                0 => self.writable().await?,
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Address of the other side.
    pub fn peer(&self) -> SocketAddr {
        match &self.kind {
            Kind::Uring(s) => s.peer(),
            Kind::Sim(s) => s.peer(),
        }
    }

    /// Ends the connection in both directions: who reads or writes here is told.
    pub fn shutdown(&self) {
        match &self.kind {
            Kind::Uring(s) => s.shutdown(),
            Kind::Sim(s) => s.shutdown(),
        }
    }

    /// Gives the connection away, for [`super::Handle::adopt`] on another reactor.
    pub fn detach(self) -> DetachedSocket {
        let peer = self.peer();
        let kind = match self.kind {
            Kind::Uring(s) => Detached::Fd(s.detach()),
            Kind::Sim(s) => Detached::Sim(s.detach()),
        };
        DetachedSocket { kind, peer }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("peer", &self.peer())
            .finish()
    }
}

/// A connection between two reactors. Dropping it closes it.
#[derive(Debug)]
pub struct DetachedSocket {
    kind: Detached,
    peer: SocketAddr,
}

#[derive(Debug)]
enum Detached {
    Fd(OwnedFd),
    /// An end of the simulated network, which stays open if this is dropped: only its world could close it.
    Sim(u64),
}

/// Accepts connections.
pub struct Listener {
    kind: ListenerKind,
}

enum ListenerKind {
    Uring(UringListener),
    Sim(SimListener),
}

impl Listener {
    pub(crate) fn open(core: &Rc<Core>, at: SocketAddr) -> Result<Self, NetError> {
        let kind = match &core.driver {
            Driver::Uring(_) => ListenerKind::Uring(UringListener::open(core, at)?),
            Driver::Sim(_) => ListenerKind::Sim(SimListener::open(core, at)?),
        };
        Ok(Listener { kind })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`NetError::Accept`] if there are no descriptors left: close something or wait, then call again.
    pub async fn accept(&self) -> Result<Socket, NetError> {
        let kind = match &self.kind {
            ListenerKind::Uring(l) => Kind::Uring(l.accept().await?),
            ListenerKind::Sim(l) => Kind::Sim(l.accept().await?),
        };
        Ok(Socket { kind })
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.kind {
            ListenerKind::Uring(l) => l.local_addr(),
            ListenerKind::Sim(l) => l.local_addr(),
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("at", &self.local_addr())
            .finish()
    }
}
