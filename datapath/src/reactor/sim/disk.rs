//! Simulated disks: a volatile cache over media, in sectors of 512 bytes.
//!
//! A write that completed is read back, but is on media only after a flush that was issued later, or with FUA. Until then each sector
//! keeps the versions it has had since the last flush, and a power cut leaves any one of them, or what was on media: so writes are
//! lost, torn and reordered in every way that sectors allow. A write under way at a power cut may or may not have reached each sector.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::super::disk::DiskSpec;
use super::super::error::DiskError;
use super::super::handle::Core;
use super::{Event, World};

/// Bytes that a disk writes whole.
pub const SECTOR: u64 = 512;
const BLOCK_BYTES: u32 = 4096;

type Sector = [u8; SECTOR as usize];

/// Faults that are on now.
#[derive(Debug, Clone, Default)]
pub struct DiskFaults {
    /// Reads that touch these bytes fail.
    pub unreadable: Vec<Range<u64>>,
    /// Every write and flush fails.
    pub fail_writes: bool,
    /// Writes and grows fail for want of space.
    pub full: bool,
    /// So many of the next writes land somewhere else, and say that all is well.
    pub misdirect: u32,
    /// So many of the next writes are dropped, and say that all is well.
    pub drop_writes: u32,
}

/// A simulated disk.
#[derive(Debug)]
pub struct SimDiskState {
    /// What is wrong with it now.
    pub faults: DiskFaults,
    /// Shortest and longest usual time of an operation.
    pub latency: (Duration, Duration),
    /// Whether writes need a flush. If not, they are on media once completed.
    pub volatile_cache: bool,
    bytes: u64,
    media: BTreeMap<u64, Sector>,
    /// Versions of a sector since it was last flushed, oldest first, each with the number of its write.
    cached: BTreeMap<u64, Vec<(u64, Sector)>>,
    writes: u64,
    /// Bytes written so far.
    pub bytes_written: u64,
    /// Flushes completed so far.
    pub flushes: u64,
}

/// A disk on its place, and shared with those who have it open.
#[derive(Clone)]
pub(crate) struct Shelf {
    pub(crate) state: Rc<RefCell<SimDiskState>>,
}

impl Shelf {
    pub(crate) fn new(bytes: u64) -> Self {
        let state = SimDiskState {
            faults: DiskFaults::default(),
            latency: (Duration::from_micros(20), Duration::from_micros(200)),
            volatile_cache: true,
            bytes,
            media: BTreeMap::new(),
            cached: BTreeMap::new(),
            writes: 0,
            bytes_written: 0,
            flushes: 0,
        };
        Shelf {
            state: Rc::new(RefCell::new(state)),
        }
    }
}

impl SimDiskState {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a read would return now, without its faults.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        for (i, byte) in into.iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = self.sector(at / SECTOR)[(at % SECTOR) as usize];
        }
    }

    /// Flips one bit of what is stored, in cache and on media.
    pub fn rot(&mut self, offset: u64, bit: u8) {
        let (index, at) = (offset / SECTOR, (offset % SECTOR) as usize);
        self.media.entry(index).or_insert([0; SECTOR as usize])[at] ^= 1 << (bit % 8);
        for (_, version) in self.cached.get_mut(&index).into_iter().flatten() {
            version[at] ^= 1 << (bit % 8);
        }
    }

    fn sector(&self, index: u64) -> Sector {
        let newest = self
            .cached
            .get(&index)
            .and_then(|versions| versions.last())
            .map(|v| v.1);
        newest
            .or_else(|| self.media.get(&index).copied())
            .unwrap_or([0; SECTOR as usize])
    }

    /// Stores sectors; `data` is `None` for zeroes.
    fn store(&mut self, offset: u64, len: u64, data: Option<&[u8]>, durable: bool) {
        self.writes += 1;
        self.bytes_written += len;
        for i in 0..len / SECTOR {
            let index = offset / SECTOR + i;
            let mut sector = [0; SECTOR as usize];
            if let Some(data) = data {
                let from = (i * SECTOR) as usize;
                sector.copy_from_slice(&data[from..from + SECTOR as usize]);
            }
            if durable {
                self.cached.remove(&index);
                self.media.insert(index, sector);
            } else {
                self.cached
                    .entry(index)
                    .or_default()
                    .push((self.writes, sector));
            }
        }
    }

    /// Brings versions of writes up to `write` to media.
    fn flush(&mut self, write: u64) {
        self.flushes += 1;
        let media = &mut self.media;
        self.cached.retain(|index, versions| {
            if let Some(newest) = versions.iter().rev().find(|v| v.0 <= write) {
                media.insert(*index, newest.1);
            }
            versions.retain(|v| v.0 > write);
            !versions.is_empty()
        });
    }
}

