//! The drive that a family leaves (`docs/store-format.md` §13): its snapshots are pinned, what its records differ by is read and compared,
//! and at the end its records are given up.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{EntryKind, LeafEntry, RecordKind, Root, diff, leaf};
use super::super::superblock::DriveState;
use super::super::types::{BLOCK_BYTES, CatalogueHandle, Crc, LaneBlock, PhysicalBlock};
use super::moving::{MovedBlock, MovedKind, MovedRecord, NextFamily, Part, StaleCopy, TEMPORARY};
use super::{Inner, Store, StoreError};

/// Blocks of one part.
const PART_BLOCKS: usize = 256;
/// Ranges that are looked for at a time.
const PART_RANGES: usize = 64;

impl Store {
    /// What is to become of the drive.
    pub fn state(&self) -> DriveState {
        self.0.superblock.borrow().state
    }

    /// Remembers what is to become of the drive, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_state(&self, state: DriveState) -> Result<(), StoreError> {
        self.0.superblock.borrow_mut().state = state;
        self.0.checkpoint().await
    }

    /// Chooses a family to move, and pins its snapshots.
    pub fn next_family(&self) -> NextFamily {
        let chosen = {
            let catalogue = self.0.catalogue.borrow();
            let leaving = catalogue.iter().filter(|(_, r)| r.leaving);
            let undecided: BTreeSet<CatalogueHandle> =
                leaving.map(|(h, _)| catalogue.oldest(h)).collect();
            let moves = catalogue.iter().find(|(handle, record)| {
                let gone = [RecordKind::Deleting, RecordKind::Arriving].contains(&record.kind);
                !gone && !undecided.contains(&catalogue.oldest(*handle))
            });
            match moves {
                Some((handle, _)) => handle,
                None if !undecided.is_empty() => return NextFamily::Undecided,
                None if catalogue.iter().next().is_none() => return NextFamily::Nothing,
                None => return NextFamily::Deleting,
            }
        };
        NextFamily::Family(self.family(&[chosen]))
    }

    /// The family that any of these is of, as it is now, parents first; new snapshots of it are pinned too. Empty: all of it is gone.
    pub fn family(&self, any: &[CatalogueHandle]) -> Vec<MovedRecord> {
        self.0.family(any)
    }

    /// Takes temporary snapshots of these live lanes, which are pinned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot_to_move(&self, lanes: &[CatalogueHandle]) -> Result<(), StoreError> {
        self.0.snapshot_to_move(lanes).await
    }

    /// A part, from a block on, of what a record differs by from another of its family: at most 1 MiB of data.
    ///
    /// # Errors
    /// [`StoreError`]: data that is found to be damaged now is one too; what was known to be is moved as such.
    pub async fn differences(
        &self,
        of: CatalogueHandle,
        from: Option<CatalogueHandle>,
        block: LaneBlock,
    ) -> Result<Part, StoreError> {
        self.0.differences(of, from, block).await
    }

    /// Remembers, durably, that the copies of these live lanes may be the lanes from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn leave(&self, lanes: &[CatalogueHandle]) -> Result<(), StoreError> {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::LeavingNotTold) {
            return Ok(());
        }
        let inner = &self.0;
        let _one = inner.changing.lock().await;
        inner.room_for_meta(lanes.len() as u64).await?;
        for &handle in lanes {
            inner.change(handle, |r| r.leaving = true);
        }
        inner.commit_meta().await
    }

    /// Gives up records that have moved, durably; space comes back in the background.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn left(&self, records: &[CatalogueHandle]) -> Result<(), StoreError> {
        let inner = &self.0;
        let _one = inner.changing.lock().await;
        inner.room_for_meta(records.len() as u64).await?;
        for &handle in records {
            inner.give_up_record(handle);
        }
        inner.commit_meta().await?;
        self.unpin();
        Ok(())
    }

    /// A move has ended, one way or the other.
    pub fn unpin(&self) {
        self.0.pinned.borrow_mut().clear();
        self.0.ask_to_delete();
    }

    /// A lane that was leaving has no higher copy: it stays, and no copy of its family will be higher.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stay(&self, volume: VolumeId, lane: u8) -> Result<(), StoreError> {
        let inner = &self.0;
        let _one = inner.changing.lock().await;
        let state = inner.lane_named(volume, lane).ok_or(StoreError::Unknown)?;
        let (family, highest) = {
            let catalogue = inner.catalogue.borrow();
            let oldest = catalogue.oldest(state.handle);
            let all = || {
                catalogue
                    .iter()
                    .filter(|(h, _)| catalogue.oldest(*h) == oldest)
            };
            let highest = all().map(|(_, r)| r.incarnation).max().unwrap_or(0);
            let family: Vec<CatalogueHandle> = all().map(|(h, _)| h).collect();
            (family, highest)
        };
        inner.room_for_meta(family.len() as u64 + 1).await?;
        // The lane last: as long as it is leaving, all of this is done again.
        for handle in family {
            inner.change(handle, |r| r.incarnation = highest.saturating_add(2));
        }
        inner.change(state.handle, |r| r.leaving = false);
        inner.commit_meta().await
    }

    /// Gives up copies that others have replaced, durably; none is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drop_copies(&self, copies: &[StaleCopy]) -> Result<(), StoreError> {
        let inner = &self.0;
        let _one = inner.changing.lock().await;
        let found: Vec<CatalogueHandle> = {
            let catalogue = inner.catalogue.borrow();
            let stale = catalogue.iter().filter(|(_, r)| {
                copies.iter().any(|c| {
                    let kind = match c.snapshot {
                        None => r.kind == RecordKind::Live,
                        Some(id) => r.kind == RecordKind::Snapshot && r.snapshot == id,
                    };
                    kind && (r.volume, r.lane) == (c.volume, c.lane) && r.incarnation < c.below
                })
            });
            stale.map(|(h, _)| h).collect()
        };
        if found.is_empty() {
            return Ok(());
        }
        inner.room_for_meta(found.len() as u64).await?;
        for handle in found {
            inner.give_up_record(handle);
        }
        inner.commit_meta().await?;
        inner.ask_to_delete();
        Ok(())
    }
}

