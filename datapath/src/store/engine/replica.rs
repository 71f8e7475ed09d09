//! A replica: all lanes of a volume on this node, as replication wants it ([`ReplicaStore`], `docs/replication.md` §15). Its drives are of one reactor.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::super::VolumeId;
use super::super::journal::{Record, Tags};
use super::super::map::LeafShape;
use super::super::superblock::{ReplicaEntry, ReplicaState};
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, SnapshotId, Stamp};
use super::copy::{BlockEntry, Content};
use super::lane::LaneState;
use super::stamped::Mark;
use super::unsettled::Listed;
use super::{Inner, Store, StoreError};
use crate::cipher::TAG_BYTES;
use crate::replication::held::{Held, What};
use crate::replication::seam::{
    Entry, Id, KeptSet, Kind, Promise, ReplicaError, ReplicaStore, Standing, Unsettled,
};
use crate::replication::wire::resync::Tree;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Replica {
    volume: VolumeId,
    id: Id,
    /// Its drives.
    stores: Vec<Store>,
    /// In the order of lanes, each with the store that has it.
    lanes: Vec<(Rc<Inner>, Rc<LaneState>)>,
    /// Its lanes are.
    sealed: bool,
}

fn incomplete(what: impl Into<String>) -> ReplicaError {
    ReplicaError::Incomplete(what.into())
}

/// What an error of the store means to a replica; `block` is of whatever the operation was about.
pub(super) fn told(e: StoreError, lane: u8, block: u64) -> ReplicaError {
    let damaged = |block: LaneBlock| ReplicaError::Damaged {
        lane,
        block: block.0,
    };
    match e {
        StoreError::Full => ReplicaError::Full,
        StoreError::Checksum { block, .. } | StoreError::Poisoned { block } => damaged(block),
        StoreError::Page { .. } | StoreError::Lost => damaged(LaneBlock(block)),
        StoreError::Io(crate::device::IoError::Unreadable) => damaged(LaneBlock(block)),
        StoreError::Io(_) | StoreError::Closed => ReplicaError::Drive(e.to_string()),
        StoreError::Unknown => incomplete("a lane is gone"),
        StoreError::Exists => incomplete("it has another record of the same stamp"),
        StoreError::Replica => incomplete(e.to_string()),
    }
}

impl Replica {
    /// Makes a replica: on each drive some lanes of `of`, with room for tags if it is `sealed`. What was made before, under the same id, stays.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there are lanes of another replica of the volume, and others.
    pub async fn create(
        drives: &[(Store, Vec<u8>)],
        volume: VolumeId,
        id: Id,
        of: u8,
        (size_bytes, sealed): (u64, bool),
    ) -> Result<(), StoreError> {
        for (store, lanes) in drives {
            let same = store.replica(volume).is_some_and(|r| r.replica == id);
            let any = lanes.iter().any(|lane| store.lane(volume, *lane).is_some());
            if any && !same {
                return Err(StoreError::Exists);
            }
            if !same {
                store.add_replica(volume, id).await?;
            }
            store
                .0
                .create_lanes(volume, lanes, of, size_bytes, (true, sealed))
                .await?;
        }
        Ok(())
    }

    /// The replica of a volume on these drives.
    ///
    /// # Errors
    /// [`ReplicaError::Incomplete`]: a lane is missing, or what it promised.
    pub fn open(stores: &[Store], volume: VolumeId) -> Result<Self, ReplicaError> {
        let mut found: Vec<Option<(Rc<Inner>, Rc<LaneState>)>> = Vec::new();
        let mut id = None;
        let mut with = Vec::new();
        for store in stores {
            let infos = store.lanes();
            let of_volume: Vec<_> = infos.iter().filter(|i| i.volume == volume).collect();
            let entry = store.replica(volume);
            if of_volume.is_empty() && entry.is_none() {
                continue;
            }
            let entry = entry.ok_or_else(|| incomplete("a drive has lanes and no promise"))?;
            if entry.state == ReplicaState::Lost {
                return Err(incomplete("a drive lost what it promised"));
            }
            if *id.get_or_insert(entry.replica) != entry.replica {
                return Err(incomplete("its drives are of two replicas"));
            }
            for info in of_volume {
                let lane = store.0.lane_named(volume, info.lane);
                let lane = lane.filter(|l| l.replica.is_some());
                let lane = lane.ok_or_else(|| incomplete("a lane has its own stamps"))?;
                found.resize(usize::from(info.lanes), None);
                found[usize::from(info.lane)] = Some((store.0.clone(), lane));
            }
            with.push(store.clone());
        }
        let lanes: Option<Vec<_>> = found.into_iter().collect();
        let lanes = lanes.filter(|l| !l.is_empty());
        let lanes = lanes.ok_or_else(|| incomplete("a lane is missing"))?;
        let sealed = lanes[0].1.shape() == LeafShape::Sealed;
        if lanes
            .iter()
            .any(|(_, l)| l.shape() != LeafShape::of(sealed))
        {
            return Err(incomplete("some of its lanes are sealed, and others not"));
        }
        Ok(Self {
            volume,
            id: id.ok_or_else(|| incomplete("there is none"))?,
            stores: with,
            lanes,
            sealed,
        })
    }

