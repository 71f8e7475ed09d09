//! A task is gone on with until there is nothing to do but to wait, over the transitions of the record.

use super::*;
use crate::replication::record::{Fields, Holder, Replica, Token};
use crate::replication::transition::{self, Coordinator};

fn id(n: u8) -> Uuid {
    Uuid::from_u128(n.into())
}

fn replica(n: u8) -> TaskReplica {
    TaskReplica {
        replica_id: id(n),
        node_id: format!("n{n}"),
        pool_id: id(100),
    }
}

fn by() -> Coordinator {
    Coordinator {
        epoch: crate::replication::record::Epoch::new(0, 1).unwrap(),
        incarnation: Token([1; 16]),
        attempt: Token([2; 16]),
    }
}

/// Replicas 1 to `n`, served.
fn served(n: u8) -> ReplicationRecord {
    let all = (1..=n).map(|n| (id(n), format!("n{n}"), id(100)));
    let new = ReplicationRecord::new(0, all, minimum_of(n), n).unwrap();
    let holder = Holder {
        node_id: "n1".into(),
        incarnation: Token([1; 16]),
        attempt: Token([2; 16]),
    };
    let taken = transition::take(&new, 0, holder).unwrap();
    transition::serve(&taken, by(), &taken.members.clone(), &[]).unwrap()
}

struct World {
    set: ReplicationRecord,
    replicas: BTreeMap<Uuid, Versioned<ReplicaRecord>>,
    task: TaskRecord,
    away: Vec<String>,
    minimum: Option<u8>,
    asked: Vec<Wish>,
}

impl World {
    fn new(n: u8, kind: TaskKind, new: Option<u8>, old: Option<u8>) -> Self {
        let set = served(n);
        let wanted = match kind {
            TaskKind::Increase => n + 1,
            TaskKind::Decrease => n - 1,
            TaskKind::Move | TaskKind::Resync => n,
        };
        let task = TaskRecord {
            task_id: id(200),
            volume_id: id(201),
            kind,
            state: TaskState::Running,
            step: TaskStep::Add,
            wanted_before: n,
            wanted,
            new: new.map(replica),
            more: Vec::new(),
            old: old.map(replica),
            old_first: false,
            automatic: false,
            done_bytes: 0,
            total_bytes: 0,
            copied_bytes: 0,
            error: String::new(),
            created_unix_ms: 0,
            updated_unix_ms: 0,
        };
        let mut world = Self {
            set: transition::want(&set, wanted).unwrap_or(set),
            replicas: BTreeMap::new(),
            task,
            away: Vec::new(),
            minimum: None,
            asked: Vec::new(),
        };
        (1..=n).for_each(|n| world.make(id(n), ""));
        world
    }

    fn make(&mut self, id: Uuid, error: &str) {
        let record = ReplicaRecord {
            node_id: String::new(),
            made: error.is_empty(),
            error: error.into(),
            lost: false,
        };
        let revision = 1;
        self.replicas.insert(id, Versioned { record, revision });
    }

    fn next(&self) -> Next {
        View {
            set: &self.set,
            replicas: &self.replicas,
            task: Some(&self.task),
            minimum: self.minimum,
            lives: &|node| !self.away.iter().any(|n| n == node),
        }
        .next()
    }

    /// Does what is next, as a coordinator and the KVDB would; `false`: there is nothing but to wait.
    fn step(&mut self) -> bool {
        match self.next() {
            Next::Nothing | Next::Wait(..) => return false,
            Next::Ask(wish, _) => {
                let next = match &wish {
                    Wish::Add(new) => {
                        let (node, pool) = (&new.node_id, new.pool_id);
                        transition::add(&self.set, by(), new.replica_id, node, pool)
                    }
                    Wish::Leave(one) => transition::leave(&self.set, by(), *one),
                    Wish::Remove(one) => transition::remove(&self.set, by(), *one),
                    Wish::Minimum(m) => transition::set_minimum(&self.set, by(), *m),
                    Wish::Exclude(one) => {
                        self.task.step = TaskStep::Resync;
                        transition::exclude(&self.set, by(), &[*one])
                    }
                };
                self.set = next.unwrap_or_else(|why| panic!("{wish:?}: {why}"));
                self.asked.push(wish);
            }
            Next::State(state, error) => (self.task.state, self.task.error) = (state, error),
            Next::Back(state) => {
                let before = self.task.wanted_before;
                self.set = transition::want(&self.set, before).unwrap_or(self.set.clone());
                self.task.state = state;
            }
        }
        true
    }

