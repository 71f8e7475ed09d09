//! The replicas of this node: made when the record names them, deleted when they leave. `replicas/<volume>/<replica>` is there before a replica is, and
//! until it is deleted: so whoever makes or deletes a volume knows how far it is, and what was made and is gone is known to be lost (rule 9).

use std::time::Duration;

use keelblock_api::datapath::{
    CreateReplicaRequest, DeleteReplicaRequest, ListReplicasRequest, SnapshotOf,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::Now;
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::names;
use crate::node::Node;
use crate::records::{
    AlertKind, ClusterRecord, Phase, ReplicaRecord, Severity, Versioned, VolumeRecord, encode,
};
use crate::replication::record::{Replica, ReplicaState, ReplicationRecord};

impl Node {
    /// Makes the replicas that this node is to have.
    pub(super) async fn make_replicas(&self, now: &Now) -> Result<(), OpError> {
        let Some(volume) = now
            .volume
            .as_ref()
            .filter(|v| v.record.phase != Phase::Deleting)
        else {
            return Ok(());
        };
        for replica in now.replicas_on(self.node_id()) {
            let member = replica.state == ReplicaState::Member;
            if replica.state == ReplicaState::Leaving
                || !member && volume.record.restoring.is_some()
            {
                // While it is set back, what only old replicas have stays.
                continue;
            }
            let known = now.replicas.get(&replica.replica_id);
            match known.map(|k| &k.record) {
                Some(k) if k.made => {
                    self.compare_replica(now.id, replica, k).await?;
                    self.follow_replica_size(volume, replica).await?;
                }
                // It was refused: whoever makes the volume has read why, and undoes it.
                Some(k) if !k.error.is_empty() => {}
                known => {
                    self.make_place(now, &volume.record).await?;
                    self.make_replica(volume, replica, known.is_some()).await?;
                }
            }
        }
        self.all_set_back(now, volume).await?;
        self.all_made(now, volume).await
    }

    async fn make_replica(
        &self,
        volume: &Versioned<VolumeRecord>,
        replica: &Replica,
        begun: bool,
    ) -> Result<(), OpError> {
        let (id, replica_id) = (volume.record.volume_id, replica.replica_id);
        let (keys, kv) = (self.registry.keys(), self.registry.kv());
        let key = keys.replica(id, replica_id);
        let mut record = ReplicaRecord {
            node_id: self.node_id().into(),
            made: false,
            error: String::new(),
            lost: false,
        };
        if !begun {
            // Not of a volume that somebody gave up meanwhile: its replicas would be forgotten.
            let guards = vec![
                Guard::at(keys.volume(id), volume.revision),
                Guard::absent(&key),
            ];
            let write = Write::put(&key, encode(&record));
            if kv.commit(guards, vec![write]).await? == Committed::No {
                return Err(OpError::Contended { what: key });
            }
        }
        let lanes = volume.record.replicated.as_ref().map_or(1, |r| r.lanes);
        // One that is added later is empty, and copied to.
        let source = match (volume.record.restoring, &volume.record.source) {
            (Some(snapshot), _) => Some((id, snapshot)),
            (None, Some(of)) if volume.record.phase == Phase::Creating => {
                Some((of.volume_id, of.snapshot_id))
            }
            (None, _) => None,
        };
        let source = source.map(|(volume, snapshot)| SnapshotOf {
            volume_id: volume.to_string(),
            snapshot_id: snapshot.to_string(),
        });
        let request = CreateReplicaRequest {
            volume_id: id.to_string(),
            replica_id: replica_id.to_string(),
            pool_id: replica.pool_id.to_string(),
            size_bytes: volume.record.size_bytes,
            lanes: lanes.into(),
            encrypted: volume.record.encrypted,
            source,
        };
        // A list that is older than what is made would not have it.
        let _alone = self.coordination.looking.lock().await;
        let what = format!("make a replica of volume {}", volume.record.name);
        let made = self
            .link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.create_replica(request).await
            });
        match made.await {
            Ok(made) => {
                tracing::info!(volume = volume.record.name, replica = %replica_id, "replica made");
                self.coordination.told().made(replica_id, made);
                record.made = true;
            }
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => record.error = refused.to_string(),
        }
        kv.put(key, encode(&record)).await?;
        Ok(())
    }

    /// Says how a replica is that was made.
    async fn compare_replica(
        &self,
        volume: Uuid,
        replica: &Replica,
        known: &ReplicaRecord,
    ) -> Result<(), OpError> {
        let (error, lost) = match self.coordination.told().replica(replica.replica_id) {
            Some(here) => (here.error.clone(), false),
            None => (
                "its data are missing: a drive was lost or replaced".into(),
                true,
            ),
        };
        if (error.as_str(), lost) == (known.error.as_str(), known.lost) {
            return Ok(());
        }
        let key = self.registry.keys().replica(volume, replica.replica_id);
        let record = ReplicaRecord {
            error: error.clone(),
            lost,
            ..known.clone()
        };
        self.registry.put(&key, &record).await?;
        let id = volume.to_string();
        let tag = replica.replica_id.to_string();
        if error.is_empty() {
            return self.clear_alert(AlertKind::VolumeError, &id).await;
        }
        tracing::error!(%volume, replica = tag, error, "a replica cannot be used");
        let message = format!(
            "the replica of volume {volume} on node {} cannot be used ({error}): the volume has one copy less",
            self.node_id()
        );
        self.raise_alert(AlertKind::VolumeError, &id, &tag, Severity::Alarm, message)
            .await
    }

    /// A volume is ready when all its replicas are made; whoever sees it first says so.
    async fn all_made(&self, now: &Now, volume: &Versioned<VolumeRecord>) -> Result<(), OpError> {
        let made = |r: &Replica| {
            let known = now.replicas.get(&r.replica_id);
            known.is_some_and(|k| k.record.made)
        };
        let all = now
            .set
            .as_ref()
            .is_some_and(|s| s.record.replicas.iter().all(made));
        if volume.record.phase != Phase::Creating || !all {
            return Ok(());
        }
        let ready = VolumeRecord {
            phase: Phase::Ready,
            ..volume.record.clone()
        };
        let key = self.registry.keys().volume(now.id);
        // Another node's may be first.
        let done = self
            .registry
            .kv()
            .compare_and_swap(&key, volume.revision, encode(&ready));
        done.await?;
        Ok(())
    }

    /// Deletes what this node has and is not to have.
    pub(super) async fn drop_replicas(&self, now: &Now) -> Result<(), OpError> {
        let goes = now.phase() == Phase::Deleting;
        let restoring = now
            .volume
            .as_ref()
            .is_some_and(|v| v.record.restoring.is_some());
        if restoring && !goes {
            return Ok(());
        }
        let Some(set) = &now.set else {
            if now.volume.is_some() && goes {
                // A clone that was given up before it had replicas.
                return self.forget_if_empty(now).await;
            }
            // Without a record nothing is known of it: it is left alone.
            return Ok(());
        };
        let named = |id: &Uuid| set.record.replica(*id).is_some();
        let leaving = now
            .replicas_on(self.node_id())
            .filter(|r| r.state == ReplicaState::Leaving || goes);
        let mut drop: Vec<Uuid> = leaving.map(|r| r.replica_id).collect();
        let here = self.coordination.told().replicas_of(now.id);
        let mut strays: Vec<Uuid> = here.into_iter().filter(|id| !named(id)).collect();
        let mine = |r: &&Versioned<ReplicaRecord>| r.record.node_id == self.node_id();
        let left = now.replicas.iter().filter(|(id, r)| mine(r) && !named(id));
        strays.extend(left.map(|(id, _)| *id));
        if goes || strays.is_empty() || self.is_verified(&set.record).await? {
            drop.extend(strays);
        }
        drop.sort();
        drop.dedup();
        for replica in drop {
            let known = now.replicas.contains_key(&replica);
            if known || self.coordination.told().replica(replica).is_some() {
                self.remove_replica(now.id, replica, false).await?;
                self.forget_replica(now.id, replica).await?;
            }
        }
        if goes {
            self.forget_if_empty(now).await?;
        }
        Ok(())
    }

    /// Deletes what is here under a replica's id, or all but its snapshots. Its key stays.
    pub(super) async fn remove_replica(
        &self,
        volume: Uuid,
        replica: Uuid,
        keep_snapshots: bool,
    ) -> Result<(), OpError> {
        let request = DeleteReplicaRequest {
            volume_id: volume.to_string(),
            replica_id: replica.to_string(),
            keep_snapshots,
        };
        let _alone = self.coordination.looking.lock().await;
        let what = format!("delete a replica of volume {volume}");
        self.link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.delete_replica(request).await
            })
            .await?;
        self.coordination.told().deleted(replica);
        tracing::info!(%volume, %replica, keep_snapshots, "replica deleted");
        Ok(())
    }

    /// Nothing is here under a replica's id.
    pub(super) async fn forget_replica(&self, volume: Uuid, replica: Uuid) -> Result<(), OpError> {
        let key = self.registry.keys().replica(volume, replica);
        self.registry.kv().delete(key).await?;
        Ok(())
    }

    /// Whether a set means something (rule 10). Of one that a restored KVDB has, replicas that it does not name may be newer than those that it does.
    pub(super) async fn is_verified(&self, set: &ReplicationRecord) -> Result<bool, OpError> {
        let key = self.registry.keys().cluster();
        let cluster = self.registry.get::<ClusterRecord>(&key).await?;
        Ok(cluster.is_some_and(|c| !set.unverified(c.record.generation)))
    }

    /// Takes the records of a volume away whose replicas are all deleted.
    async fn forget_if_empty(&self, now: &Now) -> Result<(), OpError> {
        let (keys, kv) = (self.registry.keys(), self.registry.kv());
        if !kv.list(keys.replicas(now.id)).await?.kvs.is_empty() {
            return Ok(());
        }
        let id = now.id;
        let gone = [
            keys.volume(id),
            keys.replication(id),
            keys.attachment(id),
            keys.cntlids(id),
            keys.reservation(id),
            keys.task(id),
        ];
        kv.commit(vec![], gone.iter().map(Write::delete).collect())
            .await?;
        tracing::info!(volume = %id, nqn = names::subsystem_nqn(self.cluster_id(), id), "nothing of the volume is left");
        Ok(())
    }

    /// Has the data path list its replicas, unless that was done a moment ago.
    pub(crate) async fn look_at_replicas(&self, fresh: Duration) -> Result<(), OpError> {
        let _alone = self.coordination.looking.lock().await;
        let looked = self.coordination.told().looked();
        if looked.is_some_and(|at| Instant::now() - at < fresh) {
            return Ok(());
        }
        let listed = self
            .link
            .call_within(CALL_TIMEOUT, "list replicas", |mut c| async move {
                c.list_replicas(ListReplicasRequest {}).await
            });
        let replicas = listed.await?.replicas;
        self.coordination.told().list(replicas);
        Ok(())
    }
}
