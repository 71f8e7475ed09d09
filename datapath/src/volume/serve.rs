//! Doing an operation on the drives, by the reactor that owns the lane and while it holds the range.

use keelblock_hugepages::Buffer;

use super::map::Map;
use super::op::{Buffers, Op};
use super::scratch::{SCRATCH_BYTES, Scratch};
use super::{ByteRange, Volume, VolumeError};
use crate::device::{BLOCK_BYTES, Device};
use std::rc::Rc;
use std::sync::atomic::Ordering;

type Done = Result<(), VolumeError>;

impl Volume {
    /// Does `op` on a range of a lane that is owned here, entered, and not closed.
    pub(super) async fn serve(&self, op: Op, at: ByteRange, buffers: Buffers) -> (Buffers, Done) {
        let Some(hub) = self.0.hub.upgrade() else {
            return (buffers, Err(VolumeError::Closed));
        };
        let map = Rc::clone(&self.0.map.borrow());
        let serving = Serving {
            map: &map,
            scratch: hub.scratch(),
        };
        let Buffers { first, second } = buffers;
        let done = match (op, first, second) {
            (Op::Read, Some(into), _) => one(serving.read(at, into).await),
            (Op::Write { fua }, Some(from), _) => one(serving.write(at, from, fua).await),
            (Op::Compare, Some(with), _) => {
                let result = serving.compare(at, Some(&with)).await;
                (Buffers::one(with), result)
            }
            (Op::CompareAndWrite { fua }, Some(expect), Some(new)) => {
                let mut result = serving.compare(at, Some(&expect)).await;
                let mut new = new;
                if result.is_ok() {
                    (new, result) = serving.write(at, new, fua).await;
                }
                (Buffers::two(expect, new), result)
            }
            (Op::Verify, ..) => (Buffers::none(), serving.compare(at, None).await),
            (Op::WriteZeroes, ..) => (Buffers::none(), serving.write_zeroes(at).await),
            (op, ..) => unreachable!("{op:?} without its buffers"),
        };
        if let Err(VolumeError::Unreadable | VolumeError::DriveFailed) = done.1 {
            self.0.media_errors.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

fn one((buffer, result): (Buffer, Done)) -> (Buffers, Done) {
    (Buffers::one(buffer), result)
}

struct Serving<'a> {
    map: &'a Map,
    scratch: &'a Scratch,
}

impl Serving<'_> {
    /// Whether the drive can be asked for exactly these bytes.
    fn direct(device: &Device, at: ByteRange) -> bool {
        matches!(device, Device::Memory(_)) || at.aligned(BLOCK_BYTES)
    }

    async fn read(&self, at: ByteRange, mut into: Buffer) -> (Buffer, Done) {
        let (device, place, run) = match self.map.locate(at) {
            Ok(found) => found,
            Err(e) => return (into, Err(e)),
        };
        if run == at.len() && Self::direct(device, at) {
            let (into, result) = device.read(place, into, run as usize).await;
            return (into, result.map_err(VolumeError::from));
        }
        // Over two extents, or not on block boundaries: rare, so by way of a scratch buffer.
        let result = self
            .through_scratch(at, |part, bytes| {
                let to = (part.start - at.start) as usize;
                into[to..to + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
            .await;
        (into, result)
    }

    /// Compares with the beginning of `with`, or with nothing: then it is enough that all can be read.
    async fn compare(&self, at: ByteRange, with: Option<&Buffer>) -> Done {
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

    /// Reads the range in pieces and shows each to `see`.
    async fn through_scratch(
        &self,
        at: ByteRange,
        mut see: impl FnMut(ByteRange, &[u8]) -> Done,
    ) -> Done {
        let mut buffer = self.scratch.take().await;
        let mut rest = at;
        let result = loop {
            let part = match self.piece(rest) {
                Ok(piece) => piece,
                Err(e) => break Err(e),
            };
            let read;
            (buffer, read) = part.device.read(part.place, buffer, part.len).await;
            let bytes = &buffer[part.skip..part.skip + part.at.len() as usize];
            if let Err(e) = read
                .map_err(VolumeError::from)
                .and_then(|()| see(part.at, bytes))
            {
                break Err(e);
            }
            if part.at.end == at.end {
                break Ok(());
            }
            rest.start = part.at.end;
        };
        self.scratch.give(buffer);
        result
    }

    async fn write(&self, at: ByteRange, mut from: Buffer, fua: bool) -> (Buffer, Done) {
        let (device, place, run) = match self.map.locate(at) {
            Ok(found) => found,
            Err(e) => return (from, Err(e)),
        };
        if run == at.len() && Self::direct(device, at) {
            let result;
            (from, result) = device.write(place, from, run as usize, fua).await;
            return (from, result.map_err(VolumeError::from));
        }
        let result = self.modify(at, Some(&from), fua).await;
        (from, result)
    }

    /// Read-modify-write in pieces; `None` writes zeroes. The range is held exclusively if it is not on block boundaries.
    async fn modify(&self, at: ByteRange, from: Option<&Buffer>, fua: bool) -> Done {
        let mut buffer = self.scratch.take().await;
        let mut rest = at;
        let result = loop {
            let part = match self.piece(rest) {
                Ok(piece) => piece,
                Err(e) => break Err(e),
            };
            let mut done = Ok(());
            if part.at.len() < part.len as u64 {
                (buffer, done) = part.device.read(part.place, buffer, part.len).await;
            }
            if done.is_ok() {
                let bytes = &mut buffer[part.skip..part.skip + part.at.len() as usize];
                let start = (part.at.start - at.start) as usize;
                match from {
                    Some(from) => bytes.copy_from_slice(&from[start..start + bytes.len()]),
                    None => bytes.fill(0),
                }
                (buffer, done) = part.device.write(part.place, buffer, part.len, fua).await;
            }
            if done.is_err() || part.at.end == at.end {
                break done.map_err(VolumeError::from);
            }
            rest.start = part.at.end;
        };
        self.scratch.give(buffer);
        result
    }

    async fn write_zeroes(&self, at: ByteRange) -> Done {
        let mut rest = at;
        loop {
            let part = match whole_blocks(rest) {
                Some(blocks) if blocks.start == rest.start => {
                    let (device, place, run) = self.map.locate(blocks)?;
                    device.write_zeroes(place, run).await?;
                    ByteRange::new(rest.start, run)
                }
                // A beginning or an end that is part of a block.
                other => {
                    let end = other.map_or(rest.end, |blocks| blocks.start);
                    let part = ByteRange::from(rest.start..end);
                    self.modify(part, None, false).await?;
                    part
                }
            };
            if part.end == rest.end {
                return Ok(());
            }
            rest.start = part.end;
        }
    }

    /// The first piece of a range that lies in one run on one drive and, with the rest of its blocks, fits a scratch buffer.
    fn piece(&self, rest: ByteRange) -> Result<Piece<'_>, VolumeError> {
        let start = rest.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = rest.end.min(start + SCRATCH_BYTES as u64);
        let (device, place, run) = self.map.locate(ByteRange {
            start: rest.start,
            end,
        })?;
        let at = ByteRange::new(rest.start, run);
        let skip = rest.start - start;
        Ok(Piece {
            device,
            at,
            // Runs begin on block boundaries of volume and drive alike.
            place: place - skip,
            skip: skip as usize,
            len: (at.end.next_multiple_of(BLOCK_BYTES) - start) as usize,
        })
    }
}

/// The whole blocks inside of a range.
fn whole_blocks(at: ByteRange) -> Option<ByteRange> {
    let start = at.start.next_multiple_of(BLOCK_BYTES);
    let end = at.end / BLOCK_BYTES * BLOCK_BYTES;
    (start < end).then_some(ByteRange { start, end })
}

/// Whole blocks of a drive, and the bytes in them that are meant.
struct Piece<'a> {
    device: &'a Device,
    /// The bytes of the volume that are meant.
    at: ByteRange,
    /// First byte of the blocks on the drive.
    place: u64,
    /// Bytes of the blocks before those that are meant.
    skip: usize,
    /// Length of the blocks.
    len: usize,
}
