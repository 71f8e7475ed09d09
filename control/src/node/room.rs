//! Whether pools may be asked for more (`docs/placement.md` §5): of what is not placed, as it is where it is: growth, clones, what is set back to a larger snapshot, volumes with a single copy.
use super::Node;
use crate::coordination::Seen;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::placement::{Cluster, Limits, Pool};
use crate::records::{TaskState, Versioned};
use crate::replication::record::ReplicationRecord;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::Instant;
use uuid::Uuid;

/// How long it is waited until a node that has just started says what room it has, and how often it is looked.
const SAY_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// What is asked of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct More {
    /// Its node.
    pub node_id: String,
    /// The pool.
    pub pool_id: Uuid,
    /// So many bytes more are provisioned in it.
    pub bytes: u64,
}

/// That there is room, and what is to be compared and written with what takes it.
#[derive(Debug)]
pub(super) struct Room<'a> {
    /// Nobody else has taken any meanwhile, and the limits are the same.
    pub guards: Vec<Guard>,
    /// So that nobody else does.
    pub writes: Vec<Write>,
    /// Those of this process wait for each other.
    _turn: Option<MutexGuard<'a, ()>>,
}

/// Where a volume is, and is about to be: so much more is asked of each of these pools.
pub(super) fn everywhere(
    seen: &Seen,
    volume: Uuid,
    set: &ReplicationRecord,
    bytes: u64,
) -> Vec<More> {
    let there = set.replicas.iter().map(|r| (&r.node_id, r.pool_id));
    let task = seen
        .task(volume)
        .filter(|t| t.state == TaskState::Running)
        .into_iter();
    let coming = task.flat_map(|t| t.coming());
    let coming = coming.filter(|r| set.replica(r.replica_id).is_none());
    let coming = coming.map(|r| (&r.node_id, r.pool_id));
    let more = |(node, pool_id): (&String, Uuid)| More {
        node_id: node.clone(),
        pool_id,
        bytes,
    };
    there.chain(coming).map(more).collect()
}

/// The first of them that would have more than it may.
fn refused<'a>(
    cluster: &'a Cluster,
    limits: Limits,
    more: &'a [More],
) -> Option<(&'a More, &'a Pool, u64)> {
    more.iter().find_map(|m| {
        let pool = pool(cluster, m)?;
        let limit = limits.provisionable(pool)?;
        let would_be = pool.provisioned_bytes.saturating_add(m.bytes);
        (m.bytes > 0 && would_be > limit).then_some((m, pool, limit))
    })
}

/// `None`: nobody says how large it is, as its node or data path is away.
fn pool<'a>(cluster: &'a Cluster, more: &More) -> Option<&'a Pool> {
    let node = &cluster.nodes()[cluster.index(&more.node_id)?];
    node.pools.iter().find(|p| p.pool_id == more.pool_id)
}