/// What an operation does when its time has come.
enum Action {
    Read { len: usize },
    Write { len: usize, fua: bool },
    Zero { len: u64 },
    Flush { up_to: u64 },
    Grow { bytes: u64 },
}

/// An operation with the disk; owns its buffer until it is done.
struct Op {
    disk: Rc<RefCell<SimDiskState>>,
    what: &'static str,
    offset: u64,
    action: Action,
    buffer: Option<Buffer>,
    waker: Option<Waker>,
    /// Nobody waits any more.
    abandoned: bool,
    result: Option<Result<(), DiskError>>,
}

/// Operations under way, by number.
#[derive(Default)]
pub(crate) struct Ops(BTreeMap<u64, Op>);

impl World {
    /// An operation's time has come.
    pub(super) fn disk_done(&self, id: u64) {
        let mut ops = self.disk_ops.borrow_mut();
        let Some(op) = ops.0.get_mut(&id) else { return };
        let result = op.perform(self);
        self.trace(4, id, u64::from(result.is_ok()));
        op.result = Some(result);
        if let Some(waker) = op.waker.take() {
            waker.wake();
        }
        if op.abandoned {
            ops.0.remove(&id);
        }
    }

    /// The power fails: of each sector any version since its last flush stays, also of writes under way.
    pub(super) fn disk_power_cut(&self, name: &Path) {
        let Some(shelf) = self.disks.borrow().get(name).cloned() else {
            return;
        };
        let mut ops = self.disk_ops.borrow_mut();
        let under_way: Vec<u64> = ops
            .0
            .iter()
            .filter(|(_, op)| Rc::ptr_eq(&op.disk, &shelf.state) && op.result.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in under_way {
            let Some(op) = ops.0.remove(&id) else {
                continue;
            };
            if let (Action::Write { len, .. }, Some(buffer)) = (&op.action, &op.buffer) {
                let mut disk = shelf.state.borrow_mut();
                disk.store(op.offset, *len as u64, Some(&buffer[..*len]), false);
            }
        }
        let mut disk = shelf.state.borrow_mut();
        for (index, versions) in std::mem::take(&mut disk.cached) {
            // 0 is what was on media.
            let kept = self.below(versions.len() as u64 + 1) as usize;
            if let Some((_, sector)) = kept.checked_sub(1).map(|k| versions[k]) {
                disk.media.insert(index, sector);
            }
        }
    }
}

impl Op {
    fn perform(&mut self, world: &World) -> Result<(), DiskError> {
        let mut disk = self.disk.borrow_mut();
        let durable = !disk.volatile_cache;
        let failed = |len: u64| DiskError::Failed {
            what: self.what,
            offset: self.offset,
            len,
            source: io::Error::from_raw_os_error(libc::EIO),
        };
        let changes = !matches!(self.action, Action::Read { .. });
        if changes && disk.faults.fail_writes {
            return Err(failed(0));
        }
        if disk.faults.full && matches!(self.action, Action::Write { .. } | Action::Grow { .. }) {
            return Err(DiskError::Full {
                offset: self.offset,
                len: 0,
            });
        }
        match (&self.action, &mut self.buffer) {
            (Action::Read { len }, Some(buffer)) => {
                let range = self.offset..self.offset + *len as u64;
                if disk
                    .faults
                    .unreadable
                    .iter()
                    .any(|bad| bad.start < range.end && range.start < bad.end)
                {
                    return Err(failed(*len as u64));
                }
                for (i, part) in buffer[..*len].chunks_exact_mut(SECTOR as usize).enumerate() {
                    part.copy_from_slice(&disk.sector(self.offset / SECTOR + i as u64));
                }
            }
            (Action::Write { len, fua }, Some(buffer)) => {
                let len = *len as u64;
                if disk.faults.drop_writes > 0 {
                    disk.faults.drop_writes -= 1;
                    return Ok(());
                }
                let mut offset = self.offset;
                if disk.faults.misdirect > 0 {
                    disk.faults.misdirect -= 1;
                    let places = (disk.bytes - len) / u64::from(BLOCK_BYTES);
                    offset = world.below(places + 1) * u64::from(BLOCK_BYTES);
                }
                disk.store(offset, len, Some(&buffer[..len as usize]), durable || *fua);
            }
            (Action::Zero { len }, _) => disk.store(self.offset, *len, None, durable),
            (Action::Flush { up_to }, _) => disk.flush(*up_to),
            (Action::Grow { bytes }, _) => disk.bytes = disk.bytes.max(*bytes),
            (Action::Read { .. } | Action::Write { .. }, None) => {
                unreachable!("transfers have a buffer")
            }
        }
        Ok(())
    }
}

/// Gives an operation up when its future is dropped; it goes on by itself.
struct Pending {
    world: Rc<World>,
    id: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut ops = self.world.disk_ops.borrow_mut();
        let finished = match ops.0.get_mut(&self.id) {
            Some(op) if op.result.is_none() => {
                op.abandoned = true;
                op.waker = None;
                None
            }
            _ => ops.0.remove(&self.id),
        };
        drop(ops);
        drop(finished);
    }
}

