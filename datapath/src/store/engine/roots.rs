//! Lanes, snapshots, clones, restores, deletions: changes of the catalogue (`docs/store-format.md` §7).
//!
//! Each is applied in memory at once, together with the record that says so entering the journal, and is durable when that record is
//! flushed. So records that follow it in the journal find it, whether a crash comes before or after the next checkpoint.

use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{CatalogueRecord, RecordKind, Root, diff};
use super::super::types::{
    CatalogueHandle, Generation, LaneBlock, LaneSequence, SnapshotId, Stamp,
};
use super::catalogue::NONE;
use super::lane::LaneState;
use super::moving::TEMPORARY;
use super::reclaim::Reader;
use super::unsettled::ReplicaLane;
use super::{DiffRange, Inner, RootOf, StoreError};

const NO_SNAPSHOT: SnapshotId = SnapshotId([0; 16]);

impl Inner {
    /// Waits until what was appended to the journal up to now is durable.
    pub(super) async fn commit_meta(self: &Rc<Self>) -> Result<(), StoreError> {
        let ticket = self.writer.meta_tickets.issue();
        self.commit_records(ticket.number());
        ticket.wait().await?;
        self.look_at_limits();
        self.flush().await
    }

    /// Waits until the journal has room for so many records of metadata.
    pub(super) async fn room_for_meta(&self, records: u64) -> Result<(), StoreError> {
        loop {
            if self.closed.get() {
                return Err(StoreError::Closed);
            }
            if let Some(e) = self.checkpointer.failed.get() {
                return Err(e);
            }
            if self.journal_has_room(64 * records) {
                return Ok(());
            }
            self.checkpoint().await?;
        }
    }

    /// Changes a record, in memory and in the journal.
    fn put(&self, handle: CatalogueHandle, record: CatalogueRecord) {
        let mut catalogue = self.catalogue.borrow_mut();
        let (next_handle, next_generation) = (catalogue.next_handle(), catalogue.next_generation());
        self.journal
            .append_put(handle, next_handle, next_generation, &record);
        catalogue.put(handle, record);
    }

    pub(super) fn change(
        &self,
        handle: CatalogueHandle,
        change: impl FnOnce(&mut CatalogueRecord),
    ) {
        let record = self.catalogue.borrow().get(handle).cloned();
        if let Some(mut record) = record {
            change(&mut record);
            self.put(handle, record);
        }
    }

    /// A live lane's state in memory, for its record.
    pub(super) fn add_lane(
        &self,
        handle: CatalogueHandle,
        record: &CatalogueRecord,
    ) -> Rc<LaneState> {
        let lane = self.new_lane(handle, record);
        self.names
            .borrow_mut()
            .insert((record.volume, record.lane), handle);
        lane
    }

    /// The same for a lane that nobody finds by its name (yet).
    pub(super) fn new_lane(
        &self,
        handle: CatalogueHandle,
        record: &CatalogueRecord,
    ) -> Rc<LaneState> {
        let mount = self.superblock.borrow().mount_generation.0 as u32;
        let lane = Rc::new(LaneState::new(
            handle,
            (record.volume, record.lane),
            record.root(),
            record.sequence,
            record.generation,
            // Stamps of replicas come from elsewhere.
            match record.replica {
                true => 0,
                false => mount.max(record.epoch.saturating_add(1)),
            },
            record.replica.then(|| ReplicaLane::new(record.settled)),
        ));
        self.lanes.borrow_mut().insert(handle, lane.clone());
        if record.sealed {
            self.journal.expect_tags();
        }
        lane
    }

    pub(super) fn lane_named(&self, volume: VolumeId, lane: u8) -> Option<Rc<LaneState>> {
        let handle = self.names.borrow().get(&(volume, lane)).copied()?;
        self.lanes.borrow().get(&handle).cloned()
    }

    /// Handles of a volume's live lanes.
    pub(super) fn live(&self, volume: VolumeId) -> Vec<CatalogueHandle> {
        let names = self.names.borrow();
        let lanes = names.range((volume, 0)..=(volume, u8::MAX));
        lanes.map(|(_, handle)| *handle).collect()
    }

