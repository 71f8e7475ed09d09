//! Which nodes may have something new, and why not the others. Whoever chooses nodes asks here, and compares the records in the transaction that follows.

use std::collections::BTreeMap;

use crate::error::OpError;
use crate::kvdb::client::Guard;
use crate::node::Node;
use crate::records::{Keys, Registry, Versioned};

use super::record::{MemberRecord, MemberState};

/// What people want of all nodes, at a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing(BTreeMap<String, Versioned<MemberRecord>>);

impl Standing {
    /// As it is now.
    pub async fn read(registry: &Registry) -> Result<Self, OpError> {
        let all = registry
            .list::<MemberRecord>(&registry.keys().members())
            .await?;
        Ok(Self::of(all))
    }

    /// Of these records.
    pub fn of(records: impl IntoIterator<Item = Versioned<MemberRecord>>) -> Self {
        let by_id = |r: Versioned<MemberRecord>| (r.record.node_id.clone(), r);
        Self(records.into_iter().map(by_id).collect())
    }

    /// Why a node gets no new replica, attachment or volume; `None`: it may.
    pub fn unfit(&self, node_id: &str) -> Option<&'static str> {
        self.member(node_id).and_then(unfit)
    }

    /// The record of a node; a node without one joined before there were any.
    pub fn member(&self, node_id: &str) -> Option<&MemberRecord> {
        self.0.get(node_id).map(|r| &r.record)
    }

    /// That nothing is wanted otherwise of these nodes: for the transaction that gives them something.
    pub fn guards<'a>(&self, keys: &Keys, nodes: impl IntoIterator<Item = &'a str>) -> Vec<Guard> {
        let mut nodes: Vec<&str> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let guard = |node: &str| {
            let revision = self.0.get(node).map_or(0, |r| r.revision);
            Guard::at(keys.member(node), revision)
        };
        nodes.into_iter().map(guard).collect()
    }

    /// # Errors
    /// [`OpError::State`]: the node gets nothing new.
    pub fn must_be_fit(&self, node_id: &str) -> Result<(), OpError> {
        match self.unfit(node_id) {
            None => Ok(()),
            Some(why) => Err(OpError::State(format!(
                "node {node_id} gets nothing new: {why}; choose another node, or end that (`keelctl node list`)"
            ))),
        }
    }
}

/// Why this node gets nothing new.
pub(crate) fn unfit(member: &MemberRecord) -> Option<&'static str> {
    match member.state {
        MemberState::Maintenance => Some("it is in maintenance"),
        MemberState::Decommissioning => Some("it is being decommissioned"),
        MemberState::Decommissioned => Some("it was decommissioned"),
        MemberState::Active if member.cordoned => Some("it is cordoned"),
        MemberState::Active => None,
    }
}

impl Node {
    /// What people want of all nodes now.
    pub(crate) async fn standing(&self) -> Result<Standing, OpError> {
        Standing::read(&self.registry).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_active_nodes_get_something_and_unknown_ones_are_active() {
        let mut records = Vec::new();
        let all = [
            ("n1", MemberState::Active, false, true),
            ("n2", MemberState::Active, true, false),
            ("n3", MemberState::Maintenance, false, false),
            ("n4", MemberState::Decommissioning, false, false),
            ("n5", MemberState::Decommissioned, true, false),
        ];
        for (revision, (id, state, cordoned, _)) in (1..).zip(all) {
            let mut record = MemberRecord::new(id, Uuid::nil(), 1);
            (record.state, record.cordoned) = (state, cordoned);
            records.push(Versioned { record, revision });
        }
        let standing = Standing::of(records);
        for (id, _, _, fit) in all {
            assert_eq!(standing.unfit(id).is_none(), fit, "{id}");
            assert_eq!(standing.must_be_fit(id).is_ok(), fit, "{id}");
        }
        assert_eq!(standing.unfit("n9"), None);
        let guards = standing.guards(&Keys::new("c"), ["n9", "n2", "n2"]);
        let shown = format!("{guards:?}");
        assert_eq!(guards.len(), 2, "{shown}");
        assert!(shown.contains(", 2)") && shown.contains(", 0)"), "{shown}");
    }
}
