//! A replica as §6 has it, simple enough to be looked through: for tests of the coordinator only.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::super::message::{LaneState, Message, Said, State};
use super::LANES;
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::replication::seam::{Entry, Id, KeptSet, Kind, Standing};
use crate::replication::wire::ack::{AckHead, Early, LaneAck};
use crate::replication::wire::batch::HERE;
use crate::replication::wire::record::flag;
use crate::replication::wire::refused::Reason;
use crate::store::types::Stamp;

/// Whose a session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who {
    pub epoch: u32,
    pub incarnation: Id,
}

/// What a block is: its stamp, its value (0: erased), its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub stamp: Stamp,
    pub value: u64,
}

/// What a power cut may take, or not.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pub blocks: Vec<BTreeMap<u64, Block>>,
    pub records: Vec<BTreeMap<Stamp, Rc<Held>>>,
    pub settled: Vec<Stamp>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    /// Admitted up to here; `None`: not known.
    next: Option<u64>,
    written: u64,
    stable: u64,
    early: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub struct Replica {
    pub id: Id,
    pub promised: Who,
    attempt: Id,
    /// What is asked for, and by which session.
    pub asked: Option<(usize, Who, Id)>,
    pub standing: Standing,
    level: u64,
    pub kept: (u32, u64),
    pub now: Data,
    durable: Data,
    streams: Vec<Stream>,
    /// On their way to the drive, with the position they came under.
    admitted: Vec<(u64, Rc<Held>)>,
    flush: Option<(usize, u64)>,
    s0: Vec<Stamp>,
    boot: u8,
    lease_until: Nanos,
    /// The session that it follows on.
    pub follows: Option<usize>,
    volatile: bool,
    lease: Duration,
}

/// Answers, to the session they are for.
pub type Out = Vec<(usize, Said)>;

pub fn value_of(held: &Held, block: u64) -> u64 {
    match &held.what {
        What::Write {
            first,
            data: Some(data),
            ..
        } => {
            let at = (block - first.0) as usize * 4096;
            u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
        }
        What::Tombstone { .. } => 0,
        other => panic!("{other:?} has no value"),
    }
}

fn bare(held: &Held) -> Rc<Held> {
    Rc::new(Held::of(&held.record(0, flag::LISTED), None))
}

impl Replica {
    pub fn new(id: Id, volatile: bool, lease: Duration) -> Self {
        let data = Data {
            blocks: vec![BTreeMap::new(); LANES],
            records: vec![BTreeMap::new(); LANES],
            settled: vec![Stamp { epoch: 0, seq: 0 }; LANES],
        };
        Self {
            id,
            promised: Who::default(),
            attempt: [0; 16],
            asked: None,
            standing: Standing::Promised,
            level: 0,
            kept: (0, 0),
            now: data.clone(),
            durable: data,
            streams: vec![Stream::default(); LANES],
            admitted: Vec::new(),
            flush: None,
            s0: Vec::new(),
            boot: 0,
            lease_until: Nanos(0),
            follows: None,
            volatile,
            lease,
        }
    }

    fn highest(&self) -> Who {
        self.asked.map_or(self.promised, |a| a.1)
    }

    fn state(&self) -> State {
        let lanes = (0..LANES as u8).map(|lane| {
            let s = &self.streams[usize::from(lane)];
            LaneState {
                at: LaneAck {
                    lane,
                    written: s.written,
                    stable: s.stable,
                },
                settled: self.now.settled[usize::from(lane)],
                lost: false,
            }
        });
        State {
            boot: [self.boot; 16],
            lanes: lanes.collect(),
            standing: self.standing,
            level: self.level,
            leaves: false,
            kept: KeptSet::default(),
        }
    }

    fn admits(&self, who: Who) -> bool {
        self.asked.is_none() && who == self.promised
    }

    fn refuse(&self, session: usize, out: &mut Out) {
        let epoch = self.highest().epoch;
        let reason = Reason::Epoch;
        out.push((session, Said::Refused { reason, epoch }));
    }

    pub fn take(&mut self, session: usize, who: Who, message: Message, now: Nanos) -> Out {
        let mut out = Vec::new();
        if let Message::Promise { attempt, .. } = message {
            let highest = self.highest();
            let other = |w: Who, a: Id| w.epoch == who.epoch && (w, a) != (who, attempt);
            let taken = match self.asked {
                Some((_, w, a)) => other(w, a),
                None => other(self.promised, self.attempt),
            };
            if who.epoch < highest.epoch || taken {
                self.refuse(session, &mut out);
            } else {
                self.asked = Some((session, who, attempt));
                // From here on nothing lower is admitted; what waits for the drive is dropped, or runs out.
                self.admitted.clear();
                self.flush = None;
            }
            return out;
        }
        if matches!(message, Message::Close) {
            self.follows = self.follows.filter(|s| *s != session);
            return out;
        }
        if !self.admits(who) {
            self.refuse(session, &mut out);
            return out;
        }
        self.admitted_message(session, message, now, &mut out);
        out
    }

