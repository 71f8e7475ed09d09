//! A KVDB that is put back to an earlier backup (`docs/replication.md` §13, rule 10): the record of the set is an old one, of a generation that is higher by one, and
//! nobody holds it. Coordinators that run do not know of it. Drawn from dice of its own.

use super::changes::Changes;
use super::cluster::Cluster;
use super::faults::Dice;
use crate::volume::coordinator::set::VolumeRecord;

/// One run in so many has it, of those in which no replicas come and go: one that was deleted since is not heard, and then a person decides.
const SHARE: u64 = 4;
/// One step in so many has a backup, and one in so many a restore.
const BACKUP: u64 = 5;
const RESTORE: u64 = 12;
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

    /// Perhaps a backup, or a restore of the last one.
    pub fn step(&mut self, cluster: &mut Cluster) {
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
    }
}
