//! The lease that a replica gave (`docs/replication.md` §9), counted on its clock from receiving the heartbeat.
//!
//! A clock that stands still while the machine is suspended makes a replica wait longer than it has to, never shorter.

use std::time::Duration;

use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};

/// For how long no promise of a higher epoch is completed.
#[derive(Debug)]
pub struct Lease {
    /// The longest that is ever given.
    longest: Duration,
    /// T, of the last Open of the epoch.
    time: Duration,
    until: Option<Nanos>,
}

impl Lease {
    /// After a restart at `now`, if a promise was kept: what was given before is not known, so it is the longest there is.
    pub fn after_restart(longest: Duration, now: Option<Nanos>) -> Self {
        Self {
            longest,
            time: longest,
            until: now
                .filter(|_| !planted::is(Bug::LeaseForgotten))
                .map(|now| now + longest),
        }
    }

    /// T as the coordinator says it. False: it is longer than any that is given.
    #[must_use]
    pub fn set_time(&mut self, time: Duration) -> bool {
        let fits = time <= self.longest;
        if fits {
            self.time = time;
        }
        fits
    }

    /// A heartbeat came at `now`. A lease never gets shorter.
    pub fn renew(&mut self, now: Nanos) {
        self.until = self.until.max(Some(now + self.time));
    }

    /// The holder wants none any more.
    pub fn release(&mut self) {
        self.until = None;
    }

    /// Another epoch is promised: the older holder's was waited for, or is not needed.
    pub fn holder_changed(&mut self) {
        self.until = None;
        self.time = self.longest;
    }

    /// Until when it runs.
    pub fn until(&self) -> Option<Nanos> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(3);

    #[test]
    fn a_restarted_replica_waits_for_the_longest_that_it_gives() {
        let mut lease = Lease::after_restart(T, Some(Nanos(5)));
        assert_eq!(lease.until(), Some(Nanos(5) + T));
        assert!(lease.set_time(Duration::from_millis(10)));
        lease.renew(Nanos(6));
        assert_eq!(lease.until(), Some(Nanos(5) + T), "never shorter");
        assert_eq!(Lease::after_restart(T, None).until(), None);
    }

    #[test]
    fn it_is_counted_from_receiving_and_ends_by_release() {
        let mut lease = Lease::after_restart(T, None);
        assert!(!lease.set_time(T + Duration::from_nanos(1)));
        assert!(lease.set_time(T));
        lease.renew(Nanos(7));
        assert_eq!(lease.until(), Some(Nanos(7) + T));
        lease.release();
        assert_eq!(lease.until(), None);
    }
}
