//! How many parts are copied at a time: half as many while hosts suffer, one more at a time when they do not.

use std::cell::Cell;
use std::time::Duration;

use crate::reactor::Nanos;

/// Most parts in flight, of up to 1 MiB each.
pub const PARTS_MAX: usize = 8;
/// So often it is decided anew.
const EVERY: Duration = Duration::from_millis(100);
/// One command in so many may be slow.
const ONE_IN: u64 = 100;

/// See the module's text.
#[derive(Debug)]
pub struct Pace {
    limit: Duration,
    commands: Cell<u64>,
    slow: Cell<u64>,
    parts: Cell<usize>,
    since: Cell<Nanos>,
}

impl Pace {
    /// Commands that take longer than `limit` are slow.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            commands: Cell::new(0),
            slow: Cell::new(0),
            parts: Cell::new(PARTS_MAX),
            since: Cell::new(Nanos(0)),
        }
    }

    /// A host's command took so long.
    pub fn took(&self, time: Duration) {
        self.commands.set(self.commands.get() + 1);
        self.slow
            .set(self.slow.get() + u64::from(time > self.limit));
    }

    /// Parts that may be in flight now.
    pub fn parts(&self, now: Nanos) -> usize {
        if now >= self.since.get() + EVERY {
            self.since.set(now);
            let suffers = self.slow.take() * ONE_IN > self.commands.take();
            let parts = self.parts.get();
            self.parts.set(match suffers {
                true => (parts / 2).max(1),
                false => (parts + 1).min(PARTS_MAX),
            });
        }
        self.parts.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halved_while_hosts_suffer_and_one_more_when_they_do_not() {
        let pace = Pace::new(Duration::from_millis(10));
        let mut now = Nanos(0);
        let mut next = || {
            now = now + EVERY;
            pace.parts(now)
        };
        assert_eq!(next(), 8);
        let mut seen = Vec::new();
        for _ in 0..4 {
            (0..98).for_each(|_| pace.took(Duration::from_millis(1)));
            pace.took(Duration::from_millis(11));
            seen.push(next());
        }
        assert_eq!(seen, [4, 2, 1, 1]);
        (0..200).for_each(|_| pace.took(Duration::from_millis(10)));
        pace.took(Duration::from_millis(11));
        assert_eq!((next(), next()), (2, 3), "one of 201 is not one in 100");
    }
}
