//! Clones of volumes with several replicas: on the nodes of the source's replicas, in the same pools, each sharing the blocks of its own one.
//!
//! Of a snapshot they are made at once. Of a volume a snapshot is taken for it: that and the clone are written down together, and whoever serves the volume does
//! the rest (`coordination/clones`), so it goes on if whoever asked dies.
use super::Node;
use super::room::{Room, everywhere};
use super::wishes::merge_labels;
use crate::auth::{Caller, OwnershipRecord};
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    ClusterRecord, Phase, ReplicatedRecord, SnapshotRecord, SourceRecord, Versioned, VolumeRecord,
    encode, unix_ms,
};
use crate::replication::record::ReplicationRecord;
use crate::secrets::SecretRecord;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a clone is of: the source's record, and as what it is cloned.
struct Origin<'a> {
    parent: &'a VolumeRecord,
    source: SourceRecord,
    size_bytes: u64,
    labels: &'a BTreeMap<String, String>,
    /// Whose the clone is.
    ownership: Option<OwnershipRecord>,
}

impl Origin<'_> {
    fn clone_called(
        self,
        name: String,
        labels: &BTreeMap<String, String>,
    ) -> Result<VolumeRecord, OpError> {
        let mut all = self.labels.clone();
        merge_labels(&mut all, labels)?;
        let layout = self.parent.replicated.clone();
        Ok(VolumeRecord {
            volume_id: Uuid::new_v4(),
            name,
            phase: Phase::Creating,
            size_bytes: self.size_bytes,
            sticky: false,
            labels: all,
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: unix_ms(),
            detached_unix_ms: 0,
            error: String::new(),
            source: Some(self.source),
            restoring: None,
            ownership: self.ownership,
            replicated: layout.map(|r| ReplicatedRecord {
                growing_to: None,
                ..r
            }),
            ..self.parent.clone()
        })
    }
}

impl Node {
    /// Makes a volume of a snapshot; its id. The same wish again gives the same id.
    pub(super) async fn clone_replicated(
        &self,
        name: String,
        snapshot: &Versioned<SnapshotRecord>,
        labels: BTreeMap<String, String>,
        caller: &Caller,
    ) -> Result<Uuid, OpError> {
        let of = &snapshot.record;
        let source = SourceRecord {
            volume_id: of.volume_id,
            snapshot_id: of.snapshot_id,
            own: false,
        };
        if let Some(there) = self.existing(&name).await? {
            return self.adopt_replicated_clone(there.record, &source).await;
        }
        if of.phase != Phase::Ready {
            return Err(OpError::State(format!(
                "snapshot {} is being taken, or deleted: try again",
                of.name
            )));
        }
        let keys = self.registry.keys();
        let parent = self.registry.volume_by_id(of.volume_id).await?;
        let parent = parent
            .ok_or_else(|| OpError::no_volume(&of.volume_name))?
            .record;
        let source_set = self.set_to_clone(parent.volume_id).await?;
        let set = self.replicas_of_clone(&parent, &source_set.record)?;
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let origin = Origin {
            parent: &parent,
            source,
            size_bytes: of.size_bytes,
            labels: &of.labels,
            ownership: caller.owns_clone(of.ownership.as_ref()),
        };
        let volume = origin.clone_called(name, &labels)?;
        let id = volume.volume_id;
        let room = self.room_beside(&volume, &set).await?;
        let (name_key, volume_key) = (keys.volume_name(&volume.name), keys.volume(id));
        let mut guards = vec![
            Guard::absent(&name_key),
            Guard::absent(&volume_key),
            Guard::at(keys.cluster(), cluster.revision),
            // It is not being deleted.
            Guard::at(keys.snapshot(of.snapshot_id), snapshot.revision),
            // It is where the clone's replicas will be.
            Guard::at(keys.replication(parent.volume_id), source_set.revision),
        ];
        let mut writes = vec![
            Write::put(name_key, id.to_string()),
            Write::put(volume_key, encode(&volume)),
            Write::put(keys.replication(id), encode(&set)),
        ];
        if volume.encrypted {
            let secret = self.inherit_keys(of.volume_id, id).await?;
            writes.push(Write::put(keys.secret(id), encode(&secret)));
        }
        guards.extend(room.guards.clone());
        writes.extend(room.writes.clone());
        self.commit(&format!("volume {}", volume.name), guards, writes)
            .await?;
        drop(room);
        self.wait_made(&volume).await?;
        tracing::info!(volume = volume.name, %id, snapshot = of.name, "volume cloned");
        Ok(id)
    }

