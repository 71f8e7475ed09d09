//! Changes of a volume's replicas, by the node that coordinates it: what [`super::tasks`] says is next is done, and how far it is is written down.

use std::time::Duration;

use keelblock_api::datapath::change_replicas_request::Change;
use keelblock_api::datapath::{ChangeReplicasRequest, Coordinator, NewReplica};
use uuid::Uuid;

use super::Now;
use super::tasks::{Next, View, Wish};
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{
    AlertKind, Severity, TaskKind, TaskRecord, TaskReplica, TaskState, TaskStep, Versioned, encode,
    unix_ms,
};
use crate::replication::transition;

/// What was asked for, or is waited for, is looked at again after this.
const LOOK: Duration = Duration::from_secs(1);
/// How far a resync is, and that something is in its way, is written down so often at most.
const TELL_MS: u64 = 2_000;
/// How often a task is read again that somebody else has written meanwhile.
const SWAPS: u32 = 5;

impl Node {
    /// Does what is next for the replicas of a volume that this node serves. When to look again.
    pub(super) async fn change_replicas(
        &self,
        now: &Now,
        coordinator: &Coordinator,
    ) -> Result<Option<Duration>, OpError> {
        let (Some(volume), Some(set)) = (&now.volume, &now.set) else {
            return Ok(None);
        };
        let layout = volume.record.replicated.as_ref();
        let alive: Vec<String> = self.coordination.seen().alive().keys().cloned().collect();
        let next = View {
            set: &set.record,
            replicas: &now.replicas,
            task: now.task.as_ref().map(|t| &t.record),
            minimum: layout.and_then(|l| l.minimum),
            lives: &|node| alive.iter().any(|n| n == node),
        }
        .next();
        let task = now.task.as_ref();
        match next {
            Next::Nothing => Ok(None),
            Next::Ask(wish, step) => {
                let asked = self.ask_coordinator(now.id, coordinator.epoch, wish).await;
                let why = match asked {
                    Ok(()) => String::new(),
                    Err(OpError::State(why)) => why,
                    Err(error) => return Err(error),
                };
                if let (Some(task), Some(step)) = (task, step) {
                    self.tell_task(task, step, &why, coordinator).await?;
                }
                Ok(Some(LOOK))
            }
            Next::Wait(step, why) => {
                if let Some(task) = task {
                    self.tell_task(task, step, &why, coordinator).await?;
                }
                Ok(Some(LOOK))
            }
            Next::State(state, error) => {
                if let Some(task) = task {
                    let record = TaskRecord {
                        state,
                        error,
                        ..task.record.clone()
                    };
                    self.write_task(task, record).await?;
                }
                Ok(Some(LOOK))
            }
            Next::Back(state) => {
                if let Some(task) = task {
                    self.task_back(now, task, state).await?;
                }
                Ok(Some(LOOK))
            }
        }
    }

