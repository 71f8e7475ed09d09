//! Snapshots over two lanes and two replicas (rule 12, §12): a host writes *a* in lane 0 and, once that is acknowledged, *b* in lane 1. A snapshot with *b* has *a*,
//! and is the same on both replicas.
use crate::checker::{Each, Model};

/// What is left out of rule 12.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Lanes put their snapshot records in one by one.
    NoBarrier,
    /// A replica applies the record while earlier ones are on their way.
    Overtakes,
    /// Later records are written before it.
    LaterSlipsIn,
    /// It is applied without a FLUSH before.
    NotFlushed,
    /// It is named when one replica has it.
    NamedEarly,
    /// It is named when each replica has it in some lane.
    NamedByLane,
}

/// What is left out.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot(pub Option<Bug>);

/// A lane of a replica.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
struct Lane {
    written: bool,
    stable: bool,
    taken: bool,
    taken_stable: bool,
    /// The snapshot has the lane's write.
    holds: bool,
}

/// A state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Place of the lane's write in its stream; 0: none yet.
    write: [u8; 2],
    /// Place of the snapshot.
    snapshot: [u8; 2],
    lanes: [[Lane; 2]; 2],
    acked: bool,
    named: bool,
    lost_power: bool,
    broken: u8,
}

impl State {
    fn next(&self, lane: usize) -> u8 {
        1 + u8::from(self.write[lane] != 0) + u8::from(self.snapshot[lane] != 0)
    }

    /// Once it is named, it is compared.
    fn look(mut self) -> Self {
        if self.named {
            let [a, b] = self.lanes;
            for lane in 0..2 {
                if a[lane].holds != b[lane].holds || !a[lane].taken || !b[lane].taken {
                    self.broken = 1;
                }
            }
            if [a, b].iter().any(|r| r[1].holds && !r[0].holds) {
                self.broken = 2;
            }
        }
        self
    }
}

impl Model for Snapshot {
    type State = State;

    fn initial(&self) -> State {
        State::default()
    }

    fn successors(&self, s: &State, each: &mut Each<'_, State>) {
        let is = |bug| self.0 == Some(bug);
        let mut say = |name: String, t: State| each(&|| name.clone(), t.look());
        for lane in 0..2 {
            let mut t = *s;
            if s.write[lane] == 0 && (lane == 0 || s.acked) {
                t.write[lane] = s.next(lane);
                say(format!("a write is stamped in lane {lane}"), t);
            }
            let mut t = *s;
            if is(Bug::NoBarrier) && s.snapshot[lane] == 0 {
                t.snapshot[lane] = s.next(lane);
                say(format!("lane {lane} puts its snapshot record in"), t);
            }
        }
        if s.snapshot == [0, 0] && !is(Bug::NoBarrier) {
            let mut t = *s;
            t.snapshot = [s.next(0), s.next(1)];
            say("the snapshot's records, at a barrier".into(), t);
        }
        let both = s.lanes.iter().all(|r| r[0].written);
        if both && !s.acked {
            say(
                "the write of lane 0 is acknowledged".into(),
                State { acked: true, ..*s },
            );
        }
        for r in 0..2 {
            self.replica(s, r, &mut say);
        }
        let has = |r: &[Lane; 2]| r[0].taken_stable && r[1].taken_stable;
        let enough = match self.0 {
            Some(Bug::NamedEarly) => s.lanes.iter().any(has),
            Some(Bug::NamedByLane) => s
                .lanes
                .iter()
                .all(|r| r[0].taken_stable || r[1].taken_stable),
            _ => s.lanes.iter().all(has),
        };
        if enough && !s.named {
            say("the snapshot is named".into(), State { named: true, ..*s });
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        match s.broken {
            0 => None,
            1 => Some("5: replicas differ in a snapshot"),
            _ => {
                Some("12: a snapshot has a write, and not the one that was acknowledged before it")
            }
        }
    }
}

impl Snapshot {
    fn replica(&self, s: &State, r: usize, say: &mut impl FnMut(String, State)) {
        let is = |bug| self.0 == Some(bug);
        for lane in 0..2 {
            let (l, write, snapshot) = (s.lanes[r][lane], s.write[lane], s.snapshot[lane]);
            let before = write != 0 && (snapshot == 0 || write < snapshot);
            let waits = !before && snapshot != 0 && !l.taken && !is(Bug::LaterSlipsIn);
            if write != 0 && !l.written && !waits {
                let mut t = *s;
                t.lanes[r][lane].written = true;
                say(format!("replica {r} writes the write of lane {lane}"), t);
            }
            let there = if is(Bug::NotFlushed) {
                l.written
            } else {
                l.stable
            };
            if snapshot != 0 && !l.taken && (!before || there || is(Bug::Overtakes)) {
                let mut t = *s;
                let m = &mut t.lanes[r][lane];
                m.taken = true;
                m.holds = l.written;
                say(
                    format!("replica {r} applies the snapshot in lane {lane}"),
                    t,
                );
            }
        }
        let flush = |l: &mut Lane| {
            l.stable = l.written;
            l.taken_stable = l.taken;
        };
        let mut t = *s;
        t.lanes[r].iter_mut().for_each(flush);
        if t != *s {
            say(format!("replica {r} flushes"), t);
        }
        // The drive loses any part of what no FLUSH covers: here, the write and not the snapshot, or both.
        if !s.lost_power {
            for keep in [false, true] {
                let mut t = *s;
                t.lost_power = true;
                for l in &mut t.lanes[r] {
                    if !l.stable {
                        l.written = false;
                        l.holds = false;
                    }
                    if !l.taken_stable && !keep {
                        l.taken = false;
                        l.holds = false;
                    }
                    l.taken_stable = l.taken;
                }
                say(format!("replica {r} loses power"), t);
            }
        }
    }
}
