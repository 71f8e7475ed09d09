//! Volumes with several replicas: made, deleted, attached, moved, detached. What is asked for is written down; each node does its part of it
//! (`coordination`), and this waits until that is done, for a while. None of it is alone, so it waits for no other change.
use super::Node;
use super::placing::{self, PLACING_LIMIT};
use super::wishes::VolumeWish;
use crate::coordination::tasks::minimum_of;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    AliveRecord, AttachmentRecord, ClusterRecord, NodeRecord, PathState, Phase, ReplicatedRecord,
    SnapshotRecord, TaskRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use crate::replication::record::{MEMBERS_MAX, ReplicationRecord};
use crate::secrets::SecretRecord;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How long nodes may take to make their replicas. Below what clients wait.
const MAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long it is waited for replicas to be deleted; those of nodes that are away go when they are back.
const DELETE_LIMIT: Duration = Duration::from_secs(5);
/// How long an attach may take: leases of 3 s, 5 s of a replica that restarted, the takeover.
const ATTACH_LIMIT: Duration = Duration::from_secs(12);
/// How long a detach waits for what this node has of the volume to end.
const DETACH_LIMIT: Duration = Duration::from_secs(5);
/// From this size on a volume has all lanes.
const LANES_FROM: u64 = 1 << 30;

/// A node, and what it says if it lives.
pub(crate) type Place = (NodeRecord, Option<AliveRecord>);

/// Most replicas of a volume.
pub const REPLICAS_MAX: u8 = MEMBERS_MAX as u8;

/// The level that users are told: one that rises is the old one until the new replica has everything.
pub(crate) fn level(wanted: u8, task: Option<&TaskRecord>) -> u8 {
    let rises = |t: &&TaskRecord| !t.state.is_over() && t.wanted > t.wanted_before;
    task.filter(rises).map_or(wanted, |t| t.wanted_before)
}

/// Lanes of a volume of a size, for good.
fn lanes(size_bytes: u64) -> u8 {
    if size_bytes < LANES_FROM { 1 } else { 16 }
}

impl Node {
    /// Makes a volume with several replicas; its id.
    pub(super) async fn create_replicated(
        &self,
        wish: VolumeWish,
        size_bytes: u64,
    ) -> Result<Uuid, OpError> {
        let end = Instant::now() + PLACING_LIMIT;
        let volume = loop {
            if let Some(found) = self.existing(&wish.name).await? {
                return self.adopt_replicated(found.record, &wish, size_bytes).await;
            }
            match self.write_replicated(&wish, size_bytes).await {
                // Others are placed at the same time, or the name is taken by now.
                Err(OpError::Contended { .. }) if Instant::now() < end => {
                    tokio::time::sleep(placing::pause()).await;
                }
                written => break written?,
            }
        };
        let id = volume.volume_id;
        self.wait_made(&volume).await?;
        tracing::info!(volume = volume.name, %id, bytes = size_bytes, replicas = wish.replicas, "volume created");
        Ok(id)
    }

    /// Places its replicas, and writes its records.
    async fn write_replicated(
        &self,
        wish: &VolumeWish,
        size_bytes: u64,
    ) -> Result<VolumeRecord, OpError> {
        let placed = self.place(&wish.ask(size_bytes)).await?;
        let keys = self.registry.keys();
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let replicas = placed
            .places
            .iter()
            .map(|(node, pool)| (Uuid::new_v4(), node.clone(), *pool));
        let (generation, replicas_wanted) = (cluster.record.generation, wish.replicas);
        let set = ReplicationRecord::new(
            generation,
            replicas,
            minimum_of(wish.replicas),
            replicas_wanted,
        );
        let set = set.map_err(|fault| OpError::Internal(fault.to_string()))?;
        let volume = VolumeRecord {
            volume_id: Uuid::new_v4(),
            name: wish.name.clone(),
            phase: Phase::Creating,
            node_id: String::new(),
            pool_id: Uuid::nil(),
            replicated: Some(ReplicatedRecord {
                lanes: lanes(size_bytes),
                // A file counts as one that has a volatile cache, and so do most drives.
                volatile_cache: true,
                minimum: None,
                growing_to: None,
            }),
            size_bytes,
            block_bytes: wish.block_bytes,
            encrypted: wish.encrypted,
            sticky: wish.sticky,
            labels: wish.labels.clone(),
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: unix_ms(),
            detached_unix_ms: 0,
            error: String::new(),
            source: None,
            restoring: None,
            placement: wish.rules.clone(),
            trashed: None,
            asked_bytes: None,
            ownership: wish.ownership.clone(),
        };
        let id = volume.volume_id;
        let schedule = self.schedule_with(id, &wish.policies, unix_ms());
        let (exist, scheduled) = schedule.await?;
        let (name_key, volume_key) = (keys.volume_name(&volume.name), keys.volume(id));
        let mut guards = vec![
            Guard::absent(&name_key),
            Guard::absent(&volume_key),
            // A KVDB that was restored meanwhile has another generation.
            Guard::at(keys.cluster(), cluster.revision),
            placed.guard.clone(),
        ];
        let mut writes = vec![
            Write::put(name_key, id.to_string()),
            Write::put(volume_key, encode(&volume)),
            Write::put(keys.replication(id), encode(&set)),
            placed.write.clone(),
        ];
        guards.extend(exist);
        writes.extend(scheduled);
        if volume.encrypted {
            let made = SecretRecord::new(id, &self.cluster_keys().await?);
            let secret = made.map_err(|e| OpError::Internal(e.to_string()))?;
            writes.push(Write::put(keys.secret(id), encode(&secret)));
        }
        self.commit(&format!("volume {}", volume.name), guards, writes)
            .await?;
        Ok(volume)
    }