    /// Deletes it, with all of its lanes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(self) -> Result<(), StoreError> {
        for store in &self.stores {
            Self::remove(store, self.volume, false).await?;
        }
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> Id {
        self.id
    }

    pub(super) fn lane(&self, lane: u8) -> Result<&(Rc<Inner>, Rc<LaneState>), ReplicaError> {
        let found = self.lanes.get(usize::from(lane));
        found.ok_or_else(|| incomplete(format!("it has no lane {lane}")))
    }

    /// The tags of a record. Data of a sealed lane have some, and of another have none: nothing is kept without its own.
    fn tags_of(&self, record: &Held) -> Result<Option<Tags>, ReplicaError> {
        let (tags, data) = match &record.what {
            What::Write { tags, .. } => (tags, true),
            What::Poison { tags, .. } => (tags, false),
            What::Tombstone { .. } | What::Snapshot(_) => return Ok(None),
        };
        let each = tags.as_chunks::<TAG_BYTES>().0.to_vec();
        match (each.is_empty(), self.sealed) {
            (false, false) => Err(incomplete("a sealed record for lanes that are not")),
            (true, true) if data => Err(incomplete("a record without tags for sealed lanes")),
            (true, _) => Ok(None),
            (false, true) => Ok(Some(Tags {
                key: record.key,
                each,
            })),
        }
    }

    fn entries(&self) -> impl Iterator<Item = ReplicaEntry> {
        self.stores.iter().filter_map(|s| s.replica(self.volume))
    }

    async fn keep(&self, change: impl Fn(&mut ReplicaEntry)) -> Result<(), ReplicaError> {
        for store in &self.stores {
            let kept = store.keep_replica(self.volume, &change).await;
            kept.map_err(|e| told(e, 0, 0))?;
        }
        Ok(())
    }

    /// Applies a copy, or a repair: `parts` says which blocks it is for.
    async fn put(
        &self,
        record: &Held,
        parts: impl Fn(&LaneState, &Range<u64>, &[BlockEntry]) -> Vec<Range<u64>>,
    ) -> Result<(), ReplicaError> {
        let (store, lane) = self.lane(record.lane)?;
        let blocks = record.blocks();
        let crcs = crcs_of(record);
        let tags = self.tags_of(record)?;
        let content = match &record.what {
            What::Write {
                data: Some(data), ..
            } => {
                verify(record, &crcs, data)?;
                Content::Data(data, tags)
            }
            What::Poison { .. } => Content::Poison(&crcs, tags),
            What::Tombstone { .. } => Content::Nothing,
            What::Snapshot(id) => {
                let taken = store.snapshot_one(lane, *id).await;
                return taken.map_err(|e| told(e, record.lane, 0));
            }
            What::Write { data: None, .. } => {
                return Err(incomplete("a write without its data is not copied"));
            }
        };
        let place = (record.stamp, blocks.clone());
        let put = store
            .put_copy(lane, place, &content, |blocks, entries| {
                parts(lane, blocks, entries)
            })
            .await;
        put.map_err(|e| told(e, record.lane, blocks.start))
    }
}

