//! Doing an operation in the store, or through the coordinator of a replicated volume, by the reactor that owns the lane and while it holds the range.
//!
//! Whole blocks are read and written straight away. All else is rare, needs more state than an operation's slot has, and is boxed.

use keelblock_hugepages::Buffer;
use std::ops::Range;

use super::hub::Shared;
use super::lane::Lane;
use super::map::{Slice, blocks_in_slices};
use super::op::{Buffers, Given, Op};
use super::replicated::Coordinating;
use super::scratch::{LARGE_BYTES, Scratch};
use super::{ByteRange, Volume, VolumeError};
use crate::device::BLOCK_BYTES;
use crate::store::engine::{StoreError, StoreLane};
use crate::store::types::LaneBlock;
use std::sync::atomic::Ordering;

type Done = Result<(), Failed>;
type Compared = Result<(), VolumeError>;

const BLOCK: usize = BLOCK_BYTES as usize;

impl Volume {
    /// Does `op` on a range of a lane that is owned here, entered, and not closed.
    pub(super) async fn serve(
        &self,
        hub: &Shared,
        op: Op,
        lane: Lane,
        at: ByteRange,
        buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        let backing = match &self.0.served {
            Some(served) => served.backing(lane),
            // Its own: the lane may move when this has ended, and what it was is let go then.
            None => {
                let store = self.0.table[lane.index()].store.borrow().clone();
                store.map(Backing::Store).ok_or(VolumeError::Closed)
            }
        };
        let backing = match backing {
            Ok(backing) => backing,
            Err(e) => return (buffers, Err(e)),
        };
        let serving = Serving {
            store: &backing,
            slice: Slice::of(self.0.lanes, at.start),
            scratch: hub.scratch(),
        };
        let Buffers { first, second } = buffers;
        let (buffers, done) = match (op, first, second) {
            (Op::Read, Some(into), _) => one(serving.read(at, into).await),
            (Op::Write { fua, given }, Some(from), _) => {
                one(serving.write(at, from, (fua, given)).await)
            }
            (Op::Compare, Some(with), _) => {
                let result = Box::pin(serving.compare(at, Some(&with))).await;
                (Buffers::one(with), result)
            }
            (Op::CompareAndWrite { fua, given }, Some(expect), Some(new)) => {
                let done = Box::pin(serving.compare_and_write(at, expect, new, (fua, given)));
                let ((expect, new), result) = done.await;
                (Buffers::two(expect, new), result)
            }
            (Op::Verify, ..) => {
                let result = Box::pin(serving.compare(at, None)).await;
                (Buffers::none(), result)
            }
            (Op::WriteZeroes { given }, ..) => {
                let done = Box::pin(serving.write_zeroes(at, given)).await;
                (Buffers::none(), plain(done))
            }
            (Op::Erase(_, given), ..) => {
                let blocks = blocks_in_slices(self.0.lanes, lane, at);
                (
                    Buffers::none(),
                    plain(Box::pin(backing.erase(blocks, given)).await),
                )
            }
            (op, ..) => unreachable!("{op:?} without its buffers"),
        };
        let first = || serving.slice.blocks(ByteRange::new(at.start, 1)).start;
        let done = done.unwrap_or_else(|e| match e {
            Failed::Store(e) => Err(self.failed(hub, lane, first(), e)),
            Failed::Volume(e) => Err(self.counted(e)),
        });
        (buffers, done)
    }

    /// Counts and reports an error of the store, of an operation from a block of the lane on.
    #[cold]
    pub(super) fn failed(
        &self,
        hub: &Shared,
        lane: Lane,
        first: u64,
        e: StoreError,
    ) -> VolumeError {
        let error = self.counted(VolumeError::from(e));
        let drive = self.0.table[lane.index()].drive.get();
        hub.report(drive, (self.0.id, lane), LaneBlock(first), e);
        error
    }

    fn counted(&self, error: VolumeError) -> VolumeError {
        if matches!(
            error,
            VolumeError::Unreadable
                | VolumeError::DriveFailed
                | VolumeError::Damaged
                | VolumeError::NotOpened
        ) {
            self.0.media_errors.fetch_add(1, Ordering::Relaxed);
        }
        error
    }
}

