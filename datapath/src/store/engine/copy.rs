//! What a replica's block is, and copies and repairs of blocks (`docs/store-format.md` §16). What a copy replaces is decided when it is
//! admitted, and its records say no more than that, so that replay need not decide again.

use std::ops::Range;
use std::rc::Rc;

use super::super::journal::{Given, Tags, without};
use super::super::map::EntryKind;
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, PhysicalBlock, Stamp};
use super::lane::LaneState;
use super::lookup::Known;
use super::read::Place;
use super::stamped::{Mark, Stamps};
use super::{Inner, StoreError};
use crate::cipher::Seal;
use crate::replication::seam::{Entry, Kind};

const NO_STAMP: Stamp = Stamp { epoch: 0, seq: 0 };

/// What a block is, and where.
#[derive(Clone, Copy, Debug)]
pub struct BlockEntry {
    /// What it is.
    pub entry: Entry,
    /// Where it is, if it is data.
    pub at: Option<PhysicalBlock>,
}

impl BlockEntry {
    const ABSENT: Self = Self {
        entry: Entry {
            kind: Kind::Absent,
            stamp: NO_STAMP,
            crc: Crc(0),
            seal: Seal::NONE,
        },
        at: None,
    };

    fn new(at: Option<PhysicalBlock>, stamp: Stamp, crc: Crc, seal: Seal) -> Self {
        let kind = match at {
            Some(_) => Kind::Data,
            None => Kind::Poison,
        };
        Self {
            entry: Entry {
                kind,
                stamp,
                crc,
                seal,
            },
            at,
        }
    }

    /// What is known of a lane's block; looked at in the same moment.
    fn of(lane: &LaneState, block: LaneBlock, known: Known) -> Self {
        match known {
            Known::Entry(e) => {
                let at = (!e.is_poison()).then_some(e.block);
                Self::new(at, e.stamp, e.crc, lane.delta_seal(block))
            }
            Known::Leaf(e) if e.kind != EntryKind::Absent => {
                Self::new(e.block(), e.stamp, e.crc, e.seal)
            }
            Known::Leaf(_) | Known::Erased | Known::Nothing => Self::ABSENT,
        }
    }

    /// Where a read finds it; what is no data is zeroes.
    pub fn place(&self) -> Place {
        match self.at {
            Some(at) => Place::Data(at, self.entry.crc),
            None => Place::Zeroes,
        }
    }
}

/// What of a copy goes into the store.
#[derive(Debug)]
pub enum Content<'a> {
    /// These bytes.
    Data(&'a [u8], Option<Tags>),
    /// Damage; of each block, what its checksum was.
    Poison(&'a [Crc], Option<Tags>),
    /// Nothing: blocks become absent.
    Nothing,
}

impl Content<'_> {
    /// The mark for a part, which begins so many blocks behind the whole.
    fn mark(&self, skip: u64, part: &Range<u64>) -> Mark {
        match self {
            Self::Poison(crcs, _) => {
                let (first, count) = (skip as usize, (part.end - part.start) as usize);
                Mark::Poison(crcs[first..first + count].to_vec(), self.tags(skip, part))
            }
            Self::Data(..) | Self::Nothing => Mark::Erase,
        }
    }

    /// The tags of a part.
    fn tags(&self, skip: u64, part: &Range<u64>) -> Option<Tags> {
        let (Self::Data(_, tags) | Self::Poison(_, tags)) = self else {
            return None;
        };
        let first = skip as usize;
        let of_part = first..first + (part.end - part.start) as usize;
        tags.as_ref().map(|tags| tags.part(of_part))
    }
}

impl Inner {
    /// What these blocks are, all at one moment: the moment at which this returns.
    pub(super) async fn entries(
        &self,
        lane: &LaneState,
        blocks: &Range<u64>,
    ) -> Result<Vec<BlockEntry>, StoreError> {
        let mut entries = self
            .known_of_each(lane, blocks, |block, known| {
                Ok(BlockEntry::of(lane, block, known))
            })
            .await?;
        if let Some(replica) = &lane.replica {
            for (range, stamp) in replica.erasures(blocks, self.is_resyncing(lane.volume)) {
                let from = range.start.max(blocks.start);
                for block in from..range.end.min(blocks.end) {
                    let entry = &mut entries[(block - blocks.start) as usize].entry;
                    if matches!(entry.kind, Kind::Absent | Kind::Erased) && entry.stamp < stamp {
                        (entry.kind, entry.stamp) = (Kind::Erased, stamp);
                    }
                }
            }
        }
        Ok(entries)
    }

