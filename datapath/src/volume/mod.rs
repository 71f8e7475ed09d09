//! Volumes as the target sees them, over the stores of their pool's drives.
//!
//! A [`Volume`] is one reactor's handle. Its address space is divided into lanes (`lane`), each on one drive (`map`), and owned by the
//! reactor that is that drive's home. An operation is cut into parts of one slice (`op`); a part whose lane is owned here enters the lane's
//! table of ranges (`range`), which orders it against exclusive ones, and goes to the lane's store (`serve`); any other part is a message
//! to the owner (`mail`). Reads and writes of a drive in memory whose lane is owned here skip all of that: [`Volume::read_now`] and
//! [`Volume::write_now`] complete at once, and [`Hub::commit_now`] writes the records of a pass.
//!
//! Each reactor keeps its handles in a [`Hub`] (`hub`), which also has the stores of the drives whose home it is (`drive`), and serves what
//! other reactors forward. A replicated volume has no drives: its parts go to its coordinator (`replicated`, [`coordinator`]), which may be on another node ([`forward`]). Whatever is slow or rare is a job for some reactor's hub (`job`). The [`Registry`] (`registry`) on reactor 0 opens,
//! grows and closes volumes on all of them, and has lanes change their drive (`moving`).

pub mod coordinator;
mod drive;
mod error;
mod flush;
pub mod forward;
mod hub;
mod job;
mod lane;
mod mail;
mod map;
mod moving;
mod op;
mod range;
mod registry;
mod replicated;
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

pub use drive::{DriveError, DriveOpening, FaultReport};
pub use error::{ByteRange, VolumeError};
pub use hub::Hub;
pub use lane::{LANES_MAX, Lane, Lanes, SLICE_BYTES};
pub use mail::Message;
pub use map::VolumeSpec;
pub use moving::DriveHome;
pub use registry::{Registry, VolumeOpening};
pub use replicated::{Coordinating, Coordinator};

use crate::device::{BLOCK_BYTES, View};
use crate::reactor::ReactorId;
use crate::store::VolumeId;
use crate::store::engine::StoreLane;
use map::Slice;
use op::{Buffers, Op};
use range::{Entered, Mode, RangeTable};
use replicated::Served;

/// A lane as one reactor sees it. Drive, owner and store change together when the lane moves.
struct LaneState {
    /// Its drive.
    drive: Cell<u32>,
    /// The reactor that owns it.
    owner: Cell<ReactorId>,
    /// Where the lane is owned, unless its drive was closed.
    store: RefCell<Option<StoreLane>>,
    /// Only used where the lane is owned.
    ranges: Rc<RangeTable>,
}

struct Inner {
    id: VolumeId,
    number: u32,
    lanes: Lanes,
    here: ReactorId,
    table: Vec<LaneState>,
    size_bytes: Cell<u64>,
    closed: Cell<bool>,
    volatile_cache: bool,
    /// Of a replicated volume.
    served: Option<Served>,
    stats: Option<VolumeStats>,
    media_errors: Arc<AtomicU64>,
    /// The hub's: writes were done at once, and their records are not written.
    uncommitted: Rc<Cell<bool>>,
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
    fn new(spec: &VolumeSpec, stats: Option<VolumeStats>, hub: &Rc<hub::Shared>) -> Self {
        let here = hub.here();
        let table = spec.lanes.all().map(|lane| {
            let drive = spec.drives[lane.index()];
            let store = hub.store(drive).filter(|_| !spec.replicated);
            LaneState {
                drive: Cell::new(drive),
                owner: Cell::new(hub.home_of(drive)),
                store: RefCell::new(store.and_then(|s| s.lane(spec.id, lane.index() as u8))),
                ranges: Rc::new(RangeTable::new()),
            }
        });
        Self(Rc::new(Inner {
            id: spec.id,
            number: spec.number,
            lanes: spec.lanes,
            here,
            table: table.collect(),
            size_bytes: Cell::new(spec.size_bytes),
            closed: Cell::new(false),
            volatile_cache: spec.volatile_cache,
            served: spec.replicated.then(Served::default),
            stats,
            media_errors: Arc::clone(&spec.media_errors),
            uncommitted: hub.uncommitted(),
            hub: Rc::downgrade(hub),
        }))
    }

    /// The volume's id.
    pub fn id(&self) -> VolumeId {
        self.0.id
    }

    /// Its size in bytes now.
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.get()
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

    /// The reactor that owns all of the volume's lanes, if one does: operations from there are the cheapest.
    pub fn only_owner(&self) -> Option<ReactorId> {
        let first = self.0.table.first()?.owner.get();
        self.0
            .table
            .iter()
            .all(|l| l.owner.get() == first)
            .then_some(first)
    }

    /// Reads without waiting and without a copy: `each` gets views of the bytes, in order and only if all is well. `None`: use [`Volume::read`].
    #[inline]
    pub fn read_now(
        &self,
        at: ByteRange,
        each: impl FnMut(View),
    ) -> Option<Result<(), VolumeError>> {
        let inner = &*self.0;
        let slice = Slice::of(inner.lanes, at.start);
        let lane = &inner.table[slice.lane.index()];
        let store = lane.store.borrow();
        let store = store.as_ref()?;
        if !lane.ranges.open() || inner.closed.get() || !inner.lanes.single(&at.range()) {
            return None;
        }
        if at.end > inner.size_bytes.get() {
            return Some(Err(VolumeError::OutOfRange));
        }
        let skip = (at.start % BLOCK_BYTES) as usize;
        match store.read_now(slice.blocks(at), skip, at.len() as usize, each)? {
            Ok(()) => Some(Ok(())),
            Err(e) => Some(Err(inner
                .hub
                .upgrade()
                .map_or(VolumeError::Closed, |hub| {
                    self.failed(&hub, slice.lane, slice.blocks(at).start, e)
                }))),
        }
    }

