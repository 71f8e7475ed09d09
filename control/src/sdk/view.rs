//! A volume as the SDK shows it, and a snapshot, which is a volume that is read-only and has a parent.
use super::spec::spec;
use super::{owned, replicas};
use crate::coordination::{Beside, Seen};
use crate::datapath::LinkState;
use crate::error::OpError;
use crate::membership::MemberState;
use crate::names;
use crate::node::{Node, level};
use crate::records::{
    AttachmentRecord, Found, NodeRecord, Phase, SnapshotRecord, TaskRecord, Versioned, VolumeRecord,
};
use crate::replication::record::ReplicationRecord;
use crate::schedule::ScheduleRecord;
use keelblock_api::datapath::{ListReplicasRequest, ListSnapshotsRequest, ListVolumesRequest};
use keelblock_api::openstorage::*;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What is looked up once to show any number of volumes.
pub struct Viewer {
    cluster_id: String,
    this_node: String,
    datapath_up: bool,
    around: Around,
    used: HashMap<Uuid, u64>,
    /// Schedule policies of volumes.
    policies: HashMap<Uuid, Vec<String>>,
}

/// Volumes and snapshots that are asked for one by one; of more, all are.
const SINGLY_MAX: usize = 4;

/// A volume, or a snapshot of it.
pub type Shown = (Uuid, Option<Uuid>);

/// What is found.
pub fn shown(found: &Found) -> Shown {
    match found {
        Found::Volume(volume) => (volume.record.volume_id, None),
        Found::Snapshot(snapshot) => shown_snapshot(&snapshot.record),
    }
}

/// A snapshot.
pub fn shown_snapshot(record: &SnapshotRecord) -> Shown {
    (record.volume_id, Some(record.snapshot_id))
}

/// What is known of volumes beside their own records.
#[derive(Default)]
struct Around {
    /// With whether each lives.
    nodes: HashMap<String, (NodeRecord, bool)>,
    /// Of volumes that have something beside their record.
    beside: HashMap<Uuid, Beside>,
}

/// Volumes that are shown, of which these may be snapshots.
fn volumes(shown: &[Shown]) -> impl Iterator<Item = Uuid> {
    let volumes = shown.iter().filter(|(_, snapshot)| snapshot.is_none());
    volumes.map(|(id, _)| *id)
}

impl Around {
    /// From what this node sees, if that is what the KVDB has; else from there.
    async fn look(node: &Node, shown: &[Shown]) -> Result<Self, OpError> {
        match node.sees_now().await? {
            true => Ok(Self::seen(&node.coordination.seen(), shown)),
            false => Self::read(node, shown).await,
        }
    }

    fn seen(seen: &Seen, shown: &[Shown]) -> Self {
        let left = |id: &str| {
            let member = seen.member(id);
            member.is_some_and(|m| m.state == MemberState::Decommissioned)
        };
        let life = |n: &NodeRecord| {
            let lives = seen.alive().contains_key(&n.node_id);
            (n.node_id.clone(), (n.clone(), lives))
        };
        let nodes = seen.nodes().filter(|n| !left(&n.node_id));
        Self {
            nodes: nodes.map(life).collect(),
            beside: volumes(shown).map(|id| (id, seen.beside(id))).collect(),
        }
    }

    async fn read(node: &Node, shown: &[Shown]) -> Result<Self, OpError> {
        let key = node.registry.keys().attachments();
        let attachments = node.registry.list::<AttachmentRecord>(&key).await?;
        let nodes = node.registry.nodes().await?;
        let by_id = |(n, lives): (NodeRecord, bool)| (n.node_id.clone(), (n, lives));
        let mut beside: HashMap<Uuid, Beside> = HashMap::new();
        for (id, set) in sets(node, shown).await? {
            beside.entry(id).or_default().set = Some(Arc::new(set));
        }
        for found in attachments {
            let of = beside.entry(found.record.volume_id).or_default();
            of.attachment = Some(Arc::new(found));
        }
        let seen = node.coordination.seen();
        for id in volumes(shown) {
            if let Some(task) = seen.beside(id).task {
                beside.entry(id).or_default().task = Some(task);
            }
        }
        Ok(Self {
            nodes: nodes.into_iter().map(by_id).collect(),
            beside,
        })
    }
}

