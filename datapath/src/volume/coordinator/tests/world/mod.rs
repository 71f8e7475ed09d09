//! Replicas, coordinators one after the other and beside each other, the KVDB, the network, hosts: what may happen next is drawn.
mod changing;
mod healing;
mod hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use keelblock_hugepages::BufferPool;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::super::members::Place;
use super::super::message::{Action, Event, Failed, Message, Said, Wish};
use super::super::read::{Part, Ready};
use super::super::ring::Limits;
use super::super::set::{Outcome, ReplicaState, Request, VolumeRecord};
use super::super::state::{Config, Machine, Reading, Standing};
use super::history::{At, History};
use super::replica::{Pipe, Replica, Who, value_of};
use super::{LANES, erase, write};
use crate::reactor::Nanos;
use crate::replication::held::What;
use crate::replication::seam::{Entry, Id};
use crate::store::types::Stamp;

/// Blocks of a lane.
const BLOCKS: u64 = 4;
const LEASE: Duration = Duration::from_secs(3);

/// What of faults a run has.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub power: bool,
    pub cuts: bool,
    pub coordinators: usize,
    pub kvdb: bool,
    pub clocks: bool,
    /// Replicas are added and taken away.
    pub changes: bool,
}

struct Session {
    place: Place,
    replica: usize,
    pipe: Pipe,
    /// Its coordinator has it still.
    up: bool,
}

struct HostRead {
    reading: Reading,
    lane: u8,
    blocks: Range<u64>,
    floors: Vec<Option<Stamp>>,
    found: Option<(Vec<Entry>, Vec<u64>)>,
    began: Nanos,
}

/// A write of a host: where, and with which values.
struct HostWrite {
    lane: u8,
    values: Vec<(u64, u64)>,
    fua: bool,
    /// Of its first block, once it has one; an erasure has one for all.
    stamp: Option<Stamp>,
}

/// Token, lane, what it does with which values, and whether it is to be stable.
type Later = (u64, u8, What, Vec<(u64, u64)>, bool);

struct Coordinator {
    machine: Machine,
    who: Who,
    rate: i64,
    alive: bool,
    sessions: BTreeMap<usize, usize>,
    writes: BTreeMap<u64, HostWrite>,
    /// What has its stamps, and waits to be confirmed.
    reserved: Vec<Later>,
    /// With what they are to be ended in the history.
    flushes: BTreeMap<u64, usize>,
    reads: Vec<HostRead>,
    served: bool,
}

pub struct World {
    pub rng: StdRng,
    time: u64,
    faults: Faults,
    volatile: bool,
    confirmed: bool,
    /// The KVDB is away most of the time.
    kvdb_away: bool,
    pub replicas: Vec<Replica>,
    /// Those that were deleted.
    gone: BTreeSet<usize>,
    rates: Vec<i64>,
    kv: VolumeRecord,
    swaps: Vec<(usize, Request)>,
    coordinators: Vec<Coordinator>,
    sessions: Vec<Session>,
    pub history: History,
    next: u64,
    pool: BufferPool,
    pub exclusions: usize,
    pub joins: usize,
    pub served: usize,
    pub gapped: usize,
    pub added: usize,
    pub left: usize,
}

