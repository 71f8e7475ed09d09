//! Leases (`docs/replication.md` §9, rule 13).
//!
//! A replica that answers a heartbeat promises for T, on its clock from *receiving* it, not to follow another coordinator. Here it is counted from
//! *sending* it, for T (1 - 2 rho). So this side ends first, whatever the clocks do within their bound.

use std::collections::VecDeque;
use std::time::Duration;

use super::members::{Members, PLACES_MAX, Place};
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};

/// By how much the rate of a clock may be off: one in so many.
const RHO: u32 = 1000;
/// Heartbeats whose sending is remembered. One that is answered later gives no lease.
const SENT_MAX: usize = 32;

/// How long a lease is counted here: T (1 - 2 rho).
pub fn counted(lease: Duration) -> Duration {
    lease - lease * 2 / RHO
}

/// What a coordinator knows of leases.
#[derive(Debug)]
pub struct Leases {
    counted: Duration,
    number: u64,
    /// The first that gives one: those before it were sent before K2 was known to be done.
    first: u64,
    sent: VecDeque<(u64, Nanos)>,
    until: [Option<Nanos>; PLACES_MAX],
    /// Highest number that each has answered.
    heard: [u64; PLACES_MAX],
}

impl Leases {
    /// None; heartbeats that were not sent yet can give one.
    pub fn new(lease: Duration) -> Self {
        Self {
            counted: counted(lease),
            number: 0,
            first: u64::MAX,
            sent: VecDeque::with_capacity(SENT_MAX),
            until: [None; PLACES_MAX],
            heard: [0; PLACES_MAX],
        }
    }

    /// From the next heartbeat on they give leases: K2 is known to be done.
    pub fn begin(&mut self) {
        self.first = self.number + 1;
    }

    /// A heartbeat is sent now, to all: its number.
    pub fn send(&mut self, now: Nanos) -> u64 {
        self.number += 1;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        self.number
    }

    /// When the last one was sent.
    pub fn last_sent(&self) -> Option<Nanos> {
        self.sent.back().map(|s| s.1)
    }

    /// Somebody answered.
    pub fn heard(&mut self, place: Place, number: u64) {
        let sent = self.sent.iter().find(|s| s.0 == number);
        let Some(&(_, sent)) = sent.filter(|_| number >= self.first) else {
            return;
        };
        let last = self
            .last_sent()
            .filter(|_| planted::is(Bug::LeaseFromAnswer));
        let sent = last.unwrap_or(sent);
        let n = place.index();
        self.heard[n] = self.heard[n].max(number);
        self.until[n] = self.until[n].max(Some(sent + self.counted));
    }

    /// Somebody was asked for a higher epoch, or is another than it was: it does not count, until it answers again.
    pub fn forget(&mut self, place: Place) {
        self.until[place.index()] = None;
        self.heard[place.index()] = 0;
    }

    /// Whose leases run.
    pub fn running(&self, now: Nanos) -> Members {
        let all = (0..PLACES_MAX).filter(|&n| self.until[n].is_some_and(|u| now < u));
        all.filter_map(Place::new).collect()
    }

    /// A read that arrives now is confirmed by this heartbeat or a later one: the next that is sent.
    pub fn next(&self) -> u64 {
        self.number + 1
    }

    /// Who has answered this heartbeat, or a later one.
    pub fn answered(&self, number: u64) -> Members {
        let all = (0..PLACES_MAX).filter(|&n| self.heard[n] >= number);
        all.filter_map(Place::new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: Duration = Duration::from_secs(3);

    fn place(n: usize) -> Place {
        Place::new(n).unwrap()
    }

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn begun() -> Leases {
        let mut leases = Leases::new(T);
        leases.begin();
        leases
    }

    #[test]
    fn a_lease_is_counted_from_the_sending() {
        let mut leases = begun();
        let number = leases.send(at(100));
        leases.heard(place(1), number);
        assert!(leases.running(at(100 + 2993)).has(place(1)));
        assert!(leases.running(at(100 + 2994)).is_empty());
    }

    #[test]
    fn what_was_sent_before_k2_was_known_gives_none() {
        let mut leases = Leases::new(T);
        let before = leases.send(at(0));
        leases.begin();
        leases.heard(place(0), before);
        assert!(leases.running(at(1)).is_empty());
        let after = leases.send(at(1));
        leases.heard(place(0), after);
        assert_eq!(leases.running(at(2)), Members::one(place(0)));
    }

    #[test]
    fn who_was_asked_for_a_higher_epoch_does_not_count() {
        let mut leases = begun();
        let number = leases.send(at(0));
        leases.heard(place(0), number);
        leases.forget(place(0));
        assert!(leases.running(at(1)).is_empty());
        assert!(leases.answered(number).is_empty());
    }

    #[test]
    fn a_late_answer_shortens_nothing() {
        let mut leases = begun();
        let (one, two) = (leases.send(at(0)), leases.send(at(1000)));
        leases.heard(place(0), two);
        leases.heard(place(0), one);
        assert!(leases.running(at(3500)).has(place(0)));
        assert!(leases.answered(two).has(place(0)));
    }

    #[test]
    fn numbers_that_were_never_sent_give_nothing() {
        let mut leases = begun();
        leases.send(at(0));
        leases.heard(place(0), 77);
        assert!(leases.running(at(0)).is_empty());
    }

    #[test]
    fn a_read_is_confirmed_by_what_is_sent_after_it_arrived() {
        let mut leases = begun();
        let before = leases.send(at(0));
        let needs = leases.next();
        leases.heard(place(0), before);
        assert!(leases.answered(needs).is_empty());
        let after = leases.send(at(1));
        leases.heard(place(0), after);
        assert_eq!(leases.answered(needs), Members::one(place(0)));
    }

    proptest! {
        /// §9: with clocks whose rates are off by up to one in a thousand, either way, the coordinator's count ends before the replica's promise.
        #[test]
        fn this_side_ends_first(ms in 1u64..60_000, mine in -1000i64..=1000, its in -1000i64..=1000, delay in 0u64..1_000_000) {
            let lease = Duration::from_millis(ms);
            // A clock that counts x takes x / rate of real time; rates in millionths.
            let real = |counted: Duration, off: i64| counted.as_nanos() as f64 * 1e6 / (1e6 + off as f64);
            let coordinator = real(counted(lease), mine);
            let replica = delay as f64 + real(lease, its);
            prop_assert!(coordinator <= replica);
        }
    }
}
