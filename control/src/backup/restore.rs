//! Putting a backup back. The steps, each of which may be the last one before whoever does it dies; the same again completes it:
//!
//! | # | step | if it ends here |
//! | --- | --- | --- |
//! | 1 | refused if a volume is attached, of another cluster, unreadable | nothing was changed |
//! | 2 | one transaction: the key `restore`, and `generation` of `cluster` one above the highest known | every set of replicas is unverified, so no epoch is taken; every change that somebody asks for, and every reconciliation, is refused with what to do |
//! | 3 | everything of the backup is put, a batch at a time | as above; nothing that the backup has is missing, which is what reconciliation would delete for |
//! | 4 | what the backup does not have is deleted, a batch at a time | as above |
//! | 5 | one transaction: `restore` goes, `cluster` is written | all control processes look at everything again |
//!
//! Some keys are of now rather than of then: what is under a lease; `nodes/` (where they are), `secrets/` (a key that is gone opens nothing any more), which
//! are only added to; `reservations/` of volumes that stay, as hosts were told of them. Attachments are not put back: whoever served then may not now.
use super::Backup;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{AttachmentRecord, ClusterRecord, Versioned, encode, unix_ms};
use crate::replication::record::ReplicationRecord;
use crate::replication::transition;
use keelblock_api::etcd::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Operations of a transaction; etcd takes 128.
const BATCH_OPERATIONS: usize = 100;
/// Bytes of a transaction's values; etcd takes 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// The key `restore`: a backup is being put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRecord {
    /// The node that does it.
    pub node_id: String,
    /// When it began, ms since the Unix epoch.
    pub started_unix_ms: u64,
    /// When the backup was taken, ms since the Unix epoch.
    pub taken_unix_ms: u64,
    /// Its revision.
    pub revision: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The cluster's generation now.
    pub generation: u8,
    /// Keys that were put.
    pub put: usize,
    /// Keys that were deleted.
    pub deleted: usize,
    /// Names of replicated volumes, whose sets are unverified.
    pub unverified: Vec<String>,
}

/// What is to be written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    put: Vec<(String, Vec<u8>)>,
    delete: Vec<String>,
}

fn unreadable(key: &str, why: impl std::fmt::Display) -> OpError {
    OpError::State(format!(
        "the record {key} of the backup cannot be read: {why}; was it written by a later version?"
    ))
}

/// What differs between now and then. `now` is everything of the cluster, by keys without its prefix.
fn plan(
    then: &BTreeMap<String, Vec<u8>>,
    now: &BTreeMap<String, KeyValue>,
) -> Result<Plan, OpError> {
    let mut plan = Plan::default();
    for (key, value) in then {
        let value = match part(key) {
            "cluster" | "restore" | "alive" | "away" | "attachments" => continue,
            // Nobody of then holds an epoch: a coordinator of then that still runs ends at its next change of the set.
            "replication" => {
                let record: ReplicationRecord =
                    serde_json::from_slice(value).map_err(|e| unreadable(key, e))?;
                encode(&transition::release(&record).map_err(|e| unreadable(key, e))?)
            }
            _ => value.clone(),
        };
        let found = now.get(key);
        let keep = matches!(
            part(key),
            "nodes" | "members" | "token" | "gossip" | "secrets" | "reservations"
        );
        let same = found.is_some_and(|kv| keep || kv.lease != 0 || kv.value == value);
        if !same {
            plan.put.push((key.clone(), value));
        }
    }
    for (key, kv) in now {
        let kept = matches!(
            part(key),
            "cluster" | "restore" | "nodes" | "members" | "token" | "gossip" | "secrets"
        );
        let stays = kept || kv.lease != 0 || (then.contains_key(key) && part(key) != "attachments");
        if !stays {
            plan.delete.push(key.clone());
        }
    }
    Ok(plan)
}

/// What kind of key it is.
fn part(key: &str) -> &str {
    key.split_once('/').map_or(key, |(part, _)| part)
}

