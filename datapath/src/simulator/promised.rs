//! Power that is lost right behind promises: what a replica has listed for a takeover must be there when it comes back.
//!
//! Whoever coordinates takes over from itself amid writes, so no lease is waited for; as many hear it as must; and when their lists are in hand, all others lose
//! power. The takeover, which nothing disturbs any more, has to end: whoever was asked to confirm what it has listed, and lost it, never could. Drawn from dice of its own.

use std::time::Duration;

use super::cluster::{Cluster, Coordinator, Shape};
use super::faults::{Dice, serving};
use super::run::Counts;
use crate::volume::coordinator::state::Standing;

/// One run in so many has it, of those in which power can be lost.
const SHARE: u64 = 2;
/// One step in so many.
const EVERY: u64 = 8;
/// How often is looked at what happens.
const LOOK: Duration = Duration::from_micros(50);
/// So long something that is written and not stable is waited for.
const DIRTY_WITHIN: Duration = Duration::from_millis(20);
/// Lists come within this, or something else is in the way.
const LISTED_WITHIN: Duration = Duration::from_secs(1);
/// When nothing is wrong any more, a takeover ends within this (bound of liveness).
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Apart from the dice of everything else.
const OTHER: u64 = 0x7072_6f6d_6973_6564;

/// The losses of a run.
pub struct Promised {
    seed: u64,
    dice: Dice,
    there: bool,
}

impl Promised {
    /// Of a run.
    pub fn new(seed: u64, shape: &Shape) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        // With VWC a cut of power may take what was acknowledged and not flushed; two members have a read quorum of one, which is the coordinator's own.
        let can = shape.lossy && !shape.volatile && shape.nodes - shape.spares > 2;
        Self {
            seed,
            there: dice.once_in(SHARE) && can,
            dice,
        }
    }

    /// Perhaps a takeover whose members lose power.
    ///
    /// # Panics
    /// If it does not end.
    pub fn step(&mut self, cluster: &mut Cluster, counts: &mut Counts) {
        if !self.there || !self.dice.once_in(EVERY) {
            return;
        }
        let Some((at, old)) = serving(cluster) else {
            return;
        };
        if old.epoch() != cluster.kvdb.record().epoch {
            return;
        }
        let record = cluster.kvdb.record();
        let members = cluster.member_nodes();
        let read_quorum = members.len() + 1 - record.write_quorum() as usize;
        let mut others: Vec<usize> = members.into_iter().filter(|n| *n != at).collect();
        // The coordinator's own is one of those who take part, if it is a member.
        let own = record.members().count() - others.len();
        while others.len() + own > read_quorum.max(usize::from(record.minimum)) && others.len() > 1
        {
            let away = others.swap_remove(self.dice.below(others.len() as u64) as usize);
            cluster.end(away, false);
        }
        pass(cluster, DIRTY_WITHIN, |_| old.kept().records > 0);
        let Some(new) = cluster.attach(at) else {
            return;
        };
        counts.attaches += 1;
        pass(cluster, LISTED_WITHIN, |_| {
            !matches!(new.standing(), Standing::Promising | Standing::Waiting)
        });
        if new.standing() == Standing::Completing {
            for node in others {
                counts.deaths += 1;
                cluster.end(node, true);
            }
        }
        cluster.heal();
        pass(cluster, ENDS_WITHIN, |_| ended(&new));
        assert!(
            ended(&new),
            "seed {}: a takeover does not end: {new:?}, record {:?}\n{}",
            self.seed,
            cluster.kvdb.record(),
            cluster.describe()
        );
    }
}

/// It serves, or never will.
fn ended(of: &Coordinator) -> bool {
    matches!(
        of.standing(),
        Standing::Serving | Standing::InDoubt | Standing::Stalled | Standing::Ended(_)
    )
}

/// Time passes until something is so, or is not within this.
pub(super) fn pass(cluster: &mut Cluster, within: Duration, is: impl Fn(&Cluster) -> bool) {
    let deadline = cluster.rig.sim.now() + within;
    while !is(cluster) && cluster.rig.sim.now() < deadline {
        cluster.rig.sim.run_for(LOOK);
    }
}
