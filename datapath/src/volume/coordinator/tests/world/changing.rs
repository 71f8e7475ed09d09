//! Replicas that are added and taken away, as control does it: by the record, whatever the coordinator was told.
use super::*;

/// Most replicas that stay at a time.
const STAY_MAX: usize = 4;
/// Most replicas of a run: a place is used once in an epoch.
const EVER_MAX: usize = 14;

impl World {
    /// Replicas that are there.
    pub(super) fn there(&self) -> Vec<usize> {
        let all = 0..self.replicas.len();
        all.filter(|r| !self.gone.contains(r)).collect()
    }

    /// Nodes make what the record names, and delete what leaves.
    pub(super) fn nodes_follow(&mut self) {
        for (id, state) in self.kv.replicas.clone() {
            let known = self.replicas.iter().position(|r| r.id == id);
            match (known, state) {
                (None, ReplicaState::Empty | ReplicaState::Behind) => {
                    self.replicas.push(Replica::new(id, self.volatile, LEASE));
                    let rate = match self.faults.clocks {
                        true => self.rng.random_range(-1000..=1000),
                        false => 0,
                    };
                    self.rates.push(rate);
                }
                (Some(r), ReplicaState::Leaving) => self.wipe(r),
                // A member that was never made: nothing made it level.
                (None, ReplicaState::Member) => panic!("{id:?} is a member and was never made"),
                _ => {}
            }
        }
        let named = |id: &Id| self.kv.replicas.iter().any(|r| r.0 == *id);
        let orphans = self.replicas.iter().enumerate();
        let orphans = orphans.filter(|(_, r)| !named(&r.id)).map(|(n, _)| n);
        for r in orphans.collect::<Vec<_>>() {
            self.wipe(r);
        }
    }

    fn wipe(&mut self, r: usize) {
        if !self.gone.insert(r) {
            return;
        }
        for c in 0..self.coordinators.len() {
            self.cut(c, r);
        }
        let (id, volatile) = (self.replicas[r].id, self.volatile);
        self.replicas[r] = Replica::new(id, volatile, LEASE);
    }

    /// Something of a change of replicas happens.
    pub(super) fn step_change(&mut self, c: usize) {
        self.nodes_follow();
        if let Some(id) = self.leaving() {
            return self.event(c, Event::Change(Wish::Remove(id)));
        }
        let stay = self.kv.replicas.len();
        let wish = match self.rng.random_range(0..10) {
            0..4 if stay < STAY_MAX && self.replicas.len() < EVER_MAX => {
                Wish::Add(self.rng.random())
            }
            4..8 => match self.kv.replicas.choose(&mut self.rng) {
                Some((id, _)) => Wish::Leave(*id),
                None => return,
            },
            8 => Wish::Minimum(self.rng.random_range(1..=2)),
            _ => return,
        };
        self.event(c, Event::Change(wish));
    }

    /// One whose node has deleted it.
    pub(super) fn leaving(&mut self) -> Option<Id> {
        let leaving = self.kv.replicas.iter();
        let leaving = leaving.filter(|r| r.1 == ReplicaState::Leaving);
        let all: Vec<Id> = leaving.map(|r| r.0).collect();
        all.choose(&mut self.rng).copied()
    }
}
