//! Reads: the delta first, then the map, then the drive; and every block is compared with its checksum.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::super::map::EntryKind;
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, PhysicalBlock};
use super::join::join_all;
use super::lane::LaneState;
use super::lookup::Known;
use super::{Inner, StoreError};
use crate::device::View;
use crate::reactor::Nanos;

/// Pieces of one read that are under way at a time.
const PIECES_MAX: usize = 32;

/// How many blocks behind the one that is summed the one lies that is fetched.
const BLOCKS_AHEAD: usize = 1;

/// What one pass sums, in blocks' worth of time: four reads of 128 KiB, or some twenty of a block.
const SUMMED_OF_PASS: u64 = 128;
/// What a read costs besides its blocks, in blocks' worth.
const SUMMED_OF_READ: u64 = 6;

/// How much was summed in this pass of the reactor.
#[derive(Debug, Default)]
pub struct Summed {
    pass: Cell<Nanos>,
    worth: Cell<u64>,
}

/// What a read of a memory drive works with; kept for its memory.
#[derive(Debug, Default)]
pub struct NowRead {
    /// Blocks, where they are, and what they must be; zeroes have no place.
    places: Vec<(View, Option<(PhysicalBlock, Crc)>)>,
    /// What is given out.
    views: Vec<View>,
}

/// Where a block of a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeroes.
    Zeroes,
    /// There, with this checksum.
    Data(PhysicalBlock, Crc),
    /// It was damaged before.
    Poisoned,
}

impl From<Known> for Place {
    #[inline]
    fn from(known: Known) -> Self {
        match known {
            Known::Entry(entry) if entry.is_poison() => Self::Poisoned,
            Known::Entry(entry) => Self::Data(entry.block, entry.crc),
            Known::Erased | Known::Nothing => Self::Zeroes,
            Known::Leaf(entry) => match (entry.kind, entry.block()) {
                (EntryKind::Data, Some(block)) => Self::Data(block, entry.crc),
                (EntryKind::Absent, _) => Self::Zeroes,
                _ => Self::Poisoned,
            },
        }
    }
}

impl Inner {
    /// Where a block is, if that is in memory.
    #[inline]
    fn place_now(&self, lane: &LaneState, block: LaneBlock) -> Option<Place> {
        Some(self.known_now(lane, block)?.into())
    }

