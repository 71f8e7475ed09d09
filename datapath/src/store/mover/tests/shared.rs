//! Two stores, who uses them, and what should be on them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::super::engine::{MovedRecord, NextFamily, Store, StoreError, StoreLane};
use super::super::super::pool::{DriveFacts, PoolDrive, PoolView};
use super::super::super::types::{BLOCK_BYTES, LaneBlock, SnapshotId};
use super::super::super::{Name, VolumeId};
use super::super::{AtDrive, Conduct, MoveError, MovedKind, move_family};
use super::{BLOCKS, DISKS, LOOK, Seen, VOLUME};
use crate::reactor::Handle;

/// What a block of a volume may hold: what was acknowledged last, and what was asked for since.
pub type May = Vec<u64>;
pub type Content = BTreeMap<u64, May>;

#[derive(Default)]
pub struct Model {
    pub live: BTreeMap<VolumeId, Content>,
    /// By snapshot; false: it may be there or not.
    pub snapshots: BTreeMap<(VolumeId, SnapshotId), (bool, Content)>,
    pub next: u64,
    /// Every stamp that was ever found of the volume, and the value under it: none has two.
    pub stamps: BTreeMap<(u32, u64), u64>,
    /// The second drive was given up: what it says alone is nobody's business any more.
    pub given_up: bool,
    /// What crashes left.
    pub seen: Seen,
}

pub struct Shared {
    pub stores: RefCell<Vec<Store>>,
    /// Which drive serves a volume.
    pub home: RefCell<BTreeMap<VolumeId, usize>>,
    pub model: RefCell<Model>,
    pub handle: Handle,
    pub closed: Cell<bool>,
    pub in_flight: Cell<u32>,
    /// Held as the commander's lock is.
    pub changing: tokio::sync::Mutex<()>,
    pub copied: Cell<u64>,
    pub cancel_at: Cell<u64>,
    /// What happens when lanes are held.
    pub when_held: RefCell<Option<Box<dyn Fn()>>>,
}

pub struct At(pub Store);

impl AtDrive for At {
    async fn run<T, F, Fut>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + 'static,
    {
        work(self.0.clone()).await
    }
}

pub struct Host {
    pub shared: Rc<Shared>,
    pub to: usize,
}

impl Conduct for Host {
    fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    fn cancelled(&self) -> bool {
        self.shared.copied.get() >= self.shared.cancel_at.get()
    }

    fn copied(&self, bytes: u64) {
        self.shared.copied.set(self.shared.copied.get() + bytes);
    }

    fn lagging(&self) {}

    async fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        let _one = self.shared.changing.lock().await;
        work.await
    }

    async fn held<T>(&self, _: &[(VolumeId, u8)], work: impl Future<Output = T>) -> Option<T> {
        #[cfg(planted)]
        if super::super::super::planted::is(super::super::super::planted::Bug::MoveNotHeld) {
            return Some(work.await);
        }
        let held = self.shared.at_rest(async {
            if let Some(happens) = self.shared.when_held.take() {
                happens();
            }
            work.await
        });
        Some(held.await)
    }

    async fn switch(&self, lanes: &[(VolumeId, u8)]) {
        for (volume, _) in lanes {
            self.shared.home.borrow_mut().insert(*volume, self.to);
        }
    }
}

impl Shared {
    pub async fn at_rest<T>(&self, work: impl Future<Output = T>) -> T {
        assert!(!self.closed.replace(true), "held once");
        while self.in_flight.get() > 0 {
            self.handle.sleep(Duration::from_micros(20)).await;
        }
        let done = work.await;
        self.closed.set(false);
        done
    }

    pub fn all(&self) -> Vec<Store> {
        self.stores.borrow().clone()
    }

    pub fn lane(&self, volume: VolumeId) -> StoreLane {
        let home = self.home.borrow()[&volume];
        let lane = self.stores.borrow()[home].lane(volume, 0);
        lane.expect("the lane is where it is served")
    }

    pub fn value(&self) -> u64 {
        let mut model = self.model.borrow_mut();
        model.next += 1;
        model.next
    }

    /// Writes blocks (or, with 0, erases them), and waits until that is durable.
    pub async fn put(&self, volume: VolumeId, first: u64, count: u64, erase: bool) {
        let value = if erase { 0 } else { self.value() };
        let each = |f: &dyn Fn(&mut May)| {
            let mut model = self.model.borrow_mut();
            let content = model.live.entry(volume).or_default();
            for block in first..first + count {
                f(content.entry(block).or_insert_with(|| vec![0]));
            }
        };
        each(&|may| may.push(value));
        let lane = self.lane(volume);
        let done = if erase {
            let erased = lane.erase(first..first + count).await;
            let store = self.stores.borrow()[self.home.borrow()[&volume]].clone();
            erased.and(store.flush().await)
        } else {
            let bytes = count as usize * BLOCK_BYTES;
            let mut buffer = self.handle.buffers().take(bytes).await;
            for block in buffer[..bytes].chunks_exact_mut(BLOCK_BYTES) {
                block.fill(value as u8);
                block[..8].copy_from_slice(&value.to_le_bytes());
            }
            lane.write(first..first + count, buffer, true).await.1
        };
        done.expect("a write works");
        each(&|may| *may = vec![value]);
    }

