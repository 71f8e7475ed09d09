//! What the KVDB says of replicated volumes and nodes, kept current by a watch of everything of the cluster: so what is changed in one transaction is seen
//! as one. It may be a moment old: what is decided by it is written by comparing revisions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keelblock_api::etcd::mvccpb::event::EventType;
use keelblock_api::etcd::mvccpb::{Event, KeyValue};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::now::{Beside, Kept, Now, Touched};
use super::provisioned::Provisioned;
use crate::gossip::GossipRecord;
use crate::membership::MemberRecord;
use crate::records::{
    AliveRecord, AttachmentRecord, ClusterRecord, Keys, NodeRecord, ReplicaRecord, SnapshotRecord,
    TaskRecord, Versioned, VolumeRecord,
};
use crate::replication::record::{Phase, ReplicationRecord, Token};
use crate::schedule::ScheduleRecord;

/// Who reads the KVDB for the first time does not know since when a node is away: perhaps all start at this moment, as after a power cut.
const COLD: Duration = Duration::from_secs(5);

/// A node's word that it lives.
#[derive(Debug, Clone)]
pub struct Life {
    /// What it says.
    pub says: AliveRecord,
    /// Since when its data path is this one, or away, as far as was seen.
    pub since: Instant,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Seen {
    /// It was read once.
    pub complete: bool,
    /// Of the KVDB: everything of the cluster up to it has been seen.
    pub revision: i64,
    /// Volumes with a single copy, which is a part of its node's pool: they are only counted, and listed. (Records are shared with whoever lists them or looks after them.)
    singles: HashMap<Uuid, Kept<VolumeRecord>>,
    /// Their snapshots.
    single_snapshots: HashMap<Uuid, Kept<SnapshotRecord>>,
    /// Keys whose records cannot be read.
    unreadable: HashSet<Vec<u8>>,
    volumes: HashMap<Uuid, Kept<VolumeRecord>>,
    sets: HashMap<Uuid, (Kept<ReplicationRecord>, Instant)>,
    attachments: HashMap<Uuid, (Kept<AttachmentRecord>, Instant)>,
    replicas: HashMap<Uuid, BTreeMap<Uuid, Versioned<ReplicaRecord>>>,
    tasks: HashMap<Uuid, Kept<TaskRecord>>,
    /// Of replicated volumes.
    snapshots: HashMap<Uuid, Kept<SnapshotRecord>>,
    /// Which of these are of a volume: there may be thousands of others.
    snapshot_ids: HashMap<Uuid, HashSet<Uuid>>,
    /// Schedule policies of volumes that have some.
    policies: HashMap<Uuid, Vec<String>>,
    nodes: BTreeMap<String, NodeRecord>,
    members: BTreeMap<String, MemberRecord>,
    alive: BTreeMap<String, Life>,
    /// Since when a node does not say so, as far as was seen.
    gone: BTreeMap<String, Instant>,
    gossip: Option<GossipRecord>,
    /// Of the cluster: how often the KVDB was restored.
    generation: u8,
    /// A backup is being put back.
    restoring: bool,
    /// What follows from the records above.
    pub(super) provisioned: Provisioned,
}

/// Puts what is there, or takes away what is not.
fn set<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl Seen {
    /// From all that there is. What is the same as in `before` keeps its time.
    pub fn read(keys: &Keys, all: &[KeyValue], before: &mut Seen) -> Self {
        let mut seen = Self {
            complete: true,
            // Lives are compared with those before, so that reading again makes nobody younger.
            alive: std::mem::take(&mut before.alive),
            gone: std::mem::take(&mut before.gone),
            ..Self::default()
        };
        let there: HashSet<&[u8]> = all.iter().map(|kv| kv.key.as_slice()).collect();
        seen.alive
            .retain(|id, _| there.contains(keys.alive(id).as_bytes()));
        for kv in all {
            seen.put(keys, kv, Some(kv));
        }
        for id in seen.nodes.keys().filter(|id| !seen.alive.contains_key(*id)) {
            let by = || Instant::now() + COLD;
            seen.gone.entry(id.clone()).or_insert_with(by);
        }
        for (id, (attachment, since)) in &mut seen.attachments {
            if let Some((old, at)) = before.attachments.get(id)
                && old.revision == attachment.revision
            {
                *since = *at;
            }
        }
        for (id, (set, since)) in &mut seen.sets {
            if let Some((old, at)) = before.sets.get(id)
                && old.revision == set.revision
            {
                *since = *at;
            }
        }
        seen
    }

    /// Takes changes in.
    pub fn apply(&mut self, keys: &Keys, events: &[Event]) -> Touched {
        let mut touched = Touched::default();
        for event in events {
            let Some(kv) = &event.kv else { continue };
            self.revision = self.revision.max(kv.mod_revision);
            let value = (event.r#type() == EventType::Put).then_some(kv);
            let one = self.put(keys, kv, value);
            touched.volumes.extend(one.volumes);
            touched.nodes |= one.nodes;
            touched.alive |= one.alive;
        }
        touched
    }

    fn decode<T: DeserializeOwned>(
        &mut self,
        at: &KeyValue,
        value: Option<&KeyValue>,
    ) -> Option<Versioned<T>> {
        self.unreadable.remove(&at.key);
        let kv = value?;
        match serde_json::from_slice(&kv.value) {
            Ok(record) => Some(Versioned {
                record,
                revision: kv.mod_revision,
            }),
            Err(error) => {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::warn!(%key, %error, "a record in the KVDB cannot be read, and is taken for none: was it written by a later version?");
                self.unreadable.insert(at.key.clone());
                None
            }
        }
    }

    fn put(&mut self, keys: &Keys, at: &KeyValue, value: Option<&KeyValue>) -> Touched {
        let mut touched = Touched::default();
        let key = at.key.strip_prefix(keys.root().as_bytes());
        let key = key.and_then(|k| std::str::from_utf8(k).ok());
        match key {
            Some("cluster") => {
                let cluster = self.decode::<ClusterRecord>(at, value);
                self.generation = cluster.map_or(0, |c| c.record.generation);
            }
            Some("restore") => self.restoring = value.is_some(),
            _ => {}
        }
        let Some((kind, rest)) = key.and_then(|k| k.split_once('/')) else {
            return touched;
        };
        match kind {
            "nodes" => {
                match self.decode::<NodeRecord>(at, value) {
                    Some(node) => drop(self.nodes.insert(rest.into(), node.record)),
                    None => drop(self.nodes.remove(rest)),
                }
                touched.nodes = true;
                return touched;
            }
            "members" => {
                match self.decode::<MemberRecord>(at, value) {
                    Some(member) => drop(self.members.insert(rest.into(), member.record)),
                    None => drop(self.members.remove(rest)),
                }
                return touched;
            }
            "gossip" => {
                self.gossip = self.decode::<GossipRecord>(at, value).map(|g| g.record);
                return touched;
            }
            "alive" => {
                touched.alive = self.live(rest, at, value);
                return touched;
            }
            _ => {}
        }
        let (volume, part) = match rest.split_once('/') {
            Some((volume, part)) => (volume, Some(part)),
            None => (rest, None),
        };
        let Ok(id) = Uuid::try_parse(volume) else {
            return touched;
        };
        let counts = part.is_none() && matches!(kind, "volumes" | "replication" | "tasks");
        if counts {
            self.uncount(id);
        }
        let touched = self.put_of(id, (kind, part), at, value);
        if counts {
            self.count(id);
        }
        touched
    }

    /// Of a volume, or snapshot.
    fn put_of(
        &mut self,
        id: Uuid,
        (kind, part): (&str, Option<&str>),
        at: &KeyValue,
        value: Option<&KeyValue>,
    ) -> Touched {
        let mut touched = Touched::default();
        match (kind, part.map(Uuid::try_parse)) {
            ("volumes", None) => {
                let record = self.decode::<VolumeRecord>(at, value).map(Arc::new);
                let single = record.as_ref();
                let single = single.filter(|v| v.record.replicated.is_none());
                set(&mut self.singles, id, single.cloned());
                let record = record.filter(|v| v.record.replicated.is_some());
                if record.is_none() && !self.volumes.contains_key(&id) {
                    return touched;
                }
                // Whoever serves the source makes a clone of it.
                let before = self.volumes.get(&id);
                let source = record.as_ref().or(before).map(|v| v.record.source.clone());
                let own = source.flatten().filter(|s| s.own);
                touched.volumes.extend(own.map(|s| s.volume_id));
                set(&mut self.volumes, id, record);
            }
            ("replication", None) => {
                let record = self.decode::<ReplicationRecord>(at, value);
                let record = record.map(|r| (Arc::new(r), Instant::now()));
                set(&mut self.sets, id, record);
            }
            ("attachments", None) => {
                let record = self.decode::<AttachmentRecord>(at, value);
                let record = record.map(|r| (Arc::new(r), Instant::now()));
                set(&mut self.attachments, id, record);
                if self.volume(id).is_none() {
                    // Of a volume with one replica. Should this be one with several, its own record comes, too.
                    return touched;
                }
            }
            ("replicas", Some(Ok(replica))) => {
                let record = self.decode::<ReplicaRecord>(at, value);
                let of = self.replicas.entry(id).or_default();
                match record {
                    Some(record) => drop(of.insert(replica, record)),
                    None => drop(of.remove(&replica)),
                }
                if of.is_empty() {
                    self.replicas.remove(&id);
                }
            }
            ("tasks", None) => {
                let record = self.decode::<TaskRecord>(at, value);
                set(&mut self.tasks, id, record.map(Arc::new));
            }
            ("snapshots", None) => {
                let record = self.decode::<SnapshotRecord>(at, value).map(Arc::new);
                let single = record.as_ref();
                let single = single.filter(|s| s.record.epoch.is_none());
                set(&mut self.single_snapshots, id, single.cloned());
                let record = record.filter(|s| s.record.epoch.is_some());
                let before = self.snapshots.remove(&id);
                let of = record.as_ref().or(before.as_ref());
                touched.volumes.extend(of.map(|s| s.record.volume_id));
                // Whoever serves another volume of the group waits for it.
                let joint = of.filter(|s| s.record.joint.is_some());
                if let Some(group) = joint.map(|s| s.record.group) {
                    let all = self.group(group).into_iter();
                    touched.volumes.extend(all.map(|s| s.record.volume_id));
                }
                self.index_snapshot(id, before.as_deref(), record.as_deref());
                set(&mut self.snapshots, id, record);
                return touched;
            }
            ("schedules", None) => {
                let record = self.decode::<ScheduleRecord>(at, value);
                let names = record.map(|r| r.record.policies.into_keys().collect());
                set(&mut self.policies, id, names);
                return touched;
            }
            _ => return touched,
        }
        touched.volumes.insert(id);
        touched
    }

    /// Whether that is news: room in a pool is none.
    fn live(&mut self, node: &str, at: &KeyValue, value: Option<&KeyValue>) -> bool {
        let Some(says) = self.decode::<AliveRecord>(at, value) else {
            self.gone.insert(node.into(), Instant::now());
            return self.alive.remove(node).is_some();
        };
        self.gone.remove(node);
        let says = says.record;
        let before = self.alive.get(node);
        let same = before.is_some_and(|b| b.says.incarnation == says.incarnation);
        let since = before
            .filter(|_| same)
            .map_or_else(Instant::now, |b| b.since);
        self.alive.insert(node.into(), Life { says, since });
        !same
    }

    /// What is known of a volume; `None`: there is none of that id that is replicated.
    pub fn volume(&self, id: Uuid) -> Option<Now> {
        let (volume, set) = (self.volumes.get(&id), self.sets.get(&id));
        if volume.is_none() && set.is_none() {
            return None;
        }
        Some(Now {
            id,
            volume: volume.cloned(),
            set: set.map(|s| s.0.clone()),
            set_since: set.map(|s| s.1),
            attachment: self.attachments.get(&id).map(|a| a.0.clone()),
            attached_since: self.attachments.get(&id).map(|a| a.1),
            replicas: self.replicas.get(&id).cloned().unwrap_or_default(),
            task: self.tasks.get(&id).cloned(),
            snapshots: self.snapshots_of(id),
        })
    }

    /// What is known of all replicated volumes that have a record, by id.
    pub fn all(&self) -> Vec<Now> {
        let mut ids: Vec<Uuid> = self.volumes.keys().copied().collect();
        ids.sort();
        ids.into_iter().filter_map(|id| self.volume(id)).collect()
    }

    fn snapshots_of(&self, id: Uuid) -> Vec<Kept<SnapshotRecord>> {
        let ids = self.snapshot_ids.get(&id).into_iter().flatten();
        let mut of_it: Vec<_> = ids.filter_map(|s| self.snapshots.get(s).cloned()).collect();
        of_it.sort_by_key(|s| (s.record.created_unix_ms, s.record.snapshot_id));
        of_it
    }

    fn index_snapshot(
        &mut self,
        id: Uuid,
        before: Option<&Versioned<SnapshotRecord>>,
        now: Option<&Versioned<SnapshotRecord>>,
    ) {
        if let Some(before) = before
            && let Some(of) = self.snapshot_ids.get_mut(&before.record.volume_id)
        {
            of.remove(&id);
            if of.is_empty() {
                self.snapshot_ids.remove(&before.record.volume_id);
            }
        }
        if let Some(now) = now {
            let of = self.snapshot_ids.entry(now.record.volume_id).or_default();
            of.insert(id);
        }
    }

    /// Those that are taken at one moment, as long as they are being taken or given up.
    pub fn group(&self, group: Uuid) -> Vec<Kept<SnapshotRecord>> {
        let all = self.snapshots.values();
        let of = |s: &&Kept<SnapshotRecord>| s.record.joint.is_some() && s.record.group == group;
        all.filter(of).cloned().collect()
    }

    /// A snapshot of a replicated volume.
    pub fn snapshot(&self, id: Uuid) -> Option<&SnapshotRecord> {
        self.snapshots.get(&id).map(|s| &s.record)
    }

    /// All replicated volumes.
    pub fn volume_ids(&self) -> impl Iterator<Item = Uuid> {
        self.volumes.keys().chain(self.sets.keys()).copied()
    }

    /// Who coordinates, and which replicas there are.
    pub fn set(&self, id: Uuid) -> Option<&ReplicationRecord> {
        self.sets.get(&id).map(|s| &s.0.record)
    }

    /// The task that changes the replicas of a volume, or the last one that did.
    pub fn task(&self, id: Uuid) -> Option<&TaskRecord> {
        self.tasks.get(&id).map(|t| &t.record)
    }

    /// The node that serves a volume, by the record.
    pub fn served_by(&self, id: Uuid) -> Option<&str> {
        let set = self.set(id).filter(|s| s.phase == Phase::Serving)?;
        set.holder.as_ref().map(|h| h.node_id.as_str())
    }

    /// The generation of the restore that ended last; `None`: there was none, or one is under way.
    pub fn restored(&self) -> Option<u8> {
        let ended = self.complete && !self.restoring && self.generation > 0;
        ended.then_some(self.generation)
    }

    /// Of a node's data path; `None`: neither is known to live.
    pub fn incarnation_of(&self, node: &str) -> Option<Token> {
        let life = self.alive.get(node)?;
        super::incarnation(&life.says.incarnation).ok()
    }

    /// Volumes that are attached to other nodes than this.
    pub fn attached_elsewhere(&self, node: &str) -> impl Iterator<Item = Uuid> {
        let others = self
            .attachments
            .iter()
            .filter(move |(id, a)| a.0.record.node_id != node && self.sets.contains_key(id));
        others.map(|(id, _)| *id)
    }

    /// Everything up to a revision was seen, and nothing that is there cannot be read.
    pub fn shows(&self, revision: i64) -> bool {
        self.complete && self.revision >= revision && self.unreadable.is_empty()
    }

    /// The key of a record that is there and cannot be read.
    pub fn unreadable(&self) -> Option<String> {
        let key = self.unreadable.iter().next()?;
        Some(String::from_utf8_lossy(key).into_owned())
    }

    /// A volume, to be kept.
    pub fn kept_volume(&self, id: Uuid) -> Option<&Kept<VolumeRecord>> {
        self.volumes.get(&id).or_else(|| self.singles.get(&id))
    }

    /// A snapshot, to be kept.
    pub fn kept_snapshot(&self, id: Uuid) -> Option<&Kept<SnapshotRecord>> {
        let single = || self.single_snapshots.get(&id);
        self.snapshots.get(&id).or_else(single)
    }

    /// The schedule policies of a volume.
    pub fn policies_of(&self, id: Uuid) -> &[String] {
        self.policies.get(&id).map_or(&[], Vec::as_slice)
    }

    /// A volume with several replicas.
    pub(super) fn replicated_record(&self, id: Uuid) -> Option<&VolumeRecord> {
        self.volumes.get(&id).map(|v| &v.record)
    }

    /// A volume with a single copy.
    pub(super) fn single(&self, id: Uuid) -> Option<&VolumeRecord> {
        self.singles.get(&id).map(|v| &v.record)
    }

    /// A volume, whatever it has.
    pub(super) fn volume_record(&self, id: Uuid) -> Option<&VolumeRecord> {
        self.replicated_record(id).or_else(|| self.single(id))
    }

    /// All volumes, in no order.
    pub fn volume_records(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes().map(|v| &v.record)
    }

    /// The same, to be kept.
    pub fn volumes(&self) -> impl Iterator<Item = &Kept<VolumeRecord>> {
        self.volumes.values().chain(self.singles.values())
    }

    /// All snapshots, in no order.
    pub fn snapshots(&self) -> impl Iterator<Item = &Kept<SnapshotRecord>> {
        let replicated = self.snapshots.values();
        replicated.chain(self.single_snapshots.values())
    }

    /// What is kept beside a volume: who coordinates it and its replicas, where it is attached or only coordinated, and the last task.
    pub fn beside(&self, id: Uuid) -> Beside {
        Beside {
            set: self.sets.get(&id).map(|s| s.0.clone()),
            attachment: self.attachments.get(&id).map(|a| a.0.clone()),
            task: self.tasks.get(&id).cloned(),
        }
    }

    /// How many volumes are attached to a node, or coordinated there for their snapshots or replicas.
    pub fn attached_to(&self, node: &str) -> u32 {
        let all = self.attachments.values();
        let there = all.filter(|(a, _)| a.record.node_id == node).count();
        u32::try_from(there).unwrap_or(u32::MAX)
    }

    /// What datagrams between nodes are signed with.
    pub fn gossip_secret(&self) -> Option<Zeroizing<[u8; 32]>> {
        self.gossip.as_ref().and_then(GossipRecord::bytes)
    }

    /// Replicated volumes, and their replicas.
    pub fn sets(&self) -> impl Iterator<Item = (&VolumeRecord, &ReplicationRecord)> {
        let all = self.volumes.iter();
        all.filter_map(|(id, v)| Some((&v.record, self.set(*id)?)))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// What is wanted of nodes.
    pub fn members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.values()
    }

    /// What is wanted of a node.
    pub fn member(&self, node: &str) -> Option<&MemberRecord> {
        self.members.get(node)
    }

    /// Since when a node does not say that it lives.
    pub fn gone_since(&self, node: &str) -> Option<Instant> {
        self.gone.get(node).copied()
    }

    /// Those that say that they live.
    pub fn alive(&self) -> &BTreeMap<String, Life> {
        &self.alive
    }
}

#[cfg(test)]
mod tests;