/// Why an operation on blocks failed.
pub(super) enum Failed {
    /// The store of the lane's drive says so.
    Store(StoreError),
    /// Whoever coordinates the volume does.
    Volume(VolumeError),
}

/// Where a lane's blocks are.
pub(super) enum Backing {
    /// On a drive here.
    Store(StoreLane),
    /// On replicas.
    Replicated(Coordinating, u8),
}

impl Backing {
    async fn read(&self, blocks: Range<u64>, into: Buffer) -> (Buffer, Done) {
        match self {
            Self::Store(store) => {
                let (into, read) = store.read(blocks, into).await;
                (into, read.map_err(Failed::Store))
            }
            // Larger than an operation's slot.
            Self::Replicated(by, lane) => {
                let (into, read) = Box::pin(by.read(*lane, blocks, into)).await;
                (into, read.map_err(Failed::Volume))
            }
        }
    }

    async fn write(
        &self,
        blocks: Range<u64>,
        from: Buffer,
        (fua, given): (bool, Given),
    ) -> (Buffer, Done) {
        match self {
            Self::Store(store) => {
                let (from, written) = store.write(blocks, from, fua).await;
                (from, written.map_err(Failed::Store))
            }
            Self::Replicated(by, lane) => {
                let written = Box::pin(by.write(*lane, blocks, &from, (fua, given))).await;
                (from, written.map_err(Failed::Volume))
            }
        }
    }

    async fn erase(&self, blocks: Range<u64>, given: Given) -> Done {
        match self {
            Self::Store(store) => store.erase(blocks).await.map_err(Failed::Store),
            Self::Replicated(by, lane) => {
                let erased = by.erase(*lane, blocks, given).await;
                erased.map_err(Failed::Volume)
            }
        }
    }
}

/// The outer error is of the blocks, the inner one the comparison's.
type Ended = Result<Compared, Failed>;

fn plain(done: Done) -> Ended {
    done.map(Ok)
}

fn one((buffer, done): (Buffer, Done)) -> (Buffers, Ended) {
    (Buffers::one(buffer), plain(done))
}

struct Serving<'a> {
    store: &'a Backing,
    slice: Slice,
    scratch: &'a Scratch,
}

