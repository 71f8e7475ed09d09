//! What is too old to be confirmed (`docs/replication.md` §14): a host that has given a command up may have sent it by another path, and something else after that.
//!
//! Whoever answers an R2T holds its command at that moment. Of what came in a capsule, or needs no data, only this is known: its connection is open, and since
//! when it may have waited to be read. A process that was stopped finds old commands in its sockets and takes them for new ones, so it must notice that it was:
//! [`Steady`] looks at the clock four times a second, while there are connections.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::reactor::{Handle, Nanos, Notify};

/// Command quiesce time that controllers advertise (Identify Controller, CQT): a host that has lost its connection waits so long before it sends its commands by
/// another path, if it heeds that.
pub const CQT: Duration = Duration::from_secs(4);
/// Older than half of it nothing is confirmed, counted from when a reservation came to the coordinator.
pub const AGE: Duration = Duration::from_secs(2);
/// A command without an R2T may be so old when it is confirmed. The rest of [`AGE`] is for what goes unnoticed.
pub const FRESH: Duration = Duration::from_secs(1);

const LOOK: Duration = Duration::from_millis(250);
/// A look that comes this much late is a stop that was noticed.
const LATE: Duration = Duration::from_millis(500);
/// What is read so soon after a stop may have waited through it.
const GRACE: Duration = Duration::from_millis(500);

const _: () = assert!(AGE.as_millis() * 2 == CQT.as_millis());
const _: () = assert!(FRESH.as_millis() + LATE.as_millis() + LOOK.as_millis() < AGE.as_millis());

/// Since when a reactor has not been stopped.
#[derive(Debug)]
pub struct Steady {
    last: Cell<Nanos>,
    since: Cell<Nanos>,
    /// There is something that a stop could have kept waiting.
    watches: Cell<bool>,
    wanted: Notify,
}

impl Steady {
    /// Will look at the clock, when it is to.
    pub fn start(handle: &Handle) -> Rc<Self> {
        let now = handle.now();
        let steady = Rc::new(Self {
            last: Cell::new(now),
            // Nothing of a volume waits in a socket before the volume is there.
            since: Cell::new(Nanos(now.0.saturating_sub(GRACE.as_nanos() as u64))),
            watches: Cell::new(false),
            wanted: Notify::new(),
        });
        let (this, handle) = (steady.clone(), handle.clone());
        handle
            .clone()
            .spawn("forward: looks at the clock", async move {
                loop {
                    while !this.watches.get() {
                        this.wanted.notified().await;
                    }
                    handle.sleep(LOOK).await;
                    if this.watches.get() {
                        this.look(handle.now());
                    }
                }
            });
        steady
    }

    /// Whether to look at the clock. A stop while it did not has kept nothing waiting.
    pub fn watch(&self, watches: bool, now: Nanos) {
        if watches && !self.watches.replace(watches) {
            self.last.set(now);
            self.wanted.notify();
        }
        self.watches.set(watches);
    }

    fn look(&self, now: Nanos) {
        if now.since(self.last.get()) > LOOK + LATE {
            self.since.set(now);
        }
        self.last.set(now);
    }

    /// Whether a command that was read at `read`, and came at `came` at the earliest, may be confirmed now.
    pub fn fresh(&self, came: Nanos, read: Nanos, now: Nanos) -> bool {
        // The look that would notice a stop may be due in this very pass.
        self.look(now.max(self.last.get()));
        read >= self.since.get() + GRACE && now.since(came) <= FRESH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn steady() -> Steady {
        Steady {
            last: Cell::new(Nanos(0)),
            since: Cell::new(Nanos(0)),
            watches: Cell::new(true),
            wanted: Notify::new(),
        }
    }

    #[test]
    fn a_stop_without_connections_is_none() {
        let steady = steady();
        steady.look(Nanos(1000 * MS));
        steady.watch(false, Nanos(1100 * MS));
        steady.watch(true, Nanos(9000 * MS));
        let read = Nanos(9100 * MS);
        assert!(steady.fresh(read, read, Nanos(9200 * MS)));
        // While there is one it is a stop, whoever else comes.
        steady.watch(true, Nanos(19_000 * MS));
        assert!(!steady.fresh(Nanos(19_000 * MS), Nanos(19_000 * MS), Nanos(19_000 * MS)));
    }

    #[test]
    fn what_waited_through_a_stop_is_not_fresh() {
        let steady = steady();
        for n in 1..=8 {
            steady.look(Nanos(n * 250 * MS));
        }
        let (came, read) = (Nanos(2000 * MS), Nanos(2001 * MS));
        assert!(steady.fresh(came, read, Nanos(2002 * MS)));
        // It stands still from here on, with a command in its socket; that is read as soon as it runs again, before the look that is due.
        let read = Nanos(9000 * MS);
        assert!(!steady.fresh(read, read, Nanos(9001 * MS)));
        assert!(!steady.fresh(read, read, Nanos(9100 * MS)));
        for n in 1..=4 {
            steady.look(Nanos((9001 + n * 250) * MS));
        }
        assert!(!steady.fresh(read, read, Nanos(10_001 * MS)));
        let later = Nanos(10_000 * MS);
        assert!(steady.fresh(later, later, Nanos(10_001 * MS)));
    }

    #[test]
    fn what_may_have_waited_for_long_is_not_fresh() {
        let steady = steady();
        for n in 1..=40 {
            steady.look(Nanos(n * 250 * MS));
        }
        let now = Nanos(10_000 * MS);
        assert!(steady.fresh(Nanos(9_000 * MS), now, now));
        assert!(!steady.fresh(Nanos(8_999 * MS), now, now));
    }
}
