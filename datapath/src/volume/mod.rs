//! Volumes as the target sees them, over the linear map: the seam that the store slips behind.
//!
//! A [`Volume`] is one reactor's handle. Its address space is divided into lanes (`lane`), each owned by one reactor at a time. An
//! operation is cut into parts of one lane (`op`); a part whose lane is owned here enters the lane's table of ranges (`range`), which
//! orders it against exclusive ones, and goes to the drives that the map (`map`) names (`serve`); any other part is a message to the
//! owner (`forward`). Reads and writes of a drive in memory whose lane is owned here skip all of that: [`Volume::read_now`] and
//! [`Volume::write_now`] complete at once.
//!
//! Each reactor keeps its handles in a [`Hub`] (`hub`), which also serves what other reactors forward. The [`Registry`] (`registry`) on
//! reactor 0 opens, grows and closes volumes on all of them, and moves lanes to where a volume is used (`balance`).

mod balance;
mod error;
mod forward;
mod hub;
mod lane;
mod map;
mod op;
mod range;
mod registry;
mod scratch;
mod serve;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelblock_api::stats::VolumeStats;
use keelblock_hugepages::Buffer;

pub use error::{ByteRange, VolumeError};
pub use forward::Message;
pub use hub::Hub;
pub use lane::{LANES_MAX, Lane, Lanes, SLICE_BYTES};
pub use map::{MapExtent, VolumeSpec};
pub use registry::{LaneTable, OpenError, Registry};

use crate::device::{Device, View};
use crate::reactor::ReactorId;
use crate::store::VolumeId;
use map::Map;
use op::{Buffers, Op};
use range::RangeTable;

/// A lane as one reactor sees it.
#[derive(Debug)]
struct LaneState {
    /// The reactor that owns it, as far as this one was told.
    owner: Cell<ReactorId>,
    /// Only used where the lane is owned.
    ranges: Rc<RangeTable>,
}

struct Inner {
    id: VolumeId,
    number: u32,
    lanes: Lanes,
    here: ReactorId,
    table: Vec<LaneState>,
    map: RefCell<Rc<Map>>,
    closed: Cell<bool>,
    placed: Cell<bool>,
    /// Operations of this reactor's hosts since lanes were last looked at, and those of them that were forwarded.
    operations: Cell<u64>,
    forwards: Cell<u32>,
    volatile_cache: bool,
    stats: Option<VolumeStats>,
    media_errors: Arc<AtomicU64>,
    hub: Weak<hub::Shared>,
}

/// One reactor's handle of a volume; cheap to clone. Ranges are checked against the size by the caller, and again here.
#[derive(Clone)]
pub struct Volume(Rc<Inner>);

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("id", &self.0.id)
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

impl Volume {
    fn new(
        spec: &VolumeSpec,
        owners: &LaneTable,
        drives: &[Device],
        stats: Option<VolumeStats>,
        hub: &Rc<hub::Shared>,
    ) -> Self {
        let map = Map::new(spec, drives);
        let volatile_cache = map.devices().any(Device::volatile_cache);
        let table = spec.lanes.all().map(|lane| LaneState {
            owner: Cell::new(owners.owner(lane)),
            ranges: Rc::new(RangeTable::new()),
        });
        Self(Rc::new(Inner {
            id: spec.id,
            number: spec.number,
            lanes: spec.lanes,
            here: hub.here(),
            table: table.collect(),
            volatile_cache,
            map: RefCell::new(Rc::new(map)),
            closed: Cell::new(false),
            placed: Cell::new(false),
            operations: Cell::new(0),
            forwards: Cell::new(0),
            stats,
            media_errors: Arc::clone(&spec.media_errors),
            hub: Rc::downgrade(hub),
        }))
    }

    /// The volume's id.
    pub fn id(&self) -> VolumeId {
        self.0.id
    }

    /// Its size in bytes now.
    pub fn size_bytes(&self) -> u64 {
        self.0.map.borrow().size_bytes()
    }

    /// Whether completed writes may be lost with power until a flush: what Identify's VWC says.
    pub fn volatile_cache(&self) -> bool {
        self.0.volatile_cache
    }

    /// This reactor's counters of the volume in the stats page; `None` if the page is full.
    pub fn stats(&self) -> Option<&VolumeStats> {
        self.0.stats.as_ref()
    }

    /// Operations that drives could not do since the volume was opened, on all reactors.
    pub fn media_errors(&self) -> u64 {
        self.0.media_errors.load(Ordering::Relaxed)
    }

    /// Tells that a host's I/O queue is served by `reactor`. The first one takes the volume's lanes there, without interrupting I/O.
    pub fn place(&self, reactor: ReactorId) {
        if self.0.placed.replace(true) {
            return;
        }
        if let Some(hub) = self.0.hub.upgrade() {
            hub.ask_to_place(self.0.number, reactor);
        }
    }