fn crcs_of(record: &Held) -> Vec<Crc> {
    match &record.what {
        What::Write { crcs, .. } | What::Poison { crcs, .. } => {
            let each = crcs.as_chunks::<4>().0.iter();
            each.map(|c| Crc(u32::from_le_bytes(*c))).collect()
        }
        What::Tombstone { .. } | What::Snapshot(_) => Vec::new(),
    }
}

/// What came over the wire is what was sent.
fn verify(record: &Held, crcs: &[Crc], data: &Buffer) -> Result<(), ReplicaError> {
    let len = crcs.len() * BLOCK_BYTES;
    let blocks = data[..len].chunks_exact(BLOCK_BYTES).map(Crc::of);
    let wrong = blocks.zip(crcs).position(|(found, said)| found != *said);
    match wrong {
        Some(n) => Err(ReplicaError::Damaged {
            lane: record.lane,
            block: record.blocks().start + n as u64,
        }),
        None => Ok(()),
    }
}

/// Ranges of ascending blocks.
fn together(blocks: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        match parts.last_mut() {
            Some(part) if part.end == block => part.end += 1,
            _ => parts.push(block..block + 1),
        }
    }
    parts
}

/// A listed record as it is given to others, without data.
fn held(lane: u8, listed: &Listed) -> Held {
    let mut key = 0;
    let what = match &listed.record {
        Record::Write(w) => {
            let mut tags: Box<[u8]> = Box::default();
            if let Some(of) = &w.tags {
                (key, tags) = (of.key, of.each.as_flattened().into());
            }
            let crcs: Box<[u8]> = w.crcs.iter().flat_map(|c| c.0.to_le_bytes()).collect();
            match w.runs.is_empty() {
                true => What::Poison {
                    first: w.first,
                    crcs,
                    tags,
                },
                false => What::Write {
                    first: w.first,
                    crcs,
                    tags,
                    data: None,
                },
            }
        }
        _ => What::Tombstone {
            first: LaneBlock(listed.blocks.start),
            blocks: listed.blocks.end - listed.blocks.start,
        },
    };
    Held {
        lane,
        stamp: listed.stamp(),
        key,
        what,
    }
}

impl ReplicaStore for Replica {
    fn lanes(&self) -> u8 {
        self.lanes.len() as u8
    }

    fn sealed(&self) -> bool {
        self.sealed
    }

    async fn apply(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        let (store, lane) = self.lane(record.lane)?;
        let (stamp, blocks) = (record.stamp, record.blocks());
        let crcs = crcs_of(record);
        let tags = self.tags_of(record)?;
        let applied = match &record.what {
            What::Write {
                first,
                data: Some(data),
                ..
            } => {
                verify(record, &crcs, data)?;
                let data = data.clone();
                store
                    .apply_write(lane, stamp, *first, (crcs, tags), data)
                    .await
            }
            What::Write { data: None, .. } => {
                return Err(incomplete("a write without its data is not applied"));
            }
            What::Poison { .. } => {
                store
                    .apply_mark(lane, stamp, blocks.clone(), Mark::Poison(crcs, tags))
                    .await
            }
            What::Tombstone { .. } => {
                store
                    .apply_mark(lane, stamp, blocks.clone(), Mark::Erase)
                    .await
            }
            What::Snapshot(id) => store.snapshot_one(lane, *id).await,
        };
        applied.map_err(|e| told(e, record.lane, blocks.start))
    }

    async fn copy(&self, record: &Rc<Held>, s0: Stamp) -> Result<(), ReplicaError> {
        self.put(record, |lane, blocks, entries| {
            let parts = Inner::at_or_below(lane, s0, blocks, entries);
            // What is above s0 itself comes by the stream.
            let blocks = parts.into_iter().flatten();
            together(blocks.filter(|block| record.stamp_of(*block) <= s0))
        })
        .await
    }

    async fn repair(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        if !matches!(record.what, What::Write { .. }) {
            return Err(incomplete("only data repairs"));
        }
        let crcs = crcs_of(record);
        let first = record.blocks().start;
        self.put(record, |_, blocks, entries| {
            let same = blocks.clone().zip(entries).filter(|(block, e)| {
                let n = (block - first) as usize;
                matches!(e.entry.kind, Kind::Data | Kind::Poison)
                    && e.entry.stamp == record.stamp_of(*block)
                    && e.entry.crc == crcs[n]
            });
            together(same.map(|(block, _)| block))
        })
        .await
    }

