//! The state by itself: the table of §6, and what holds whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use crate::reactor::Nanos;
use crate::replication::replica::events::{
    Action, Ask, Event, Key, Phase, Refusal, Sender, sender,
};
use crate::replication::replica::state::State;
use crate::replication::seam::{Promise, Standing};

const T: Duration = Duration::from_secs(3);

fn who(epoch: u32, process: u8) -> Sender {
    Sender {
        epoch,
        incarnation: [process; 16],
    }
}

fn ask(epoch: u32, process: u8) -> Ask {
    Ask {
        sender: who(epoch, process),
        attempt: [process; 16],
        version: u64::from(epoch),
    }
}

fn open(by: u64, of: Sender) -> Event {
    Event::Open {
        by: Key(by),
        sender: of,
        subscribe: false,
        lease: T,
    }
}

/// A fresh replica that has promised this, and was opened.
fn following(epoch: u32, process: u8) -> State {
    let mut s = State::new(None, true, T, Nanos(0));
    promise(&mut s, Key(1), ask(epoch, process), Nanos(0));
    s.apply(open(1, who(epoch, process)), Nanos(0));
    s
}

fn promise(s: &mut State, by: Key, of: Ask, now: Nanos) {
    let first = s.apply(Event::Promise(by, of), now);
    assert_eq!(first, [Action::Fence, Action::Drain]);
    let kept = s.apply(Event::Drained(Ok(())), now);
    assert!(matches!(kept[..], [Action::Keep(_)]), "{kept:?}");
    let done = s.apply(Event::Kept(Ok(())), now);
    let expected = [
        Action::EndLower,
        Action::NewStreams,
        Action::AnswerPromise(by),
    ];
    assert_eq!(done, expected);
}

#[test]
fn the_table() {
    let mut s = State::new(None, true, T, Nanos(0));
    assert_eq!(s.phase(), Phase::Fresh);
    assert_eq!(s.admits(who(1, 1)), Err(Refusal::NotPromised));
    let refused = s.apply(open(1, who(1, 1)), Nanos(0));
    assert_eq!(refused, [Action::Refuse(Key(1), Refusal::NotPromised, 0)]);

    s.apply(Event::Promise(Key(1), ask(2, 1)), Nanos(0));
    assert_eq!(s.phase(), Phase::Promising(who(2, 1)));
    assert_eq!(s.admits(who(2, 1)), Err(Refusal::NotPromised));
    s.apply(Event::Drained(Ok(())), Nanos(0));
    assert_eq!(s.phase(), Phase::Promising(who(2, 1)), "it is not durable");
    s.apply(Event::Kept(Ok(())), Nanos(0));
    assert_eq!(s.phase(), Phase::Promised(who(2, 1)));
    assert_eq!(s.admits(who(2, 1)), Ok(()));
    assert_eq!(s.admits_opened(who(2, 1)), Err(Refusal::NotOpen));
    assert_eq!(s.admits(who(1, 1)), Err(Refusal::Lower));
    assert_eq!(s.admits(who(3, 1)), Err(Refusal::NotPromised));
    assert_eq!(s.admits(who(2, 9)), Err(Refusal::Incarnation));

    let opened = s.apply(open(1, who(2, 1)), Nanos(0));
    assert_eq!(opened, [Action::AnswerOpen(Key(1))]);
    assert_eq!(s.phase(), Phase::Following(who(2, 1)));

    let lost = s.apply(Event::Lost, Nanos(0));
    assert_eq!((lost.len(), s.phase()), (0, Phase::Incomplete));
    let refused = s.apply(Event::Promise(Key(4), ask(9, 9)), Nanos(0));
    assert_eq!(refused, [Action::Refuse(Key(4), Refusal::Incomplete, 2)]);
}