    /// Reads without waiting and without a copy. `None`: use [`Volume::read`].
    #[inline]
    pub fn read_now(&self, at: ByteRange) -> Option<Result<View, VolumeError>> {
        let inner = &*self.0;
        if !inner.at_once(at) {
            return None;
        }
        let map = inner.map.borrow();
        match map.locate(at) {
            Ok((device, place, run)) if run == at.len() => device.view(place, run as usize).map(Ok),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        }
    }

    /// Writes without waiting. `None`: nothing was written, use [`Volume::write`].
    ///
    /// # Panics
    /// If `data` is not as long as the range.
    #[inline]
    pub fn write_now(
        &self,
        at: ByteRange,
        data: &[u8],
        _fua: bool,
    ) -> Option<Result<(), VolumeError>> {
        assert_eq!(at.len(), data.len() as u64);
        let inner = &*self.0;
        if !inner.at_once(at) {
            return None;
        }
        let map = inner.map.borrow();
        match map.locate(at) {
            // Memory is as stable as it gets: FUA asks for nothing more.
            Ok((device, place, run)) if run == at.len() => {
                let stored = device.store_now(place, data)?;
                inner.count();
                Some(stored.map_err(VolumeError::from))
            }
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        }
    }

    /// Reads into the beginning of `into`.
    ///
    /// # Errors
    /// [`VolumeError`].
    ///
    /// # Panics
    /// If the buffer is shorter than the range. So for all operations below.
    pub async fn read(&self, at: ByteRange, into: Buffer) -> (Buffer, Result<(), VolumeError>) {
        one(self.run(Op::Read, at, Buffers::one(into)).await)
    }

    /// Writes the beginning of `from`; with `fua` it is on stable media when it is done.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn write(
        &self,
        at: ByteRange,
        from: Buffer,
        fua: bool,
    ) -> (Buffer, Result<(), VolumeError>) {
        one(self.run(Op::Write { fua }, at, Buffers::one(from)).await)
    }

    /// Compares with the beginning of `with`.
    ///
    /// # Errors
    /// [`VolumeError::Miscompare`] if they differ; others if they could not be compared.
    pub async fn compare(&self, at: ByteRange, with: Buffer) -> (Buffer, Result<(), VolumeError>) {
        one(self.run(Op::Compare, at, Buffers::one(with)).await)
    }

    /// Writes `new` if the volume holds `expect`, with nothing in between.
    ///
    /// # Errors
    /// [`VolumeError::Miscompare`] and nothing written if it does not; [`VolumeError::NotAtomic`] for a range over two lanes.
    pub async fn compare_and_write(
        &self,
        at: ByteRange,
        expect: Buffer,
        new: Buffer,
        fua: bool,
    ) -> ((Buffer, Buffer), Result<(), VolumeError>) {
        let buffers = Buffers::two(expect, new);
        let (buffers, result) = self.run(Op::CompareAndWrite { fua }, at, buffers).await;
        (buffers.into_two(), result)
    }

    /// Makes the range read as zeroes. The linear map keeps its space, so `deallocate` changes nothing.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn write_zeroes(&self, at: ByteRange, _deallocate: bool) -> Result<(), VolumeError> {
        self.run(Op::WriteZeroes, at, Buffers::none()).await.1
    }

    /// Deallocates: the linear map zeroes, so that reads are defined and the same on every path.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn deallocate(&self, at: ByteRange) -> Result<(), VolumeError> {
        self.run(Op::WriteZeroes, at, Buffers::none()).await.1
    }

    /// Reads from the drives and gives nothing back.
    ///
    /// # Errors
    /// [`VolumeError::Unreadable`] if some of it cannot be read.
    pub async fn verify(&self, at: ByteRange) -> Result<(), VolumeError> {
        self.run(Op::Verify, at, Buffers::none()).await.1
    }

    /// Brings every write that completed before, on any reactor, to stable media.
    ///
    /// # Errors
    /// [`VolumeError::DriveFailed`].
    pub async fn flush(&self) -> Result<(), VolumeError> {
        if self.0.closed.get() {
            return Err(VolumeError::Closed);
        }
        // A drive's flush covers what any handle of it wrote, so this reactor's does for all.
        let map = Rc::clone(&self.0.map.borrow());
        for device in map.devices() {
            device.flush().await?;
        }
        Ok(())
    }
}

fn one((buffers, result): (Buffers, Result<(), VolumeError>)) -> (Buffer, Result<(), VolumeError>) {
    (buffers.into_one(), result)
}

impl Inner {
    /// Counts an operation of one of this reactor's hosts.
    #[inline]
    fn count(&self) {
        self.operations.set(self.operations.get() + 1);
    }

    /// Whether plain I/O may touch the drives of this range at once: one lane, owned here, no exclusive range, open.
    #[inline]
    fn at_once(&self, at: ByteRange) -> bool {
        let lane = &self.table[self.lanes.of(at.start).index()];
        self.lanes.single(&at.range())
            && lane.owner.get() == self.here
            && lane.ranges.open()
            && !self.closed.get()
    }
}
