//! What is provisioned in pools, counted as records change, so that placing a replica costs the same however many volumes there are.
//!
//! What a volume has in which pools follows from its own records (volume, replication, task), and of a clone that has no replicas yet from those of its source: it will lie
//! beside them. So around each change of one of these records what the volume and such clones of it had before is taken off, and what they have then is added:
//! nothing is remembered for each volume that could differ from its records. A test compares this with counting all of them again.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::Seen;
use crate::records::{TaskState, VolumeRecord};

/// What lies in a pool, or is to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    replicas: u64,
    /// Of 2^64 volumes of 2^64 bytes there is no more.
    bytes: u128,
}

/// Counts of all pools, and what has to be looked up for them.
#[derive(Debug, Default)]
pub(super) struct Provisioned {
    /// By node, as another one's pool may have the same id.
    pools: HashMap<String, HashMap<Uuid, Count>>,
    /// Clones that have no replicas yet, by what they are of.
    clones_to_be: HashMap<Uuid, BTreeSet<Uuid>>,
    /// Volumes with rules about where others are not to be.
    speaking: HashSet<Uuid>,
}

impl Provisioned {
    /// Replicas, and sizes of their volumes, in a pool of a node.
    pub fn of(&self, node: &str, pool: Uuid) -> (u32, u64) {
        let count = self.pools.get(node).and_then(|of| of.get(&pool));
        let Count { replicas, bytes } = count.copied().unwrap_or_default();
        let most = (u32::MAX, u64::MAX);
        (
            replicas.try_into().unwrap_or(most.0),
            bytes.try_into().unwrap_or(most.1),
        )
    }

    /// A volume, and clones of it that have no replicas yet.
    fn with_clones(&self, id: Uuid) -> Vec<Uuid> {
        let clones = self.clones_to_be.get(&id).into_iter().flatten().copied();
        std::iter::once(id).chain(clones).collect()
    }

    fn add(&mut self, node: &str, pool: Uuid, bytes: u64) {
        if !self.pools.contains_key(node) {
            self.pools.insert(node.to_owned(), HashMap::new());
        }
        if let Some(of) = self.pools.get_mut(node) {
            let count = of.entry(pool).or_default();
            count.replicas += 1;
            count.bytes += u128::from(bytes);
        }
    }

    fn take(&mut self, node: &str, pool: Uuid, bytes: u64) {
        let Some(of) = self.pools.get_mut(node) else {
            return;
        };
        if let Some(count) = of.get_mut(&pool) {
            count.replicas -= 1;
            count.bytes -= u128::from(bytes);
            if count.replicas == 0 {
                of.remove(&pool);
            }
        }
        if of.is_empty() {
            self.pools.remove(node);
        }
    }
}

/// What a volume is cloned of, if its replicas will be beside those of that.
fn source(volume: &VolumeRecord) -> Option<Uuid> {
    let own = volume.source.as_ref().filter(|s| s.own)?;
    // A record that says so of itself is not worth a loop.
    (own.volume_id != volume.volume_id).then_some(own.volume_id)
}

fn speaks(volume: &VolumeRecord) -> bool {
    let rules = volume.placement.as_ref();
    rules.is_some_and(|r| !r.volume_anti_affinity.is_empty())
}

impl Seen {
    /// Replicas, and sizes of their volumes, in a pool of a node: what is there, and what was given its place.
    pub(super) fn provisioned_in(&self, node: &str, pool: Uuid) -> (u32, u64) {
        self.provisioned.of(node, pool)
    }

    /// Volumes with rules about where others are not to be.
    pub(super) fn speaking(&self) -> impl Iterator<Item = Uuid> {
        self.provisioned.speaking.iter().copied()
    }

