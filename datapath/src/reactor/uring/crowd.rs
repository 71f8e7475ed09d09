//! Whether others want this reactor's core. A spinning reactor on a core that it shares keeps the very process from running whose answer it waits for, so
//! there an empty pass gives the core away. Reactors of one process know that they share cores; those of others, and their users, show only in how often
//! the kernel takes the core away.

use std::cell::Cell;

use keelblock_ffi::thread;

/// How often it is looked at, in nanoseconds: it costs a system call.
const EVERY_NS: u64 = 20_000_000;
/// So many switches in that time, and others want the core. One that is alone sees one now and then, for a thread of the kernel's.
const SWITCHES: u64 = 4;

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    looked: Cell<u64>,
    switches: Cell<u64>,
    shared: Cell<bool>,
}

impl Crowd {
    /// Whether the core is wanted by others. `now` in nanoseconds.
    pub fn shared(&self, now: u64) -> bool {
        if now.saturating_sub(self.looked.get()) >= EVERY_NS {
            let switches = thread::involuntary_switches();
            self.saw(now, switches);
        }
        self.shared.get()
    }

    fn saw(&self, now: u64, switches: u64) {
        let span = now.saturating_sub(self.looked.replace(now)).max(1);
        let more = switches.saturating_sub(self.switches.replace(switches));
        // The last look may be long ago: a rate.
        let shared = more.saturating_mul(EVERY_NS) / span >= SWITCHES;
        self.shared.set(shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_switches_makes_a_crowd() {
        let crowd = Crowd::default();
        crowd.saw(EVERY_NS, 0);
        assert!(!crowd.shared.get());
        crowd.saw(2 * EVERY_NS, SWITCHES);
        assert!(crowd.shared.get());
        crowd.saw(3 * EVERY_NS, 2 * SWITCHES - 1);
        assert!(!crowd.shared.get());
        // As many, in ten times the time.
        crowd.saw(13 * EVERY_NS, 3 * SWITCHES);
        assert!(!crowd.shared.get());
    }
}
