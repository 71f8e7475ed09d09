//! Disks: files, block devices, and in a simulation disks that fail.

use std::path::PathBuf;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::error::DiskError;
use super::handle::{Core, Driver};
use super::sim::disk::SimDisk;
use super::uring::disk::UringDisk;

/// Which disk to open, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// A file, or a block device; in a simulation the name of a disk.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
}

impl DiskSpec {
    /// A disk to read and write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskSpec {
            path: path.into(),
            read_only: false,
        }
    }
}

/// An open disk. Each reactor opens its own; offsets and lengths must be multiples of [`Disk::block_bytes`].
///
/// An operation that was polled once runs to its end even if its future is dropped: the buffer goes with it.
pub struct Disk {
    kind: Kind,
}

enum Kind {
    Uring(UringDisk),
    Sim(SimDisk),
}

/// Passes a call on to whichever disk this is.
macro_rules! on {
    ($self:expr, $disk:ident => $call:expr) => {
        match &$self.kind {
            Kind::Uring($disk) => $call,
            Kind::Sim($disk) => $call,
        }
    };
}

impl Disk {
    pub(crate) fn open(core: &Rc<Core>, spec: &DiskSpec) -> Result<Self, DiskError> {
        let kind = match &core.driver {
            Driver::Uring(_) => Kind::Uring(UringDisk::open(core, spec)?),
            Driver::Sim(_) => Kind::Sim(SimDisk::open(core, spec)?),
        };
        Ok(Disk { kind })
    }

    /// Size in bytes when it was opened or last grown.
    pub fn size_bytes(&self) -> u64 {
        on!(self, d => d.size_bytes())
    }

    /// Unit of offsets and lengths, in bytes.
    pub fn block_bytes(&self) -> u32 {
        on!(self, d => d.block_bytes())
    }

    /// Whether a write is on stable media only after [`Disk::flush`] or with FUA. True for files.
    pub fn volatile_cache(&self) -> bool {
        on!(self, d => d.volatile_cache())
    }

    /// Whether the page cache is avoided.
    pub fn direct(&self) -> bool {
        on!(self, d => d.direct())
    }

    /// Reads `len` bytes at `offset` into the beginning of `buffer`.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Short`], [`DiskError::Failed`]. The buffer's contents are then undefined.
    pub async fn read(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
    ) -> (Buffer, Result<(), DiskError>) {
        on!(self, d => d.read(offset, buffer, len).await)
    }

    /// Writes the first `len` bytes of `buffer` at `offset`; with `fua`, to stable media.
    ///
    /// # Errors
    /// As [`Disk::read`], and [`DiskError::Full`]. Any part of the range may then have been written.
    pub async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
        fua: bool,
    ) -> (Buffer, Result<(), DiskError>) {
        on!(self, d => d.write(offset, buffer, len, fua).await)
    }

    /// Brings every write that completed before to stable media.
    ///
    /// # Errors
    /// [`DiskError::Failed`]; nothing is known then about writes since the last flush.
    pub async fn flush(&self) -> Result<(), DiskError> {
        on!(self, d => d.flush().await)
    }

    /// Gives a range back to the disk; it reads as zeroes afterwards.
    ///
    /// # Errors
    /// [`DiskError::Unsupported`], [`DiskError::OutOfRange`], [`DiskError::Failed`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        on!(self, d => d.discard(offset, len).await)
    }

    /// Writes zeroes, without moving data where the disk can.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Full`], [`DiskError::Failed`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        on!(self, d => d.write_zeroes(offset, len).await)
    }

    /// Makes the disk at least `bytes` large, space allocated; a block device must have been grown already.
    ///
    /// # Errors
    /// [`DiskError::Full`], [`DiskError::OutOfRange`] if a device is smaller, [`DiskError::Failed`].
    pub async fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        on!(self, d => d.grow(bytes).await)
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("size_bytes", &self.size_bytes())
            .field("block_bytes", &self.block_bytes())
            .finish()
    }
}
