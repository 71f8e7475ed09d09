//! The work: the stream, what comes again and late, copies, promises, and looks at all of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::super::engine::{Replica, Store};
use super::super::super::types::{BLOCK_BYTES, Stamp};
use super::ID;
use super::model::{Base, Does, Lane, Model, NEVER, Rec, State, ZERO, check_bytes, content, held};
use crate::reactor::Handle;
use crate::replication::held::What;
use crate::replication::seam::{
    Entry, KeptSet, Kind, Promise, ReplicaError, ReplicaStore, Standing,
};
use crate::replication::wire::resync::Tree;

#[derive(Clone)]
pub struct Ctx {
    pub handle: Handle,
    pub store: Store,
    pub replica: Replica,
    pub model: Rc<RefCell<Model>>,
    pub left: Rc<Cell<i64>>,
    pub pause_us: u64,
}

impl Ctx {
    pub async fn worker(self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            if self.pause_us > 0 {
                let pause = random.random_range(0..self.pause_us);
                self.handle.sleep(Duration::from_micros(pause)).await;
            }
            let lane = random.random_range(0..self.model.borrow().lanes.len());
            match random.random_range(0..40) {
                0..4 => self.flush().await,
                4..7 => self.settle(lane, &mut random),
                7 => self.promise(&mut random).await,
                8 => self.keep_set(&mut random).await,
                9 => drop(self.store.checkpoint().await),
                10..13 => self.read(lane, &mut random).await,
                13..16 => self.fetch(lane, &mut random).await,
                _ => {
                    let chosen = self.choose(lane, &mut random);
                    if let Some(stamp) = chosen {
                        self.apply(lane, stamp).await;
                    }
                }
            }
        }
    }

    /// The next record of the stream, one that came before, or one that was left out.
    pub fn choose(&self, lane: usize, random: &mut StdRng) -> Option<Stamp> {
        let model = &mut *self.model.borrow_mut();
        let (epoch, window) = (model.epoch, model.window);
        let lane = &mut model.lanes[lane];
        let kind = random.random_range(0..10);
        let wanted: Option<&[State]> = match kind {
            0 => Some(&[State::Held]),
            1 => Some(&[State::Applying, State::Written, State::Stable]),
            _ => None,
        };
        if let Some(wanted) = wanted {
            let some: Vec<Stamp> = lane
                .all
                .iter()
                .filter(|(_, r)| wanted.contains(&r.state))
                .map(|(s, _)| *s)
                .rev()
                .take(30)
                .collect();
            if some.is_empty() {
                return None;
            }
            return Some(some[random.random_range(0..some.len())]);
        }
        let stamp = lane.give(epoch, random, window);
        // A stamp that was reserved: its record comes later, or never.
        (kind != 2).then_some(stamp)
    }

    pub async fn apply(&self, lane: usize, stamp: Stamp) {
        let rec = {
            let model = &mut *self.model.borrow_mut();
            let rec = model.lanes[lane].all.get_mut(&stamp).expect("it was given");
            if rec.state == State::Held {
                rec.state = State::Applying;
            }
            rec.clone()
        };
        let record = held(&self.handle, lane as u8, stamp, &rec, true).await;
        let result = self.replica.apply(&record).await;
        let model = &mut *self.model.borrow_mut();
        let rec = model.lanes[lane].all.get_mut(&stamp).expect("it was given");
        match result {
            Ok(()) if rec.state == State::Applying => rec.state = State::Written,
            Ok(()) => {}
            Err(ReplicaError::Full) => {
                model.full += 1;
                if rec.state == State::Applying {
                    rec.state = State::Held;
                }
            }
            Err(e) => panic!("a record is not applied: {e}"),
        }
    }

    pub async fn flush(&self) {
        let written: Vec<(usize, Stamp)> = {
            let model = self.model.borrow();
            let lanes = model.lanes.iter().enumerate();
            let written = |(n, lane): (usize, &Lane)| -> Vec<(usize, Stamp)> {
                let all = lane.all.iter().filter(|(_, r)| r.state == State::Written);
                all.map(|(s, _)| (n, *s)).collect()
            };
            lanes.flat_map(written).collect()
        };
        self.replica.flush().await.expect("a flush");
        let model = &mut *self.model.borrow_mut();
        for (lane, stamp) in written {
            let rec = model.lanes[lane].all.get_mut(&stamp).expect("it was given");
            rec.state = State::Stable;
        }
    }

    pub fn settle(&self, lane: usize, random: &mut StdRng) {
        let model = &mut *self.model.borrow_mut();
        let state = &mut model.lanes[lane];
        let most = state.may_settle();
        let between = state.all.range(state.told.0..=most);
        let ends: Vec<Stamp> = between
            .map(|(s, r)| r.last(*s))
            .filter(|l| *l <= most)
            .collect();
        let Some(&to) = ends.get(random.random_range(0..ends.len().max(1))) else {
            return;
        };
        state.kill_up_to(to);
        state.told.0 = state.told.0.max(to);
        self.replica.settle(lane as u8, to);
        assert_eq!(self.replica.settled(lane as u8), state.told.0);
    }

    pub async fn promise(&self, random: &mut StdRng) {
        let promise = {
            let model = &mut *self.model.borrow_mut();
            if model.promise.1.is_some() {
                return;
            }
            let before = model.promise.0.map_or(1, |p| p.epoch);
            let next = Promise {
                epoch: before + random.random_range(0..2),
                incarnation: random.random(),
                version: random.random_range(0..100),
                state: match model.resyncing {
                    true => Standing::Resyncing,
                    false => Standing::Promised,
                },
            };
            model.promise.1 = Some(next);
            next
        };
        self.replica.keep_promise(promise).await.expect("a promise");
        assert_eq!(self.replica.promise(), Some(promise));
        self.model.borrow_mut().promise = (Some(promise), None);
    }

    pub async fn keep_set(&self, random: &mut StdRng) {
        let set = {
            let model = &mut *self.model.borrow_mut();
            if model.set.1.is_some() {
                return;
            }
            let mut members = vec![[1; 16], [2; 16], [12; 16]];
            members.truncate(random.random_range(0..=3));
            if random.random_bool(0.5) {
                members.push(ID);
                members.sort_unstable();
            }
            let next = KeptSet {
                epoch: model.epoch,
                version: model.set.0.version + 1,
                members,
            };
            model.set.1 = Some(next.clone());
            next
        };
        self.replica.keep_set(&set).await.expect("a set");
        assert_eq!(self.replica.set(), set);
        self.model.borrow_mut().set = (set, None);
    }

    /// A read while things go on: what it shows was applied, and is not older than what was there before.
    pub async fn read(&self, lane: usize, random: &mut StdRng) {
        let window = self.model.borrow().window;
        let first = random.random_range(0..window);
        let blocks = first..(first + random.random_range(1..9)).min(window);
        let least: Vec<Stamp> = {
            let model = self.model.borrow();
            let lane = &model.lanes[lane];
            let stamp = |block: u64| {
                let bases = lane.bases.get(&block);
                let base = bases.map_or(NEVER, |b| b[0]);
                let expected = lane.expected(block, base);
                match expected.kind {
                    Kind::Erased | Kind::Absent => ZERO,
                    _ if bases.is_some() => ZERO,
                    _ => expected.stamp,
                }
            };
            blocks.clone().map(stamp).collect()
        };
        let len = (blocks.end - blocks.start) as usize * BLOCK_BYTES;
        let buffer = self.handle.buffers().take(len).await;
        let (buffer, read) = self
            .replica
            .read(Tree::live(lane as u8), blocks.clone(), buffer)
            .await;
        let entries = read.expect("a read");
        let sealed = self.replica.sealed();
        for ((n, block), entry) in blocks.enumerate().zip(&entries) {
            let bytes = &buffer[n * BLOCK_BYTES..][..BLOCK_BYTES];
            check_bytes((lane as u8, sealed), block, entry, bytes);
            let absent = matches!(entry.kind, Kind::Absent | Kind::Erased);
            // A copy may have come meanwhile.
            let copied = self.model.borrow().lanes[lane].bases.contains_key(&block);
            assert!(
                absent || copied || entry.stamp >= least[n],
                "{entry:?} of block {block} after {:?}: {:?}",
                least[n],
                self.model.borrow().lanes[lane].over(block)
            );
        }
    }

    pub async fn fetch(&self, lane: usize, random: &mut StdRng) {
        let stamp = {
            let model = self.model.borrow();
            let lane = &model.lanes[lane];
            let there = |r: &Rec| matches!(r.state, State::Written | State::Stable);
            let some = lane.all.iter().rev().filter(|(_, r)| there(r)).take(50);
            let some: Vec<Stamp> = some.map(|(s, _)| *s).collect();
            if some.is_empty() {
                return;
            }
            some[random.random_range(0..some.len())]
        };
        self.fetch_one(lane, stamp).await;
    }

    /// A record above settled is whole, whatever was written over it.
    pub async fn fetch_one(&self, lane: usize, stamp: Stamp) {
        let fetched = self.replica.fetch(lane as u8, stamp).await;
        let fetched = fetched.unwrap_or_else(|e| panic!("{stamp:?} is not whole: {e}"));
        let (rec, settled) = {
            let model = self.model.borrow();
            let lane = &model.lanes[lane];
            (lane.all[&stamp].clone(), lane.told.0)
        };
        let Some(record) = fetched else {
            assert!(rec.last(stamp) <= settled, "{stamp:?} is not listed");
            return;
        };
        let expected = held(&self.handle, lane as u8, stamp, &rec, false).await;
        assert!(record.same(&expected), "{record:?} is not {expected:?}");
        if let What::Write { data, .. } = &record.what {
            let data = data.as_ref().expect("it was fetched");
            for (n, block) in rec.blocks.clone().enumerate() {
                let mut bytes = [0; BLOCK_BYTES];
                content(lane as u8, block, rec.stamp_of(stamp, block), &mut bytes);
                assert!(
                    data[n * BLOCK_BYTES..][..BLOCK_BYTES] == bytes,
                    "block {block}"
                );
            }
        }
    }

    /// Copies blocks as of `s0`, while the stream goes on above it.
    pub async fn copier(self, seed: u64, s0: Stamp) {
        let mut random = StdRng::seed_from_u64(seed);
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            let (lane, first, len) = {
                let model = self.model.borrow();
                let first = random.random_range(0..model.window);
                let len = random.random_range(1..12u64).min(model.window - first);
                (0, first, len)
            };
            let does = match random.random_range(0..5) {
                0 => Does::Erase,
                1 => Does::Poison,
                _ => Does::Write,
            };
            let rec = Rec {
                does,
                blocks: first..first + len,
                state: State::Dead,
                sealed: self.replica.sealed(),
            };
            // Some stamp up to s0, and at times some blocks are above.
            let stamp = Stamp {
                epoch: s0.epoch,
                seq: random.random_range(1..=s0.seq),
            };
            for block in rec.blocks.clone() {
                let of_block = rec.stamp_of(stamp, block);
                if of_block > s0 {
                    continue;
                }
                let base = Base {
                    s0,
                    stamp: of_block,
                    kind: match does {
                        Does::Write => Kind::Data,
                        Does::Poison => Kind::Poison,
                        Does::Erase => Kind::Absent,
                    },
                };
                let model = &mut *self.model.borrow_mut();
                let bases = model.lanes[lane].bases.entry(block);
                bases.or_insert_with(|| vec![NEVER]).push(base);
            }
            let record = held(&self.handle, lane as u8, stamp, &rec, true).await;
            match self.replica.copy(&record, s0).await {
                Ok(()) => {}
                Err(ReplicaError::Full) => self.model.borrow_mut().full += 1,
                Err(e) => panic!("a copy fails: {e}"),
            }
        }
    }

    /// All blocks are what they must be; what a crash decided is known afterwards.
    pub async fn verify(&self) {
        let (lanes, window) = {
            let model = self.model.borrow();
            (model.lanes.len(), model.window)
        };
        for lane in 0..lanes {
            let end = window * 2 + 310;
            let mut at = 0;
            while at < end {
                let blocks = at..(at + 64).min(end);
                let len = (blocks.end - blocks.start) as usize * BLOCK_BYTES;
                let buffer = self.handle.buffers().take(len).await;
                let (buffer, read) = self
                    .replica
                    .read(Tree::live(lane as u8), blocks.clone(), buffer)
                    .await;
                let entries = read.expect("a read");
                let sealed = self.replica.sealed();
                for ((n, block), entry) in blocks.clone().enumerate().zip(&entries) {
                    let bytes = &buffer[n * BLOCK_BYTES..][..BLOCK_BYTES];
                    check_bytes((lane as u8, sealed), block, entry, bytes);
                    self.compare(lane, block, entry);
                }
                at = blocks.end;
            }
        }
    }

    pub fn compare(&self, lane: usize, block: u64, entry: &Entry) {
        let model = &mut *self.model.borrow_mut();
        let lane_state = &model.lanes[lane];
        let bases = lane_state.bases.get(&block).cloned();
        let bases = bases.unwrap_or_else(|| vec![NEVER]);
        let settled = lane_state.told.0;
        let fits = |base: &Base| {
            let expected = lane_state.expected(block, *base);
            match expected.kind {
                Kind::Data | Kind::Poison => {
                    entry.kind == expected.kind && entry.stamp == expected.stamp
                }
                Kind::Erased if expected.stamp > settled => {
                    entry.kind == Kind::Erased && entry.stamp == expected.stamp
                }
                _ => matches!(entry.kind, Kind::Absent | Kind::Erased),
            }
        };
        let left: Vec<Base> = bases.iter().filter(|b| fits(b)).copied().collect();
        let expected: Vec<Base> = bases
            .iter()
            .map(|b| lane_state.expected(block, *b))
            .collect();
        assert!(
            !left.is_empty(),
            "block {block} of lane {lane} is {entry:?}: {expected:?}, settled {settled:?}, of {:?}",
            lane_state.over(block)
        );
        if model.lanes[lane].bases.contains_key(&block) {
            model.lanes[lane].bases.insert(block, left);
        }
    }

    /// After a crash: what is listed was applied, and what was flushed (or, if the machine stayed on, acknowledged) is listed.
    pub async fn come_back(&self, killed: bool) {
        let lanes = self.model.borrow().lanes.len();
        for n in 0..lanes {
            let settled = self.replica.settled(n as u8);
            let listed = self.replica.unsettled(n as u8).await.expect("a list");
            assert!(listed.leaves.is_none());
            let mut there = BTreeSet::new();
            for record in &listed.records {
                let rec = self.model.borrow().lanes[n].all.get(&record.stamp).cloned();
                let rec = rec.unwrap_or_else(|| panic!("{record:?} was never given"));
                let expected = held(&self.handle, n as u8, record.stamp, &rec, false).await;
                assert!(record.same(&expected), "{record:?} is not {expected:?}");
                assert!(
                    record.last() > settled,
                    "{record:?} is settled: {settled:?}"
                );
                assert!(
                    !matches!(rec.state, State::Held),
                    "{record:?} was never applied"
                );
                there.insert(record.stamp);
            }
            {
                let model = &mut *self.model.borrow_mut();
                let lane = &mut model.lanes[n];
                assert!(settled <= lane.told.0, "{settled:?} was never told");
                assert!(settled >= lane.found.0, "settled went back");
                (lane.told.0, lane.found.0) = (settled, settled);
                for (stamp, rec) in &mut lane.all {
                    if rec.last(*stamp) <= settled {
                        continue;
                    }
                    let must = rec.state == State::Stable || killed && rec.state == State::Written;
                    if there.contains(stamp) {
                        rec.state = State::Stable;
                    } else {
                        assert!(!must, "{stamp:?} {rec:?} is lost, above {settled:?}");
                        if rec.state != State::Dead {
                            rec.state = State::Held;
                        }
                    }
                }
            }
            for stamp in there {
                self.fetch_one(n, stamp).await;
            }
        }
        let model = &mut *self.model.borrow_mut();
        let (kept, asked) = model.promise;
        let found = self.replica.promise();
        assert!(
            found == kept || asked.is_some() && found == asked,
            "{found:?}: {kept:?}, {asked:?}"
        );
        model.promise = (found, None);
        let (kept, asked) = model.set.clone();
        let found = self.replica.set();
        assert!(
            found == kept || Some(&found) == asked.as_ref(),
            "{found:?}: {kept:?}, {asked:?}"
        );
        model.set = (found, None);
    }
}