    fn go(&mut self) {
        for _ in 0..20 {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.asked);
    }

    fn join(&mut self, n: u8) {
        self.set = transition::admit(&self.set, by(), id(n)).unwrap();
    }

    fn state(&self, n: u8) -> Option<ReplicaState> {
        self.set.replica(id(n)).map(|r| r.state)
    }
}

#[test]
fn one_more_is_added_made_copied_and_then_the_minimum_rises() {
    let mut world = World::new(2, TaskKind::Increase, Some(3), None);
    world.go();
    assert_eq!(world.state(3), Some(ReplicaState::Empty));
    assert_eq!(world.next(), Next::Wait(TaskStep::Make, String::new()));
    world.make(id(3), "");
    assert_eq!(world.next(), Next::Wait(TaskStep::Resync, String::new()));
    world.away = vec!["n3".into()];
    let away = "node n3 is away".to_owned();
    assert_eq!(world.next(), Next::Wait(TaskStep::Resync, away));
    world.away.clear();
    assert_eq!(world.set.minimum, 1, "not before it is there");
    world.join(3);
    world.go();
    assert_eq!((world.task.state, world.set.minimum), (TaskState::Done, 2));
    let new = replica(3);
    assert_eq!(world.asked, [Wish::Add(new), Wish::Minimum(2)]);
}

/// One replica that is to become three.
fn one_to_three() -> World {
    let mut world = World::new(1, TaskKind::Increase, Some(2), None);
    world.task.more = vec![replica(3)];
    world.task.wanted = 3;
    world.set = transition::want(&world.set, 3).unwrap();
    world.go();
    world
}

#[test]
fn several_are_added_at_once_and_the_minimum_rises_when_all_are_there() {
    let mut world = one_to_three();
    assert_eq!(world.asked, [Wish::Add(replica(2)), Wish::Add(replica(3))]);
    world.make(id(3), "");
    world.join(3);
    world.go();
    assert_eq!(world.next(), Next::Wait(TaskStep::Make, String::new()));
    assert_eq!(world.set.minimum, 1);
    world.make(id(2), "");
    world.join(2);
    world.go();
    assert_eq!((world.task.state, world.set.minimum), (TaskState::Done, 2));
}

#[test]
fn several_are_taken_back_together() {
    let mut world = one_to_three();
    world.make(id(2), "");
    world.join(2);
    world.make(id(3), "the pool is full");
    world.go();
    let states = [world.state(2), world.state(3)];
    assert_eq!(
        states,
        [Some(ReplicaState::Leaving), Some(ReplicaState::Empty)]
    );
    world.replicas.remove(&id(2));
    world.go();
    world.replicas.remove(&id(3));
    world.go();
    assert_eq!(world.task.state, TaskState::Failed);
    assert_eq!(world.task.error, "node n3: the pool is full");
    assert_eq!((world.set.wanted, world.set.replicas.len()), (1, 1));
}

#[test]
fn one_that_cannot_be_made_is_taken_back() {
    let mut world = World::new(2, TaskKind::Increase, Some(3), None);
    world.go();
    world.make(id(3), "the pool is full");
    world.go();
    assert_eq!(world.state(3), Some(ReplicaState::Leaving));
    assert_eq!(world.next(), Next::Wait(TaskStep::Delete, String::new()));
    world.replicas.remove(&id(3));
    world.go();
    assert_eq!(world.state(3), None);
    assert_eq!(world.task.state, TaskState::Failed);
    assert_eq!(world.task.error, "node n3: the pool is full");
    assert_eq!((world.set.wanted, world.set.minimum), (2, 1));
}

