//! Cutting an operation into parts of one slice, and sending each part to where its lane is.

use std::num::NonZeroU64;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::lane::{Lane, SLICE_BYTES};
use super::range::{Hold, Mode};
use super::{ByteRange, Volume, VolumeError};
use crate::device::BLOCK_BYTES;

/// The command that stamps of a replicated volume were reserved for, if an operation is (a part of) one.
pub(super) type Given = Option<NonZeroU64>;

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Read,
    Write {
        fua: bool,
        given: Given,
    },
    WriteZeroes {
        given: Given,
    },
    Compare,
    CompareAndWrite {
        fua: bool,
        given: Given,
    },
    Verify,
    /// The lane's part of a range of whole slices reads as zeroes, and has no space any more.
    Erase(Lane, Given),
    /// Everything that completed before on a drive is on stable media. Has no range.
    Flush {
        drive: u32,
    },
}

impl Op {
    /// How its blocks are held meanwhile. What changes a block in part must read it first, and nobody may write it in between.
    pub(super) fn mode(self, at: ByteRange) -> Mode {
        match self {
            Self::Read | Self::Compare | Self::Verify => Mode::Shared,
            Self::Write { .. } if at.aligned(BLOCK_BYTES) => Mode::Shared,
            Self::Write { .. } | Self::CompareAndWrite { .. } => Mode::Exclusive,
            // The store wants no write of what it erases under way.
            Self::WriteZeroes { .. } | Self::Erase(..) => Mode::Exclusive,
            Self::Flush { .. } => unreachable!("a flush enters no range"),
        }
    }

    /// Whether its buffer is filled: parts are then done last to first.
    fn fills(self) -> bool {
        self == Self::Read
    }
}

/// The buffers of an operation, which travel with it and come back.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Data of reads, writes and compares; what a compare-and-write expects.
    pub first: Option<Buffer>,
    /// What a compare-and-write writes.
    pub second: Option<Buffer>,
}

impl Buffers {
    pub fn none() -> Self {
        Self::default()
    }

    pub fn one(buffer: Buffer) -> Self {
        Self {
            first: Some(buffer),
            second: None,
        }
    }

    pub fn two(first: Buffer, second: Buffer) -> Self {
        Self {
            first: Some(first),
            second: Some(second),
        }
    }

    pub fn into_one(self) -> Buffer {
        self.first.expect("an operation gives its buffer back")
    }

    pub fn into_two(self) -> (Buffer, Buffer) {
        let second = self.second.expect("an operation gives its buffers back");
        (self.first.expect("both of them"), second)
    }

    /// Moves bytes inside of the first buffer.
    pub fn shift(&mut self, from: std::ops::Range<usize>, to: usize) {
        if let Some(buffer) = &mut self.first {
            buffer.copy_within(from, to);
        }
    }
}

impl Volume {
    /// Does `op`, on as many lanes as the range has.
    pub(super) async fn run(
        &self,
        op: Op,
        at: ByteRange,
        buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        if at.end > self.size_bytes() {
            return (buffers, Err(VolumeError::OutOfRange));
        }
        if self.0.lanes.single(&at.range()) {
            return self.on_lane(op, at, buffers).await;
        }
        if matches!(op, Op::CompareAndWrite { .. }) {
            return (buffers, Err(VolumeError::NotAtomic));
        }
        if let Op::WriteZeroes { given } = op {
            return (buffers, Box::pin(self.zero_slices(at, given)).await);
        }
        // Over the border of a slice: rare enough to be boxed.
        if op.fills() {
            Box::pin(self.last_to_first(op, at, buffers)).await
        } else {
            Box::pin(self.first_to_last(op, at, buffers)).await
        }
    }

    /// Each part finds its data at the beginning of the buffer: what is done is shifted out.
    async fn first_to_last(
        &self,
        op: Op,
        at: ByteRange,
        mut buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        let mut rest = at;
        loop {
            let part = ByteRange::from(self.0.lanes.first_part(&rest.range()));
            let result;
            (buffers, result) = self.on_lane(op, part, buffers).await;
            if result.is_err() || part.end == rest.end {
                return (buffers, result);
            }
            buffers.shift(part.len() as usize..rest.len() as usize, 0);
            rest.start = part.end;
        }
    }

    /// Each part is read to the beginning of the buffer and shifted to its place, the last one first: so nothing is overwritten.
    async fn last_to_first(
        &self,
        op: Op,
        at: ByteRange,
        mut buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        let mut rest = at;
        loop {
            let slice = (rest.end - 1) / super::SLICE_BYTES * super::SLICE_BYTES;
            let part = ByteRange {
                start: slice.max(rest.start),
                end: rest.end,
            };
            let result;
            (buffers, result) = self.on_lane(op, part, buffers).await;
            if result.is_err() || part.start == rest.start {
                return (buffers, result);
            }
            let to = (part.start - at.start) as usize;
            buffers.shift(0..part.len() as usize, to);
            rest.end = part.start;
        }
    }

    /// Zeroes a range over more than one slice: all whole slices of a lane with one record.
    async fn zero_slices(&self, at: ByteRange, given: Given) -> Result<(), VolumeError> {
        let start = at.start.next_multiple_of(SLICE_BYTES);
        let end = at.end / SLICE_BYTES * SLICE_BYTES;
        if at.start < start {
            self.zero(at.start..start, given).await?;
        }
        if start < end {
            let whole = ByteRange { start, end };
            let slices = ((end - start) / SLICE_BYTES).min(self.0.lanes.count() as u64);
            // Those lanes that have a slice there: as many as the first slices are of.
            for slice in 0..slices {
                let lane = self.0.lanes.of(start + slice * SLICE_BYTES);
                self.on_lane(Op::Erase(lane, given), whole, Buffers::none())
                    .await
                    .1?;
            }
        }
        if end < at.end {
            self.zero(end..at.end, given).await?;
        }
        Ok(())
    }

    async fn zero(&self, at: std::ops::Range<u64>, given: Given) -> Result<(), VolumeError> {
        let done = self.on_lane(Op::WriteZeroes { given }, at.into(), Buffers::none());
        done.await.1
    }

    /// Does one part, here or where its lane is owned.
    pub(super) async fn on_lane(
        &self,
        op: Op,
        at: ByteRange,
        buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        let lane = match op {
            Op::Erase(lane, _) => lane,
            _ => self.0.lanes.of(at.start),
        };
        let state = &self.0.table[lane.index()];
        let Some(hub) = self.0.hub.upgrade() else {
            return (buffers, Err(VolumeError::Closed));
        };
        let mut hold = None;
        if state.owner.get() == self.0.here {
            match self.enter(op, lane, at).await {
                Ok(entered) => hold = Some(entered),
                Err(e) => return (buffers, Err(e)),
            }
        }
        // Asked after it was waited for: the lane may have moved meanwhile.
        let owner = state.owner.get();
        if owner != self.0.here {
            drop(hold);
            let number = self.0.number;
            return hub.forward(owner, number, op, at, buffers).await;
        }
        if self.0.closed.get() {
            return (buffers, Err(VolumeError::Closed));
        }
        let done = self.serve(&hub, op, lane, at, buffers).await;
        drop(hold);
        done
    }

    async fn enter(&self, op: Op, lane: Lane, at: ByteRange) -> Result<Hold, VolumeError> {
        let ranges = Rc::clone(&self.0.table[lane.index()].ranges);
        let entered = ranges.enter(at.blocks(BLOCK_BYTES), op.mode(at));
        Ok(entered.map_err(|_| VolumeError::Busy)?.await)
    }
}
