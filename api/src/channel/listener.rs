//! The data path's end: a socket that hands out connections.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use keelblock_hugepages::SharedRegion;
use rustix::event::EventfdFlags;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_stream::Stream;

use super::ring::{Direction, region_bytes};
use super::socket::{AddressPath, Hello, check_peer, send_hello};
use super::stream::{ChannelStream, Parts, PeerInfo};
use super::{CONNECTIONS_MAX, ChannelError, RING_BYTES};
use crate::stats::StatsPage;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// How long accepting rests after the process ran out of descriptors or memory: an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket that control connects to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    stats: StatsPage,
    permits: Arc<Semaphore>,
}

impl Listener {
    /// Listens at `path`, for our user and root only. A socket that a dead predecessor left there is replaced. Every connection
    /// is given the stats page. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ChannelError::InUse`] if a process answers there, [`ChannelError::NoSocket`] if there is something else,
    /// [`ChannelError::Path`] if the path cannot be used.
    pub async fn bind(path: &Path, stats: StatsPage) -> Result<Listener, ChannelError> {
        let address = AddressPath::of(path)?;
        remove_leftover(path, &address).await?;
        let socket = bind_private(&address.path).map_err(|source| ChannelError::Path {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let socket = std::os::unix::net::UnixListener::from(socket);
        let socket =
            UnixListener::from_std(socket).map_err(ChannelError::io("watching the socket"))?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
            stats,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// The connections, for tonic's `serve_with_incoming`. Never ends; what goes wrong with a connection ends that one only.
    pub fn into_incoming(self) -> Incoming {
        Incoming {
            listener: self,
            pause: None,
        }
    }

    /// The next connection.
    pub async fn accept(&mut self) -> ChannelStream {
        let mut pause = None;
        std::future::poll_fn(|cx| self.poll_accept(cx, &mut pause)).await
    }

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
        pause: &mut Option<Pause>,
    ) -> Poll<ChannelStream> {
        loop {
            if let Some(resting) = pause {
                ready!(resting.as_mut().poll(cx));
                *pause = None;
            }
            let accepted = match ready!(self.socket.poll_accept(cx)) {
                Ok((socket, _)) => self.greet(socket),
                Err(source) => {
                    *pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    Err(ChannelError::System {
                        call: "accept",
                        source,
                    })
                }
            };
            match accepted {
                Ok(stream) => return Poll::Ready(stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection of the command channel was not accepted")
                }
            }
        }
    }

    fn greet(&self, socket: UnixStream) -> Result<ChannelStream, ChannelError> {
        let (pid, uid) = check_peer(&socket)?;
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| ChannelError::Refused)?;
        let region = SharedRegion::create("keelblock-channel", region_bytes(RING_BYTES))?;
        let (bell, peers_bell) = (eventfd()?, eventfd()?);
        let hello = Hello {
            ring_bytes: RING_BYTES as u32,
            incarnation: self.stats.incarnation(),
            pid: std::process::id(),
        };
        let fds = [
            region.as_fd(),
            bell.as_fd(),
            peers_bell.as_fd(),
            self.stats.as_fd(),
        ];
        send_hello(&socket, &hello, fds)?;
        let parts = Parts {
            region: Arc::new(region),
            ring_bytes: RING_BYTES,
            bell,
            peers_bell,
            life: socket,
            peer: PeerInfo { pid, uid },
            permit: Some(permit),
        };
        ChannelStream::new(parts, Direction::ToServer)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it cannot be removed, the next start finds that nobody answers on it, and removes it.
        let _removed = std::fs::remove_file(&self.path);
    }
}

type Pause = Pin<Box<tokio::time::Sleep>>;

/// The connections of a [`Listener`].
#[derive(Debug)]
pub struct Incoming {
    listener: Listener,
    pause: Option<Pause>,
}

impl Stream for Incoming {
    type Item = std::io::Result<ChannelStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.listener
            .poll_accept(cx, &mut this.pause)
            .map(|stream| Some(Ok(stream)))
    }
}

fn eventfd() -> Result<OwnedFd, ChannelError> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(ChannelError::system("eventfd"))
}

/// Removes a socket that nobody listens on.
async fn remove_leftover(path: &Path, address: &AddressPath) -> Result<(), ChannelError> {
    let wrong = |source| ChannelError::Path {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(wrong(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ChannelError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(&address.path).await {
        Ok(_) => Err(ChannelError::InUse {
            path: path.to_owned(),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(wrong)
        }
        // Gone in between, or not ours to look at: binding says which.
        Err(_) => Ok(()),
    }
}

/// A listening socket whose file nobody else can open, not even before its mode could be changed: Linux gives the file the socket's
/// mode when it is bound (unix(7)).
fn bind_private(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
