//! The drive that a family arrives on (`docs/store-format.md` §13). What arrives is of no use until [`Store::settle_family`]: its blocks enter deltas
//! without records in the journal, and one checkpoint makes all of its records what they are to be. So a crash leaves all of a family or none.

use super::super::VolumeId;
use super::super::group::Run;
use super::super::map::{CatalogueRecord, RecordKind};
use super::super::types::{BLOCK_BYTES, CatalogueHandle, Crc, PhysicalBlock, SnapshotId};
use super::catalogue::NONE;
use super::layer::Entry;
use super::moving::{MovedKind, MovedRecord, Part, TEMPORARY};
use super::{Inner, Store, StoreError};

/// A record that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// How many lanes the volume has.
    pub lanes: u8,
    /// The highest epoch of its stamps so far.
    pub epoch: u32,
    /// The copy of what it differs from.
    pub parent: Option<CatalogueHandle>,
}

/// What an arrival is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The arrival.
    pub handle: CatalogueHandle,
    /// What it becomes.
    pub kind: MovedKind,
    /// Of a snapshot.
    pub snapshot: SnapshotId,
    /// Of the volume, as far as the lane was told.
    pub size_bytes: u64,
    /// Above that of any other copy.
    pub incarnation: u32,
}

impl Arrival {
    /// For a record, and the copy of its parent.
    pub fn of(record: &MovedRecord, parent: Option<CatalogueHandle>) -> Self {
        Self {
            volume: record.volume,
            lane: record.lane,
            lanes: record.lanes,
            epoch: record.epoch,
            parent,
        }
    }
}

impl Arrival {
    fn epoch(&self) -> u32 {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::MovedEpochLost) {
            return 0;
        }
        self.epoch
    }
}

impl Store {
    /// Makes a record for an arrival, which shows what its parent does.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] without the parent.
    pub fn begin_arrival(&self, arrival: Arrival) -> Result<CatalogueHandle, StoreError> {
        self.0.can_arrive()?;
        self.0.begin_arrival(arrival)
    }

    /// Adds a part of what an arrival differs by from its parent.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of the part is there then.
    pub async fn arrive(&self, handle: CatalogueHandle, part: &Part) -> Result<(), StoreError> {
        self.0.can_arrive()?;
        self.0.arrive(handle, part).await
    }

    /// All of an arrival is there: others can differ from it, and it changes no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_arrival(&self, handle: CatalogueHandle) -> Result<(), StoreError> {
        loop {
            self.0.can_arrive()?;
            let lane = self.0.lanes.borrow().get(&handle).cloned();
            let lane = lane.ok_or(StoreError::Unknown)?;
            if lane.entries() == 0 && lane.depth() == 1 {
                self.0.lanes.borrow_mut().remove(&handle);
                return Ok(());
            }
            self.0.checkpoint().await?;
        }
    }

    /// Gives up arrivals; space comes back in the background.
    pub fn forget_arrivals(&self, handles: &[CatalogueHandle]) {
        for &handle in handles {
            if let Some(lane) = self.0.lanes.borrow().get(&handle) {
                lane.void.set(true);
            }
            self.0.forget_arrival(handle);
        }
        self.0.ask_to_delete();
    }

    /// Makes all of these what they are to be, at once and durably: whoever opens the drive finds all of them or none.
    ///
    /// # Errors
    /// [`StoreError`]. [`StoreError::Exists`]: nothing was done. Others: what the drive holds is not known before it is opened again.
    pub async fn settle_family(&self, family: &[Settled]) -> Result<(), StoreError> {
        self.0.can_arrive()?;
        self.0.settle_family(family)?;
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::MoveNotCheckpointed) {
            return Ok(());
        }
        self.0.checkpoint().await
    }
}

impl Inner {
    fn can_arrive(&self) -> Result<(), StoreError> {
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        match self.checkpointer.failed.get() {
            Some(e) => Err(e),
            None if self.failed() => Err(StoreError::Io(crate::device::IoError::Failed)),
            None => Ok(()),
        }
    }

    fn begin_arrival(&self, arrival: Arrival) -> Result<CatalogueHandle, StoreError> {
        let mut record = CatalogueRecord {
            kind: RecordKind::Arriving,
            lane: arrival.lane,
            lanes: arrival.lanes,
            volume: arrival.volume,
            epoch: arrival.epoch(),
            ..CatalogueRecord::EMPTY
        };
        let handle = {
            let mut catalogue = self.catalogue.borrow_mut();
            record.parent = NONE;
            if let Some(parent) = arrival.parent {
                let of = catalogue.get(parent).ok_or(StoreError::Unknown)?;
                record.parent = parent;
                record.set_root(&of.root());
            }
            record.generation = catalogue.new_generation();
            let handle = catalogue.new_handle();
            // Not in the journal: before a checkpoint has it there is nothing to find.
            catalogue.put(handle, record.clone());
            handle
        };
        self.new_lane(handle, &record);
        Ok(handle)
    }