impl Inner {
    /// A record is being deleted from now on, or hidden while several descend from it.
    fn give_up_record(&self, handle: CatalogueHandle) {
        let (kind, children) = {
            let catalogue = self.catalogue.borrow();
            let kind = catalogue.get(handle).map(|r| r.kind);
            (kind, catalogue.children(handle).len())
        };
        match kind {
            Some(RecordKind::Live) => self.end_lane(handle),
            Some(RecordKind::Snapshot | RecordKind::Hidden) => self.change(handle, |r| {
                r.walked = 0;
                r.kind = match children > 1 {
                    true => RecordKind::Hidden,
                    false => RecordKind::Deleting,
                };
            }),
            Some(RecordKind::Deleting | RecordKind::Arriving) | None => {}
        }
    }

    fn family(&self, any: &[CatalogueHandle]) -> Vec<MovedRecord> {
        let catalogue = self.catalogue.borrow();
        let mut pinned = self.pinned.borrow_mut();
        let Some(family) = any.iter().find(|h| catalogue.get(**h).is_some()) else {
            return Vec::new();
        };
        let family = catalogue.oldest(*family);
        let mut moved = Vec::new();
        let mut listed = BTreeSet::new();
        // Parents have lower generations.
        let mut all: Vec<_> = catalogue.iter().collect();
        all.sort_by_key(|(_, r)| r.generation);
        for (handle, record) in all {
            if catalogue.oldest(handle) != family {
                continue;
            }
            let kind = match record.kind {
                RecordKind::Live => MovedKind::Live,
                RecordKind::Snapshot => MovedKind::Snapshot,
                RecordKind::Hidden => MovedKind::Hidden,
                // Deleted since it was pinned: others may differ from its copy.
                RecordKind::Deleting if pinned.contains(&handle) => MovedKind::Hidden,
                RecordKind::Deleting | RecordKind::Arriving => continue,
            };
            if kind != MovedKind::Live {
                pinned.insert(handle);
            }
            listed.insert(handle);
            let mut parent = catalogue.parent(handle);
            while parent.is_some_and(|p| !listed.contains(&p)) {
                parent = parent.and_then(|p| catalogue.parent(p));
            }
            let epoch = self.lanes.borrow().get(&handle).map_or(0, |l| l.epoch);
            moved.push(MovedRecord {
                handle,
                parent,
                kind,
                volume: record.volume,
                lane: record.lane,
                lanes: record.lanes,
                snapshot: record.snapshot,
                incarnation: record.incarnation,
                epoch: record.epoch.max(epoch),
                size_bytes: record.size_bytes,
                used_blocks: record.map.used,
            });
        }
        moved
    }

