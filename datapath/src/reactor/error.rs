//! What can go wrong with a reactor's disks, sockets and start-up.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// All slots for I/O operations are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all slots for I/O operations are taken")]
pub struct SlabFull;

/// A socket operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another process listens there.
    #[error("{at} is in use by another process: choose another port, or stop that process")]
    InUse {
        /// Where we wanted to listen.
        at: SocketAddr,
    },
    /// Listening there is not possible.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// Where we wanted to listen.
        at: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer could not be connected to.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The peer.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke: reset, timed out, unreachable, or shut down by us.
    #[error("the connection broke: {source}")]
    Broken {
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection could not be accepted for want of descriptors or memory.
    #[error("cannot accept a connection: {source}")]
    Accept {
        /// What the kernel said.
        source: io::Error,
    },
}

/// A disk operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file or device cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    NotADisk {
        /// Its path.
        path: PathBuf,
    },
    /// The range is not inside the disk.
    #[error("{len} bytes at {offset} are outside the disk of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// No space is left for what must be stored.
    #[error("no space left for {len} bytes at {offset}")]
    Full {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The disk moved fewer bytes than asked, for good.
    #[error("{what} of {len} bytes at {offset} stopped after {done}")]
    Short {
        /// Operation.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Number of bytes asked.
        len: u64,
        /// Number of bytes moved.
        done: u64,
    },
    /// The disk, or what it lies on, cannot do this.
    #[error("{what} is not supported by the disk")]
    Unsupported {
        /// Operation.
        what: &'static str,
    },
    /// The operation failed.
    #[error("{what} of {len} bytes at {offset} failed: {source}")]
    Failed {
        /// Operation.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The reactors could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No reactor was asked for, or too many.
    #[error("{asked} reactors are not possible: 1 to {max}")]
    Count {
        /// Number asked for.
        asked: usize,
        /// Most there can be.
        max: usize,
    },
    /// `poll = always` with more reactors than cores would starve everyone.
    #[error(
        "poll = always needs a core per reactor: {reactors} reactors share {cores} cores; use poll = adaptive or fewer reactors"
    )]
    AlwaysNeedsCores {
        /// Reactors asked for.
        reactors: usize,
        /// Cores that they may use.
        cores: usize,
    },
    /// A core was named that this process may not use.
    #[error("core {cpu} is not available to this process (available: {available})")]
    NoSuchCore {
        /// The core asked for.
        cpu: usize,
        /// Those that there are.
        available: String,
    },
    /// io_uring cannot be set up.
    #[error(
        "cannot set up io_uring (Linux 6.1 or newer is needed, and the sysctl kernel.io_uring_disabled must be 0): {source}"
    )]
    Uring {
        /// What the kernel said.
        source: io::Error,
    },
    /// The bell's descriptor, or a thread, cannot be made.
    #[error("cannot make {what}: {source}")]
    Resource {
        /// What.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No address space for buffers.
    #[error(transparent)]
    Buffers(#[from] keelblock_hugepages::NoMemory),
}
