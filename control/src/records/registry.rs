//! Reading and changing records. A change compares the revision at which the record was read, and tries again a few times.
use super::{
    AlertRecord, AttachmentRecord, Keys, NodeRecord, Phase, PoolRecord, SnapshotRecord,
    VolumeRecord,
};
use crate::error::OpError;
use crate::kvdb::Client;
use crate::kvdb::client::{Committed, Guard, Revision, Watcher, Write};
use crate::membership::{MemberRecord, MemberState};
use keelblock_api::etcd::etcdserverpb::RangeRequest;
use keelblock_api::etcd::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use uuid::Uuid;

/// Attempts at a change that others keep getting ahead of.
const ATTEMPTS: usize = 8;

/// A record and the revision at which it was read.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// To compare with when changing it.
    pub revision: Revision,
}

/// What a name or id stands for where the SDK has one word for both.
#[derive(Debug, Clone)]
pub enum Found {
    /// A volume.
    Volume(Versioned<VolumeRecord>),
    /// A snapshot.
    Snapshot(Versioned<SnapshotRecord>),
}

/// Whether a volume is one for users: not being deleted, nor in the trashcan.
pub(crate) fn volume_is_there(volume: &VolumeRecord) -> bool {
    matches!(volume.phase, Phase::Creating | Phase::Ready) && volume.trashed.is_none()
}

/// Whether a snapshot is one for users: not being deleted, nor only for a clone.
pub(crate) fn snapshot_is_there(snapshot: &SnapshotRecord) -> bool {
    snapshot.phase != Phase::Deleting && snapshot.for_clone.is_none()
}

impl Found {
    /// It is not being deleted, nor in the trashcan, and not only for a clone.
    fn stays(&self) -> bool {
        match self {
            Self::Volume(v) => volume_is_there(&v.record),
            Self::Snapshot(s) => snapshot_is_there(&s.record),
        }
    }
}

/// The records of a cluster.
#[derive(Debug, Clone)]
pub struct Registry {
    kv: Client,
    keys: Keys,
}

fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<Versioned<T>, OpError> {
    let record = serde_json::from_slice(&kv.value).map_err(|error| {
        let key = String::from_utf8_lossy(&kv.key);
        OpError::Internal(format!("the record {key} in the KVDB cannot be read: {error}; was it written by a later version?"))
    })?;
    Ok(Versioned {
        record,
        revision: kv.mod_revision,
    })
}

/// A record's text.
pub fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and finite numbers")
}

impl Registry {
    /// The records of a cluster in this KVDB.
    pub fn new(kv: Client, keys: Keys) -> Self {
        Self { kv, keys }
    }

    /// The KVDB.
    pub fn kv(&self) -> &Client {
        &self.kv
    }

    /// The keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// A watch of the cluster's record, which a restore of the KVDB writes at its begin and its end, from now on.
    pub async fn watch_cluster(&self) -> Result<Watcher, OpError> {
        let key = self.keys.cluster();
        let now = self.kv.list(&key).await?;
        Ok(self.kv.watch(&key, now.revision + 1))
    }

    /// The revision that the KVDB has: everything that was answered before this was asked is in it.
    pub async fn revision(&self) -> Result<Revision, OpError> {
        let request = RangeRequest {
            key: self.keys.cluster().into_bytes(),
            keys_only: true,
            ..Default::default()
        };
        let header = self.kv.range(request).await?.header;
        Ok(header.unwrap_or_default().revision)
    }

    /// A record.
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Versioned<T>>, OpError> {
        self.kv.get(key).await?.as_ref().map(decode).transpose()
    }

    /// All records under a prefix.
    pub async fn list<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<Versioned<T>>, OpError> {
        self.kv.list(prefix).await?.kvs.iter().map(decode).collect()
    }

    /// Writes a record whatever was there.
    pub async fn put(&self, key: &str, record: &impl Serialize) -> Result<(), OpError> {
        Ok(self.kv.put(key, encode(record)).await.map(drop)?)
    }