    fn admitted_message(&mut self, session: usize, message: Message, now: Nanos, out: &mut Out) {
        match message {
            Message::List { lane, after } => {
                let lane_records = &self.now.records[usize::from(lane)];
                let above = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                let mut rest = lane_records.range(above).map(|(_, h)| bare(h));
                let records: Vec<_> = rest.by_ref().take(2).collect();
                let last = rest.next().is_none();
                out.push((
                    session,
                    Said::Listed {
                        lane,
                        records,
                        last,
                    },
                ));
            }
            Message::Fetch { lane, stamp } => {
                let held = self.now.records[usize::from(lane)].get(&stamp).cloned();
                out.push((session, Said::Fetched { lane, stamp, held }));
            }
            Message::Open { .. } => {
                self.follows = Some(session);
                out.push((session, Said::Opened(self.state())));
            }
            Message::Feed { lanes } => {
                for (lane, after, s0) in lanes {
                    let s = &mut self.streams[usize::from(lane)];
                    let known = s.next.is_some() && s0.is_none();
                    assert!(!known || after <= s.written, "fed behind what is missing");
                    if after > s.written {
                        (s.written, s.stable) = (after, after);
                        s.early.clear();
                    }
                    s.next = Some(s.written.max(after) + 1);
                    if let Some(s0) = s0 {
                        self.s0.resize(LANES, s0);
                        self.s0[usize::from(lane)] = s0;
                    }
                }
            }
            Message::Batch { settled, records } => {
                for o in records {
                    self.admit(&o.held, o.position, o.flags);
                }
                self.settle(&settled);
            }
            Message::Heartbeat {
                number,
                release,
                settled,
                ..
            } => {
                self.settle(&settled);
                self.lease_until = match release {
                    true => Nanos(0),
                    false => now + self.lease,
                };
                out.push((
                    session,
                    Said::Heard {
                        number,
                        asked: release,
                    },
                ));
            }
            Message::Flush { number } => self.flush = Some((session, number)),
            Message::Set {
                version,
                members,
                level,
            } => {
                if level {
                    assert_ne!(self.standing, Standing::Promised);
                    assert_eq!(self.s0.len(), LANES, "level without Feed");
                    let settled = self.s0.iter().zip(&self.now.settled);
                    assert!(
                        settled.into_iter().all(|(s0, s)| s >= s0),
                        "level before what was copied is settled"
                    );
                    (self.standing, self.level) = (Standing::Level, version);
                } else {
                    self.standing = match members.contains(&self.id) {
                        true => Standing::Promised,
                        false => Standing::Resyncing,
                    };
                    self.kept = (self.promised.epoch, version);
                }
                out.push((session, Said::Kept { version, level }));
            }
            Message::Snapshots { number, .. } => {
                let ids = Vec::new();
                out.push((session, Said::Having { number, ids }));
            }
            Message::Promise { .. } | Message::Close => unreachable!("taken before"),
        }
    }

    fn admit(&mut self, held: &Rc<Held>, position: u64, flags: u8) {
        let lane = usize::from(held.lane);
        let s = &mut self.streams[lane];
        let next = s.next.expect("a batch behind Feed");
        assert!(position <= next, "a gap: {position} comes, {next} is next");
        if position < next && (position <= s.written || s.early.contains(&position)) {
            return;
        }
        if self
            .admitted
            .iter()
            .any(|(p, h)| *p == position && h.lane == held.lane)
        {
            return;
        }
        s.next = Some(next.max(position + 1));
        if flags & flag::LISTED != 0 {
            let has = self.now.records[lane].contains_key(&held.stamp)
                || held.stamp <= self.now.settled[lane];
            assert!(has, "{:?} is listed and not here", held.stamp);
        }
        let whole = match flags & flag::LISTED {
            0 => Rc::clone(held),
            _ => match self.now.records[lane].get(&held.stamp) {
                Some(here) => Rc::clone(here),
                None => return self.written(held.lane, position),
            },
        };
        self.admitted.push((position, whole));
    }

    fn written(&mut self, lane: u8, position: u64) {
        let s = &mut self.streams[usize::from(lane)];
        s.early.insert(position);
        while s.early.remove(&(s.written + 1)) {
            s.written += 1;
        }
    }

    /// Records that may be written now.
    pub fn admitted(&self) -> usize {
        self.admitted.len()
    }

    /// The drive is done with one.
    pub fn complete(&mut self, which: usize) -> Out {
        let (position, held) = self.admitted.swap_remove(which);
        let lane = usize::from(held.lane);
        for block in held.blocks() {
            let stamp = held.stamp_of(block);
            let value = value_of(&held, block);
            let entry = self.now.blocks[lane].entry(block);
            let here = entry.or_insert(Block { stamp, value });
            if here.stamp < stamp {
                *here = Block { stamp, value };
            }
        }
        if held.stamp > self.now.settled[lane] {
            self.now.records[lane].insert(held.stamp, Rc::clone(&held));
        }
        self.written(held.lane, position);
        if !self.volatile {
            self.make_stable();
        }
        self.ack(None)
    }

    fn make_stable(&mut self) {
        self.durable = self.now.clone();
        for s in &mut self.streams {
            s.stable = s.written;
        }
    }

