//! What ends by time: controllers whose host is silent, and commits that do not come.

use super::Subsystem;
use crate::nvmf::seam::Nanos;

impl Subsystem {
    /// When `expire` has something to do, unless something else happens first.
    pub fn deadline(&self) -> Option<Nanos> {
        let alive = self
            .controllers
            .values()
            .filter(|c| !c.closing)
            .filter_map(|c| c.keep_alive.deadline());
        let commits = self.ledgers.values().filter_map(|l| l.deadline());
        alive.chain(commits).min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Nanos) {
        let silent = self.controllers.values_mut().filter(|c| !c.closing);
        let silent: Vec<u16> = silent
            .filter_map(|c| c.keep_alive.expired(now).then_some(c.cntlid))
            .collect();
        for cntlid in silent {
            self.controller(cntlid).properties.fail();
            self.close(cntlid);
        }
        self.expire_reservations(now);
    }
}