impl Viewer {
    /// Looks everything up that these need. Space in use is not known while the data path is away.
    pub async fn new(node: &Node, shown: &[Shown]) -> Result<Self, OpError> {
        let around = Around::look(node, shown).await?;
        let policies = policies(node, shown).await?;
        let datapath_up = matches!(node.link.state(), LinkState::Up(_));
        Ok(Self {
            cluster_id: node.cluster_id().into(),
            this_node: node.node_id().into(),
            datapath_up,
            around,
            policies,
            used: if datapath_up {
                used_bytes(node, shown).await
            } else {
                HashMap::new()
            },
        })
    }

    /// The same from what this node sees, whatever the KVDB has meanwhile: it does not ask anybody, so it does not know what space is in use.
    pub fn seen(node: &Node, seen: &Seen, shown: &[Shown]) -> Self {
        let policies = |id: Uuid| (id, seen.policies_of(id).to_vec());
        Self {
            cluster_id: node.cluster_id().into(),
            this_node: node.node_id().into(),
            datapath_up: matches!(node.link.state(), LinkState::Up(_)),
            around: Around::seen(seen, shown),
            used: HashMap::new(),
            policies: volumes(shown).map(policies).collect(),
        }
    }

    /// Another number as soon as a volume is shown otherwise, but for the space that it uses. Cheaper than to show it.
    pub fn print(&self, at: &Versioned<VolumeRecord>) -> u64 {
        let id = at.record.volume_id;
        let beside = self.around.beside.get(&id);
        let attachment = beside.and_then(|b| b.attachment.as_ref());
        let attachment = attachment.filter(|a| !a.record.errand);
        let address = attachment.and_then(|a| self.around.nodes.get(&a.record.node_id));
        let (status, state) = self.status_and_state(&at.record);
        let mut print = DefaultHasher::new();
        at.revision.hash(&mut print);
        attachment.map(|a| a.revision).hash(&mut print);
        let set = beside.and_then(|b| b.set.as_ref());
        set.map(|s| s.revision).hash(&mut print);
        let task = beside.and_then(|b| b.task.as_ref());
        task.map(|t| t.revision).hash(&mut print);
        self.policies.get(&id).hash(&mut print);
        address.map(|(n, _)| &n.nvme_address).hash(&mut print);
        (status as i32, state as i32).hash(&mut print);
        print.finish()
    }

    /// The same of a snapshot.
    pub fn print_snapshot(&self, at: &Versioned<SnapshotRecord>) -> u64 {
        let mut print = DefaultHasher::new();
        at.revision.hash(&mut print);
        let s = &at.record;
        let status = self.status(s.phase, s.error.is_empty(), &s.node_id);
        (status as i32).hash(&mut print);
        print.finish()
    }

    /// Bytes that a volume uses, if that is known.
    pub fn used(&self, record: &VolumeRecord) -> Option<u64> {
        self.used.get(&record.volume_id).copied()
    }

    /// A volume or snapshot.
    pub fn found(&self, found: &Found) -> SdkVolumeInspectResponse {
        match found {
            Found::Volume(volume) => self.response(&volume.record),
            Found::Snapshot(snapshot) => self.snapshot(&snapshot.record),
        }
    }