    pub async fn look(&self, volume: VolumeId, first: u64, count: u64) -> Vec<u64> {
        let buffer = self
            .handle
            .buffers()
            .take(count as usize * BLOCK_BYTES)
            .await;
        let (buffer, read) = self.lane(volume).read(first..first + count, buffer).await;
        read.expect("a read works");
        let blocks = buffer[..count as usize * BLOCK_BYTES].chunks_exact(BLOCK_BYTES);
        blocks
            .map(|b| u64::from_le_bytes(b[..8].try_into().unwrap()))
            .collect()
    }

    /// Works on blocks that no other worker has.
    pub async fn worker(&self, n: u64, seed: u64, left: &Cell<i64>) {
        let mut random = StdRng::seed_from_u64(seed);
        while left.get() > 0 {
            left.set(left.get() - 1);
            while self.closed.get() {
                self.handle.sleep(Duration::from_micros(20)).await;
            }
            self.in_flight.set(self.in_flight.get() + 1);
            let volumes: Vec<VolumeId> = self.home.borrow().keys().copied().collect();
            let volume = volumes[random.random_range(0..volumes.len())];
            // Of two workers, each has every second run of 10 blocks.
            let run = random.random_range(0..BLOCKS / 20) * 20 + n * 10;
            let count = random.random_range(1..10);
            match random.random_range(0..10) {
                0 => self.put(volume, run, count, true).await,
                1..=5 => self.put(volume, run, count, false).await,
                _ => {
                    let seen = self.look(volume, run, count).await;
                    let model = self.model.borrow();
                    let content = model.live.get(&volume);
                    for (block, value) in (run..).zip(seen) {
                        let may = content.and_then(|c| c.get(&block));
                        assert_eq!(may.map_or(0, |m| m[0]), value, "{volume} block {block}");
                    }
                }
            }
            self.in_flight.set(self.in_flight.get() - 1);
            let pause = random.random_range(0..400);
            self.handle.sleep(Duration::from_micros(pause)).await;
        }
    }

    pub async fn snapshot(&self, volume: VolumeId, id: SnapshotId) {
        let _one = self.changing.lock().await;
        self.at_rest(async {
            let store = self.stores.borrow()[self.home.borrow()[&volume]].clone();
            let content = self.model.borrow().live.get(&volume).cloned();
            let there = (false, content.unwrap_or_default());
            self.model
                .borrow_mut()
                .snapshots
                .insert((volume, id), there);
            store.snapshot(&[(volume, id)]).await.expect("a snapshot");
            let mut model = self.model.borrow_mut();
            model.snapshots.get_mut(&(volume, id)).unwrap().0 = true;
        })
        .await;
    }

    pub async fn delete_snapshot(&self, volume: VolumeId, id: SnapshotId) {
        let _one = self.changing.lock().await;
        if let Some(there) = self.model.borrow_mut().snapshots.get_mut(&(volume, id)) {
            there.0 = false;
        }
        for store in self.all() {
            store.delete_snapshot(volume, id).await.expect("deleting");
        }
        self.model.borrow_mut().snapshots.remove(&(volume, id));
    }

    pub async fn clone_of(&self, volume: VolumeId, id: SnapshotId, to: VolumeId) {
        let _one = self.changing.lock().await;
        let home = self.home_of_snapshot(volume, id).expect("it is there");
        let store = self.stores.borrow()[home].clone();
        store.clone_lanes(volume, id, to).await.expect("a clone");
        let mut model = self.model.borrow_mut();
        let content = model.snapshots[&(volume, id)].1.clone();
        model.live.insert(to, content);
        self.home.borrow_mut().insert(to, home);
    }

    pub fn home_of_snapshot(&self, volume: VolumeId, id: SnapshotId) -> Option<usize> {
        let stores = self.stores.borrow();
        let has = |s: &Store| {
            let all = s.snapshots();
            let mut all = all.iter();
            all.any(|s| s.volume == volume && s.snapshot == id && !s.hidden)
        };
        stores.iter().position(has)
    }

    pub async fn move_to(self: &Rc<Self>, to: usize) -> Result<(), MoveError> {
        let (source, destination) = {
            let stores = self.stores.borrow();
            (At(stores[1 - to].clone()), At(stores[to].clone()))
        };
        let host = Host {
            shared: self.clone(),
            to,
        };
        loop {
            match source.0.next_family() {
                NextFamily::Family(family) => {
                    move_family(&source, &destination, &host, family).await?;
                }
                NextFamily::Undecided => panic!("no drive failed"),
                NextFamily::Deleting => self.handle.sleep(Duration::from_millis(20)).await,
                NextFamily::Nothing => return Ok(()),
            }
        }
    }