    /// Reads a record, changes it, writes it; again if somebody was faster. `change` returns false to leave it as it is. `missing`
    /// is the error when there is none. The record as it is then.
    pub async fn change<T: DeserializeOwned + Serialize>(
        &self,
        key: &str,
        missing: impl Fn() -> OpError,
        mut change: impl FnMut(&mut T) -> Result<bool, OpError>,
    ) -> Result<T, OpError> {
        for _ in 0..ATTEMPTS {
            let mut found: Versioned<T> = self.get(key).await?.ok_or_else(&missing)?;
            if !change(&mut found.record)? {
                return Ok(found.record);
            }
            let swapped = self
                .kv
                .compare_and_swap(key, found.revision, encode(&found.record))
                .await?;
            if swapped != Committed::No {
                return Ok(found.record);
            }
        }
        Err(OpError::Contended {
            what: key.to_owned(),
        })
    }

    /// Makes records that must not exist yet, all or none; false if one does.
    pub async fn make(&self, new: Vec<(String, Vec<u8>)>) -> Result<bool, OpError> {
        let guards = new.iter().map(|(key, _)| Guard::absent(key)).collect();
        let writes = new
            .into_iter()
            .map(|(key, value)| Write::put(key, value))
            .collect();
        Ok(self.kv.commit(guards, writes).await? != Committed::No)
    }

    /// The volume of an id.
    pub async fn volume_by_id(&self, id: Uuid) -> Result<Option<Versioned<VolumeRecord>>, OpError> {
        self.get(&self.keys.volume(id)).await
    }

    /// The snapshot of an id.
    pub async fn snapshot_by_id(
        &self,
        id: Uuid,
    ) -> Result<Option<Versioned<SnapshotRecord>>, OpError> {
        self.get(&self.keys.snapshot(id)).await
    }

    /// The volume or snapshot of a name, whatever phase it is in.
    pub async fn by_name(&self, name: &str) -> Result<Option<Found>, OpError> {
        let Some(kv) = self.kv.get(self.keys.volume_name(name)).await? else {
            return Ok(None);
        };
        let id = std::str::from_utf8(&kv.value)
            .ok()
            .and_then(|id| Uuid::try_parse(id).ok());
        let id = id.ok_or_else(|| {
            OpError::Internal(format!(
                "the KVDB's record of volume name {name} is no volume id"
            ))
        })?;
        self.by_id(id).await
    }

    async fn by_id(&self, id: Uuid) -> Result<Option<Found>, OpError> {
        if let Some(volume) = self.volume_by_id(id).await? {
            return Ok(Some(Found::Volume(volume)));
        }
        Ok(self.snapshot_by_id(id).await?.map(Found::Snapshot))
    }

    /// The volume or snapshot of an id or name, unless it is being deleted. `field` is how the request calls it.
    pub async fn find(&self, field: &'static str, name: &str) -> Result<Option<Found>, OpError> {
        if name.is_empty() {
            return Err(OpError::Missing {
                field,
                hint: "an id or name",
            });
        }
        let mut found = None;
        if let Ok(id) = Uuid::try_parse(name) {
            found = self.by_id(id).await?;
        }
        if found.is_none() {
            found = self.by_name(name).await?;
        }
        Ok(found.filter(Found::stays))
    }

    /// The volume or snapshot of a name, unless it is being deleted.
    pub async fn named(&self, name: &str) -> Result<Option<Found>, OpError> {
        Ok(self.by_name(name).await?.filter(Found::stays))
    }

    /// The volume of an id or name, unless it is being deleted.
    pub async fn volume(&self, name: &str) -> Result<Versioned<VolumeRecord>, OpError> {
        match self.find("volume_id", name).await? {
            Some(Found::Volume(volume)) => Ok(volume),
            Some(Found::Snapshot(snapshot)) => Err(OpError::State(format!(
                "{} is a snapshot of volume {}, and does not change: clone it, and use the clone",
                snapshot.record.name, snapshot.record.volume_name
            ))),
            None => Err(OpError::no_volume(name)),
        }
    }

