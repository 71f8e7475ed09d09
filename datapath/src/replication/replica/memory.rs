//! A replica's store in memory, for tests: with drives that take their time, lose what was not flushed, fill up and fail (`docs/replication.md` §15).
//!
//! [`Disk`] is what a crash leaves, [`Memory`] the store of one process over it. What is written is a log of steps over what the last flush covered; a
//! power cut keeps any of the steps behind that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::memory_tree::{data_blocks, summary_of};
use crate::reactor::Handle;
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{
    Entry, Id, KeptSet, Kind, Promise, ReplicaError, ReplicaStore, Standing, Unsettled,
};
use crate::replication::summary;
use crate::replication::wire::resync::Tree;
use crate::store::map::LeafShape;
use crate::store::types::{BLOCK_BYTES, Crc, SnapshotId, Stamp};

const NEVER: Stamp = Stamp { epoch: 0, seq: 0 };

/// A record with data of its own.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Without data.
    pub record: Rc<Held>,
    data: Rc<[u8]>,
}

impl Kept {
    fn of(record: &Rc<Held>) -> Self {
        let bytes = (record.blocks().end - record.blocks().start) as usize * BLOCK_BYTES;
        let (what, data) = match &record.what {
            What::Write {
                first,
                crcs,
                tags,
                data,
            } => {
                let data = data
                    .as_ref()
                    .map_or(Rc::from([]), |d| Rc::from(&d[..bytes]));
                let what = What::Write {
                    first: *first,
                    crcs: crcs.clone(),
                    tags: tags.clone(),
                    data: None,
                };
                (what, data)
            }
            _ => {
                return Self {
                    record: record.clone(),
                    data: Rc::from([]),
                };
            }
        };
        let record = Held { what, ..**record };
        Self {
            record: Rc::new(record),
            data,
        }
    }
}

/// A block's value.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its entry.
    pub entry: Entry,
    data: Option<(Rc<[u8]>, usize)>,
}

