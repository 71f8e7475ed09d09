//! Simulated disks: a volatile cache over media, in sectors of 512 bytes.
//!
//! A write that completed is read back, but is on media only after a flush that was issued later, or with FUA. Until then a power cut
//! keeps it, loses it or tears it between sectors, whatever becomes of writes before and after it; so does it with writes that are under way.
//! A flush that says that it is done and is not is no fault that a store can survive, so there is none here.
//!
//! A disk can also stop the world between any two of its operations ([`SimDiskState::halt_after`]): then a test decides what fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::super::disk::DiskSpec;
use super::super::error::DiskError;
use super::super::handle::Core;
use super::media::{BLOCK, Block, Blocks, Versions, ZEROES};
use super::{Event, NodeId, World};

mod power;

pub use power::Undecided;

/// Bytes that a disk writes whole.
pub const SECTOR: u64 = 512;
const BLOCK_BYTES: u32 = BLOCK as u32;

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
    /// What is read.
    now: Blocks,
    /// Blocks of which something else may be on media.
    cached: BTreeMap<u64, Versions>,
    writes: u64,
    /// Bytes written so far.
    pub bytes_written: u64,
    /// Flushes completed so far.
    pub flushes: u64,
    /// Operations that were begun, and those that were completed, so far, added up.
    pub events: u64,
    halt_at: u64,
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
            now: Blocks::default(),
            cached: BTreeMap::new(),
            writes: 0,
            bytes_written: 0,
            flushes: 0,
            events: 0,
            halt_at: u64::MAX,
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
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let (block, skip) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let len = rest.len().min(BLOCK - skip);
            let (part, after) = rest.split_at_mut(len);
            part.copy_from_slice(&self.now.bytes(block)[skip..skip + len]);
            (at, rest) = (at + len as u64, after);
        }
    }

    /// Overwrites bytes, in cache and on media, as a disk does that puts them in a wrong place, or a test that knows better.
    pub fn poke(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.change(at, |b| *b = *byte);
        }
    }

    /// Flips one bit of what is stored, in cache and on media.
    pub fn rot(&mut self, offset: u64, bit: u8) {
        self.change(offset, |b| *b ^= 1 << (bit % 8));
    }

    fn change(&mut self, offset: u64, change: impl Fn(&mut u8)) {
        let (block, at) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
        let changed = |was: Option<&Rc<Block>>| {
            let mut bytes = was.map_or([0; BLOCK], |b| **b);
            change(&mut bytes[at]);
            Some(Rc::new(bytes))
        };
        let now = changed(self.now.get(block));
        self.now.set(block, now);
        if let Some(versions) = self.cached.get_mut(&block) {
            versions.media = changed(versions.media.as_ref());
            for (_, version) in &mut versions.later {
                *version = changed(version.as_ref());
            }
        }
    }

    /// Stops the world when so many more operations have begun or completed: [`super::Sim::run`] then ends without a result, and
    /// nothing that is asked of the disk afterwards happens. Ends with the process ([`super::Sim::kill`], [`super::Sim::power_cut`]).
    pub fn halt_after(&mut self, events: u64) {
        self.halt_at = self.events + events;
    }

    /// Ends a halt, or the plan for one.
    pub fn go_on(&mut self) {
        self.halt_at = u64::MAX;
    }

    /// Whether the world stands still.
    pub fn halted(&self) -> bool {
        self.events >= self.halt_at
    }

    /// What the disk holds, to begin from there again; costs little. Faults, and what a power cut would undo, are not part of it.
    pub fn image(&self) -> DiskImage {
        DiskImage(self.now.clone())
    }

    /// Makes the disk hold, on media, what it held then.
    pub fn restore(&mut self, image: &DiskImage) {
        self.now = image.0.clone();
        self.cached.clear();
    }

    /// Stores sectors; `data` is `None` for zeroes.
    fn store(&mut self, offset: u64, len: u64, data: Option<&[u8]>, durable: bool) {
        self.writes += 1;
        self.bytes_written += len;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (block, skip) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let part = (BLOCK - skip).min((len - done) as usize);
            let from = data.map(|d| &d[done as usize..done as usize + part]);
            let old = self.now.get(block).cloned();
            let new = if part == BLOCK {
                // Zeroes are what was never stored.
                let bytes = from.filter(|bytes| *bytes != ZEROES);
                bytes.map(|bytes| Rc::new(bytes.try_into().expect("a block")))
            } else {
                let mut bytes = old.as_deref().map_or([0; BLOCK], |b| *b);
                match from {
                    Some(from) => bytes[skip..skip + part].copy_from_slice(from),
                    None => bytes[skip..skip + part].fill(0),
                }
                Some(Rc::new(bytes))
            };
            if old.is_none() && new.is_none() && !self.cached.contains_key(&block) {
                // Zeroes, whatever becomes of them.
            } else if !durable {
                let versions = self.cached.entry(block).or_insert_with(|| Versions {
                    media: old,
                    later: Vec::new(),
                });
                versions.later.push((self.writes, new.clone()));
            } else if part == BLOCK {
                self.cached.remove(&block);
            } else if let Some(versions) = self.cached.get_mut(&block) {
                // The other sectors keep what may become of them.
                versions.media.clone_from(&new);
                versions.later.clear();
            }
            self.now.set(block, new);
            done += part as u64;
        }
    }

    /// Brings versions of writes up to `write` to media.
    fn flush(&mut self, write: u64) {
        self.flushes += 1;
        if write == self.writes {
            self.cached.clear();
            return;
        }
        self.cached.retain(|_, versions| {
            let stable = versions.later.partition_point(|v| v.0 <= write);
            if let Some((_, newest)) = versions.later.drain(..stable).next_back() {
                versions.media = newest;
            }
            !versions.later.is_empty()
        });
    }
}

