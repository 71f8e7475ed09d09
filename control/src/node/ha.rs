//! Another number of replicas, or other nodes for them: what is wanted is written down as a task, one step at a time, and goes on by itself
//! (`coordination::tasks`) as long as the volume is served.
use super::Node;
use super::ha_found::{Found, first, new_replicas, task_replica};
use super::placing::{self, Ask, PLACING_LIMIT, Placed};
use super::replicated::Place;
use crate::coordination::tasks::minimum_of;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    Phase, ReplicaRecord, TaskKind, TaskRecord, TaskReplica, TaskState, TaskStep, Versioned,
    VolumeRecord, encode, unix_ms,
};
use crate::replication::record::{MEMBERS_MAX, Replica, ReplicaState};
use crate::replication::transition;
use std::collections::HashMap;
use tokio::time::Instant;
use uuid::Uuid;

/// What is wanted of a volume's replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaWish {
    /// So many; the node of the one that comes or goes, unless it is to be chosen.
    Replicas(u8, Option<String>),
    /// The one of that id, or on that node, goes, and one comes to the other node, unless that is to be chosen.
    Move(String, Option<String>),
    /// Served by no fewer than so many; `None`: as follows from their number.
    Minimum(Option<u8>),
    /// The one of that id, or on that node, is compared anew with the others; empty: those that are behind are brought back.
    Resync(String),
}

impl Node {
    /// Begins to change the replicas of a volume; the task, unless everything is as it is wanted already.
    pub(crate) async fn change_ha(
        &self,
        name: &str,
        wish: HaWish,
    ) -> Result<Option<TaskRecord>, OpError> {
        let end = Instant::now() + PLACING_LIMIT;
        loop {
            match self.change_ha_once(name, wish.clone()).await {
                // Others are placed at the same time.
                Err(OpError::Contended { .. }) if Instant::now() < end => {
                    tokio::time::sleep(placing::pause()).await;
                }
                changed => return changed,
            }
        }
    }

    async fn change_ha_once(
        &self,
        name: &str,
        wish: HaWish,
    ) -> Result<Option<TaskRecord>, OpError> {
        let found = self.ha_of(name).await?;
        let volume = found.volume.clone();
        let begun = match wish {
            HaWish::Replicas(wanted, node) => self.change_level(found, wanted, node).await,
            HaWish::Move(from, to) => self.move_replica(found, &from, to).await.map(Some),
            HaWish::Minimum(minimum) => self.set_minimum(&found, minimum).await.map(|()| None),
            HaWish::Resync(named) if named.is_empty() => {
                self.bring_back(&found).await.map(|()| None)
            }
            HaWish::Resync(named) => self.compare_anew(found, &named).await.map(Some),
        }?;
        let id = volume.record.volume_id;
        if begun.is_some()
            && self.registry.any_attachment(id).await?.is_none()
            && self.can_coordinate(self.node_id()).await.is_ok()
        {
            // Else it is begun by whoever looks for such (`mending`).
            self.begin_errand(&volume, self.node_id()).await?;
        }
        Ok(begun)
    }

    /// Has a volume that is attached nowhere, and of which a replica is behind, coordinated at once. One that is served needs nothing.
    async fn bring_back(&self, found: &Found) -> Result<(), OpError> {
        let behind = |r: &Replica| r.state != ReplicaState::Member;
        if found.staying().any(behind) {
            self.coordinated(&found.volume).await?;
        }
        Ok(())
    }

    async fn compare_anew(&self, found: Found, named: &str) -> Result<TaskRecord, OpError> {
        let replica = found.replica(named)?.clone();
        if let Some(task) = found.running() {
            let new = task.record.new.as_ref();
            let same = task.record.kind == TaskKind::Resync
                && new.is_some_and(|new| new.replica_id == replica.replica_id);
            return match same {
                true => Ok(task.record.clone()),
                false => Err(found.busy(&task.record)),
            };
        }
        let set = &found.set.record;
        let rest = set.members.iter().filter(|id| **id != replica.replica_id);
        let (left, minimum) = (rest.count(), usize::from(set.minimum));
        if left == 0 {
            return Err(OpError::State(format!(
                "the replica of volume {} on node {} is the only one in sync: there is none that it could be compared with",
                found.name(),
                replica.node_id
            )));
        }
        if left < minimum {
            return Err(OpError::State(format!(
                "volume {name} is served by no fewer than {minimum} replicas, and without the one on node {node} {left} are in sync: wait for the \
                 others (`keelctl volume replicas {name}`), or lower that with `keelctl volume ha-update --minimum {left} {name}`",
                name = found.name(),
                node = replica.node_id,
            )));
        }
        let wanted = set.wanted;
        let new = Some(task_replica(&replica));
        let mut task = self.new_task(&found, TaskKind::Resync, wanted, new, None);
        task.step = TaskStep::Leave;
        self.begin_task(found, task, None).await
    }

