//! Changes of a volume's replicas, as control makes them: the record says what nodes make and delete, and a coordinator is asked for the next change.
//!
//! What is drawn here comes from dice of its own, so that runs without changes are what they were before there were any.

use super::cluster::Cluster;
use super::faults::{Dice, serving};
use super::run::Counts;
use crate::replication::seam::Id;
use crate::volume::coordinator::message::{Event, Wish};
use crate::volume::coordinator::set::ReplicaState;

/// One run in so many has them.
const SHARE: u64 = 4;
/// One step in so many begins something.
const EVERY: u64 = 5;
/// Fewer than these are never left.
const LEAST: usize = 2;
/// Apart from the dice of everything else.
const OTHER: u64 = 0x6861_6368_616e_6765;

/// The changes of a run.
pub struct Changes {
    dice: Dice,
    /// Whether there are some.
    pub there: bool,
}

impl Changes {
    /// Of a run.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        let there = dice.once_in(SHARE);
        Self { dice, there }
    }

    /// What nodes do by the record, and perhaps something new.
    pub fn step(&mut self, cluster: &mut Cluster, counts: &mut Counts) {
        if !self.there {
            return;
        }
        cluster.follow_record();
        let Some((_, driver)) = serving(cluster) else {
            return;
        };
        if let Some(gone) = cluster.deleted() {
            driver.event(Event::Change(Wish::Remove(gone)));
            return;
        }
        if !self.dice.once_in(EVERY) {
            return;
        }
        let record = cluster.kvdb.record();
        let all: Vec<Id> = record.replicas.iter().map(|r| r.0).collect();
        let spare = cluster.spare_nodes();
        match self.dice.below(8) {
            0..=3 if !spare.is_empty() => {
                let node = spare[self.dice.below(spare.len() as u64) as usize];
                cluster.add_replica(&driver, node);
                counts.additions += 1;
            }
            4..=6 if all.len() > LEAST => {
                // Whoever it is: a member that is well, one that is copied to, the coordinator's own.
                let id = all[self.dice.below(all.len() as u64) as usize];
                driver.event(Event::Change(Wish::Leave(id)));
                counts.departures += 1;
            }
            7 => {
                let minimum = 1 + self.dice.below(2) as u8;
                driver.event(Event::Change(Wish::Minimum(minimum)));
            }
            _ => {}
        }
    }

    /// What was begun comes to its end.
    pub fn finish(&mut self, cluster: &mut Cluster) {
        if !self.there {
            return;
        }
        cluster.follow_record();
        let gone = cluster.deleted();
        if let (Some(gone), Some((_, driver))) = (gone, serving(cluster)) {
            driver.event(Event::Change(Wish::Remove(gone)));
        }
    }
}

/// Whether all replicas of the record are members, and each is where it is to be.
pub fn all_joined(cluster: &Cluster) -> bool {
    let record = cluster.kvdb.record();
    let member = |state: &ReplicaState| *state == ReplicaState::Member;
    record.replicas.iter().all(|(_, state)| member(state))
}
