//! Sockets of a real reactor. An active one is polled with plain `recv` by its reader task, once a pass; one that has been quiet for the
//! idle time is waited for with a one-shot poll of the ring, and costs nothing until it speaks.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, types};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, sockopt,
};

use super::super::Nanos;
use super::super::error::NetError;
use super::super::handle::Core;
use super::Uring;
use super::kernel::{KIND_NONE, KIND_READABLE, KIND_WRITABLE, KernelOp, user_data};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// A socket is polled at least so often before it counts as quiet: passes may take longer than the idle time.
const POLLS_MIN: u32 = 8;

/// One socket.
#[derive(Debug)]
struct Entry {
    fd: Option<OwnedFd>,
    generation: u32,
    /// Waits for bytes.
    reader: Option<Waker>,
    /// Waits for room.
    writer: Option<Waker>,
    /// In the list of those polled.
    active: bool,
    /// A poll for reading, for writing, is with the kernel.
    armed: [bool; 2],
    /// When bytes last moved.
    moved: Nanos,
    /// Times it was polled since then.
    polled: u32,
    /// It was emptied in the pass that began at this time.
    emptied: Nanos,
}

impl Entry {
    /// Bytes moved, or are about to.
    fn touch(&mut self, now: Nanos) {
        self.moved = now;
        self.polled = 0;
    }
}

/// All sockets of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    entries: Vec<Entry>,
    free: Vec<u32>,
    active: Vec<u32>,
}