    /// Waits until all replicas are made. If they are not, the volume goes.
    pub(super) async fn wait_made(&self, volume: &VolumeRecord) -> Result<(), OpError> {
        let id = volume.volume_id;
        let made = self.coordination.until(MAKE_LIMIT, |c| {
            let now = c.seen().volume(id)?;
            if now
                .volume
                .as_ref()
                .is_some_and(|v| v.record.phase == Phase::Ready)
            {
                return Some(Ok(()));
            }
            let refused = now.replicas.values().find(|r| !r.record.error.is_empty())?;
            let (node, error) = (&refused.record.node_id, &refused.record.error);
            Some(Err(format!("node {node} cannot make its replica: {error}")))
        });
        let why = match made.await {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => self.not_made(volume),
        };
        self.begin_delete(volume.volume_id).await?;
        Err(OpError::State(format!(
            "volume {} was not made, and is taken away again: {why}",
            volume.name
        )))
    }

    fn not_made(&self, volume: &VolumeRecord) -> String {
        let now = self.coordination.seen().volume(volume.volume_id);
        let Some((set, made)) = now.and_then(|n| Some((n.set?, n.replicas))) else {
            let of = volume.source.as_ref();
            let why = of.and_then(|s| self.coordination.trouble(s.volume_id));
            let why = why.unwrap_or_else(|| "it is not served, or members are slow".into());
            return format!(
                "no snapshot of its source in {} s: {why}",
                MAKE_LIMIT.as_secs()
            );
        };
        let all = set.record.replicas.iter();
        let late = all.filter(|r| made.get(&r.replica_id).is_none_or(|k| !k.record.made));
        let late: Vec<&str> = late.map(|r| r.node_id.as_str()).collect();
        format!(
            "no replica in {} s by {}",
            MAKE_LIMIT.as_secs(),
            late.join(", ")
        )
    }

