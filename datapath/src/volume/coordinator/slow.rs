//! Who is slow, and shall leave the set (`docs/replication.md` §8 *Slow*).

use std::time::Duration;

use super::members::{Members, PLACES_MAX, Place};
use crate::reactor::Nanos;

/// Limits of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With a member that is half a ring behind, holds up a write, or is silent.
    pub slow: Duration,
    /// With a member that has no session and holds up a write.
    pub cut: Duration,
    /// With a member whose drive failed, as it says, however often it is there again.
    pub failed: Duration,
    /// With a member that confirms nothing of what waits for it.
    pub still: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            slow: Duration::from_secs(2),
            cut: Duration::from_millis(50),
            failed: Duration::from_millis(500),
            still: Duration::from_secs(4),
        }
    }
}

/// What is seen of a member now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It has a session, and was opened.
    pub connected: bool,
    /// It is behind by half of the ring.
    pub half: bool,
    /// The ring is full, and it has not all of it.
    pub full: bool,
    /// It holds up a write: it counts, has not confirmed the oldest that waits, and others of the set are not enough.
    pub holds_up: bool,
    /// Something waits for it, and so far it has confirmed things: the sum of its positions.
    pub waits_at: Option<u64>,
}

/// Since when a member is what.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    half: Option<Nanos>,
    holds_up: Option<Nanos>,
    silent: Option<Nanos>,
    failed: Option<Nanos>,
    /// It has not come further than here.
    still: Option<(u64, Nanos)>,
}

/// Remembers since when.
#[derive(Debug)]
pub struct Slow {
    patience: Patience,
    since: [Since; PLACES_MAX],
}

fn note(since: &mut Option<Nanos>, is: bool, now: Nanos) {
    match is {
        true => {
            since.get_or_insert(now);
        }
        false => *since = None,
    }
}