#[test]
fn the_same_promise_is_answered_again_and_no_other_of_its_epoch() {
    let mut s = following(2, 1);
    let again = s.apply(Event::Promise(Key(5), ask(2, 1)), Nanos(0));
    assert_eq!(again, [Action::AnswerPromise(Key(5))]);
    let other = Ask {
        attempt: [7; 16],
        ..ask(2, 1)
    };
    for (of, why) in [
        (other, Refusal::Incarnation),
        (ask(2, 7), Refusal::Incarnation),
        (ask(1, 1), Refusal::Lower),
    ] {
        let refused = s.apply(Event::Promise(Key(5), of), Nanos(0));
        assert_eq!(refused, [Action::Refuse(Key(5), why, 2)]);
    }
    // After a restart the attempt is not known: the process is.
    let mut s = State::new(s.kept(), true, T, Nanos(0));
    let again = s.apply(Event::Promise(Key(5), other), Nanos(0));
    assert_eq!(again, [Action::AnswerPromise(Key(5))]);
}

#[test]
fn a_promise_waits_for_the_lease_of_another_process_only() {
    let leased = || {
        let mut s = following(2, 1);
        assert_eq!(s.heartbeat(who(2, 1), false, Nanos(10)), Ok(true));
        s
    };
    let end = Nanos(10) + T;
    let mut s = leased();
    s.apply(Event::Promise(Key(2), ask(3, 2)), Nanos(11));
    let drained = s.apply(Event::Drained(Ok(())), Nanos(12));
    assert_eq!(drained, [Action::WaitUntil(end)]);
    // Nothing is renewed once it was asked.
    assert_eq!(s.heartbeat(who(2, 1), false, Nanos(13)), Ok(false));
    let early = s.apply(Event::Time, Nanos(14));
    assert_eq!(early, [Action::WaitUntil(end)]);
    assert!(matches!(s.apply(Event::Time, end)[..], [Action::Keep(_)]));

    let mut s = leased();
    s.apply(Event::Promise(Key(2), ask(3, 2)), Nanos(11));
    s.apply(Event::Drained(Ok(())), Nanos(12));
    assert_eq!(s.heartbeat(who(2, 1), true, Nanos(13)), Ok(false));
    let released = s.apply(Event::Time, Nanos(13));
    assert!(matches!(released[..], [Action::Keep(_)]), "{released:?}");

    let mut s = leased();
    promise(&mut s, Key(2), ask(3, 1), Nanos(11));
}

#[test]
fn a_restarted_replica_waits_as_if_it_had_just_given_a_lease() {
    let kept = following(2, 1).kept();
    let mut s = State::new(kept, true, T, Nanos(100));
    s.apply(Event::Promise(Key(1), ask(3, 2)), Nanos(101));
    let drained = s.apply(Event::Drained(Ok(())), Nanos(102));
    assert_eq!(drained, [Action::WaitUntil(Nanos(100) + T)]);
    let mut s = State::new(kept, true, T, Nanos(100));
    promise(&mut s, Key(1), ask(3, 1), Nanos(101));
}

#[test]
fn a_higher_promise_takes_the_place_of_one_on_its_way() {
    let mut s = following(2, 1);
    s.apply(Event::Promise(Key(2), ask(3, 2)), Nanos(1));
    let kept = s.apply(Event::Drained(Ok(())), Nanos(1));
    assert!(matches!(kept[..], [Action::Keep(Promise { epoch: 3, .. })]));
    let next = s.apply(Event::Promise(Key(3), ask(4, 3)), Nanos(2));
    let refusal = Action::Refuse(Key(2), Refusal::Lower, 4);
    assert_eq!(next, [refusal, Action::Fence]);
    let done = s.apply(Event::Kept(Ok(())), Nanos(3));
    let [Action::EndLower, Action::NewStreams, Action::Keep(promise)] = done[..] else {
        panic!("{done:?}");
    };
    assert_eq!(sender(&promise), who(4, 3));
    assert_eq!(s.admits(who(3, 2)), Err(Refusal::Lower));
    let done = s.apply(Event::Kept(Ok(())), Nanos(3));
    assert_eq!(done.last(), Some(&Action::AnswerPromise(Key(3))));
    assert_eq!(s.former().map(|p| p.epoch), Some(3));
}