impl Version {
    /// Its bytes; zeroes if it is no data.
    pub fn bytes(&self) -> [u8; BLOCK_BYTES] {
        match &self.data {
            Some((data, block)) => {
                let from = block * BLOCK_BYTES;
                std::array::from_fn(|i| data[from + i])
            }
            None => [0; BLOCK_BYTES],
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Kept),
    Copy(Kept, Stamp),
    Repair(Kept),
    Settle(Stamp),
    /// While blocks are copied: what was erased stays known.
    SettleHere(Stamp),
    Delete(SnapshotId),
}

/// What a lane is.
#[derive(Clone, Debug, Default)]
pub struct LaneState {
    /// Blocks that are not absent.
    pub blocks: BTreeMap<u64, Version>,
    /// Records above settled.
    pub records: BTreeMap<Stamp, Kept>,
    /// Settled.
    pub settled: Option<Stamp>,
    /// Snapshots, each with the lane as it was.
    pub snapshots: BTreeMap<SnapshotId, BTreeMap<u64, Version>>,
}

impl LaneState {
    fn put(&mut self, kept: &Kept, replaces: impl Fn(u64, Option<&Version>) -> bool) {
        let crcs = match &kept.record.what {
            What::Write { crcs, .. } | What::Poison { crcs, .. } => &crcs[..],
            _ => &[],
        };
        let kind = match kept.record.what {
            What::Write { .. } => Kind::Data,
            What::Poison { .. } => Kind::Poison,
            What::Tombstone { .. } => Kind::Erased,
            What::Snapshot(id) => {
                let now = self.blocks.clone();
                self.snapshots.entry(id).or_insert(now);
                return;
            }
        };
        for (n, block) in kept.record.blocks().enumerate() {
            if !replaces(block, self.blocks.get(&block)) {
                continue;
            }
            let crc = crcs
                .get(4 * n..4 * n + 4)
                .map_or(0, |c| u32::from_le_bytes(std::array::from_fn(|i| c[i])));
            let entry = Entry {
                kind,
                stamp: kept.record.stamp_of(block),
                crc: Crc(crc),
                seal: kept.record.seal_of(block),
            };
            let data = (kind == Kind::Data).then(|| (kept.data.clone(), n));
            self.blocks.insert(block, Version { entry, data });
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Apply(kept) => {
                let newer = |block, there: Option<&Version>| {
                    there.is_none_or(|v| v.entry.stamp < kept.record.stamp_of(block))
                };
                self.put(kept, newer);
                let snapshot = matches!(kept.record.what, What::Snapshot(_));
                if !snapshot && self.settled < Some(kept.record.last()) {
                    self.records.insert(kept.record.stamp, kept.clone());
                }
            }
            Step::Copy(kept, s0) => {
                let older = |block, there: Option<&Version>| match there {
                    None => true,
                    Some(_) if planted::is(Bug::CopyReplacesLive) => true,
                    Some(v) if planted::is(Bug::HigherStampWins) => {
                        v.entry.stamp <= *s0 && v.entry.stamp < kept.record.stamp_of(block)
                    }
                    Some(v) => v.entry.stamp <= *s0,
                };
                match kept.record.what {
                    // What is not there at the source is not there here.
                    What::Tombstone { .. } => {
                        let blocks = kept.record.blocks();
                        self.blocks
                            .retain(|b, v| !blocks.contains(b) || !older(*b, Some(v)));
                    }
                    _ => self.put(kept, older),
                }
            }
            Step::Repair(kept) => {
                let What::Write { crcs, .. } = &kept.record.what else {
                    return;
                };
                let first = kept.record.blocks().start;
                let same = |block: u64, there: Option<&Version>| {
                    let at = 4 * (block - first) as usize;
                    let crc = u32::from_le_bytes(std::array::from_fn(|i| crcs[at + i]));
                    let stamp = kept.record.stamp_of(block);
                    let exactly =
                        there.is_some_and(|v| v.entry.stamp == stamp && v.entry.crc == Crc(crc));
                    exactly || planted::is(Bug::RepairUnchecked)
                };
                self.put(kept, same);
            }
            Step::Delete(id) => drop(self.snapshots.remove(id)),
            Step::SettleHere(stamp) => {
                self.settled = self.settled.max(Some(*stamp));
                self.records.retain(|_, kept| kept.record.last() > *stamp);
            }
            Step::Settle(stamp) => {
                self.settled = self.settled.max(Some(*stamp));
                let settled = *stamp;
                self.records.retain(|_, kept| kept.record.last() > settled);
                self.blocks
                    .retain(|_, v| v.entry.kind != Kind::Erased || v.entry.stamp > settled);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    flushed: LaneState,
    /// Done, and no flush covers it.
    log: Vec<Step>,
    /// Steps that flushes took from the log so far.
    flushes: u64,
    /// Begun.
    running: BTreeMap<u64, Step>,
    now: LaneState,
}

impl Lane {
    fn end(&mut self, mut keep_done: impl FnMut() -> bool, mut keep_begun: impl FnMut() -> bool) {
        self.log.retain(|_| keep_done());
        self.flushes = 0;
        let begun = std::mem::take(&mut self.running);
        self.log
            .extend(begun.into_values().filter(|_| keep_begun()));
        // Opening flushes what it keeps.
        for step in self.log.drain(..) {
            self.flushed.take(&step);
        }
        self.now = self.flushed.clone();
    }
}

/// What a crash leaves.
#[derive(Debug, Default)]
pub struct Disk {
    lanes: Vec<Lane>,
    promise: Option<Promise>,
    promising: Option<Promise>,
    set: KeptSet,
    boots: u64,
    number: u64,
    /// Its blocks are encrypted.
    pub sealed: bool,
    /// Blocks that can be written.
    pub space: u64,
    /// Records that a lane's list has room for, and for as many of a takeover; 0: for any number.
    pub list_max: usize,
    /// Flushes, promises and sets from now on fail.
    pub broken: bool,
    /// Blocks that cannot be read.
    pub damaged: BTreeSet<(u8, u64)>,
}

impl Disk {
    /// An empty replica.
    pub fn new(lanes: u8, space: u64) -> Rc<RefCell<Self>> {
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Rc::new(RefCell::new(Self {
            lanes,
            space,
            ..Self::default()
        }))
    }

    fn shape(&self) -> LeafShape {
        LeafShape::of(self.sealed)
    }

    /// Somebody changes a block's tag, if it has one.
    pub fn change_tag(&mut self, lane: u8, block: u64) {
        let lane = &mut self.lanes[usize::from(lane)];
        for state in [&mut lane.now, &mut lane.flushed] {
            if let Some(version) = state.blocks.get_mut(&block) {
                version.entry.seal.tag[3] ^= 1;
            }
        }
    }

    /// The process ended: what was begun is there or not.
    pub fn kill(&mut self, mut random: impl FnMut() -> u64) {
        for lane in &mut self.lanes {
            lane.end(|| true, || random() & 1 == 0);
        }
        self.decide_promise(random());
    }

    /// The power was cut: anything that no flush covers is there or not.
    pub fn power_cut(&mut self, mut random: impl FnMut() -> u64) {
        self.boots += 1;
        for lane in &mut self.lanes {
            let coins = RefCell::new(&mut random);
            lane.end(
                || (coins.borrow_mut())() & 1 == 0,
                || (coins.borrow_mut())() & 1 == 0,
            );
        }
        self.decide_promise(random());
    }

    fn decide_promise(&mut self, coin: u64) {
        if let Some(begun) = self.promising.take().filter(|_| coin & 1 == 0) {
            self.promise = Some(begun);
        }
    }

    /// How many lanes.
    pub fn lanes(&self) -> u8 {
        self.lanes.len() as u8
    }

    /// A lane as it is read now.
    pub fn lane(&self, lane: u8) -> &LaneState {
        &self.lanes[usize::from(lane)].now
    }

    /// The durable promise.
    pub fn promise(&self) -> Option<Promise> {
        self.promise
    }
}

/// The store of one process.
#[derive(Clone, Debug)]
pub struct Memory {
    handle: Handle,
    disk: Rc<RefCell<Disk>>,
    volatile: bool,
    /// Steps take up to so long.
    slow: Cell<Duration>,
}

impl Memory {
    /// Opens what there is. `volatile`: what is written is stable only after a flush.
    pub fn open(handle: &Handle, disk: &Rc<RefCell<Disk>>, volatile: bool) -> Self {
        Self {
            handle: handle.clone(),
            disk: disk.clone(),
            volatile,
            slow: Cell::new(Duration::from_micros(200)),
        }
    }

    /// Lets steps take up to so long.
    pub fn set_slow(&self, slow: Duration) {
        self.slow.set(slow);
    }

    async fn take_time(&self) {
        let most = self.slow.get().as_nanos() as u64 + 1;
        let ns = self.handle.random() % most;
        self.handle.sleep(Duration::from_nanos(ns)).await;
    }

    async fn step(&self, lane: u8, step: Step, blocks: u64) -> Result<(), ReplicaError> {
        let lane = usize::from(lane);
        let number = {
            let mut disk = self.disk.borrow_mut();
            if disk.space < blocks {
                return Err(ReplicaError::Full);
            }
            disk.space -= blocks;
            disk.number += 1;
            let number = disk.number;
            disk.lanes[lane].running.insert(number, step.clone());
            number
        };
        self.take_time().await;
        let mut disk = self.disk.borrow_mut();
        if disk.broken {
            return Err(ReplicaError::Drive("broken".into()));
        }
        let lane = &mut disk.lanes[lane];
        lane.running.remove(&number);
        lane.now.take(&step);
        if self.volatile {
            lane.log.push(step);
        } else {
            lane.flushed.take(&step);
        }
        Ok(())
    }

    async fn keep(&self, change: impl FnOnce(&mut Disk)) -> Result<(), ReplicaError> {
        self.take_time().await;
        let mut disk = self.disk.borrow_mut();
        if disk.broken {
            return Err(ReplicaError::Drive("broken".into()));
        }
        change(&mut disk);
        Ok(())
    }
}

impl ReplicaStore for Memory {
    fn lanes(&self) -> u8 {
        self.disk.borrow().lanes()
    }

    fn sealed(&self) -> bool {
        self.disk.borrow().sealed
    }

    async fn apply(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        if !self.has_room(record, true) {
            return Err(ReplicaError::Full);
        }
        let step = Step::Apply(Kept::of(record));
        self.step(record.lane, step, data_blocks(record)).await?;
        if !matches!(record.what, What::Snapshot(_)) {
            // What was damaged is not read any more.
            let mut disk = self.disk.borrow_mut();
            for block in record.blocks() {
                disk.damaged.remove(&(record.lane, block));
            }
        }
        Ok(())
    }

    async fn copy(&self, record: &Rc<Held>, s0: Stamp) -> Result<(), ReplicaError> {
        let step = Step::Copy(Kept::of(record), s0);
        self.step(record.lane, step, data_blocks(record)).await
    }

    async fn repair(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        let step = Step::Repair(Kept::of(record));
        self.step(record.lane, step, data_blocks(record)).await?;
        let mut disk = self.disk.borrow_mut();
        for block in record.blocks() {
            disk.damaged.remove(&(record.lane, block));
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), ReplicaError> {
        // Another flush may end first, and has then taken steps that this one covers as well.
        let total = |l: &Lane| l.flushes + l.log.len() as u64;
        let covers: Vec<_> = self.disk.borrow().lanes.iter().map(total).collect();
        self.keep(|disk| {
            for (lane, covers) in disk.lanes.iter_mut().zip(covers) {
                let steps = covers.saturating_sub(lane.flushes) as usize;
                lane.flushes += steps as u64;
                for step in lane.log.drain(..steps) {
                    lane.flushed.take(&step);
                }
            }
        })
        .await
    }

    async fn read(
        &self,
        tree: Tree,
        blocks: Range<u64>,
        mut into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, ReplicaError>) {
        self.take_time().await;
        let disk = self.disk.borrow();
        let lane = tree.lane;
        let of = match disk.lane(lane).tree(tree.snapshot) {
            Ok(of) => of,
            Err(none) => return (into, Err(none)),
        };
        let mut entries = Vec::new();
        for (n, block) in blocks.enumerate() {
            if disk.damaged.contains(&(lane, block)) {
                return (into, Err(ReplicaError::Damaged { lane, block }));
            }
            let found = of.get(&block);
            let bytes = found.map_or([0; BLOCK_BYTES], Version::bytes);
            into[n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES].copy_from_slice(&bytes);
            entries.push(found.map_or(Entry::ABSENT, |v| v.entry));
        }
        drop(disk);
        (into, Ok(entries))
    }

    async fn unsettled(&self, lane: u8) -> Result<Unsettled, ReplicaError> {
        self.take_time().await;
        let disk = self.disk.borrow();
        let records = disk.lane(lane).records.values();
        Ok(Unsettled {
            records: records.map(|k| k.record.clone()).collect(),
            leaves: None,
        })
    }

    async fn fetch(&self, lane: u8, stamp: Stamp) -> Result<Option<Rc<Held>>, ReplicaError> {
        let found = self.disk.borrow().lane(lane).records.get(&stamp).cloned();
        let Some(kept) = found else { return Ok(None) };
        let damaged = self.disk.borrow().damaged.clone();
        if let Some(block) = kept.record.blocks().find(|b| damaged.contains(&(lane, *b))) {
            return Err(ReplicaError::Damaged { lane, block });
        }
        let What::Write {
            first, crcs, tags, ..
        } = &kept.record.what
        else {
            return Ok(Some(kept.record));
        };
        let mut buffer = self.handle.buffers().take(kept.data.len()).await;
        buffer[..kept.data.len()].copy_from_slice(&kept.data);
        let what = What::Write {
            first: *first,
            crcs: crcs.clone(),
            tags: tags.clone(),
            data: Some(Rc::new(buffer)),
        };
        let record = Held {
            what,
            ..*kept.record
        };
        Ok(Some(Rc::new(record)))
    }

    async fn summaries(
        &self,
        tree: Tree,
        level: u8,
        first: u64,
        count: u32,
    ) -> Result<Vec<u32>, ReplicaError> {
        self.take_time().await;
        let disk = self.disk.borrow();
        let blocks = disk.lane(tree.lane).tree(tree.snapshot)?;
        let nodes = first..first + u64::from(count);
        let shape = disk.shape();
        let all = nodes.map(|n| summary_of(shape, blocks, level, n));
        Ok(all.collect())
    }

    async fn leaf(&self, tree: Tree, leaf: u64) -> Result<Vec<(u64, Entry)>, ReplicaError> {
        self.take_time().await;
        let disk = self.disk.borrow();
        let within = disk
            .lane(tree.lane)
            .tree(tree.snapshot)?
            .range(summary::blocks_of(disk.shape(), &(leaf..leaf + 1)));
        Ok(within.map(|(block, v)| (*block, v.entry)).collect())
    }

    fn snapshots(&self) -> Vec<(SnapshotId, u8)> {
        let disk = self.disk.borrow();
        let all = disk.lanes.iter().flat_map(|l| l.now.snapshots.keys());
        let mut found = BTreeMap::new();
        for id in all {
            *found.entry(*id).or_default() += 1;
        }
        found.into_iter().collect()
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), ReplicaError> {
        for lane in 0..self.lanes() {
            self.step(lane, Step::Delete(id), 0).await?;
        }
        self.flush().await
    }

    fn settled(&self, lane: u8) -> Stamp {
        self.disk.borrow().lane(lane).settled.unwrap_or(NEVER)
    }

    fn settle(&self, lane: u8, stamp: Stamp) {
        let resyncing = self.disk.borrow().promise;
        let resyncing = resyncing.is_some_and(|p| p.state == Standing::Resyncing);
        assert!(
            !resyncing || planted::is(Bug::ReclaimedInResync),
            "what is erased stays known while blocks are copied"
        );
        let mut disk = self.disk.borrow_mut();
        let lane = &mut disk.lanes[usize::from(lane)];
        // It may have been told as much while it was copied to: now what was erased goes.
        if lane.now.settled <= Some(stamp) {
            lane.now.take(&Step::Settle(stamp));
            lane.log.push(Step::Settle(stamp));
        }
    }

    fn has_room(&self, record: &Held, rolled: bool) -> bool {
        let disk = self.disk.borrow();
        let lane = disk.lane(record.lane);
        let times = match rolled && !planted::is(Bug::FullListRefuses) {
            true => 2,
            false => 1,
        };
        disk.list_max == 0
            || lane.settled >= Some(record.last())
            || lane.records.contains_key(&record.stamp)
            || lane.records.len() < times * disk.list_max
    }

    fn copied_from(&self, lane: u8, s0: Stamp) {
        self.settle_here(lane, s0);
    }

    fn settle_here(&self, lane: u8, stamp: Stamp) {
        let mut disk = self.disk.borrow_mut();
        let lane = &mut disk.lanes[usize::from(lane)];
        if lane.now.settled < Some(stamp) {
            lane.now.take(&Step::SettleHere(stamp));
            lane.log.push(Step::SettleHere(stamp));
        }
    }

    fn promise(&self) -> Option<Promise> {
        self.disk.borrow().promise
    }

    async fn keep_promise(&self, promise: Promise) -> Result<(), ReplicaError> {
        self.disk.borrow_mut().promising = Some(promise);
        self.keep(|disk| {
            disk.promising = None;
            disk.promise = Some(promise);
        })
        .await
    }

    fn set(&self) -> KeptSet {
        self.disk.borrow().set.clone()
    }

    async fn keep_set(&self, set: &KeptSet) -> Result<(), ReplicaError> {
        self.keep(|disk| disk.set = set.clone()).await
    }

    fn boot(&self) -> Id {
        let boots = self.disk.borrow().boots;
        std::array::from_fn(|i| (boots >> (8 * (i % 8))) as u8)
    }

    fn space(&self) -> u64 {
        self.disk.borrow().space
    }

    fn volatile(&self) -> bool {
        self.volatile
    }
}
