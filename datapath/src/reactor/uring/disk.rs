//! Files and block devices through io_uring. Direct I/O where the file system can, buffered where not (tmpfs).

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};
use keelblock_hugepages::Buffer;

use super::super::disk::DiskSpec;
use super::super::error::DiskError;
use super::super::handle::Core;
use super::KernelOp;

/// A request that the kernel interrupts or cannot take now is made again at most this often.
const TRIES_MAX: u32 = 16;
/// Files are accessed in blocks of this size, whatever the file system would allow.
const FILE_BLOCK_BYTES: u32 = 4096;

/// An open file or block device.
pub(crate) struct UringDisk {
    core: Rc<Core>,
    file: File,
    size: Cell<u64>,
    block_bytes: u32,
    volatile_cache: bool,
    is_device: bool,
    direct: bool,
}

/// The parts of a read or write that all its requests share.
#[derive(Clone, Copy)]
struct Span {
    what: &'static str,
    offset: u64,
    len: usize,
}

/// Which way bytes move.
#[derive(Clone, Copy)]
enum Direction {
    Read,
    /// With `RWF_` flags.
    Write {
        flags: i32,
    },
}

impl UringDisk {
    pub(crate) fn open(core: &Rc<Core>, spec: &DiskSpec) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            path: spec.path.clone(),
            source,
        };
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(!spec.read_only)
                .custom_flags(flags)
                .open(&spec.path)
        };
        let (file, direct) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            // The file system has no direct I/O (tmpfs before 6.6, some network file systems).
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (open(0).map_err(failed)?, false),
            Err(e) => return Err(failed(e)),
        };
        let meta = file.metadata().map_err(failed)?;
        let kind = meta.file_type();
        let (size, block_bytes, volatile_cache) = if kind.is_block_device() {
            let size = keelblock_ffi::block::device_bytes(&file).map_err(failed)?;
            let block = rustix::fs::ioctl_blksszget(&file).map_err(|e| failed(e.into()))?;
            (size, block, has_write_cache(meta.rdev()))
        } else if kind.is_file() {
            (meta.len(), FILE_BLOCK_BYTES, true)
        } else {
            return Err(DiskError::NotADisk {
                path: spec.path.clone(),
            });
        };
        Ok(UringDisk {
            core: core.clone(),
            file,
            size: Cell::new(size),
            block_bytes,
            volatile_cache,
            is_device: kind.is_block_device(),
            direct,
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size.get()
    }

    pub(crate) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    pub(crate) fn volatile_cache(&self) -> bool {
        self.volatile_cache
    }

    pub(crate) fn direct(&self) -> bool {
        self.direct
    }

    pub(crate) async fn read(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
    ) -> (Buffer, Result<(), DiskError>) {
        self.transfer(
            Span {
                what: "read",
                offset,
                len,
            },
            Direction::Read,
            buffer,
        )
        .await
    }

    pub(crate) async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
        fua: bool,
    ) -> (Buffer, Result<(), DiskError>) {
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        self.transfer(
            Span {
                what: "write",
                offset,
                len,
            },
            Direction::Write { flags },
            buffer,
        )
        .await
    }

    /// Moves the whole span, in as many requests as the kernel makes of it.
    async fn transfer(
        &self,
        span: Span,
        direction: Direction,
        mut buffer: Buffer,
    ) -> (Buffer, Result<(), DiskError>) {
        assert!(
            span.len <= buffer.len(),
            "the buffer holds the whole transfer"
        );
        if let Err(e) = self.inside(span.offset, span.len as u64) {
            return (buffer, Err(e));
        }
        let (mut done, mut tries) = (0, 0);
        while done < span.len {
            let request = self.request(
                direction,
                &mut buffer,
                done..span.len,
                span.offset + done as u64,
            );
            // SAFETY: the entry points into `buffer`, which travels with the operation.
            let (result, back) =
                unsafe { KernelOp::new(self.core.clone(), request, Some(buffer)) }.await;
            buffer = back.expect("an operation on a buffer yields it");
            tries += 1;
            match result {
                n if n > 0 => done += n as usize,
                0 => {
                    let short = DiskError::Short {
                        what: span.what,
                        offset: span.offset,
                        len: span.len as u64,
                        done: done as u64,
                    };
                    return (buffer, Err(short));
                }
                n if (n == -libc::EINTR || n == -libc::EAGAIN) && tries < TRIES_MAX => {}
                n => {
                    return (
                        buffer,
                        Err(failed(span.what, span.offset, span.len as u64, n)),
                    );
                }
            }
        }
        (buffer, Ok(()))
    }

    /// A request for a part of the buffer.
    fn request(
        &self,
        direction: Direction,
        buffer: &mut Buffer,
        part: Range<usize>,
        offset: u64,
    ) -> squeue::Entry {
        let fixed = self.core.uring().fixed_index(&self.core.buffers, buffer);
        let (fd, len) = (self.fd(), part.len() as u32);
        let at = buffer[part].as_mut_ptr();
        match (direction, fixed) {
            (Direction::Read, Some(index)) => opcode::ReadFixed::new(fd, at, len, index)
                .offset(offset)
                .build(),
            (Direction::Read, None) => opcode::Read::new(fd, at, len).offset(offset).build(),
            (Direction::Write { flags }, Some(index)) => {
                opcode::WriteFixed::new(fd, at, len, index)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            (Direction::Write { flags }, None) => opcode::Write::new(fd, at, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        }
    }

    pub(crate) async fn flush(&self) -> Result<(), DiskError> {
        let entry = opcode::Fsync::new(self.fd())
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.simple("flush", 0, 0, entry).await
    }

    /// Gives the range back; it reads as zeroes afterwards.
    pub(crate) async fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inside(offset, len)?;
        self.allocate(
            "discard",
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )
        .await
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inside(offset, len)?;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match self.allocate("write-zeroes", zero, offset, len).await {
            Err(DiskError::Unsupported { .. }) => {}
            other => return other,
        }
        match self.discard(offset, len).await {
            Err(DiskError::Unsupported { .. }) => self.write_zero_bytes(offset, len).await,
            other => other,
        }
    }

    /// The last resort: zeroes from a buffer.
    async fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let step = len.min(128 << 10);
        let mut buffer = self.core.buffers.take(step as usize).await;
        buffer.fill(0);
        let mut done = 0;
        while done < len {
            let part = step.min(len - done);
            let (back, result) = self
                .write(offset + done, buffer, part as usize, false)
                .await;
            result?;
            buffer = back;
            done += part;
        }
        Ok(())
    }

    /// Makes a file larger, with its space allocated; a device must have grown by itself.
    pub(crate) async fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        if self.is_device {
            let found = keelblock_ffi::block::device_bytes(&self.file).map_err(|source| {
                DiskError::Failed {
                    what: "grow",
                    offset: 0,
                    len: bytes,
                    source,
                }
            })?;
            self.size.set(found);
        } else if bytes > self.size.get() {
            let old = self.size.get();
            self.allocate("grow", 0, old, bytes - old).await?;
            self.size.set(bytes);
        }
        if self.size.get() < bytes {
            return Err(DiskError::OutOfRange {
                offset: 0,
                len: bytes,
                size: self.size.get(),
            });
        }
        Ok(())
    }

    async fn allocate(
        &self,
        what: &'static str,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        let entry = opcode::Fallocate::new(self.fd(), len)
            .offset(offset)
            .mode(mode)
            .build();
        self.simple(what, offset, len, entry).await
    }

    /// An operation without a buffer.
    async fn simple(
        &self,
        what: &'static str,
        offset: u64,
        len: u64,
        entry: squeue::Entry,
    ) -> Result<(), DiskError> {
        for _ in 0..TRIES_MAX {
            // SAFETY: the entry points to nothing.
            let (result, _) =
                unsafe { KernelOp::new(self.core.clone(), entry.clone(), None) }.await;
            match result {
                n if n >= 0 => return Ok(()),
                n if n == -libc::EINTR || n == -libc::EAGAIN => {}
                n => return Err(failed(what, offset, len, n)),
            }
        }
        Err(failed(what, offset, len, -libc::EAGAIN))
    }

    fn inside(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let size = self.size.get();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(DiskError::OutOfRange { offset, len, size }),
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.file.as_raw_fd())
    }
}

fn failed(what: &'static str, offset: u64, len: u64, result: i32) -> DiskError {
    match -result {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DiskError::Full { offset, len },
        libc::EOPNOTSUPP => DiskError::Unsupported { what },
        errno => DiskError::Failed {
            what,
            offset,
            len,
            source: io::Error::from_raw_os_error(errno),
        },
    }
}

/// Whether a device says that it has a volatile write cache. If it does not say, it has.
fn has_write_cache(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's queue is its parent's.
    [
        format!("/sys/dev/block/{major}:{minor}/queue/write_cache"),
        format!("/sys/dev/block/{major}:{minor}/../queue/write_cache"),
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok())
    .is_none_or(|mode| mode.trim() != "write through")
}
