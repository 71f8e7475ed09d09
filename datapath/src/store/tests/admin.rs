//! What is done with volumes and snapshots as a whole, one thing at a time, and what is found of it after a crash.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::engine::{RootOf, SnapshotInfo, StoreError};
use super::oracle::{Id, Must};
use super::work::{Admin, BALLAST, Ctx, Shown, Snap, snapshot_id, volume_id};

const VOLUMES_MAX: usize = 4;
const SNAPS_MAX: usize = 6;

fn all_known(shown: Vec<(u64, Option<Id>)>) -> Option<BTreeMap<u64, Id>> {
    shown
        .into_iter()
        .map(|(block, id)| Some((block, id?)))
        .collect()
}

/// Blocks that show something.
fn there(lanes: &[BTreeMap<u64, Id>]) -> u64 {
    let blocks = lanes.iter().flat_map(BTreeMap::values);
    blocks.filter(|id| **id != 0).count() as u64
}

impl Ctx {
    /// Does something now and then, until there is nothing left to do.
    pub async fn admin(self, seed: u64, pause_us: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while self.left.get() > 0 {
            let pause = random.random_range(0..=pause_us);
            self.handle.sleep(Duration::from_micros(pause)).await;
            if random.random_range(0..4) == 0 {
                if let Some(aim) = &self.aim
                    && random.random_range(0..3) == 0
                {
                    aim(random.random_range(1..100));
                }
                match self.store.checkpoint().await {
                    Ok(()) | Err(StoreError::Full) => {}
                    Err(_) if self.faults => {}
                    Err(e) => panic!("a checkpoint failed: {e}"),
                }
                continue;
            }
            if let Some(admin) = self.choose(&mut random) {
                self.perform(admin).await;
            }
        }
    }

    fn choose(&self, random: &mut StdRng) -> Option<Admin> {
        let mut model = self.model.borrow_mut();
        let volumes: Vec<u8> = model.volumes.keys().copied().collect();
        let snaps: Vec<(u8, u8)> = model.snaps.keys().copied().collect();
        let fresh = model.next_name;
        let volume = (!volumes.is_empty()).then(|| volumes[random.random_range(0..volumes.len())]);
        let snap = (!snaps.is_empty()).then(|| snaps[random.random_range(0..snaps.len())]);
        let admin = match (random.random_range(0..10), volume, snap) {
            (_, None, None) => Admin::Create(fresh),
            (0, ..) if volumes.len() < VOLUMES_MAX => Admin::Create(fresh),
            (1..=3, Some(v), _) if snaps.len() < SNAPS_MAX => Admin::Snapshot(v, fresh),
            (4 | 5, _, Some((v, s))) if volumes.len() < VOLUMES_MAX => Admin::Clone(v, s, fresh),
            (6, _, Some((v, s))) if volumes.contains(&v) => Admin::Restore(v, s),
            (7 | 8, _, Some((v, s))) => Admin::DeleteSnapshot(v, s),
            (9, Some(v), _) if volumes.len() > 1 => Admin::DeleteVolume(v),
            _ => return None,
        };
        model.next_name = if fresh == 250 { 250 } else { fresh + 1 };
        (fresh < 250).then_some(admin)
    }

    /// Waits until nobody uses a volume, and keeps others away.
    async fn gate(&self, volume: u8) {
        self.model.borrow_mut().gated = Some(volume);
        loop {
            let idle = {
                let model = self.model.borrow();
                model.volumes[&volume]
                    .iter()
                    .all(|l| l.writers == 0 && !l.erasing)
            };
            if idle {
                return;
            }
            self.handle.sleep(Duration::from_micros(20)).await;
        }
    }

    fn done(&self) {
        let mut model = self.model.borrow_mut();
        model.admin = None;
        model.gated = None;
    }

