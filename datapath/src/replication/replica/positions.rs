//! How far a lane's stream is here (`docs/replication.md` §2 and §5): what was admitted, written, and is stable.
//!
//! Stable is never beyond written, and written never beyond admitted. A flush makes stable what was written when it began.

use std::collections::BTreeSet;

/// A lane's stream of the promised epoch.
#[derive(Debug, Default)]
pub struct Stream {
    /// Whether its positions are known: not after a restart, until the first record comes.
    known: bool,
    /// Every position up to it was admitted.
    admitted: u64,
    written: u64,
    stable: u64,
    /// Written before one in front of it.
    early: BTreeSet<u64>,
    /// Those of them that nobody was told of.
    unsaid: BTreeSet<u64>,
}

/// What a position is that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The next one.
    New,
    /// It came before.
    Again,
    /// One in front of it is missing.
    Gap,
}

impl Stream {
    /// At the beginning of an epoch's stream: nothing came, and nothing is missing.
    pub fn new() -> Self {
        Self {
            known: true,
            ..Self::default()
        }
    }

    /// After a restart: whatever comes first is where it goes on; everything in front of it is settled.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// What comes next has the position behind `after`. `jump`: what is in front of it is not missed, as it comes by copies. False: something would be.
    #[must_use]
    pub fn feed(&mut self, after: u64, jump: bool) -> bool {
        if self.known && after <= self.written {
            return true;
        }
        if self.known && !jump {
            return false;
        }
        // Several may say so before the first record comes: who does not feed this lane says 0.
        if after > self.admitted {
            (self.admitted, self.written, self.stable) = (after, after, after);
            self.early.clear();
            self.unsaid.clear();
        }
        true
    }

    /// A record of this position comes; if it is new, it is admitted with this.
    pub fn admit(&mut self, position: u64) -> Place {
        if (1..=self.admitted).contains(&position) {
            return Place::Again;
        }
        if position != self.admitted + 1 {
            return Place::Gap;
        }
        self.known = true;
        self.admitted = position;
        Place::New
    }

    /// A record is written. False: it was known already, or is of what was in front of a jump.
    pub fn complete(&mut self, position: u64) -> bool {
        assert!(position <= self.admitted, "{position} was never admitted");
        if position <= self.written || !self.early.insert(position) {
            return false;
        }
        self.unsaid.insert(position);
        while self.early.first() == Some(&(self.written + 1)) {
            self.written += 1;
            self.early.pop_first();
        }
        self.unsaid = self.unsaid.split_off(&(self.written + 1));
        true
    }

    /// What a flush that begins now makes stable.
    pub fn mark(&self) -> u64 {
        self.written
    }

    /// A flush is done that began at this mark. True: that is news.
    pub fn flushed(&mut self, mark: u64) -> bool {
        // After a jump or in another epoch an old mark says nothing new, and nothing wrong: callers drop marks of other streams.
        let stable = mark.min(self.written).max(self.stable);
        std::mem::replace(&mut self.stable, stable) != stable
    }

    /// Records that were admitted and not written will not be: they are to be sent again.
    pub fn rewind(&mut self) {
        self.admitted = self.written;
        self.early.clear();
        self.unsaid.clear();
    }

    /// All early ones are to be told again: to somebody else.
    pub fn say_again(&mut self) {
        self.unsaid = self.early.clone();
    }

    /// Up to `most` early ones that were not told yet.
    pub fn take_unsaid(&mut self, most: usize) -> impl Iterator<Item = u64> + '_ {
        (0..most).map_while(|_| self.unsaid.pop_first())
    }

    /// Whether there are early ones to be told.
    pub fn has_unsaid(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// The highest position that was admitted.
    pub fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Every record up to it is written; 0 if not known.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Every record up to it is stable; 0 if not known.
    pub fn stable(&self) -> u64 {
        self.stable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_shows_and_what_came_before_is_no_gap() {
        let mut s = Stream::new();
        assert_eq!(s.admit(2), Place::Gap);
        assert_eq!(s.admit(1), Place::New);
        assert_eq!(s.admit(1), Place::Again);
        assert_eq!(s.admit(0), Place::Gap);
        assert_eq!(s.admit(2), Place::New);
        assert!(s.complete(1));
        assert!(s.feed(1, false), "it is fed again");
        assert!(!s.feed(2, false), "2 is not written: it has to come again");
    }

    #[test]
    fn after_a_restart_it_goes_on_where_it_is_fed_from() {
        let mut s = Stream::unknown();
        assert_eq!((s.written(), s.stable()), (0, 0));
        assert!(s.feed(0, false) && s.feed(56, false) && s.feed(0, false));
        assert_eq!(s.admit(57), Place::New);
        assert_eq!((s.written(), s.stable()), (56, 56));
        assert_eq!(s.admit(59), Place::Gap);
        assert!(!s.feed(58, false));
    }

    #[test]
    fn a_jump_leaves_what_runs_behind() {
        let mut s = Stream::new();
        assert_eq!(s.admit(1), Place::New);
        assert!(s.feed(8, true));
        assert_eq!(s.admit(9), Place::New);
        assert!(!s.complete(1), "in front of the jump");
        assert!(s.complete(9));
        assert_eq!(s.written(), 9);
    }

    #[test]
    fn one_that_failed_is_sent_again() {
        let mut s = Stream::new();
        for p in 1..=3 {
            assert_eq!(s.admit(p), Place::New);
        }
        assert!(s.complete(1) && s.complete(3));
        s.rewind();
        assert_eq!(s.written(), 1);
        assert_eq!(s.admit(2), Place::New);
        assert!(s.complete(2));
        assert_eq!(s.written(), 2, "3 is not there before it came again");
    }

    proptest! {
        /// Against a list of what is written: the written position is in front of its first gap, early ones are told once, a flush covers what
        /// was written when it began.
        #[test]
        fn positions_are_those_of_a_list(steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 1..300)) {
            let mut s = Stream::new();
            let (mut done, mut next, mut running) = (vec![true], 1_u64, Vec::new());
            let (mut mark, mut told) = (None, BTreeSet::new());
            let prefix = |done: &[bool]| done.iter().take_while(|d| **d).count() as u64 - 1;
            for (what, which) in steps {
                match what {
                    0 | 1 => {
                        prop_assert_eq!(s.admit(next), Place::New);
                        running.push(next);
                        done.push(false);
                        next += 1;
                    }
                    2 if !running.is_empty() => {
                        let p = running.swap_remove(which.index(running.len()));
                        done[p as usize] = true;
                        prop_assert!(s.complete(p));
                        prop_assert!(!s.complete(p));
                    }
                    3 => match mark.take() {
                        None => mark = Some((s.mark(), prefix(&done))),
                        Some((m, was)) => {
                            let before = s.stable();
                            s.flushed(m);
                            prop_assert_eq!(s.stable(), was.max(before));
                        }
                    },
                    _ => {
                        for p in s.take_unsaid(3).collect::<Vec<_>>() {
                            prop_assert!(told.insert(p), "told once");
                            prop_assert!(done[p as usize] && p > s.written());
                        }
                    }
                }
                prop_assert_eq!(s.written(), prefix(&done));
                prop_assert!(s.stable() <= s.written() && s.written() <= s.admitted());
            }
            let beyond = (s.written()..next).filter(|&p| p > s.written() && done[p as usize]);
            let all: BTreeSet<_> = beyond.collect();
            let rest: BTreeSet<_> = s.take_unsaid(usize::MAX).collect();
            prop_assert_eq!(all, told.into_iter().filter(|&p| p > s.written()).chain(rest).collect());
        }
    }
}