    /// A snapshot with its name and labels.
    pub fn snapshot(&self, record: &SnapshotRecord) -> SdkVolumeInspectResponse {
        let (name, labels) = (record.name.clone(), record.labels.clone());
        let usage = self.used.get(&record.snapshot_id);
        let mut volume = Volume {
            id: record.snapshot_id.to_string(),
            source: Some(Source {
                parent: record.volume_id.to_string(),
                seed: String::new(),
            }),
            readonly: true,
            locator: Some(VolumeLocator {
                name: name.clone(),
                volume_labels: labels.clone().into_iter().collect(),
                ..Default::default()
            }),
            ctime: Some(timestamp(record.created_unix_ms)),
            spec: Some(VolumeSpec {
                size: record.size_bytes,
                block_size: record.block_bytes.into(),
                ha_level: 1,
                aggregation_level: 1,
                volume_labels: labels.clone().into_iter().collect(),
                ownership: record.ownership.as_ref().map(owned::shown),
                ..Default::default()
            }),
            usage: usage.copied().unwrap_or(0),
            replica_sets: vec![ReplicaSet {
                nodes: vec![record.node_id.clone()],
                pool_uuids: vec![record.pool_id.to_string()],
                id: 0,
            }],
            error: record.error.clone(),
            ..Default::default()
        };
        let well = record.error.is_empty();
        volume.set_status(self.status(record.phase, well, &record.node_id));
        volume.set_state(match record.phase {
            Phase::Creating => VolumeState::Pending,
            Phase::Deleting | Phase::Kept => VolumeState::Deleted,
            Phase::Ready if !well => VolumeState::Error,
            Phase::Ready => VolumeState::Detached,
        });
        SdkVolumeInspectResponse {
            volume: Some(volume),
            name,
            labels: labels.into_iter().collect(),
        }
    }

    /// A volume with its name and labels.
    pub fn response(&self, record: &VolumeRecord) -> SdkVolumeInspectResponse {
        let mut shown = self.response_but_runtime(record);
        let set = self.set(record.volume_id);
        let state = set.map(|(set, task)| replicas::runtime_state(set, task));
        if let Some(volume) = &mut shown.volume {
            volume.runtime_state.extend(state);
        }
        shown
    }

    /// The set of a replicated volume, and the task that changes it or did last.
    pub fn set(&self, id: Uuid) -> Option<(&ReplicationRecord, Option<&TaskRecord>)> {
        let beside = self.around.beside.get(&id)?;
        let set = &beside.set.as_ref()?.record;
        Some((set, beside.task.as_ref().map(|t| &t.record)))
    }

    /// All but its `runtime_state`.
    pub fn response_but_runtime(&self, record: &VolumeRecord) -> SdkVolumeInspectResponse {
        SdkVolumeInspectResponse {
            volume: Some(self.volume(record)),
            name: record.name.clone(),
            labels: record.labels.clone().into_iter().collect(),
        }
    }

    fn volume(&self, record: &VolumeRecord) -> Volume {
        let beside = self.around.beside.get(&record.volume_id);
        let attachment = beside.and_then(|b| b.attachment.as_ref());
        let attachment = attachment.map(|a| &a.record).filter(|a| !a.errand);
        let (set, task) = self.set(record.volume_id).unzip();
        let task = task.flatten();
        let replicas_shown = set.map_or(1, |s| level(s.wanted, task));
        let policies = self.policies.get(&record.volume_id);
        let policies = policies.map_or(&[][..], Vec::as_slice);
        let mut volume = Volume {
            id: record.volume_id.to_string(),
            locator: Some(VolumeLocator {
                name: record.name.clone(),
                volume_labels: record.labels.clone().into_iter().collect(),
                ..Default::default()
            }),
            ctime: Some(timestamp(record.created_unix_ms)),
            spec: Some(spec(record, replicas_shown, policies)),
            usage: self.used(record).unwrap_or(0),
            replica_sets: match set {
                Some(set) => vec![replicas::replica_set(set)],
                None if record.replicated.is_some() => Vec::new(),
                None => vec![single(record)],
            },
            error: record.error.clone(),
            source: record.source.as_ref().map(|s| Source {
                parent: s.parent().to_string(),
                seed: String::new(),
            }),
            in_trashcan: record.in_trash().is_some(),
            detach_time: (record.detached_unix_ms > 0).then(|| timestamp(record.detached_unix_ms)),
            ..Default::default()
        };
        let (status, state) = self.status_and_state(record);
        volume.set_status(status);
        volume.set_state(state);
        if let Some(attachment) = attachment {
            volume.attached_on = attachment.node_id.clone();
            volume.attach_time = Some(timestamp(attachment.attached_unix_ms));
            volume.device_path = names::device_path(record.volume_id);
            volume.attach_info = self.attach_info(attachment);
        }
        volume
    }

