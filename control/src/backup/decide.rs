//! After a restore nobody knows which replicas of a volume have everything: a takeover hears all of them (`docs/replication.md` §13), or a person says so (K7 of §3), and answers for it.
use super::looked::Unheard;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{ClusterRecord, ReplicaRecord, Versioned, VolumeRecord, encode};
use crate::replication::attach::AttachError;
use crate::replication::record::{ReplicaState, ReplicationRecord};
use crate::replication::transition;

/// What counts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Nodes of the replicas that are the set.
    pub members: Vec<String>,
    /// By how few of them the volume may be served.
    pub minimum: u8,
}

impl Node {
    /// That the set of a replicated volume is known to be right.
    ///
    /// # Errors
    /// [`OpError::State`] since a restore of the KVDB, with the way out.
    pub(crate) async fn verified(&self, volume: &VolumeRecord) -> Result<(), OpError> {
        match self.unverified_set(volume).await? {
            None => Ok(()),
            Some(_) => {
                let why = "nobody has served it since: attach it while all nodes with its replicas are there";
                Err(unverified(volume, why.into()))
            }
        }
    }

    /// That a takeover of a volume can be done: since a restore of the KVDB all replicas are heard (rule 10), so none of its record may be known to be away or lost,
    /// and no node may have one that the record does not know.
    ///
    /// # Errors
    /// [`OpError::State`]: what is in the way, with the way out. [`OpError::Unavailable`]: a node has not said yet what it has.
    pub(crate) async fn can_be_heard(&self, volume: &VolumeRecord) -> Result<(), OpError> {
        let Some((set, generation)) = self.unverified_set(volume).await? else {
            return Ok(());
        };
        let keys = self.registry.keys();
        let stay = set.replicas.iter();
        for replica in stay.filter(|r| r.state != ReplicaState::Leaving) {
            let node = &replica.node_id;
            let key = keys.replica(volume.volume_id, replica.replica_id);
            let known = self.registry.get::<ReplicaRecord>(&key).await?;
            if known.is_some_and(|k| k.record.lost) {
                let why = format!("the replica that node {node} had is not there any more");
                return Err(unverified(volume, why));
            }
            if !self.coordination.seen().alive().contains_key(node) {
                let why = format!("node {node}, which has one, is away: start it");
                return Err(unverified(volume, why));
            }
        }
        match self.nobody_has_more(volume.volume_id, generation).await? {
            None => Ok(()),
            Some(Unheard::Yet(why)) => {
                Err(OpError::Unavailable(unverified(volume, why).to_string()))
            }
            Some(Unheard::Until(why)) => Err(unverified(volume, why)),
        }
    }

    /// The set of a volume, if it means nothing, and the cluster's generation.
    async fn unverified_set(
        &self,
        volume: &VolumeRecord,
    ) -> Result<Option<(ReplicationRecord, u8)>, OpError> {
        let keys = self.registry.keys();
        let set: Option<Versioned<ReplicationRecord>> = self
            .registry
            .get(&keys.replication(volume.volume_id))
            .await?;
        let cluster: Option<Versioned<ClusterRecord>> = self.registry.get(&keys.cluster()).await?;
        let (Some(set), Some(cluster)) = (set, cluster) else {
            return Ok(None);
        };
        let generation = cluster.record.generation;
        let unverified = set.record.unverified(generation);
        Ok(unverified.then_some((set.record, generation)))
    }

    /// Makes the replicas on these nodes the set of a volume whose set is unverified, or that nobody could take over. `minimum` 0: as it was, or as many as
    /// are named if those are fewer.
    ///
    /// # Errors
    /// [`OpError::State`]: the volume has no replicas, is attached, its set is right, a replica is known to be lost; [`OpError::Invalid`]: a node has no replica of it.
    pub async fn decide_replicas(
        &self,
        volume: &str,
        nodes: &[String],
        minimum: u8,
    ) -> Result<Decided, OpError> {
        let _changing = self.exclusive().await?;
        let volume = self.registry.volume(volume).await?.record;
        let (name, id) = (&volume.name, volume.volume_id);
        let keys = self.registry.keys();
        if let Some(attached) = self.registry.attachment(id).await? {
            return Err(OpError::State(format!(
                "volume {name} is attached to node {}: detach it first, then say which replicas count, then attach it",
                attached.record.node_id
            )));
        }
        let set: Option<Versioned<ReplicationRecord>> =
            self.registry.get(&keys.replication(id)).await?;
        let set = set.ok_or_else(|| {
            OpError::State(format!(
                "volume {name} has no replicas: there is nothing to decide"
            ))
        })?;
        if nodes.is_empty() {
            return Err(OpError::Missing {
                field: "nodes",
                hint: "the nodes whose replicas have everything",
            });
        }
        let cluster: Option<Versioned<ClusterRecord>> = self.registry.get(&keys.cluster()).await?;
        let cluster = cluster
            .ok_or_else(|| OpError::Internal("the KVDB has no record of the cluster".into()))?;
        let stay = || {
            let all = set.record.replicas.iter();
            all.filter(|r| r.state != ReplicaState::Leaving)
        };
        let mut members = Vec::new();
        for node in nodes {
            let found = stay().find(|r| r.node_id == *node).ok_or_else(|| {
                let there: Vec<&str> = stay().map(|r| r.node_id.as_str()).collect();
                let why = format!(
                    "node {node} has no replica of volume {name}; these have: {}",
                    there.join(", ")
                );
                OpError::invalid("nodes", why)
            })?;
            let key = keys.replica(id, found.replica_id);
            let known = self.registry.get::<ReplicaRecord>(&key).await?;
            if known.is_some_and(|k| k.record.lost) {
                return Err(OpError::State(format!(
                    "the replica of volume {name} that node {node} had is not there any more: it is lost, or was another one since the backup (the volume was set back, or its replicas moved). Name other nodes, or restore a backup that was taken after that"
                )));
            }
            if !members.contains(&found.replica_id) {
                members.push(found.replica_id);
            }
        }
        let few = u8::try_from(members.len()).unwrap_or(u8::MAX);
        let minimum = match minimum {
            0 => set.record.minimum.min(few),
            n => n,
        };
        let generation = cluster.record.generation;
        let to = transition::decide(&set.record, generation, &members, minimum)
            .map_err(|refusal| OpError::State(format!("volume {name}: {refusal}")))?;
        let guards = vec![
            Guard::at(keys.replication(id), set.revision),
            Guard::at(keys.cluster(), cluster.revision),
            Guard::absent(keys.attachment(id)),
        ];
        let write = Write::put(keys.replication(id), encode(&to));
        match self.registry.kv().commit(guards, vec![write]).await? {
            Committed::Yes(_) => {
                tracing::warn!(
                    volume = name,
                    ?nodes,
                    minimum,
                    "a person decided which replicas count"
                );
                Ok(Decided {
                    members: nodes.to_vec(),
                    minimum,
                })
            }
            Committed::No => Err(OpError::Contended {
                what: format!("volume {name}"),
            }),
        }
    }
}

fn unverified(volume: &VolumeRecord, why: String) -> OpError {
    let volume = volume.volume_id;
    AttachError::Unverified { volume, why }.into()
}