    pub(super) async fn ha_of(&self, name: &str) -> Result<Found, OpError> {
        let volume = self.registry.volume(name).await?;
        let id = volume.record.volume_id;
        if volume.record.replicated.is_none() {
            return Err(OpError::State(format!(
                "volume {} was made with one replica, which is a part of its node's pool and cannot be copied to others while it is used: \
                 make another volume with --repl 2 or more, and copy its content on a host",
                volume.record.name
            )));
        }
        if volume.record.phase != Phase::Ready {
            let name = &volume.record.name;
            return Err(OpError::State(format!(
                "volume {name} is being made or deleted"
            )));
        }
        let set = self.replication(id).await?;
        let set = set.ok_or_else(|| {
            OpError::Internal(format!("volume {name} has no record of its replicas"))
        })?;
        let task = self.registry.get(&self.registry.keys().task(id)).await?;
        Ok(Found { volume, set, task })
    }

    async fn change_level(
        &self,
        found: Found,
        wanted: u8,
        node: Option<String>,
    ) -> Result<Option<TaskRecord>, OpError> {
        let now = found.set.record.wanted;
        if let Some(task) = found.running() {
            let places = || task.record.coming().chain(&task.record.old);
            let same = |n: &String| places().any(|r| r.node_id == *n);
            // The same again.
            return match task.record.wanted == wanted && node.as_ref().is_none_or(same) {
                true => Ok(Some(task.record.clone())),
                false => Err(found.busy(&task.record)),
            };
        }
        if wanted == now {
            let here = |n: &String| found.staying().any(|r| r.node_id == *n);
            return match node.filter(|n| !here(n)) {
                None => Ok(None),
                Some(node) => Err(OpError::State(format!(
                    "volume {name} has {now} replicas, none on node {node}: `keelctl volume ha-update --move FROM --to {node} {name}` moves one there",
                    name = found.name(),
                ))),
            };
        }
        if wanted > now {
            let more = usize::from(wanted - now);
            if let Some(node) = node.as_ref().filter(|_| more > 1) {
                return Err(OpError::State(format!(
                    "{more} replicas come at once, and node {node} can have one of them: ask for one more there first, or leave their nodes open"
                )));
            }
            let placed = self.place_more(&found, more, node.as_deref(), None).await?;
            let mut new = new_replicas(&placed);
            let coming = first(&mut new)?;
            let mut task = self.new_task(&found, TaskKind::Increase, wanted, Some(coming), None);
            task.more = new.collect();
            return self.begin_task(found, task, Some(placed)).await.map(Some);
        }
        if now - wanted > 1 {
            // Each copy that is given up is somebody's word, and the next one is looked at as things are then.
            return Err(OpError::State(format!(
                "volume {} has {now} replicas: one less at a time, so {} first",
                found.name(),
                now - 1
            )));
        }
        let old = self.choose_leaving(&found, node.as_deref()).await?;
        let task = self.new_task(&found, TaskKind::Decrease, wanted, None, Some(old));
        self.begin_task(found, task, None).await.map(Some)
    }

