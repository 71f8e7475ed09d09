//! What goes wrong in a run: single faults, and plots of several that follow each other, each the beginning of an execution that a rule forbids.

use std::time::Duration;

use super::cluster::{Cluster, Coordinator};
use super::run::Counts;
use crate::volume::coordinator::message::{Event, Wish};
use crate::volume::coordinator::state::Standing;

/// Numbers that follow from a seed.
pub struct Dice(u64);

impl Dice {
    /// Of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % n
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// A process ends, or its machine loses power.
    End(usize),
    /// It comes back.
    Begin(usize),
    /// It ends, and comes back at once.
    Restart(usize),
    /// It coordinates from now on.
    Attach(usize),
    /// Nothing passes between two.
    Cut(usize, usize),
    /// Everything passes again.
    Heal,
    /// The KVDB answers again.
    Answer,
}

/// The faults of a run.
pub struct Faults {
    /// What is going to happen, and before which step.
    later: Vec<(usize, Act)>,
    /// One step in so many has a new fault: between them much is written and read.
    every: u64,
}

impl Faults {
    /// Of a run.
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            later: Vec::new(),
            every: [1, 2, 3, 5][dice.below(4) as usize],
        }
    }

    /// Nothing is planned.
    pub fn rest(&self) -> bool {
        self.later.is_empty()
    }

    /// What was planned for this step, and perhaps something new.
    pub fn step(
        &mut self,
        cluster: &mut Cluster,
        dice: &mut Dice,
        counts: &mut Counts,
        step: usize,
    ) {
        let all = self.later.drain(..);
        let (now, later): (Vec<_>, Vec<_>) = all.partition(|(at, _)| *at <= step);
        self.later = later;
        for (_, act) in now {
            Self::act(cluster, dice, counts, act);
        }
        // A plot mostly goes on undisturbed.
        let quiet = !self.later.is_empty() && dice.below(4) > 0;
        if !quiet && dice.once_in(self.every) {
            self.fault(cluster, dice, counts, step);
        } else if self.later.is_empty() && dice.once_in(3) && serving(cluster).is_none() {
            // Without somebody who serves nothing is at stake.
            Self::act(cluster, dice, counts, Act::Heal);
            let node = dice.below(cluster.shape.nodes as u64) as usize;
            Self::act(cluster, dice, counts, Act::Attach(node));
        }
    }

    fn plan(&mut self, step: usize, act: Act) {
        self.later.push((step, act));
    }

    fn act(cluster: &mut Cluster, dice: &mut Dice, counts: &mut Counts, act: Act) {
        // With VWC a cut of power may take what was acknowledged and not flushed.
        let power = !cluster.shape.volatile && dice.once_in(2);
        match act {
            Act::End(node) | Act::Restart(node) if cluster.runs(node) => {
                counts.deaths += 1;
                cluster.end(node, power);
                if act == Act::Restart(node) {
                    cluster.begin(node);
                }
            }
            Act::End(_) => {}
            Act::Begin(node) | Act::Restart(node) => cluster.begin(node),
            Act::Attach(node) => counts.attaches += u64::from(cluster.attach(node).is_some()),
            Act::Cut(a, b) => {
                counts.cuts += 1;
                let (a, b) = (cluster.number(a), cluster.number(b));
                cluster.rig.sim.network(|net| net.partition(a, b));
            }
            Act::Heal => {
                cluster.kvdb.cut.set(None);
                cluster.rig.sim.network(|net| {
                    net.heal();
                    net.latency = FAST;
                });
            }
            Act::Answer => {
                cluster.kvdb.mute.set(false);
                cluster.kvdb.away.set(false);
            }
        }
    }

    fn fault(&mut self, cluster: &mut Cluster, dice: &mut Dice, counts: &mut Counts, step: usize) {
        let nodes = cluster.shape.nodes as u64;
        let (node, other) = (dice.below(nodes) as usize, dice.below(nodes) as usize);
        let mut act = |cluster: &mut Cluster, dice: &mut Dice, act| {
            Self::act(cluster, dice, counts, act);
        };
        match dice.below(21) {
            0 | 1 => {
                act(cluster, dice, Act::End(node));
                self.plan(step + 1 + dice.below(6) as usize, Act::Begin(node));
            }
            2 if dice.once_in(2) => act(cluster, dice, Act::Cut(node, other)),
            2 => {
                counts.cuts += 1;
                let (a, b) = (cluster.number(node), cluster.number(other));
                cluster.rig.sim.network(|net| net.cut.extend([(a, b)]));
            }
            3 | 4 => act(cluster, dice, Act::Heal),
            5 => {
                let (a, b) = (cluster.number(node), cluster.number(other));
                cluster.rig.sim.reset_connections(a, b);
            }
            6 => act(cluster, dice, Act::Attach(node)),
            7..=9 => self.alone(cluster, dice, counts, (node, step)),
            18 => self.behind(cluster, dice, counts, step),
            10 | 11 if serving(cluster).is_none() => act(cluster, dice, Act::Attach(node)),
            12 => {
                cluster.kvdb.away.set(dice.once_in(2));
                cluster.kvdb.mute.set(false);
            }
            13 => cluster.kvdb.lossy.set(dice.once_in(2)),
            14 | 19 => self.departs(cluster, dice, counts, step),
            15 => {
                // Segments take about as long as a lease.
                let slow = (Duration::from_millis(1), Duration::from_millis(300));
                let latency = if dice.once_in(2) { slow } else { FAST };
                cluster.rig.sim.network(|net| net.latency = latency);
            }
            16 => {
                // By the process that served, mostly: then no lease is waited for.
                let same = serving(cluster).filter(|_| dice.below(4) > 0);
                let new = same.map_or(node, |(n, _)| n);
                act(cluster, dice, Act::Attach(new));
                // Those who take part lose what they only said that they have.
                for n in (0..cluster.shape.nodes).filter(|n| *n != new) {
                    if dice.once_in(2) {
                        self.plan(step + 1 + dice.below(2) as usize, Act::Restart(n));
                    }
                }
            }
            17 => {
                for n in 0..cluster.shape.nodes {
                    act(cluster, dice, Act::Restart(n));
                }
            }
            _ => {}
        }
    }

    /// A coordinator is alone while another takes over, and does not know of it; or the other one is; or only they do not hear each other. A third node
    /// restarts meanwhile: what it has promised it must know then, and for how long it gave a lease.
    fn alone(
        &mut self,
        cluster: &mut Cluster,
        dice: &mut Dice,
        counts: &mut Counts,
        (new, step): (usize, usize),
    ) {
        let Some((old, _)) = serving(cluster).filter(|(old, _)| *old != new) else {
            return;
        };
        counts.cuts += 1;
        match dice.below(3) {
            0 => cluster.isolate(old),
            1 => cluster.isolate(new),
            _ => Self::act(cluster, dice, counts, Act::Cut(old, new)),
        }
        if dice.once_in(2) {
            cluster.cut_kvdb(old);
        }
        Self::act(cluster, dice, counts, Act::Attach(new));
        let others: Vec<usize> = (0..cluster.shape.nodes)
            .filter(|n| *n != old && *n != new)
            .collect();
        self.plan(step + 3 + dice.below(6) as usize, Act::Heal);
        if others.is_empty() {
            return;
        }
        let third = others[dice.below(others.len() as u64) as usize];
        let at = step + 1 + dice.below(3) as usize;
        match dice.below(4) {
            0 => {}
            1 => {
                self.plan(at, Act::End(third));
                self.plan(at + 1 + dice.below(2) as usize, Act::Begin(third));
            }
            // The lease that it gave runs on.
            2 => Self::act(cluster, dice, counts, Act::Restart(third)),
            _ => self.plan(at, Act::Restart(third)),
        }
    }

    /// A member is to leave, and nobody is told that it has. Then the one who coordinates is lost, and one that stays takes over.
    fn departs(
        &mut self,
        cluster: &mut Cluster,
        dice: &mut Dice,
        counts: &mut Counts,
        step: usize,
    ) {
        let Some((old, driver)) = serving(cluster) else {
            return;
        };
        let members = cluster.member_nodes();
        let others: Vec<usize> = members.into_iter().filter(|n| *n != old).collect();
        if others.is_empty() {
            return;
        }
        let leaves = others[dice.below(others.len() as u64) as usize];
        let Some(place) = cluster.place(&driver, leaves) else {
            return;
        };
        let stays = others.into_iter().find(|n| *n != leaves);
        // Whoever stays may be behind when it is asked for: then it must not be sent.
        let before = stays.filter(|_| dice.once_in(3));
        if let Some(stays) = before {
            Self::act(cluster, dice, counts, Act::Cut(old, stays));
            cluster.rig.sim.run_for(Duration::from_millis(20));
        }
        driver.event(Event::Change(Wish::Exclude(place)));
        counts.exclusions += 1;
        // It may be done, and nobody told; or not be done.
        match dice.below(4) {
            0 => {}
            1 => cluster.kvdb.away.set(true),
            _ => cluster.kvdb.mute.set(true),
        }
        let at = step + 2 + dice.below(3) as usize;
        let new = stays.unwrap_or(leaves);
        if before.is_none() && dice.below(3) > 0 {
            self.plan(step + 1, Act::Cut(old, new));
        }
        self.plan(at, Act::End(old));
        self.plan(at, Act::Heal);
        self.plan(at, Act::Answer);
        self.plan(at, Act::Attach(new));
        self.plan(at + 2, Act::Begin(old));
    }

    /// A takeover in which one lacks what another has, and the one that completes it is lost before, or after.
    fn behind(&mut self, cluster: &mut Cluster, dice: &mut Dice, counts: &mut Counts, step: usize) {
        let Some((old, _)) = serving(cluster) else {
            return;
        };
        let others: Vec<usize> = (0..cluster.shape.nodes).filter(|n| *n != old).collect();
        let new = others[dice.below(others.len() as u64) as usize];
        Self::act(cluster, dice, counts, Act::Cut(old, new));
        let at = step + 1 + dice.below(2) as usize;
        self.plan(at, Act::Heal);
        for other in others.into_iter().filter(|n| *n != new) {
            self.plan(at, Act::Cut(old, other));
            self.plan(at, Act::Cut(new, other));
        }
        self.plan(at, Act::Attach(old));
        self.plan(at + 1, Act::End(old));
        self.plan(at + 1, Act::Attach(new));
        self.plan(at + 3, Act::Heal);
        self.plan(at + 3, Act::Begin(old));
    }
}

/// Who serves, with its node; of several the newest.
pub fn serving(cluster: &mut Cluster) -> Option<(usize, Coordinator)> {
    let all = cluster.coordinators().into_iter();
    let serve = all.filter(|(_, c)| c.standing() == Standing::Serving);
    serve.max_by_key(|(_, c)| c.epoch())
}

/// The usual latency of the network.
pub const FAST: (Duration, Duration) = (Duration::from_micros(5), Duration::from_micros(50));
