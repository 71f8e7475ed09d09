//! Replicas that are replaced without anybody having asked (`mending`, `docs/replication.md` §21): by the same tasks as those that people move (`ha`).
use super::Node;
use super::ha_found::{first, new_replicas};
use crate::error::OpError;
use crate::records::{TaskRecord, TaskState, Versioned, encode, unix_ms};
use crate::replication::record::ReplicaState;
use uuid::Uuid;

impl Node {
    /// Begins to replace a replica that is lost or away, which nobody asked for (`docs/replication.md` §21).
    pub(crate) async fn replace_replica(
        &self,
        volume: Uuid,
        replica: Uuid,
        lost: bool,
    ) -> Result<TaskRecord, OpError> {
        let found = self.ha_of(&volume.to_string()).await?;
        if let Some(task) = found.running() {
            return Err(found.busy(&task.record));
        }
        let old = found.replica(&replica.to_string())?.clone();
        // Only of what is lost is there nothing to lose when it goes first.
        let leaves = Some((&old, lost));
        let placed = self.place_more(&found, 1, None, leaves).await?;
        let new = first(new_replicas(&placed))?;
        let mut task = self.move_task(&found, new, &old);
        if task.old_first && old.state == ReplicaState::Member {
            return Err(OpError::State(format!(
                "the replica on node {} is one that counts until the volume is served without it",
                old.node_id
            )));
        }
        task.automatic = true;
        self.begin_task(found, task, Some(placed)).await
    }

    /// Takes back what replaces a replica by itself, as it cannot get to its end.
    pub(crate) async fn give_up_replacing(&self, volume: Uuid, why: &str) -> Result<(), OpError> {
        let key = self.registry.keys().task(volume);
        let found: Option<Versioned<TaskRecord>> = self.registry.get(&key).await?;
        let Some(found) = found.filter(|t| t.record.state == TaskState::Running) else {
            return Ok(());
        };
        let record = TaskRecord {
            state: TaskState::Undoing,
            error: why.to_owned(),
            updated_unix_ms: unix_ms(),
            ..found.record
        };
        let kv = self.registry.kv();
        // Whoever changed it meanwhile was first: it is looked at again.
        kv.compare_and_swap(&key, found.revision, encode(&record))
            .await?;
        Ok(())
    }
}