    /// Does one thing, from beginning to end.
    pub async fn perform(&self, admin: Admin) {
        if let Admin::Restore(v, _) | Admin::DeleteVolume(v) = admin {
            self.gate(v).await;
        }
        self.model.borrow_mut().admin = Some(admin.clone());
        let result = match admin {
            Admin::Create(v) => {
                let lanes: Vec<u8> = (0..self.model.borrow().lanes_each).collect();
                self.store
                    .create_lanes(volume_id(v), &lanes, lanes.len() as u8, 1 << 40)
                    .await
            }
            Admin::Snapshot(v, s) => {
                let began = self.model.borrow_mut().changes.now();
                let snap = self.snap_now(v, began, false);
                self.model.borrow_mut().snaps.insert((v, s), snap);
                let result = self.store.snapshot(&[(volume_id(v), snapshot_id(s))]).await;
                let snap = self.snap_now(v, began, result.is_ok());
                let mut model = self.model.borrow_mut();
                if result.is_ok() {
                    model.snaps.insert((v, s), snap);
                } else {
                    model.snaps.remove(&(v, s));
                }
                result
            }
            Admin::Clone(v, s, to) => {
                self.store
                    .clone_lanes(volume_id(v), snapshot_id(s), volume_id(to))
                    .await
            }
            Admin::Restore(v, s) => self.store.restore(volume_id(v), snapshot_id(s)).await,
            Admin::DeleteSnapshot(v, s) => {
                self.model
                    .borrow_mut()
                    .snaps
                    .get_mut(&(v, s))
                    .expect("chosen")
                    .acked = false;
                self.store
                    .delete_snapshot(volume_id(v), snapshot_id(s))
                    .await
            }
            Admin::DeleteVolume(v) => self.store.delete_lanes(volume_id(v)).await,
        };
        match result {
            Ok(()) => self.performed(&admin).await,
            Err(StoreError::Full) => {
                let mut model = self.model.borrow_mut();
                model.full += 1;
                if let Admin::DeleteSnapshot(..) | Admin::DeleteVolume(_) = admin {
                    panic!("{admin:?} on a full drive: deleting must work");
                }
            }
            Err(_) if self.faults => {}
            Err(e) => panic!("{admin:?}: {e}"),
        }
        self.done();
    }

    /// A snapshot of what is now, or was on the way here.
    fn snap_now(&self, volume: u8, began: u64, acked: bool) -> Snap {
        let model = &mut *self.model.borrow_mut();
        Snap {
            began,
            ended: model.changes.now(),
            acked,
            lanes: model.volumes[&volume]
                .iter()
                .map(|l| l.history.clone())
                .collect(),
            shown: None,
        }
    }

    /// Something was done: the model follows, and what a new lane shows is looked at.
    async fn performed(&self, admin: &Admin) {
        match *admin {
            Admin::Create(v) => {
                let mut model = self.model.borrow_mut();
                let volume = model.empty_volume();
                model.volumes.insert(v, volume);
            }
            Admin::Snapshot(..) => {}
            Admin::Clone(v, s, to) => self.takes_over(v, s, to).await,
            Admin::Restore(v, s) => self.takes_over(v, s, v).await,
            Admin::DeleteSnapshot(v, s) => drop(self.model.borrow_mut().snaps.remove(&(v, s))),
            Admin::DeleteVolume(v) => drop(self.model.borrow_mut().volumes.remove(&v)),
        }
    }

    /// A volume shows what a snapshot has: reads all of it, and lets workers in.
    async fn takes_over(&self, v: u8, s: u8, to: u8) {
        {
            let mut model = self.model.borrow_mut();
            model.gated = Some(to);
            let volume = model.empty_volume();
            model.volumes.insert(to, volume);
        }
        let mut all = Vec::new();
        let lanes_each = self.model.borrow().lanes_each;
        for lane in 0..lanes_each {
            let shown = self.shown_all(to, lane).await;
            let Some(shown) = all_known(shown) else {
                assert!(self.faults);
                continue;
            };
            if let Err(e) = self.is_snapshot(v, s, lane, &shown) {
                panic!("snapshot {s} of volume {v} lane {lane}, as volume {to}: {e}");
            }
            let model = &mut *self.model.borrow_mut();
            let made = &mut model.volumes.get_mut(&to).expect("made above")[lane as usize];
            made.history = model.changes.settle(&shown);
            all.push(shown);
        }
        if all.len() == self.model.borrow().lanes_each as usize {
            if !self.faults {
                self.verify_used(to, there(&all), false).await;
            }
            self.model
                .borrow_mut()
                .snaps
                .get_mut(&(v, s))
                .expect("it is there")
                .shown = Some(Rc::new(all));
        }
    }