    /// The drives flush; whether or not somebody asked.
    pub fn flush(&mut self) -> Out {
        self.make_stable();
        let done = self.flush.filter(|_| self.admitted.is_empty());
        if done.is_some() {
            self.flush = None;
        }
        self.ack(done)
    }

    fn ack(&self, flushed: Option<(usize, u64)>) -> Out {
        let Some(session) = self.follows.filter(|_| self.asked.is_none()) else {
            return Vec::new();
        };
        let lanes = (0..LANES as u8).map(|lane| {
            let s = &self.streams[usize::from(lane)];
            LaneAck {
                lane,
                written: s.written,
                stable: s.stable,
            }
        });
        let early = self.streams.iter().enumerate().flat_map(|(lane, s)| {
            let lane = lane as u8;
            s.early
                .iter()
                .map(move |&position| Early { lane, position })
        });
        let head = AckHead {
            flushed: flushed.filter(|f| f.0 == session).map_or(0, |f| f.1),
            records: u64::MAX,
            bytes: u64::MAX,
            space: u64::MAX,
        };
        let ack = Said::Ack {
            head,
            lanes: lanes.collect(),
            early: early.collect(),
        };
        vec![(session, ack)]
    }

    fn settle(&mut self, settled: &[(u8, Stamp)]) {
        // One that is copied to keeps its list here.
        let all = settled.iter().filter(|(lane, _)| lane & HERE == 0);
        for (lane, stamp) in all {
            let lane = usize::from(*lane);
            let now = &mut self.now.settled[lane];
            *now = (*now).max(*stamp);
            let keep = *now;
            // One that is copied to keeps its list: what it has of abandoned epochs is told apart when it joins.
            self.now.records[lane].retain(|s, _| *s > keep);
        }
    }

    /// Keeps the promise that is asked for, if no lease runs.
    pub fn promise(&mut self, now: Nanos) -> Out {
        let Some((session, who, attempt)) = self.asked else {
            return Vec::new();
        };
        if now < self.lease_until && who.incarnation != self.promised.incarnation {
            return Vec::new();
        }
        self.asked = None;
        if who != self.promised {
            self.streams = vec![
                Stream {
                    next: Some(1),
                    ..Stream::default()
                };
                LANES
            ];
            self.follows = None;
            self.s0.clear();
        }
        self.promised = who;
        self.attempt = attempt;
        self.durable = self.now.clone();
        for s in &mut self.streams {
            s.stable = s.written;
        }
        vec![(session, Said::Promised(self.state()))]
    }

    /// A session is gone.
    pub fn lost(&mut self, session: usize) {
        if self.follows == Some(session) {
            self.follows = None;
            // What it admitted runs out or not; what was not written comes again.
            self.admitted.clear();
            for s in &mut self.streams {
                s.next = s.next.map(|_| s.written + 1);
                s.early.clear();
            }
        }
        self.flush = self.flush.filter(|f| f.0 != session);
        // What was asked for is kept, whoever hears of it: nothing lower is taken again.
    }

    /// Its process restarts; with `power` all that was not flushed is gone.
    pub fn restart(&mut self, power: bool, now: Nanos) {
        if power {
            self.now = self.durable.clone();
        } else {
            self.durable = self.now.clone();
        }
        self.streams = vec![Stream::default(); LANES];
        self.admitted.clear();
        self.flush = None;
        self.asked = None;
        self.follows = None;
        self.boot += 1;
        // It does not know which lease it gave.
        self.lease_until = now + self.lease;
    }

    /// Whether a read of this process is answered.
    pub fn reads(&self, who: Who) -> bool {
        self.admits(who) && self.standing == Standing::Promised
    }

    pub fn read(&self, lane: u8, blocks: std::ops::Range<u64>) -> (Vec<Entry>, Vec<u64>) {
        let found = blocks.map(|b| self.now.blocks[usize::from(lane)].get(&b));
        let each = found.map(|b| match b {
            None => (Entry::ABSENT, 0),
            Some(b) => {
                let kind = if b.value == 0 {
                    Kind::Erased
                } else {
                    Kind::Data
                };
                let entry = Entry {
                    kind,
                    stamp: b.stamp,
                    ..Entry::ABSENT
                };
                (entry, b.value)
            }
        });
        each.unzip()
    }

    /// Everything at or below s0 becomes as it is at the source (rule 5).
    pub fn copy_from(&mut self, source: &Replica, s0: &[Stamp]) {
        for (lane, s0) in s0.iter().enumerate() {
            let mine = &mut self.now.blocks[lane];
            mine.retain(|_, b| b.stamp > *s0);
            for (&n, &b) in &source.now.blocks[lane] {
                mine.entry(n).or_insert(b);
            }
            self.now.records[lane].retain(|s, _| *s > *s0);
        }
    }

    /// What must be alike on idle members.
    pub fn blocks(&self) -> &[BTreeMap<u64, Block>] {
        &self.now.blocks
    }
}

/// What goes to and fro.
#[derive(Debug, Default)]
pub struct Pipe {
    pub there: VecDeque<Message>,
    pub back: VecDeque<Said>,
}
