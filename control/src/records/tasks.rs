//! Tasks that change the replicas of a volume: what is wanted, and how far it is. One at a time for each volume; the last one stays to be seen.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// One replica more, or several.
    Increase,
    /// One less.
    Decrease,
    /// One elsewhere, in the place of another.
    Move,
    /// One leaves the set until all of it has been compared with another's.
    Resync,
}

impl TaskKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Increase => "increase",
            Self::Decrease => "decrease",
            Self::Move => "move",
            Self::Resync => "resync",
        }
    }
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It goes on.
    Running,
    /// What it did is taken back.
    Undoing,
    /// All of it is done.
    Done,
    /// It was taken back, as somebody wanted.
    Cancelled,
    /// It was taken back, as it could not be done.
    Failed,
}

impl TaskState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Nothing more is done about it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Undoing)
    }
}

/// What a task does now, or did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskStep {
    /// The volume's record is to name the new replica.
    Add,
    /// Its node makes it.
    Make,
    /// It is copied to.
    Resync,
    /// A replica is to leave the set, and the record to say so.
    Leave,
    /// Its node deletes it.
    Delete,
}

impl TaskStep {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Make => "make",
            Self::Resync => "resync",
            Self::Leave => "leave",
            Self::Delete => "delete",
        }
    }
}

/// A replica that a task makes or takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskReplica {
    /// Its id.
    pub replica_id: Uuid,
    /// Its node.
    pub node_id: String,
    /// Its pool.
    pub pool_id: Uuid,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRecord {
    /// Its id.
    pub task_id: Uuid,
    /// The volume.
    pub volume_id: Uuid,
    /// What it is for.
    pub kind: TaskKind,
    /// Where it is in its life.
    pub state: TaskState,
    /// What is done now.
    pub step: TaskStep,
    /// How many replicas the volume was to have before.
    pub wanted_before: u8,
    /// How many it is to have.
    pub wanted: u8,
    /// The replica that comes; that is compared anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<TaskReplica>,
    /// Further ones that come, if it is several at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<TaskReplica>,
    /// The replica that goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<TaskReplica>,
    /// The old one goes first, as the new one comes to its node, or there would be too many; so it is none that counts.
    #[serde(default)]
    pub old_first: bool,
    /// Nobody asked for it: the old one is lost, or its node is away (`docs/replication.md` §21).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// Of the volume: bytes that were compared, and copied where they differed; of how many; and bytes of data that were copied.
    #[serde(default)]
    pub done_bytes: u64,
    /// All of them.
    #[serde(default)]
    pub total_bytes: u64,
    /// What was copied.
    #[serde(default)]
    pub copied_bytes: u64,
    /// What is in its way, or why it was taken back; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// When it was made, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// When this was written.
    pub updated_unix_ms: u64,
}

impl TaskRecord {
    /// All replicas that come.
    pub fn coming(&self) -> impl Iterator<Item = &TaskReplica> {
        self.new.iter().chain(&self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &impl Serialize) -> serde_json::Value {
        serde_json::to_value(value).unwrap()
    }

    #[test]
    fn names_are_as_stored() {
        use TaskState::{Cancelled, Done, Failed, Running, Undoing};
        use TaskStep::{Add, Delete, Leave, Make, Resync};
        let kinds = [
            TaskKind::Increase,
            TaskKind::Decrease,
            TaskKind::Move,
            TaskKind::Resync,
        ];
        for kind in kinds {
            assert_eq!(stored(&kind), kind.name());
        }
        for state in [Running, Undoing, Done, Cancelled, Failed] {
            assert_eq!(stored(&state), state.name());
        }
        for step in [Add, Make, Resync, Leave, Delete] {
            assert_eq!(stored(&step), step.name());
        }
    }
}