    /// What the drives say; `without` one of them.
    pub fn view(&self, without: Option<usize>) -> PoolView {
        let stores = self.stores.borrow();
        let drives = stores.iter().zip(DISKS).enumerate();
        let drives = drives.map(|(n, (store, name))| PoolDrive {
            id: Name::new(name).unwrap(),
            number: None,
            failed: store.failed(),
            state: store.state(),
            facts: (without != Some(n)).then(|| DriveFacts {
                identity: store.identity(),
                state: store.state(),
                size_bytes: 0,
                volatile_cache: true,
                space: store.space(),
                counters: store.counters(),
                failed: store.failed(),
                lanes: store.lanes(),
                snapshots: store.snapshots(),
            }),
        });
        PoolView {
            id: Name::new("p").unwrap(),
            drives: drives.collect(),
        }
    }

    /// What opening a pool does.
    pub async fn put_right(&self) {
        let view = self.view(None);
        let stores = self.all();
        {
            let seen = &mut self.model.borrow_mut().seen;
            seen.staying += view.staying().len();
            seen.stale += view.stale().len();
        }
        let degraded = [0, 1].map(|gone| self.view(Some(gone)).volumes());
        for (place, volume, lane) in view.staying() {
            stores[place].stay(volume, lane).await.expect("it stays");
        }
        for (place, copies) in view.stale() {
            stores[place].drop_copies(&copies).await.expect("they go");
        }
        let view = self.view(None);
        assert!(view.stale().is_empty() && view.staying().is_empty());
        let mut home = self.home.borrow_mut();
        for (id, volume) in view.volumes() {
            let places = volume.places().expect("volumes are complete");
            home.insert(id, places[0]);
            // Without one of the drives, it is served from where it is or not at all.
            let given_up = self.model.borrow().given_up;
            for alone in degraded.iter().skip(usize::from(given_up)) {
                let served = alone.get(&id).and_then(|v| v.lanes[0]);
                assert!(
                    served.is_none_or(|at| at == places[0]),
                    "{id} is served from an old copy"
                );
            }
        }
    }

    /// Everything that was acknowledged is there, once.
    pub async fn verify(&self) {
        let volumes: Vec<VolumeId> = self.model.borrow().live.keys().copied().collect();
        for &volume in &volumes {
            let lanes = |s: &Store| s.lanes().iter().filter(|l| l.volume == volume).count();
            let copies: usize = self.stores.borrow().iter().map(lanes).sum();
            assert_eq!(copies, 1, "live lanes of {volume}");
            let content = self.model.borrow().live[&volume].clone();
            let now = self.compare(volume, &content).await;
            self.model.borrow_mut().live.insert(volume, now);
        }
        self.look_at_stamps().await;
        let snapshots = self.model.borrow().snapshots.clone();
        for ((volume, id), (surely, content)) in snapshots {
            let Some(home) = self.home_of_snapshot(volume, id) else {
                assert!(!surely, "snapshot {id:?} is gone");
                self.model.borrow_mut().snapshots.remove(&(volume, id));
                continue;
            };
            // All of a family is on one drive.
            assert_eq!(self.home.borrow().get(&volume), Some(&home), "{id:?}");
            let store = self.stores.borrow()[home].clone();
            store.clone_lanes(volume, id, LOOK).await.expect("a clone");
            self.home.borrow_mut().insert(LOOK, home);
            let now = self.compare(LOOK, &content).await;
            store.delete_lanes(LOOK).await.expect("deleting");
            self.home.borrow_mut().remove(&LOOK);
            let mut model = self.model.borrow_mut();
            model.snapshots.insert((volume, id), (true, now));
        }
    }

    async fn look_at_stamps(&self) {
        let store = self.all()[self.home.borrow()[&VOLUME]].clone();
        let NextFamily::Family(family) = store.next_family() else {
            panic!("there is a family");
        };
        let live = |r: &&MovedRecord| r.kind == MovedKind::Live && r.volume == VOLUME;
        let live = family.iter().find(live).expect("it is of that family");
        let mut next = Some(LaneBlock(0));
        while let Some(at) = next {
            let part = store.differences(live.handle, None, at).await;
            let part = part.expect("it is read");
            let blocks = part.blocks.iter().zip(part.data.chunks_exact(BLOCK_BYTES));
            for (block, data) in blocks {
                let value = u64::from_le_bytes(data[..8].try_into().unwrap());
                let stamp = (block.stamp.epoch, block.stamp.seq);
                let first = *self.model.borrow_mut().stamps.entry(stamp).or_insert(value);
                assert_eq!(first, value, "stamp {stamp:?} is of two writes");
            }
            next = part.next;
        }
        store.unpin();
    }

    pub async fn compare(&self, volume: VolumeId, content: &Content) -> Content {
        let mut now = Content::new();
        for first in (0..BLOCKS).step_by(100) {
            for (block, value) in (first..).zip(self.look(volume, first, 100).await) {
                let may = content.get(&block).cloned().unwrap_or_else(|| vec![0]);
                assert!(
                    may.contains(&value),
                    "{volume} block {block}: {value} of {may:?}"
                );
                now.insert(block, vec![value]);
            }
        }
        now
    }
}