    async fn ask_coordinator(&self, volume: Uuid, epoch: u32, wish: Wish) -> Result<(), OpError> {
        let change = match wish {
            Wish::Add(new) => Change::Add(NewReplica {
                replica_id: new.replica_id.to_string(),
                node_id: new.node_id,
                pool_id: new.pool_id.to_string(),
            }),
            Wish::Leave(id) => Change::Leave(id.to_string()),
            Wish::Remove(id) => Change::Remove(id.to_string()),
            Wish::Minimum(minimum) => Change::Minimum(minimum.into()),
            Wish::Exclude(id) => Change::Exclude(id.to_string()),
        };
        let request = ChangeReplicasRequest {
            volume_id: volume.to_string(),
            epoch,
            change: Some(change),
        };
        let what = format!("change the replicas of volume {volume}");
        let asked = self
            .link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.change_replicas(request).await
            });
        asked.await.map(drop)
    }

    /// Writes down how far a task is, if that is another step, or was not said for a while.
    async fn tell_task(
        &self,
        task: &Versioned<TaskRecord>,
        step: TaskStep,
        why: &str,
        coordinator: &Coordinator,
    ) -> Result<(), OpError> {
        let mut record = task.record.clone();
        record.step = step;
        if record.state == TaskState::Running {
            record.error = why.to_owned();
        }
        let ids: Vec<String> = task
            .record
            .coming()
            .map(|new| new.replica_id.to_string())
            .collect();
        // They are copied to one after the other.
        let mut peers = coordinator.peers.iter();
        let peer = peers.find(|p| ids.contains(&p.replica_id) && p.resync_total_bytes > 0);
        if let Some(peer) = peer {
            record.done_bytes = peer.resync_done_bytes;
            record.total_bytes = peer.resync_total_bytes;
            record.copied_bytes = peer.resync_copied_bytes;
        }
        let soon = unix_ms().saturating_sub(task.record.updated_unix_ms) < TELL_MS;
        if record == task.record || soon && step == task.record.step {
            return Ok(());
        }
        self.write_task(task, record).await
    }

    /// Replicas were excluded (K3). If one of them is to be compared anew, that has begun: what is a member from now on has been.
    pub(super) async fn excluded(&self, volume: Uuid, those: &[Uuid]) -> Result<(), OpError> {
        let key = self.registry.keys().task(volume);
        for _ in 0..SWAPS {
            let Some(task) = self.registry.get::<TaskRecord>(&key).await? else {
                return Ok(());
            };
            let waits = task.record.kind == TaskKind::Resync
                && task.record.state == TaskState::Running
                && task.record.step == TaskStep::Leave;
            let replica = task.record.new.as_ref().map(|r| r.replica_id);
            if !waits || !replica.is_some_and(|id| those.contains(&id)) {
                return Ok(());
            }
            let mut record = task.record.clone();
            record.step = TaskStep::Resync;
            record.error.clear();
            record.updated_unix_ms = unix_ms();
            let kv = self.registry.kv();
            let written = kv.compare_and_swap(&key, task.revision, encode(&record));
            if let Committed::Yes(_) = written.await? {
                self.say(&task.record, &record);
                return Ok(());
            }
        }
        // It is excluded once more, which costs another comparison and nothing else.
        Ok(())
    }

    /// Writes a task; who was first is right, and is seen by the watch.
    async fn write_task(
        &self,
        task: &Versioned<TaskRecord>,
        mut record: TaskRecord,
    ) -> Result<(), OpError> {
        record.updated_unix_ms = unix_ms();
        self.say(&task.record, &record);
        let key = self.registry.keys().task(record.volume_id);
        let written = self
            .registry
            .kv()
            .compare_and_swap(&key, task.revision, encode(&record));
        match written.await? {
            Committed::Yes(_) => self.tell_over(&record).await,
            Committed::No => Ok(()),
        }
    }

    /// What came of a task that is over.
    async fn tell_over(&self, task: &TaskRecord) -> Result<(), OpError> {
        let severity = match task.state {
            TaskState::Running | TaskState::Undoing => return Ok(()),
            TaskState::Failed => Severity::Warning,
            TaskState::Done | TaskState::Cancelled => Severity::Notify,
        };
        let on = |what: &str, all: Vec<&TaskReplica>| {
            let nodes: Vec<&str> = all.iter().map(|r| r.node_id.as_str()).collect();
            match nodes.is_empty() {
                true => String::new(),
                false => format!(" {what} node {}", nodes.join(", ")),
            }
        };
        let why = match task.error.is_empty() {
            true => String::new(),
            false => format!(": {}", task.error),
        };
        let message = format!(
            "volume {}: {} of replicas ({} to {},{}{}) {}{why}",
            task.volume_id,
            task.kind.name(),
            task.wanted_before,
            task.wanted,
            on("from", task.old.iter().collect()),
            on("to", task.coming().collect()),
            task.state.name()
        );
        let id = task.volume_id.to_string();
        self.raise_alert(AlertKind::ReplicasChanged, &id, "", severity, message)
            .await
    }

    fn say(&self, before: &TaskRecord, now: &TaskRecord) {
        if before.state != now.state || before.step != now.step {
            tracing::info!(
                volume = %now.volume_id,
                task = now.kind.name(),
                state = now.state.name(),
                step = now.step.name(),
                error = now.error,
                "replicas are changed"
            );
        }
    }

    /// As many are wanted as before (K8), and the task is over.
    async fn task_back(
        &self,
        now: &Now,
        task: &Versioned<TaskRecord>,
        state: TaskState,
    ) -> Result<(), OpError> {
        let Some(set) = &now.set else { return Ok(()) };
        let record = TaskRecord {
            state,
            updated_unix_ms: unix_ms(),
            ..task.record.clone()
        };
        let keys = self.registry.keys();
        let (task_key, set_key) = (keys.task(now.id), keys.replication(now.id));
        let mut guards = vec![Guard::at(&task_key, task.revision)];
        let mut writes = vec![Write::put(&task_key, encode(&record))];
        if set.record.wanted != record.wanted_before {
            let back = transition::want(&set.record, record.wanted_before);
            let back = back.map_err(|why| OpError::State(why.to_string()))?;
            guards.push(Guard::at(&set_key, set.revision));
            writes.push(Write::put(&set_key, encode(&back)));
        }
        self.say(&task.record, &record);
        // Whoever was first is seen by the watch.
        match self.registry.kv().commit(guards, writes).await? {
            Committed::Yes(_) => self.tell_over(&record).await,
            Committed::No => Ok(()),
        }
    }
}
