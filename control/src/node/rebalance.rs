//! Planning moves of replicas, from what is seen (`docs/placement.md` §8). The moves themselves are tasks of the volumes (`ha`), which `rebalancing` begins.
use super::Node;
use crate::coordination::Seen;
use crate::error::OpError;
use crate::placement::Rules;
use crate::placement::rebalance::{Aim, Movable, Plan};
use crate::records::{Phase, VolumeRecord};
use crate::replication::record::{ReplicaState, ReplicationRecord};
use std::collections::HashMap;
use uuid::Uuid;

/// A plan, and what it is about in names.
#[derive(Debug)]
pub(crate) struct NamedPlan {
    /// What is to be moved.
    pub plan: Plan,
    /// Names of the volumes in it.
    pub names: HashMap<Uuid, String>,
    /// Replicated volumes that cannot be moved now, and why.
    pub left: Vec<(String, &'static str)>,
}

/// Why the replicas of a volume are not moved now; `None`: they can be.
fn stays(seen: &Seen, volume: &VolumeRecord, set: &ReplicationRecord) -> Option<&'static str> {
    let id = volume.volume_id;
    let whole = set.replicas.iter().all(|r| r.state == ReplicaState::Member);
    if volume.phase != Phase::Ready {
        Some("it is not ready, or deleted but for its snapshots")
    } else if seen.task(id).is_some_and(|t| !t.state.is_over()) {
        Some("its replicas are being changed")
    } else if !whole || set.replicas.len() != usize::from(set.wanted) {
        Some("not all of its replicas are in sync")
    } else if volume.in_trash().is_some() {
        Some("it is in the trashcan")
    } else if !set.replicas.iter().all(|r| lives(seen, &r.node_id)) {
        Some("a node with a replica of it is away")
    } else {
        None
    }
}

/// It can be copied from, and deleted there.
fn lives(seen: &Seen, node: &str) -> bool {
    let life = seen.alive().get(node);
    life.is_some_and(|l| !l.says.incarnation.is_empty())
}

impl Node {
    /// Plans moves, of volumes whose replicas can be moved now.
    pub(crate) async fn plan_rebalance(&self, aim: Aim) -> Result<NamedPlan, OpError> {
        let (_, limits) = self.current().await?;
        let seen = self.coordination.seen();
        let speaks =
            |(v, _): (&VolumeRecord, _)| v.placement.as_ref().is_some_and(Rules::of_volumes);
        let speaks = seen.sets().any(speaks);
        let (mut movable, mut names, mut left) = (Vec::new(), HashMap::new(), Vec::new());
        for (volume, set) in seen.sets() {
            let id = volume.volume_id;
            if let Some(why) = stays(&seen, volume, set) {
                left.push((volume.name.clone(), why));
                continue;
            }
            names.insert(id, volume.name.clone());
            let replicas = set.replicas.iter();
            movable.push(Movable {
                volume_id: id,
                size_bytes: volume.served_bytes(),
                labels: &volume.labels,
                rules: volume.placement.as_ref(),
                replicas: replicas.map(|r| (r.node_id.as_str(), r.pool_id)).collect(),
                neighbours: match speaks {
                    true => seen.neighbours(Some(id), true),
                    false => Vec::new(),
                },
            });
        }
        // Else the plan would follow the order of a hash table.
        movable.sort_by_key(|m| m.volume_id);
        left.sort();
        let plan = seen
            .cluster(&self.gossip().loads())
            .rebalance(movable, limits, aim);
        names.retain(|id, _| plan.moves.iter().any(|m| m.volume_id == *id));
        Ok(NamedPlan { plan, names, left })
    }
}
