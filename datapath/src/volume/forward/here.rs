//! Commands of other nodes' hosts, done on a volume that is coordinated here.

use std::any::Any;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::{Command, Ended, Hosted, Operation, PATH_ERROR, Status};
use crate::reactor::Handle;
use crate::store::types::{SLICE_BLOCKS, Stamp};
use crate::volume::coordinator::reserve::Part;
use crate::volume::lane::{LANES_MAX, Lanes, SLICE_SHIFT};
use crate::volume::map::{Slice, blocks_in_slices};
use crate::volume::op::{Buffers, Op};
use crate::volume::replicated::told;
use crate::volume::{ByteRange, Coordinator, SLICE_BYTES, Volume, VolumeError};

/// Records of a command that erases, in one lane: at either end a part of a block before and behind whole ones, and all slices in between.
const STAMPS_OF_ERASURE: u64 = 8;

/// What of the target commands are checked against and told by.
pub trait Access {
    /// Why this host may not do this now; `None`: it may.
    fn refusal(&self, volume: &[u8; 16], command: &Command) -> Option<Status>;

    /// A command of a host begins; what is returned is kept until it has ended.
    fn begin(&self, volume: &[u8; 16], command: &Command) -> Box<dyn Any>;

    /// What a command completes with that failed.
    fn status(&self, error: VolumeError) -> Status;
}

/// A volume that is coordinated here.
pub struct Here {
    /// The reactor.
    pub handle: Handle,
    /// The volume.
    pub volume: Volume,
    /// Its coordinator.
    pub driver: Coordinator,
    /// How hosts' commands are checked.
    pub access: Rc<dyn Access>,
}

/// What of a command is in which lanes.
fn parts(lanes: Lanes, operation: Operation, at: ByteRange) -> Vec<Part> {
    let touched = |at: ByteRange| Slice::of(lanes, at.start).blocks(at);
    let erases = operation != Operation::Write;
    if lanes.single(&at.range()) {
        let blocks = touched(at);
        let stamps = match erases {
            true => STAMPS_OF_ERASURE,
            false => blocks.end - blocks.start,
        };
        let lane = lanes.of(at.start).index() as u8;
        return vec![Part {
            lane,
            blocks,
            stamps,
        }];
    }
    let whole = ByteRange {
        start: at.start / SLICE_BYTES * SLICE_BYTES,
        end: at.end.next_multiple_of(SLICE_BYTES),
    };
    let slices = ((whole.end - whole.start) >> SLICE_SHIFT).min(LANES_MAX as u64);
    let mut parts: Vec<Part> = Vec::new();
    // The lane that it touches first is the first one.
    for slice in 0..slices.min(lanes.count() as u64) {
        let lane = lanes.of(whole.start + slice * SLICE_BYTES);
        parts.push(Part {
            lane: lane.index() as u8,
            blocks: blocks_in_slices(lanes, lane, whole),
            stamps: match erases {
                true => STAMPS_OF_ERASURE,
                // A write has 1 MiB at most.
                false => SLICE_BLOCKS,
            },
        });
    }
    parts
}

impl Hosted for Here {
    fn reserve(&self, key: u64, command: &Command) -> Result<Stamp, Status> {
        if let Some(refusal) = self.access.refusal(&self.volume.id().0, command) {
            return Err(refusal);
        }
        let at = self.range(command)?;
        let parts = parts(self.volume.0.lanes, command.operation, at);
        let age = Duration::from_millis(command.age_ms.into());
        let reserved = self.driver.reserve(key, parts, age);
        reserved.map_err(|e| self.access.status(told(e)))
    }

    fn unreserve(&self, key: u64) {
        self.driver.unreserve(key);
    }

