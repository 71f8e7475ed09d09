//! Who must have said yes (`docs/replication.md` §1, §3 *While in doubt*).
//!
//! From the sending of a change until its outcome is used there are two sets, and a quorum is one of both. Only members of both count: who departs
//! stops at the sending, who arrives begins when the change is known to be done. Settled waits for everybody in either.

use super::members::Members;
use crate::replication::planted::{self, Bug};

/// A set, and the volume's minimum when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Who is in it.
    pub members: Members,
    /// Nothing is served by fewer.
    pub minimum: u8,
}

impl Set {
    /// W: so many must have a write.
    pub fn write_quorum(&self) -> u32 {
        write_quorum(self.members.count(), self.minimum)
    }

    /// R: any so many include one that has it.
    pub fn read_quorum(&self) -> u32 {
        let n = self.members.count();
        // A set below its minimum gets nothing acknowledged; each of it must be heard, and one at least.
        let fewer = u32::from(planted::is(Bug::MinorityPromise));
        (n.saturating_sub(self.write_quorum()) + 1 - fewer).max(1)
    }

    /// Whether these are a write quorum of it.
    pub fn reached(&self, who: Members) -> bool {
        let fewer = u32::from(planted::is(Bug::MinorityAck));
        who.and(self.members).count() + fewer >= self.write_quorum()
    }
}

/// W of a set with `n` members (§1).
pub fn write_quorum(n: u32, minimum: u8) -> u32 {
    let majority = if n <= 2 { n } else { n / 2 + 1 };
    majority.max(u32::from(minimum)).max(1)
}

/// The set that is in force, and while in doubt the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    now: Set,
    asked: Option<Set>,
    /// Members that are neither fed nor counted (rule 16).
    gapped: Members,
}

impl Sets {
    /// One set.
    pub fn new(now: Set) -> Self {
        Self {
            now,
            asked: None,
            gapped: Members::NONE,
        }
    }

    /// The set in force.
    pub fn now(&self) -> Set {
        self.now
    }

    /// The one that was asked for.
    pub fn asked(&self) -> Option<Set> {
        self.asked
    }

    /// Members that are not fed any more.
    pub fn gapped(&self) -> Members {
        self.gapped
    }

    /// A change is sent.
    ///
    /// # Panics
    /// If one is under way.
    pub fn ask(&mut self, asked: Set) {
        assert!(self.asked.is_none(), "one change at a time");
        self.asked = Some(asked);
    }

    /// The change is done, and its set may be used.
    ///
    /// # Panics
    /// If none was sent.
    pub fn done(&mut self) {
        self.now = self.asked.take().expect("a change under way");
        self.gapped = self.gapped.and(self.now.members);
    }

    /// The change can never be done any more.
    pub fn withdraw(&mut self) {
        self.asked = None;
    }

    /// Somebody is neither fed nor counted from now on.
    pub fn gap(&mut self, who: Members) {
        self.gapped = self.gapped.or(who);
    }

    /// Who counts.
    pub fn counted(&self) -> Members {
        if planted::is(Bug::DepartingCounts) {
            return self.everyone().minus(self.gapped);
        }
        let both = self
            .asked
            .map_or(self.now.members, |a| a.members.and(self.now.members));
        both.minus(self.gapped)
    }

    /// Everybody in either set: settled waits for all of them.
    pub fn everyone(&self) -> Members {
        self.asked
            .map_or(self.now.members, |a| a.members.or(self.now.members))
    }

    /// Whether these are a write quorum, of both sets.
    pub fn reached(&self, who: Members) -> bool {
        let who = who.and(self.counted());
        if planted::is(Bug::DepartingCounts) {
            // It counts for both sets.
            let enough = |set: Set| who.and(self.now.members).count() >= set.write_quorum();
            return enough(self.now) && self.asked.is_none_or(enough);
        }
        if let Some(asked) = self.asked.filter(|_| planted::is(Bug::NewSetAlone)) {
            return asked.reached(who);
        }
        self.now.reached(who) && self.asked.is_none_or(|a| a.reached(who))
    }
}