    /// Around a change of the records of a volume: before it.
    pub(super) fn uncount(&mut self, id: Uuid) {
        // So that what is counted, and the counts, can be borrowed by themselves.
        let mut counts = std::mem::take(&mut self.provisioned);
        for of in counts.with_clones(id) {
            self.of_one(of, |node, pool, bytes| counts.take(node, pool, bytes));
        }
        if let Some(source) = self.clone_to_be_of(id)
            && let Some(all) = counts.clones_to_be.get_mut(&source)
        {
            all.remove(&id);
            if all.is_empty() {
                counts.clones_to_be.remove(&source);
            }
        }
        counts.speaking.remove(&id);
        self.provisioned = counts;
    }

    /// And after it.
    pub(super) fn count(&mut self, id: Uuid) {
        let mut counts = std::mem::take(&mut self.provisioned);
        if let Some(source) = self.clone_to_be_of(id) {
            counts.clones_to_be.entry(source).or_default().insert(id);
        }
        if self.volume_record(id).is_some_and(speaks) {
            counts.speaking.insert(id);
        }
        for of in counts.with_clones(id) {
            self.of_one(of, |node, pool, bytes| counts.add(node, pool, bytes));
        }
        self.provisioned = counts;
    }

    /// What a clone is of that has no replicas yet.
    fn clone_to_be_of(&self, id: Uuid) -> Option<Uuid> {
        let volume = self.replicated_record(id)?;
        source(volume).filter(|_| self.set(id).is_none())
    }