    /// Makes a volume of another as it is at this moment; its id. The same wish again gives the same id.
    pub(super) async fn clone_replicated_volume(
        &self,
        name: String,
        parent: &Versioned<VolumeRecord>,
        labels: BTreeMap<String, String>,
        caller: &Caller,
    ) -> Result<Uuid, OpError> {
        let of = &parent.record;
        let snapshot_id = Uuid::new_v4();
        let source = SourceRecord {
            volume_id: of.volume_id,
            snapshot_id,
            own: true,
        };
        if let Some(there) = self.existing(&name).await? {
            return self.adopt_replicated_clone(there.record, &source).await;
        }
        self.usable(of)?;
        let attachment = self.coordinated(parent).await?;
        let set = self.set_to_clone(of.volume_id).await?;
        // Before anything is written: nobody is to wait for what cannot be now.
        let beside = self.replicas_of_clone(of, &set.record)?;
        let origin = Origin {
            parent: of,
            source,
            size_bytes: of.served_bytes(),
            labels: &of.labels,
            ownership: caller.owns_clone(of.ownership.as_ref()),
        };
        let volume = origin.clone_called(name, &labels)?;
        let id = volume.volume_id;
        let snapshot = SnapshotRecord {
            snapshot_id,
            name: String::new(),
            phase: Phase::Creating,
            volume_id: of.volume_id,
            volume_name: of.name.clone(),
            group: Uuid::new_v4(),
            node_id: String::new(),
            pool_id: Uuid::nil(),
            size_bytes: volume.size_bytes,
            block_bytes: of.block_bytes,
            labels: BTreeMap::new(),
            created_unix_ms: unix_ms(),
            error: String::new(),
            epoch: Some(set.record.epoch.number()),
            for_clone: Some(id),
            joint: None,
            // Nobody sees it.
            ownership: None,
        };
        let keys = self.registry.keys();
        let room = self.room_beside(&volume, &beside).await?;
        let (name_key, volume_key) = (keys.volume_name(&volume.name), keys.volume(id));
        let mut guards = vec![
            Guard::absent(&name_key),
            Guard::absent(&volume_key),
            Guard::at(keys.volume(of.volume_id), parent.revision),
            Guard::at(keys.attachment(of.volume_id), attachment.revision),
        ];
        let mut writes = vec![
            Write::put(name_key, id.to_string()),
            Write::put(volume_key, encode(&volume)),
            Write::put(keys.snapshot(snapshot_id), encode(&snapshot)),
        ];
        guards.extend(room.guards.clone());
        writes.extend(room.writes.clone());
        self.commit(&format!("volume {}", volume.name), guards, writes)
            .await?;
        drop(room);
        self.wait_made(&volume).await?;
        tracing::info!(volume = volume.name, %id, of = of.name, "volume cloned");
        Ok(id)
    }

    /// Room for a clone where its replicas will be.
    async fn room_beside(
        &self,
        clone: &VolumeRecord,
        set: &ReplicationRecord,
    ) -> Result<Room<'_>, OpError> {
        let (id, bytes) = (clone.volume_id, clone.size_bytes);
        let what = format!("volume {}, a clone,", clone.name);
        self.room_for(&what, false, |seen| everywhere(seen, id, set, bytes))
            .await
    }

    /// The record of replication of a volume that is cloned.
    pub(crate) async fn set_to_clone(
        &self,
        parent: Uuid,
    ) -> Result<Versioned<ReplicationRecord>, OpError> {
        let set = self.replication(parent).await?;
        set.ok_or_else(|| OpError::Internal("a volume without a record of its replicas".into()))
    }

    /// The keys of a clone: those that it inherits, and one of its own.
    pub(crate) async fn inherit_keys(&self, from: Uuid, to: Uuid) -> Result<SecretRecord, OpError> {
        let key = self.registry.keys().secret(from);
        let record = self.registry.get::<SecretRecord>(&key).await?;
        let record = record.ok_or_else(|| OpError::State("its keys were deleted".into()))?;
        let inherited = record.record.inherited(to, &self.cluster_keys().await?);
        inherited.map_err(|e| OpError::State(e.to_string()))
    }

    async fn adopt_replicated_clone(
        &self,
        record: VolumeRecord,
        source: &SourceRecord,
    ) -> Result<Uuid, OpError> {
        if record.source.as_ref().map(SourceRecord::parent) != Some(source.parent()) {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: "but was not cloned from there".into(),
            });
        }
        if record.phase == Phase::Creating {
            self.wait_made(&record).await?;
        }
        Ok(record.volume_id)
    }
}