/// What a disk held at a moment.
#[derive(Debug, Clone)]
pub struct DiskImage(Blocks);

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
    node: NodeId,
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
        let disk = op.disk.clone();
        if let Some(waker) = op.waker.take() {
            waker.wake();
        }
        if op.abandoned {
            ops.0.remove(&id);
        }
        self.disk_event(&disk);
    }

    /// An operation was begun or completed.
    fn disk_event(&self, disk: &RefCell<SimDiskState>) {
        let mut disk = disk.borrow_mut();
        disk.events += 1;
        if disk.halted() {
            self.halted.set(true);
        }
    }

    fn take_ops(&self, which: impl Fn(&Op) -> bool) -> Vec<Op> {
        let mut ops = self.disk_ops.borrow_mut();
        let ids: Vec<u64> = ops
            .0
            .iter()
            .filter(|(_, op)| op.result.is_none() && which(op))
            .map(|(id, _)| *id)
            .collect();
        ids.iter().filter_map(|id| ops.0.remove(id)).collect()
    }

    /// A process ends: the kernel has done each of its operations, or will not.
    pub(super) fn disk_ops_end(&self, node: NodeId) {
        for mut op in self.take_ops(|op| op.node == node) {
            if self.below(2) == 0 {
                let _ = op.perform(self);
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
                disk.peek(self.offset, &mut buffer[..*len]);
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
    node: NodeId,
    state: Rc<RefCell<SimDiskState>>,
}

impl SimDisk {
    pub(crate) fn open(core: &Rc<Core>, spec: &DiskSpec) -> Result<Self, DiskError> {
        let world = core.sim().world.clone();
        let shelf = world.disks.borrow().get(&spec.path).cloned();
        match shelf {
            Some(shelf) => Ok(SimDisk {
                world,
                node: core.sim().node,
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
        if self.state.borrow().halted() {
            // It never began: the world ends before.
            return std::future::pending().await;
        }
        let id = world.fresh();
        let (from, to) = self.state.borrow().latency;
        let disk = self.state.clone();
        world.disk_ops.borrow_mut().0.insert(
            id,
            Op {
                disk,
                node: self.node,
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
        world.disk_event(&self.state);
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
