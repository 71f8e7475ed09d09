//! A reactor's disk as a drive: errors made small, the failure latched, and zeroes where the disk cannot make them itself.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use keelblock_hugepages::Buffer;

use super::{DeviceError, DeviceSource, Errors, IoError};
use crate::reactor::{self, DiskError, DiskSpec, Handle};

/// How much is zeroed with one request: large enough to be cheap, small enough that others get their turn.
const ZERO_BYTES: u64 = 256 << 20;
/// How much is written at a time where zeroes must be written.
const FILL_BYTES: usize = 1 << 20;

/// Whether a drive has failed, for all reactors. Set once; a drive that was replaced or reopened gets a new one.
#[derive(Clone)]
pub struct Latch(Arc<LatchState>);

struct LatchState {
    failed: AtomicBool,
    why: OnceLock<String>,
    report: Box<dyn Fn(&str) + Send + Sync>,
}

impl Latch {
    /// An open latch; `report` is called once, with the reason, on the reactor whose write failed first. It must not block.
    pub fn new(report: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(LatchState {
            failed: AtomicBool::new(false),
            why: OnceLock::new(),
            report: Box::new(report),
        }))
    }

    /// Whether the drive has failed.
    #[inline]
    pub fn failed(&self) -> bool {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Why, if it has.
    pub fn why(&self) -> Option<&str> {
        self.0.why.get().map(String::as_str)
    }

    #[cold]
    fn set(&self, why: &DiskError) {
        let why = why.to_string();
        if self.0.why.set(why.clone()).is_ok() {
            self.0.failed.store(true, Ordering::Relaxed);
            tracing::error!("a drive failed and takes no more writes: {why}");
            (self.0.report)(&why);
        }
    }
}

impl std::fmt::Debug for Latch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Latch").field(&self.why()).finish()
    }
}

/// A reactor's handle of a file, a block device or a simulated disk.
#[derive(Clone, Debug)]
pub struct Disk {
    disk: Rc<reactor::Disk>,
    handle: Handle,
    latch: Latch,
    /// Bytes written through this handle and its clones.
    written: Rc<Cell<u64>>,
    errors: Rc<Cell<Errors>>,
    /// Keeps the drive locked for this process.
    _source: DeviceSource,
}

impl Disk {
    /// Opens a handle.
    ///
    /// # Errors
    /// [`DeviceError::Reactor`].
    pub fn open(
        handle: &Handle,
        source: &DeviceSource,
        latch: &Latch,
    ) -> Result<Self, DeviceError> {
        let spec = match source {
            DeviceSource::File { path, .. } => DiskSpec::new(path),
            DeviceSource::Sim { name } => DiskSpec::new(name),
            DeviceSource::Memory { .. } => unreachable!("memory is no disk"),
        };
        let disk = handle.open_disk(&spec).map_err(|e| DeviceError::Reactor {
            name: source.to_string(),
            why: e.to_string(),
        })?;
        Ok(Self {
            disk: Rc::new(disk),
            handle: handle.clone(),
            latch: latch.clone(),
            written: Rc::default(),
            errors: Rc::default(),
            _source: source.clone(),
        })
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    /// Whether completed writes may be lost with power until a flush.
    pub fn volatile_cache(&self) -> bool {
        self.disk.volatile_cache()
    }

    /// Bytes written through this handle so far.
    pub fn written_bytes(&self) -> u64 {
        self.written.get()
    }

    /// What the device failed, through this handle and its clones.
    pub fn errors(&self) -> Errors {
        self.errors.get()
    }

    /// Whether a write has failed.
    pub fn failed(&self) -> bool {
        self.latch.failed()
    }

    /// See [`super::Device::read`].
    ///
    /// # Errors
    /// [`IoError::Unreadable`], [`IoError::OutOfRange`].
    pub async fn read(
        &self,
        offset: u64,
        into: Buffer,
        len: usize,
    ) -> (Buffer, Result<(), IoError>) {
        let (buffer, result) = self.disk.read(offset, into, len).await;
        let result = result.map_err(|e| match e {
            DiskError::OutOfRange { .. } => IoError::OutOfRange,
            e => {
                let errors = self.errors.get();
                self.errors.set(Errors {
                    reads: errors.reads + 1,
                    ..errors
                });
                tracing::warn!("drive: {e}");
                IoError::Unreadable
            }
        });
        (buffer, result)
    }

    /// See [`super::Device::write`].
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn write(
        &self,
        offset: u64,
        from: Buffer,
        len: usize,
        fua: bool,
    ) -> (Buffer, Result<(), IoError>) {
        if self.latch.failed() {
            return (from, Err(IoError::Failed));
        }
        self.written.set(self.written.get() + len as u64);
        let (buffer, result) = self.disk.write(offset, from, len, fua).await;
        (buffer, result.map_err(|e| self.write_error(&e)))
    }

    /// See [`super::Device::flush`].
    ///
    /// # Errors
    /// [`IoError::Failed`]. After a failed flush nobody knows what is on the media, and asking again would only hide it: so it latches.
    pub async fn flush(&self) -> Result<(), IoError> {
        if self.latch.failed() {
            return Err(IoError::Failed);
        }
        self.disk.flush().await.map_err(|e| self.write_error(&e))
    }

    /// See [`super::Device::grow`].
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn grow(&self, bytes: u64) -> Result<(), IoError> {
        self.disk.grow(bytes).await.map_err(|e| match e {
            DiskError::OutOfRange { .. } => IoError::OutOfRange,
            e => {
                // Nothing that was there is in doubt, so the drive goes on.
                tracing::warn!("a drive does not grow: {e}");
                match e {
                    DiskError::Full { .. } => IoError::NoSpace,
                    _ => IoError::Failed,
                }
            }
        })
    }

    /// See [`super::Device::write_zeroes`].
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let mut done = 0;
        while done < len {
            if self.latch.failed() {
                return Err(IoError::Failed);
            }
            let part = (len - done).min(ZERO_BYTES);
            let at = offset + done;
            match self.disk.write_zeroes(at, part).await {
                Ok(()) => {}
                Err(DiskError::Unsupported { .. }) => self.fill(at, part).await?,
                Err(e) => return Err(self.write_error(&e)),
            }
            done += part;
        }
        Ok(())
    }

    async fn fill(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let mut buffer = self.handle.buffers().take(FILL_BYTES).await;
        buffer.fill(0);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(FILL_BYTES as u64);
            let result;
            (buffer, result) = self
                .write(offset + done, buffer, part as usize, false)
                .await;
            result?;
            done += part;
        }
        Ok(())
    }

    fn write_error(&self, e: &DiskError) -> IoError {
        if !matches!(e, DiskError::OutOfRange { .. }) {
            let errors = self.errors.get();
            self.errors.set(Errors {
                writes: errors.writes + 1,
                ..errors
            });
        }
        match e {
            // Our caller's mistake says nothing about the drive.
            DiskError::OutOfRange { .. } => IoError::OutOfRange,
            DiskError::Full { .. } => {
                self.latch.set(e);
                IoError::NoSpace
            }
            e => {
                self.latch.set(e);
                IoError::Failed
            }
        }
    }
}
