//! The random workload: workers that read, write, erase and flush lanes, and one that takes, clones, restores and deletes snapshots.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::VolumeId;
use super::super::engine::{Store, StoreError};
use super::super::types::SnapshotId;
use super::oracle::{Changes, History, Id, Must, Writes};
use crate::reactor::Handle;

/// A lane, as it should be.
#[derive(Clone, Default)]
pub struct Lane {
    pub history: Rc<History>,
    pub writers: u32,
    pub erasing: bool,
}

/// What the blocks of a snapshot's lanes show.
pub type Shown = Rc<Vec<BTreeMap<u64, Id>>>;

/// A snapshot, as it should be: what its lanes may show, or do show.
#[derive(Clone)]
pub struct Snap {
    pub began: u64,
    pub ended: u64,
    pub acked: bool,
    pub lanes: Vec<Rc<History>>,
    pub shown: Option<Shown>,
}

/// What is being done with the catalogue: after a crash it may have happened or not, and is done again.
#[derive(Clone, Debug, PartialEq)]
pub enum Admin {
    Create(u8),
    Snapshot(u8, u8),
    Clone(u8, u8, u8),
    Restore(u8, u8),
    DeleteSnapshot(u8, u8),
    DeleteVolume(u8),
}

/// Everything that outlives a crash.
#[derive(Clone)]
pub struct Model {
    pub changes: Changes,
    pub lanes_each: u8,
    pub windows: Vec<Range<u64>>,
    pub volumes: BTreeMap<u8, Vec<Lane>>,
    /// Volumes that workers keep away from.
    pub gated: Option<u8>,
    pub snaps: BTreeMap<(u8, u8), Snap>,
    pub admin: Option<Admin>,
    pub next_name: u8,
    pub full: u64,
    pub errors: u64,
}

/// A volume that only takes space.
pub const BALLAST: u8 = 252;

pub fn volume_id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

pub fn snapshot_id(n: u8) -> SnapshotId {
    SnapshotId([n; 16])
}

impl Model {
    /// For messages.
    pub fn state(&self) -> String {
        let lanes = self.volumes.iter().map(|(v, l)| {
            (
                v,
                l.iter().map(|l| (l.writers, l.erasing)).collect::<Vec<_>>(),
            )
        });
        format!(
            "gated {:?}, {:?}, writers {:?}",
            self.gated,
            self.admin,
            lanes.collect::<Vec<_>>()
        )
    }

    pub fn empty_history(&self) -> History {
        let blocks = self.windows.iter().flat_map(Clone::clone);
        blocks.map(|b| (b, Writes::One(0))).collect()
    }

    pub fn empty_volume(&self) -> Vec<Lane> {
        let history = Rc::new(self.empty_history());
        let lane = |_| Lane {
            history: history.clone(),
            ..Lane::default()
        };
        (0..self.lanes_each).map(lane).collect()
    }
}

/// What a life of the store is worked on with.
#[derive(Clone)]
pub struct Ctx {
    pub handle: Handle,
    pub store: Store,
    pub model: Rc<RefCell<Model>>,
    pub left: Rc<Cell<i64>>,
    pub mix: Mix,
    /// Errors of damaged blocks are expected.
    pub faults: bool,
    /// Stops the world so many operations of the drive later, if checkpoints are what is to be interrupted.
    pub aim: Option<Rc<dyn Fn(u64)>>,
    /// What is unique to lanes and snapshots is looked for when they are verified, which takes long.
    pub unique: bool,
}

/// How often what happens.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub read: u32,
    pub write: u32,
    pub erase: u32,
    pub flush: u32,
    pub fua: f64,
    pub large: f64,
    pub pause_us: u64,
}

impl Mix {
    pub fn random(random: &mut StdRng) -> Self {
        Self {
            read: random.random_range(0..10),
            write: random.random_range(5..40),
            erase: random.random_range(0..4),
            flush: random.random_range(0..6),
            fua: [0.0, 0.05, 0.5][random.random_range(0..3)],
            large: [0.0, 0.05, 0.3][random.random_range(0..3)],
            pause_us: [0, 0, 50, 2000, 200_000][random.random_range(0..5)],
        }
    }

    /// Large writes, and a flush now and then.
    pub fn hot(random: &mut StdRng) -> Self {
        Self {
            read: [2, 20][random.random_range(0..2)],
            write: 30,
            erase: 0,
            flush: random.random_range(2..8),
            fua: 0.0,
            large: 1.0,
            pause_us: 0,
        }
    }
}

const SHORT: Duration = Duration::from_micros(20);

fn fails(what: &str, why: impl std::fmt::Display) -> ! {
    panic!("{what}: {why}");
}