    /// Whether every block is mapped, and nobody else refers to it: writing it again takes no space in the end.
    pub(super) async fn all_own(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
    ) -> Result<bool, StoreError> {
        let _reader = self.reclaim.read();
        let shape = lane.shape();
        for block in blocks.map(LaneBlock) {
            let bound = {
                let (number, _) = shape.leaf_of(block);
                self.catalogue.borrow().bound(lane.handle, number)
            };
            let own = match self.known(lane, block).await? {
                Known::Entry(e) => !e.is_poison(),
                Known::Leaf(e) => e.kind == EntryKind::Data && e.generation > bound,
                Known::Erased | Known::Nothing => false,
            };
            if !own {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of a memory drive, verified, as views. `None`: not all of it can be said without waiting.
    pub(super) fn read_now(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
        mut skip: usize,
        mut len: usize,
        mut each: impl FnMut(View),
    ) -> Option<Result<(), StoreError>> {
        let NowRead { places, views } = &mut *self.now_read.borrow_mut();
        places.clear();
        for block in blocks.clone().map(LaneBlock) {
            places.push(match self.place_now(lane, block)? {
                Place::Zeroes => (View::zeroes(), None),
                Place::Data(at, crc) => {
                    let view = self.device.view(at.0 * BLOCK_BYTES as u64, BLOCK_BYTES)?;
                    (view, Some((at, crc)))
                }
                Place::Poisoned => return Some(Err(StoreError::Poisoned { block })),
            });
        }
        views.clear();
        for (n, &(view, expected)) in places.iter().enumerate() {
            if let Some((at, crc)) = expected {
                // Memory is read ahead while this one is summed.
                let ahead = places.get(n + BLOCKS_AHEAD).map(|(view, _)| view.as_ptr());
                // SAFETY: the view was taken in this pass, and nothing is written until `bytes` is dropped, at the end of the statement.
                let actual = Crc::of_memory(unsafe { view.bytes() }, ahead);
                if actual != crc && self.compares() {
                    let block = LaneBlock(blocks.start + n as u64);
                    return Some(Err(self.mismatch(lane, block, at, crc, actual)));
                }
            }
            let part = view.part(skip, len.min(BLOCK_BYTES - skip));
            (skip, len) = (0, len - part.len());
            if !views.last_mut().is_some_and(|last| last.join(part)) {
                views.push(part);
            }
        }
        views.iter().copied().for_each(&mut each);
        Some(Ok(()))
    }

    /// See [`super::StoreLane::prefetch`].
    pub(super) fn prefetch(&self, lane: &LaneState, block: LaneBlock) {
        if let Some(Place::Data(at, _)) = self.place_now(lane, block)
            && let Some(view) = self.device.view(at.0 * BLOCK_BYTES as u64, BLOCK_BYTES)
        {
            view.prefetch_whole();
        }
    }

    /// Reads that come back together are summed in two passes if they are many: whoever waits for the first sends the next while the others are
    /// summed, so that the drive is not without work.
    async fn turn_to_sum(&self, blocks: u64) {
        let summed = &self.summed;
        if self.in_memory() {
            return;
        }
        if summed.pass.get() == self.handle.now() && summed.worth.get() >= SUMMED_OF_PASS {
            self.handle.yield_now().await;
        }
        if summed.pass.replace(self.handle.now()) != self.handle.now() {
            summed.worth.set(0);
        }
        summed
            .worth
            .set(summed.worth.get() + blocks + SUMMED_OF_READ);
    }

    fn compares(&self) -> bool {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ChecksumNotCompared) {
            return false;
        }
        true
    }

    /// Reads blocks into the beginning of a buffer.
    pub(super) async fn read(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        if self.closed.get() {
            return (into, Err(StoreError::Closed));
        }
        // From before the first look until the last byte is here.
        let _reader = self.reclaim.read();
        if blocks.end - blocks.start == 1 {
            return self.read_one(lane, LaneBlock(blocks.start), into).await;
        }
        Box::pin(self.read_many(lane, blocks, into)).await
    }

    async fn read_one(
        &self,
        lane: &LaneState,
        block: LaneBlock,
        mut into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        let (at, crc) = match self.known(lane, block).await.map(Place::from) {
            Ok(Place::Data(at, crc)) => (at, crc),
            Ok(Place::Zeroes) => {
                into[..BLOCK_BYTES].fill(0);
                return (into, Ok(()));
            }
            Ok(Place::Poisoned) => return (into, Err(StoreError::Poisoned { block })),
            Err(e) => return (into, Err(e)),
        };
        if !self.in_memory()
            && let Some(content) = self.cache.get(at)
        {
            into[..BLOCK_BYTES].copy_from_slice(&content[..]);
            self.cache_hits.set(self.cache_hits.get() + 1);
            return (into, self.compare(lane, block, at, crc, &content[..]));
        }
        let place = at.0 * BLOCK_BYTES as u64;
        let (into, read) = self.device.read(place, into, BLOCK_BYTES).await;
        if let Err(e) = read {
            return (into, Err(StoreError::Io(e)));
        }
        self.turn_to_sum(1).await;
        let result = self.compare(lane, block, at, crc, &into[..BLOCK_BYTES]);
        if result.is_ok() && !self.in_memory() && self.cache.wants(at) {
            let content: &[u8; BLOCK_BYTES] = into[..BLOCK_BYTES].try_into().expect("a block");
            self.cache.put(at, Rc::new(*content));
        }
        (into, result)
    }

    async fn read_many(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        let place = |block, known| match Place::from(known) {
            Place::Poisoned => Err(StoreError::Poisoned { block }),
            place => Ok(place),
        };
        match self.known_of_each(lane, &blocks, place).await {
            Ok(places) => self.read_places(lane, blocks.start, &places, into).await,
            Err(e) => (into, Err(e)),
        }
    }

    /// Reads what lies at these places, of blocks from `first` on. Who looked for them is a reader still.
    pub(super) async fn read_places(
        &self,
        lane: &LaneState,
        first: u64,
        places: &[Place],
        mut into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        let runs = runs_of(places);
        if let [
            Piece {
                first: 0,
                count,
                at,
            },
        ] = runs[..]
            && count == places.len()
        {
            let place = at.0 * BLOCK_BYTES as u64;
            let (back, read) = self.device.read(place, into, count * BLOCK_BYTES).await;
            if let Err(e) = read {
                return (back, Err(StoreError::Io(e)));
            }
            into = back;
        } else {
            for (n, _) in places
                .iter()
                .enumerate()
                .filter(|(_, p)| **p == Place::Zeroes)
            {
                into[n * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
            }
            for some in runs.chunks(PIECES_MAX) {
                let reads = some.iter().map(|piece| self.read_piece(*piece));
                for (piece, read) in some.iter().zip(join_all(reads).await) {
                    match read {
                        Ok(parts) => {
                            let mut to = piece.first * BLOCK_BYTES;
                            for part in parts {
                                into[to..to + part.len()].copy_from_slice(&part[..]);
                                to += part.len();
                            }
                        }
                        Err(e) => return (into, Err(StoreError::Io(e))),
                    }
                }
            }
        }
        self.turn_to_sum(places.len() as u64).await;
        for (n, place) in places.iter().enumerate() {
            if let Place::Data(at, crc) = *place {
                let block = LaneBlock(first + n as u64);
                let bytes = &into[n * BLOCK_BYTES..][..BLOCK_BYTES];
                if let Err(e) = self.compare(lane, block, at, crc, bytes) {
                    return (into, Err(e));
                }
            }
        }
        (into, Ok(()))
    }

    /// Reads a run of blocks by way of buffers of the store's own.
    async fn read_piece(&self, piece: Piece) -> Result<Vec<Box<[u8]>>, crate::device::IoError> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < piece.count {
            let mut buffer = self.read_buffers.take().await;
            let some = (piece.count - done).min(buffer.len() / BLOCK_BYTES);
            let place = (piece.at.0 + done as u64) * BLOCK_BYTES as u64;
            let len = some * BLOCK_BYTES;
            let (back, read) = self.device.read(place, buffer.lend(), len).await;
            buffer.back(back);
            read?;
            parts.push(Box::from(&buffer[..len]));
            done += some;
        }
        Ok(parts)
    }

    fn compare(
        &self,
        lane: &LaneState,
        block: LaneBlock,
        at: PhysicalBlock,
        expected: Crc,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let actual = Crc::of(bytes);
        if actual == expected || !self.compares() {
            return Ok(());
        }
        Err(self.mismatch(lane, block, at, expected, actual))
    }

    #[cold]
    pub(super) fn mismatch(
        &self,
        lane: &LaneState,
        block: LaneBlock,
        at: PhysicalBlock,
        expected: Crc,
        actual: Crc,
    ) -> StoreError {
        self.checksum_errors.set(self.checksum_errors.get() + 1);
        self.cache.remove(at);
        let drive = self.superblock.borrow().drive.clone();
        tracing::error!(%drive, volume = %lane.volume, lane = lane.lane, block = block.0, at = at.0, ?expected, ?actual, "checksum error");
        StoreError::Checksum {
            block,
            at,
            expected,
            actual,
        }
    }
}

/// Blocks of a read that lie in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Place in the read.
    first: usize,
    count: usize,
    at: PhysicalBlock,
}

fn runs_of(places: &[Place]) -> Vec<Piece> {
    let mut runs: Vec<Piece> = Vec::new();
    for (n, place) in places.iter().enumerate() {
        let Place::Data(at, _) = *place else {
            continue;
        };
        match runs.last_mut() {
            Some(run) if run.first + run.count == n && run.at.0 + run.count as u64 == at.0 => {
                run.count += 1;
            }
            _ => runs.push(Piece {
                first: n,
                count: 1,
                at,
            }),
        }
    }
    runs
}