#[cfg(test)]
mod tests {
    use super::super::members::{PLACES_MAX, Place};
    use super::*;
    use proptest::prelude::*;

    fn members(mask: u16) -> Members {
        let places = (0..PLACES_MAX).filter(|n| mask >> n & 1 == 1);
        places.filter_map(Place::new).collect()
    }

    fn set(mask: u16, minimum: u8) -> Set {
        Set {
            members: members(mask),
            minimum,
        }
    }

    #[test]
    fn quorums_of_small_sets() {
        let table = [
            (1, 1, 1, 1),
            (2, 1, 2, 1),
            (3, 1, 2, 2),
            (3, 2, 2, 2),
            (3, 3, 3, 1),
            (4, 2, 3, 2),
            (5, 3, 3, 3),
            (5, 5, 5, 1),
        ];
        for (n, minimum, w, r) in table {
            let set = set((1 << n) - 1, minimum);
            assert_eq!((set.write_quorum(), set.read_quorum()), (w, r), "{set:?}");
        }
    }

    #[test]
    fn who_departs_stops_counting_when_the_change_is_sent() {
        let mut sets = Sets::new(set(0b111, 1));
        assert!(sets.reached(members(0b101)));
        sets.ask(set(0b011, 1));
        assert!(!sets.reached(members(0b101)));
        assert!(sets.reached(members(0b011)));
        assert_eq!(sets.everyone(), members(0b111), "settled waits for all");
        sets.withdraw();
        assert!(sets.reached(members(0b101)));
    }

    #[test]
    fn who_arrives_counts_when_the_change_is_done() {
        let mut sets = Sets::new(set(0b011, 1));
        sets.ask(set(0b111, 1));
        assert!(sets.reached(members(0b011)));
        assert!(!sets.reached(members(0b110)));
        assert_eq!(sets.everyone(), members(0b111));
        sets.done();
        assert!(sets.reached(members(0b110)));
    }

    #[test]
    fn a_gapped_member_is_in_the_set_and_does_not_count() {
        let mut sets = Sets::new(set(0b111, 2));
        sets.gap(members(0b100));
        assert!(!sets.reached(members(0b101)));
        assert!(sets.reached(members(0b011)));
        assert_eq!(sets.everyone(), members(0b111));
        sets.ask(set(0b011, 2));
        sets.done();
        assert!(sets.gapped().is_empty());
    }

    #[test]
    fn a_higher_minimum_is_kept_from_the_sending_on() {
        let mut sets = Sets::new(set(0b111, 2));
        sets.ask(set(0b111, 3));
        assert!(!sets.reached(members(0b011)));
        assert!(sets.reached(members(0b111)));
    }

    proptest! {
        /// §1: any W and any R of a set have one in common, and so have any two W.
        #[test]
        fn quorums_meet(n in 1u32..=5, minimum in 1u8..=5, a in 0u16..32, b in 0u16..32) {
            prop_assume!(u32::from(minimum) <= n);
            let set = set((1 << n) - 1, minimum);
            let (a, b) = (members(a).and(set.members), members(b).and(set.members));
            let meet = !a.and(b).is_empty();
            if a.count() >= set.write_quorum() {
                prop_assert!(meet || b.count() < set.read_quorum());
                prop_assert!(meet || b.count() < set.write_quorum());
            }
        }

        /// What is acknowledged in doubt meets a read quorum of whichever set a takeover finds.
        #[test]
        fn in_doubt_both_takeovers_see_it(old in 1u16..32, new in 1u16..32, who in 0u16..32, heard in 0u16..32, minimum in 1u8..=3) {
            let mut sets = Sets::new(set(old, minimum));
            let asked = set(new, minimum);
            prop_assume!(sets.now().members.count() >= u32::from(minimum) && asked.members.count() >= u32::from(minimum));
            sets.ask(asked);
            if sets.reached(members(who)) {
                for found in [sets.now(), asked] {
                    let heard = members(heard).and(found.members);
                    if heard.count() >= found.read_quorum() {
                        let seen = heard.and(members(who)).and(sets.counted());
                        prop_assert!(!seen.is_empty());
                    }
                }
            }
        }
    }
}