impl Ctx {
    fn pick(&self, random: &mut StdRng) -> Option<(u8, u8, Range<u64>)> {
        let model = self.model.borrow();
        let volumes: Vec<u8> = model
            .volumes
            .keys()
            .copied()
            .filter(|v| model.gated != Some(*v))
            .collect();
        if volumes.is_empty() {
            return None;
        }
        let volume = volumes[random.random_range(0..volumes.len())];
        let window = model.windows[random.random_range(0..model.windows.len())].clone();
        let most = if random.random_bool(self.mix.large) {
            256
        } else {
            8
        };
        let first = random.random_range(window.clone());
        let len = random.random_range(1..=most).min(window.end - first);
        Some((
            volume,
            random.random_range(0..model.lanes_each),
            first..first + len,
        ))
    }

    /// Works until there is nothing left to do.
    pub async fn worker(self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let Mix {
            read,
            write,
            erase,
            flush,
            ..
        } = self.mix;
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            if self.mix.pause_us > 0 {
                let pause = random.random_range(0..self.mix.pause_us);
                self.handle.sleep(Duration::from_micros(pause)).await;
            }
            let mut kind = random.random_range(0..read + write + erase + flush);
            if kind < flush {
                self.flush().await;
                continue;
            }
            kind -= flush;
            let Some((volume, lane, blocks)) = self.pick(&mut random) else {
                self.handle.sleep(SHORT).await;
                continue;
            };
            if kind < write {
                let fua = random.random_bool(self.mix.fua);
                self.write(volume, lane, blocks, fua).await;
            } else if kind < write + erase {
                let blocks = match random.random_range(0..4) {
                    0 => blocks,
                    1 => blocks.start..blocks.start + 300,
                    2 => blocks.start / 2..(blocks.start + 1) * 3,
                    _ => blocks.start..1 << 27,
                };
                self.erase(volume, lane, blocks).await;
            } else {
                self.read(volume, lane, blocks).await;
            }
        }
    }

    fn lane<R>(
        &self,
        volume: u8,
        lane: u8,
        f: impl FnOnce(&mut Lane, &mut Changes) -> R,
    ) -> Option<R> {
        let model = &mut *self.model.borrow_mut();
        if model.gated == Some(volume) {
            return None;
        }
        let lane = model.volumes.get_mut(&volume)?.get_mut(lane as usize)?;
        Some(f(lane, &mut model.changes))
    }

    /// Leaves a lane, even of a volume that has been gated since.
    fn leave<R>(&self, volume: u8, lane: u8, f: impl FnOnce(&mut Lane, &mut Changes) -> R) -> R {
        let model = &mut *self.model.borrow_mut();
        let lane = model
            .volumes
            .get_mut(&volume)
            .and_then(|v| v.get_mut(lane as usize));
        f(
            lane.expect("it is not deleted while it is used"),
            &mut model.changes,
        )
    }

    fn tag(volume: u8, lane: u8) -> u64 {
        0x6b65_0000 | u64::from(volume) << 8 | u64::from(lane)
    }

    fn failed(&self, id: Id, e: StoreError) {
        let mut model = self.model.borrow_mut();
        match e {
            StoreError::Full => {
                model.full += 1;
                model.changes.all[id as usize].failed = true;
            }
            _ if self.faults => model.errors += 1,
            e => fails("a write failed", e),
        }
    }

    pub async fn write(&self, volume: u8, lane: u8, blocks: Range<u64>, fua: bool) {
        let len = (blocks.end - blocks.start) as usize * 4096;
        let mut buffer = self.handle.buffers().take(len).await;
        let id = loop {
            let entered = self.lane(volume, lane, |l, changes| {
                if l.erasing {
                    return None;
                }
                l.writers += 1;
                Some(changes.issue(
                    Self::tag(volume, lane),
                    blocks.start,
                    blocks.end - blocks.start,
                    false,
                    Rc::make_mut(&mut l.history),
                ))
            });
            match entered {
                None => return,
                Some(Some(id)) => break id,
                Some(None) => self.handle.sleep(SHORT).await,
            }
        };
        for (n, block) in blocks.clone().enumerate() {
            self.model
                .borrow()
                .changes
                .fill(id, block, &mut buffer[n * 4096..(n + 1) * 4096]);
        }
        let store_lane = self
            .store
            .lane(volume_id(volume), lane)
            .expect("the lane is there");
        let (_, result) = store_lane.write(blocks, buffer, fua).await;
        match result {
            Ok(()) => self.model.borrow_mut().changes.acked(id, fua),
            Err(e) => self.failed(id, e),
        }
        self.leave(volume, lane, |l, _| l.writers -= 1);
        if result.is_err() {
            self.handle.sleep(Duration::from_millis(1)).await;
        }
    }

    async fn erase(&self, volume: u8, lane: u8, blocks: Range<u64>) {
        let id = loop {
            let entered = self.lane(volume, lane, |l, changes| {
                if l.erasing || l.writers > 0 {
                    return None;
                }
                l.erasing = true;
                Some(changes.issue(
                    Self::tag(volume, lane),
                    blocks.start,
                    blocks.end - blocks.start,
                    true,
                    Rc::make_mut(&mut l.history),
                ))
            });
            match entered {
                None => return,
                Some(Some(id)) => break id,
                Some(None) => self.handle.sleep(SHORT).await,
            }
        };
        let store_lane = self
            .store
            .lane(volume_id(volume), lane)
            .expect("the lane is there");
        match store_lane.erase(blocks).await {
            Ok(()) => self.model.borrow_mut().changes.acked(id, false),
            Err(e) => self.failed(id, e),
        }
        self.leave(volume, lane, |l, _| l.erasing = false);
    }

    /// Fills the drive, piece by piece, until no more than `left` blocks and a piece are above its reserve.
    pub async fn ballast(&self, piece: u64, left: u64) {
        let created = self
            .store
            .create_lanes(volume_id(BALLAST), &[0], 1, 1 << 40)
            .await;
        created.expect("it is new");
        let lane = self.store.lane(volume_id(BALLAST), 0).expect("made above");
        let mut at = 0;
        loop {
            let space = self.store.space();
            if space.free < space.reserve + piece + left {
                break;
            }
            let buffer = self.handle.buffers().take(piece as usize * 4096).await;
            let (_, result) = lane.write(at..at + piece, buffer, false).await;
            result.expect("there is room");
            at += piece;
        }
        self.store.checkpoint().await.expect("a checkpoint");
    }

    pub async fn flush(&self) {
        let began = self.model.borrow_mut().changes.now();
        match self.store.flush().await {
            Ok(()) => self.model.borrow_mut().changes.flushed(began),
            Err(_) if self.faults => {}
            Err(e) => fails("a flush failed", e),
        }
    }

    async fn read(&self, volume: u8, lane: u8, blocks: Range<u64>) {
        let began = self.model.borrow_mut().changes.now();
        // The volume may be restored meanwhile; then this read says nothing.
        if self.lane(volume, lane, |l, _| l.writers += 1).is_none() {
            return;
        }
        let shown = self.shown(volume, lane, blocks).await;
        let now = self.model.borrow_mut().changes.now();
        self.leave(volume, lane, |l, changes| {
            l.writers -= 1;
            for (block, id) in shown {
                let Some(id) = id else { continue };
                let writes = &l.history[&block];
                match changes.candidates(block, writes, id, Must::AckedBy(began), now) {
                    Ok(may) => changes.observe(block, writes, &may, began),
                    Err(e) => fails(&format!("a read of volume {volume} lane {lane}"), e),
                }
            }
        });
    }

    /// What blocks show; `None` for those that cannot be read.
    pub async fn shown(&self, volume: u8, lane: u8, blocks: Range<u64>) -> Vec<(u64, Option<Id>)> {
        let len = (blocks.end - blocks.start) as usize;
        let mut buffer = self.handle.buffers().take(len * 4096).await;
        buffer[..len * 4096].fill(0xa5);
        let Some(store_lane) = self.store.lane(volume_id(volume), lane) else {
            fails(
                "a read",
                format!("volume {volume} lane {lane} is not there"),
            );
        };
        let (buffer, result) = store_lane.read(blocks.clone(), buffer).await;
        if let Err(e) = result {
            if !self.faults {
                fails(
                    &format!("a read of volume {volume} lane {lane} blocks {blocks:?}"),
                    e,
                );
            }
            self.model.borrow_mut().errors += 1;
            if len == 1 {
                return vec![(blocks.start, None)];
            }
            // Others may wait for it, and hold what is waited for below.
            drop(buffer);
            let mut all = Vec::new();
            for block in blocks {
                all.extend(Box::pin(self.shown(volume, lane, block..block + 1)).await);
            }
            return all;
        }
        let model = self.model.borrow();
        let parts = buffer[..len * 4096].chunks_exact(4096);
        let identified =
            blocks.zip(parts).map(
                |(block, bytes)| match model.changes.identify(block, bytes) {
                    Ok(id) => (block, Some(id)),
                    Err(e) => fails(&format!("a read of volume {volume} lane {lane}"), e),
                },
            );
        identified.collect()
    }

    /// What a whole lane shows.
    pub async fn shown_all(&self, volume: u8, lane: u8) -> Vec<(u64, Option<Id>)> {
        let windows = self.model.borrow().windows.clone();
        let mut all = Vec::new();
        for window in windows {
            let mut at = window.start;
            while at < window.end {
                let to = window.end.min(at + 256);
                all.extend(self.shown(volume, lane, at..to).await);
                at = to;
            }
        }
        all
    }
}