/// In parts that a transaction takes.
fn batches(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut all: Vec<Vec<Write>> = Vec::new();
    let mut bytes = 0;
    for write in writes {
        let more = match &write {
            Write::Put(key, value, _) => key.len() + value.len(),
            Write::Delete(key) => key.len(),
        };
        match all.last_mut() {
            Some(last) if last.len() < BATCH_OPERATIONS && bytes + more <= BATCH_BYTES => {
                last.push(write);
                bytes += more;
            }
            _ => {
                all.push(vec![write]);
                bytes = more;
            }
        }
    }
    all
}

impl Node {
    /// That no restore is under way: until it ends, nothing may be changed.
    ///
    /// # Errors
    /// [`OpError::Unavailable`] while one is, or was interrupted.
    pub(crate) async fn no_restore(&self) -> Result<(), OpError> {
        let key = self.registry.keys().restore();
        match self.registry.get::<RestoreRecord>(&key).await? {
            None => Ok(()),
            Some(found) => Err(OpError::Unavailable(format!(
                "the KVDB is being restored, by node {}; if nobody is doing so any more, it was interrupted: run `keelctl service kvdb restore` again",
                found.record.node_id
            ))),
        }
    }

    /// Makes the KVDB what a backup says.
    ///
    /// # Errors
    /// [`OpError::State`]: of another cluster, a volume is attached, no generation is left, a record of it is not readable.
    pub async fn restore_kvdb(&self, backup: Backup) -> Result<Restored, OpError> {
        if backup.cluster_id != self.cluster_id() {
            return Err(OpError::State(format!(
                "it is a backup of cluster {}, and this is {}: use the control process of that one",
                backup.cluster_id,
                self.cluster_id()
            )));
        }
        if let Some(what) = super::half_done(&backup)? {
            return Err(OpError::State(format!(
                "in the backup {what}, and that would be done again over data that may be there by now: use another one"
            )));
        }
        let _changing = self.exclusive().await?;
        let then = texts(
            backup
                .entries
                .iter()
                .map(|(k, v)| (k.as_slice(), v.clone())),
        )?;
        let now = self.everything().await?;
        refuse_attached(&now)?;
        let planned = plan(&then, &now)?;
        let cluster = self.begin(&backup, &then).await?;
        let keys = self.registry.keys();
        let full = |key: &String| format!("{}{key}", keys.root());
        let puts = planned
            .put
            .iter()
            .map(|(k, v)| Write::put(full(k), v.clone()));
        let deletes = planned.delete.iter().map(|k| Write::delete(full(k)));
        // First all that is to be there: at no time is something missing that the backup has.
        for batch in batches(puts.collect())
            .into_iter()
            .chain(batches(deletes.collect()))
        {
            self.commit_while_restoring(batch).await?;
        }
        let end = vec![
            Write::delete(keys.restore()),
            Write::put(keys.cluster(), encode(&cluster)),
        ];
        self.commit_while_restoring(end).await?;
        let unverified = unverified_volumes(&then);
        tracing::warn!(
            generation = cluster.generation,
            revision = backup.revision,
            "the KVDB was restored: all sets of replicas are unverified"
        );
        Ok(Restored {
            generation: cluster.generation,
            put: planned.put.len(),
            deleted: planned.delete.len(),
            unverified,
        })
    }

    async fn everything(&self) -> Result<BTreeMap<String, KeyValue>, OpError> {
        let root = self.registry.keys().root();
        let listed = self.registry.kv().list(root).await?;
        let all = listed.kvs.into_iter().map(|kv| {
            let key = kv.key.get(root.len()..).unwrap_or_default();
            let key = String::from_utf8(key.to_vec());
            let key = key.map_err(|_| OpError::Internal("a key in the KVDB is no text".into()))?;
            Ok((key, kv))
        });
        all.collect()
    }

