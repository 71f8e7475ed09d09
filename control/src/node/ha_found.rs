//! A volume with its replicas, as a task that changes them is made from it.
use super::placing::Placed;
use crate::error::OpError;
use crate::records::{TaskRecord, TaskReplica, Versioned, VolumeRecord};
use crate::replication::record::{Replica, ReplicaState, ReplicationRecord};
use uuid::Uuid;

/// A volume, with what a task is made from.
pub(super) struct Found {
    pub volume: Versioned<VolumeRecord>,
    pub set: Versioned<ReplicationRecord>,
    pub task: Option<Versioned<TaskRecord>>,
}

impl Found {
    pub fn name(&self) -> &str {
        &self.volume.record.name
    }

    /// Replicas that are there to stay.
    pub fn staying(&self) -> impl Iterator<Item = &Replica> {
        let all = self.set.record.replicas.iter();
        all.filter(|r| r.state != ReplicaState::Leaving)
    }

    pub fn running(&self) -> Option<&Versioned<TaskRecord>> {
        self.task.as_ref().filter(|t| !t.record.state.is_over())
    }

    pub fn busy(&self, task: &TaskRecord) -> OpError {
        OpError::State(format!(
            "the replicas of volume {name} are being changed already ({}, {}): wait for it, or take it back with `keelctl volume \
             ha-update --cancel {name}`",
            task.kind.name(),
            task.step.name(),
            name = self.name(),
        ))
    }

    /// The replica of that id, or on that node.
    pub fn replica(&self, named: &str) -> Result<&Replica, OpError> {
        let mut all = self.staying();
        let found = all.find(|r| r.node_id == named || r.replica_id.to_string() == named);
        found.ok_or_else(|| {
            let there: Vec<&str> = self.staying().map(|r| r.node_id.as_str()).collect();
            OpError::State(format!(
                "volume {} has no replica on {named}: it has some on {}",
                self.name(),
                there.join(", ")
            ))
        })
    }
}

pub(super) fn task_replica(replica: &Replica) -> TaskReplica {
    TaskReplica {
        replica_id: replica.replica_id,
        node_id: replica.node_id.clone(),
        pool_id: replica.pool_id,
    }
}

/// Replicas with these places.
pub(super) fn new_replicas<'a>(
    placed: &'a Placed<'_>,
) -> impl Iterator<Item = TaskReplica> + use<'a> {
    let new = |(node_id, pool_id): &(String, Uuid)| TaskReplica {
        replica_id: Uuid::new_v4(),
        node_id: node_id.clone(),
        pool_id: *pool_id,
    };
    placed.places.iter().map(new)
}

pub(super) fn first(mut new: impl Iterator<Item = TaskReplica>) -> Result<TaskReplica, OpError> {
    let first = new.next();
    first.ok_or_else(|| OpError::Internal("a place is none".into()))
}
