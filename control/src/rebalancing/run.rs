//! One look after the other: what has become of the moves of the job that is not over, and which are next.
use super::follow::{Act, Known};
use super::record::{MoveState, RebalanceRecord};
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::{HaWish, Node};
use crate::records::{TaskRecord, Versioned, encode, unix_ms};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// How often it is looked while there is a job, and while there is none.
const LOOK: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
/// So many jobs are kept to be looked at.
const KEPT: usize = 20;

/// Does it while this node is the one, until told to stop.
pub async fn keep_rebalancing(node: Arc<Node>, mut stop: watch::Receiver<bool>) -> Option<OpError> {
    let key = node.registry.keys().rebalance_leader();
    let work = node.while_leading(&key, "rebalances", || run(&node));
    tokio::select! {
        () = work => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

async fn run(node: &Node) {
    loop {
        let more = match node.rebalance_tick(unix_ms()).await {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "cannot see how far the rebalance is");
                false
            }
        };
        tokio::time::sleep(if more { LOOK } else { IDLE }).await;
    }
}

impl Node {
    /// One look, at this moment, given in ms since the Unix epoch; whether there is more to do.
    ///
    /// # Errors
    /// The records cannot be read or written. What is wrong with one move is said in its record.
    pub async fn rebalance_tick(&self, now_unix_ms: u64) -> Result<bool, OpError> {
        self.no_restore().await?;
        let active = self.registry.keys().rebalance_active();
        let Some(active) = self.registry.kv().get(&active).await? else {
            return self.scheduled_rebalance(now_unix_ms).await;
        };
        let id = String::from_utf8_lossy(&active.value).into_owned();
        let found = self.rebalance_of(&id).await?;
        let before = found.record;
        let away = Arc::new(self.nodes_away());
        let mut known = HashMap::new();
        for volume in before.asks() {
            let of = self.known_of(volume).await?;
            let away = away.clone();
            known.insert(volume, Known { away, ..of });
        }
        let mut job = before.clone();
        for act in job.follow(&|id| known.get(&id).cloned(), now_unix_ms) {
            match act {
                Act::Begin(i) => self.begin_move(&mut job, i, now_unix_ms).await?,
                Act::TakeBack(i) => self.take_move_back(&mut job, i).await?,
            }
        }
        if job != before {
            job.updated_unix_ms = now_unix_ms;
            self.write_job(&found.revision, &active.mod_revision, &job)
                .await?;
        }
        if job.state.is_over() {
            tracing::info!(job = %job.job_id, says = job.says(), "a rebalance is over");
            self.forget_rebalances().await?;
        }
        Ok(!job.state.is_over())
    }

    /// Task first: one that ends in between shows in the set.
    async fn known_of(&self, volume: Uuid) -> Result<Known, OpError> {
        let key = self.registry.keys().task(volume);
        let task = self.registry.get::<TaskRecord>(&key).await?;
        let set = self.replication(volume).await?;
        Ok(Known {
            task: task.map(|t| t.record),
            set: set.map(|s| s.record),
            ..Known::default()
        })
    }

    /// Nodes that do not say that they live.
    fn nodes_away(&self) -> HashSet<String> {
        let seen = self.coordination.seen();
        let away = seen.nodes().map(|n| &n.node_id);
        let away = away.filter(|id| !seen.alive().contains_key(*id));
        away.cloned().collect()
    }

    /// If the outcome is not known, or this process dies now, the task is found at the next look.
    async fn begin_move(
        &self,
        job: &mut RebalanceRecord,
        i: usize,
        now_unix_ms: u64,
    ) -> Result<(), OpError> {
        let one = &mut job.moves[i];
        let wish = HaWish::Move(one.replica_id.to_string(), Some(one.to_node.clone()));
        match self.change_ha(&one.volume_id.to_string(), wish).await {
            Ok(task) => {
                one.state = MoveState::Running;
                one.task_id = task.map(|t| t.task_id);
                one.begun_unix_ms = now_unix_ms;
                one.error.clear();
            }
            // Nobody refused it: it is tried again.
            Err(error @ OpError::Contended { .. }) => one.error = error.to_string(),
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => {
                // Another one that took itself for the leader may have been faster.
                one.look(&self.known_of(one.volume_id).await?, now_unix_ms);
                if one.state == MoveState::Planned {
                    one.state = MoveState::Failed;
                    one.error = refused.to_string();
                    one.ended_unix_ms = now_unix_ms;
                }
            }
        }
        Ok(())
    }

    /// What cannot be taken back any more goes on to its end.
    async fn take_move_back(&self, job: &mut RebalanceRecord, i: usize) -> Result<(), OpError> {
        let one = &mut job.moves[i];
        let Some(task) = one.task_id else {
            return Ok(());
        };
        match self
            .cancel_task(&one.volume_id.to_string(), Some(task))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_uncertain() => Err(error),
            Err(refused) => {
                one.error = refused.to_string();
                Ok(())
            }
        }
    }

    /// Whoever changed it meanwhile was first: then it is looked at again.
    async fn write_job(
        &self,
        revision: &i64,
        active: &i64,
        job: &RebalanceRecord,
    ) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let (key, active_key) = (keys.rebalance(job.job_id), keys.rebalance_active());
        let guards = vec![Guard::at(&key, *revision), Guard::at(&active_key, *active)];
        let mut writes = vec![Write::put(&key, encode(job))];
        if job.state.is_over() {
            writes.push(Write::delete(&active_key));
        }
        self.registry.kv().commit(guards, writes).await?;
        Ok(())
    }

    async fn forget_rebalances(&self) -> Result<(), OpError> {
        let all = self.rebalances().await?;
        let old = all.into_iter().filter(|j| j.record.state.is_over());
        for Versioned { record, revision } in old.skip(KEPT) {
            let key = self.registry.keys().rebalance(record.job_id);
            let guards = vec![Guard::at(&key, revision)];
            let writes = vec![Write::delete(&key)];
            self.registry.kv().commit(guards, writes).await?;
        }
        Ok(())
    }
}