impl Sockets {
    fn add(&mut self, fd: OwnedFd, now: Nanos) -> u32 {
        let entry = Entry {
            fd: Some(fd),
            generation: 0,
            reader: None,
            writer: None,
            active: false,
            armed: [false; 2],
            moved: now,
            polled: 0,
            emptied: Nanos(0),
        };
        match self.free.pop() {
            Some(index) => {
                let generation = self.entries[index as usize].generation.wrapping_add(1);
                self.entries[index as usize] = Entry {
                    generation,
                    ..entry
                };
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// The kernel says that there is something to read.
    pub(super) fn readable(&mut self, index: u32, generation: u32, now: Nanos) {
        let entry = &mut self.entries[index as usize];
        if entry.generation & 0xff_ffff != generation || !entry.armed[0] {
            return;
        }
        entry.armed[0] = false;
        entry.touch(now);
        if let Some(reader) = &entry.reader {
            reader.wake_by_ref();
        }
    }

    /// The kernel says that there is room to write.
    pub(super) fn writable(&mut self, index: u32, generation: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.generation & 0xff_ffff != generation || !entry.armed[1] {
            return;
        }
        entry.armed[1] = false;
        if let Some(writer) = entry.writer.take() {
            writer.wake();
        }
    }
}

impl Uring {
    /// Makes the readers of active sockets ready; moves quiet sockets from polling to waiting.
    pub(super) fn poll_sockets(&self, core: &Core) {
        let mut sockets = self.sockets.borrow_mut();
        let sockets = &mut *sockets;
        let quiet = self.rule.after;
        let now = core.now.get();
        let mut at = 0;
        while at < sockets.active.len() {
            let index = sockets.active[at];
            let entry = &mut sockets.entries[index as usize];
            let Some(reader) = &entry.reader else {
                // Nobody reads just now: the reader comes back by itself.
                entry.active = false;
                sockets.active.swap_remove(at);
                continue;
            };
            if entry.polled >= POLLS_MIN && now.since(entry.moved) > quiet {
                entry.active = false;
                sockets.active.swap_remove(at);
                self.arm(index, entry, 0);
                continue;
            }
            reader.wake_by_ref();
            entry.polled += 1;
            at += 1;
        }
        core.stats.sockets_active.set(sockets.active.len() as u64);
    }

    /// Before sleeping: every socket that someone reads is waited for.
    pub(super) fn arm_all_sockets(&self, _core: &Core) {
        let mut sockets = self.sockets.borrow_mut();
        let sockets = &mut *sockets;
        for index in sockets.active.drain(..) {
            let entry = &mut sockets.entries[index as usize];
            entry.active = false;
            if entry.reader.is_some() {
                self.arm(index, entry, 0);
            }
        }
    }

    /// Asks the kernel to say when the socket is readable (0) or writable (1).
    fn arm(&self, index: u32, entry: &mut Entry, direction: usize) {
        let Some(fd) = &entry.fd else { return };
        if std::mem::replace(&mut entry.armed[direction], true) {
            return;
        }
        let (events, kind) = [
            (libc::POLLIN | libc::POLLRDHUP, KIND_READABLE),
            (libc::POLLOUT, KIND_WRITABLE),
        ][direction];
        let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32).build();
        // SAFETY: a poll points to nothing.
        unsafe { self.push(&poll.user_data(user_data(kind, entry.generation, index))) };
    }

    /// Forgets a socket and returns its descriptor, with which nothing of the kernel's is in flight any more.
    fn remove_socket(&self, core: &Core, index: u32) -> OwnedFd {
        let (fd, armed, generation) = {
            let mut sockets = self.sockets.borrow_mut();
            let entry = &mut sockets.entries[index as usize];
            let taken = (
                entry.fd.take(),
                std::mem::take(&mut entry.armed),
                entry.generation,
            );
            (entry.reader, entry.writer) = (None, None);
            if std::mem::take(&mut entry.active) {
                sockets.active.retain(|i| *i != index);
            }
            sockets.free.push(index);
            taken
        };
        for (kind, _) in [KIND_READABLE, KIND_WRITABLE]
            .into_iter()
            .zip(armed)
            .filter(|(_, armed)| *armed)
        {
            let cancel = opcode::AsyncCancel::new(user_data(kind, generation, index)).build();
            // SAFETY: a cancellation points to nothing.
            unsafe { self.push(&cancel.user_data(user_data(KIND_NONE, 0, 0))) };
        }
        if armed != [false; 2] {
            // Now, not at the end of the pass: a poll still queued would be made with a number that may be another file's by then.
            let _ = self.ring.borrow_mut().submit();
        }
        core.stats.sockets.set(core.stats.sockets.get() - 1);
        fd.expect("a socket is removed once")
    }
}

/// A connected socket.
pub(crate) struct UringSocket {
    core: Rc<Core>,
    index: u32,
    /// The table's descriptor, which stays open until the socket is removed.
    fd: i32,
    peer: SocketAddr,
}

impl UringSocket {
    pub(crate) fn new(core: &Rc<Core>, fd: OwnedFd, peer: SocketAddr) -> Self {
        let raw = fd.as_raw_fd();
        let index = core.uring().sockets.borrow_mut().add(fd, core.now.get());
        core.stats.sockets.add(1);
        UringSocket {
            core: core.clone(),
            index,
            fd: raw,
            peer,
        }
    }

    pub(crate) async fn connect(core: &Rc<Core>, to: SocketAddr) -> Result<Self, NetError> {
        let failed = |e: Errno| NetError::Connect {
            to,
            source: e.into(),
        };
        let fd = tcp_socket(to).map_err(failed)?;
        match rustix::net::connect(&fd, &to) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                let (result, _) =
                    KernelOp::poll_fd(core.clone(), fd.as_raw_fd(), libc::POLLOUT as u32).await;
                if result < 0 {
                    return Err(NetError::Connect {
                        to,
                        source: io::Error::from_raw_os_error(-result),
                    });
                }
                sockopt::socket_error(&fd)
                    .map_err(failed)?
                    .map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
        }
        no_delay(&fd);
        Ok(UringSocket::new(core, fd, to))
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn recv<'a>(&'a self, buf: &'a mut [u8]) -> Recv<'a> {
        Recv { socket: self, buf }
    }

    pub(crate) fn readable(&self) -> Readable<'_> {
        Readable {
            socket: self,
            asked: false,
        }
    }

    pub(crate) fn try_recv(&self, parts: &mut [IoSliceMut<'_>]) -> Result<Option<usize>, NetError> {
        let flags = RecvFlags::DONTWAIT;
        loop {
            let got = match &mut *parts {
                [one] => rustix::net::recv(self.borrow_fd(), &mut **one, flags).map(|(n, _)| n),
                many => {
                    let mut none = RecvAncillaryBuffer::default();
                    rustix::net::recvmsg(self.borrow_fd(), many, &mut none, flags).map(|r| r.bytes)
                }
            };
            return match got {
                Ok(n) => {
                    self.core.progress.set(true);
                    let mut sockets = self.core.uring().sockets.borrow_mut();
                    sockets.entries[self.index as usize].touch(self.core.now.get());
                    Ok(Some(n))
                }
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => Err(NetError::Broken { source: e.into() }),
            };
        }
    }

    pub(crate) fn try_send(&self, parts: &[IoSlice<'_>]) -> Result<usize, NetError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let fd = self.borrow_fd();
        loop {
            return match rustix::net::sendmsg(fd, parts, &mut SendAncillaryBuffer::default(), flags)
            {
                Ok(n) => {
                    self.core.progress.set(true);
                    // An answer is often followed by the next request.
                    self.core.uring().sockets.borrow_mut().entries[self.index as usize]
                        .touch(self.core.now.get());
                    Ok(n)
                }
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(e) => Err(NetError::Broken { source: e.into() }),
            };
        }
    }

    pub(crate) fn writable(&self) -> Writable<'_> {
        Writable {
            socket: self,
            asked: false,
        }
    }

    pub(crate) fn shutdown(&self) {
        let _ = rustix::net::shutdown(self.borrow_fd(), rustix::net::Shutdown::Both);
    }

    /// Gives the descriptor away.
    pub(crate) fn detach(self) -> OwnedFd {
        let fd = self.core.uring().remove_socket(&self.core, self.index);
        let mut this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped or used again, so the reference is given up once.
        unsafe { std::ptr::drop_in_place(&raw mut this.core) };
        fd
    }

    fn borrow_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the table keeps the descriptor open until the socket, which we borrow, is removed.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for UringSocket {
    fn drop(&mut self) {
        drop(self.core.uring().remove_socket(&self.core, self.index));
    }
}

/// Future of receiving.
pub(crate) struct Recv<'a> {
    socket: &'a UringSocket,
    buf: &'a mut [u8],
}

impl Future for Recv<'_> {
    type Output = Result<usize, NetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let socket = self.socket;
        let core = &socket.core;
        let now = core.now.get();
        let mut sockets = core.uring().sockets.borrow_mut();
        let sockets = &mut *sockets;
        let entry = &mut sockets.entries[socket.index as usize];
        if entry.emptied != now {
            loop {
                match rustix::net::recv(socket.borrow_fd(), &mut *self.buf, RecvFlags::DONTWAIT) {
                    Ok((n, _)) => {
                        core.progress.set(true);
                        entry.touch(now);
                        if n > 0 && n < self.buf.len() {
                            // All there was: looking again is for the next pass, after the answers have gone out.
                            entry.emptied = now;
                        }
                        return Poll::Ready(Ok(n));
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(e) => return Poll::Ready(Err(NetError::Broken { source: e.into() })),
                }
            }
        }
        match &mut entry.reader {
            Some(reader) if reader.will_wake(cx.waker()) => {}
            reader => *reader = Some(cx.waker().clone()),
        }
        if !entry.active && !entry.armed[0] {
            entry.active = true;
            sockets.active.push(socket.index);
        }
        Poll::Pending
    }
}

impl Drop for Recv<'_> {
    fn drop(&mut self) {
        let mut sockets = self.socket.core.uring().sockets.borrow_mut();
        // Kept while data flows, so that the waker is not made anew for every batch: a wake-up nobody waits for does no harm.
        let entry = &mut sockets.entries[self.socket.index as usize];
        if !entry.active {
            entry.reader = None;
        }
    }
}