    /// Of a volume, by its records and by who lives.
    fn status_and_state(&self, record: &VolumeRecord) -> (VolumeStatus, VolumeState) {
        let beside = self.around.beside.get(&record.volume_id);
        let attachment = beside.and_then(|b| b.attachment.as_ref());
        let attachment = attachment.map(|a| &a.record).filter(|a| !a.errand);
        let (set, task) = self.set(record.volume_id).unzip();
        let task = task.flatten();
        let well = record.error.is_empty() && record.restoring.is_none();
        let status = match set.filter(|_| well && record.phase == Phase::Ready) {
            Some(set) => {
                let level = level(set.wanted, task);
                replicas::status(set, level, attachment, |node| self.lives(node))
            }
            None => self.status(record.phase, well, &record.node_id),
        };
        let state = match (record.phase, attachment) {
            (Phase::Creating, _) => VolumeState::Pending,
            (Phase::Ready, _) if record.restoring.is_some() => VolumeState::Restore,
            (Phase::Deleting | Phase::Kept, _) => VolumeState::Deleted,
            (Phase::Ready, _) if !record.error.is_empty() => VolumeState::Error,
            (Phase::Ready, Some(_)) => VolumeState::Attached,
            (Phase::Ready, None) => VolumeState::Detached,
        };
        (status, state)
    }

    /// UP takes I/O, DOWN does not.
    fn status(&self, phase: Phase, well: bool, node_id: &str) -> VolumeStatus {
        match phase {
            Phase::Creating | Phase::Deleting | Phase::Kept => VolumeStatus::NotPresent,
            Phase::Ready if !well => VolumeStatus::Down,
            // What another node's data path does is for that node to say.
            Phase::Ready if node_id == self.this_node && !self.datapath_up => VolumeStatus::Down,
            Phase::Ready => VolumeStatus::Up,
        }
    }

    fn lives(&self, node_id: &str) -> bool {
        let node = self.around.nodes.get(node_id);
        node.is_some_and(|(_, lives)| *lives)
    }

    fn attach_info(&self, attachment: &AttachmentRecord) -> HashMap<String, String> {
        let node = self.around.nodes.get(&attachment.node_id);
        HashMap::from([
            (
                "nqn".to_owned(),
                names::subsystem_nqn(&self.cluster_id, attachment.subsystem_of),
            ),
            ("nsid".to_owned(), attachment.nsid.to_string()),
            ("transport".to_owned(), "tcp".to_owned()),
            (
                "address".to_owned(),
                node.map(|(n, _)| n.nvme_address.clone())
                    .unwrap_or_default(),
            ),
        ])
    }
}

/// Of a volume that lies on one node.
fn single(record: &VolumeRecord) -> ReplicaSet {
    ReplicaSet {
        nodes: vec![record.node_id.clone()],
        pool_uuids: vec![record.pool_id.to_string()],
        id: 0,
    }
}

/// Schedule policies of the volumes that are shown.
async fn policies(node: &Node, shown: &[Shown]) -> Result<HashMap<Uuid, Vec<String>>, OpError> {
    let names = |of: ScheduleRecord| (of.volume_id, of.policies.into_keys().collect());
    if shown.len() > SINGLY_MAX {
        let all = node.schedules().await?;
        return Ok(all.into_iter().map(|s| names(s.record)).collect());
    }
    let mut found = HashMap::new();
    for id in volumes(shown) {
        found.extend(node.schedule_of(id).await?.map(names));
    }
    Ok(found)
}

