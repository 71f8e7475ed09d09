//! Whether a replica of a volume is to be replaced, and whether that can begin. Pure.

use uuid::Uuid;

use super::away::Away;
use crate::coordination::Now;
use crate::records::{Phase, TaskRecord, TaskReplica, TaskState};
use crate::replication::record::{Replica, ReplicaState, ReplicationRecord};

/// A task that failed is begun again after this. One that a person took back is not begun again sooner.
pub const AGAIN_MS: u64 = 300_000;

/// Why a replica is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its data are gone.
    Lost(String),
    /// It cannot be used.
    Unusable(String),
    /// Its node is away.
    Away,
}

/// A replica that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Which.
    pub replica: Replica,
    /// And why.
    pub why: Why,
}

/// What is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Well,
    /// A task that replaces it, or another one, runs.
    Runs,
    /// It is to be replaced.
    Begin(Bad),
    /// The task that runs cannot get to its end.
    GiveUp(String),
    /// Nothing can be done now.
    Wait(String),
}

/// What is looked at.
pub struct View<'a> {
    /// The volume.
    pub now: &'a Now,
    /// Nodes that are away.
    pub away: &'a Away,
    /// Nodes that get nothing new.
    pub unfit: &'a (dyn Fn(&str) -> bool + Sync),
    /// For how long a node must be away, ms; `None`: nothing is replaced.
    pub after_ms: Option<u64>,
    /// The cluster's generation.
    pub generation: u8,
    /// The time.
    pub at_unix_ms: u64,
}

impl View<'_> {
    fn set(&self) -> Option<&ReplicationRecord> {
        self.now.set.as_ref().map(|s| &s.record)
    }

    fn is_away_long(&self, node_id: &str) -> bool {
        let away = self.away.get(node_id);
        away.is_some_and(|ms| self.after_ms.is_some_and(|after| *ms >= after))
    }

    /// What is wrong with a replica for good, or for long.
    fn why(&self, id: Uuid, node_id: &str) -> Option<Why> {
        let known = self.now.replicas.get(&id).map(|r| &r.record);
        match known {
            Some(r) if r.lost => Some(Why::Lost(r.error.clone())),
            // One that could not be made is its task's business.
            Some(r) if r.made && !r.error.is_empty() => Some(Why::Unusable(r.error.clone())),
            _ => self.is_away_long(node_id).then_some(Why::Away),
        }
    }

    /// Replicas that are to be replaced; those whose data are gone first.
    pub fn bad(&self) -> Vec<Bad> {
        let staying = self.set().into_iter().flat_map(|s| &s.replicas);
        let staying = staying.filter(|r| r.state != ReplicaState::Leaving);
        let mut bad: Vec<Bad> = staying
            .filter_map(|r| {
                let why = self.why(r.replica_id, &r.node_id)?;
                let replica = r.clone();
                Some(Bad { replica, why })
            })
            .collect();
        bad.sort_by_key(|b| !matches!(b.why, Why::Lost(_)));
        bad
    }

    /// Members whose nodes live, and say nothing bad of them.
    pub fn well(&self) -> Vec<&Replica> {
        let members = self.set().into_iter().flat_map(|s| &s.replicas);
        let well = |r: &&Replica| {
            r.state == ReplicaState::Member
                && !self.away.contains_key(&r.node_id)
                && self.why(r.replica_id, &r.node_id).is_none()
        };
        members.filter(well).collect()
    }

    fn is_member(&self, replica: &TaskReplica) -> bool {
        let found = self.set().and_then(|s| s.replica(replica.replica_id));
        found.is_some_and(|r| r.state == ReplicaState::Member)
    }

    /// What is done.
    pub fn verdict(&self) -> Verdict {
        let (Some(volume), Some(set)) = (&self.now.volume, self.set()) else {
            return Verdict::Well;
        };
        let volume = &volume.record;
        if volume.phase != Phase::Ready || volume.restoring.is_some() {
            return Verdict::Well;
        }
        let task = self.now.task.as_ref().map(|t| &t.record);
        if let Some(task) = task.filter(|t| !t.state.is_over()) {
            return self.running(task);
        }
        let Some(bad) = self.bad().into_iter().next() else {
            return Verdict::Well;
        };
        if set.unverified(self.generation) {
            let why = "since a restore of the KVDB a person is to say which replicas count (`keelctl volume decide-replicas`)";
            return Verdict::Wait(why.into());
        }
        if !volume.error.is_empty() {
            return Verdict::Wait(volume.error.clone());
        }
        let Some(after_ms) = self.after_ms else {
            let why = "nothing is replaced by itself in this cluster (`keelctl cluster options`)";
            return Verdict::Wait(why.into());
        };
        if let Some(why) = task.and_then(|t| self.not_again(t, &bad, after_ms)) {
            return Verdict::Wait(why);
        }
        let well = self.well().len();
        if well < usize::from(set.minimum.max(1)) {
            return Verdict::Wait(format!(
                "{well} of its replicas in sync can be reached, and it is served by no fewer than {}: the others are waited for",
                set.minimum
            ));
        }
        Verdict::Begin(bad)
    }

    fn running(&self, task: &TaskRecord) -> Verdict {
        let new = task.new.as_ref();
        let new = new.filter(|new| task.automatic && !self.is_member(new));
        let why = new.and_then(|new| self.why(new.replica_id, &new.node_id));
        match (new, why) {
            (Some(new), Some(_)) if task.state == TaskState::Running => {
                Verdict::GiveUp(format!("node {} went away, or lost it", new.node_id))
            }
            _ => Verdict::Runs,
        }
    }

    /// Why the same is not begun again yet.
    fn not_again(&self, task: &TaskRecord, bad: &Bad, after_ms: u64) -> Option<String> {
        let old = task.old.as_ref().map(|r| r.replica_id);
        if !task.automatic || old != Some(bad.replica.replica_id) {
            return None;
        }
        let since = self.at_unix_ms.saturating_sub(task.updated_unix_ms);
        match task.state {
            TaskState::Failed if since < AGAIN_MS => Some(format!("{}; tried again", task.error)),
            TaskState::Cancelled if since < after_ms.max(AGAIN_MS) => {
                Some("it was taken back; tried again later".into())
            }
            _ => None,
        }
    }
}
