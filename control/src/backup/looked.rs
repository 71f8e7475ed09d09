//! After a restore each node says which replicas it has that the records of then do not name (rule 10): they were made since, and may be newer than those that the
//! records name. Kept under the lease by which the node lives, as it is of one data path.
use crate::error::OpError;
use crate::node::Node;
use crate::records::{ClusterRecord, encode};
use crate::replication::record::{ReplicationRecord, Token};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How often it is seen whether there is anything to say; what is seen of the KVDB tells, so nobody is asked.
const LOOK: Duration = Duration::from_secs(1);
/// Between attempts to say it.
const RETRY: Duration = Duration::from_millis(300);
/// How long an attach waits for nodes that live and have not said it yet.
const SAID_IN: Duration = Duration::from_secs(5);
/// How often it looks whether they have.
const AGAIN: Duration = Duration::from_millis(100);

/// The key `looked/<node-id>`: since a restore the node looked at what its data path has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookedRecord {
    /// Of the cluster, when it looked: after the restore that gave it.
    pub generation: u8,
    /// Of the data path.
    pub incarnation: Token,
    /// Replicas that it has, and no record names, of sets that mean nothing.
    pub strays: Vec<Stray>,
}

/// A replica that no record names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stray {
    /// Its volume.
    pub volume_id: Uuid,
    /// Itself.
    pub replica_id: Uuid,
}

/// What stands in the way of hearing everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unheard {
    /// It may pass by itself in a moment.
    Yet(String),
    /// Somebody has to do something.
    Until(String),
}

/// Says it whenever there is something new to say, as long as the lease lasts.
pub(crate) async fn say_what_is_here(node: &Node, lease: i64) {
    let key = node.registry.keys().looked(node.node_id());
    let mut said: Option<LookedRecord> = None;
    loop {
        let generation = node.coordination.seen().restored();
        let incarnation = node.coordination.told().incarnation;
        let news = generation.zip(incarnation).is_some_and(|(g, i)| {
            let same = |s: &LookedRecord| (s.generation, s.incarnation) == (g, i);
            !said.as_ref().is_some_and(same)
        });
        if !news {
            node.coordination.until(LOOK, |_| None::<()>).await;
            continue;
        }
        match node.look_for_strays().await {
            Ok(Some(looked)) => {
                let put = node.registry.kv().put_leased(&key, encode(&looked), lease);
                match put.await {
                    Ok(_) => said = Some(looked),
                    Err(error) => {
                        tracing::warn!(%error, "cannot say which replicas are here");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            Ok(None) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                tracing::debug!(%error, "cannot look which replicas are here");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

impl Node {
    /// Looks; `None`: a restore is under way, or the data path is another one by now.
    async fn look_for_strays(&self) -> Result<Option<LookedRecord>, OpError> {
        let keys = self.registry.keys();
        // In this order: a generation is read, and then there is no restore, so records that are read behind that are those of this restore, or later ones.
        let cluster = self.registry.get::<ClusterRecord>(&keys.cluster()).await?;
        let Some(cluster) = cluster else {
            return Ok(None);
        };
        if self.no_restore().await.is_err() {
            return Ok(None);
        }
        let generation = cluster.record.generation;
        let incarnation = self.coordination.told().incarnation;
        let Some(incarnation) = incarnation else {
            return Ok(None);
        };
        self.look_at_replicas(Duration::ZERO).await?;
        let here = self.coordination.told().all_replicas();
        let mut sets: HashMap<Uuid, Option<ReplicationRecord>> = HashMap::new();
        let mut strays = Vec::new();
        for (volume_id, replica_id) in here {
            if let std::collections::hash_map::Entry::Vacant(place) = sets.entry(volume_id) {
                let found = self.registry.get(&keys.replication(volume_id)).await?;
                place.insert(found.map(|f| f.record));
            }
            let set = sets.get(&volume_id).and_then(Option::as_ref);
            let stray =
                |s: &ReplicationRecord| s.unverified(generation) && s.replica(replica_id).is_none();
            if set.is_some_and(stray) {
                tracing::warn!(volume = %volume_id, replica = %replica_id, "a replica is here that the restored record does not name: it stays until a person decides");
                strays.push(Stray {
                    volume_id,
                    replica_id,
                });
            }
        }
        let same = self.coordination.told().incarnation == Some(incarnation);
        Ok(same.then_some(LookedRecord {
            generation,
            incarnation,
            strays,
        }))
    }

    /// Waits for a moment until every node has said what it has of a volume; what is in the way.
    pub(super) async fn nobody_has_more(
        &self,
        volume: Uuid,
        generation: u8,
    ) -> Result<Option<Unheard>, OpError> {
        let until = Instant::now() + SAID_IN;
        loop {
            let found = self.who_has_more(volume, generation).await?;
            match found {
                Some(Unheard::Yet(_)) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                found => return Ok(found),
            }
        }
    }

    async fn who_has_more(&self, volume: Uuid, generation: u8) -> Result<Option<Unheard>, OpError> {
        let keys = self.registry.keys();
        let prefix = keys.looked_all();
        let listed = self.registry.kv().list(&prefix).await?.kvs;
        let looked = listed.iter().filter_map(|kv| {
            let id = kv.key.strip_prefix(prefix.as_bytes())?;
            let id = String::from_utf8(id.to_vec()).ok()?;
            Some((id, serde_json::from_slice::<LookedRecord>(&kv.value).ok()?))
        });
        let looked: BTreeMap<String, LookedRecord> = looked.collect();
        let mut yet = None;
        for (node, lives) in self.registry.nodes().await? {
            // Without it there is no replica.
            if node.replication_address.is_empty() {
                continue;
            }
            let id = &node.node_id;
            if !lives {
                return Ok(Some(Unheard::Until(format!(
                    "node {id}, which may have one that the restored record does not know, is away: start it, or decommission it"
                ))));
            }
            let says = looked.get(id).filter(|l| l.generation == generation);
            let now = self.coordination.seen().incarnation_of(id);
            let Some(says) = says.filter(|l| Some(l.incarnation) == now) else {
                yet = Some(Unheard::Yet(format!(
                    "node {id} has not said yet what it has: see that its data path runs, and try again"
                )));
                continue;
            };
            if says.strays.iter().any(|s| s.volume_id == volume) {
                return Ok(Some(Unheard::Until(format!(
                    "node {id} has a replica that the restored record does not know, and that may be newer: restore a backup that was taken after it was made"
                ))));
            }
        }
        Ok(yet)
    }
}
