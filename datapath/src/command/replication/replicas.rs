//! This node's replicas: made, grown, deleted, listed, and served to whoever coordinates their volumes.

use keelblock_api::datapath as proto;
use uuid::Uuid;

use super::super::{CommandError, Commander};
use super::{Here, Replication};
use crate::reactor::ReactorId;
use crate::replication::replica::LEASE_LONGEST;
use crate::replication::replica::service::{Identity, Replica};
use crate::replication::replica::state::State;
use crate::replication::seam::Id;
use crate::store::engine::{self, Store};
use crate::store::pool::{PoolError, PoolView, PoolVolume, check_size, place};
use crate::store::types::SnapshotId;
use crate::store::{Name, VolumeId};
use crate::volume::Lanes;

/// A replica to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewReplica {
    /// Of this volume.
    pub volume: VolumeId,
    /// Its id.
    pub replica: Id,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Lanes of the volume.
    pub lanes: u32,
    /// The volume is encrypted.
    pub encrypted: bool,
    /// What its lanes are; `None`: empty.
    pub source: Option<(VolumeId, SnapshotId)>,
}

impl Commander {
    /// Makes a replica and serves it.
    pub async fn create_replica(
        &self,
        pool: Name,
        new: NewReplica,
    ) -> Result<proto::Replica, CommandError> {
        let replication = self.replication()?;
        check_size(new.size_bytes)?;
        let lanes = u8::try_from(new.lanes).ok().and_then(Lanes::of_count);
        let lanes = lanes.ok_or_else(|| {
            CommandError::field("lanes", format!("{}: a volume has 1 or 16", new.lanes))
        })?;
        let pools = self.pools.lock().await;
        self.in_no_other_pool(new.volume, &pool)?;
        let names = pools.get(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let found = view.volume(new.volume);
        match &found {
            Some(volume) if !volume.replica => {
                return Err(CommandError::NotReplicated(new.volume));
            }
            Some(volume) => self.is_replica(&view, volume, new.replica)?,
            None => {}
        }
        if found.as_ref().is_none_or(|v| v.places().is_err()) {
            view.whole()?;
            match new.source {
                Some(source) => self.clone_replica(&view, source, lanes, new).await?,
                None => self.make_replica(&view, found.as_ref(), lanes, new).await?,
            }
        }
        let view = self.look(&pool, names).await;
        self.serve_replica(replication, &view, new.volume).await?;
        self.replica_to(replication, &view, new.volume)
    }

    /// Whether what is here of a volume is this replica.
    fn is_replica(
        &self,
        view: &PoolView,
        volume: &PoolVolume,
        wanted: Id,
    ) -> Result<(), CommandError> {
        match self.replica_id(view, volume.id) {
            Some(found) if found != wanted => Err(CommandError::OtherReplica {
                volume: volume.id,
                found: Uuid::from_bytes(found),
            }),
            _ => Ok(()),
        }
    }

    async fn make_replica(
        &self,
        view: &PoolView,
        found: Option<&PoolVolume>,
        lanes: Lanes,
        new: NewReplica,
    ) -> Result<(), CommandError> {
        let hub = self.registry.hub();
        let mut here = view.clone();
        here.drives.retain(|drive| {
            let home = drive.number.map(|number| hub.home_of(number));
            home == Some(ReactorId(0))
        });
        let there = |lane: u8| {
            found.is_some_and(|v| v.lanes.get(usize::from(lane)).is_some_and(Option::is_some))
        };
        let missing = (0..lanes.count() as u8).filter(|lane| !there(*lane));
        let missing: Vec<u8> = missing.collect();
        let each = new.size_bytes / lanes.count() as u64;
        let mut drives: Vec<(Store, Vec<u8>)> = Vec::new();
        for (at, lanes) in place(&here, &missing, each)? {
            let store = here.drives[at].number.and_then(|number| hub.store(number));
            let store = store.ok_or_else(|| PoolError::NoDrive {
                pool: view.id.clone(),
            })?;
            drives.push((store, lanes));
        }
        let (count, size) = (lanes.count() as u8, (new.size_bytes, new.encrypted));
        let made = engine::Replica::create(&drives, new.volume, new.replica, count, size);
        made.await.map_err(|source| CommandError::Store {
            drive: view.id.clone(),
            source,
        })
    }

    /// Makes a replica of a snapshot that another replica in the pool has: on the drives that have its lanes, sharing blocks.
    async fn clone_replica(
        &self,
        view: &PoolView,
        (from, id): (VolumeId, SnapshotId),
        lanes: Lanes,
        new: NewReplica,
    ) -> Result<(), CommandError> {
        let none = || PoolError::NoSnapshot {
            volume: from,
            snapshot: id,
        };
        let snapshot = view.snapshot(from, id).ok_or_else(none)?;
        if !snapshot.complete() {
            let (volume, snapshot) = (from, id);
            return Err(PoolError::Partial { volume, snapshot }.into());
        }
        if snapshot.lanes.len() != lanes.count() {
            let why = format!("{}: the snapshot has {}", new.lanes, snapshot.lanes.len());
            return Err(CommandError::field("lanes", why));
        }
        let hub = self.registry.hub();
        let mut stores = Vec::new();
        for place in snapshot.drives() {
            let number = view.drives[place].number;
            let number = number.filter(|number| hub.home_of(*number) == ReactorId(0));
            let store = number.and_then(|number| hub.store(number));
            stores.push(store.ok_or_else(|| PoolError::NoDrive {
                pool: view.id.clone(),
            })?);
        }
        let to = (new.volume, new.replica, new.size_bytes);
        let made = engine::Replica::create_of(&stores, (from, id), to).await;
        made.map_err(|source| CommandError::Store {
            drive: view.id.clone(),
            source,
        })
    }

    /// Serves a replica to coordinators; one that is served stays so.
    async fn serve_replica(
        &self,
        replication: &Replication,
        view: &PoolView,
        volume: VolumeId,
    ) -> Result<(), CommandError> {
        if replication.replicas.borrow().contains_key(&volume) {
            return Ok(());
        }
        let opened = engine::Replica::open(&self.stores_of(view, volume), volume);
        let store = match opened {
            Ok(store) => store,
            Err(source) => {
                let mut errors = replication.errors.borrow_mut();
                errors.insert(volume, source.to_string());
                return Err(CommandError::Replica { volume, source });
            }
        };
        let identity = Identity {
            volume: volume.0,
            replica: store.id(),
        };
        let served = Replica::start(&self.handle, store, identity, true, LEASE_LONGEST);
        replication.node.replicas().add(identity, served.clone());
        let here = Here {
            replica: identity.replica,
            served,
        };
        replication.errors.borrow_mut().remove(&volume);
        replication.replicas.borrow_mut().insert(volume, here);
        Ok(())
    }

    /// Serves the replicas of a pool that was opened.
    pub(in super::super) async fn serve_replicas(&self, view: &PoolView) {
        let all = view.volumes().into_values().filter(|v| v.replica);
        for volume in all.map(|v| v.id) {
            let served = match &self.replication {
                Some(replication) => self.serve_replica(replication, view, volume).await,
                None => Err(CommandError::NoReplication),
            };
            if let Err(error) = served {
                tracing::error!(%volume, %error, "a replica is not served");
            }
        }
    }

    /// The stores of the pool's drives that are at home on this reactor, and have something of a volume.
    fn stores_of(&self, view: &PoolView, volume: VolumeId) -> Vec<Store> {
        let hub = self.registry.hub();
        let open = view.drives.iter().filter_map(|d| hub.store(d.number?));
        open.filter(|s| s.replica(volume).is_some() || s.lanes().iter().any(|l| l.volume == volume))
            .collect()
    }

    /// Those, and drives that have only snapshots of it.
    fn stores_with(&self, view: &PoolView, volume: VolumeId) -> Vec<Store> {
        let hub = self.registry.hub();
        let open = view.drives.iter().filter_map(|d| hub.store(d.number?));
        let with = self.stores_of(view, volume);
        let has = |s: &Store| with.iter().any(|w| w.is(s)) || !s.snapshots_of(volume).is_empty();
        open.filter(has).collect()
    }

    fn replica_id(&self, view: &PoolView, volume: VolumeId) -> Option<Id> {
        let stores = self.stores_of(view, volume);
        stores
            .iter()
            .find_map(|s| s.replica(volume))
            .map(|r| r.replica)
    }

    /// Grows a replica.
    pub async fn resize_replica(
        &self,
        volume: VolumeId,
        replica: Id,
        size_bytes: u64,
    ) -> Result<proto::Replica, CommandError> {
        let replication = self.replication()?;
        check_size(size_bytes)?;
        let pools = self.pools.lock().await;
        let pool = self.pool_of(volume)?;
        let names = pools.get(&pool).ok_or(CommandError::NoVolume(volume))?;
        let view = self.look(&pool, names).await;
        let found = view.volume(volume).filter(|v| v.replica);
        let found = found.ok_or(CommandError::NoVolume(volume))?;
        self.is_replica(&view, &found, replica)?;
        if size_bytes < found.size_bytes {
            return Err(PoolError::Shrink {
                volume,
                size_bytes: found.size_bytes,
            }
            .into());
        }
        for store in self.stores_of(&view, volume) {
            let grown = store.resize(volume, size_bytes).await;
            grown.map_err(|source| CommandError::Store {
                drive: pool.clone(),
                source,
            })?;
        }
        let view = self.look(&pool, names).await;
        self.replica_to(replication, &view, volume)
    }

    /// Deletes a replica, with all of its data, or but for its snapshots. Unknown succeeds.
    pub async fn delete_replica(
        &self,
        volume: VolumeId,
        replica: Id,
        keep_snapshots: bool,
    ) -> Result<(), CommandError> {
        let replication = self.replication()?;
        let pools = self.pools.lock().await;
        for (pool, names) in pools.iter() {
            let view = self.look(pool, names).await;
            // Without a replica there may be snapshots of the one that was deleted; or what is here is no replica's.
            let other = match self.replica_id(&view, volume) {
                Some(found) => found != replica,
                None => keep_snapshots || view.volume(volume).is_some(),
            };
            let stores = self.stores_with(&view, volume);
            if other || stores.is_empty() {
                continue;
            }
            let served = replication.replicas.borrow_mut().remove(&volume);
            if let Some(here) = served {
                let identity = Identity {
                    volume: volume.0,
                    replica: here.replica,
                };
                replication.node.replicas().remove(identity);
                here.served.stop().await;
            }
            replication.errors.borrow_mut().remove(&volume);
            for store in stores {
                let deleted = engine::Replica::remove(&store, volume, keep_snapshots).await;
                deleted.map_err(|source| CommandError::Store {
                    drive: pool.clone(),
                    source,
                })?;
            }
            self.look(pool, names).await;
        }
        Ok(())
    }

    /// All replicas of this node.
    pub async fn list_replicas(&self) -> Result<Vec<proto::Replica>, CommandError> {
        let replication = self.replication()?;
        self.look_at_all().await;
        let views: Vec<PoolView> = self.seen.borrow().values().cloned().collect();
        let mut all = Vec::new();
        for view in &views {
            let replicas = view.volumes().into_values().filter(|v| v.replica);
            for volume in replicas.map(|v| v.id) {
                all.push(self.replica_to(replication, view, volume)?);
            }
        }
        Ok(all)
    }

    fn heard_ms(&self, replication: &Replication, id: VolumeId) -> Option<u32> {
        let replicas = replication.replicas.borrow();
        let at = replicas.get(&id)?.served.with_state(State::heard)?;
        let ago = self.handle.now().since(at).as_millis();
        Some(u32::try_from(ago).unwrap_or(u32::MAX))
    }

    fn replica_to(
        &self,
        replication: &Replication,
        view: &PoolView,
        id: VolumeId,
    ) -> Result<proto::Replica, CommandError> {
        let volume = view.volume(id).ok_or(CommandError::NoVolume(id))?;
        let stores = self.stores_of(view, id);
        let entries = || stores.iter().filter_map(|s| s.replica(id));
        let promised = entries().map(|e| e.epoch).max();
        let replica = entries().next().map(|e| e.replica).unwrap_or_default();
        let resyncing = entries().any(|e| e.state == engine::ReplicaState::Resyncing);
        let error = replication.errors.borrow().get(&id).cloned();
        let failed = || {
            let latched = stores.iter().any(Store::failed);
            latched.then(|| "a drive of it failed, and takes no more writes".to_owned())
        };
        let error = error.or_else(failed);
        Ok(proto::Replica {
            volume_id: id.to_string(),
            replica_id: Uuid::from_bytes(replica).to_string(),
            pool_id: view.id.to_string(),
            size_bytes: volume.size_bytes,
            lanes: volume.lanes.len() as u32,
            used_bytes: volume.used_bytes,
            promised_epoch: promised.unwrap_or(0),
            resyncing,
            error: error.unwrap_or_default(),
            heard_ms: self.heard_ms(replication, id),
        })
    }
}