    /// Step 2.
    async fn begin(
        &self,
        backup: &Backup,
        then: &BTreeMap<String, Vec<u8>>,
    ) -> Result<ClusterRecord, OpError> {
        let keys = self.registry.keys();
        let of_then = match then.get("cluster") {
            Some(text) => serde_json::from_slice::<ClusterRecord>(text)
                .map_err(|e| unreadable("cluster", e))?,
            None => return Err(OpError::State("the backup has no record `cluster`".into())),
        };
        let now: Option<Versioned<ClusterRecord>> = self.registry.get(&keys.cluster()).await?;
        let highest = now.as_ref().map_or(0, |n| n.record.generation);
        let generation = highest.max(of_then.generation).checked_add(1);
        let generation = generation.ok_or_else(|| {
            OpError::State(
                "the cluster is of generation 255, the last: it cannot be restored again".into(),
            )
        })?;
        let cluster = ClusterRecord {
            generation,
            ..of_then
        };
        let restoring = RestoreRecord {
            node_id: self.node_id().into(),
            started_unix_ms: unix_ms(),
            taken_unix_ms: backup.taken_unix_ms,
            revision: backup.revision,
        };
        let guard = Guard::at(keys.cluster(), now.map_or(0, |n| n.revision));
        let writes = vec![
            Write::put(keys.restore(), encode(&restoring)),
            Write::put(keys.cluster(), encode(&cluster)),
        ];
        match self.registry.kv().commit(vec![guard], writes).await? {
            Committed::Yes(_) => Ok(cluster),
            Committed::No => Err(OpError::Contended {
                what: keys.cluster(),
            }),
        }
    }

    async fn commit_while_restoring(&self, writes: Vec<Write>) -> Result<(), OpError> {
        let guard = Guard::exists(self.registry.keys().restore());
        match self.registry.kv().commit(vec![guard], writes).await? {
            Committed::Yes(_) => Ok(()),
            Committed::No => Err(OpError::Contended {
                what: "the restore of the KVDB".into(),
            }),
        }
    }
}

fn texts<'a>(
    entries: impl Iterator<Item = (&'a [u8], Vec<u8>)>,
) -> Result<BTreeMap<String, Vec<u8>>, OpError> {
    let text = |key: &[u8]| {
        let key = String::from_utf8(key.to_vec());
        key.map_err(|_| OpError::State("a key of the backup is no text".into()))
    };
    entries.map(|(k, v)| Ok((text(k)?, v))).collect()
}

/// Names of the replicated volumes; ids of those without a name.
fn unverified_volumes(then: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let ids: BTreeSet<&str> = then
        .keys()
        .filter_map(|k| k.strip_prefix("replication/"))
        .collect();
    let name = |id: &str| {
        let volume = then.get(&format!("volumes/{id}"))?;
        let volume: serde_json::Value = serde_json::from_slice(volume).ok()?;
        Some(volume.get("name")?.as_str()?.to_owned())
    };
    ids.into_iter()
        .map(|id| name(id).unwrap_or_else(|| id.to_owned()))
        .collect()
}

