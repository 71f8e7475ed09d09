//! Clones of snapshots of volumes with several replicas: on the nodes of the source's replicas, in the same pools, each sharing the blocks of its own one.
use super::Node;
use super::volumes::merge_labels;
use crate::coordination::tasks::minimum_of;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::records::{
    ClusterRecord, Phase, SnapshotRecord, SourceRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use crate::replication::record::{ReplicaState, ReplicationRecord};
use crate::secrets::SecretRecord;
use std::collections::BTreeMap;
use uuid::Uuid;

impl Node {
    /// Makes a volume of a snapshot; its id. The same wish again gives the same id.
    pub(super) async fn clone_replicated(
        &self,
        name: String,
        snapshot: &Versioned<SnapshotRecord>,
        labels: BTreeMap<String, String>,
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
        let set = self.replicas_of_clone(&parent).await?;
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let mut all = of.labels.clone();
        merge_labels(&mut all, &labels)?;
        let volume = VolumeRecord {
            volume_id: Uuid::new_v4(),
            name,
            phase: Phase::Creating,
            size_bytes: of.size_bytes,
            sticky: false,
            labels: all,
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: unix_ms(),
            detached_unix_ms: 0,
            error: String::new(),
            source: Some(source),
            restoring: None,
            ..parent
        };
        let id = volume.volume_id;
        let (name_key, volume_key) = (keys.volume_name(&volume.name), keys.volume(id));
        let guards = vec![
            Guard::absent(&name_key),
            Guard::absent(&volume_key),
            Guard::at(keys.cluster(), cluster.revision),
            // It is not being deleted.
            Guard::at(keys.snapshot(of.snapshot_id), snapshot.revision),
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
        self.commit(&format!("volume {}", volume.name), guards, writes)
            .await?;
        self.wait_made(&volume, &set).await?;
        tracing::info!(volume = volume.name, %id, snapshot = of.name, "volume cloned");
        Ok(id)
    }

    /// Where the clone is to be. Its epochs go on above the source's: so above all stamps that the snapshot has.
    async fn replicas_of_clone(&self, parent: &VolumeRecord) -> Result<ReplicationRecord, OpError> {
        let set = self.replication(parent.volume_id).await?;
        let set = set
            .ok_or_else(|| OpError::Internal("a volume without a record of its replicas".into()))?;
        let (members, others): (Vec<_>, Vec<_>) = set
            .record
            .replicas
            .iter()
            .partition(|r| r.state == ReplicaState::Member);
        if let Some(other) = others.first() {
            return Err(OpError::State(format!(
                "a replica of volume {} on node {} is not up to date, so its snapshots may be missing there: clone it when all replicas are in sync",
                parent.name, other.node_id
            )));
        }
        let count = members.len() as u8;
        let replicas = members
            .iter()
            .map(|r| (Uuid::new_v4(), r.node_id.clone(), r.pool_id));
        let generation = set.record.generation;
        let made = ReplicationRecord::new(generation, replicas, minimum_of(count), count);
        let made = made.map_err(|fault| OpError::Internal(fault.to_string()))?;
        Ok(made.above(set.record.epoch))
    }

    async fn inherit_keys(&self, from: Uuid, to: Uuid) -> Result<SecretRecord, OpError> {
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
        if record.source.as_ref() != Some(source) {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: "but was not cloned from there".into(),
            });
        }
        let set = self.replication(record.volume_id).await?;
        if let Some(set) = set.filter(|_| record.phase == Phase::Creating) {
            self.wait_made(&record, &set.record).await?;
        }
        Ok(record.volume_id)
    }
}