    fn is_snapshot(&self, v: u8, s: u8, lane: u8, shown: &BTreeMap<u64, Id>) -> Result<(), String> {
        let model = self.model.borrow();
        let snap = &model.snaps[&(v, s)];
        if let Some(all) = &snap.shown {
            assert_eq!(all[lane as usize].len(), shown.len());
            let mut pairs = all[lane as usize].iter().zip(shown);
            return match pairs.find(|(before, now)| before != now) {
                None => Ok(()),
                Some(((block, before), (_, now))) => Err(format!(
                    "block {block} showed {before} before, and {now} now"
                )),
            };
        }
        let must = match snap.acked {
            true => Must::AckedBy(snap.began),
            false => Must::DurableBy(snap.began),
        };
        model
            .changes
            .check(&snap.lanes[lane as usize], shown, must, snap.ended)
    }

    /// After an opening: what of an unfinished thing there is, and all lanes against the model.
    pub async fn verify(&self, killed: bool) {
        let admin = self.model.borrow().admin.clone();
        {
            let mut model = self.model.borrow_mut();
            model.gated = None;
            model.changes.crashed(killed);
        }
        self.lists(admin.as_ref()).await;
        let volumes: Vec<u8> = self.model.borrow().volumes.keys().copied().collect();
        for v in volumes {
            if matches!(admin, Some(Admin::DeleteVolume(d)) if d == v) {
                continue;
            }
            let lanes_each = self.model.borrow().lanes_each;
            let mut used = 0;
            for lane in 0..lanes_each {
                used += self.verify_lane(v, lane, killed, admin.as_ref()).await;
            }
            self.verify_used(v, used, self.unique).await;
        }
        // A snapshot that was being taken is relative to what is there now.
        let again = match admin {
            Some(Admin::Restore(..) | Admin::DeleteSnapshot(..) | Admin::DeleteVolume(_)) => admin,
            _ => None,
        };
        self.model.borrow_mut().admin = None;
        if let Some(again) = again {
            self.perform(again).await;
        }
    }

    /// Compares a lane; the blocks that show something.
    async fn verify_lane(&self, v: u8, lane: u8, killed: bool, admin: Option<&Admin>) -> u64 {
        let shown = all_known(self.shown_all(v, lane).await).expect("no faults while verifying");
        let restored = match admin {
            Some(&Admin::Restore(of, s)) if of == v => {
                self.is_snapshot(v, s, lane, &shown).map(|()| true)
            }
            _ => Err("not restored".to_owned()),
        };
        let model = &mut *self.model.borrow_mut();
        let l = &mut model.volumes.get_mut(&v).expect("chosen")[lane as usize];
        (l.writers, l.erasing) = (0, false);
        let must = match killed {
            true => Must::AckedBy(u64::MAX),
            false => Must::DurableBy(u64::MAX),
        };
        let as_live = model.changes.check(&l.history, &shown, must, u64::MAX);
        if let (Err(e), Err(restored)) = (&as_live, restored) {
            let how = if killed { "a kill" } else { "a power cut" };
            panic!("after {how}: volume {v} lane {lane}: {e} ({restored})");
        }
        l.history = model.changes.settle(&shown);
        there(&[shown])
    }

    /// See [`Ctx::verify_used`], of all volumes: nothing is under way.
    pub async fn verify_all_used(&self) {
        let volumes: Vec<u8> = self.model.borrow().volumes.keys().copied().collect();
        let lanes_each = self.model.borrow().lanes_each;
        for v in volumes {
            let mut lanes = Vec::new();
            for lane in 0..lanes_each {
                let shown = all_known(self.shown_all(v, lane).await);
                lanes.push(shown.expect("no faults while verifying"));
            }
            self.verify_used(v, there(&lanes), true).await;
        }
    }

    /// A volume that nobody works on uses exactly the blocks that show something (`shows`), and so do its snapshots whose content is known.
    /// What is unique to them is compared only if it is `quiet`: it changes with what is written to relatives.
    async fn verify_used(&self, v: u8, shows: u64, quiet: bool) {
        let used = self.store.used_blocks(volume_id(v), RootOf::Live).await;
        assert_eq!(used, Ok(shows), "used blocks of volume {v}");
        if quiet {
            self.verify_unique(v, RootOf::Live).await;
        }
        let snaps: Vec<(u8, Shown)> = {
            let model = self.model.borrow();
            let of_v = model.snaps.iter().filter(|((of, _), _)| *of == v);
            let known = of_v.filter_map(|((_, s), snap)| Some((*s, snap.shown.clone()?)));
            known.collect()
        };
        let listed = self.store.snapshots();
        for (s, shown) in snaps {
            // One that was being deleted may be gone.
            let is_it = |l: &SnapshotInfo| (l.volume, l.snapshot) == (volume_id(v), snapshot_id(s));
            if !listed.iter().any(|l| !l.hidden && is_it(l)) {
                continue;
            }
            let of = RootOf::Snapshot(snapshot_id(s));
            let used = self.store.used_blocks(volume_id(v), of).await;
            assert_eq!(
                used,
                Ok(there(&shown)),
                "used blocks of snapshot {s} of volume {v}"
            );
            if quiet {
                self.verify_unique(v, of).await;
            }
        }
    }

