//! Scrub: reads what lanes and snapshots refer to, and compares every block with its checksum.
//!
//! It goes record by record of the catalogue, and leaf by leaf of its map, in steps. Of a record that descends from another it looks only at
//! what it inserted itself (`docs/store-format.md` §7), so nothing is read twice. Pages that it needs are verified as they are read.

use std::ops::Range;
use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{CatalogueRecord, EntryKind, RecordKind, next_entries};
use super::super::types::{BLOCK_BYTES, Crc, Generation, LaneBlock, PhysicalBlock};
use super::{Damage, Inner, Store, StoreError};

/// How far a scrub got. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubPlace {
    handle: u32,
    leaf: u64,
}

/// A block that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubError {
    /// Of which volume.
    pub volume: VolumeId,
    /// Of which of its lanes.
    pub lane: u8,
    /// Which block of the lane; of a page: of its first.
    pub block: LaneBlock,
    /// The volume as it is refers to it, and not only a snapshot.
    pub live: bool,
    /// What is wrong with it.
    pub error: StoreError,
    /// The same, as it is to be told of.
    pub damage: Option<Damage>,
}

/// What a step found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Where to go on; `None`: that was all.
    pub next: Option<ScrubPlace>,
    /// Blocks that were read and compared.
    pub scanned_blocks: u64,
    /// What was wrong.
    pub errors: Vec<ScrubError>,
}

/// A block to look at.
struct Wanted {
    block: LaneBlock,
    at: PhysicalBlock,
    crc: Crc,
}

impl Store {
    /// Whether a block of a volume as it is can be read as it was written. False, too, if the lane is not there.
    pub async fn is_sound(&self, volume: VolumeId, lane: u8, block: LaneBlock) -> bool {
        let Some(lane) = self.lane(volume, lane) else {
            return false;
        };
        // The store's own are for those who wait for nothing but the drive.
        let buffer = self.0.handle.buffers().take(BLOCK_BYTES).await;
        let (_, read) = lane.read(block.0..block.0 + 1, buffer).await;
        read.is_ok()
    }

    /// Looks at the next leaf of some map, and at what it refers to. What no checkpoint has brought into a map is not seen.
    ///
    /// # Errors
    /// [`StoreError::Closed`]. What is damaged is no error but a finding.
    pub async fn scrub_step(&self, from: ScrubPlace) -> Result<ScrubStep, StoreError> {
        self.0.scrub_step(from).await
    }
}

impl Inner {
    async fn scrub_step(self: &Rc<Self>, from: ScrubPlace) -> Result<ScrubStep, StoreError> {
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        // From before the first look until the last byte is here.
        let _reader = self.reclaim.read();
        let found = {
            let catalogue = self.catalogue.borrow();
            let mut all = catalogue.iter();
            let looked_at = |r: &CatalogueRecord| {
                matches!(
                    r.kind,
                    RecordKind::Live | RecordKind::Snapshot | RecordKind::Hidden
                )
            };
            let next = all.find(|(h, r)| h.0 >= from.handle && looked_at(r));
            next.map(|(handle, record)| {
                // What is being deleted is not looked at itself: what is left of it is its child's.
                let mut parent = catalogue.get(record.parent);
                while let Some(deleted) = parent.filter(|p| !looked_at(p)) {
                    parent = catalogue.get(deleted.parent);
                }
                let own = parent.map_or(Generation(0), |p| p.generation);
                (handle, record.clone(), own)
            })
        };
        let mut step = ScrubStep::default();
        let Some((handle, record, own)) = found else {
            return Ok(step);
        };
        let leaf = if handle.0 == from.handle {
            from.leaf
        } else {
            0
        };
        let after = ScrubPlace {
            handle: handle.0 + 1,
            leaf: 0,
        };
        let shape = record.root().shape();
        match next_entries(&self.pages, &record.root(), Some(own), leaf).await {
            Ok(None) => step.next = Some(after),
            Ok(Some((index, page))) => {
                let mut wanted = Vec::new();
                for slot in 0..shape.entries() as u8 {
                    let entry = shape.entry(&page, slot);
                    if let (EntryKind::Data, Some(at)) = (entry.kind, entry.block())
                        && entry.generation > own
                    {
                        wanted.push(Wanted {
                            block: shape.block_of(index, slot),
                            at,
                            crc: entry.crc,
                        });
                    }
                }
                self.scrub_blocks(&record, &wanted, &mut step).await;
                step.next = Some(ScrubPlace {
                    handle: handle.0,
                    leaf: index + 1,
                });
            }
            Err(e) => {
                // What the page leads to cannot be found; other maps can.
                let block = shape.block_of(leaf, 0);
                step.errors.push(self.finding(&record, block, e.into()));
                step.next = Some(after);
            }
        }
        Ok(step)
    }

    fn finding(&self, record: &CatalogueRecord, block: LaneBlock, error: StoreError) -> ScrubError {
        let (volume, lane) = (record.volume, record.lane);
        ScrubError {
            volume,
            lane,
            block,
            live: record.kind == RecordKind::Live,
            error,
            damage: self.damage((volume, lane), block, error),
        }
    }

    /// Reads blocks, run by run, and compares them.
    async fn scrub_blocks(
        &self,
        record: &CatalogueRecord,
        wanted: &[Wanted],
        step: &mut ScrubStep,
    ) {
        let mut done = 0;
        while done < wanted.len() {
            let mut buffer = self.read_buffers.take().await;
            let run = run_of(&wanted[done..], buffer.len() / BLOCK_BYTES);
            let blocks = &wanted[done..done + run];
            let place = blocks[0].at.0 * BLOCK_BYTES as u64;
            let len = run * BLOCK_BYTES;
            let (back, read) = self.device.read(place, buffer.lend(), len).await;
            buffer.back(back);
            for (n, wanted) in blocks.iter().enumerate() {
                let Range { start, end } = n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES;
                let error = match read {
                    Ok(()) if Crc::of(&buffer[start..end]) == wanted.crc => continue,
                    Ok(()) => StoreError::Checksum {
                        block: wanted.block,
                        at: wanted.at,
                        expected: wanted.crc,
                        actual: Crc::of(&buffer[start..end]),
                    },
                    Err(e) => StoreError::Io(e),
                };
                if let StoreError::Checksum { .. } = error {
                    self.checksum_errors.set(self.checksum_errors.get() + 1);
                }
                step.errors.push(self.finding(record, wanted.block, error));
            }
            step.scanned_blocks += run as u64;
            done += run;
        }
    }
}

/// How many of these follow each other on the drive, at most so many.
fn run_of(wanted: &[Wanted], max: usize) -> usize {
    let follows = |n: &usize| wanted[*n].at.0 == wanted[0].at.0 + *n as u64;
    (0..wanted.len().min(max)).take_while(follows).count()
}