/// Future of [`UringSocket::readable`].
pub(crate) struct Readable<'a> {
    socket: &'a UringSocket,
    asked: bool,
}

impl Future for Readable<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.asked {
            return Poll::Ready(());
        }
        self.asked = true;
        let mut sockets = self.socket.core.uring().sockets.borrow_mut();
        let sockets = &mut *sockets;
        let entry = &mut sockets.entries[self.socket.index as usize];
        match &mut entry.reader {
            Some(reader) if reader.will_wake(cx.waker()) => {}
            reader => *reader = Some(cx.waker().clone()),
        }
        if !entry.active && !entry.armed[0] {
            entry.active = true;
            sockets.active.push(self.socket.index);
        }
        Poll::Pending
    }
}

impl Drop for Readable<'_> {
    fn drop(&mut self) {
        let mut sockets = self.socket.core.uring().sockets.borrow_mut();
        let entry = &mut sockets.entries[self.socket.index as usize];
        if !entry.active {
            entry.reader = None;
        }
    }
}

/// Future of [`UringSocket::writable`].
pub(crate) struct Writable<'a> {
    socket: &'a UringSocket,
    asked: bool,
}

impl Future for Writable<'_> {
    type Output = Result<(), NetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let socket = self.socket;
        let uring = socket.core.uring();
        let mut sockets = uring.sockets.borrow_mut();
        let entry = &mut sockets.entries[socket.index as usize];
        if self.asked && !entry.armed[1] {
            return Poll::Ready(Ok(()));
        }
        entry.writer = Some(cx.waker().clone());
        uring.arm(socket.index, entry, 1);
        self.asked = true;
        Poll::Pending
    }
}