    fn run(&self, key: u64, command: Command, data: Option<Buffer>) -> Ended {
        if let Some(refusal) = self.access.refusal(&self.volume.id().0, &command) {
            return Box::pin(async move { (refusal, None) });
        }
        if command.operation == Operation::Flush {
            let (volume, access) = (self.volume.clone(), self.access.clone());
            return Box::pin(async move {
                let flushed = volume.flush().await;
                (flushed.map_or_else(|e| access.status(e), |()| 0), None)
            });
        }
        let at = match self.range(&command) {
            Ok(at) => at,
            Err(status) => return Box::pin(async move { (status, None) }),
        };
        let (volume, access) = (self.volume.clone(), self.access.clone());
        let (handle, driver) = (self.handle.clone(), self.driver.clone());
        let given = NonZeroU64::new(key);
        let begun = self.access.begin(&self.volume.id().0, &command);
        Box::pin(async move {
            let _begun = begun;
            let len = at.len() as usize;
            let take = |len| {
                let buffers = handle.buffers();
                driver.within(buffers.take(len))
            };
            let fua = command.fua;
            let (op, buffers) = match (command.operation, data) {
                (Operation::Read, _) => match take(len).await {
                    Ok(into) => (Op::Read, Buffers::one(into)),
                    Err(e) => return (access.status(told(e)), None),
                },
                (Operation::Compare, Some(with)) => (Op::Compare, Buffers::one(with)),
                (Operation::Write, Some(both)) if command.fused => match take(len).await {
                    Ok(mut new) => {
                        new[..len].copy_from_slice(&both[len..2 * len]);
                        let op = Op::CompareAndWrite { fua, given };
                        (op, Buffers::two(both, new))
                    }
                    Err(e) => return (access.status(told(e)), None),
                },
                (Operation::Write, Some(from)) => (Op::Write { fua, given }, Buffers::one(from)),
                (Operation::WriteZeroes | Operation::Deallocate, _) => {
                    (Op::WriteZeroes { given }, Buffers::none())
                }
                // Frames without the data that they must have are none.
                _ => return (PATH_ERROR, None),
            };
            let (buffers, done) = volume.run(op, at, buffers).await;
            match done {
                Ok(()) if op == Op::Read => (
                    0,
                    buffers.first.map(|mut read| {
                        super::pad(&mut read, at.len());
                        Rc::new(read)
                    }),
                ),
                Ok(()) => (0, None),
                Err(e) => (access.status(e), None),
            }
        })
    }
}

impl Here {
    fn range(&self, command: &Command) -> Result<ByteRange, Status> {
        let end = command.first.checked_add(command.bytes);
        let fits = end.is_some_and(|end| end <= self.volume.size_bytes());
        match fits && command.bytes > 0 {
            true => Ok(ByteRange::new(command.first, command.bytes)),
            false => Err(self.access.status(VolumeError::OutOfRange)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each block of a lane that the parts of an operation touch is in the lane's part, and there are stamps for all of them.
        #[test]
        fn parts_cover_what_is_touched(start in 0u64..1 << 26, len in 1u64..1 << 20, long in 0u64..40, many in any::<bool>(), erases in any::<bool>()) {
            let lanes = Lanes::for_size(if many { 1 << 30 } else { 1 << 20 });
            let (operation, len) = match erases {
                true => (Operation::WriteZeroes, len + long * SLICE_BYTES),
                false => (Operation::Write, len),
            };
            let at = ByteRange::new(start / 512 * 512, len.next_multiple_of(512));
            let all = parts(lanes, operation, at);
            prop_assert_eq!(usize::from(all[0].lane), lanes.of(at.start).index());
            let mut rest = at.range();
            let mut written = [0; LANES_MAX];
            while rest.start < rest.end {
                let piece = lanes.first_part(&rest);
                let blocks = Slice::of(lanes, piece.start).blocks(piece.clone().into());
                let lane = lanes.of(piece.start).index();
                let part = all.iter().find(|p| usize::from(p.lane) == lane).unwrap();
                prop_assert!(part.blocks.start <= blocks.start && blocks.end <= part.blocks.end);
                written[lane] += blocks.end - blocks.start;
                prop_assert!(erases || written[lane] <= part.stamps);
                rest.start = piece.end;
            }
        }
    }
}
