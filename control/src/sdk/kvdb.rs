//! The KVDB, its backup and restore, and a person's word on replicas after it: `Admin.KvdbStatus`, `BackupKvdb`, `RestoreKvdb`, `DecideReplicas`.
use super::Services;
use crate::backup::{Backup, RestoreRecord};
use crate::error::OpError;
use crate::records::{ClusterRecord, Versioned};
use keelblock_api::admin::{
    DecideReplicasReply, DecideReplicasRequest, KvdbMember, KvdbPart, KvdbStatusReply,
    RestoreKvdbReply,
};
use tonic::{Status, Streaming};

/// Bytes of a message of a backup.
const PART_BYTES: usize = 1 << 20;
/// Largest backup that is put back: the memory that a restore may take.
const BACKUP_BYTES_MAX: usize = 1 << 30;

impl Services {
    pub(super) async fn status_of_kvdb(&self) -> Result<KvdbStatusReply, OpError> {
        let registry = &self.node().registry;
        let (kv, keys) = (registry.kv(), registry.keys());
        let status = kv.status().await?;
        let members = kv.members().await?;
        let cluster: Option<Versioned<ClusterRecord>> = registry.get(&keys.cluster()).await?;
        let restoring: Option<Versioned<RestoreRecord>> = registry.get(&keys.restore()).await?;
        let restoring = restoring.map(|r| {
            format!(
                "A restore by node {} has not ended: until it has, nothing is changed. If it was interrupted, run it again.",
                r.record.node_id
            )
        });
        let member = |m: keelblock_api::etcd::etcdserverpb::Member| KvdbMember {
            id: m.id,
            name: m.name,
            client_urls: m.client_ur_ls,
            leader: m.id == status.leader,
        };
        Ok(KvdbStatusReply {
            endpoints: kv.endpoints().into(),
            embedded: self.node().serves_kvdb(),
            size_bytes: u64::try_from(status.db_size).unwrap_or(0),
            revision: status.header.map_or(0, |h| h.revision),
            members: members.into_iter().map(member).collect(),
            generation: cluster.map_or(0, |c| c.record.generation.into()),
            restoring: restoring.unwrap_or_default(),
            version: status.version,
        })
    }

    pub(super) async fn backup_of_kvdb(&self) -> Result<Vec<KvdbPart>, OpError> {
        let bytes = self.node().backup_kvdb().await?.encode();
        let part = |part: &[u8]| KvdbPart {
            bytes: part.to_vec(),
        };
        Ok(bytes.chunks(PART_BYTES).map(part).collect())
    }

    pub(super) async fn restore_of_kvdb(
        &self,
        mut parts: Streaming<KvdbPart>,
    ) -> Result<RestoreKvdbReply, Status> {
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await? {
            if bytes.len() + part.bytes.len() > BACKUP_BYTES_MAX {
                let why = format!("a backup has at most {BACKUP_BYTES_MAX} bytes");
                return Err(OpError::invalid("bytes", why).into());
            }
            bytes.extend_from_slice(&part.bytes);
        }
        let backup =
            Backup::decode(&bytes).map_err(|e| OpError::invalid("backup", e.to_string()))?;
        let taken_unix_ms = backup.taken_unix_ms;
        let restored = self
            .to_the_end_even_so(|node| async move { node.restore_kvdb(backup).await })
            .await?;
        Ok(RestoreKvdbReply {
            generation: restored.generation.into(),
            put: restored.put as u64,
            deleted: restored.deleted as u64,
            taken_unix_ms,
            unverified: restored.unverified,
        })
    }

    pub(super) async fn decide(
        &self,
        request: DecideReplicasRequest,
    ) -> Result<DecideReplicasReply, OpError> {
        let minimum = u8::try_from(request.minimum)
            .map_err(|_| OpError::invalid("minimum", "is larger than any number of replicas"))?;
        let decided = self
            .to_the_end(|node| async move {
                node.decide_replicas(&request.volume, &request.nodes, minimum)
                    .await
            })
            .await?;
        Ok(DecideReplicasReply {
            nodes: decided.members,
            minimum: decided.minimum.into(),
        })
    }
}
