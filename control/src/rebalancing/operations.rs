//! What people do with rebalances: begin one, hold it up, let it go on, end it, look at it.
use super::record::{JobState, MOVES_MAX, MoveRecord, MoveState, RebalanceRecord, RebalanceWish};
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::{NamedPlan, Node};
use crate::placement::rebalance::{Aim, Move, Why};
use crate::placement::{Requirement, matches};
use crate::records::{Versioned, encode, unix_ms};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// Attempts at a record that its runner changes too.
const ATTEMPTS: usize = 16;
/// Most that move at a time.
const AT_ONCE_MAX: u32 = 16;
/// Labels of a pool beside those of its node.
const NODE_LABEL: &str = "keelblock.node";
const POOL_LABEL: &str = "keelblock.pool";

/// What is wanted of a job that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// No more moves begin.
    Pause,
    /// They do again.
    Resume,
    /// It ends, and what it has begun is taken back.
    Cancel,
}

/// Why a move is made, in words.
pub fn why(why: Why) -> &'static str {
    match why {
        Why::Shared => "shares a zone or rack",
        Why::Level => "its pool has more promised than others",
    }
}

impl RebalanceWish {
    /// Numbers that can be.
    pub(super) fn check(&self) -> Result<(), OpError> {
        let bad = |field: &str, why: String| Err(OpError::invalid(field, why));
        if self.moves_max == 0 || self.moves_max as usize > MOVES_MAX {
            return bad("moves_max", format!("must be 1 to {MOVES_MAX}"));
        }
        if self.at_once == 0 || self.at_once > AT_ONCE_MAX {
            return bad("at_once", format!("must be 1 to {AT_ONCE_MAX}"));
        }
        for (field, all) in [
            ("source_pool_selector", &self.from),
            ("target_pool_selector", &self.to),
        ] {
            if let Some(fault) = all.iter().find_map(Requirement::fault) {
                return bad(field, fault);
            }
        }
        Ok(())
    }
}

impl Node {
    /// Pools whose labels, and those of their nodes, match; `None`: any may be.
    async fn selected(&self, selector: &[Requirement]) -> Result<Option<HashSet<Uuid>>, OpError> {
        if selector.is_empty() {
            return Ok(None);
        }
        let pools = self.registry.pools().await?;
        let seen = self.coordination.seen();
        let labels = |pool: &crate::records::PoolRecord| -> BTreeMap<String, String> {
            let of_node = seen.member(&pool.node_id).map(|m| m.labels.clone());
            let mut all = of_node.unwrap_or_default();
            all.insert(NODE_LABEL.into(), pool.node_id.clone());
            all.insert(POOL_LABEL.into(), pool.name.clone());
            all
        };
        let found = pools.iter().filter(|p| matches(selector, &labels(p)));
        Ok(Some(found.map(|p| p.pool_id).collect()))
    }

    /// Plans a rebalance, and makes nothing.
    ///
    /// # Errors
    /// What cannot be wished for; the KVDB does not answer.
    pub(crate) async fn plan_wish(&self, wish: &RebalanceWish) -> Result<NamedPlan, OpError> {
        wish.check()?;
        let aim = Aim {
            over_percent: wish.over_percent,
            under_percent: wish.under_percent,
            moves_max: wish.moves_max as usize,
            from: self.selected(&wish.from).await?,
            to: self.selected(&wish.to).await?,
        };
        self.plan_rebalance(aim).await
    }

    /// A job of a plan: as it would be written.
    pub(crate) fn planned_job(&self, wish: RebalanceWish, plan: NamedPlan) -> RebalanceRecord {
        let now = unix_ms();
        let seen = self.coordination.seen();
        let one = |m: Move| {
            let set = seen.set(m.volume_id)?;
            let old = set.replicas.iter().find(|r| r.node_id == m.from.0)?;
            Some(MoveRecord {
                volume_id: m.volume_id,
                name: plan.names.get(&m.volume_id).cloned().unwrap_or_default(),
                size_bytes: m.size_bytes,
                replica_id: old.replica_id,
                from_node: m.from.0,
                from_pool: m.from.1,
                to_node: m.to.0,
                to_pool: m.to.1,
                why: why(m.why).into(),
                state: MoveState::Planned,
                task_id: None,
                task_before: seen.task(m.volume_id).map(|t| t.task_id),
                error: String::new(),
                begun_unix_ms: 0,
                away_unix_ms: 0,
                given_up: false,
                ended_unix_ms: 0,
            })
        };
        // A replica that went away since it was planned has no move.
        let moves: Vec<MoveRecord> = plan.plan.moves.into_iter().filter_map(one).collect();
        RebalanceRecord {
            job_id: Uuid::new_v4(),
            state: match moves.is_empty() {
                true => JobState::Done,
                false => JobState::Running,
            },
            wish,
            moves,
            unbalanced: plan.plan.unbalanced,
            left: plan.left.len(),
            created_unix_ms: now,
            updated_unix_ms: now,
        }
    }

