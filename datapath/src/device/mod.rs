//! Drives as the layers above see them: bytes in 4096-byte blocks, read, written, flushed, zeroed.
//!
//! A [`DeviceSpec`] says where a drive is, a [`DeviceSource`] is that drive found, sized and locked for this process, and a [`Device`]
//! is one reactor's handle of it. There are two kinds. `Memory` completes at once, so what it holds can be sent without a copy. `Disk`
//! stands on the reactor's disk: io_uring on a file or block device, or a simulated one. A failed write latches the drive on
//! every reactor: what it holds beyond that is not known, so it takes no more.

pub mod disk;
pub mod memory;
pub mod source;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::task::Poll;

use keelblock_hugepages::Buffer;

pub use disk::{Disk, Latch};
pub use memory::{Memory, View};
pub use source::{DeviceSource, DeviceSpec};

use crate::reactor::Handle;

/// Bytes of a block: what a disk reads and writes is aligned to it.
pub const BLOCK_BYTES: u64 = 4096;
/// The smallest drive: a superblock grain and one for data.
pub const DEVICE_BYTES_MIN: u64 = 2 << 20;
/// Memory that is zeroed without a pause, so that no task holds the core for long.
const ZERO_BYTES_AT_ONCE: u64 = 8 << 20;

/// Why a drive cannot be used. The message says what to do where that is known.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The words of the configuration make no sense.
    #[error("{text:?} is no drive: {why}")]
    Spec {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such file and no size to create it with.
    #[error("there is no drive {}: give a size to create a file there", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// The directory that the file should be in does not exist.
    #[error("the directory of drive {} does not exist: create it first", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    Kind {
        /// Where.
        path: PathBuf,
    },
    /// The file system has not the space.
    #[error("no space for drive {} of {bytes} bytes: free some, or make the drive smaller ({source})", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// The size that it should have.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// We may not open it.
    #[error("no permission to read and write drive {}: {source}", path.display())]
    Permission {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too small to hold anything.
    #[error("drive {} has {bytes} bytes: {DEVICE_BYTES_MIN} is the least", path.display())]
    TooSmall {
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process, or another pool, has it.
    #[error("drive {} is in use by another process or mounted", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// There is not that much memory.
    #[error("no memory for a drive of {bytes} bytes: {source}")]
    Memory {
        /// Its size.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// Anything else that the system says.
    #[error("drive {} cannot be used: {source}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The reactor cannot open it.
    #[error("drive {name} cannot be used: {why}")]
    Reactor {
        /// Which.
        name: String,
        /// What the reactor said.
        why: String,
    },
}

/// Why an operation on a drive failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// It could not be read.
    #[error("the drive cannot read this range")]
    Unreadable,
    /// It could not be written or flushed, now or before: the drive is latched.
    #[error("the drive failed a write and takes no more")]
    Failed,
    /// A write found no space beneath (a file on a full file system). Latches the drive too.
    #[error("no space left beneath the drive")]
    NoSpace,
    /// Outside of the drive.
    #[error("outside of the drive")]
    OutOfRange,
}

/// Operations that a device failed, whatever became of what they were for; those that it was not asked to do are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Reads.
    pub reads: u64,
    /// Writes, flushes and zeroing.
    pub writes: u64,
}

/// A reactor's handle of a drive.
#[derive(Clone, Debug)]
pub enum Device {
    /// In memory.
    Memory(Memory),
    /// A file, a block device, or a simulated one.
    Disk(Disk),
}