/// A listening socket.
pub(crate) struct UringListener {
    core: Rc<Core>,
    fd: OwnedFd,
    at: SocketAddr,
}

impl UringListener {
    pub(crate) fn open(core: &Rc<Core>, at: SocketAddr) -> Result<Self, NetError> {
        let failed = |e: Errno| match e {
            Errno::ADDRINUSE => NetError::InUse { at },
            e => NetError::Listen {
                at,
                source: e.into(),
            },
        };
        let fd = tcp_socket(at).map_err(failed)?;
        sockopt::set_socket_reuseaddr(&fd, true).map_err(failed)?;
        rustix::net::bind(&fd, &at).map_err(failed)?;
        rustix::net::listen(&fd, BACKLOG).map_err(failed)?;
        let bound = rustix::net::getsockname(&fd).map_err(failed)?;
        let at = SocketAddr::try_from(bound).map_err(failed)?;
        Ok(UringListener {
            core: core.clone(),
            fd,
            at,
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.at
    }

    pub(crate) async fn accept(&self) -> Result<UringSocket, NetError> {
        loop {
            match rustix::net::acceptfrom_with(
                &self.fd,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            ) {
                Ok((fd, peer)) => {
                    self.core.progress.set(true);
                    no_delay(&fd);
                    let Some(Ok(peer)) = peer.map(SocketAddr::try_from) else {
                        continue;
                    };
                    return Ok(UringSocket::new(&self.core, fd, peer));
                }
                Err(Errno::AGAIN) => {
                    KernelOp::poll_fd(self.core.clone(), self.fd.as_raw_fd(), libc::POLLIN as u32)
                        .await;
                }
                // The connection ended before we got to it.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => return Err(NetError::Accept { source: e.into() }),
            }
        }
    }
}

fn tcp_socket(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    rustix::net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Small answers must not wait for more. Cannot fail on a TCP socket.
fn no_delay(fd: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(fd, true);
}