    async fn flush(&self) -> Result<(), ReplicaError> {
        for store in &self.stores {
            let here = self.lanes.iter().filter(|(s, _)| Rc::ptr_eq(s, &store.0));
            let lanes = here.map(|(_, lane)| lane);
            let written = store.0.write_settled(lanes).await;
            written.map_err(|e| told(e, 0, 0))?;
            store.flush().await.map_err(|e| told(e, 0, 0))?;
        }
        Ok(())
    }

    async fn read(
        &self,
        tree: Tree,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, ReplicaError>) {
        let lane = tree.lane;
        let (store, _) = match self.lane(lane) {
            Ok(found) => found,
            Err(e) => return (into, Err(e)),
        };
        // Its reader stays from before the look until the last byte is here.
        let (state, _reader) = match self.tree(tree).await {
            Ok(found) => found,
            Err(e) => return (into, Err(e)),
        };
        let entries = match store.entries(&state, &blocks).await {
            Ok(entries) => entries,
            Err(e) => return (into, Err(told(e, lane, blocks.start))),
        };
        let places: Vec<_> = entries.iter().map(BlockEntry::place).collect();
        let read = store.read_places(&state, blocks.start, &places, into);
        let (into, read) = read.await;
        let entries = entries.iter().map(|e| e.entry).collect();
        (
            into,
            read.map(|()| entries)
                .map_err(|e| told(e, lane, blocks.start)),
        )
    }

    async fn unsettled(&self, lane: u8) -> Result<Unsettled, ReplicaError> {
        let (_, state) = self.lane(lane)?;
        let replica = state
            .replica
            .as_ref()
            .expect("looked at when it was opened");
        let entering = replica.entering.borrow();
        let done = replica.above_settled().into_iter();
        let done = done.filter(|r| !entering.contains(&r.stamp()));
        Ok(Unsettled {
            records: done.map(|r| Rc::new(held(lane, &r))).collect(),
            leaves: None,
        })
    }

    async fn fetch(&self, lane: u8, stamp: Stamp) -> Result<Option<Rc<Held>>, ReplicaError> {
        let (store, state) = self.lane(lane)?;
        let replica = state
            .replica
            .as_ref()
            .expect("looked at when it was opened");
        let listed = replica.get(stamp);
        let entering = replica.entering.borrow().contains(&stamp);
        let above = |r: &Rc<Listed>| r.last > replica.settled() && !r.failed.get() && !entering;
        let Some(listed) = listed.filter(above) else {
            return Ok(None);
        };
        let mut record = held(lane, &listed);
        if let (Record::Write(write), What::Write { data, .. }) = (&listed.record, &mut record.what)
        {
            let len = write.crcs.len() * BLOCK_BYTES;
            let reader = store.reclaim.read();
            let buffer = store.handle.buffers().take(len).await;
            if replica.get(stamp).is_none() {
                // It settled while there was no buffer: its blocks may be others' by now.
                return Ok(None);
            }
            let (buffer, read) = store.fetch_listed(state, write, buffer).await;
            drop(reader);
            read.map_err(|e| told(e, lane, listed.blocks.start))?;
            *data = Some(Rc::new(buffer));
        }
        Ok(Some(Rc::new(record)))
    }

    async fn summaries(
        &self,
        tree: Tree,
        level: u8,
        first: u64,
        count: u32,
    ) -> Result<Vec<u32>, ReplicaError> {
        let (store, _) = self.lane(tree.lane)?;
        let (state, _reader) = self.tree(tree).await?;
        let found = store
            .summaries(&state, level, first..first + u64::from(count))
            .await;
        found.map_err(|e| told(e, tree.lane, first))
    }

    async fn leaf(&self, tree: Tree, leaf: u64) -> Result<Vec<(u64, Entry)>, ReplicaError> {
        let (store, _) = self.lane(tree.lane)?;
        let (state, _reader) = self.tree(tree).await?;
        let found = store.leaf_entries(&state, leaf).await;
        found.map_err(|e| told(e, tree.lane, 0))
    }

