//! Reads: the delta first, then the map, then the drive; and every block is compared with its checksum.

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::super::map::{EntryKind, LeafEntry, LeafShape, Page, leaf, leaf_cached, leaf_of};
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, PhysicalBlock};
use super::join::join_all;
use super::lane::LaneState;
use super::layer::{Entry, Found};
use super::{Inner, StoreError};
use crate::device::View;

/// Pieces of one read that are under way at a time.
const PIECES_MAX: usize = 32;

/// Blocks between the one that is summed and the one that is fetched.
const BLOCKS_AHEAD: usize = 2;

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

/// An entry of a leaf.
#[inline]
pub(super) fn entry_at(page: &Page, slot: u8) -> LeafEntry {
    LeafShape::Plain.entry(page, slot)
}

impl From<Entry> for Place {
    #[inline]
    fn from(entry: Entry) -> Self {
        match entry.is_poison() {
            true => Self::Poisoned,
            false => Self::Data(entry.block, entry.crc),
        }
    }
}

impl From<LeafEntry> for Place {
    fn from(entry: LeafEntry) -> Self {
        match (entry.kind, entry.block()) {
            (EntryKind::Data, Some(block)) => Self::Data(block, entry.crc),
            (EntryKind::Absent, _) => Self::Zeroes,
            _ => Self::Poisoned,
        }
    }
}

impl Inner {
    /// Where a block is, if that is in memory.
    #[inline]
    fn place_now(&self, lane: &LaneState, block: LaneBlock) -> Option<Place> {
        match lane.delta(block) {
            Some(Found::Entry(e)) => return Some(e.into()),
            Some(Found::Erased) => return Some(Place::Zeroes),
            None => {}
        }
        let (number, slot) = leaf_of(block);
        let key = lane.leaf_key(number);
        if let Some(entry) = self.front.entry(key, slot) {
            return Some(entry.into());
        }
        let Some(page) = leaf_cached(&self.pages, &lane.root.get(), number)? else {
            return Some(Place::Zeroes);
        };
        let place = entry_at(&page, slot).into();
        self.front.put(key, page);
        Some(place)
    }

    /// Where a block is.
    async fn find(&self, lane: &LaneState, block: LaneBlock) -> Result<Place, StoreError> {
        if let Some(place) = self.place_now(lane, block) {
            return Ok(place);
        }
        let (number, slot) = leaf_of(block);
        // The delta is asked first and without a pause before the root is taken: a checkpoint cannot move an entry past both.
        let root = lane.root.get();
        let page = leaf(&self.pages, &root, number).await?;
        Ok(page.map_or(Place::Zeroes, |page| entry_at(&page, slot).into()))
    }

    /// Whether every block is mapped, and nobody else refers to it: writing it again takes no space in the end.
    pub(super) async fn all_own(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
    ) -> Result<bool, StoreError> {
        let _reader = self.reclaim.read();
        for block in blocks.map(LaneBlock) {
            let bound = {
                let (number, _) = leaf_of(block);
                self.catalogue.borrow().bound(lane.handle, number)
            };
            let own = match lane.delta(block) {
                Some(Found::Entry(e)) => !e.is_poison(),
                Some(Found::Erased) => false,
                None => {
                    let (number, slot) = leaf_of(block);
                    let root = lane.root.get();
                    let page = leaf(&self.pages, &root, number).await?;
                    page.is_some_and(|page| {
                        let entry = entry_at(&page, slot);
                        entry.kind == EntryKind::Data && entry.generation > bound
                    })
                }
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
            // Memory is read ahead while this one is summed.
            if let Some((ahead, _)) = places.get(n + BLOCKS_AHEAD) {
                ahead.prefetch_whole();
            }
            if let Some((at, crc)) = expected {
                // SAFETY: the view was taken in this pass, and nothing is written until `bytes` is dropped, at the end of the statement.
                let actual = Crc::of(unsafe { view.bytes() });
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
        let (at, crc) = match self.find(lane, block).await {
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
        let result = self.compare(lane, block, at, crc, &into[..BLOCK_BYTES]);
        if result.is_ok() && !self.in_memory() && self.cache.wants(at) {
            let content: &[u8; BLOCK_BYTES] = into[..BLOCK_BYTES].try_into().expect("a block");
            self.cache.put(at, Rc::new(*content));
        }
        (into, result)
    }

    /// Where all blocks are at one moment: a read shows a write whole or not at all. Leaves that are not in memory are read first.
    async fn places(
        &self,
        lane: &LaneState,
        blocks: &Range<u64>,
    ) -> Result<Vec<Place>, StoreError> {
        let mut places = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let mut held: Vec<(u64, Option<Rc<Page>>)> = Vec::new();
        let mut root = lane.root.get();
        'again: loop {
            if lane.root.get() != root {
                root = lane.root.get();
                held.clear();
            }
            places.clear();
            for block in blocks.clone().map(LaneBlock) {
                let place = match lane.delta(block) {
                    Some(Found::Entry(e)) => e.into(),
                    Some(Found::Erased) => Place::Zeroes,
                    None => {
                        let (number, slot) = leaf_of(block);
                        let Some((_, page)) = held.iter().rev().find(|(n, _)| *n == number) else {
                            let page = match leaf_cached(&self.pages, &root, number) {
                                Some(page) => page,
                                None => leaf(&self.pages, &root, number).await?,
                            };
                            held.push((number, page));
                            continue 'again;
                        };
                        let entry = page.as_ref().map(|page| entry_at(page, slot));
                        entry.map_or(Place::Zeroes, Place::from)
                    }
                };
                if place == Place::Poisoned {
                    return Err(StoreError::Poisoned { block });
                }
                places.push(place);
            }
            return Ok(places);
        }
    }

    async fn read_many(
        &self,
        lane: &LaneState,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        match self.places(lane, &blocks).await {
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
