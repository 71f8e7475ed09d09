//! What is next for the moves of a rebalance. Pure: it follows from the job's record and from the records of its volumes alone, so it may be begun anew at any time, by any
//! node. A move is known by the replica that goes, whose id is never another one's.
//!
//! | move | what is seen | then |
//! | --- | --- | --- |
//! | planned | a task of the volume, other than the one before, moves this replica there | it is the move's: whoever began it has died, or was not told |
//! | planned | the replica is gone, or leaves | done if there is one where it was to come, else failed |
//! | planned | the job is paused; cancelled, or late | nothing; skipped |
//! | planned | fewer run than may | begun |
//! | running | its task runs | waited for; taken back if the job is cancelled, or the node where it is to come has been away for [`AWAY_MS`] |
//! | running | its task is done; failed, or was taken back | done; failed |
//! | running | the volume has another task, or none | as the replica says |
//! | any | the volume is gone | failed |

use super::record::{JobState, MoveRecord, MoveState, RebalanceRecord};
use crate::records::{TaskKind, TaskRecord, TaskState};
use crate::replication::record::{ReplicaState, ReplicationRecord};
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// So long a move waits for the node where it is to come, in ms: longer than a machine takes to start again.
pub const AWAY_MS: u64 = 30 * 60_000;

/// What is known of a volume at a moment: read in this order.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Its last task.
    pub task: Option<TaskRecord>,
    /// Its replicas; `None`: it is gone.
    pub set: Option<ReplicationRecord>,
    /// Nodes that do not live.
    pub away: Arc<HashSet<String>>,
}

/// What is to be done for a move of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Begin it.
    Begin(usize),
    /// Take its task back.
    TakeBack(usize),
}

impl MoveRecord {
    fn ends(&mut self, state: MoveState, error: &str, now_unix_ms: u64) {
        self.state = state;
        self.error = error.to_owned();
        self.ended_unix_ms = now_unix_ms;
    }

    /// A task that does just this.
    fn is_by(&self, task: &TaskRecord) -> bool {
        let old = task.old.as_ref().map(|r| r.replica_id);
        let to = task.new.as_ref().map(|r| r.node_id.as_str());
        task.kind == TaskKind::Move
            && old == Some(self.replica_id)
            && to == Some(self.to_node.as_str())
            && Some(task.task_id) != self.task_before
    }

    /// It has this task.
    fn takes(&mut self, task: &TaskRecord, now_unix_ms: u64) {
        self.state = MoveState::Running;
        self.task_id = Some(task.task_id);
        self.begun_unix_ms = task.created_unix_ms;
        match task.state {
            TaskState::Running | TaskState::Undoing if self.given_up => self.error = self.words(),
            TaskState::Running | TaskState::Undoing => self.error.clone_from(&task.error),
            TaskState::Done => self.ends(MoveState::Done, "", now_unix_ms),
            TaskState::Cancelled if self.given_up => {
                self.ends(MoveState::Failed, &self.words(), now_unix_ms);
            }
            TaskState::Cancelled => {
                self.ends(MoveState::Failed, "it was taken back", now_unix_ms);
            }
            TaskState::Failed => self.ends(MoveState::Failed, &task.error, now_unix_ms),
        }
    }

    /// Why it was given up.
    fn words(&self) -> String {
        format!(
            "node {} has been away for {} minutes: given up, the replica stays on node {}",
            self.to_node,
            AWAY_MS / 60_000,
            self.from_node
        )
    }

    /// Whether it has waited for its node long enough. What has everything already needs that node no more.
    fn waits_in_vain(&mut self, known: &Known, now_unix_ms: u64) -> bool {
        let task = known.task.as_ref().filter(|t| self.is_by(t));
        let runs = task.is_some_and(|t| t.state == TaskState::Running);
        if self.state != MoveState::Running || !runs {
            return false;
        }
        if !known.away.contains(&self.to_node) {
            (self.away_unix_ms, self.given_up) = (0, false);
            return false;
        }
        if self.away_unix_ms == 0 {
            self.away_unix_ms = now_unix_ms;
        }
        self.given_up = now_unix_ms.saturating_sub(self.away_unix_ms) >= AWAY_MS;
        self.given_up
    }