    async fn arrive(&self, handle: CatalogueHandle, part: &Part) -> Result<(), StoreError> {
        let lane = self.lanes.borrow().get(&handle).cloned();
        let lane = lane.filter(|l| !l.void.get()).ok_or(StoreError::Unknown)?;
        let count = part.blocks.len() as u64;
        let needed = count + (part.erased.len() + part.poisoned.len()) as u64;
        while self.delta_entries.get() as u64 + self.writer.in_flight.get() + needed
            > self.delta_max
        {
            self.checkpoint().await?;
        }
        let mut places = Vec::with_capacity(part.blocks.len());
        if count > 0 {
            // Counted with writes, so that together they fit the delta.
            self.writer
                .in_flight
                .set(self.writer.in_flight.get() + count);
            let stored = self.store_part(part, &mut places).await;
            self.writer
                .in_flight
                .set(self.writer.in_flight.get() - count);
            if let Err(e) = stored {
                self.reclaim.superseded(&mut places);
                return Err(e);
            }
        }
        let mut freed = Vec::new();
        let (sequence, layer) = lane.arrive();
        {
            let mut layer = layer.borrow_mut();
            let before = layer.len();
            for range in &part.erased {
                layer.erase(range.clone(), sequence, &mut freed);
            }
            for (moved, at) in part.blocks.iter().zip(places) {
                let entry = Entry {
                    block: at,
                    crc: moved.crc,
                    stamp: moved.stamp,
                    sequence,
                };
                layer.insert(moved.block, entry, &mut freed);
            }
            for moved in &part.poisoned {
                let entry = Entry::poison(moved.stamp, moved.crc, sequence);
                layer.insert(moved.block, entry, &mut freed);
            }
            self.delta_grew(layer.len() as isize - before as isize);
        }
        self.reclaim.superseded(&mut freed);
        self.look_at_limits();
        Ok(())
    }

    /// Finds space for a part's data, and writes it; `places` gets what was found, block by block.
    async fn store_part(
        &self,
        part: &Part,
        places: &mut Vec<PhysicalBlock>,
    ) -> Result<(), StoreError> {
        let runs = self.space_to_arrive(part.blocks.len() as u32).await?;
        for run in &runs {
            places.extend((0..u64::from(run.blocks)).map(|n| PhysicalBlock(run.first.0 + n)));
        }
        for (moved, bytes) in part.blocks.iter().zip(part.data.chunks_exact(BLOCK_BYTES)) {
            let actual = Crc::of(bytes);
            if actual != moved.crc {
                // Between the drives: memory.
                return Err(StoreError::Checksum {
                    block: moved.block,
                    at: PhysicalBlock(0),
                    expected: moved.crc,
                    actual,
                });
            }
        }
        let mut data = &part.data[..];
        for run in runs {
            let (now, rest) = data.split_at(run.blocks as usize * BLOCK_BYTES);
            data = rest;
            self.store_run(run, now).await?;
        }
        Ok(())
    }

    async fn store_run(&self, run: Run, data: &[u8]) -> Result<(), StoreError> {
        let mut at = run.first.0 * BLOCK_BYTES as u64;
        let mut rest = data;
        while !rest.is_empty() {
            let mut buffer = self.read_buffers.take().await;
            let (now, later) = rest.split_at(rest.len().min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            let (back, wrote) = self.device.write(at, buffer.lend(), now.len(), false).await;
            buffer.back(back);
            self.wrote(now.len() as u64);
            wrote?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// See [`Store::forget_arrivals`]; also at opening.
    pub(super) fn forget_arrival(&self, handle: CatalogueHandle) {
        let mut catalogue = self.catalogue.borrow_mut();
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ArrivingKept) {
            return;
        }
        let several = catalogue.children(handle).len() > 1;
        catalogue.change(handle, |r| {
            if r.kind != RecordKind::Arriving {
                return;
            }
            r.kind = RecordKind::Deleting;
            if several {
                // It waits until one is left, as a deleted snapshot does.
                r.kind = RecordKind::Hidden;
                r.snapshot = TEMPORARY;
            }
        });
    }

    fn settle_family(&self, family: &[Settled]) -> Result<(), StoreError> {
        let lanes = self.lanes.borrow();
        let mut catalogue = self.catalogue.borrow_mut();
        let mut names = self.names.borrow_mut();
        for one in family {
            let record = catalogue.get(one.handle);
            let record = record.filter(|r| r.kind == RecordKind::Arriving);
            let record = record.ok_or(StoreError::Unknown)?;
            let live = one.kind == MovedKind::Live;
            if live && names.contains_key(&(record.volume, record.lane)) {
                return Err(StoreError::Exists);
            }
            if live != lanes.contains_key(&one.handle) {
                return Err(StoreError::Unknown);
            }
        }
        for one in family {
            catalogue.change(one.handle, |r| {
                (r.incarnation, r.size_bytes) = (one.incarnation, one.size_bytes);
                match one.kind {
                    MovedKind::Live => {
                        r.kind = RecordKind::Live;
                        // An opening goes above it.
                        r.epoch = lanes[&one.handle].epoch;
                        names.insert((r.volume, r.lane), one.handle);
                    }
                    MovedKind::Snapshot => {
                        (r.kind, r.snapshot) = (RecordKind::Snapshot, one.snapshot);
                    }
                    MovedKind::Hidden => {
                        (r.kind, r.snapshot) = (RecordKind::Hidden, TEMPORARY);
                    }
                }
            });
        }
        Ok(())
    }
}