    /// The snapshot of an id or name, unless it is being deleted.
    pub async fn snapshot(&self, name: &str) -> Result<Versioned<SnapshotRecord>, OpError> {
        match self.find("snapshot_id", name).await? {
            Some(Found::Snapshot(snapshot)) => Ok(snapshot),
            Some(Found::Volume(volume)) => Err(OpError::State(format!(
                "{} is a volume, not a snapshot",
                volume.record.name
            ))),
            None => Err(OpError::no_snapshot(name)),
        }
    }

    /// All snapshots but those being deleted, and those that are only for a clone.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, OpError> {
        let all = self.list::<SnapshotRecord>(&self.keys.snapshots()).await?;
        Ok(all
            .into_iter()
            .map(|s| s.record)
            .filter(snapshot_is_there)
            .collect())
    }

    /// All pools.
    pub async fn pools(&self) -> Result<Vec<PoolRecord>, OpError> {
        let all = self.list(&self.keys.pools()).await?;
        Ok(all.into_iter().map(|p| p.record).collect())
    }

    /// All alerts.
    pub async fn alerts(&self) -> Result<Vec<AlertRecord>, OpError> {
        let all = self.list(&self.keys.alerts()).await?;
        Ok(all.into_iter().map(|a| a.record).collect())
    }

    /// All volumes but those that are deleted, or in the trashcan.
    pub async fn volumes(&self) -> Result<Vec<VolumeRecord>, OpError> {
        let all = self.list::<VolumeRecord>(&self.keys.volumes()).await?;
        Ok(all
            .into_iter()
            .map(|v| v.record)
            .filter(volume_is_there)
            .collect())
    }

    /// Where a volume is attached for hosts.
    pub async fn attachment(
        &self,
        id: Uuid,
    ) -> Result<Option<Versioned<AttachmentRecord>>, OpError> {
        let found = self.any_attachment(id).await?;
        Ok(found.filter(|a| !a.record.errand))
    }

    /// Where a volume is attached, or only coordinated.
    pub async fn any_attachment(
        &self,
        id: Uuid,
    ) -> Result<Option<Versioned<AttachmentRecord>>, OpError> {
        self.get(&self.keys.attachment(id)).await
    }

    /// All attachments for hosts.
    pub async fn attachments(&self) -> Result<Vec<AttachmentRecord>, OpError> {
        Ok(self
            .list(&self.keys.attachments())
            .await?
            .into_iter()
            .map(|a| a.record)
            .filter(|a: &AttachmentRecord| !a.errand)
            .collect())
    }

    /// All nodes that are members, and whether each lives.
    pub async fn nodes(&self) -> Result<Vec<(NodeRecord, bool)>, OpError> {
        let prefix = self.keys.alive_all();
        let alive = self.kv.list(&prefix).await?;
        let alive: HashSet<&[u8]> = alive
            .kvs
            .iter()
            .filter_map(|kv| kv.key.strip_prefix(prefix.as_bytes()))
            .collect();
        let mut nodes = self.list::<NodeRecord>(&self.keys.nodes()).await?;
        // A restore of the KVDB may bring the record of one back that was decommissioned since.
        let left = |m: Versioned<MemberRecord>| {
            (m.record.state == MemberState::Decommissioned).then_some(m.record.node_id)
        };
        let members = self.list::<MemberRecord>(&self.keys.members()).await?;
        let left: HashSet<String> = members.into_iter().filter_map(left).collect();
        nodes.retain(|n| !left.contains(&n.record.node_id));
        let with_life = |node: NodeRecord| {
            let lives = alive.contains(node.node_id.as_bytes());
            (node, lives)
        };
        Ok(nodes.into_iter().map(|n| with_life(n.record)).collect())
    }

    /// Reservation state of a volume as the data path gave it; empty: none.
    pub async fn reservation(&self, id: Uuid) -> Result<Vec<u8>, OpError> {
        Ok(self
            .kv
            .get(self.keys.reservation(id))
            .await?
            .map(|kv| kv.value)
            .unwrap_or_default())
    }
}