impl Slow {
    /// Nobody is slow.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            since: [Since::default(); PLACES_MAX],
        }
    }

    /// Somebody said something: it is not silent.
    pub fn heard(&mut self, place: Place, now: Nanos) {
        self.since[place.index()].silent = Some(now);
    }

    /// It refuses, as a drive of it failed.
    pub fn failed(&mut self, place: Place, now: Nanos) {
        self.since[place.index()].failed.get_or_insert(now);
    }

    /// It has a session again; what it lacked it lacks still. One whose drive failed comes again and again, `as_it_was`; one that was started anew may do better.
    pub fn again(&mut self, place: Place, as_it_was: bool, now: Nanos) {
        let since = &mut self.since[place.index()];
        since.silent = Some(now);
        since.holds_up = None;
        if !as_it_was {
            (since.failed, since.still) = (None, None);
        }
    }

    /// Somebody left who held back settled: who stays may have stood still for that, as lists were full.
    pub fn relieved(&mut self, place: Place, now: Nanos) {
        if let Some((_, since)) = &mut self.since[place.index()].still {
            *since = now;
        }
    }

    /// Somebody is new here.
    pub fn forget(&mut self, place: Place, now: Nanos) {
        self.since[place.index()] = Since {
            silent: Some(now),
            ..Since::default()
        };
    }

    /// Looks at a member; whether it is to be excluded.
    pub fn look(&mut self, place: Place, seen: Seen, now: Nanos) -> bool {
        let since = &mut self.since[place.index()];
        note(&mut since.half, seen.half, now);
        note(&mut since.holds_up, seen.holds_up, now);
        let silent = *since.silent.get_or_insert(now);
        match (seen.waits_at, since.still) {
            (None, _) => (since.still, since.failed) = (None, None),
            (Some(at), Some((before, _))) if at <= before => {}
            (Some(at), before) => {
                since.still = Some((at, now));
                since.failed.take_if(|_| before.is_some());
            }
        }
        let longer = |since: Option<Nanos>, than| since.is_some_and(|s| now >= s + than);
        let Patience {
            slow,
            cut,
            failed,
            still,
        } = self.patience;
        seen.full
            || longer(since.half, slow)
            || longer(since.holds_up, if seen.connected { slow } else { cut })
            || longer(Some(silent), slow)
            || longer(since.failed, failed)
            || longer(since.still.map(|(_, at)| at), still)
    }

    /// When something will have lasted too long, if nothing happens.
    pub fn deadline(&self, of: Members, connected: Members) -> Option<Nanos> {
        let Patience {
            slow,
            cut,
            failed,
            still,
        } = self.patience;
        let all = of.iter().flat_map(|p| {
            let since = self.since[p.index()];
            let up = if connected.has(p) { slow } else { cut };
            [
                since.half.map(|s| s + slow),
                since.holds_up.map(|s| s + up),
                since.silent.map(|s| s + slow),
                since.failed.map(|s| s + failed),
                since.still.map(|(_, s)| s + still),
            ]
        });
        all.flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Seen = Seen {
        connected: true,
        half: false,
        full: false,
        holds_up: false,
        waits_at: None,
    };

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn started() -> (Slow, Place) {
        let place = Place::new(3).unwrap();
        let mut slow = Slow::new(Patience::default());
        assert!(!slow.look(place, FINE, at(0)));
        (slow, place)
    }

    #[test]
    fn half_a_ring_behind_for_longer_than_the_limit() {
        let (mut slow, place) = started();
        let half = Seen { half: true, ..FINE };
        for ms in [100, 1000, 2099] {
            slow.heard(place, at(ms));
            assert!(!slow.look(place, half, at(ms)));
        }
        assert!(slow.look(place, half, at(2100)));
        // Between them it caught up: it begins anew.
        slow.heard(place, at(2200));
        assert!(!slow.look(place, FINE, at(2200)));
        assert!(!slow.look(place, half, at(2300)));
    }

    #[test]
    fn a_full_ring_is_enough() {
        let (mut slow, place) = started();
        assert!(slow.look(place, Seen { full: true, ..FINE }, at(1)));
    }

    #[test]
    fn who_is_cut_and_holds_up_a_write_leaves_soon() {
        let (mut slow, place) = started();
        let cut = Seen {
            connected: false,
            ..FINE
        };
        assert!(!slow.look(place, cut, at(60)), "it is in nobody's way");
        let holds_up = Seen {
            holds_up: true,
            ..cut
        };
        assert!(!slow.look(place, holds_up, at(100)));
        assert!(!slow.look(place, holds_up, at(149)));
        assert!(slow.look(place, holds_up, at(150)));
    }

    #[test]
    fn who_holds_up_a_write_and_is_there_gets_the_longer_limit() {
        let (mut slow, place) = started();
        let holds_up = Seen {
            holds_up: true,
            ..FINE
        };
        assert!(!slow.look(place, holds_up, at(0)));
        slow.heard(place, at(1900));
        assert!(!slow.look(place, holds_up, at(1999)));
        assert!(slow.look(place, holds_up, at(2000)));
    }

    #[test]
    fn silence_is_enough_before_leases_end() {
        let (mut slow, place) = started();
        assert!(!slow.look(place, FINE, at(1999)));
        assert_eq!(
            slow.deadline(Members::one(place), Members::one(place)),
            Some(at(2000))
        );
        assert!(slow.look(place, FINE, at(2000)));
        slow.heard(place, at(2001));
        assert!(!slow.look(place, FINE, at(2002)));
    }

    #[test]
    fn who_confirms_nothing_leaves_however_often_it_comes_again() {
        let (mut slow, place) = started();
        let waits = |at| Seen {
            waits_at: Some(at),
            ..FINE
        };
        assert!(!slow.look(place, waits(7), at(100)));
        for ms in (150..4100).step_by(50) {
            slow.again(place, true, at(ms));
            assert!(!slow.look(place, waits(7), at(ms)), "{ms}");
        }
        assert!(slow.look(place, waits(7), at(4100)));
        slow.again(place, true, at(4150));
        assert!(!slow.look(place, waits(8), at(4150)), "it came further");
        slow.again(place, true, at(8149));
        assert!(!slow.look(place, waits(8), at(8149)));
        assert!(!slow.look(place, FINE, at(8150)), "nothing waits for it");
    }

    #[test]
    fn who_stood_still_for_another_gets_as_long_again() {
        let (mut slow, place) = started();
        let waits = Seen {
            waits_at: Some(7),
            ..FINE
        };
        assert!(!slow.look(place, waits, at(100)));
        slow.again(place, true, at(4000));
        slow.relieved(place, at(4000));
        assert!(!slow.look(place, waits, at(5999)));
        slow.again(place, true, at(6500));
        assert!(!slow.look(place, waits, at(7999)));
        slow.again(place, true, at(7999));
        assert!(slow.look(place, waits, at(8000)));
    }

    #[test]
    fn whose_drive_failed_leaves_soon_however_often_it_comes_again() {
        let (mut slow, place) = started();
        let waits = |at| Seen {
            waits_at: Some(at),
            ..FINE
        };
        assert!(!slow.look(place, waits(7), at(90)));
        for ms in (100..600).step_by(50) {
            slow.failed(place, at(ms));
            slow.again(place, true, at(ms));
            assert!(!slow.look(place, waits(7), at(ms)), "{ms}");
        }
        assert!(slow.look(place, waits(7), at(600)));
        assert!(!slow.look(place, waits(8), at(601)), "it confirms again");
        slow.failed(place, at(602));
        assert!(!slow.look(place, FINE, at(603)), "nothing is wanted of it");
        assert!(!slow.look(place, FINE, at(1200)));
    }

    #[test]
    fn a_session_that_ends_again_and_again_is_no_excuse_for_being_behind() {
        let (mut slow, place) = started();
        let half = Seen { half: true, ..FINE };
        for ms in (100..2100).step_by(50) {
            slow.again(place, true, at(ms));
            assert!(!slow.look(place, half, at(ms)), "{ms}");
        }
        assert!(slow.look(place, half, at(2100)));
    }
}
