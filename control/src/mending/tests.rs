//! What is decided about a volume's replicas, by records alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::away::Away;
use super::decide::{AGAIN_MS, Bad, Verdict, View, Why};
use super::errands::Begun;
use crate::coordination::Now;
use crate::records::{
    Phase, ReplicaRecord, TaskKind, TaskRecord, TaskReplica, TaskState, TaskStep, Versioned,
    VolumeRecord,
};
use crate::replication::record::{Fields, ReplicaState, ReplicationRecord};

const AFTER_MS: u64 = 900_000;
const NOW_MS: u64 = 1 << 40;

fn id(n: u8) -> Uuid {
    Uuid::from_u128(n.into())
}

fn at<T>(record: T) -> Versioned<T> {
    Versioned {
        record,
        revision: 1,
    }
}

fn volume() -> VolumeRecord {
    VolumeRecord {
        volume_id: id(200),
        name: "v".into(),
        phase: Phase::Ready,
        node_id: String::new(),
        pool_id: Uuid::nil(),
        replicated: None,
        size_bytes: 1 << 20,
        block_bytes: 4096,
        sticky: false,
        encrypted: false,
        labels: BTreeMap::new(),
        any_host: true,
        allowed_hosts: Vec::new(),
        created_unix_ms: 1,
        detached_unix_ms: 0,
        error: String::new(),
        source: None,
        restoring: None,
        placement: None,
        trashed: None,
        asked_bytes: None,
        ownership: None,
    }
}

/// Three replicas on n1 to n3, two of which it is served by at least.
struct World {
    now: Now,
    away: Away,
    after_ms: Option<u64>,
    unfit: Box<dyn Fn(&str) -> bool + Sync>,
}

impl World {
    fn new() -> Self {
        let all = (1..=3).map(|n| (id(n), format!("n{n}"), id(100)));
        let set = ReplicationRecord::new(0, all, 2, 3).unwrap();
        let made = ReplicaRecord {
            node_id: String::new(),
            made: true,
            error: String::new(),
            lost: false,
        };
        let now = Now {
            id: id(200),
            volume: Some(at(volume()).into()),
            set: Some(at(set).into()),
            set_since: None,
            attachment: None,
            attached_since: None,
            replicas: (1..=3).map(|n| (id(n), at(made.clone()))).collect(),
            task: None,
            snapshots: Vec::new(),
        };
        Self {
            now,
            away: Away::new(),
            after_ms: Some(AFTER_MS),
            unfit: Box::new(|_| false),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: &self.now,
            away: &self.away,
            unfit: &*self.unfit,
            after_ms: self.after_ms,
            generation: 0,
            at_unix_ms: NOW_MS,
        }
    }

    fn verdict(&self) -> Verdict {
        self.view().verdict()
    }

    fn away(&mut self, node: u8, ms: u64) {
        self.away.insert(format!("n{node}"), ms);
    }

    fn known(&mut self, n: u8) -> &mut ReplicaRecord {
        &mut self.now.replicas.get_mut(&id(n)).unwrap().record
    }

    fn volume(&mut self) -> &mut VolumeRecord {
        &mut Arc::make_mut(self.now.volume.as_mut().unwrap()).record
    }

    fn set(&mut self, change: impl Fn(&mut Fields)) {
        let set = Arc::make_mut(self.now.set.as_mut().unwrap());
        let mut fields = Fields::from(set.record.clone());
        change(&mut fields);
        set.record = ReplicationRecord::try_from(fields).unwrap();
    }

    fn behind(&mut self, n: u8) {
        self.set(|f| {
            f.members.retain(|m| *m != id(n));
            let of = |r: &&mut crate::replication::record::Replica| r.replica_id == id(n);
            f.replicas.iter_mut().find(of).unwrap().state = ReplicaState::Behind;
        });
    }

