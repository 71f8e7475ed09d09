//! What the KVDB has of a node as a member: `members/<node-id>`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where a node is in its life as a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It takes its part.
    Active,
    /// Its machine may be taken away.
    Maintenance,
    /// It is emptied.
    Decommissioning,
    /// It is no member any more, and its identity never is again.
    Decommissioned,
}

impl MemberState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Maintenance => "maintenance",
            Self::Decommissioning => "decommissioning",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainState {
    /// Attachments are moved.
    Running,
    /// Nothing is attached there.
    Done,
    /// What is left cannot be moved.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl DrainState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// That attachments are to leave a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRecord {
    /// Its id, as a job.
    pub job_id: Uuid,
    /// How far it is.
    pub state: DrainState,
    /// Who asked, as they called themselves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Attachments that were moved.
    pub moved: u32,
    /// Attachments that are still there.
    pub left: u32,
    /// When it began, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// When this was written.
    pub updated_unix_ms: u64,
}

/// A node as a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its id.
    pub node_id: String,
    /// Drawn when its data directory was made.
    pub identity: Uuid,
    /// What is wanted of it.
    pub state: MemberState,
    /// It gets nothing new.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cordoned: bool,
    /// Where it is, and whatever people want to say of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The last drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainRecord>,
    /// What is in the way of what is wanted, or still to be done; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits: String,
    /// When it joined, ms since the Unix epoch.
    pub joined_unix_ms: u64,
    /// When a person, or the node, changed this last.
    pub changed_unix_ms: u64,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl MemberRecord {
    /// A node that joins.
    pub fn new(node_id: &str, identity: Uuid, now_unix_ms: u64) -> Self {
        Self {
            node_id: node_id.into(),
            identity,
            state: MemberState::Active,
            cordoned: false,
            labels: BTreeMap::new(),
            drain: None,
            waits: String::new(),
            joined_unix_ms: now_unix_ms,
            changed_unix_ms: now_unix_ms,
        }
    }

    /// Attachments are to leave it.
    pub fn sheds_attachments(&self) -> bool {
        let drains = self.drain.as_ref();
        drains.is_some_and(|d| d.state == DrainState::Running)
            || matches!(
                self.state,
                MemberState::Maintenance | MemberState::Decommissioning
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_stored_and_what_is_usual_is_not_written() {
        use MemberState::{Active, Decommissioned, Decommissioning, Maintenance};
        for state in [Active, Maintenance, Decommissioning, Decommissioned] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        use DrainState::{Cancelled, Done, Failed, Running};
        for state in [Running, Done, Failed, Cancelled] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        let record = MemberRecord::new("n1", Uuid::nil(), 7);
        let text = serde_json::to_string(&record).unwrap();
        assert!(
            !text.contains("labels") && !text.contains("cordoned"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<MemberRecord>(&text).unwrap(), record);
    }
}