    async fn snapshot_to_move(
        self: &Rc<Self>,
        lanes: &[CatalogueHandle],
    ) -> Result<(), StoreError> {
        let of_replica = |h: &CatalogueHandle| {
            let lanes = self.lanes.borrow();
            lanes.get(h).is_some_and(|l| l.replica.is_some())
        };
        if lanes.iter().any(of_replica) {
            return Err(StoreError::Replica);
        }
        let _one = self.changing.lock().await;
        self.room_for_meta(lanes.len() as u64).await?;
        for &handle in lanes {
            let live = self.catalogue.borrow().get(handle).map(|r| r.kind);
            if live == Some(RecordKind::Live)
                && let Some(snapshot) = self.snapshot_lane(handle, TEMPORARY)
            {
                self.pinned.borrow_mut().insert(snapshot);
            }
        }
        self.commit_meta().await
    }

    /// The root of a record, which shows everything up to now.
    async fn root_of_record(&self, handle: CatalogueHandle) -> Result<Root, StoreError> {
        loop {
            let lane = self.lanes.borrow().get(&handle).cloned();
            let merged = match lane {
                Some(lane) => lane.entries() == 0 && lane.depth() == 1,
                None => !self.unmerged.borrow().contains(&handle),
            };
            if merged {
                let catalogue = self.catalogue.borrow();
                let record = catalogue.get(handle).ok_or(StoreError::Unknown)?;
                return Ok(record.root());
            }
            self.checkpoint().await?;
        }
    }

    async fn differences(
        &self,
        of: CatalogueHandle,
        from: Option<CatalogueHandle>,
        block: LaneBlock,
    ) -> Result<Part, StoreError> {
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        // From before the first look until the last byte is here.
        let _reader = self.reclaim.read();
        let newer = self.root_of_record(of).await?;
        let older = match from {
            Some(older) => Some(self.root_of_record(older).await?),
            None => None,
        };
        let found = diff(&self.pages, older.as_ref(), &newer, block, PART_RANGES).await?;
        let (ranges, mut next) = found;
        let mut part = Part::default();
        let mut places: Vec<PhysicalBlock> = Vec::new();
        'ranges: for range in ranges {
            let end = range.first.0 + range.blocks;
            if !range.data {
                part.erased.push(range.first.0..end);
                continue;
            }
            for block in (range.first.0..end).map(LaneBlock) {
                if places.len() + part.poisoned.len() == PART_BLOCKS {
                    next = Some(block);
                    break 'ranges;
                }
                let entry = self.entry_in(&newer, block).await?;
                let moved = MovedBlock {
                    block,
                    stamp: entry.stamp,
                    crc: entry.crc,
                };
                match (entry.kind, entry.block()) {
                    (EntryKind::Data, Some(at)) => {
                        places.push(at);
                        part.blocks.push(moved);
                    }
                    (EntryKind::Absent, _) => part.erased.push(block.0..block.0 + 1),
                    _ => part.poisoned.push(moved),
                }
            }
        }
        part.next = next;
        self.read_part(&places, &mut part).await?;
        Ok(part)
    }

    async fn entry_in(&self, root: &Root, block: LaneBlock) -> Result<LeafEntry, StoreError> {
        let shape = root.shape();
        let (number, slot) = shape.leaf_of(block);
        let page = leaf(&self.pages, root, number).await?;
        Ok(page.map_or(LeafEntry::ABSENT, |page| shape.entry(&page, slot)))
    }

    /// Reads the blocks of a part, run by run, and compares them.
    async fn read_part(&self, places: &[PhysicalBlock], part: &mut Part) -> Result<(), StoreError> {
        part.data.reserve_exact(places.len() * BLOCK_BYTES);
        let mut done = 0;
        while done < places.len() {
            let mut buffer = self.read_buffers.take().await;
            let max = (places.len() - done).min(buffer.len() / BLOCK_BYTES);
            let follows = |n: &usize| places[done + n].0 == places[done].0 + *n as u64;
            let run = (0..max).take_while(follows).count();
            let (place, len) = (places[done].0 * BLOCK_BYTES as u64, run * BLOCK_BYTES);
            let (back, read) = self.device.read(place, buffer.lend(), len).await;
            buffer.back(back);
            read?;
            for (n, bytes) in buffer[..len].chunks_exact(BLOCK_BYTES).enumerate() {
                let moved = part.blocks[done + n];
                let actual = Crc::of(bytes);
                if actual != moved.crc {
                    self.checksum_errors.set(self.checksum_errors.get() + 1);
                    return Err(StoreError::Checksum {
                        block: moved.block,
                        at: places[done + n],
                        expected: moved.crc,
                        actual,
                    });
                }
            }
            part.data.extend_from_slice(&buffer[..len]);
            done += run;
        }
        Ok(())
    }
}