    /// Parts of blocks that a copy as of `s0` replaces: what is there is at or below it, and nothing above it is on its way.
    pub(super) fn at_or_below(
        lane: &LaneState,
        s0: Stamp,
        blocks: &Range<u64>,
        entries: &[BlockEntry],
    ) -> Vec<Range<u64>> {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::CopyReplacesNewer) {
            return Vec::from([blocks.clone()]);
        }
        let above = (blocks.clone().zip(entries)).filter(|(_, e)| e.entry.stamp > s0);
        let above = above.map(|(block, _)| block..block + 1);
        let below = match &lane.replica {
            Some(replica) => replica.below(s0, blocks),
            None => Vec::from([blocks.clone()]),
        };
        let above: Vec<Range<u64>> = above.collect();
        let parts = below.into_iter();
        parts
            .flat_map(|part| without(part, above.clone()))
            .collect()
    }

    /// Puts content into the parts of blocks that `replaces` says; block i of the whole gets the stamp seq + i, or all the same if it is nothing.
    pub(super) async fn put_copy(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        (stamp, blocks): (Stamp, Range<u64>),
        content: &Content<'_>,
        replaces: impl Fn(&Range<u64>, &[BlockEntry]) -> Vec<Range<u64>>,
    ) -> Result<(), StoreError> {
        let mut left = match content {
            Content::Nothing => in_pieces(&blocks),
            Content::Data(..) | Content::Poison(..) => Vec::from([blocks.clone()]),
        };
        while let Some(part) = left.pop() {
            if lane.void.get() || self.closed.get() {
                return Err(StoreError::Unknown);
            }
            let (count, skip) = (part.end - part.start, part.start - blocks.start);
            let of_part = match content {
                Content::Nothing => stamp,
                Content::Data(..) | Content::Poison(..) => Stamp {
                    epoch: stamp.epoch,
                    seq: stamp.seq + skip,
                },
            };
            // Everything that is waited for comes before the look at what is there.
            let mut with = None;
            if let Content::Data(bytes, _) = content {
                let len = count as usize * BLOCK_BYTES;
                let mut buffer = self.handle.buffers().take(len).await;
                let from = skip as usize * BLOCK_BYTES;
                buffer[..len].copy_from_slice(&bytes[from..from + len]);
                with = Some((buffer, self.space_to_arrive(count as u32).await?));
            }
            let found = match self.room_for_mark(count).await {
                Ok(()) => {
                    let _reader = self.reclaim.read();
                    self.entries(lane, &part).await
                }
                Err(e) => Err(e),
            };
            let parts = match &found {
                Ok(entries) if self.has_room(count) => replaces(&part, entries),
                Ok(_) => Vec::from([part.clone()]),
                Err(_) => Vec::new(),
            };
            let now = parts.len() == 1 && parts[0] == part && self.has_room(count);
            if !now {
                self.give_back(with.into_iter().flat_map(|(_, runs)| runs));
                found?;
                left.extend(parts);
                continue;
            }
            match with {
                Some((buffer, runs)) => {
                    let to = (runs, Stamps::Copied(of_part), content.tags(skip, &part));
                    self.write_at(lane, part, buffer, to).await?;
                }
                None => {
                    let mark = content.mark(skip, &part);
                    let whole = [part.clone()];
                    let how = (Given::No, &whole[..]);
                    self.mark(lane, of_part, part, &mark, how).await?;
                }
            }
        }
        Ok(())
    }
}

/// Blocks that are looked at together when they are to become absent.
const PIECE_BLOCKS: u64 = 256;

fn in_pieces(blocks: &Range<u64>) -> Vec<Range<u64>> {
    let starts = (blocks.start..blocks.end).step_by(PIECE_BLOCKS as usize);
    starts
        .map(|start| start..(start + PIECE_BLOCKS).min(blocks.end))
        .collect()
}
