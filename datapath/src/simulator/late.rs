//! Answers that come late: nothing of whoever coordinates arrives anywhere any more, and what members answered to its last heartbeats is on its way to it for about
//! as long as a lease. Another takes over as soon as leases are over; a host writes there, and reads at the old one.
//!
//! A lease that is counted from when its answer came, and not from when its heartbeat was sent (§9), runs then. Drawn from dice of its own.

use std::rc::Rc;
use std::time::Duration;

use super::cluster::{Cluster, LANES};
use super::faults::{Dice, serving};
use super::promised::pass;
use super::run::{BLOCKS, Counts, Hosts, write_then_read};
use crate::volume::coordinator::state::Standing;

/// One run in so many has it.
const SHARE: u64 = 3;
/// One step in so many.
const EVERY: u64 = 10;
/// How long answers take: at least so many milliseconds, and at most so many more.
const SLOW_MS: (u64, u64) = (200, 600);
/// A heartbeat at least is answered within this.
const BEAT: Duration = Duration::from_millis(100);
/// Leases are over, and a takeover done, within this.
const SERVES_WITHIN: Duration = Duration::from_millis(1_200);
/// So long the host is waited for.
const SEEN_WITHIN: Duration = Duration::from_millis(100);
/// Apart from the dice of everything else.
const OTHER: u64 = 0x6c61_7465_6c61_7465;

/// The late answers of a run.
pub struct Late {
    dice: Dice,
    there: bool,
}

impl Late {
    /// Of a run.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        let there = dice.once_in(SHARE);
        Self { dice, there }
    }

    /// Perhaps a coordinator that hears, and is not heard.
    pub fn step(&mut self, cluster: &mut Cluster, hosts: &Rc<Hosts>, counts: &mut Counts) {
        if !self.there || !self.dice.once_in(EVERY) {
            return;
        }
        let Some((at, old)) = serving(cluster) else {
            return;
        };
        let members = cluster.member_nodes().into_iter();
        let others: Vec<usize> = members.filter(|n| *n != at && cluster.runs(*n)).collect();
        if others.is_empty() || old.epoch() != cluster.kvdb.record().epoch {
            return;
        }
        let new = others[self.dice.below(others.len() as u64) as usize];
        let slow = Duration::from_millis(SLOW_MS.0 + self.dice.below(SLOW_MS.1));
        let number = |node| cluster.number(node);
        let (one, next) = (number(at), number(new));
        let all = (0..cluster.shape.nodes).filter(|n| *n != at).map(number);
        let all: Vec<_> = all.collect();
        cluster.rig.sim.network(|net| {
            let late = all.iter().map(|from| ((*from, one), (slow, slow)));
            net.slow.extend(late);
        });
        cluster.rig.sim.run_for(BEAT);
        counts.cuts += 1;
        cluster.rig.sim.network(|net| {
            net.cut.extend(all.iter().map(|to| (one, *to)));
            // Its own replica would be asked to promise, and tell it.
            net.partition(one, next);
        });
        let later = Duration::from_millis(self.dice.below(200));
        cluster.rig.sim.run_for(later);
        let lane = self.dice.below(u64::from(LANES)) as u8;
        let block = self.dice.below(BLOCKS);
        if let Some(new) = cluster.attach(new) {
            counts.attaches += 1;
            pass(cluster, SERVES_WITHIN, |_| {
                matches!(new.standing(), Standing::Serving | Standing::Ended(_))
            });
            if new.standing() == Standing::Serving {
                write_then_read(&cluster.outside(), hosts, (new, old), lane, block);
                cluster.rig.sim.run_for(SEEN_WITHIN);
            }
        }
        cluster.rig.sim.network(|net| net.heal());
    }
}
