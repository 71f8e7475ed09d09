//! What a task that changes the replicas of a volume needs next. Pure: it follows from the task and from the records, not from what was done before, so it may
//! be begun anew at any time, by any node; the node that coordinates the volume does it.
//!
//! | what is seen | next |
//! | --- | --- |
//! | a replica leaves, and its node has deleted it | the record forgets it (K5) |
//! | the minimum is above what it is to be | it is lowered (K6) |
//! | running, the new replica is in no record | it is added (K5) |
//! | running, the new one is not made; could not be; is no member | its node makes it; the task is taken back; it is waited for (resync, K4) |
//! | running, the new one is a member, or none is to come; the old one stays | the old one is to leave (K5) |
//! | running, the old one leaves | its node deletes it; one that is away does when it is back, and is not waited for |
//! | running, all of that is done | done |
//! | undoing, the new one is in the record | it is to leave (K5), and is waited for |
//! | undoing, it is not | as many are wanted as before (K8): cancelled, or failed |
//! | a replica is to be compared anew, and was not excluded yet | it is (K3), which [`super::changes`] writes down |
//! | it was, and is behind; is a member again | it is waited for (resync, K4); done |
//! | the minimum is below what it is to be, and there are as many members as are wanted | it is raised (K6) |
//!
//! A replica that comes to the node of a lost one that it replaces, or that would be one too many, comes after it.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::records::{
    ReplicaRecord, TaskKind, TaskRecord, TaskReplica, TaskState, TaskStep, Versioned,
};
use crate::replication::record::{ReplicaState, ReplicationRecord};

/// What the coordinator is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// There is another replica.
    Add(TaskReplica),
    /// One is to be deleted.
    Leave(Uuid),
    /// It is.
    Remove(Uuid),
    /// Another minimum.
    Minimum(u8),
    /// A member is none, until it has been compared with another one.
    Exclude(Uuid),
}

/// What is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Nothing,
    /// The coordinator is asked.
    Ask(Wish, Option<TaskStep>),
    /// It is waited: in this step, and with this in the way.
    Wait(TaskStep, String),
    /// The task is in another state from now on.
    State(TaskState, String),
    /// What was wanted before is wanted again, and the task is over.
    Back(TaskState),
}

/// Nothing is served by fewer members than the majority of the replicas that there are to be; 1 of two.
pub fn minimum_of(wanted: u8) -> u8 {
    match wanted {
        0..=2 => 1,
        n => n / 2 + 1,
    }
}

/// What is looked at.
pub struct View<'a> {
    /// The volume's replicas.
    pub set: &'a ReplicationRecord,
    /// What became of them.
    pub replicas: &'a BTreeMap<Uuid, Versioned<ReplicaRecord>>,
    /// The task, if there is one.
    pub task: Option<&'a TaskRecord>,
    /// By how few somebody wants it served.
    pub minimum: Option<u8>,
    /// Nodes that live.
    pub lives: &'a dyn Fn(&str) -> bool,
}