    /// Begins a rebalance. With nothing to move it is done at once.
    ///
    /// # Errors
    /// [`OpError::State`]: another one is not over.
    pub(crate) async fn begin_rebalance(
        &self,
        wish: RebalanceWish,
    ) -> Result<RebalanceRecord, OpError> {
        self.begin_rebalance_with(wish, Vec::new(), Vec::new())
            .await
    }

    /// The same, in one transaction with more.
    pub(super) async fn begin_rebalance_with(
        &self,
        wish: RebalanceWish,
        mut guards: Vec<Guard>,
        mut writes: Vec<Write>,
    ) -> Result<RebalanceRecord, OpError> {
        let plan = self.plan_wish(&wish).await?;
        let job = self.planned_job(wish, plan);
        let keys = self.registry.keys();
        let (key, active) = (keys.rebalance(job.job_id), keys.rebalance_active());
        guards.extend([Guard::absent(&key), Guard::absent(&active)]);
        writes.push(Write::put(&key, encode(&job)));
        if !job.state.is_over() {
            writes.push(Write::put(&active, job.job_id.to_string()));
        }
        if self.registry.kv().commit(guards, writes).await? == Committed::No {
            let other = self.registry.kv().get(&active).await?;
            let other = other.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            return Err(match other {
                Some(id) => OpError::State(format!(
                    "rebalance {id} is not over: wait for it, or end it (`keelctl service pool rebalance cancel`)"
                )),
                None => OpError::Contended {
                    what: "the rebalance".into(),
                },
            });
        }
        tracing::info!(job = %job.job_id, moves = job.moves.len(), "a rebalance begins");
        Ok(job)
    }

    /// All rebalances that are known, the last one first.
    pub(crate) async fn rebalances(&self) -> Result<Vec<Versioned<RebalanceRecord>>, OpError> {
        let prefix = self.registry.keys().rebalances();
        let mut all: Vec<Versioned<RebalanceRecord>> = self.registry.list(&prefix).await?;
        all.sort_by_key(|j| std::cmp::Reverse((j.record.created_unix_ms, j.record.job_id)));
        Ok(all)
    }

    /// The rebalance of that id; of an empty one, the last.
    ///
    /// # Errors
    /// [`OpError::NotFound`].
    pub(crate) async fn rebalance_of(
        &self,
        id: &str,
    ) -> Result<Versioned<RebalanceRecord>, OpError> {
        let missing = || OpError::NotFound {
            kind: "rebalance",
            name: id.to_owned(),
        };
        if id.is_empty() {
            let last = self.rebalances().await?.into_iter().next();
            return last.ok_or_else(missing);
        }
        let job = Uuid::try_parse(id).map_err(|_| missing())?;
        let key = self.registry.keys().rebalance(job);
        self.registry.get(&key).await?.ok_or_else(missing)
    }

    /// Changes what is wanted of a job. What is so already succeeds.
    ///
    /// # Errors
    /// [`OpError::State`]: it is over.
    pub(crate) async fn steer_rebalance(
        &self,
        id: &str,
        wish: Steering,
    ) -> Result<RebalanceRecord, OpError> {
        for _ in 0..ATTEMPTS {
            let found = self.rebalance_of(id).await?;
            let mut job = found.record;
            let next = match (wish, job.state) {
                (Steering::Cancel, JobState::Cancelled) => JobState::Cancelled,
                (_, state)
                    if state.is_over()
                        || (state == JobState::Cancelling && wish != Steering::Cancel) =>
                {
                    return Err(OpError::State(format!(
                        "rebalance {} is {}: begin another one",
                        job.job_id,
                        state.name()
                    )));
                }
                (Steering::Pause, _) => JobState::Paused,
                (Steering::Resume, _) => JobState::Running,
                (Steering::Cancel, _) => JobState::Cancelling,
            };
            if next == job.state {
                return Ok(job);
            }
            job.state = next;
            job.updated_unix_ms = unix_ms();
            let key = self.registry.keys().rebalance(job.job_id);
            let kv = self.registry.kv();
            let swapped = kv.compare_and_swap(&key, found.revision, encode(&job));
            if swapped.await? != Committed::No {
                tracing::info!(job = %job.job_id, state = next.name(), "a rebalance is steered");
                return Ok(job);
            }
        }
        Err(OpError::Contended {
            what: "the rebalance".into(),
        })
    }
}
