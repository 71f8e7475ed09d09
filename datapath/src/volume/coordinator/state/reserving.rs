//! What commands of hosts on other nodes ask the coordinator (`docs/replication.md` §14, rule 8).

use super::super::message::{Action, Failed};
use super::super::reserve::{Part, RESERVATIONS_MAX};
use super::{Machine, Phase};
use crate::reactor::Nanos;
use crate::store::types::Stamp;

impl Machine {
    /// Gives a command its stamps, which are in no stream yet; the first one of its first part. They are void at `until`.
    ///
    /// # Errors
    /// [`Failed`]: nothing is reserved.
    pub fn reserve(
        &mut self,
        command: u64,
        parts: Vec<Part>,
        until: Nanos,
    ) -> Result<Stamp, Failed> {
        if !matches!(self.phase, Phase::Serving) || self.detaching.is_some() {
            return Err(Failed::Ended);
        }
        if self.reservations.count() + parts.len() > RESERVATIONS_MAX {
            return Err(Failed::Busy);
        }
        let mut first = None;
        for part in parts {
            let Ok(stamp) = self.orderer.stamp(part.lane, part.stamps) else {
                self.reservations.close(command);
                return Err(Failed::Stalled);
            };
            first.get_or_insert(stamp);
            self.reservations.open(command, part, stamp, until);
        }
        first.ok_or(Failed::Void)
    }

    /// A command is over: what it did not use of its stamps is used by nothing.
    pub fn unreserve(&mut self, command: u64, now: Nanos) -> Vec<Action> {
        let mut out = Vec::new();
        self.reservations.close(command);
        if matches!(self.phase, Phase::Serving) {
            // Settled waited for it, perhaps.
            self.confirmed(now, &mut out);
        }
        out
    }
}
