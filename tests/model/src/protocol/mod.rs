//! The protocol of `docs/replication.md` §§3 to 13 as a model: every step that a node, a drive, the network, the KVDB or a fault may take next.
//!
//! A message that is late or lost is a step that comes late or never, so nobody has to crash: a coordinator that takes no more steps is dead or cut off, and
//! one that takes some later was only slow. What is acknowledged, and what is read, is compared with what any host was told before.
mod change;
mod fault;
mod records;
mod resync;
pub mod rules;
pub mod state;
mod takeover;

use crate::checker;
use rules::{Bug, World};
use state::{BLOCKS, Coordinator, EPOCHS, Phase, REPLICAS, State};

/// A world, and the rule that is left out in it.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What happens.
    pub world: World,
    /// The rule left out.
    pub bug: Option<Bug>,
}

/// Invariants, by their number in [`State::broken`].
const INVARIANTS: [&str; 6] = [
    "",
    "1: a read is older than what was acknowledged or read before",
    "2: a lower epoch has a write acknowledged that a higher one does not have",
    "3: a stamp is used twice",
    "4: a record that was read, and never acknowledged, is gone or torn",
    "17: a set below the minimum",
];

/// Takes each successor: what was done, and the state after it.
type Each<'a> = checker::Each<'a, State>;

impl Protocol {
    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn write_quorum(&self, set: u8) -> u32 {
        let n = set.count_ones();
        let majority = if n <= 2 { n } else { n / 2 + 1 };
        let w = majority.max(u32::from(self.world.minimum));
        w - u32::from(self.is(Bug::MinorityAck) && w > 1)
    }

    fn read_quorum(&self, set: u8) -> u32 {
        let n = set.count_ones();
        let majority = if n <= 2 { n } else { n / 2 + 1 };
        let w = majority.max(u32::from(self.world.minimum)).min(n);
        let r = n - w + 1;
        r - u32::from(self.is(Bug::MinorityPromise) && r > 1)
    }

    /// Members that count: none that departs, none that only arrives.
    fn counted(&self, c: &Coordinator) -> u8 {
        match c.asked {
            0 => c.set,
            asked if self.is(Bug::NewSetAlone) => asked,
            _ if self.is(Bug::DepartingCounts) => c.set,
            asked => c.set & asked,
        }
    }

    /// Whether these members are a write quorum, of both sets in doubt.
    fn quorum(&self, c: &Coordinator, who: u8) -> bool {
        let n = (who & self.counted(c)).count_ones();
        if self.is(Bug::NewSetAlone) && c.asked != 0 {
            return n >= self.write_quorum(c.asked);
        }
        n >= self.write_quorum(c.set) && (c.asked == 0 || n >= self.write_quorum(c.asked))
    }

    /// Whether a replica follows coordinator `i`.
    fn follows(&self, s: &State, i: usize, r: usize) -> bool {
        let promised = usize::from(s.replicas[r].promised);
        promised == i + 1 || (self.is(Bug::PromiseForgotten) && promised == 0)
    }

    fn replicas(&self) -> usize {
        usize::from(self.world.replicas)
    }

    /// Which of the coordinator's records there are.
    fn own(s: &State, i: usize) -> impl Iterator<Item = usize> + '_ {
        (0..usize::from(s.count)).filter(move |&k| usize::from(s.records[k].owner) == i)
    }

    /// What makes no difference any more: so that states that behave alike are one, and there is an end of them.
    fn forget(&self, s: &mut State) {
        for c in &mut s.coordinators {
            if c.phase == Phase::Ended {
                *c = Coordinator {
                    phase: Phase::Ended,
                    ..Coordinator::default()
                };
            }
            // Revisions are only ever compared with the present one; versions of sets are ordered.
            if !self.world.restored {
                c.revision = u8::from(c.revision == s.kvdb.revision);
            }
        }
        if !self.world.restored {
            s.kvdb.revision = 1;
        }
    }

    fn serving(c: &Coordinator) -> bool {
        c.phase == Phase::Serving
    }
}

/// Bits of whole records for a mask of records.
fn spread(records: u8) -> u8 {
    (0..4).fold(0, |a, k| {
        a | if records >> k & 1 == 1 {
            3 << (2 * k)
        } else {
            0
        }
    })
}

impl checker::Model for Protocol {
    type State = State;

    fn initial(&self) -> State {
        let mut s = State::default();
        let all = (1_u8 << self.world.replicas) - 1;
        s.kvdb.set = all;
        for r in &mut s.replicas[..self.replicas()] {
            r.promised = 1;
            r.kept_set = all;
        }
        s.epochs = 1;
        s.coordinators[0] = Coordinator {
            phase: Phase::Serving,
            set: all,
            leases: all,
            ..Coordinator::default()
        };
        s
    }

    fn successors(&self, s: &State, each: &mut Each<'_>) {
        let n = self.replicas();
        let mut canonical = |name: &dyn Fn() -> String, after: State| {
            let mut after = after;
            self.forget(&mut after);
            each(name, after.canonical(n));
        };
        let each: &mut Each<'_> = &mut canonical;
        self.raise(s, each);
        self.faults(s, each);
        for i in 0..usize::from(s.epochs) {
            self.apply_swap(s, i, each);
            if s.coordinators[i].phase == Phase::Ended {
                continue;
            }
            self.resolve(s, i, each);
            self.take_over(s, i, each);
            if Self::serving(&s.coordinators[i]) {
                self.write(s, i, each);
                self.feed(s, i, each);
                self.acknowledge(s, i, each);
                self.settle(s, i, each);
                self.read(s, i, each);
                self.change_set(s, i, each);
                self.resync(s, i, each);
            }
        }
        self.complete(s, each);
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        (s.broken != 0).then(|| INVARIANTS[usize::from(s.broken)])
    }
}

const _: () = assert!(BLOCKS == 2 && REPLICAS == 3 && EPOCHS == 3);