impl Device {
    /// Opens this reactor's handle of a drive.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(
        handle: &Handle,
        source: &DeviceSource,
        latch: &Latch,
    ) -> Result<Self, DeviceError> {
        if let DeviceSource::Memory { region, size_bytes } = source {
            let memory = Memory::new(region.clone(), *size_bytes);
            return Ok(Self::Memory(memory));
        }
        Disk::open(handle, source, latch).map(Self::Disk)
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(m) => m.size_bytes(),
            Self::Disk(d) => d.size_bytes(),
        }
    }

    /// Whether completed writes may be lost with power until a flush.
    pub fn volatile_cache(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Disk(d) => d.volatile_cache(),
        }
    }

    /// Whether a write has failed.
    pub fn failed(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Disk(d) => d.failed(),
        }
    }

    /// Bytes written to a disk through this reactor's handle so far; 0 for memory.
    pub fn written_bytes(&self) -> u64 {
        match self {
            Self::Memory(_) => 0,
            Self::Disk(d) => d.written_bytes(),
        }
    }

    /// What a disk failed of this reactor's handle; memory fails nothing.
    pub fn errors(&self) -> Errors {
        match self {
            Self::Memory(_) => Errors::default(),
            Self::Disk(d) => d.errors(),
        }
    }

    /// Bytes to send from, if this drive has them in memory and they are inside of it.
    #[inline]
    pub fn view(&self, offset: u64, len: usize) -> Option<View> {
        match self {
            Self::Memory(m) => m.view(offset, len),
            Self::Disk(_) => None,
        }
    }

    /// Writes at once, if this drive can.
    #[inline]
    pub fn store_now(&self, offset: u64, data: &[u8]) -> Option<Result<(), IoError>> {
        match self {
            Self::Memory(m) => Some(inside(m.store(offset, data))),
            Self::Disk(_) => None,
        }
    }

    /// Reads `len` bytes into the beginning of `into`.
    ///
    /// # Errors
    /// [`IoError::Unreadable`], [`IoError::OutOfRange`].
    ///
    /// # Panics
    /// If the buffer is shorter than `len`.
    pub async fn read(
        &self,
        offset: u64,
        mut into: Buffer,
        len: usize,
    ) -> (Buffer, Result<(), IoError>) {
        match self {
            Self::Memory(m) => {
                let done = m.load(offset, &mut into[..len]);
                (into, inside(done))
            }
            Self::Disk(d) => d.read(offset, into, len).await,
        }
    }

    /// Writes the first `len` bytes of `from`; with `fua` they are on stable media when it is done.
    ///
    /// # Errors
    /// [`IoError::Failed`] latches the drive.
    ///
    /// # Panics
    /// If the buffer is shorter than `len`.
    pub async fn write(
        &self,
        offset: u64,
        from: Buffer,
        len: usize,
        fua: bool,
    ) -> (Buffer, Result<(), IoError>) {
        match self {
            Self::Memory(m) => {
                let done = m.store(offset, &from[..len]);
                (from, inside(done))
            }
            Self::Disk(d) => d.write(offset, from, len, fua).await,
        }
    }

    /// Brings all completed writes to stable media.
    ///
    /// # Errors
    /// [`IoError::Failed`]: latches the drive.
    pub async fn flush(&self) -> Result<(), IoError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Disk(d) => d.flush().await,
        }
    }

    /// Makes the drive `bytes` large: a file grows, with its space allocated; a block device must have grown by itself.
    ///
    /// # Errors
    /// [`IoError::OutOfRange`] if it is smaller then (memory always), [`IoError::NoSpace`]. It goes on with the size that it had.
    pub async fn grow(&self, bytes: u64) -> Result<(), IoError> {
        match self {
            Self::Memory(_) => Err(IoError::OutOfRange),
            Self::Disk(d) => d.grow(bytes).await,
        }
    }

    /// Makes bytes read as zeroes, without giving up the space.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let memory = match self {
            Self::Memory(m) => m,
            Self::Disk(d) => return d.write_zeroes(offset, len).await,
        };
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZERO_BYTES_AT_ONCE);
            inside(memory.zero(offset + done, part as usize))?;
            done += part;
            if done < len {
                let_others_run().await;
            }
        }
        Ok(())
    }
}

/// Comes back in the reactor's next pass.
async fn let_others_run() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn inside(done: bool) -> Result<(), IoError> {
    if done {
        Ok(())
    } else {
        Err(IoError::OutOfRange)
    }
}