const UNLIMITED: Limits = Limits {
    records: usize::MAX,
    bytes: u64::MAX,
};

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = rng.random_range(1..=3_usize);
        let minimum = rng.random_range(1..=n.div_ceil(2)) as u8;
        let volatile = rng.random();
        let replicas: Vec<_> = (0..n)
            .map(|r| Replica::new([r as u8 + 1; 16], volatile, LEASE))
            .collect();
        let kv = VolumeRecord {
            version: 1,
            epoch: 0,
            incarnation: [0; 16],
            attempt: [0; 16],
            serving: true,
            minimum,
            replicas: replicas
                .iter()
                .map(|r| (r.id, ReplicaState::Member))
                .collect(),
        };
        let mut rate = || match faults.clocks {
            true => rng.random_range(-1000..=1000),
            false => 0,
        };
        let rates = (0..n).map(|_| rate()).collect();
        let kvdb_away = faults.kvdb && rng.random_bool(0.3);
        let confirmed = rng.random_bool(0.2);
        Self {
            rng,
            time: 10_000_000_000,
            faults,
            volatile,
            confirmed,
            kvdb_away,
            replicas,
            gone: BTreeSet::new(),
            rates,
            kv,
            swaps: Vec::new(),
            coordinators: Vec::new(),
            sessions: Vec::new(),
            history: History::new(volatile && faults.power),
            next: 0,
            pool: BufferPool::new(8 << 20, || {}).unwrap(),
            exclusions: 0,
            joins: 0,
            served: 0,
            gapped: 0,
            added: 0,
            left: 0,
        }
    }

    fn clock(&self, rate: i64) -> Nanos {
        Nanos((i128::from(self.time) * i128::from(1_000_000 + rate) / 1_000_000) as u64)
    }

    /// K1, by control.
    pub fn attach(&mut self) {
        let who = Who {
            epoch: self.kv.epoch + 1,
            incarnation: self.rng.random(),
        };
        self.kv.epoch = who.epoch;
        self.kv.version += 1;
        self.kv.incarnation = who.incarnation;
        self.kv.attempt = self.rng.random();
        self.kv.serving = false;
        let mut config = Config::new(LANES as u8);
        config.volatile = self.volatile;
        config.confirmed_reads = self.confirmed;
        config.lease = LEASE;
        if self.rng.random_bool(0.3) {
            // So that rings fill.
            config.limits = Limits {
                records: 6,
                bytes: 5 << 20,
            };
        }
        let rate = match self.faults.clocks {
            true => self.rng.random_range(-1000..=1000),
            false => 0,
        };
        let machine = Machine::new(config, self.kv.clone(), self.clock(rate));
        self.coordinators.push(Coordinator {
            machine,
            who,
            rate,
            alive: true,
            sessions: BTreeMap::new(),
            writes: BTreeMap::new(),
            reserved: Vec::new(),
            flushes: BTreeMap::new(),
            reads: Vec::new(),
            served: false,
        });
        let c = self.coordinators.len() - 1;
        for r in self.there() {
            self.connect(c, r);
        }
    }

    fn connect(&mut self, c: usize, r: usize) {
        if self.coordinators[c].sessions.contains_key(&r) || self.gone.contains(&r) {
            return;
        }
        let Some(place) = self.coordinators[c].machine.place(&self.replicas[r].id) else {
            return;
        };
        self.sessions.push(Session {
            place,
            replica: r,
            pipe: Pipe::default(),
            up: true,
        });
        let s = self.sessions.len() - 1;
        self.coordinators[c].sessions.insert(r, s);
        self.event(c, Event::Connected(place));
    }

    fn cut(&mut self, c: usize, r: usize) {
        let Some(s) = self.coordinators[c].sessions.remove(&r) else {
            return;
        };
        let place = self.sessions[s].place;
        // What is on its way may still arrive, or not; a newer session begins when that is over.
        self.sessions[s].up = false;
        let arrives = self.rng.random_range(0..=self.sessions[s].pipe.there.len());
        for _ in 0..arrives {
            self.deliver_there(s, c);
        }
        self.sessions[s].pipe = Pipe::default();
        self.replicas[r].lost(s);
        self.event(c, Event::Lost(place));
    }

    fn event(&mut self, c: usize, event: Event) {
        let coordinator = &mut self.coordinators[c];
        if !coordinator.alive {
            return;
        }
        let now = {
            let rate = self.coordinators[c].rate;
            self.clock(rate)
        };
        let actions = self.coordinators[c].machine.apply(event, now);
        self.act(c, actions);
    }

    pub fn pump(&mut self, c: usize) {
        if !self.coordinators[c].alive {
            return;
        }
        let now = self.clock(self.coordinators[c].rate);
        let gapped = self.coordinators[c].machine.sets().gapped();
        let actions = self.coordinators[c].machine.pump(now, &|_| UNLIMITED);
        let after = self.coordinators[c].machine.sets().gapped();
        self.gapped += usize::from(!after.within(gapped));
        let coordinator = &mut self.coordinators[c];
        let ring = coordinator.machine.ring();
        for (_, entry) in ring.lanes().flat_map(|l| ring.stream(l).iter()) {
            let write = entry.token.and_then(|t| coordinator.writes.get_mut(&t));
            if let Some(write) = write {
                write.stamp = Some(entry.held.stamp);
            }
        }
        self.act(c, actions);
    }

    pub(super) fn act(&mut self, c: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(place, message) => {
                    if let Message::Batch { records, .. } = &message {
                        for o in records {
                            let bare = matches!(o.held.what, What::Write { data: None, .. });
                            if !bare {
                                self.history.seen(&o.held);
                            }
                        }
                    }
                    let id = self.coordinators[c].machine.replica(place);
                    let r = self.replicas.iter().position(|r| Some(r.id) == id);
                    let session = r.and_then(|r| self.coordinators[c].sessions.get(&r));
                    if let Some(&s) = session {
                        self.sessions[s].pipe.there.push_back(message);
                    }
                }
                Action::Submit(request) => self.swaps.push((c, request)),
                Action::Done(token, result) => self.done(c, token, result),
                Action::Cut(place) => {
                    let id = self.coordinators[c].machine.replica(place);
                    let r = self.replicas.iter().position(|r| Some(r.id) == id);
                    if let Some(r) = r {
                        self.cut(c, r);
                    }
                }
                Action::Serving => {
                    self.coordinators[c].served = true;
                    self.served += 1;
                }
                Action::SetChanged | Action::Added(_) => {}
                Action::Gone(place) => {
                    let id = self.coordinators[c].machine.replica(place);
                    let r = self.replicas.iter().position(|r| Some(r.id) == id);
                    if let Some(r) = r {
                        self.cut(c, r);
                    }
                }
                Action::Ended(end) => {
                    assert!(
                        !matches!(end, super::super::message::End::Alarm(_)),
                        "{end:?}"
                    );
                    self.coordinators[c].reads.clear();
                    let coordinator = &self.coordinators[c];
                    let left: Vec<_> = coordinator
                        .writes
                        .iter()
                        .map(|(t, w)| (t, w.lane, w.stamp))
                        .collect();
                    assert!(
                        left.is_empty(),
                        "commands are left at the end: {left:?} {end:?}"
                    );
                }
                Action::Stalled(_) | Action::NotMet(_) | Action::Repair(..) => {}
            }
        }
    }

    fn deliver_there(&mut self, s: usize, c: usize) {
        let r = self.sessions[s].replica;
        let Some(message) = self.sessions[s].pipe.there.pop_front() else {
            return;
        };
        let now = self.clock(self.rates[r]);
        let who = self.coordinators[c].who;
        let out = self.replicas[r].take(s, who, message, now);
        self.answers(out);
    }

    fn answers(&mut self, out: Vec<(usize, Said)>) {
        for (s, said) in out {
            if self.sessions[s].up {
                self.sessions[s].pipe.back.push_back(said);
            }
        }
    }

    fn deliver_back(&mut self, s: usize, c: usize) {
        if let Some(said) = self.sessions[s].pipe.back.pop_front() {
            let place = self.sessions[s].place;
            self.event(c, Event::Said(place, said));
        }
    }

    fn swap(&mut self, which: usize) {
        let (c, request) = self.swaps.swap_remove(which);
        let applied = self.kv.version == request.expected
            && self.kv.epoch == request.record.epoch
            && self.kv.incarnation == request.record.incarnation;
        let outcome = if applied {
            assert_eq!(
                self.kv.after(&request.change).as_ref(),
                Ok(&request.record),
                "the record is what the change makes of it"
            );
            let ids = self.kv.replicas.len();
            self.added += usize::from(request.record.replicas.len() > ids);
            self.left += usize::from(request.record.replicas.len() < ids);
            let members = request.record.members().count();
            let least = usize::from(request.record.minimum);
            assert!(members >= least && least > 0, "invariant 17");
            let before = self.kv.members().count();
            if request.record.serving && self.kv.serving {
                self.exclusions += usize::from(members < before);
                self.joins += usize::from(members > before);
            }
            self.kv = request.record;
            Outcome::Done
        } else {
            Outcome::Conflict(self.kv.clone())
        };
        match self.rng.random_range(0..10) {
            0 if self.faults.kvdb => {}
            1 if self.faults.kvdb => self.event(c, Event::Outcome(Outcome::Unknown)),
            _ => self.event(c, Event::Outcome(outcome)),
        }
    }

    fn newest(&self) -> Option<usize> {
        (0..self.coordinators.len()).rfind(|&c| self.coordinators[c].alive)
    }

    /// One thing happens.
    pub fn step(&mut self) {
        let alive: Vec<usize> = (0..self.coordinators.len())
            .filter(|&c| self.coordinators[c].alive)
            .collect();
        // Mostly the one that hosts would use, sometimes one that does not know of it.
        let c = match self.rng.random_bool(0.8) {
            true => self.newest(),
            false => alive.choose(&mut self.rng).copied(),
        };
        let there = self.there();
        let r = *there.choose(&mut self.rng).expect("somebody stays");
        let chance = self.rng.random_range(0..1000);
        let Some(c) = c else {
            return self.attach();
        };
        if self.faults.changes && self.rng.random_bool(0.01) {
            return self.step_change(c);
        }
        match chance {
            0..400 => self.deliver_some(),
            400..600 => self.drive(r),
            600..720 => self.pump(c),
            720..765 => self.host_write(c),
            765..780 => self.host_confirms(c),
            780..790 => self.host_flush(c),
            790..880 => self.read_something(c),
            880..945 => self.pass(1, 10),
            945..955 => self.step_resync(c),
            955..958 => self.pass(100, 1500),
            958..975 if !self.swaps.is_empty() => {
                if self.kvdb_away && self.rng.random_bool(0.95) {
                    return;
                }
                let which = self.rng.random_range(0..self.swaps.len());
                self.swap(which);
            }
            975..985 if self.faults.cuts => self.cut(c, r),
            985..994 => self.connect(c, r),
            994..996 if self.faults.power => self.restart(r),
            996 if self.coordinators.len() < self.faults.coordinators => self.attach(),
            997 if self.faults.coordinators > 1 => self.kill(c),
            998 if self.faults.coordinators > 1 => self.event(c, Event::Detach),
            999 => {
                let place = self.coordinators[c].machine.place(&self.replicas[r].id);
                if let Some(place) = place {
                    let wish = match self.rng.random_range(0..4) {
                        0 => Wish::Minimum(self.rng.random_range(1..=2)),
                        _ => Wish::Exclude(place),
                    };
                    self.event(c, Event::Change(wish));
                }
            }
            _ => {}
        }
    }

    fn kill(&mut self, c: usize) {
        let r: Vec<usize> = self.coordinators[c].sessions.keys().copied().collect();
        self.coordinators[c].alive = false;
        for r in r {
            self.cut(c, r);
        }
    }

    fn restart(&mut self, r: usize) {
        let power = self.rng.random_bool(0.7);
        for c in 0..self.coordinators.len() {
            self.cut(c, r);
        }
        let now = self.clock(self.rates[r]);
        self.replicas[r].restart(power, now);
    }

    fn pass(&mut self, from_ms: u64, to_ms: u64) {
        self.time += self.rng.random_range(from_ms..to_ms) * 1_000_000;
    }

    fn deliver_some(&mut self) {
        let open: Vec<(usize, usize)> = self
            .coordinators
            .iter()
            .enumerate()
            .flat_map(|(c, x)| x.sessions.values().map(move |&s| (c, s)))
            .collect();
        let Some(&(c, s)) = open.choose(&mut self.rng) else {
            return;
        };
        for _ in 0..self.rng.random_range(1..6) {
            match self.rng.random() {
                true => self.deliver_there(s, c),
                false => self.deliver_back(s, c),
            }
        }
    }

    fn drive(&mut self, r: usize) {
        let n = self.replicas[r].admitted();
        let now = self.clock(self.rates[r]);
        let out = match self.rng.random_range(0..10) {
            0..6 if n > 0 => {
                let which = self.rng.random_range(0..n);
                self.replicas[r].complete(which)
            }
            6..9 => self.replicas[r].flush(),
            _ => self.replicas[r].promise(now),
        };
        self.answers(out);
    }
}
