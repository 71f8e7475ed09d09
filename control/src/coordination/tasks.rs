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
//! | running by itself (§21), the old one is a member that lives and is well, the new one is none | taken back |
//! | undoing by itself, the new one is a member, and the old one is none that lives and is well | it goes on |
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
        if task.automatic && self.returned(task) {
            return Next::State(TaskState::Undoing, String::new());
        }
        let first = task.old_first;
        let old = task.old.as_ref();
        let before = old.filter(|_| first).and_then(|old| self.take(old, true));
        let bring = || self.bring_all(task);
        let after = || old.filter(|_| !first).and_then(|old| self.take(old, false));
        let next = before.or_else(bring).or_else(after);
        next.unwrap_or(Next::State(TaskState::Done, String::new()))
    }

    /// A replica is a member, on a node that lives and says nothing bad of it.
    fn is_well(&self, replica: &TaskReplica) -> bool {
        let made = self.replicas.get(&replica.replica_id).map(|r| &r.record);
        self.state(replica.replica_id) == Some(ReplicaState::Member)
            && made.is_none_or(|r| !r.lost && r.error.is_empty())
            && (self.lives)(&replica.node_id)
    }

    fn is_member(&self, replica: &Option<TaskReplica>) -> bool {
        let id = replica.as_ref().map(|r| r.replica_id);
        id.is_some_and(|id| self.state(id) == Some(ReplicaState::Member))
    }

    /// The replica that is replaced is back in sync, before the new one was.
    fn returned(&self, task: &TaskRecord) -> bool {
        let old = task.old.as_ref();
        !self.is_member(&task.new) && old.is_some_and(|old| self.is_well(old))
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

    /// What the replicas that come need; `None`: all are members. All are added before any is waited for.
    fn bring_all(&self, task: &TaskRecord) -> Option<Next> {
        let mut next = task.coming().filter_map(|new| self.bring(new));
        let first = next.next()?;
        if !matches!(first, Next::Wait(..)) {
            return Some(first);
        }
        let other = next.find(|n| !matches!(n, Next::Wait(..)));
        Some(other.unwrap_or(first))
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
        let old = task.old.as_ref();
        if task.automatic && self.is_member(&task.new) && !old.is_some_and(|old| self.is_well(old))
        {
            // The new one is the copy that counts.
            return Next::State(TaskState::Running, String::new());
        }
        let over = match task.error.is_empty() {
            true => TaskState::Cancelled,
            false => TaskState::Failed,
        };
        let left = task.coming().find_map(|new| self.take(new, false));
        left.unwrap_or(Next::Back(over))
    }
}

#[cfg(test)]
mod tests;
