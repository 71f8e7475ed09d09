//! A KVDB was put back to an earlier backup: its record names a set of long ago, and what counts is the newest set that replicas kept (`docs/replication.md` §13).

use std::time::Duration;

use super::super::members::Place;
use super::super::message::{Action, Event, LaneState, Message, Said, State};
use super::super::ring::Limits;
use super::super::set::{ReplicaState, VolumeRecord};
use super::super::state::{Config, Machine, Named};
use super::LANES;
use crate::reactor::Nanos;
use crate::replication::seam::{Id, KeptSet, Standing};
use crate::replication::wire::ack::LaneAck;
use crate::store::types::{SnapshotId, Stamp};

/// The first epoch of the generation that a restore began.
const EPOCH: u32 = (1 << 24) + 1;

fn id(n: u8) -> Id {
    [n; 16]
}

fn kept(epoch: u32, version: u64, members: &[u8]) -> KeptSet {
    KeptSet {
        epoch,
        version,
        members: members.iter().map(|n| id(*n)).collect(),
    }
}

/// A coordinator and what it was told.
struct Takeover {
    machine: Machine,
    now: Nanos,
    /// The last question about snapshots, by place.
    asked: [u64; 3],
    opened: Vec<u8>,
    promises: Vec<u8>,
}

impl Takeover {
    /// Of three replicas, 1 to 3; these of them are members by the record.
    fn new(unverified: bool, members: &[u8], snapshots: Vec<Named>) -> Self {
        let state = |n: u8| match members.contains(&n) {
            true => ReplicaState::Member,
            false => ReplicaState::Behind,
        };
        let record = VolumeRecord {
            version: 4,
            epoch: EPOCH,
            incarnation: id(9),
            attempt: id(8),
            serving: false,
            minimum: 1,
            replicas: (1..=3).map(|n| (id(n), state(n))).collect(),
        };
        let mut config = Config::new(LANES as u8);
        config.unverified = unverified;
        config.snapshots = snapshots;
        let now = Nanos::default() + Duration::from_secs(1);
        let mut all = Self {
            machine: Machine::new(config, record, now),
            now,
            asked: [0; 3],
            opened: Vec::new(),
            promises: Vec::new(),
        };
        for n in 1..=3 {
            all.happens(Event::Connected(place(n)));
        }
        all
    }

    fn happens(&mut self, event: Event) {
        let mut out = self.machine.apply(event, self.now);
        out.extend(self.machine.pump(self.now, &|_| Limits {
            records: 64,
            bytes: 1 << 20,
        }));
        for action in out {
            let Action::Send(to, message) = action else {
                continue;
            };
            let n = to.index() as u8 + 1;
            match message {
                Message::Promise { .. } => self.promises.push(n),
                Message::Snapshots { number, .. } => self.asked[to.index()] = number,
                Message::Open { .. } => self.opened.push(n),
                _ => {}
            }
        }
        self.opened.sort_unstable();
    }

    fn later(&mut self, by: Duration) {
        self.now = self.now + by;
        self.happens(Event::Tick);
    }

    /// A replica promises, with a standing and the set that it kept; it has no records, and these snapshots.
    fn promised(&mut self, n: u8, standing: (Standing, u64), kept: KeptSet, has: &[SnapshotId]) {
        let lane = |lane: usize| LaneState {
            at: LaneAck {
                lane: lane as u8,
                written: 0,
                stable: 0,
            },
            settled: Stamp { epoch: 1, seq: 0 },
            lost: false,
        };
        let state = State {
            boot: id(n),
            lanes: (0..LANES).map(lane).collect(),
            standing: standing.0,
            level: standing.1,
            leaves: false,
            kept,
        };
        self.happens(Event::Said(place(n), Said::Promised(state)));
        for lane in 0..LANES as u8 {
            let none = Said::Listed {
                lane,
                records: Vec::new(),
                last: true,
            };
            self.happens(Event::Said(place(n), none));
        }
        let having = Said::Having {
            number: self.asked[usize::from(n) - 1],
            ids: has.to_vec(),
        };
        self.happens(Event::Said(place(n), having));
    }