    pub(super) async fn create_lanes(
        self: &Rc<Self>,
        volume: VolumeId,
        lanes: &[u8],
        of: u8,
        size_bytes: u64,
        (replica, sealed): (bool, bool),
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        self.room_for_meta(lanes.len() as u64).await?;
        for &lane in lanes {
            if self.lane_named(volume, lane).is_some() {
                continue;
            }
            let (handle, generation) = {
                let mut catalogue = self.catalogue.borrow_mut();
                (catalogue.new_handle(), catalogue.new_generation())
            };
            let record = CatalogueRecord {
                kind: RecordKind::Live,
                lane,
                lanes: of,
                sealed,
                parent: NONE,
                generation,
                incarnation: 1,
                volume,
                snapshot: NO_SNAPSHOT,
                size_bytes,
                replica,
                ..CatalogueRecord::EMPTY
            };
            self.add_lane(handle, &record);
            self.put(handle, record);
        }
        self.commit_meta().await
    }

    pub(super) async fn resize(
        self: &Rc<Self>,
        volume: VolumeId,
        size_bytes: u64,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        self.room_for_meta(256).await?;
        for handle in self.live(volume) {
            self.change(handle, |r| r.size_bytes = size_bytes);
        }
        self.commit_meta().await
    }

    pub(super) async fn delete_lanes(self: &Rc<Self>, volume: VolumeId) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        self.room_for_meta(256).await?;
        // A checkpoint may forget them before this is done.
        let mut ended = Vec::new();
        for handle in self.live(volume) {
            ended.extend(self.lanes.borrow().get(&handle).cloned());
            self.end_lane(handle);
        }
        self.commit_meta().await?;
        self.forget_unsettled(&ended);
        self.ask_to_delete();
        Ok(())
    }

    /// A live lane is being deleted from now on.
    pub(super) fn end_lane(&self, handle: CatalogueHandle) {
        let lane = self.lanes.borrow().get(&handle).cloned();
        if let Some(lane) = lane {
            lane.void.set(true);
            self.names.borrow_mut().remove(&(lane.volume, lane.lane));
        }
        self.change(handle, |r| {
            r.kind = RecordKind::Deleting;
            r.leaving = false;
            r.walked = 0;
        });
    }

    pub(super) async fn snapshot(
        self: &Rc<Self>,
        volumes: &[(VolumeId, SnapshotId)],
    ) -> Result<(), StoreError> {
        if volumes.iter().any(|(_, id)| *id == TEMPORARY) {
            return Err(StoreError::Exists);
        }
        let _one = self.changing.lock().await;
        self.room_for_meta(256).await?;
        // No await from the first lane to the last: that is the barrier.
        for &(volume, id) in volumes {
            if !self.catalogue.borrow().snapshots(volume, id).is_empty() {
                continue;
            }
            for handle in self.live(volume) {
                self.snapshot_lane(handle, id);
            }
        }
        self.commit_meta().await
    }

    /// Takes a snapshot of one lane of a replica, unless it has it: durable when this returns.
    pub(super) async fn snapshot_one(
        self: &Rc<Self>,
        lane: &LaneState,
        id: SnapshotId,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        self.room_for_meta(1).await?;
        if lane.void.get() {
            return Err(StoreError::Unknown);
        }
        let there = self
            .catalogue
            .borrow()
            .snapshot_of(lane.volume, lane.lane, id);
        if there.is_none() {
            self.snapshot_lane(lane.handle, id);
        }
        self.commit_meta().await
    }

    /// A replica's lane as of a snapshot; `None`: it has no such one. What it shows stays while the reader does, which comes with it.
    pub(super) async fn snapshot_view(
        &self,
        lane: &LaneState,
        id: SnapshotId,
    ) -> Result<Option<(LaneState, Reader)>, StoreError> {
        self.merge_snapshots(lane.volume, id).await?;
        let reader = self.reclaim.read();
        let catalogue = self.catalogue.borrow();
        let handle = catalogue.snapshot_of(lane.volume, lane.lane, id);
        let found = handle.and_then(|h| Some((h, catalogue.get(h)?)));
        Ok(found.map(|(handle, record)| {
            let of = (record.volume, record.lane);
            let (root, generation) = (record.root(), record.generation);
            let sequence = record.sequence;
            let view = LaneState::new(handle, of, root, sequence, generation, record.epoch, None);
            (view, reader)
        }))
    }

    /// Takes a snapshot of a live lane now; its record.
    pub(super) fn snapshot_lane(
        &self,
        live: CatalogueHandle,
        id: SnapshotId,
    ) -> Option<CatalogueHandle> {
        let lane = self.lanes.borrow().get(&live).cloned()?;
        let (snapshot, closes, generation) = {
            let mut catalogue = self.catalogue.borrow_mut();
            let snapshot = catalogue.new_handle();
            let generation = catalogue.new_generation();
            let closes = catalogue.get(live).map(|r| r.generation);
            (
                snapshot,
                closes.expect("a live lane has a record"),
                generation,
            )
        };
        let admitted = lane.admit(0);
        self.journal
            .append_snapshot(live, admitted.sequence, closes, snapshot, id, generation);
        admitted.layer.borrow_mut().in_flight -= 1;
        self.take_snapshot(&lane, snapshot, id, generation);
        Some(snapshot)
    }

    /// The catalogue's and the lane's part of a snapshot, now or at replay. A snapshot that the catalogue has already only cuts the lane.
    pub(super) fn take_snapshot(
        &self,
        lane: &LaneState,
        snapshot: CatalogueHandle,
        id: SnapshotId,
        generation: Generation,
    ) {
        let mut catalogue = self.catalogue.borrow_mut();
        let record = catalogue.get(lane.handle).cloned();
        let record = record.expect("a live lane has a record");
        if catalogue.get(snapshot).is_none() {
            catalogue.put(
                snapshot,
                CatalogueRecord {
                    kind: match id {
                        TEMPORARY => RecordKind::Hidden,
                        _ => RecordKind::Snapshot,
                    },
                    leaving: false,
                    snapshot: id,
                    sequence: LaneSequence(0),
                    walked: 0,
                    settled: Stamp { epoch: 0, seq: 0 },
                    ..record
                },
            );
            catalogue.change(lane.handle, |r| {
                r.parent = snapshot;
                r.generation = generation;
            });
        }
        lane.newest().borrow_mut().closes = Some(snapshot);
        lane.cut(generation);
        self.deepest.set(self.deepest.get().max(lane.depth()));
        self.unmerged.borrow_mut().insert(snapshot);
    }

    pub(super) async fn delete_snapshot(
        self: &Rc<Self>,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        let count = self.catalogue.borrow().snapshots(volume, snapshot).len();
        self.room_for_meta(count as u64).await?;
        let handles = self.catalogue.borrow().snapshots(volume, snapshot);
        for handle in handles {
            let clones = self.catalogue.borrow().children(handle).len();
            self.change(handle, |r| {
                r.walked = 0;
                r.kind = if clones > 1 {
                    RecordKind::Hidden
                } else {
                    RecordKind::Deleting
                };
            });
        }
        self.commit_meta().await?;
        self.ask_to_delete();
        Ok(())
    }

    /// Every snapshot of this id has a root that a superblock refers to.
    pub(super) async fn merge_snapshots(
        &self,
        volume: VolumeId,
        id: SnapshotId,
    ) -> Result<(), StoreError> {
        loop {
            let handles = self.catalogue.borrow().snapshots(volume, id);
            let unmerged = handles.iter().any(|h| self.unmerged.borrow().contains(h));
            if !unmerged {
                return Ok(());
            }
            self.checkpoint().await?;
        }
    }

    pub(super) async fn clone_lanes(
        self: &Rc<Self>,
        from: VolumeId,
        snapshot: SnapshotId,
        to: VolumeId,
        replica: bool,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        let count = self.catalogue.borrow().snapshots(from, snapshot).len();
        self.room_for_meta(count as u64).await?;
        self.merge_snapshots(from, snapshot).await?;
        let origins = self.catalogue.borrow().snapshots(from, snapshot);
        if origins.is_empty() {
            return Err(StoreError::Unknown);
        }
        for origin in origins {
            self.branch(origin, to, (0, replica));
        }
        self.commit_meta().await
    }

    /// A new live lane with a snapshot's root, unless there is one of that name.
    /// Its stamps are above all of the snapshot, and of epochs above `epoch`.
    /// A replica's come with its records, and nothing of it is on a list.
    fn branch(&self, origin: CatalogueHandle, volume: VolumeId, (epoch, replica): (u32, bool)) {
        let record = self.catalogue.borrow().get(origin).cloned();
        let record = record.expect("the snapshot was found");
        if self.lane_named(volume, record.lane).is_some() {
            return;
        }
        let (handle, generation) = {
            let mut catalogue = self.catalogue.borrow_mut();
            (catalogue.new_handle(), catalogue.new_generation())
        };
        let mut record = CatalogueRecord {
            kind: RecordKind::Live,
            volume,
            parent: origin,
            generation,
            snapshot: NO_SNAPSHOT,
            sequence: LaneSequence(0),
            replica,
            settled: Stamp { epoch: 0, seq: 0 },
            epoch: record.epoch.max(epoch),
            ..record
        };
        let lane = self.add_lane(handle, &record);
        // Durable before the first stamp of it: an opening goes above it.
        record.epoch = lane.epoch;
        self.put(handle, record);
    }

    pub(super) async fn restore(
        self: &Rc<Self>,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        self.room_for_meta(256).await?;
        self.merge_snapshots(volume, snapshot).await?;
        let origins = self.catalogue.borrow().snapshots(volume, snapshot);
        if origins.is_empty() {
            return Err(StoreError::Unknown);
        }
        let mut ended = Vec::new();
        for origin in origins {
            let lane = self.catalogue.borrow().get(origin).map(|r| r.lane);
            let named = lane.and_then(|lane| self.lane_named(volume, lane));
            let epoch = named.as_ref().map_or(0, |l| l.epoch);
            let size = named.as_ref().and_then(|l| {
                let catalogue = self.catalogue.borrow();
                catalogue.get(l.handle).map(|r| r.size_bytes)
            });
            if let Some(old) = named {
                self.end_lane(old.handle);
                ended.push(old);
            }
            self.branch(origin, volume, (epoch, false));
            // A volume does not shrink because it was smaller at the snapshot.
            if let (Some(size), Some(lane)) = (size, lane)
                && let Some(new) = self.lane_named(volume, lane)
            {
                self.change(new.handle, |r| r.size_bytes = r.size_bytes.max(size));
            }
        }
        self.commit_meta().await?;
        self.forget_unsettled(&ended);
        self.ask_to_delete();
        Ok(())
    }

    /// A root that shows everything up to now.
    async fn root_of(&self, volume: VolumeId, lane: u8, of: RootOf) -> Result<Root, StoreError> {
        match of {
            RootOf::Live => {
                let state = self.lane_named(volume, lane).ok_or(StoreError::Unknown)?;
                if state.entries() > 0 || state.depth() > 1 {
                    self.checkpoint().await?;
                }
                Ok(state.root.get())
            }
            RootOf::Snapshot(id) => {
                self.merge_snapshots(volume, id).await?;
                let catalogue = self.catalogue.borrow();
                let handle = catalogue.snapshot_of(volume, lane, id);
                let record = handle.and_then(|h| catalogue.get(h));
                Ok(record.ok_or(StoreError::Unknown)?.root())
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) async fn diff(
        self: &Rc<Self>,
        volume: VolumeId,
        lane: u8,
        older: Option<RootOf>,
        newer: RootOf,
        from: LaneBlock,
        ranges_max: usize,
    ) -> Result<(Vec<DiffRange>, Option<LaneBlock>), StoreError> {
        // No deletion walks, and no lane is deleted, while the roots are compared.
        let _one = self.changing.lock().await;
        let older = match older {
            Some(of) => Some(self.root_of(volume, lane, of).await?),
            None => None,
        };
        let newer = self.root_of(volume, lane, newer).await?;
        let _reader = self.reclaim.read();
        Ok(diff(&self.pages, older.as_ref(), &newer, from, ranges_max).await?)
    }
}
