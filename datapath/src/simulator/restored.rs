//! A KVDB that is put back to an earlier backup (`docs/replication.md` §13, rule 10): the record of the set is an old one, of a generation that is higher by one, and
//! nobody holds it. Coordinators that run do not know of it. Drawn from dice of its own.

use std::time::Duration;

use super::changes::Changes;
use super::cluster::Cluster;
use super::faults::{Dice, serving};
use super::promised::pass;
use crate::volume::coordinator::set::VolumeRecord;

/// One run in so many has it, of those in which no replicas come and go: one that was deleted since is not heard, and then a person decides.
const SHARE: u64 = 3;
/// One step in so many has a backup, and one in so many a restore.
const BACKUP: u64 = 5;
const RESTORE: u64 = 12;
/// One step in so many has a restore to a set of which some know nothing of what was written since.
const STALE: u64 = 20;
/// Whoever is away is excluded within this.
const EXCLUDED_WITHIN: Duration = Duration::from_secs(4);
/// So long hosts write then, and so long the two are apart afterwards.
const WRITTEN: Duration = Duration::from_millis(50);
const APART: Duration = Duration::from_millis(1_500);
/// Apart from the dice of everything else.
const OTHER: u64 = 0x7265_7374_6f72_6564;

/// The backups of a run.
pub struct Restored {
    dice: Dice,
    there: bool,
    backup: Option<VolumeRecord>,
}

impl Restored {
    /// Of a run.
    pub fn new(seed: u64, changes: &Changes) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        Self {
            there: dice.once_in(SHARE) && !changes.there,
            dice,
            backup: None,
        }
    }

    /// Perhaps a backup, or a restore of the last one. `rest`: nothing else is under way.
    pub fn step(&mut self, cluster: &mut Cluster, rest: bool) {
        if !self.there {
            return;
        }
        if self.dice.once_in(BACKUP) {
            self.backup = Some(cluster.kvdb.record());
        }
        if self.dice.once_in(RESTORE)
            && let Some(backup) = &self.backup
        {
            cluster.kvdb.restore(backup);
            let node = self.dice.below(cluster.shape.nodes as u64) as usize;
            cluster.attach(node);
        }
        if self.dice.once_in(STALE) && rest {
            self.stale(cluster);
        }
    }

    /// All but one member are away, and excluded; the KVDB is put back to a set that has them; they are there again, without the one that went on.
    fn stale(&mut self, cluster: &mut Cluster) {
        let record = cluster.kvdb.record();
        let Some((at, old)) = serving(cluster) else {
            return;
        };
        let members = cluster.member_nodes();
        let others: Vec<usize> = members.iter().copied().filter(|n| *n != at).collect();
        // Its own has to be one, and enough.
        let alone = record.minimum == 1 && others.len() < members.len() && !others.is_empty();
        if !alone || old.epoch() != record.epoch {
            return;
        }
        for node in &others {
            cluster.end(*node, false);
            let without = members.iter().filter(|n| *n != node).count();
            pass(cluster, EXCLUDED_WITHIN, |c| {
                c.member_nodes().len() <= without
            });
        }
        pass(cluster, EXCLUDED_WITHIN, |c| c.member_nodes().len() == 1);
        cluster.rig.sim.run_for(WRITTEN);
        cluster.kvdb.restore(&record);
        cluster.isolate(at);
        for node in &others {
            cluster.begin(*node);
        }
        cluster.attach(others[self.dice.below(others.len() as u64) as usize]);
        cluster.rig.sim.run_for(APART);
        cluster.rig.sim.network(|net| net.heal());
    }
}