    async fn adopt_replicated(
        &self,
        record: VolumeRecord,
        wish: &VolumeWish,
        size_bytes: u64,
    ) -> Result<Uuid, OpError> {
        let level = self.ha_level(&record).await?;
        if record.encrypted != wish.encrypted {
            let what = match record.encrypted {
                true => "encrypted",
                false => "its blocks not encrypted",
            };
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: what.into(),
            });
        }
        self.same_volume(&record, size_bytes, wish.block_bytes)?;
        if level != wish.replicas {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: format!("with {level} replicas, not {}", wish.replicas),
            });
        }
        if record.placement != wish.rules {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: "other placement rules".into(),
            });
        }
        if record.phase == Phase::Creating {
            self.wait_made(&record).await?;
        }
        Ok(record.volume_id)
    }

    /// How many replicas a volume is to have.
    pub(crate) async fn ha_level(&self, record: &VolumeRecord) -> Result<u8, OpError> {
        if record.replicated.is_none() {
            return Ok(1);
        }
        let id = record.volume_id;
        let set = self.replication(id).await?;
        let wanted = set.map_or(1, |s| s.record.wanted);
        let key = self.registry.keys().task(id);
        let task = self.registry.get::<TaskRecord>(&key).await?;
        let task = task.map(|t| t.record);
        Ok(level(wanted, task.as_ref()))
    }

    /// The record of a volume's replication.
    pub(crate) async fn replication(
        &self,
        id: Uuid,
    ) -> Result<Option<Versioned<ReplicationRecord>>, OpError> {
        self.registry
            .get(&self.registry.keys().replication(id))
            .await
    }

    /// Nodes, and what those that live say.
    pub(crate) async fn places(&self) -> Result<Vec<Place>, OpError> {
        let keys = self.registry.keys();
        let prefix = keys.alive_all();
        let alive = self.registry.kv().list(&prefix).await?;
        let says = |kv: &keelblock_api::etcd::mvccpb::KeyValue| {
            let id = kv.key.strip_prefix(prefix.as_bytes())?;
            let says = serde_json::from_slice::<AliveRecord>(&kv.value).ok()?;
            Some((String::from_utf8_lossy(id).into_owned(), says))
        };
        let mut alive: HashMap<String, AliveRecord> = alive.kvs.iter().filter_map(says).collect();
        let nodes = self.registry.nodes().await?;
        let with = |node: crate::records::NodeRecord| {
            let says = alive.remove(&node.node_id);
            (node, says)
        };
        Ok(nodes.into_iter().map(|(node, _)| node).map(with).collect())
    }

    /// Deletes a volume that is attached nowhere: its name is free at once, and its replicas go where their nodes live.
    pub(super) async fn delete_replicated(&self, record: &VolumeRecord) -> Result<(), OpError> {
        let id = record.volume_id;
        let prefix = self.registry.keys().snapshots();
        let all = self.registry.list::<SnapshotRecord>(&prefix).await?;
        let of_it = all.iter().filter(|s| s.record.volume_id == id);
        let (clones, of_it): (Vec<_>, Vec<_>) = of_it.partition(|s| s.record.for_clone.is_some());
        if !clones.is_empty() {
            return Err(OpError::Busy(format!(
                "volume {} is being cloned: try again when the clone is there, or deleted",
                record.name
            )));
        }
        if !of_it.is_empty() {
            self.delete_but_snapshots(id, &of_it).await?;
            tracing::info!(volume = record.name, %id, "volume deleted but for its snapshots");
            return Ok(());
        }
        self.begin_delete(id).await?;
        let gone =
            |c: &crate::coordination::Coordination| c.seen().volume(id).is_none().then_some(());
        match self.coordination.until(DELETE_LIMIT, gone).await {
            Some(()) => tracing::info!(volume = record.name, %id, "volume deleted"),
            None => tracing::warn!(
                volume = record.name, %id,
                "volume deleted; replicas on nodes that are away go when they are back"
            ),
        }
        Ok(())
    }

    async fn begin_delete(&self, id: Uuid) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let Some(found) = self.registry.volume_by_id(id).await? else {
            return Ok(());
        };
        if found.record.phase == Phase::Deleting {
            return Ok(());
        }
        let record = VolumeRecord {
            phase: Phase::Deleting,
            ..found.record
        };
        let guards = vec![
            Guard::at(keys.volume(id), found.revision),
            Guard::absent(keys.attachment(id)),
        ];
        let writes = vec![
            Write::put(keys.volume(id), encode(&record)),
            Write::delete(keys.volume_name(&record.name)),
            // Of an encrypted volume nothing can be read from now on, wherever its blocks still are.
            Write::delete(keys.secret(id)),
        ];
        self.commit(&format!("volume {}", record.name), guards, writes)
            .await
    }

    /// Attaches a replicated volume to a node, this one unless another is named, or moves it there if it is named; returns when it is served.
    pub(super) async fn attach_replicated(
        &self,
        volume: &Versioned<VolumeRecord>,
        to: Option<&str>,
    ) -> Result<AttachmentRecord, OpError> {
        let (id, name) = (volume.record.volume_id, &volume.record.name);
        let target = to.unwrap_or(self.node_id());
        self.can_coordinate(target).await?;
        let standing = self.standing().await?;
        if target == self.node_id() {
            // Before anything is written: nobody is to wait for what cannot be.
            self.data_keys(&volume.record).await?;
        }
        let keys = self.registry.keys();
        let found = self.registry.any_attachment(id).await?;
        let errand = found.as_ref().is_some_and(|f| f.record.errand);
        // The record says who served it last, until the next one does.
        let mut after = self.replication(id).await?.map(|s| s.record.version);
        let mut record = AttachmentRecord {
            volume_id: id,
            node_id: target.into(),
            subsystem_of: id,
            nsid: 1,
            path_state: PathState::Optimized,
            attached_unix_ms: unix_ms(),
            moved_from: None,
            errand: false,
        };
        match found {
            Some(found) if found.record.node_id == target && !errand => {
                record = found.record;
                after = None;
            }
            Some(found) if to.is_none() && !errand => {
                return Err(OpError::State(format!(
                    "volume {name} is attached on node {}: hosts reach it from there; `keelctl volume attach {name} --node {target}` moves it",
                    found.record.node_id
                )));
            }
            found => {
                standing.must_be_fit(target)?;
                let revision = found.as_ref().map_or(0, |f| f.revision);
                let from = found.map(|f| f.record.node_id);
                record.moved_from = from.filter(|node| node != target);
                if errand && record.moved_from.is_none() {
                    // It is coordinated here already.
                    after = None;
                }
                let mut guards = standing.guards(keys, [target]);
                guards.extend([
                    Guard::at(keys.attachment(id), revision),
                    Guard::at(keys.volume(id), volume.revision),
                ]);
                let write = Write::put(keys.attachment(id), encode(&record));
                self.commit(name, guards, vec![write]).await?;
            }
        }
        self.wait_served(&volume.record, target, after).await?;
        tracing::info!(volume = name, node = target, "volume attached");
        Ok(record)
    }

    /// Waits until a node serves a volume, by a record behind that version, and exports it if it is this one.
    async fn wait_served(
        &self,
        volume: &VolumeRecord,
        target: &str,
        after: Option<u64>,
    ) -> Result<(), OpError> {
        let id = volume.volume_id;
        let here = target == self.node_id();
        let served = self.coordination.until(ATTACH_LIMIT, |c| {
            let served = {
                let seen = c.seen();
                let version = seen.set(id)?.version;
                seen.served_by(id)? == target && after.is_none_or(|before| version > before)
            };
            let exported = || {
                let export = c.told().path(id).and_then(|p| p.export);
                export.is_some_and(|(_, state)| state == PathState::Optimized)
            };
            (served && (!here || exported())).then_some(())
        });
        if served.await.is_some() {
            return Ok(());
        }
        let why = self.coordination.trouble(id);
        let why = why.unwrap_or_else(|| match volume.encrypted && !here {
            true => format!(
                "too few of its replicas are reached, or node {target} has not its cluster key"
            ),
            false => "too few of its replicas are reached".into(),
        });
        Err(OpError::Unavailable(format!(
            "volume {} is attached on node {target}, and not served yet: {why}; it will be as soon as it can",
            volume.name
        )))
    }

    /// A node that can coordinate: it need not have a replica.
    pub(super) async fn can_coordinate(&self, node_id: &str) -> Result<(), OpError> {
        if node_id == self.node_id() {
            self.link.up()?;
        }
        let places = self.places().await?;
        let found = places.iter().find(|(node, _)| node.node_id == node_id);
        let (node, alive) = found.ok_or_else(|| OpError::NotFound {
            kind: "node",
            name: node_id.into(),
        })?;
        let why = match alive {
            None => "is away",
            Some(alive) if alive.incarnation.is_empty() => "has no data path at the moment",
            Some(_) if node.replication_address.is_empty() => {
                "has a data path without replication: start it with --replication"
            }
            Some(_) => return Ok(()),
        };
        Err(OpError::State(format!("node {node_id} {why}")))
    }

    /// Ends serving a replicated volume, wherever that is.
    pub(super) async fn detach_replicated(
        &self,
        volume: &Versioned<VolumeRecord>,
    ) -> Result<(), OpError> {
        let id = volume.record.volume_id;
        if let Some(found) = self.registry.attachment(id).await? {
            let keys = self.registry.keys();
            let detached = VolumeRecord {
                detached_unix_ms: unix_ms(),
                // Attaching it again is trying again.
                error: String::new(),
                ..volume.record.clone()
            };
            let guards = vec![
                Guard::at(keys.attachment(id), found.revision),
                Guard::at(keys.volume(id), volume.revision),
            ];
            let writes = vec![
                Write::delete(keys.attachment(id)),
                Write::put(keys.volume(id), encode(&detached)),
            ];
            self.commit(&volume.record.name, guards, writes).await?;
            tracing::info!(volume = volume.record.name, "volume detached");
        }
        // The other nodes do the same, at the same time.
        let ended = self.coordination.until(DETACH_LIMIT, |c| {
            let told = c.told();
            let path = told.path(id).and_then(|p| p.export);
            (told.incarnation.is_none() || path.is_none()).then_some(())
        });
        match ended.await {
            Some(()) => Ok(()),
            None => Err(OpError::Unavailable(format!(
                "volume {} is detached, and its path on this node has not ended yet: {}",
                volume.record.name,
                self.coordination
                    .trouble(id)
                    .unwrap_or_else(|| "it takes long".into())
            ))),
        }
    }

    /// What a replicated volume is not asked for yet.
    pub(super) fn not_replicated(&self, record: &VolumeRecord, what: &str) -> Result<(), OpError> {
        match &record.replicated {
            None => Ok(()),
            Some(_) => Err(OpError::State(format!(
                "volume {} has several replicas, and this version cannot {what}",
                record.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_served_by_the_majority_of_its_replicas_or_by_one_of_two() {
        assert_eq!((1..=5).map(minimum_of).collect::<Vec<_>>(), [1, 1, 2, 3, 3]);
        assert_eq!((lanes(LANES_FROM - 4096), lanes(LANES_FROM)), (1, 16));
    }
}