/// # Errors
/// [`OpError::State`]: somebody serves volumes.
fn refuse_attached(now: &BTreeMap<String, KeyValue>) -> Result<(), OpError> {
    // One that was interrupted has refused already, and nothing was attached since.
    if now.contains_key("restore") {
        return Ok(());
    }
    let (mut attached, mut errands) = (Vec::new(), Vec::new());
    for (key, kv) in now {
        let Some(volume) = key.strip_prefix("attachments/") else {
            continue;
        };
        // One that cannot be read is somebody's.
        match serde_json::from_slice::<AttachmentRecord>(&kv.value) {
            Ok(a) if a.errand => errands.push(volume),
            _ => attached.push(volume),
        }
    }
    match (attached.first(), errands.first()) {
        (None, None) => Ok(()),
        (None, Some(first)) => Err(OpError::State(format!(
            "{} volumes, like {first}, are coordinated for their snapshots or replicas at the moment, though attached nowhere: try again in a minute",
            errands.len()
        ))),
        (Some(first), _) => Err(OpError::State(format!(
            "{} volumes are attached, like {first}: detach them first, as who may serve them is among what is put back",
            attached.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::PathState;
    use uuid::Uuid;

    fn now(entries: &[(&str, &str, i64)]) -> BTreeMap<String, KeyValue> {
        let kv = |(key, value, lease): &(&str, &str, i64)| {
            let kv = KeyValue {
                key: key.as_bytes().to_vec(),
                value: value.as_bytes().to_vec(),
                lease: *lease,
                ..Default::default()
            };
            ((*key).to_owned(), kv)
        };
        entries.iter().map(kv).collect()
    }

    fn then(entries: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        entries.iter().map(entry).collect()
    }

    #[test]
    fn what_is_served_is_refused_and_said_for_whom() {
        let served = |errand: bool| {
            let record = AttachmentRecord {
                volume_id: Uuid::nil(),
                node_id: "n1".into(),
                subsystem_of: Uuid::nil(),
                nsid: 1,
                path_state: PathState::Optimized,
                attached_unix_ms: 1,
                moved_from: None,
                errand,
            };
            serde_json::to_string(&record).unwrap()
        };
        let (host, errand) = (served(false), served(true));
        let said = |entries: &[(&str, &str, i64)]| {
            let refused = refuse_attached(&now(entries));
            refused.map_err(|e| e.to_string())
        };
        assert_eq!(said(&[("volumes/v", "x", 0)]), Ok(()));
        let only = said(&[("attachments/v", &errand, 0)]).unwrap_err();
        assert!(
            only.contains("like v") && only.contains("attached nowhere"),
            "{only}"
        );
        let both = [
            ("attachments/v", errand.as_str(), 0),
            ("attachments/w", &host, 0),
        ];
        let error = said(&both).unwrap_err();
        assert!(error.contains("1 volumes are attached, like w"), "{error}");
        assert!(
            said(&[("attachments/v", "?", 0)])
                .unwrap_err()
                .contains("detach")
        );
        // One that was interrupted goes on.
        assert_eq!(
            said(&[("attachments/v", &host, 0), ("restore", "x", 0)]),
            Ok(())
        );
    }

    #[test]
    fn what_is_of_now_stays_and_the_rest_is_of_then() {
        let now = now(&[
            ("alive/n", "lives", 5),
            ("attachments/v", "here", 0),
            ("cluster", "c", 0),
            ("members/n", "decommissioned", 0),
            ("nodes/n", "at 2", 0),
            ("reservations/gone", "r", 0),
            ("reservations/v", "r2", 0),
            ("restore", "x", 0),
            ("secrets/gone", "key", 0),
            ("secrets/v", "keys 1 and 2", 0),
            ("volumes/gone", "x", 0),
            ("volumes/same", "s", 0),
            ("volumes/v", "new", 0),
        ]);
        let then = then(&[
            ("attachments/v", "there"),
            ("cluster", "old"),
            ("members/n", "active"),
            ("nodes/m", "at 1"),
            ("nodes/n", "at 1"),
            ("reservations/v", "r1"),
            ("secrets/v", "key 1"),
            ("volumes/back", "b"),
            ("volumes/same", "s"),
            ("volumes/v", "old"),
        ]);
        let planned = plan(&then, &now).unwrap();
        let put: Vec<&str> = planned.put.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(put, ["nodes/m", "volumes/back", "volumes/v"]);
        assert_eq!(planned.put[2].1, b"old");
        assert_eq!(
            planned.delete,
            ["attachments/v", "reservations/gone", "volumes/gone"]
        );
    }

    #[test]
    fn a_record_that_is_not_read_is_not_put() {
        let error = plan(&then(&[("replication/v", "{}")]), &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("replication/v"), "{error}");
    }

    #[test]
    fn batches_are_what_a_transaction_takes() {
        let small = (0..250).map(|i| Write::put(format!("{i}"), "x")).collect();
        let sizes: Vec<usize> = batches(small).iter().map(Vec::len).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let large = (0..3).map(|i| Write::put(format!("{i}"), vec![0; 600 << 10]));
        let sizes: Vec<usize> = batches(large.collect()).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 1]);
        assert!(batches(Vec::new()).is_empty());
    }
}