#[test]
fn one_less_has_the_minimum_lowered_first_and_the_node_delete_it() {
    let mut world = World::new(3, TaskKind::Decrease, None, Some(2));
    world.go();
    assert_eq!(world.asked, [Wish::Minimum(1), Wish::Leave(id(2))]);
    assert_eq!(world.set.members, [id(1), id(3)]);
    assert_eq!(world.task.state, TaskState::Running);
    world.replicas.remove(&id(2));
    world.go();
    assert_eq!(world.state(2), None);
    assert_eq!(world.task.state, TaskState::Done);
}

#[test]
fn a_node_that_is_away_deletes_when_it_is_back_and_nobody_waits() {
    let mut world = World::new(3, TaskKind::Decrease, None, Some(2));
    world.away = vec!["n2".into()];
    world.go();
    assert_eq!(world.task.state, TaskState::Done);
    assert_eq!(world.state(2), Some(ReplicaState::Leaving));
    world.replicas.remove(&id(2));
    world.go();
    assert_eq!(world.state(2), None, "it came back, and deleted it");
}

#[test]
fn a_move_brings_the_new_one_before_the_old_one_goes() {
    let mut world = World::new(2, TaskKind::Move, Some(3), Some(2));
    world.go();
    world.make(id(3), "");
    assert_eq!(world.state(2), Some(ReplicaState::Member));
    world.join(3);
    world.go();
    assert_eq!(world.state(2), Some(ReplicaState::Leaving));
    world.replicas.remove(&id(2));
    world.go();
    assert_eq!(world.task.state, TaskState::Done);
    assert_eq!(world.set.members, [id(1), id(3)]);
    assert_eq!(world.set.minimum, 1);
}

#[test]
fn a_lost_one_goes_first_if_the_new_one_comes_to_its_node() {
    let mut world = World::new(3, TaskKind::Move, Some(4), Some(3));
    world.task.new.as_mut().unwrap().node_id = "n3".into();
    world.task.old_first = true;
    world.go();
    assert_eq!(world.state(3), Some(ReplicaState::Leaving));
    assert_eq!(world.state(4), None);
    world.away = vec!["n3".into()];
    assert!(matches!(world.next(), Next::Wait(TaskStep::Delete, why) if why.contains("away")));
    world.away.clear();
    world.replicas.remove(&id(3));
    world.go();
    assert_eq!(
        (world.state(3), world.state(4)),
        (None, Some(ReplicaState::Empty))
    );
}

/// Replicas 1 to 3, the last of which is replaced by itself, and is out of the set.
fn replaced() -> World {
    let mut world = World::new(3, TaskKind::Move, Some(4), Some(3));
    world.task.automatic = true;
    world.away = vec!["n3".into()];
    world.set = transition::exclude(&world.set, by(), &[id(3)]).unwrap();
    world.go();
    world.make(id(4), "");
    world
}

#[test]
fn one_that_is_replaced_by_itself_and_returns_first_stays() {
    let mut world = replaced();
    assert_eq!(world.state(4), Some(ReplicaState::Empty));
    // It is back, and not in sync: that goes on beside.
    world.away.clear();
    assert_eq!(world.next(), Next::Wait(TaskStep::Resync, String::new()));
    world.join(3);
    world.go();
    assert_eq!(world.state(4), Some(ReplicaState::Leaving));
    world.replicas.remove(&id(4));
    world.go();
    assert_eq!(world.task.state, TaskState::Cancelled);
    assert_eq!(world.set.members, [id(1), id(2), id(3)]);
    // Whoever asked for a move gets it, though the old one is well.
    let mut world = World::new(3, TaskKind::Move, Some(4), Some(3));
    world.go();
    world.make(id(4), "");
    assert_eq!(world.next(), Next::Wait(TaskStep::Resync, String::new()));
}