    /// What a volume has in which pools.
    fn of_one(&self, id: Uuid, mut each: impl FnMut(&str, Uuid, u64)) {
        if let Some(single) = self.single(id) {
            each(&single.node_id, single.pool_id, single.counted_bytes());
        }
        let Some(volume) = self.replicated_record(id) else {
            return;
        };
        let bytes = volume.counted_bytes();
        let Some(set) = self.set(id) else {
            let beside = source(volume).and_then(|of| self.set(of));
            for replica in beside.into_iter().flat_map(|set| &set.replicas) {
                each(&replica.node_id, replica.pool_id, bytes);
            }
            return;
        };
        for replica in &set.replicas {
            each(&replica.node_id, replica.pool_id, bytes);
        }
        let task = self.task(id).filter(|t| t.state == TaskState::Running);
        for coming in task.into_iter().flat_map(|t| t.coming()) {
            // It was given its place, and whoever serves the volume has not taken it in yet.
            if set.replica(coming.replica_id).is_none() {
                each(&coming.node_id, coming.pool_id, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Keys, TaskRecord, encode};
    use crate::replication::record::ReplicationRecord;
    use keelblock_api::etcd::mvccpb::event::EventType;
    use keelblock_api::etcd::mvccpb::{Event, KeyValue};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const VOLUMES: u8 = 4;
    const NODES: [&str; 3] = ["a", "b", "c"];

    /// Records of volume `of`.
    #[derive(Debug, Clone)]
    enum What {
        Single {
            on: usize,
            bytes: u64,
        },
        Replicated {
            bytes: u64,
            clone_of: Option<u8>,
            away_from: bool,
        },
        Unreadable,
        NoVolume,
        Set {
            on: Vec<usize>,
        },
        NoSet,
        Task {
            coming: Vec<usize>,
            state: &'static str,
        },
        NoTask,
        /// The watch begins anew, with everything that there is.
        Again,
    }

    fn id(of: u8) -> Uuid {
        Uuid::from_u128(100 + u128::from(of))
    }

    /// Two nodes have a pool of the same id.
    fn pool(on: usize) -> Uuid {
        Uuid::from_u128(1 + on as u128 / 2)
    }

    /// One replica of a volume on each node.
    fn replica(of: u8, on: usize) -> Uuid {
        Uuid::from_u128(1000 * (1 + u128::from(of)) + on as u128)
    }

    fn volume(of: u8, bytes: u64, more: serde_json::Value) -> Vec<u8> {
        let mut record = serde_json::json!({
            "volume_id": id(of), "name": format!("v{of}"), "phase": "ready", "size_bytes": bytes, "block_bytes": 4096, "sticky": false, "labels": {},
            "any_host": true, "allowed_hosts": [], "created_unix_ms": 0, "detached_unix_ms": 0, "error": "",
        });
        let (all, more) = (record.as_object_mut().unwrap(), more);
        all.extend(more.as_object().unwrap().clone());
        let record: VolumeRecord = serde_json::from_value(record).unwrap();
        encode(&record)
    }

    fn task(of: u8, coming: &[usize], state: &str) -> Vec<u8> {
        let replica = |on: &usize| serde_json::json!({"replica_id": replica(of, *on), "node_id": NODES[*on], "pool_id": pool(*on)});
        let more: Vec<_> = coming.iter().skip(1).map(replica).collect();
        let mut record = serde_json::json!({
            "task_id": id(of), "volume_id": id(of), "kind": "increase", "state": state, "step": "add", "wanted_before": 1, "wanted": 2,
            "created_unix_ms": 0, "updated_unix_ms": 0, "more": more,
        });
        if let Some(first) = coming.first() {
            record["new"] = replica(first);
        }
        encode(&serde_json::from_value::<TaskRecord>(record).unwrap())
    }

    fn set(of: u8, on: &[usize]) -> Vec<u8> {
        let replicas = on
            .iter()
            .map(|on| (replica(of, *on), NODES[*on].to_owned(), pool(*on)));
        encode(&ReplicationRecord::new(0, replicas, 1, on.len() as u8).unwrap())
    }

    /// The key that changes, and what it is then.
    fn change(keys: &Keys, of: u8, what: &What) -> Option<(String, Option<Vec<u8>>)> {
        let (key, value) = match what {
            What::Single { on, bytes } => {
                let more = serde_json::json!({"node_id": NODES[*on], "pool_id": pool(*on), "asked_bytes": bytes / 2 * 3});
                (keys.volume(id(of)), Some(volume(of, *bytes, more)))
            }
            What::Replicated {
                bytes,
                clone_of,
                away_from,
            } => {
                let mut more =
                    serde_json::json!({"replicated": {"lanes": 1, "volatile_cache": true}});
                if let Some(source) = clone_of {
                    more["source"] = serde_json::json!({"volume_id": id(*source), "snapshot_id": id(99), "own": true});
                }
                if *away_from {
                    more["placement"] = serde_json::json!({"volume_anti_affinity": [{"match_expressions": [{"key": "x", "operator": "exists"}]}]});
                }
                (keys.volume(id(of)), Some(volume(of, *bytes, more)))
            }
            What::Unreadable => (keys.volume(id(of)), Some(b"{}".to_vec())),
            What::NoVolume => (keys.volume(id(of)), None),
            What::Set { on } => (keys.replication(id(of)), Some(set(of, on))),
            What::NoSet => (keys.replication(id(of)), None),
            What::Task { coming, state } => (keys.task(id(of)), Some(task(of, coming, state))),
            What::NoTask => (keys.task(id(of)), None),
            What::Again => return None,
        };
        Some((key, value))
    }

    /// Counted anew, over all records.
    fn recount(seen: &Seen) -> BTreeMap<(String, Uuid), (u32, u64)> {
        let mut all = BTreeMap::new();
        let mut add = |node: &str, pool, bytes| {
            let one: &mut (u32, u64) = all.entry((node.to_owned(), pool)).or_default();
            *one = (one.0 + 1, one.1.saturating_add(bytes));
        };
        for (volume, set) in seen.sets() {
            let task = seen.task(volume.volume_id);
            let runs = task.filter(|t| t.state == TaskState::Running);
            let coming = runs.into_iter().flat_map(|t| t.coming());
            let coming = coming.filter(|c| set.replica(c.replica_id).is_none());
            let coming = coming.map(|c| (&c.node_id, c.pool_id));
            let there = set.replicas.iter().map(|r| (&r.node_id, r.pool_id));
            for (node, pool) in there.chain(coming) {
                add(node, pool, volume.counted_bytes());
            }
        }
        for volume in seen.volume_records() {
            if volume.replicated.is_none() {
                add(&volume.node_id, volume.pool_id, volume.counted_bytes());
            } else if seen.set(volume.volume_id).is_none() {
                let source = volume.source.as_ref().filter(|s| s.own);
                let beside = source.and_then(|s| seen.set(s.volume_id));
                for r in beside.into_iter().flat_map(|s| &s.replicas) {
                    add(&r.node_id, r.pool_id, volume.counted_bytes());
                }
            }
        }
        all
    }

    fn counted(seen: &Seen) -> BTreeMap<(String, Uuid), (u32, u64)> {
        let pools = seen.provisioned.pools.iter();
        let all = pools.flat_map(|(node, of)| of.keys().map(move |pool| (node, *pool)));
        all.map(|(node, pool)| ((node.clone(), pool), seen.provisioned_in(node, pool)))
            .collect()
    }

    fn what() -> impl Strategy<Value = What> {
        let nodes = |range| proptest::sample::subsequence(vec![0, 1, 2], range);
        let bytes = prop_oneof![1..100u64, Just(u64::MAX / 2)];
        let states = proptest::sample::select(vec!["running", "undoing", "done", "failed"]);
        prop_oneof![
            2 => (0..3usize, bytes.clone()).prop_map(|(on, bytes)| What::Single { on, bytes }),
            4 => (bytes, proptest::option::of(0..VOLUMES), any::<bool>())
                .prop_map(|(bytes, clone_of, away_from)| What::Replicated { bytes, clone_of, away_from }),
            1 => Just(What::Unreadable),
            1 => Just(What::NoVolume),
            4 => nodes(1..=3).prop_map(|on| What::Set { on }),
            2 => Just(What::NoSet),
            3 => (nodes(0..=3), states).prop_map(|(coming, state)| What::Task { coming, state }),
            1 => Just(What::NoTask),
            1 => Just(What::Again),
        ]
    }

    proptest! {
        #[test]
        fn what_is_counted_by_changes_is_what_counting_anew_gives(
            steps in proptest::collection::vec((0..VOLUMES, what()), 1..60)
        ) {
            let keys = Keys::new("c");
            let mut there: BTreeMap<String, KeyValue> = BTreeMap::new();
            let mut seen = Seen::default();
            for (step, (of, what)) in steps.iter().enumerate() {
                match change(&keys, *of, what) {
                    None => {
                        let all: Vec<_> = there.values().cloned().collect();
                        seen = Seen::read(&keys, &all, &mut seen);
                    }
                    Some((key, value)) => {
                        let kind = if value.is_some() { EventType::Put } else { EventType::Delete };
                        let kv = KeyValue {
                            key: key.clone().into_bytes(),
                            value: value.unwrap_or_default(),
                            mod_revision: 1 + step as i64,
                            ..Default::default()
                        };
                        match kind {
                            EventType::Put => drop(there.insert(key, kv.clone())),
                            EventType::Delete => drop(there.remove(&key)),
                        }
                        seen.apply(&keys, &[Event { r#type: kind.into(), kv: Some(kv), prev_kv: None }]);
                    }
                }
                prop_assert_eq!(counted(&seen), recount(&seen), "after {:?}", &steps[..=step]);
                let speaking: BTreeSet<Uuid> = seen.speaking().collect();
                let by_records = seen.volume_records().filter(|v| speaks(v)).map(|v| v.volume_id);
                prop_assert_eq!(speaking, by_records.collect::<BTreeSet<_>>());
            }
            // Everything goes: nothing is left over.
            let all: Vec<_> = there.into_values().map(|kv| Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }).collect();
            seen.apply(&keys, &all);
            prop_assert!(counted(&seen).is_empty() && seen.provisioned.clones_to_be.is_empty());
        }
    }
}