    fn task(&mut self, state: TaskState, automatic: bool, ago_ms: u64) {
        let replica = |n: u8| TaskReplica {
            replica_id: id(n),
            node_id: format!("n{n}"),
            pool_id: id(100),
        };
        let record = TaskRecord {
            task_id: id(201),
            volume_id: id(200),
            kind: TaskKind::Move,
            state,
            step: TaskStep::Resync,
            wanted_before: 3,
            wanted: 3,
            new: Some(replica(4)),
            more: Vec::new(),
            old: Some(replica(3)),
            old_first: false,
            automatic,
            done_bytes: 0,
            total_bytes: 0,
            copied_bytes: 0,
            error: "n4 is full".into(),
            created_unix_ms: 0,
            updated_unix_ms: NOW_MS - ago_ms,
        };
        self.now.task = Some(at(record).into());
    }
}

/// The replica that is replaced, and whether it is lost.
fn begins(verdict: Verdict) -> Option<(String, bool)> {
    match verdict {
        Verdict::Begin(Bad { replica, why }) => {
            Some((replica.node_id, matches!(why, Why::Lost(_))))
        }
        _ => None,
    }
}

fn waits(verdict: &Verdict, for_what: &str) -> bool {
    matches!(verdict, Verdict::Wait(why) if why.contains(for_what))
}

#[test]
fn a_node_that_is_away_for_long_enough_has_its_replicas_replaced() {
    let mut w = World::new();
    assert_eq!(w.verdict(), Verdict::Well);
    w.away(3, AFTER_MS - 1);
    assert_eq!(w.verdict(), Verdict::Well);
    w.away(3, AFTER_MS);
    assert_eq!(begins(w.verdict()), Some(("n3".into(), false)));
    w.behind(3);
    assert_eq!(begins(w.verdict()), Some(("n3".into(), false)));
    w.after_ms = None;
    assert_eq!(w.verdict(), Verdict::Well, "never");
    // Of others nothing is said.
    let mut w = World::new();
    w.away(9, AFTER_MS);
    assert_eq!(w.verdict(), Verdict::Well);
}

#[test]
fn what_is_lost_or_cannot_be_used_is_replaced_at_once_and_what_is_lost_first() {
    let mut w = World::new();
    w.known(2).error = "a drive failed".into();
    assert_eq!(begins(w.verdict()), Some(("n2".into(), false)));
    let mut w = World::new();
    w.away(1, AFTER_MS);
    w.known(3).lost = true;
    let first = w.view().bad().remove(0);
    assert_eq!(first.replica.node_id, "n3");
    assert!(waits(&w.verdict(), "1 of its replicas"), "two are missing");
    w.set(|f| {
        f.minimum = 1;
    });
    assert_eq!(begins(w.verdict()), Some(("n3".into(), true)));
    w.after_ms = None;
    assert!(waits(&w.verdict(), "by itself"));
    // One that is being made, or was refused, is its task's.
    let mut w = World::new();
    w.known(2).made = false;
    w.known(2).error = "the pool is full".into();
    assert_eq!(w.verdict(), Verdict::Well);
}

#[test]
fn nothing_begins_while_fewer_than_the_minimum_are_well() {
    let mut w = World::new();
    w.away(3, AFTER_MS);
    w.away(2, 5_000);
    assert!(waits(&w.verdict(), "1 of its replicas"));
    w.away.remove("n2");
    w.behind(2);
    assert!(waits(&w.verdict(), "1 of its replicas"));
    let mut w = World::new();
    w.away(3, AFTER_MS);
    w.known(1).error = "a drive failed".into();
    assert!(waits(&w.verdict(), "1 of its replicas"));
}

#[test]
fn volumes_that_are_not_to_be_touched_are_left_alone() {
    let mut w = World::new();
    w.away(3, AFTER_MS);
    let mut restored = w.view();
    restored.generation = 1;
    assert!(waits(&restored.verdict(), "decide-replicas"));
    assert!(!restored.wants_errand());
    w.volume().error = "contradictions".into();
    assert!(waits(&w.verdict(), "contradictions"));
    w.volume().restoring = Some(id(7));
    assert_eq!(w.verdict(), Verdict::Well);
    *w.volume() = VolumeRecord {
        phase: Phase::Kept,
        ..volume()
    };
    assert_eq!(w.verdict(), Verdict::Well);
}