/// Who coordinates the volumes that are shown, of those that are replicated.
async fn sets(
    node: &Node,
    shown: &[Shown],
) -> Result<Vec<(Uuid, Versioned<ReplicationRecord>)>, OpError> {
    if shown.len() > SINGLY_MAX {
        let keys = node.registry.keys();
        let prefix = keys.replications();
        let all = node.registry.kv().list(&prefix).await?;
        let read = |kv: &keelblock_api::etcd::mvccpb::KeyValue| {
            let id = kv.key.strip_prefix(prefix.as_bytes())?;
            let id = Uuid::try_parse(std::str::from_utf8(id).ok()?).ok()?;
            let record = serde_json::from_slice(&kv.value).ok()?;
            let revision = kv.mod_revision;
            Some((id, Versioned { record, revision }))
        };
        return Ok(all.kvs.iter().filter_map(read).collect());
    }
    let mut sets = Vec::new();
    for id in volumes(shown) {
        sets.extend(node.replication(id).await?.map(|set| (id, set)));
    }
    Ok(sets)
}

/// Whether all of `wanted` are among `labels`.
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// How long used bytes may take: exactly means that the data path may have to read pages of maps.
const USED_TIMEOUT: Duration = Duration::from_secs(20);

/// By id of a volume or snapshot. Of few, only theirs: that the data path counts exactly costs pages that it reads.
async fn used_bytes(node: &Node, shown: &[Shown]) -> HashMap<Uuid, u64> {
    let mut used = HashMap::new();
    if shown.len() > SINGLY_MAX {
        let (volumes, snapshots, replicas) = tokio::join!(
            volumes_used(node, String::new()),
            snapshots_used(node, String::new(), String::new()),
            replicas_used(node)
        );
        used.extend(volumes.into_iter().chain(snapshots).chain(replicas));
        return used;
    }
    for (volume, snapshot) in shown {
        used.extend(match snapshot {
            None => match volumes_used(node, volume.to_string()).await {
                found if !found.is_empty() => found,
                _ => {
                    let mut replicas = replicas_used(node).await;
                    replicas.retain(|(id, _)| id == volume);
                    replicas
                }
            },
            Some(id) => snapshots_used(node, volume.to_string(), id.to_string()).await,
        });
    }
    used
}

/// What the data path says by id.
fn by_id(id: &str, bytes: u64) -> Option<(Uuid, u64)> {
    Some((Uuid::try_parse(id).ok()?, bytes))
}

async fn volumes_used(node: &Node, volume_id: String) -> Vec<(Uuid, u64)> {
    let request = ListVolumesRequest { volume_id };
    let listed = node
        .link
        .call_within(USED_TIMEOUT, "list volumes", |mut c| async move {
            c.list_volumes(request).await
        });
    let volumes = listed.await.map(|reply| reply.volumes).unwrap_or_default();
    let used = volumes.iter();
    used.filter_map(|v| by_id(&v.volume_id, v.used_bytes))
        .collect()
}

/// Of replicated volumes, what their replicas here use: each uses as much.
async fn replicas_used(node: &Node) -> Vec<(Uuid, u64)> {
    let listed = node
        .link
        .call_within(USED_TIMEOUT, "list replicas", |mut c| async move {
            c.list_replicas(ListReplicasRequest {}).await
        });
    let replicas = listed.await.map(|reply| reply.replicas).unwrap_or_default();
    let used = replicas.iter();
    used.filter_map(|r| by_id(&r.volume_id, r.used_bytes))
        .collect()
}

async fn snapshots_used(node: &Node, volume_id: String, snapshot_id: String) -> Vec<(Uuid, u64)> {
    let request = ListSnapshotsRequest {
        volume_id,
        snapshot_id,
    };
    let listed = node
        .link
        .call_within(USED_TIMEOUT, "list snapshots", |mut c| async move {
            c.list_snapshots(request).await
        });
    let snapshots = listed.await.map(|reply| reply.snapshots);
    let snapshots = snapshots.unwrap_or_default();
    let used = snapshots.iter();
    used.filter_map(|s| by_id(&s.snapshot_id, s.used_bytes))
        .collect()
}

/// A time of the SDK.
pub fn timestamp(unix_ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: (unix_ms / 1000) as i64,
        nanos: (unix_ms % 1000 * 1_000_000) as i32,
    }
}
