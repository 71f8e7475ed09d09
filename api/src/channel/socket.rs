//! The Unix socket: its path, who may use it, and the one message that is sent over it (`docs/channel.md`, "Handshake").

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::net::UnixStream;

use super::ChannelError;
use super::ring::RING_BYTES_RANGE;

pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"KEELCHAN";

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 8;
const RING_BYTES_AT: usize = 12;
const INCARNATION_AT: usize = 16;
const PID_AT: usize = 32;
const HELLO_BYTES: usize = 40;
const _: () = assert!(PID_AT + 8 == HELLO_BYTES);

/// Rings, server's bell, client's bell, stats page.
const HELLO_FDS: usize = 4;

/// Longest path that fits a socket address with its terminator (`sun_path` has 108 bytes).
const ADDRESS_PATH_MAX: usize = 107;

/// What the server says when a client has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub ring_bytes: u32,
    pub incarnation: [u8; 16],
    pub pid: u32,
}

impl Hello {
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[MAGIC_AT..][..8].copy_from_slice(&MAGIC);
        bytes[VERSION_AT..][..4].copy_from_slice(&VERSION.to_le_bytes());
        bytes[RING_BYTES_AT..][..4].copy_from_slice(&self.ring_bytes.to_le_bytes());
        bytes[INCARNATION_AT..][..16].copy_from_slice(&self.incarnation);
        bytes[PID_AT..][..4].copy_from_slice(&self.pid.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, ChannelError> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[MAGIC_AT..][..8] != MAGIC {
            return Err(ChannelError::Greeting {
                what: "no channel's magic number",
            });
        }
        if word(VERSION_AT) != VERSION {
            return Err(ChannelError::Version {
                found: word(VERSION_AT),
            });
        }
        let ring_bytes = word(RING_BYTES_AT);
        if !RING_BYTES_RANGE.contains(&(ring_bytes as usize)) || !ring_bytes.is_power_of_two() {
            return Err(ChannelError::Greeting {
                what: "an impossible size of the rings",
            });
        }
        let incarnation = std::array::from_fn(|i| bytes[INCARNATION_AT + i]);
        Ok(Hello {
            ring_bytes,
            incarnation,
            pid: word(PID_AT),
        })
    }
}

/// Sends the greeting. The socket is new and empty, so it never waits.
pub(super) fn send_hello(
    socket: &UnixStream,
    hello: &Hello,
    fds: [BorrowedFd<'_>; HELLO_FDS],
) -> Result<(), ChannelError> {
    let bytes = hello.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELLO_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let pushed = control.push(SendAncillaryMessage::ScmRights(&fds));
    assert!(pushed, "the buffer is made for this many descriptors");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)
        .map_err(ChannelError::system("sendmsg of the greeting"))?;
    if sent != HELLO_BYTES {
        return Err(ChannelError::Greeting {
            what: "it was sent in part",
        });
    }
    Ok(())
}

/// Receives the greeting, waiting for it without a limit of its own.
pub(super) async fn receive_hello(
    socket: &UnixStream,
) -> Result<(Hello, [OwnedFd; HELLO_FDS]), ChannelError> {
    loop {
        socket
            .readable()
            .await
            .map_err(ChannelError::io("waiting for the greeting"))?;
        let received = socket.try_io(tokio::io::Interest::READABLE, || Ok(try_receive(socket)?));
        match received {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(source) => {
                return Err(ChannelError::System {
                    call: "recvmsg of the greeting",
                    source,
                });
            }
            Ok((0, ..)) => return Err(ChannelError::Refused),
            // The greeting is one message on an empty socket: it comes whole or is none.
            Ok((len, ..)) if len != HELLO_BYTES => {
                return Err(ChannelError::Greeting {
                    what: "it is too short",
                });
            }
            Ok((_, bytes, fds)) => {
                let hello = Hello::decode(&bytes)?;
                let wrong = |_| ChannelError::Greeting {
                    what: "the wrong number of descriptors",
                };
                return Ok((hello, fds.try_into().map_err(wrong)?));
            }
        }
    }
}

fn try_receive(socket: &UnixStream) -> Result<(usize, [u8; HELLO_BYTES], Vec<OwnedFd>), Errno> {
    let mut bytes = [0; HELLO_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELLO_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        flags,
    )?;
    let mut fds = Vec::with_capacity(HELLO_FDS);
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    Ok((message.bytes, bytes, fds))
}

/// The peer's process and user, if it may use the channel: ours and root may.
pub(super) fn check_peer(socket: &UnixStream) -> Result<(u32, u32), ChannelError> {
    let credentials = socket
        .peer_cred()
        .map_err(ChannelError::io("reading the peer's credentials"))?;
    let uid = credentials.uid();
    if uid != rustix::process::geteuid().as_raw() && uid != 0 {
        return Err(ChannelError::Credentials { uid });
    }
    let pid = credentials
        .pid()
        .and_then(|pid| u32::try_from(pid).ok())
        .unwrap_or(0);
    Ok((pid, uid))
}

/// A path that fits a socket address: the path itself, or one through its directory's descriptor, which must be kept while it is used.
pub(super) struct AddressPath {
    pub path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl AddressPath {
    pub fn of(path: &Path) -> Result<AddressPath, ChannelError> {
        if path.as_os_str().len() <= ADDRESS_PATH_MAX {
            return Ok(AddressPath {
                path: path.to_owned(),
                _directory: None,
            });
        }
        let wrong = |e: Errno| ChannelError::Path {
            path: path.to_owned(),
            source: e.into(),
        };
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong(Errno::NAMETOOLONG));
        };
        let fd = rustix::fs::open(
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(wrong)?;
        let short = Path::new("/proc/self/fd")
            .join(raw(fd.as_fd()).to_string())
            .join(name);
        if short.as_os_str().len() > ADDRESS_PATH_MAX {
            return Err(wrong(Errno::NAMETOOLONG));
        }
        Ok(AddressPath {
            path: short,
            _directory: Some(fd),
        })
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}