#[test]
fn what_it_is_besides_outlives_a_promise() {
    let mut s = following(2, 1);
    let subscribed = s.apply(
        Event::Open {
            by: Key(1),
            sender: who(2, 1),
            subscribe: true,
            lease: T,
        },
        Nanos(0),
    );
    assert!(matches!(subscribed[..], [Action::Keep(p)] if p.state == Standing::Resyncing));
    let done = s.apply(Event::Kept(Ok(())), Nanos(0));
    assert_eq!(
        done,
        [Action::Subscribed(Key(1)), Action::AnswerOpen(Key(1))]
    );
    assert_eq!(s.phase(), Phase::Resyncing(who(2, 1)));
    let stand = |by, standing, version| Event::Stand {
        by: Key(by),
        standing,
        version,
    };
    s.apply(stand(1, Standing::Level, 7), Nanos(0));
    let done = s.apply(Event::Kept(Ok(())), Nanos(0));
    assert_eq!(done, [Action::AnswerStanding(Key(1))]);
    promise(&mut s, Key(2), ask(3, 1), Nanos(0));
    let kept = s.kept().unwrap();
    assert_eq!((kept.state, kept.version), (Standing::Level, 7));
    s.apply(open(2, who(3, 1)), Nanos(0));
    s.apply(stand(2, Standing::Promised, 9), Nanos(0));
    s.apply(Event::Kept(Ok(())), Nanos(0));
    assert_eq!(s.phase(), Phase::Following(who(3, 1)));
    // A member is not copied to, so it cannot become level.
    let refused = s.apply(stand(2, Standing::Level, 9), Nanos(0));
    assert_eq!(refused, [Action::Refuse(Key(2), Refusal::NotResyncing, 3)]);
}

#[test]
fn what_failed_is_tried_again_when_it_is_asked_again() {
    let mut s = following(2, 1);
    s.apply(Event::Promise(Key(2), ask(3, 2)), Nanos(1));
    let failed = s.apply(Event::Drained(Err(())), Nanos(1));
    assert_eq!(failed, [Action::Refuse(Key(2), Refusal::Failed, 3)]);
    assert_eq!(s.admits(who(2, 1)), Err(Refusal::Lower), "fenced as before");
    let again = s.apply(Event::Promise(Key(3), ask(3, 2)), Nanos(2));
    assert_eq!(again, [Action::Drain]);
    s.apply(Event::Drained(Ok(())), Nanos(2));
    let failed = s.apply(Event::Kept(Err(())), Nanos(2));
    assert_eq!(failed, [Action::Refuse(Key(3), Refusal::Failed, 3)]);
    let again = s.apply(Event::Promise(Key(4), ask(3, 2)), Nanos(3));
    assert!(matches!(again[..], [Action::Keep(_)]), "{again:?}");
}