#[test]
fn one_that_returns_later_leaves_and_one_that_is_lost_again_does_not_take_the_new_one_with_it() {
    let mut world = replaced();
    world.join(4);
    world.away.clear();
    world.join(3);
    world.go();
    assert_eq!(world.state(3), Some(ReplicaState::Leaving));
    assert_eq!(world.state(4), Some(ReplicaState::Member));
    // It was in sync first, so the new one is taken back; then it is, and the old one is away once more.
    let mut world = replaced();
    world.away.clear();
    world.join(3);
    assert!(world.step());
    assert_eq!(world.task.state, TaskState::Undoing);
    world.join(4);
    world.away = vec!["n3".into()];
    world.set = transition::exclude(&world.set, by(), &[id(3)]).unwrap();
    world.go();
    assert_eq!(world.task.state, TaskState::Done);
    assert_eq!(world.set.members, [id(1), id(2), id(4)]);
    // What a person takes back is taken back, as long as the new one is none that counts.
    let mut world = replaced();
    world.task.state = TaskState::Undoing;
    world.go();
    world.replicas.remove(&id(4));
    world.go();
    assert_eq!(world.task.state, TaskState::Cancelled);
}

#[test]
fn a_member_whose_data_are_lost_has_not_returned() {
    let mut world = World::new(3, TaskKind::Move, Some(4), Some(3));
    world.task.automatic = true;
    world.replicas.get_mut(&id(3)).unwrap().record.lost = true;
    world.go();
    assert_eq!(world.asked, [Wish::Add(replica(4))]);
    assert_eq!(world.task.state, TaskState::Running);
}

#[test]
fn one_that_is_compared_anew_is_out_of_the_set_until_it_was() {
    let mut world = World::new(3, TaskKind::Resync, Some(2), None);
    world.task.step = TaskStep::Leave;
    world.go();
    assert_eq!(world.asked, [Wish::Exclude(id(2))]);
    assert_eq!(world.state(2), Some(ReplicaState::Behind));
    assert_eq!(world.next(), Next::Wait(TaskStep::Resync, String::new()));
    let mut cancelled = world.task.clone();
    cancelled.state = TaskState::Undoing;
    std::mem::swap(&mut world.task, &mut cancelled);
    world.go();
    assert_eq!(world.task.state, TaskState::Cancelled);
    assert_eq!(world.asked.len(), 1, "it comes back by itself");
    std::mem::swap(&mut world.task, &mut cancelled);
    world.join(2);
    world.go();
    assert_eq!(world.task.state, TaskState::Done);
    assert_eq!((world.asked.len(), world.set.members.len()), (1, 3));
    // One that was taken away meanwhile.
    let mut world = World::new(3, TaskKind::Resync, Some(7), None);
    world.go();
    assert_eq!(world.task.state, TaskState::Failed);
    assert!(world.task.error.contains("n7"), "{}", world.task.error);
}

#[test]
fn what_is_cancelled_leaves_nothing() {
    let mut world = World::new(2, TaskKind::Increase, Some(3), None);
    world.go();
    world.make(id(3), "");
    world.task.state = TaskState::Undoing;
    world.go();
    assert_eq!(world.state(3), Some(ReplicaState::Leaving));
    world.replicas.remove(&id(3));
    world.go();
    assert_eq!(world.task.state, TaskState::Cancelled);
    assert_eq!((world.set.wanted, world.set.replicas.len()), (2, 2));
    // Of one that did not begin too.
    let mut world = World::new(2, TaskKind::Increase, Some(3), None);
    world.task.state = TaskState::Undoing;
    world.go();
    assert_eq!(world.task.state, TaskState::Cancelled);
    assert!(world.asked.is_empty());
}

#[test]
fn the_minimum_is_what_somebody_said_as_far_as_there_are_replicas() {
    let mut world = World::new(3, TaskKind::Decrease, None, Some(2));
    world.task.state = TaskState::Done;
    world.set = transition::want(&world.set, 3).unwrap();
    world.minimum = Some(3);
    world.go();
    assert_eq!(world.set.minimum, 3);
    world.minimum = Some(9);
    assert_eq!(world.next(), Next::Nothing);
    world.minimum = Some(1);
    world.go();
    assert_eq!(world.set.minimum, 1);
    // Not while one is missing.
    world.minimum = None;
    let mut fields = Fields::from(world.set.clone());
    fields.members.retain(|m| *m != id(3));
    let behind = |r: &mut Replica| r.state = ReplicaState::Behind;
    fields
        .replicas
        .iter_mut()
        .filter(|r| r.replica_id == id(3))
        .for_each(behind);
    world.set = ReplicationRecord::try_from(fields).unwrap();
    assert_eq!(world.next(), Next::Nothing);
}