impl Node {
    /// Looks whether there is room for `what` (like "volume db, grown to 10 bytes,"). `more` says what is asked for, of what is seen. Pools of nodes that are away are not
    /// asked; `here`: they are this node's, and it is waited until it says how large they are.
    ///
    /// # Errors
    /// [`OpError::NoSpace`]: more would be provisioned than may be.
    pub(super) async fn room_for(
        &self,
        what: &str,
        here: bool,
        more: impl Fn(&Seen) -> Vec<More>,
    ) -> Result<Room<'_>, OpError> {
        let key = self.registry.keys().placement_limits();
        let found = self.registry.get::<Limits>(&key).await?;
        let (limits, same) = match found {
            Some(Versioned { record, revision }) => (record, Guard::at(&key, revision)),
            None => (Limits::default(), Guard::absent(&key)),
        };
        if limits.overcommit_percent == 0 {
            return Ok(Room {
                guards: vec![same],
                writes: Vec::new(),
                _turn: None,
            });
        }
        let turn = self.placing.lock().await;
        let end = Instant::now() + SAY_LIMIT;
        let (revision, over) = loop {
            let (revision, _) = self.current().await?;
            let (over, unknown) = {
                let seen = self.coordination.seen();
                let (cluster, more) = (seen.cluster(&self.gossip().loads()), more(&seen));
                let over = refused(&cluster, limits, &more);
                let over = over.map(|(m, pool, limit)| (m.clone(), pool.clone(), limit));
                let unknown = more.iter().any(|m| pool(&cluster, m).is_none());
                (over, unknown)
            };
            if !(here && unknown) {
                break (revision, over);
            }
            if Instant::now() >= end {
                return Err(OpError::Unavailable(format!(
                    "how large the pool of node {} is, is not known yet, and pools have a limit: try again",
                    self.node_id()
                )));
            }
            tokio::time::sleep(LOOK).await;
        };
        if let Some((more, pool, limit)) = over {
            return Err(self.over_limit(what, &more, &pool, limit, limits).await);
        }
        let key = self.registry.keys().placements();
        Ok(Room {
            guards: vec![same, Guard::at(&key, revision)],
            writes: vec![Write::put(&key, Uuid::new_v4().to_string())],
            _turn: Some(turn),
        })
    }

    async fn over_limit(
        &self,
        what: &str,
        more: &More,
        pool: &Pool,
        limit: u64,
        limits: Limits,
    ) -> OpError {
        let names = self.registry.pools().await.unwrap_or_default();
        let named = names.into_iter().find(|p| p.pool_id == pool.pool_id);
        let name = named.map_or_else(|| pool.pool_id.to_string(), |p| p.name);
        OpError::NoSpace(format!(
            "{what} needs {} bytes more of pool {name} of node {}, which would have {} bytes provisioned then, and {limit} may be ({} percent of its size less what is \
             reserved): make the pool larger (`keelctl service pool expand`), move replicas elsewhere (`keelctl volume ha-update --move {}`, `keelctl service pool \
             rebalance`), delete what is not needed, or raise the limit (`keelctl cluster options --overcommit PERCENT`)",
            more.bytes,
            more.node_id,
            pool.provisioned_bytes.saturating_add(more.bytes),
            limits.overcommit_percent,
            more.node_id,
        ))
    }

    /// Why a volume with a single copy of that size would not be made here; `None`: there is room.
    ///
    /// # Errors
    /// The KVDB does not answer.
    pub(crate) async fn local_room(&self, size_bytes: u64) -> Result<Option<OpError>, OpError> {
        let Some(pool) = &self.pool else {
            return Ok(None);
        };
        let pool_id = pool.record.pool_id;
        match self.room_here("it", pool_id, size_bytes).await {
            Ok(_) => Ok(None),
            Err(full @ OpError::NoSpace(_)) => Ok(Some(full)),
            Err(error) => Err(error),
        }
    }

    /// [`Self::room_for`] a single copy in a pool of this node.
    pub(super) async fn room_here(
        &self,
        what: &str,
        pool_id: Uuid,
        bytes: u64,
    ) -> Result<Room<'_>, OpError> {
        let more = |_: &Seen| {
            vec![More {
                node_id: self.node_id().into(),
                pool_id,
                bytes,
            }]
        };
        self.room_for(what, true, more).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement;

    #[test]
    fn only_what_is_asked_for_more_than_it_may_have_is_refused() {
        let pool_id = Uuid::from_u128(1);
        let node = |id: &str, provisioned_bytes| placement::Node {
            node_id: id.into(),
            labels: Default::default(),
            refused: None,
            load_percent: 0,
            pools: vec![Pool {
                pool_id,
                memory: true,
                total_bytes: 100,
                free_bytes: 0,
                provisioned_bytes,
                replicas: 1,
            }],
        };
        let cluster = Cluster::new(vec![node("a", 150), node("b", 190)]);
        let limits = |overcommit_percent| Limits {
            overcommit_percent,
            reserve_percent: 0,
        };
        let ask = |of: &[(&str, u64)], percent| {
            let more = of.iter().map(|(node, bytes)| More {
                node_id: (*node).into(),
                pool_id,
                bytes: *bytes,
            });
            let more: Vec<_> = more.collect();
            refused(&cluster, limits(percent), &more).map(|(m, _, l)| (m.node_id.clone(), l))
        };
        assert_eq!(ask(&[("a", 50), ("b", 10)], 200), None, "just so much");
        assert_eq!(ask(&[("a", 50), ("b", 11)], 200), Some(("b".into(), 200)));
        assert_eq!(ask(&[("a", 0)], 100), None, "nothing more is asked for");
        assert_eq!(ask(&[("a", 1)], 100), Some(("a".into(), 100)));
        assert_eq!(ask(&[("a", 1000)], 0), None, "no limit");
        assert_eq!(ask(&[("away", 1000)], 100), None, "nobody knows its size");
    }
}