/// A replica, its disk, and what outsiders saw of it.
struct World {
    state: State,
    now: Nanos,
    durable: Option<Promise>,
    keeping: Option<Promise>,
    draining: bool,
    /// Who asked, by channel.
    asks: BTreeMap<Key, Ask>,
    /// Epochs that it was seen to promise.
    answered: BTreeSet<u32>,
    /// The highest that it was asked for, in this process.
    asked: u32,
    /// Whose frames were taken, by epoch.
    admitted: BTreeMap<u32, Sender>,
    /// Leases that were given, and until when they run.
    leases: Vec<(Sender, Nanos)>,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(None, true, T, Nanos(0)),
            now: Nanos(0),
            durable: None,
            keeping: None,
            draining: false,
            asks: BTreeMap::new(),
            answered: BTreeSet::new(),
            asked: 0,
            admitted: BTreeMap::new(),
            leases: Vec::new(),
            next: 1,
        }
    }

    fn key(&mut self) -> Key {
        self.next += 1;
        Key(self.next)
    }

    fn apply(&mut self, event: Event) {
        for action in self.state.apply(event, self.now) {
            match action {
                Action::Drain => self.draining = true,
                Action::Keep(p) => {
                    assert!(self.keeping.is_none(), "one at a time");
                    assert!(!self.draining, "kept before all has run out");
                    let over = |(s, until): &(Sender, Nanos)| {
                        s.epoch >= p.epoch || s.incarnation == p.incarnation || *until <= self.now
                    };
                    assert!(self.leases.iter().all(over), "a lease runs");
                    self.keeping = Some(p);
                }
                Action::AnswerPromise(key) => {
                    let asked = self.asks[&key];
                    let durable = self.durable.expect("a durable promise");
                    assert_eq!(sender(&durable), asked.sender, "it is durable");
                    self.answered.insert(durable.epoch);
                }
                Action::Refuse(_, Refusal::Lower, epoch) => {
                    assert!(epoch >= self.asked);
                }
                Action::AnswerOpen(_) | Action::AnswerStanding(_) => {
                    assert!(!self.state.is_promising(), "answered behind a fence");
                }
                _ => {}
            }
        }
    }

    fn promise(&mut self, ask: Ask) {
        let key = self.key();
        self.asks.insert(key, ask);
        let before = self.state.epoch();
        if ask.sender.epoch > before {
            // It has ended its lower epochs before it asks.
            let own = |s: &Sender| s.incarnation == ask.sender.incarnation;
            self.leases.retain(|(s, _)| !own(s));
        }
        self.apply(Event::Promise(key, ask));
        if ask.sender.epoch > before {
            self.asked = self.asked.max(ask.sender.epoch);
        }
    }

    fn restart(&mut self, coin: bool) {
        if let Some(begun) = self.keeping.take().filter(|_| coin) {
            self.durable = Some(begun);
        }
        self.state = State::new(self.durable, true, T, self.now);
        self.asked = self.answered.last().copied().unwrap_or(0);
        self.draining = false;
    }

    /// Nothing lower than what was asked for, or promised at any time, is taken; and of each epoch one process only.
    fn check(&mut self) {
        let promised = self.answered.last().copied().unwrap_or(0);
        for epoch in 1..8 {
            for process in 0..3 {
                let from = who(epoch, process);
                if self.state.admits(from).is_err() {
                    continue;
                }
                assert!(epoch >= promised && epoch >= self.asked, "{from:?}");
                let first = *self.admitted.entry(epoch).or_insert(from);
                assert_eq!(first, from, "one process of each epoch");
                assert_eq!(self.durable.map(|p| sender(&p)), Some(from));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens(steps in prop::collection::vec((0u8..16, 1u32..8, 0u8..3, any::<bool>()), 1..120)) {
        let mut w = World::new();
        for (what, epoch, process, coin) in steps {
            let done = if coin { Ok(()) } else { Err(()) };
            match what {
                0..=2 => w.promise(ask(epoch, process)),
                3 => {
                    let near = w.state.epoch() + u32::from(coin);
                    w.promise(ask(near.min(7), process));
                }
                4 | 5 if w.draining => {
                    w.draining = false;
                    w.apply(Event::Drained(if what == 4 { Ok(()) } else { done }));
                }
                6..=8 => if let Some(p) = w.keeping.take() {
                    let done = if what == 6 { done } else { Ok(()) };
                    // What failed may have been kept, as far as anybody can say.
                    if done.is_ok() {
                        w.durable = Some(p);
                    }
                    w.apply(Event::Kept(done));
                },
                9 => {
                    w.now = w.now + Duration::from_millis(u64::from(epoch) * 500);
                    w.apply(Event::Time);
                }
                10 | 11 => {
                    let from = w.state.kept().map_or(who(epoch, process), |p| sender(&p));
                    let release = what == 11 && coin;
                    let answer = w.state.heartbeat(from, release, w.now);
                    if release {
                        w.leases.retain(|(s, _)| *s != from);
                        w.apply(Event::Time);
                    }
                    if answer == Ok(true) {
                        prop_assert!(!w.state.is_promising(), "renewed once asked");
                        w.leases.push((from, w.now + T));
                    }
                }
                12 | 13 => {
                    let of = w.state.kept().map_or(who(epoch, process), |p| sender(&p));
                    let by = w.key();
                    w.apply(Event::Open { by, sender: of, subscribe: what == 13, lease: T });
                }
                14 => {
                    let standing = [Standing::Promised, Standing::Resyncing, Standing::Level];
                    let by = w.key();
                    w.apply(Event::Stand { by, standing: standing[usize::from(process)], version: epoch.into() });
                }
                _ => w.restart(coin),
            }
            w.check();
        }
    }
}