    /// A read of this byte, or a write, comes soon: fetches what it will look at, if that is in memory here.
    #[inline]
    pub fn prefetch(&self, byte: u64, reads: bool) {
        let inner = &*self.0;
        if byte < inner.size_bytes.get() {
            let slice = Slice::of(inner.lanes, byte);
            if let Some(store) = &*inner.table[slice.lane.index()].store.borrow() {
                store.prefetch(slice.blocks(ByteRange::new(byte, 1)).start, reads);
            }
        }
    }

    /// Writes without waiting. It may be acknowledged after [`Hub::commit_now`] only, in the same pass. `None`: nothing was written, use
    /// [`Volume::write`].
    #[inline]
    pub fn write_now(
        &self,
        at: ByteRange,
        data: &[u8],
        fua: bool,
    ) -> Option<Result<(), VolumeError>> {
        let inner = &*self.0;
        let slice = Slice::of(inner.lanes, at.start);
        let lane = &inner.table[slice.lane.index()];
        let store = lane.store.borrow();
        let store = store.as_ref()?;
        let whole = at.aligned(BLOCK_BYTES) && inner.lanes.single(&at.range());
        if !whole || !lane.ranges.open() || inner.closed.get() || fua && inner.volatile_cache {
            return None;
        }
        if at.end > inner.size_bytes.get() {
            return Some(Err(VolumeError::OutOfRange));
        }
        match store.write_now(slice.blocks(at), data)? {
            Ok(()) => {
                inner.uncommitted.set(true);
                Some(Ok(()))
            }
            Err(e) => Some(Err(inner
                .hub
                .upgrade()
                .map_or(VolumeError::Closed, |hub| {
                    self.failed(&hub, slice.lane, slice.blocks(at).start, e)
                }))),
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
        one(self
            .run(Op::Write { fua, given: None }, at, Buffers::one(from))
            .await)
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
    /// [`VolumeError::Miscompare`] and nothing written if it does not; [`VolumeError::NotAtomic`] for a range over two slices.
    pub async fn compare_and_write(
        &self,
        at: ByteRange,
        expect: Buffer,
        new: Buffer,
        fua: bool,
    ) -> ((Buffer, Buffer), Result<(), VolumeError>) {
        let buffers = Buffers::two(expect, new);
        // Two sets of buffers are more than an operation's slot has room for.
        let op = Op::CompareAndWrite { fua, given: None };
        let (buffers, result) = Box::pin(self.run(op, at, buffers)).await;
        (buffers.into_two(), result)
    }

    /// Makes the range read as zeroes; whole blocks of it give their space back, asked or not.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn write_zeroes(&self, at: ByteRange, _deallocate: bool) -> Result<(), VolumeError> {
        self.run(Op::WriteZeroes { given: None }, at, Buffers::none())
            .await
            .1
    }

    /// Deallocates: whole blocks give their space back, and all of the range reads as zeroes, the same on every path.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn deallocate(&self, at: ByteRange) -> Result<(), VolumeError> {
        self.run(Op::WriteZeroes { given: None }, at, Buffers::none())
            .await
            .1
    }

    /// Reads from the drives and gives nothing back.
    ///
    /// # Errors
    /// [`VolumeError::Unreadable`] or [`VolumeError::Damaged`] if some of it cannot be read.
    pub async fn verify(&self, at: ByteRange) -> Result<(), VolumeError> {
        self.run(Op::Verify, at, Buffers::none()).await.1
    }

    /// Enters everything on every lane that is owned here (or only on one), to be alone with it.
    fn enter_all_here(&self, only: Option<u8>) -> Vec<Entered> {
        let all = self.0.lanes.all().zip(&self.0.table);
        let meant = all.filter(|(lane, state)| {
            state.owner.get() == self.0.here && only.is_none_or(|o| usize::from(o) == lane.index())
        });
        let entered = meant.map(|(_, lane)| {
            let entered = Rc::clone(&lane.ranges).enter(0..u64::MAX, Mode::Exclusive);
            // Operations are bounded below what a table has room for.
            entered.expect("room for the registry's one range")
        });
        entered.collect()
    }

    /// A lane is on another drive from now on. It is held, so nothing is under way on it; who waits for it goes where it is.
    fn move_lane(&self, lane: Lane, drive: u32, hub: &hub::Shared) {
        let state = &self.0.table[lane.index()];
        let store = hub.store(drive);
        let store = store.and_then(|store| store.lane(self.0.id, lane.index() as u8));
        state.drive.set(drive);
        state.owner.set(hub.home_of(drive));
        state.store.replace(store);
    }

    /// The drives of all lanes, each once.
    fn drives(&self) -> ([u32; LANES_MAX], usize) {
        let mut drives = [0; LANES_MAX];
        let mut count = 0;
        for lane in &self.0.table {
            let drive = lane.drive.get();
            if !drives[..count].contains(&drive) {
                drives[count] = drive;
                count += 1;
            }
        }
        (drives, count)
    }
}

fn one((buffers, result): (Buffers, Result<(), VolumeError>)) -> (Buffer, Result<(), VolumeError>) {
    (buffers.into_one(), result)
}