/// A reactor's handle of a simulated disk.
pub(crate) struct SimDisk {
    world: Rc<World>,
    state: Rc<RefCell<SimDiskState>>,
}

impl SimDisk {
    pub(crate) fn open(core: &Rc<Core>, spec: &DiskSpec) -> Result<Self, DiskError> {
        let world = core.sim().world.clone();
        let shelf = world.disks.borrow().get(&spec.path).cloned();
        match shelf {
            Some(shelf) => Ok(SimDisk {
                world,
                state: shelf.state,
            }),
            None => Err(DiskError::Open {
                path: spec.path.clone(),
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.state.borrow().bytes
    }

    pub(crate) fn block_bytes(&self) -> u32 {
        BLOCK_BYTES
    }

    pub(crate) fn direct(&self) -> bool {
        true
    }

    pub(crate) fn volatile_cache(&self) -> bool {
        self.state.borrow().volatile_cache
    }

    pub(crate) async fn read(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
    ) -> (Buffer, Result<(), DiskError>) {
        self.transfer("read", offset, buffer, len, Action::Read { len })
            .await
    }

    pub(crate) async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        len: usize,
        fua: bool,
    ) -> (Buffer, Result<(), DiskError>) {
        self.transfer("write", offset, buffer, len, Action::Write { len, fua })
            .await
    }

    pub(crate) async fn flush(&self) -> Result<(), DiskError> {
        let up_to = self.state.borrow().writes;
        self.perform("flush", 0, Action::Flush { up_to }, None)
            .await
            .1
    }

    pub(crate) async fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero("discard", offset, len).await
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero("write-zeroes", offset, len).await
    }

    async fn zero(&self, what: &'static str, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inside(offset, len)?;
        self.perform(what, offset, Action::Zero { len }, None)
            .await
            .1
    }

    pub(crate) async fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        self.perform("grow", 0, Action::Grow { bytes }, None)
            .await
            .1
    }

    async fn transfer(
        &self,
        what: &'static str,
        offset: u64,
        buffer: Buffer,
        len: usize,
        action: Action,
    ) -> (Buffer, Result<(), DiskError>) {
        assert!(len <= buffer.len(), "the buffer holds the whole transfer");
        if let Err(e) = self.inside(offset, len as u64) {
            return (buffer, Err(e));
        }
        let (buffer, result) = self.perform(what, offset, action, Some(buffer)).await;
        (buffer.expect("an operation on a buffer yields it"), result)
    }

    fn inside(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        assert!(
            offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR),
            "transfers are of whole sectors"
        );
        let size = self.size_bytes();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(DiskError::OutOfRange { offset, len, size }),
        }
    }

    async fn perform(
        &self,
        what: &'static str,
        offset: u64,
        action: Action,
        buffer: Option<Buffer>,
    ) -> (Option<Buffer>, Result<(), DiskError>) {
        let world = self.world.clone();
        let id = world.fresh();
        let (from, to) = self.state.borrow().latency;
        let disk = self.state.clone();
        world.disk_ops.borrow_mut().0.insert(
            id,
            Op {
                disk,
                what,
                offset,
                action,
                buffer,
                waker: None,
                abandoned: false,
                result: None,
            },
        );
        world.after(world.delay(from, to), Event::Disk(id));
        let pending = Pending { world, id };
        poll_fn(|cx| {
            let mut ops = pending.world.disk_ops.borrow_mut();
            let done = ops.0.get(&id).is_none_or(|op| op.result.is_some());
            if !done {
                if let Some(op) = ops.0.get_mut(&id) {
                    op.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            match ops.0.remove(&id).map(|op| (op.buffer, op.result)) {
                Some((buffer, Some(result))) => Poll::Ready((buffer, result)),
                // The power went; so does this task, in a moment.
                _ => Poll::Pending,
            }
        })
        .await
    }
}
