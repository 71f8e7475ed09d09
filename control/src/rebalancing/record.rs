//! What the KVDB has of a rebalance: `rebalances/<job-id>`.
use crate::placement::Requirement;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most moves of one: its record is one value.
pub const MOVES_MAX: usize = 1000;

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Moves are begun, a few at a time.
    Running,
    /// None is begun; those that have go on.
    Paused,
    /// None is begun, and those that have are taken back.
    Cancelling,
    /// Nothing is left to do.
    Done,
    /// Nothing is left to do, as somebody wanted.
    Cancelled,
}

impl JobState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing more is done about it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// What is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceWish {
    /// Pools above the mean by more than this many percent of their size are relieved.
    pub over_percent: u32,
    /// None is brought above the mean by more than this.
    pub under_percent: u32,
    /// At most so many moves.
    pub moves_max: u32,
    /// So many at a time.
    pub at_once: u32,
    /// None is begun after so long; 0: whenever.
    #[serde(default)]
    pub minutes_max: u64,
    /// Only pools with such labels are relieved; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Requirement>,
    /// Only pools with such labels take something; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Requirement>,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveState {
    /// It has not begun.
    Planned,
    /// A task of the volume does it.
    Running,
    /// The replica is where it was to come.
    Done,
    /// It is not, and will not be by this.
    Failed,
    /// It was not begun, and will not be.
    Skipped,
}

impl MoveState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    /// Nothing more is done about it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Planned | Self::Running)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRecord {
    /// Of which volume.
    pub volume_id: Uuid,
    /// Its name at that time.
    pub name: String,
    /// Its size at that time.
    pub size_bytes: u64,
    /// The replica that goes: what tells this move from any other one of the volume.
    pub replica_id: Uuid,
    /// Its node.
    pub from_node: String,
    /// Its pool.
    pub from_pool: Uuid,
    /// Where another one is to come.
    pub to_node: String,
    /// The pool that was thought of; the one that is best at that time is taken.
    pub to_pool: Uuid,
    /// Why.
    pub why: String,
    /// How far it is.
    pub state: MoveState,
    /// The task that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<Uuid>,
    /// The volume's last task when it was planned: none of this move's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_before: Option<Uuid>,
    /// What is in its way, or why it failed; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// When it began, ms since the Unix epoch; 0: it has not.
    #[serde(default)]
    pub begun_unix_ms: u64,
    /// Since when the node where it is to come was seen to be away, while it runs; 0: it is there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub away_unix_ms: u64,
    /// That node was away for too long: its task is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
    /// When it was seen to be over.
    #[serde(default)]
    pub ended_unix_ms: u64,
}

/// A rebalance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceRecord {
    /// Its id.
    pub job_id: Uuid,
    /// Where it is in its life.
    pub state: JobState,
    /// What was wanted.
    pub wish: RebalanceWish,
    /// What is moved, in the order in which it is begun.
    pub moves: Vec<MoveRecord>,
    /// Pools above the mean by more than was asked: before it, and after all moves.
    pub unbalanced: (usize, usize),
    /// How many volumes could not be moved when it was planned.
    #[serde(default)]
    pub left: usize,
    /// When it was made, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// When this was written.
    pub updated_unix_ms: u64,
}

impl RebalanceRecord {
    /// Moves in a state.
    pub fn count(&self, state: MoveState) -> usize {
        self.moves.iter().filter(|m| m.state == state).count()
    }

    /// Its time is up: no more moves are begun.
    pub fn is_late(&self, now_unix_ms: u64) -> bool {
        let limit_ms = self.wish.minutes_max.saturating_mul(60_000);
        limit_ms > 0 && now_unix_ms.saturating_sub(self.created_unix_ms) >= limit_ms
    }

    /// How it is, in words.
    pub fn says(&self) -> String {
        let of = |state| self.count(state);
        let mut text = format!("{} of {} moved", of(MoveState::Done), self.moves.len());
        for state in [MoveState::Running, MoveState::Failed, MoveState::Skipped] {
            let (count, name) = (of(state), state.name());
            if count > 0 {
                text += &format!(", {count} {name}");
            }
        }
        let said = self.moves.iter().filter(|m| !m.error.is_empty());
        let first: Vec<String> = said
            .take(3)
            .map(|m| format!("{}: {}", m.name, m.error))
            .collect();
        if !first.is_empty() {
            text += &format!(" ({})", first.join("; "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_stored() {
        use JobState::{Cancelled, Cancelling, Done, Paused, Running};
        for state in [Running, Paused, Cancelling, Done, Cancelled] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        use MoveState::{Failed, Planned, Skipped};
        for state in [
            Planned,
            MoveState::Running,
            MoveState::Done,
            Failed,
            Skipped,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