    /// What is said to be of nothing else is what is found to be.
    async fn verify_unique(&self, v: u8, of: RootOf) {
        let said = self.store.unique_blocks(volume_id(v), of).await;
        let found = self.store.unique_by_looking(volume_id(v), of).await;
        let said = said.expect("no faults while verifying");
        assert_eq!(said.data, found, "unique blocks of {of:?} of volume {v}");
    }

    /// The volumes and snapshots that there are.
    async fn lists(&self, admin: Option<&Admin>) {
        let lanes_each = self.model.borrow().lanes_each;
        let mut found: BTreeMap<u8, u8> = BTreeMap::new();
        for info in self
            .store
            .lanes()
            .iter()
            .filter(|i| i.volume != volume_id(BALLAST))
        {
            *found.entry(info.volume.0[0]).or_default() += 1;
        }
        let mut snaps: BTreeMap<(u8, u8), u8> = BTreeMap::new();
        for info in self.store.snapshots().iter().filter(|i| !i.hidden) {
            *snaps
                .entry((info.volume.0[0], info.snapshot.0[0]))
                .or_default() += 1;
        }
        match admin {
            Some(&Admin::Create(v)) if found.contains_key(&v) => {
                let lanes: Vec<u8> = (0..lanes_each).collect();
                let made = self
                    .store
                    .create_lanes(volume_id(v), &lanes, lanes_each, 1 << 40)
                    .await;
                if made.is_ok() {
                    found.insert(v, lanes_each);
                    let mut model = self.model.borrow_mut();
                    let volume = model.empty_volume();
                    model.volumes.insert(v, volume);
                } else {
                    self.store
                        .delete_lanes(volume_id(v))
                        .await
                        .expect("deleting works");
                    found.remove(&v);
                }
            }
            Some(&Admin::Clone(v, s, to)) if found.contains_key(&to) => {
                if found[&to] == lanes_each {
                    self.takes_over(v, s, to).await;
                    self.model.borrow_mut().gated = None;
                } else {
                    self.store
                        .delete_lanes(volume_id(to))
                        .await
                        .expect("deleting works");
                    found.remove(&to);
                    self.model.borrow_mut().volumes.remove(&to);
                }
            }
            Some(&Admin::Clone(_, _, to)) => {
                assert!(
                    !self.model.borrow().volumes.contains_key(&to),
                    "a clone that was made is gone"
                );
            }
            Some(&Admin::Snapshot(v, s)) => {
                let there = snaps.get(&(v, s)).copied();
                let acked = self
                    .model
                    .borrow()
                    .snaps
                    .get(&(v, s))
                    .is_some_and(|s| s.acked);
                assert!(
                    !acked || there == Some(lanes_each),
                    "a snapshot that was taken is gone"
                );
                if there != Some(lanes_each) {
                    if there.is_some() {
                        let deleted = self
                            .store
                            .delete_snapshot(volume_id(v), snapshot_id(s))
                            .await;
                        deleted.expect("deleting works");
                        snaps.remove(&(v, s));
                    }
                    self.model.borrow_mut().snaps.remove(&(v, s));
                } else if !acked {
                    let snap = self.snap_now(v, 0, false);
                    let mut model = self.model.borrow_mut();
                    let began = model.snaps[&(v, s)].began;
                    model.snaps.insert((v, s), Snap { began, ..snap });
                }
            }
            Some(&Admin::DeleteVolume(v)) => {
                found.insert(v, lanes_each);
            }
            Some(&Admin::DeleteSnapshot(v, s)) => {
                snaps.insert((v, s), lanes_each);
            }
            _ => {}
        }
        let model = self.model.borrow();
        let wanted: BTreeMap<u8, u8> = model.volumes.keys().map(|v| (*v, lanes_each)).collect();
        assert_eq!(found, wanted, "lanes after {admin:?}");
        let wanted: BTreeMap<(u8, u8), u8> = model.snaps.keys().map(|v| (*v, lanes_each)).collect();
        assert_eq!(snaps, wanted, "snapshots after {admin:?}");
    }
}