    /// As a member that was well.
    fn well(&mut self, n: u8, kept: KeptSet) {
        self.promised(n, (Standing::Promised, 0), kept, &[]);
    }
}

fn place(n: u8) -> Place {
    Place::new(usize::from(n) - 1).expect("there are three")
}

#[test]
fn all_replicas_are_heard_and_the_newest_set_that_one_kept_counts() {
    let mut t = Takeover::new(true, &[1], Vec::new());
    assert_eq!(t.promises, [1, 2, 3], "members by the record or not");
    t.well(1, kept(5, 3, &[1]));
    t.well(2, kept(5, 9, &[2, 3]));
    t.later(Duration::from_secs(30));
    assert!(t.opened.is_empty(), "one is not heard: it may know better");
    t.well(3, kept(5, 8, &[1, 2, 3]));
    assert_eq!(t.opened, [2, 3], "and who was excluded waits for a resync");
}

#[test]
fn a_later_epoch_counts_whatever_its_version() {
    let mut t = Takeover::new(true, &[1, 2], Vec::new());
    t.well(1, kept(5, 90, &[1, 2]));
    t.well(2, kept(5, 90, &[1, 2]));
    t.well(3, kept(6, 12, &[3]));
    assert_eq!(t.opened, [3]);
}

#[test]
fn a_set_that_names_somebody_unknown_is_adopted_by_nobody() {
    let mut t = Takeover::new(true, &[1, 2], Vec::new());
    for n in 1..=3 {
        t.well(n, kept(5, 7, &[1, 2]));
    }
    assert_eq!(t.opened, [1, 2]);
    let mut t = Takeover::new(true, &[1, 2], Vec::new());
    t.well(1, kept(5, 7, &[1, 2]));
    t.well(2, kept(5, 8, &[2, 4]));
    t.well(3, kept(5, 6, &[1, 2, 3]));
    t.later(Duration::from_secs(30));
    assert!(t.opened.is_empty(), "4 may have what 2 lacks");
}

#[test]
fn who_is_copied_to_does_not_count() {
    for standing in [(Standing::Resyncing, 0), (Standing::Level, 10)] {
        let mut t = Takeover::new(true, &[1, 3], Vec::new());
        t.well(1, kept(5, 3, &[1, 3]));
        t.promised(3, standing, kept(5, 9, &[2, 3]), &[]);
        t.well(2, kept(5, 9, &[2, 3]));
        assert!(t.opened.is_empty(), "more are waited for");
        t.later(Duration::from_millis(100));
        assert_eq!(t.opened, [2], "{standing:?}");
    }
    // Level for the very set: it joined by that.
    let mut t = Takeover::new(true, &[1, 3], Vec::new());
    t.well(1, kept(5, 3, &[1, 3]));
    t.promised(3, (Standing::Level, 9), kept(5, 8, &[2]), &[]);
    t.well(2, kept(5, 9, &[2, 3]));
    assert_eq!(t.opened, [2, 3]);
}

#[test]
fn a_member_that_lacks_a_snapshot_does_not_count_and_others_need_none() {
    let snapshot = SnapshotId([7; 16]);
    let named = Named {
        id: snapshot,
        ready: true,
    };
    let mut t = Takeover::new(true, &[1], vec![named]);
    let well = (Standing::Promised, 0);
    t.promised(1, well, kept(5, 3, &[1]), &[]);
    t.promised(2, well, kept(5, 9, &[2, 3]), &[snapshot]);
    t.promised(3, well, kept(5, 9, &[2, 3]), &[]);
    t.later(Duration::from_millis(100));
    assert_eq!(t.opened, [2]);
}

#[test]
fn what_was_never_served_is_taken_by_the_record() {
    let mut t = Takeover::new(true, &[1, 2], Vec::new());
    for n in 1..=3 {
        t.well(n, KeptSet::default());
    }
    assert_eq!(t.opened, [1, 2]);
}

#[test]
fn of_a_verified_record_only_its_members_are_asked() {
    let mut t = Takeover::new(false, &[1, 2], Vec::new());
    assert_eq!(t.promises, [1, 2]);
    t.well(1, kept(5, 3, &[1, 2]));
    t.well(2, kept(5, 9, &[2, 3]));
    assert_eq!(t.opened, [1, 2]);
}