impl View<'_> {
    /// What is next.
    pub fn next(&self) -> Next {
        let leaving = self.set.replicas.iter();
        let mut leaving = leaving.filter(|r| r.state == ReplicaState::Leaving);
        if let Some(gone) = leaving.find(|r| !self.replicas.contains_key(&r.replica_id)) {
            return Next::Ask(Wish::Remove(gone.replica_id), None);
        }
        let minimum = self.minimum.unwrap_or(minimum_of(self.set.wanted));
        let minimum = minimum.clamp(1, self.set.wanted);
        if minimum < self.set.minimum {
            return Next::Ask(Wish::Minimum(minimum), None);
        }
        let next = match self.task {
            Some(task) if task.state == TaskState::Running => self.running(task),
            Some(task) if task.state == TaskState::Undoing => self.undoing(task),
            _ => Next::Nothing,
        };
        let whole = self.set.members.len() >= usize::from(self.set.wanted);
        match next {
            Next::Nothing if minimum > self.set.minimum && whole => {
                Next::Ask(Wish::Minimum(minimum), None)
            }
            next => next,
        }
    }

    fn state(&self, id: Uuid) -> Option<ReplicaState> {
        self.set.replica(id).map(|r| r.state)
    }

    fn running(&self, task: &TaskRecord) -> Next {
        if task.kind == TaskKind::Resync {
            return self.compare(task);
        }
        let first = task.old_first;
        let steps = [
            task.old
                .as_ref()
                .filter(|_| first)
                .map(|old| self.take(old, true)),
            task.new.as_ref().map(|new| self.bring(new)),
            task.old
                .as_ref()
                .filter(|_| !first)
                .map(|old| self.take(old, false)),
        ];
        let next = steps.into_iter().flatten().flatten().next();
        next.unwrap_or(Next::State(TaskState::Done, String::new()))
    }

    /// What a replica that is to be compared anew needs.
    fn compare(&self, task: &TaskRecord) -> Next {
        let failed = |why: String| Next::State(TaskState::Failed, why);
        let Some(replica) = &task.new else {
            return failed("no replica is named".into());
        };
        let node = &replica.node_id;
        match self.state(replica.replica_id) {
            None | Some(ReplicaState::Leaving) => {
                failed(format!("the replica on node {node} was taken away"))
            }
            Some(ReplicaState::Member) if task.step == TaskStep::Resync => {
                Next::State(TaskState::Done, String::new())
            }
            Some(ReplicaState::Member) => {
                Next::Ask(Wish::Exclude(replica.replica_id), Some(TaskStep::Leave))
            }
            Some(ReplicaState::Empty | ReplicaState::Behind) => {
                let why = match (self.lives)(node) {
                    true => String::new(),
                    false => format!("node {node} is away"),
                };
                Next::Wait(TaskStep::Resync, why)
            }
        }
    }

    /// What the new replica needs; `None`: it is a member.
    fn bring(&self, new: &TaskReplica) -> Option<Next> {
        let id = new.replica_id;
        match self.state(id) {
            Some(ReplicaState::Member) => return None,
            None => return Some(Next::Ask(Wish::Add(new.clone()), Some(TaskStep::Add))),
            Some(ReplicaState::Leaving) => {
                let why = "the new replica was told to leave".into();
                return Some(Next::State(TaskState::Undoing, why));
            }
            Some(ReplicaState::Empty | ReplicaState::Behind) => {}
        }
        let made = self.replicas.get(&id).map(|r| &r.record);
        if let Some(made) = made.filter(|m| m.lost || !m.made && !m.error.is_empty()) {
            let why = format!("node {}: {}", new.node_id, made.error);
            return Some(Next::State(TaskState::Undoing, why));
        }
        let step = match made {
            Some(made) if made.made => TaskStep::Resync,
            _ => TaskStep::Make,
        };
        let why = match made {
            _ if !(self.lives)(&new.node_id) => format!("node {} is away", new.node_id),
            Some(made) => made.error.clone(),
            None => String::new(),
        };
        Some(Next::Wait(step, why))
    }

    /// What has to be done until a replica is gone; `None`: it is, or its node is away and is not waited for.
    fn take(&self, old: &TaskReplica, must_be_gone: bool) -> Option<Next> {
        let lives = (self.lives)(&old.node_id);
        match self.state(old.replica_id) {
            None => None,
            Some(ReplicaState::Leaving) if lives => {
                Some(Next::Wait(TaskStep::Delete, String::new()))
            }
            Some(ReplicaState::Leaving) => must_be_gone
                .then(|| Next::Wait(TaskStep::Delete, format!("node {} is away", old.node_id))),
            Some(_) => Some(Next::Ask(
                Wish::Leave(old.replica_id),
                Some(TaskStep::Leave),
            )),
        }
    }

    fn undoing(&self, task: &TaskRecord) -> Next {
        if task.kind == TaskKind::Resync {
            // It comes back by itself.
            return Next::State(TaskState::Cancelled, String::new());
        }
        let over = match task.error.is_empty() {
            true => TaskState::Cancelled,
            false => TaskState::Failed,
        };
        let left = task.new.as_ref().and_then(|new| self.take(new, false));
        left.unwrap_or(Next::Back(over))
    }
}

#[cfg(test)]
mod tests {
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
                old: old.map(replica),
                old_first: false,
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
}