    fn snapshots(&self) -> Vec<(SnapshotId, u8)> {
        let mut found = BTreeMap::new();
        for (lane, (store, _)) in (0_u8..).zip(&self.lanes) {
            let catalogue = store.catalogue.borrow();
            for id in catalogue.snapshots_of(self.volume, lane) {
                *found.entry(id).or_default() += 1;
            }
        }
        found.into_iter().collect()
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), ReplicaError> {
        for store in &self.stores {
            let deleted = store.delete_snapshot(self.volume, id).await;
            deleted.map_err(|e| told(e, 0, 0))?;
            store.flush().await.map_err(|e| told(e, 0, 0))?;
        }
        Ok(())
    }

    fn settled(&self, lane: u8) -> Stamp {
        let lane = self.lanes.get(usize::from(lane));
        let replica = lane.and_then(|(_, lane)| lane.replica.as_ref());
        replica.map_or(Stamp { epoch: 0, seq: 0 }, |r| r.settled())
    }

    fn settle(&self, lane: u8, stamp: Stamp) {
        if let Some((store, lane)) = self.lanes.get(usize::from(lane)) {
            store.settle(lane, stamp);
        }
    }

    fn copied_from(&self, lane: u8, s0: Stamp) {
        if let Some((store, lane)) = self.lanes.get(usize::from(lane)) {
            store.copied_from(lane, s0);
        }
    }

    fn settle_here(&self, lane: u8, stamp: Stamp) {
        // The store looks at the promise itself, to keep what was erased.
        self.settle(lane, stamp);
    }

    fn has_room(&self, record: &Held, rolled: bool) -> bool {
        let lane = self.lanes.get(usize::from(record.lane));
        lane.is_none_or(|(store, lane)| store.may_list(lane, record, rolled))
    }

    fn promise(&self) -> Option<Promise> {
        let promised = self.entries().filter(|e| e.state != ReplicaState::Fresh);
        let highest = promised.max_by_key(|e| (e.epoch, e.version, e.state as u8))?;
        Some(Promise {
            epoch: highest.epoch,
            incarnation: highest.incarnation,
            version: highest.version,
            state: match highest.state {
                ReplicaState::Resyncing => Standing::Resyncing,
                ReplicaState::Level => Standing::Level,
                _ => Standing::Promised,
            },
        })
    }

    async fn keep_promise(&self, promise: Promise) -> Result<(), ReplicaError> {
        let present = self.promise().map_or(0, |p| p.epoch);
        assert!(promise.epoch >= present, "a promise is never taken back");
        self.keep(|entry| {
            entry.epoch = promise.epoch;
            entry.incarnation = promise.incarnation;
            entry.version = promise.version;
            entry.state = match promise.state {
                Standing::Promised => ReplicaState::Promised,
                Standing::Resyncing => ReplicaState::Resyncing,
                Standing::Level => ReplicaState::Level,
            };
        })
        .await
    }

    fn set(&self) -> KeptSet {
        let newest = self.entries().max_by_key(|e| (e.set_epoch, e.set_version));
        newest.map_or_else(KeptSet::default, |e| KeptSet {
            epoch: e.set_epoch,
            version: e.set_version,
            members: e.members,
        })
    }

    async fn keep_set(&self, set: &KeptSet) -> Result<(), ReplicaError> {
        let mut members = set.members.clone();
        members.sort_unstable();
        members.dedup();
        self.keep(|entry| {
            entry.set_epoch = set.epoch;
            entry.set_version = set.version;
            entry.members.clone_from(&members);
        })
        .await
    }

    fn boot(&self) -> Id {
        // FNV-1a, of drives and their mounts: other mounts are other boots, and nobody gains by finding two alike.
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for store in &self.stores {
            let superblock = store.0.superblock.borrow();
            let mount = superblock.mount_generation.0.to_le_bytes();
            for byte in superblock.drive_id.0.iter().chain(&mount) {
                hash ^= u128::from(*byte);
                hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
            }
        }
        hash.to_le_bytes()
    }

    fn space(&self) -> u64 {
        let each = self.stores.iter().map(Store::space);
        each.map(|s| s.free.saturating_sub(s.reserve))
            .min()
            .unwrap_or(0)
    }

    fn volatile(&self) -> bool {
        self.stores.iter().any(|store| store.0.volatile)
    }
}
