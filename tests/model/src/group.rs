//! Snapshots of two volumes at one moment (§22): a host writes *a* to one volume and, once that is acknowledged, *b* to the other one. Snapshots that are ready, and
//! of which one has *b*, have *a*, whoever is late, cut off or superseded meanwhile.
use crate::checker::{Each, Model};

/// What is left out of §22.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// What comes behind a snapshot is acknowledged at once.
    NotHeld,
    /// A volume's is released as soon as that one is held.
    ReleasedEarly,
    /// One whose time had passed counts when it is released.
    ExpiredCounts,
    /// It is held again by whoever asks again.
    HeldAgain,
    /// They become ready whatever epochs there are by then.
    EpochIgnored,
}

/// What is left out.
#[derive(Clone, Copy, Debug)]
pub struct Group(pub Option<Bug>);

/// Where a write is, as its volume's snapshot sees it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
enum Write {
    #[default]
    None,
    Before,
    Behind,
}

/// What the coordinator that put the snapshot in does with what is behind it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
enum Hold {
    #[default]
    NotPut,
    On,
    Expired,
    Released,
}

/// How far the record of a volume's snapshot is.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Step {
    #[default]
    Wanted,
    Held,
    Taken,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
struct Volume {
    write: Write,
    acked: bool,
    hold: Hold,
    /// The coordinator said that it was held until it was released.
    released: bool,
    step: Step,
    /// Another coordinator serves the volume; the one before may not know.
    superseded: bool,
}

/// A state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Which volume is written to first.
    second_first: bool,
    volumes: [Volume; 2],
    void: bool,
    ready: bool,
}

impl State {
    fn first(&self) -> usize {
        usize::from(self.second_first)
    }

    fn with(mut self, v: usize, change: impl Fn(&mut Volume)) -> Self {
        change(&mut self.volumes[v]);
        self
    }
}

impl Model for Group {
    type State = State;

    fn initial(&self) -> State {
        State::default()
    }

    fn successors(&self, s: &State, each: &mut Each<'_, State>) {
        let mut say = |name: String, t: State| each(&|| name.clone(), t);
        if *s == State::default() {
            let other = State {
                second_first: true,
                ..*s
            };
            say("the host begins with the other volume".into(), other);
        }
        for v in 0..2 {
            self.host(s, v, &mut say);
            self.coordinator(s, v, &mut say);
        }
        let is = |bug| self.0 == Some(bug);
        let taken = s.volumes.iter().all(|v| v.step == Step::Taken);
        let same = s.volumes.iter().all(|v| !v.superseded) || is(Bug::EpochIgnored);
        if taken && same && !s.void && !s.ready {
            say("they are ready".into(), State { ready: true, ..*s });
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        let first = s.first();
        let (a, b) = (s.volumes[first].write, s.volumes[1 - first].write);
        let torn = s.ready && b == Write::Before && a != Write::Before;
        torn.then_some("12: a volume's snapshot has a write, and another's lacks one that was acknowledged before it")
    }
}

impl Group {
    fn host(&self, s: &State, v: usize, say: &mut impl FnMut(String, State)) {
        let volume = s.volumes[v];
        let begins = v == s.first() || s.volumes[s.first()].acked;
        if volume.write == Write::None && begins {
            let t = s.with(v, |v| {
                v.write = match v.hold {
                    Hold::NotPut => Write::Before,
                    _ => Write::Behind,
                }
            });
            say(format!("the write of volume {v} is stamped"), t);
        }
        // Another coordinator completes it in its takeover, and holds nothing.
        let held = volume.hold == Hold::On && !volume.superseded;
        let waits = volume.write == Write::Behind && held && self.0 != Some(Bug::NotHeld);
        if volume.write != Write::None && !volume.acked && !waits {
            let t = s.with(v, |v| v.acked = true);
            say(format!("the write of volume {v} is acknowledged"), t);
        }
    }

    fn coordinator(&self, s: &State, v: usize, say: &mut impl FnMut(String, State)) {
        let is = |bug| self.0 == Some(bug);
        let volume = s.volumes[v];
        if !volume.superseded {
            let t = s.with(v, |v| v.superseded = true);
            say(format!("another coordinator serves volume {v}"), t);
            if volume.hold == Hold::NotPut {
                let t = s.with(v, |v| v.hold = Hold::On);
                say(format!("the snapshot of volume {v} is put in"), t);
            }
        }
        if volume.hold == Hold::On {
            let t = s.with(v, |v| v.hold = Hold::Expired);
            say(format!("volume {v} is held no more: it is late"), t);
        }
        if is(Bug::HeldAgain) && volume.hold == Hold::Expired {
            let t = s.with(v, |v| v.hold = Hold::On);
            say(format!("volume {v} is held once more"), t);
        }
        // The answer may have been on its way for long.
        if volume.hold != Hold::NotPut && volume.step == Step::Wanted {
            let t = s.with(v, |v| v.step = Step::Held);
            say(format!("it is written that volume {v} is held"), t);
        }
        let mut all = s.volumes.iter();
        let all = all.all(|v| v.step >= Step::Held);
        if all || is(Bug::ReleasedEarly) && volume.step == Step::Held {
            match volume.hold {
                Hold::On => {
                    let t = s.with(v, |v| {
                        v.hold = Hold::Released;
                        v.released = true;
                    });
                    say(format!("volume {v} is released"), t);
                }
                Hold::Expired if is(Bug::ExpiredCounts) => {
                    let t = s.with(v, |v| v.released = true);
                    say(format!("volume {v} is released, late"), t);
                }
                Hold::Expired if !s.void && !s.ready => {
                    say(
                        format!("volume {v} was late: void"),
                        State { void: true, ..*s },
                    );
                }
                _ => {}
            }
        }
        if volume.released && volume.step == Step::Held {
            let t = s.with(v, |v| v.step = Step::Taken);
            say(format!("it is written that volume {v}'s is taken"), t);
        }
    }
}
