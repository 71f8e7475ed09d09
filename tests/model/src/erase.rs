//! Tombstones (rule 6, §11): a block that was written everywhere is erased; the tombstone is reclaimed; what was there must not come back, neither by a
//! takeover nor by a resync.
use crate::checker::{Each, Model};

/// What is left out of rule 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A tombstone is reclaimed before it is settled.
    ReclaimedEarly,
    /// A replica that resyncs reclaims what is settled.
    ReclaimedInResync,
    /// A tombstone is on no list.
    NotListed,
}

/// Three replicas; the last one a member, or coming back.
#[derive(Clone, Copy, Debug)]
pub struct Erase {
    /// The last one comes back.
    pub resync: bool,
    /// What is left out.
    pub bug: Option<Bug>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
enum Entry {
    #[default]
    Old,
    Tombstone,
    Absent,
}

/// A state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct State {
    entries: [Entry; 3],
    members: u8,
    stamped: bool,
    confirmed: u8,
    acked: bool,
    settled: bool,
    /// The entry of a copy on its way.
    staged: Option<Entry>,
    copied: bool,
    taken: bool,
    shown: bool,
}

impl Model for Erase {
    type State = State;

    fn initial(&self) -> State {
        State {
            members: if self.resync { 0b011 } else { 0b111 },
            ..State::default()
        }
    }

    fn successors(&self, s: &State, each: &mut Each<'_, State>) {
        let is = |bug| self.bug == Some(bug);
        let mut say = |name: String, t: State| each(&|| name.clone(), t);
        if !s.stamped && !s.taken {
            let t = State {
                stamped: true,
                ..*s
            };
            say("the erasure is stamped".into(), t);
        }
        for r in 0..3 {
            let member = s.members >> r & 1 == 1;
            let fed = member || (self.resync && r == 2);
            let mut t = *s;
            if s.stamped && fed && !s.taken && s.confirmed >> r & 1 == 0 {
                t.entries[r] = Entry::Tombstone;
                t.confirmed |= 1 << r;
                say(format!("replica {r} has the tombstone"), t);
            }
            let mut t = *s;
            let settled = s.settled || is(Bug::ReclaimedEarly);
            let free = member || is(Bug::ReclaimedInResync);
            if s.entries[r] == Entry::Tombstone && settled && free {
                t.entries[r] = Entry::Absent;
                say(format!("replica {r} reclaims the tombstone"), t);
            }
            // A member that confirmed everything, or took part in the takeover, is read.
            let current = !s.stamped || s.taken || s.confirmed >> r & 1 == 1;
            if member && current && s.acked && s.entries[r] == Entry::Old {
                let t = State { shown: true, ..*s };
                say(format!("the block is read at replica {r}"), t);
            }
        }
        let have = (s.confirmed & s.members).count_ones();
        if s.stamped && !s.acked && !s.taken && have >= 2 {
            say(
                "the erasure is acknowledged".into(),
                State { acked: true, ..*s },
            );
        }
        if s.stamped && !s.settled && !s.taken && s.confirmed & s.members == s.members {
            say(
                "it is settled".into(),
                State {
                    settled: true,
                    ..*s
                },
            );
        }
        if self.resync {
            self.copy(s, &mut say);
        } else if !s.taken {
            for p in [0b011_u8, 0b101, 0b110] {
                let mut t = *s;
                t.taken = true;
                t.members = p;
                let of = |r: &usize| p >> r & 1 == 1;
                let listed = (0..3).filter(of).any(|r| s.entries[r] == Entry::Tombstone);
                if listed && !s.settled && !is(Bug::NotListed) {
                    for r in (0..3).filter(of) {
                        t.entries[r] = Entry::Tombstone;
                    }
                }
                say(format!("takeover by {p:03b}"), t);
            }
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        s.shown.then_some("1: what was erased is read")
    }
}

impl Erase {
    /// The resync of the last replica, whose s0 is before the erasure.
    fn copy(&self, s: &State, say: &mut impl FnMut(String, State)) {
        if s.members == 0b111 {
            return;
        }
        let mut t = *s;
        match s.staged {
            None if !s.copied => {
                for r in 0..2 {
                    t.staged = Some(s.entries[r]);
                    say(format!("the block is read at replica {r} for replica 2"), t);
                }
            }
            Some(entry) => {
                t.staged = None;
                t.copied = true;
                // What came by the stream stays.
                if s.entries[2] != Entry::Tombstone {
                    t.entries[2] = entry;
                }
                say("the copy arrives".into(), t);
            }
            None => {
                if !s.stamped || s.confirmed >> 2 & 1 == 1 {
                    t.members = 0b111;
                    say("replica 2 joins".into(), t);
                }
            }
        }
    }
}