    async fn move_replica(
        &self,
        found: Found,
        from: &str,
        to: Option<String>,
    ) -> Result<TaskRecord, OpError> {
        if let Some(task) = found.running() {
            let ends = |r: &Option<TaskReplica>, n: &str| {
                let named = |r: &TaskReplica| r.node_id == n || r.replica_id.to_string() == n;
                r.as_ref().is_some_and(named)
            };
            let same = task.record.kind == TaskKind::Move
                && ends(&task.record.old, from)
                && to.as_ref().is_none_or(|to| ends(&task.record.new, to));
            return match same {
                true => Ok(task.record.clone()),
                false => Err(found.busy(&task.record)),
            };
        }
        let old = found.replica(from)?.clone();
        let member = old.state == ReplicaState::Member;
        let here = to.as_deref() == Some(old.node_id.as_str());
        if here && member {
            return Err(OpError::State(format!(
                "the replica of volume {} on node {} is in order: a new one there can only take the place of one that is lost",
                found.name(),
                old.node_id
            )));
        }
        let stay = found.staying().count();
        if member && stay >= MEMBERS_MAX {
            return Err(OpError::State(format!(
                "volume {} has {stay} replicas, the most there can be: `keelctl volume ha-update --repl {}` first, then one more elsewhere",
                found.name(),
                stay - 1
            )));
        }
        let leaves = Some((&old, !member));
        let placed = self.place_more(&found, 1, to.as_deref(), leaves).await?;
        let new = first(new_replicas(&placed))?;
        let task = self.move_task(&found, new, &old);
        self.begin_task(found, task, Some(placed)).await
    }

    pub(super) fn move_task(&self, found: &Found, new: TaskReplica, old: &Replica) -> TaskRecord {
        let wanted = found.set.record.wanted;
        let first = new.node_id == old.node_id || found.staying().count() >= MEMBERS_MAX;
        let (new, old) = (Some(new), Some(task_replica(old)));
        let task = self.new_task(found, TaskKind::Move, wanted, new, old);
        TaskRecord {
            old_first: first,
            ..task
        }
    }