    /// The replica is not there any more: whoever moved it.
    fn is_gone(&mut self, set: &ReplicationRecord, now_unix_ms: u64) -> bool {
        let stays = |r: &&crate::replication::record::Replica| r.state != ReplicaState::Leaving;
        let mut staying = set.replicas.iter().filter(stays);
        if staying.clone().any(|r| r.replica_id == self.replica_id) {
            return false;
        }
        match staying.any(|r| r.node_id == self.to_node) {
            true => self.ends(MoveState::Done, "", now_unix_ms),
            false => self.ends(
                MoveState::Failed,
                "others took the replica away meanwhile",
                now_unix_ms,
            ),
        }
        true
    }

    /// Looks at it: what it is now.
    pub(super) fn look(&mut self, known: &Known, now_unix_ms: u64) {
        if let Some(task) = known.task.as_ref().filter(|t| self.is_by(t)) {
            return self.takes(task, now_unix_ms);
        }
        let Some(set) = &known.set else {
            return self.ends(MoveState::Failed, "the volume was deleted", now_unix_ms);
        };
        if !self.is_gone(set, now_unix_ms) && self.state == MoveState::Running {
            let why = "its task is over, and the replica is where it was";
            self.ends(MoveState::Failed, why, now_unix_ms);
        }
    }
}

impl RebalanceRecord {
    /// Brings it up to what is known, and says what is to be done. `known` is asked for moves that are not over: all that run, and as many of those that are planned as could
    /// be begun.
    pub fn follow(&mut self, known: &dyn Fn(Uuid) -> Option<Known>, now_unix_ms: u64) -> Vec<Act> {
        let mut in_vain = Vec::new();
        let open = self.moves.iter_mut().enumerate();
        for (i, one) in open.filter(|(_, m)| !m.state.is_over()) {
            if let Some(known) = known(one.volume_id) {
                one.look(&known, now_unix_ms);
                if one.waits_in_vain(&known, now_unix_ms) {
                    in_vain.push(Act::TakeBack(i));
                }
            }
        }
        let begins = self.state == JobState::Running && !self.is_late(now_unix_ms);
        if !begins && self.state != JobState::Paused {
            let planned = self.moves.iter_mut();
            for one in planned.filter(|m| m.state == MoveState::Planned) {
                let why = match self.state {
                    JobState::Cancelling => "cancelled before it began",
                    _ => "there was no time left to begin it",
                };
                one.ends(MoveState::Skipped, why, now_unix_ms);
            }
        }
        let mut acts = Vec::new();
        let running = self.count(MoveState::Running);
        if self.state == JobState::Cancelling {
            let runs = |(_, m): &(usize, &MoveRecord)| m.state == MoveState::Running;
            let all = self.moves.iter().enumerate().filter(runs);
            acts.extend(all.map(|(i, _)| Act::TakeBack(i)));
        } else {
            acts.extend(in_vain);
        }
        if begins {
            let room = (self.wish.at_once as usize).saturating_sub(running);
            // Only of these it is known that nobody has begun them.
            let looked = |i: &usize| known(self.moves[*i].volume_id).is_some();
            acts.extend(self.next().filter(looked).take(room).map(Act::Begin));
        }
        if self.moves.iter().all(|m| m.state.is_over()) {
            self.state = match self.state {
                JobState::Cancelling => JobState::Cancelled,
                _ => JobState::Done,
            };
        }
        acts
    }

    /// Moves that have not begun, in order.
    pub fn next(&self) -> impl Iterator<Item = usize> {
        let planned = |(_, m): &(usize, &MoveRecord)| m.state == MoveState::Planned;
        self.moves
            .iter()
            .enumerate()
            .filter(planned)
            .map(|(i, _)| i)
    }

    /// Volumes that [`Self::follow`] is to know of.
    pub fn asks(&self) -> Vec<Uuid> {
        let runs = self.moves.iter().filter(|m| m.state == MoveState::Running);
        let next = self.next().take(self.wish.at_once as usize);
        let next = next.map(|i| self.moves[i].volume_id);
        runs.map(|m| m.volume_id).chain(next).collect()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