impl Serving<'_> {
    async fn read(&self, at: ByteRange, mut into: Buffer) -> (Buffer, Done) {
        if at.aligned(BLOCK_BYTES) {
            return self.store.read(self.slice.blocks(at), into).await;
        }
        let copied = Box::pin(self.through_scratch(at, |part, bytes| {
            let to = (part.start - at.start) as usize;
            into[to..to + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }))
        .await;
        (into, copied.map(|_| ()))
    }

    async fn compare_and_write(
        &self,
        at: ByteRange,
        expect: Buffer,
        new: Buffer,
        how: (bool, Given),
    ) -> ((Buffer, Buffer), Ended) {
        match self.compare(at, Some(&expect)).await {
            Ok(Ok(())) => {
                let (new, written) = self.write(at, new, how).await;
                ((expect, new), plain(written))
            }
            other => ((expect, new), other),
        }
    }

    /// Compares with the beginning of `with`, or with nothing: then it is enough that all can be read.
    async fn compare(&self, at: ByteRange, with: Option<&Buffer>) -> Ended {
        self.through_scratch(at, |part, bytes| {
            let from = (part.start - at.start) as usize;
            match with {
                Some(with) if with[from..from + bytes.len()] != *bytes => {
                    Err(VolumeError::Miscompare)
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Reads the range, in one piece if its blocks are 1 MiB at most, and shows each piece to `see`: so what is seen is not half of a write.
    async fn through_scratch(
        &self,
        at: ByteRange,
        mut see: impl FnMut(ByteRange, &[u8]) -> Compared,
    ) -> Ended {
        let blocks = self.slice.blocks(at);
        let piece = LARGE_BYTES.min((blocks.end - blocks.start) as usize * BLOCK);
        let mut buffer = self.scratch.take(piece).await;
        let mut result = Ok(Ok(()));
        for part in pieces(at, piece) {
            let read;
            (buffer, read) = self.store.read(self.slice.blocks(part), buffer).await;
            let skip = (part.start % BLOCK_BYTES) as usize;
            result = read.map(|()| see(part, &buffer[skip..skip + part.len() as usize]));
            if !matches!(result, Ok(Ok(()))) {
                break;
            }
        }
        self.scratch.give(buffer);
        result
    }

    async fn write(&self, at: ByteRange, from: Buffer, how: (bool, Given)) -> (Buffer, Done) {
        if at.aligned(BLOCK_BYTES) {
            return self.store.write(self.slice.blocks(at), from, how).await;
        }
        let result = Box::pin(self.modify(at, Some(&from), how)).await;
        (from, result)
    }

    /// Read-modify-write, as one write if the blocks that the range touches are 1 MiB at most; `None` writes zeroes. The range is held
    /// exclusively.
    async fn modify(&self, at: ByteRange, from: Option<&Buffer>, how: (bool, Given)) -> Done {
        for part in pieces(at, LARGE_BYTES) {
            let skip = (part.start % BLOCK_BYTES) as usize;
            let len = part.len() as usize;
            let mut buffer = self.scratch.take(skip + len).await;
            let mut done;
            (buffer, done) = self.edges(part, buffer).await;
            if done.is_ok() {
                let bytes = &mut buffer[skip..skip + len];
                let start = (part.start - at.start) as usize;
                match from {
                    Some(from) => bytes.copy_from_slice(&from[start..start + len]),
                    None => bytes.fill(0),
                }
                (buffer, done) = self.store.write(self.slice.blocks(part), buffer, how).await;
            }
            self.scratch.give(buffer);
            done?;
        }
        Ok(())
    }

    /// Puts the first and last block of a range to their places in the buffer, if the range holds only a part of them.
    async fn edges(&self, at: ByteRange, mut buffer: Buffer) -> (Buffer, Done) {
        let Range { start, end } = self.slice.blocks(at);
        let mut done = Ok(());
        let first = !at.start.is_multiple_of(BLOCK_BYTES)
            || (!at.end.is_multiple_of(BLOCK_BYTES) && end - start == 1);
        // The last one first: each is read to the beginning.
        if !at.end.is_multiple_of(BLOCK_BYTES) && end - start > 1 {
            (buffer, done) = self.store.read(end - 1..end, buffer).await;
            buffer.copy_within(0..BLOCK, (end - 1 - start) as usize * BLOCK);
        }
        if first && done.is_ok() {
            (buffer, done) = self.store.read(start..start + 1, buffer).await;
        }
        (buffer, done)
    }

    async fn write_zeroes(&self, at: ByteRange, given: Given) -> Done {
        let Some(whole) = whole_blocks(at) else {
            return self.modify(at, None, (false, given)).await;
        };
        if at.start < whole.start {
            self.modify(ByteRange::from(at.start..whole.start), None, (false, given))
                .await?;
        }
        self.store.erase(self.slice.blocks(whole), given).await?;
        if whole.end < at.end {
            self.modify(ByteRange::from(whole.end..at.end), None, (false, given))
                .await?;
        }
        Ok(())
    }
}

/// Pieces of a range whose blocks have `bytes` bytes at most.
fn pieces(at: ByteRange, bytes: usize) -> impl Iterator<Item = ByteRange> {
    let mut next = at.start;
    std::iter::from_fn(move || {
        let start = next;
        let end = (start / BLOCK_BYTES * BLOCK_BYTES + bytes as u64).min(at.end);
        next = end;
        (start < at.end).then_some(ByteRange { start, end })
    })
}

fn whole_blocks(at: ByteRange) -> Option<ByteRange> {
    let start = at.start.next_multiple_of(BLOCK_BYTES);
    let end = at.end / BLOCK_BYTES * BLOCK_BYTES;
    (start < end).then_some(ByteRange { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_on_blocks_and_cover_the_range() {
        let at = ByteRange::from(512..(1 << 20) + 512);
        let parts: Vec<ByteRange> = pieces(at, LARGE_BYTES).collect();
        assert_eq!(
            parts,
            [512..1 << 20, 1 << 20..(1 << 20) + 512].map(ByteRange::from)
        );
        let at = ByteRange::from(512..(1 << 20) - 512);
        assert_eq!(pieces(at, LARGE_BYTES).collect::<Vec<_>>(), [at]);
    }
}
