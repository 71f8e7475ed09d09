//! A connection as a byte stream: what tonic reads from and writes to.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use keelblock_hugepages::SharedRegion;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop;

use super::ChannelError;
use super::ring::{Corrupt, Direction, Receiver, Sender};

/// Bytes that one read takes at most out of the ring: what is taken is copied through the stack.
const READ_BYTES_MAX: usize = 16 << 10;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// Process id, 0 if it is not known (another namespace).
    pub pid: u32,
    /// User id.
    pub uid: u32,
}

/// One end of a connection: [`AsyncRead`] and [`AsyncWrite`] over two rings in shared memory.
///
/// Dropping it is an orderly end: the peer reads to the last byte and then the end of the file.
#[derive(Debug)]
pub struct ChannelStream {
    incoming: Receiver,
    outgoing: Sender,
    bell: AsyncFd<OwnedFd>,
    peers_bell: OwnedFd,
    /// Carries nothing any more; its end is the peer's end.
    life: UnixStream,
    peer: PeerInfo,
    peer_dead: bool,
    shut: bool,
    wakers: Arc<Wakers>,
    /// Wakes both halves: the bell and the socket each have place for one waker only.
    both: Waker,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What a connection is made of, apart from its direction.
pub(super) struct Parts {
    pub region: Arc<SharedRegion>,
    pub ring_bytes: usize,
    pub bell: OwnedFd,
    pub peers_bell: OwnedFd,
    pub life: UnixStream,
    pub peer: PeerInfo,
    pub permit: Option<OwnedSemaphorePermit>,
}

/// The halves of a stream, which different tasks may poll.
#[derive(Debug, Clone, Copy)]
enum Half {
    Read = 0,
    Write = 1,
}

impl Half {
    fn other(self) -> Half {
        match self {
            Half::Read => Half::Write,
            Half::Write => Half::Read,
        }
    }
}

/// Wakers of the two halves.
#[derive(Debug, Default)]
struct Wakers([Mutex<Option<Waker>>; 2]);

impl Wakers {
    fn register(&self, half: Half, waker: &Waker) {
        let mut slot = self.0[half as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn wake_half(&self, half: Half) {
        let mut slot = self.0[half as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The lock is not held while the task is woken, which may poll at once.
        if let Some(waker) = slot.take() {
            drop(slot);
            waker.wake();
        }
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_half(Half::Read);
        self.wake_half(Half::Write);
    }
}

impl From<Corrupt> for io::Error {
    fn from(e: Corrupt) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, e)
    }
}

impl ChannelStream {
    /// The end that reads from `incoming`. Needs a tokio runtime.
    pub(super) fn new(parts: Parts, incoming: Direction) -> Result<Self, ChannelError> {
        let outgoing = match incoming {
            Direction::ToServer => Direction::ToClient,
            Direction::ToClient => Direction::ToServer,
        };
        let Parts {
            region,
            ring_bytes,
            bell,
            peers_bell,
            life,
            peer,
            permit,
        } = parts;
        let rings = Receiver::new(region.clone(), ring_bytes, incoming)
            .zip(Sender::new(region, ring_bytes, outgoing));
        let (incoming, outgoing) = rings.ok_or(ChannelError::Greeting {
            what: "a region of another size",
        })?;
        // SAFETY: an `OwnedFd` is open, and keeps being the same descriptor until the `AsyncFd` that owns it drops it.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }
            .map_err(|e| ChannelError::io("watching the doorbell")(e.into()))?;
        let wakers = Arc::new(Wakers::default());
        let both = Waker::from(wakers.clone());
        Ok(ChannelStream {
            incoming,
            outgoing,
            bell,
            peers_bell,
            life,
            peer,
            peer_dead: false,
            shut: false,
            wakers,
            both,
            _permit: permit,
        })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PeerInfo {
        self.peer
    }

    fn ring(&self) {
        // Would block: the counter is full, so the bell is rung already. Any other failure shows as the end of the socket.
        let _rung = rustix::io::write(&self.peers_bell, &1u64.to_ne_bytes());
    }

    /// Takes bytes if there are any, and says if the end is reached.
    fn read_now(&mut self, into: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        // Looked at before the ring: bytes that were put before the end are still there after it.
        let closed = self.incoming.closed();
        let mut bytes = [0; READ_BYTES_MAX];
        let len = into.remaining().min(READ_BYTES_MAX);
        match self.incoming.take(&mut bytes[..len]) {
            Err(corrupt) => return Some(Err(corrupt.into())),
            Ok(0) => {}
            Ok(n) => {
                into.put_slice(&bytes[..n]);
                if self.incoming.publish() {
                    self.ring();
                }
                return Some(Ok(()));
            }
        }
        if closed {
            return Some(Ok(()));
        }
        self.peer_dead
            .then(|| Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn write_now(&mut self, from: &[io::IoSlice<'_>]) -> Option<io::Result<usize>> {
        if self.peer_dead || self.shut {
            return Some(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut len = 0;
        for slice in from {
            match self.outgoing.put(slice) {
                Err(corrupt) => return Some(Err(corrupt.into())),
                Ok(n) => len += n,
            }
        }
        if len == 0 {
            return None;
        }
        if self.outgoing.publish() {
            self.ring();
        }
        Some(Ok(len))
    }

    /// Waits for the bell or the peer's death, on behalf of a half whose waker is registered. Ready means: look again.
    fn poll_event(&mut self, half: Half) -> Poll<io::Result<()>> {
        let mut both = Context::from_waker(&self.both);
        while !self.peer_dead {
            let Poll::Ready(ready) = self.life.poll_read_ready(&mut both) else {
                break;
            };
            ready?;
            match self.life.try_read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The end, an error, or a byte that has no business here.
                Ok(_) | Err(_) => {
                    self.peer_dead = true;
                    self.wakers.wake_half(half.other());
                    return Poll::Ready(Ok(()));
                }
            }
        }
        loop {
            let mut ready = ready!(self.bell.poll_read_ready(&mut both))?;
            let mut count = [0; 8];
            let read = rustix::io::read(ready.get_inner(), &mut count);
            // Reading emptied it: the next ring is a new event, also if it comes between reading and here.
            ready.clear_ready();
            match read {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
                Ok(_) => {
                    // The ring may be meant for the other half.
                    self.wakers.wake_half(half.other());
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if from.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(result) = self.write_now(from) {
                turn.made_progress();
                return Poll::Ready(result);
            }
            self.wakers.register(Half::Write, cx.waker());
            if self.outgoing.may_sleep() {
                ready!(self.poll_event(Half::Write))?;
            }
        }
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(result) = self.read_now(into) {
                turn.made_progress();
                return Poll::Ready(result);
            }
            self.wakers.register(Half::Read, cx.waker());
            if self.incoming.may_sleep() {
                ready!(self.poll_event(Half::Read))?;
            }
        }
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, &[io::IoSlice::new(from)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is published already.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl ChannelStream {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.shut, true) && self.outgoing.close() {
            self.ring();
        }
    }
}

impl Drop for ChannelStream {
    fn drop(&mut self) {
        self.end();
    }
}

impl tonic::transport::server::Connected for ChannelStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer
    }
}