#[test]
fn one_task_at_a_time_and_what_failed_or_was_taken_back_waits() {
    let mut w = World::new();
    w.away(3, AFTER_MS);
    for (state, automatic) in [
        (TaskState::Running, true),
        (TaskState::Running, false),
        (TaskState::Undoing, true),
    ] {
        w.task(state, automatic, 0);
        assert_eq!(w.verdict(), Verdict::Runs);
    }
    w.task(TaskState::Failed, true, AGAIN_MS - 1);
    assert!(waits(&w.verdict(), "n4 is full"));
    w.task(TaskState::Failed, true, AGAIN_MS);
    assert!(begins(w.verdict()).is_some());
    w.task(TaskState::Cancelled, true, AFTER_MS - 1);
    assert!(waits(&w.verdict(), "taken back"));
    w.task(TaskState::Cancelled, true, AFTER_MS);
    assert!(begins(w.verdict()).is_some());
    // That of a person is another thing, and so is that of another replica.
    w.task(TaskState::Cancelled, false, 0);
    assert!(begins(w.verdict()).is_some());
    w.task(TaskState::Cancelled, true, 0);
    w.away.clear();
    w.away(1, AFTER_MS);
    assert!(begins(w.verdict()).is_some());
}

#[test]
fn a_task_whose_new_node_goes_away_for_long_is_given_up() {
    let mut w = World::new();
    w.away(3, AFTER_MS);
    w.task(TaskState::Running, true, 0);
    w.away(4, AFTER_MS - 1);
    assert_eq!(w.verdict(), Verdict::Runs);
    w.away(4, AFTER_MS);
    assert!(matches!(w.verdict(), Verdict::GiveUp(why) if why.contains("n4")));
    w.task(TaskState::Running, false, 0);
    assert_eq!(w.verdict(), Verdict::Runs, "a person's waits");
    w.task(TaskState::Undoing, true, 0);
    assert_eq!(w.verdict(), Verdict::Runs);
    // It got there: the old one leaves.
    w.task(TaskState::Running, true, 0);
    w.set(|f| {
        f.members.push(id(4));
        f.replicas.push(crate::replication::record::Replica {
            replica_id: id(4),
            node_id: "n4".into(),
            pool_id: id(100),
            state: ReplicaState::Member,
        });
        f.write_quorum = 3;
    });
    assert_eq!(w.verdict(), Verdict::Runs);
}

#[test]
fn a_detached_volume_is_served_for_what_could_be_brought_back() {
    let none = HashMap::new();
    let mut w = World::new();
    assert!(!w.view().wants_errand());
    w.behind(3);
    assert!(w.view().wants_errand());
    assert_eq!(w.view().errand_node(&none).as_deref(), Some("n1"));
    let busy = HashMap::from([("n1".to_owned(), 1)]);
    assert_eq!(w.view().errand_node(&busy).as_deref(), Some("n2"));
    w.unfit = Box::new(|node| node == "n1");
    assert_eq!(w.view().errand_node(&none).as_deref(), Some("n2"));
    w.unfit = Box::new(|_| true);
    assert_eq!(w.view().errand_node(&none), None, "all are cordoned");
    w.unfit = Box::new(|_| false);
    w.away(3, 0);
    assert!(!w.view().wants_errand(), "it is away");
    w.away.clear();
    w.known(3).error = "a drive failed".into();
    assert!(!w.view().wants_errand(), "it cannot be used");
    w.task(TaskState::Running, true, 0);
    assert!(w.view().wants_errand());
    w.away(1, 0);
    assert_eq!(w.view().errand_node(&none), None, "too few to serve it");
    // A member whose data are gone counts until somebody serves the volume.
    let mut w = World::new();
    w.known(3).lost = true;
    assert!(w.view().wants_errand());
    assert_eq!(w.view().errand_node(&none).as_deref(), Some("n1"));
}

#[test]
fn errands_that_come_to_nothing_are_begun_ever_later() {
    let mut begun = Begun::default();
    let v = id(200);
    assert!(begun.may(v, 0));
    begun.begin(v, 0);
    assert!(!begun.may(v, 59_999) && begun.may(v, 60_000));
    begun.begin(v, 60_000);
    assert!(!begun.may(v, 179_999) && begun.may(v, 180_000));
    (0..40).for_each(|_| begun.begin(v, 0));
    assert!(!begun.may(v, 1_799_999) && begun.may(v, 1_800_000));
    begun.keep(|_| false);
    assert!(begun.may(v, 0));
}
