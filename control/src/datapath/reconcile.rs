//! Making the data path hold what the KVDB says, after either side has been away. Every command is idempotent, so that this may be
//! interrupted anywhere and done again.
//!
//! | the KVDB says | the data path has | then |
//! | --- | --- | --- |
//! | creating | anything | create, then ready |
//! | deleting | anything | delete, then forget the records |
//! | ready | nothing, on a memory pool | create it empty: memory is lost at the end, as it says |
//! | ready | nothing, on drives | the volume is in error: its data are missing, and empty ones would be wrong ones |
//! | ready | smaller | grow it |
//! | ready | larger | a resize was interrupted: the record follows |
//! | ready | with lanes that are lost | the volume is in error |
//! | ready, being set back | anything | set back, then as it says |
//! | nothing | a volume | it is reported and left alone |
//! | snapshots of a group creating | all of them | ready |
//! | snapshots of a group creating | some, or none | those that are there are deleted, and all forgotten: nobody was told that they exist |
//! | snapshot deleting | anything | delete, then forget the record |
//! | snapshot ready | nothing, or incomplete | it is in error; on a memory pool it is forgotten |
//! | nothing | a snapshot | it is deleted: it exists only when a record names it |
//! | attached | anything | export |
//! | not attached | a subsystem of this cluster | unexport |
//!
//! Of replicated volumes `coordination` does all of this.
use crate::error::OpError;
use crate::names;
use crate::node::Node;
use crate::records::{AttachmentRecord, Phase, SnapshotRecord, VolumeRecord};
use keelblock_api::datapath::{
    CreateVolumeRequest, Lane, ListSnapshotsRequest, ListSubsystemsRequest, ListVolumesRequest,
    ResizeVolumeRequest, Snapshot, Volume,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use uuid::Uuid;

impl Node {
    /// Applies volumes and exports. An error means that the data path or the KVDB went away meanwhile.
    pub(super) async fn reconcile(&self) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        // What is being put back would be taken for what is not there.
        self.no_restore().await?;
        self.reconcile_volumes().await?;
        self.reconcile_snapshots().await?;
        self.reconcile_exports().await
    }

    async fn reconcile_volumes(&self) -> Result<(), OpError> {
        let listed = self
            .link
            .call("list volumes", |mut c| async move {
                c.list_volumes(ListVolumesRequest::default()).await
            })
            .await?;
        let mut found: HashMap<Uuid, Volume> = HashMap::new();
        for volume in listed.volumes {
            match Uuid::try_parse(&volume.volume_id) {
                Ok(id) => drop(found.insert(id, volume)),
                Err(_) => tracing::warn!(
                    volume = volume.volume_id,
                    "the data path has a volume whose id is none"
                ),
            }
        }
        for record in self
            .registry
            .list::<VolumeRecord>(&self.registry.keys().volumes())
            .await?
        {
            let record = record.record;
            if record.node_id != self.node_id() {
                continue;
            }
            let there = found.remove(&record.volume_id);
            match self.reconcile_volume(&record, there.as_ref()).await {
                Ok(()) => {}
                // The data path or the KVDB is gone: there is no use in going on.
                Err(error) if error.is_uncertain() => return Err(error),
                Err(error) => {
                    tracing::error!(volume = record.name, id = %record.volume_id, %error, "a volume cannot be restored")
                }
            }
        }
        for (id, volume) in found {
            tracing::warn!(%id, bytes = volume.size_bytes, "the data path has a volume that the KVDB does not know; it is left alone");
        }
        Ok(())
    }

    async fn reconcile_volume(
        &self,
        record: &VolumeRecord,
        there: Option<&Volume>,
    ) -> Result<(), OpError> {
        match (record.phase, there) {
            (Phase::Creating, _) => self.finish_create(record).await,
            (Phase::Deleting, _) => self.finish_delete(record).await,
            // Of replicated volumes only.
            (Phase::Kept, _) => Ok(()),
            (Phase::Ready, Some(there)) => {
                if let Some(snapshot) = record.restoring {
                    return self.finish_restore(record, snapshot, true).await;
                }
                self.reconcile_size(record, there.size_bytes).await?;
                self.set_volume_error(record, &lost_lanes(there)).await
            }
            (Phase::Ready, None) if self.is_memory(record.pool_id) => {
                tracing::warn!(
                    volume = record.name,
                    "made again, empty: it was in memory, which ended with the data path"
                );
                let request = create_request(record);
                self.link
                    .call("create volume", |mut c| async move {
                        c.create_volume(request).await
                    })
                    .await?;
                self.change_volume(record.volume_id, |r| Ok(r.restoring.take().is_some()))
                    .await?;
                self.set_volume_error(record, "").await
            }
            (Phase::Ready, None) => {
                let error = format!(
                    "its data are missing from pool {}: a drive was lost or replaced",
                    record.pool_id
                );
                tracing::error!(volume = record.name, error, "volume in error");
                self.set_volume_error(record, &error).await
            }
        }
    }

    async fn reconcile_size(&self, record: &VolumeRecord, there: u64) -> Result<(), OpError> {
        if there < record.size_bytes {
            let request = ResizeVolumeRequest {
                volume_id: record.volume_id.to_string(),
                size_bytes: record.size_bytes,
            };
            self.link
                .call("resize volume", |mut c| async move {
                    c.resize_volume(request).await
                })
                .await?;
        } else if there > record.size_bytes {
            self.record_size(record.volume_id, there).await?;
        } else if record.asked_bytes.is_some() {
            // It did not come to that: whoever wanted it larger asks again.
            self.asks_no_more(record.volume_id).await?;
        }
        Ok(())
    }

    async fn reconcile_snapshots(&self) -> Result<(), OpError> {
        let listed = self.link.call("list snapshots", |mut c| async move {
            c.list_snapshots(ListSnapshotsRequest::default()).await
        });
        let listed = match listed.await {
            Ok(reply) => reply.snapshots,
            Err(error) if error.is_uncertain() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "snapshots cannot be looked at");
                return Ok(());
            }
        };
        let mut found: HashMap<String, Snapshot> = listed
            .into_iter()
            .map(|s| (s.snapshot_id.clone(), s))
            .collect();
        let key = self.registry.keys().snapshots();
        let mut creating: BTreeMap<Uuid, Vec<SnapshotRecord>> = BTreeMap::new();
        for record in self.registry.list::<SnapshotRecord>(&key).await? {
            let record = record.record;
            if record.node_id != self.node_id() {
                continue;
            }
            let there = found.get(&record.snapshot_id.to_string());
            let done = match record.phase {
                Phase::Creating => {
                    creating.entry(record.group).or_default().push(record);
                    continue;
                }
                Phase::Deleting => self.finish_delete_snapshot(&record).await,
                Phase::Kept => Ok(()),
                Phase::Ready => self.reconcile_snapshot(&record, there).await,
            };
            found.remove(&record.snapshot_id.to_string());
            self.go_on(done, &record.name)?;
        }
        for group in creating.into_values() {
            let whole = |r: &SnapshotRecord| {
                let there = found.get(&r.snapshot_id.to_string());
                there.is_some_and(|s| s.complete)
            };
            let done = match group.iter().all(whole) {
                true => self.snapshots_ready(&group).await,
                false => self.undo_snapshots(&group).await,
            };
            for record in &group {
                found.remove(&record.snapshot_id.to_string());
            }
            self.go_on(done, &group[0].name)?;
        }
        // Those of replicated volumes stay while there is no replica here, as one may be made of them (`coordination`).
        let replicated = self.replicated_volumes().await?;
        for (id, snapshot) in found {
            let (Ok(volume), Ok(id)) = (Uuid::try_parse(&snapshot.volume_id), Uuid::try_parse(&id))
            else {
                tracing::warn!(id, "the data path has a snapshot whose id is none");
                continue;
            };
            if replicated.contains(&volume) {
                continue;
            }
            tracing::warn!(%id, %volume, "the data path has a snapshot that the KVDB does not know; it is deleted");
            let done = self.drop_snapshot(&id.to_string(), volume, id).await;
            self.go_on(done, &id.to_string())?;
        }
        Ok(())
    }

    /// An error of one thing does not keep the others from being looked at, unless the data path or the KVDB is gone.
    fn go_on(&self, done: Result<(), OpError>, name: &str) -> Result<(), OpError> {
        match done {
            Err(error) if error.is_uncertain() => Err(error),
            Err(error) => {
                tracing::error!(name, %error, "a snapshot cannot be brought up to its record");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn undo_snapshots(&self, group: &[SnapshotRecord]) -> Result<(), OpError> {
        for record in group {
            tracing::warn!(
                snapshot = record.name,
                "taking it was interrupted: it is not there"
            );
            self.finish_delete_snapshot(record).await?;
        }
        Ok(())
    }

    async fn reconcile_snapshot(
        &self,
        record: &SnapshotRecord,
        there: Option<&Snapshot>,
    ) -> Result<(), OpError> {
        let error = match there {
            Some(there) if there.complete => String::new(),
            None if self.is_memory(record.pool_id) => {
                tracing::warn!(
                    snapshot = record.name,
                    "forgotten: it was in memory, which ended with the data path"
                );
                return self.forget_snapshot(record).await;
            }
            _ => format!(
                "its data are missing from pool {}: a drive failed, or was lost or replaced",
                record.pool_id
            ),
        };
        self.set_snapshot_error(record, &error).await
    }

    async fn reconcile_exports(&self) -> Result<(), OpError> {
        let attachments = self.registry.attachments().await?;
        // Replicated volumes are looked after by their actors (`coordination`): what hosts have of them is not disturbed here.
        let replicated = self.replicated_volumes().await?;
        let is_mine = |a: &&AttachmentRecord| {
            a.node_id == self.node_id() && !replicated.contains(&a.volume_id)
        };
        let mine = attachments.iter().filter(is_mine);
        let wanted: BTreeSet<Uuid> = mine.map(|a| a.subsystem_of).collect();
        for subsystem in &wanted {
            match self.apply_export(*subsystem).await {
                Ok(()) => {}
                // The data path or the KVDB is gone: there is no use in going on.
                Err(error) if error.is_uncertain() => return Err(error),
                Err(error) => {
                    tracing::error!(volume = %subsystem, %error, "a volume cannot be exported")
                }
            }
        }
        let listed = self.link.call("list subsystems", |mut c| async move {
            c.list_subsystems(ListSubsystemsRequest {}).await
        });
        for subsystem in listed.await?.subsystems {
            let nqn = subsystem.config.unwrap_or_default().nqn;
            let ours = names::volume_of_nqn(self.cluster_id(), &nqn);
            if ours.is_some_and(|id| !wanted.contains(&id) && !replicated.contains(&id)) {
                tracing::info!(nqn, "no longer attached: its export ends");
                self.unexport(nqn).await?;
            }
        }
        Ok(())
    }
}

impl Node {
    async fn replicated_volumes(&self) -> Result<BTreeSet<Uuid>, OpError> {
        let prefix = self.registry.keys().volumes();
        let volumes = self.registry.list::<VolumeRecord>(&prefix).await?;
        let volumes = volumes.into_iter().map(|v| v.record);
        let replicated = volumes.filter(|v| v.replicated.is_some());
        Ok(replicated.map(|v| v.volume_id).collect())
    }
}

/// What is wrong with a volume's lanes; empty: nothing.
fn lost_lanes(volume: &Volume) -> String {
    let bad: Vec<&Lane> = volume
        .lanes
        .iter()
        .filter(|l| !l.error.is_empty())
        .collect();
    match bad.first() {
        None => String::new(),
        Some(first) => format!(
            "{} of its {} lanes cannot be used: {}",
            bad.len(),
            volume.lanes.len(),
            first.error
        ),
    }
}

/// The command that makes a volume's space.
pub(crate) fn create_request(record: &VolumeRecord) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_id: record.volume_id.to_string(),
        pool_id: record.pool_id.to_string(),
        size_bytes: record.size_bytes,
    }
}