    /// Nodes for so many more replicas: that one, or the best. `leaves`: one that is to go; if it is lost, its node may have another in its place.
    pub(super) async fn place_more(
        &self,
        found: &Found,
        count: usize,
        node: Option<&str>,
        leaves: Option<(&Replica, bool)>,
    ) -> Result<Placed<'_>, OpError> {
        let all = &found.set.record.replicas;
        let old = leaves.map(|(old, _)| old);
        let stays = |r: &&Replica| {
            let leaves = old.is_some_and(|old| old.replica_id == r.replica_id);
            r.state != ReplicaState::Leaving && !leaves
        };
        let on = |r: &'_ Replica| r.node_id.clone();
        let held: Vec<String> = all.iter().filter(stays).map(on).collect();
        let shut: Vec<String> = all.iter().filter(|r| !stays(r)).map(on).collect();
        // Where there is no other node, a lost one is made again where it was.
        let instead = leaves.filter(|(_, lost)| *lost);
        let instead = instead.map(|(old, _)| old.node_id.as_str());
        if let Some(node) = node {
            let taken = all.iter().find(|r| r.node_id == node);
            if let Some(taken) = taken.filter(|_| instead != Some(node)) {
                return Err(OpError::State(match taken.state {
                    ReplicaState::Leaving => format!(
                        "node {node} is still deleting a replica of volume {}",
                        found.name()
                    ),
                    _ => format!("node {node} has a replica of volume {}", found.name()),
                }));
            }
        }
        let record = &found.volume.record;
        let mut ask = Ask {
            volume: Some(record.volume_id),
            size_bytes: record.served_bytes(),
            labels: record.labels.clone(),
            rules: record.placement.as_ref(),
            replicas: count,
            held: held.iter().map(String::as_str).collect(),
            shut: shut.iter().map(String::as_str).collect(),
            nodes: node.into_iter().collect(),
            pools: Vec::new(),
        };
        match (self.place(&ask).await, instead) {
            (Err(refused), Some(instead)) => {
                ask.shut.retain(|n| *n != instead);
                ask.nodes = vec![instead];
                match node.is_none_or(|n| n == instead) {
                    true => self.place(&ask).await,
                    false => Err(refused),
                }
            }
            (placed, _) => placed,
        }
    }

    /// The replica that goes: on that node, or the one that is missed least.
    async fn choose_leaving(
        &self,
        found: &Found,
        node: Option<&str>,
    ) -> Result<TaskReplica, OpError> {
        let set = &found.set.record;
        if let Some(minimum) = found
            .volume
            .record
            .replicated
            .as_ref()
            .and_then(|r| r.minimum)
            && set.wanted <= minimum
        {
            return Err(OpError::State(format!(
                "volume {name} is to be served by no fewer than {minimum} replicas: `keelctl volume ha-update --minimum auto {name}` first",
                name = found.name()
            )));
        }
        let places = self.places().await?;
        let alive: HashMap<&str, &Place> = places
            .iter()
            .filter(|(_, alive)| alive.as_ref().is_some_and(|a| !a.incarnation.is_empty()))
            .map(|seen| (seen.0.node_id.as_str(), seen))
            .collect();
        let lives = |r: &Replica| alive.contains_key(r.node_id.as_str());
        let errors = self.replica_errors(found.volume.record.volume_id).await?;
        let lost = |r: &Replica| errors.get(&r.replica_id).is_some_and(|e| e.lost);
        let works = |r: &&Replica| r.state == ReplicaState::Member && lives(r);
        let coordinates = set.holder.as_ref().map(|h| h.node_id.as_str());
        let free = |r: &Replica| {
            let seen = alive.get(r.node_id.as_str());
            let pools = seen.and_then(|s| s.1.as_ref()).map(|a| &a.pools);
            let mut of = pools.into_iter().flatten();
            of.find(|p| p.pool_id == r.pool_id)
                .map_or(0, |p| p.free_bytes)
        };
        let mut all: Vec<&Replica> = found.staying().collect();
        // Lost ones first, then those that are behind, or away; of those in order the one with least room, and the coordinator's last.
        all.sort_by_key(|r| {
            let at_coordinator = coordinates == Some(r.node_id.as_str());
            (
                !lost(r),
                works(r),
                at_coordinator,
                free(r),
                r.node_id.clone(),
            )
        });
        let old = match node {
            Some(node) => found.replica(node)?,
            None => all.first().copied().ok_or_else(|| {
                OpError::Internal(format!("volume {} has no replicas", found.name()))
            })?,
        };
        let rest = found.staying().filter(|r| r.replica_id != old.replica_id);
        if rest.filter(works).count() == 0 {
            return Err(OpError::State(format!(
                "the replica of volume {} on node {} is the only one in sync that can be reached: it stays",
                found.name(),
                old.node_id
            )));
        }
        Ok(task_replica(old))
    }

    async fn replica_errors(&self, id: Uuid) -> Result<HashMap<Uuid, ReplicaRecord>, OpError> {
        let prefix = self.registry.keys().replicas(id);
        let listed = self.registry.kv().list(&prefix).await?;
        let one = |kv: &keelblock_api::etcd::mvccpb::KeyValue| {
            let id = kv.key.strip_prefix(prefix.as_bytes())?;
            let id = Uuid::try_parse_ascii(id).ok()?;
            Some((id, serde_json::from_slice(&kv.value).ok()?))
        };
        Ok(listed.kvs.iter().filter_map(one).collect())
    }

    fn new_task(
        &self,
        found: &Found,
        kind: TaskKind,
        wanted: u8,
        new: Option<TaskReplica>,
        old: Option<TaskReplica>,
    ) -> TaskRecord {
        let now = unix_ms();
        TaskRecord {
            task_id: Uuid::new_v4(),
            volume_id: found.volume.record.volume_id,
            kind,
            state: TaskState::Running,
            step: match new {
                Some(_) => TaskStep::Add,
                None => TaskStep::Leave,
            },
            wanted_before: found.set.record.wanted,
            wanted,
            new,
            more: Vec::new(),
            old,
            old_first: false,
            automatic: false,
            done_bytes: 0,
            total_bytes: 0,
            copied_bytes: 0,
            error: String::new(),
            created_unix_ms: now,
            updated_unix_ms: now,
        }
    }

    /// Writes a task, and K8 with it.
    pub(super) async fn begin_task(
        &self,
        found: Found,
        task: TaskRecord,
        placed: Option<Placed<'_>>,
    ) -> Result<TaskRecord, OpError> {
        let (keys, id) = (self.registry.keys(), found.volume.record.volume_id);
        let (set, wanted) = (&found.set, task.wanted);
        let mut guards = vec![
            Guard::at(keys.volume(id), found.volume.revision),
            Guard::at(keys.replication(id), set.revision),
            Guard::at(keys.task(id), found.task.as_ref().map_or(0, |t| t.revision)),
        ];
        let mut writes = vec![Write::put(keys.task(id), encode(&task))];
        if let Some(placed) = &placed {
            guards.push(placed.guard.clone());
            writes.push(placed.write.clone());
        }
        if wanted != set.record.wanted {
            let record = transition::want(&set.record, wanted);
            let record = record.map_err(|why| OpError::State(why.to_string()))?;
            writes.push(Write::put(keys.replication(id), encode(&record)));
        }
        self.commit(&format!("volume {}", found.name()), guards, writes)
            .await?;
        let new: Vec<&str> = task.coming().map(|r| r.node_id.as_str()).collect();
        let old = task.old.as_ref().map(|r| r.node_id.as_str());
        tracing::info!(
            volume = found.name(),
            kind = task.kind.name(),
            wanted,
            ?new,
            old,
            "replicas are to change"
        );
        Ok(task)
    }

    /// Takes back what changes the replicas of a volume, as far as that is not final.
    pub(crate) async fn cancel_ha(&self, name: &str) -> Result<TaskRecord, OpError> {
        self.cancel_task(name, None).await
    }

    /// The same, of this task only; `None`: of any.
    pub(crate) async fn cancel_task(
        &self,
        name: &str,
        task_id: Option<Uuid>,
    ) -> Result<TaskRecord, OpError> {
        let found = self.ha_of(name).await?;
        let is_it = |t: &&Versioned<TaskRecord>| task_id.is_none_or(|id| t.record.task_id == id);
        let Some(task) = found.running().filter(is_it) else {
            return Err(OpError::State(format!(
                "the replicas of volume {} are not being changed",
                found.name()
            )));
        };
        if task.record.state == TaskState::Undoing {
            return Ok(task.record.clone());
        }
        let set = &found.set.record;
        let stays = |r: &TaskReplica| {
            let there = set.replica(r.replica_id);
            there.is_some_and(|r| r.state != ReplicaState::Leaving)
        };
        let gone = task.record.old.as_ref().is_some_and(|old| !stays(old));
        // A lost one goes first, and nothing is lost by it.
        if gone && !task.record.old_first {
            return Err(OpError::State(format!(
                "a replica of volume {} is being deleted, which cannot be taken back: ask for one more when it is done",
                found.name()
            )));
        }
        let mut record = task.record.clone();
        record.updated_unix_ms = unix_ms();
        record.error.clear();
        let (keys, id) = (self.registry.keys(), found.volume.record.volume_id);
        // The set is compared, as the replica that goes may be taken out of it at this moment.
        let mut guards = vec![
            Guard::at(keys.task(id), task.revision),
            Guard::at(keys.replication(id), found.set.revision),
        ];
        let mut writes = Vec::new();
        match record.new {
            Some(_) if record.kind == TaskKind::Resync => {
                record.state = TaskState::Cancelled;
                guards.pop();
            }
            Some(_) => {
                record.state = TaskState::Undoing;
                guards.pop();
            }
            None => {
                record.state = TaskState::Cancelled;
                let back = transition::want(set, record.wanted_before);
                let back = back.map_err(|why| OpError::State(why.to_string()))?;
                writes.push(Write::put(keys.replication(id), encode(&back)));
            }
        }
        writes.push(Write::put(keys.task(id), encode(&record)));
        self.commit(&format!("volume {}", found.name()), guards, writes)
            .await?;
        tracing::info!(
            volume = found.name(),
            kind = record.kind.name(),
            "what changes the replicas is taken back"
        );
        Ok(record)
    }

    async fn set_minimum(&self, found: &Found, minimum: Option<u8>) -> Result<(), OpError> {
        let wanted = found.set.record.wanted;
        if let Some(minimum) = minimum.filter(|m| *m == 0 || *m > wanted) {
            let why = format!(
                "{minimum}: volume {} has {wanted} replicas, so it is served by 1 to {wanted} at least ({} unless said otherwise)",
                found.name(),
                minimum_of(wanted)
            );
            return Err(OpError::invalid("minimum", why));
        }
        let set = |r: &mut VolumeRecord| match &mut r.replicated {
            Some(layout) if layout.minimum != minimum => {
                layout.minimum = minimum;
                Ok(true)
            }
            _ => Ok(false),
        };
        self.change_volume(found.volume.record.volume_id, set)
            .await
            .map(drop)
    }
}
