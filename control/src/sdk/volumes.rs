//! Volume.
use super::view::{self, Shown, Viewer, has_labels};
use super::{Services, answer, not_yet, owned, stats};
use crate::auth::{Access, Caller, OwnershipRecord};
use crate::coordination::Kept;
use crate::error::OpError;
use crate::records::{
    Found, SnapshotRecord, VolumeRecord, snapshot_is_there, unix_ms, volume_is_there,
};
use keelblock_api::openstorage::open_storage_volume_server::OpenStorageVolume;
use keelblock_api::openstorage::*;
use keelblock_api::stats::VolumeSnapshot;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tonic::{Request, Response, Status as Refusal};
use uuid::Uuid;

/// What a volume must have to be selected.
pub(super) struct Selection {
    name: String,
    labels: HashMap<String, String>,
    /// Who looks.
    caller: Caller,
    /// Whose it must be, or whom it must be shared with.
    ownership: Option<OwnershipRecord>,
    /// No volume is in a group yet, so one that is asked for selects none.
    none: bool,
}

impl Selection {
    fn new(
        name: String,
        labels: HashMap<String, String>,
        ownership: Option<Ownership>,
        group: Option<Group>,
        caller: Caller,
    ) -> Result<Self, OpError> {
        let ownership = ownership.filter(|o| *o != Ownership::default());
        Ok(Self {
            name,
            labels,
            caller,
            ownership: ownership.map(owned::record).transpose()?,
            none: group.is_some_and(|g| !g.id.is_empty()),
        })
    }

    fn selects(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        of: Option<&OwnershipRecord>,
    ) -> bool {
        let wanted = self.ownership.as_ref();
        !self.none
            && self.caller.may(of, Access::Read)
            && wanted.is_none_or(|filter| owned::matches(filter, of))
            && (self.name.is_empty() || name == self.name)
            && has_labels(labels, &self.labels)
    }
}

/// Volumes and snapshots.
#[derive(Default)]
pub(super) struct Selected {
    pub volumes: Vec<Kept<VolumeRecord>>,
    pub snapshots: Vec<Kept<SnapshotRecord>>,
}

impl Selected {
    fn retain(&mut self, selection: &Selection) {
        self.volumes.retain(|v| {
            selection.selects(
                &v.record.name,
                &v.record.labels,
                v.record.ownership.as_ref(),
            )
        });
        self.snapshots.retain(|s| {
            selection.selects(
                &s.record.name,
                &s.record.labels,
                s.record.ownership.as_ref(),
            )
        });
    }

    fn ids(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(|v| v.record.volume_id.to_string());
        let snapshots = self.snapshots.iter();
        let snapshots = snapshots.map(|s| s.record.snapshot_id.to_string());
        volumes.chain(snapshots).collect()
    }

    pub fn shown(&self) -> Vec<Shown> {
        let volumes = self.volumes.iter().map(|v| (v.record.volume_id, None));
        let snapshots = self.snapshots.iter();
        let snapshots = snapshots.map(|s| view::shown_snapshot(&s.record));
        volumes.chain(snapshots).collect()
    }
}

impl Selection {
    /// Of a list with all that is known.
    pub fn of_list(r: SdkVolumeInspectWithFiltersRequest, caller: Caller) -> Result<Self, OpError> {
        Self::new(r.name, r.labels, r.ownership, r.group, caller)
    }
}

impl Services {
    pub(super) async fn select(&self, selection: Selection) -> Result<Selected, OpError> {
        // There may be thousands, and a name is of one.
        if !selection.name.is_empty() {
            let mut one = Selected::default();
            match self.node().registry.named(&selection.name).await? {
                Some(Found::Volume(v)) => one.volumes.push(Arc::new(v)),
                Some(Found::Snapshot(s)) => one.snapshots.push(Arc::new(s)),
                None => {}
            }
            one.retain(&selection);
            return Ok(one);
        }
        if self.node().sees_now().await? {
            return Ok(self.seen(&selection));
        }
        let registry = &self.node().registry;
        let volumes = registry.list(&registry.keys().volumes()).await?;
        let snapshots = registry.list(&registry.keys().snapshots()).await?;
        let mut all = Selected {
            volumes: volumes.into_iter().map(Arc::new).collect(),
            snapshots: snapshots.into_iter().map(Arc::new).collect(),
        };
        all.volumes.retain(|v| volume_is_there(&v.record));
        all.snapshots.retain(|s| snapshot_is_there(&s.record));
        all.retain(&selection);
        Ok(all)
    }

    /// From what is seen, in the order of ids as the KVDB has it.
    fn seen(&self, selection: &Selection) -> Selected {
        let seen = self.node().coordination.seen();
        let volume = |v: &&Kept<VolumeRecord>| {
            let v = &v.record;
            volume_is_there(v) && selection.selects(&v.name, &v.labels, v.ownership.as_ref())
        };
        let snapshot = |s: &&Kept<SnapshotRecord>| {
            let s = &s.record;
            snapshot_is_there(s) && selection.selects(&s.name, &s.labels, s.ownership.as_ref())
        };
        let mut all = Selected {
            volumes: seen.volumes().filter(volume).cloned().collect(),
            snapshots: seen.snapshots().filter(snapshot).cloned().collect(),
        };
        drop(seen);
        all.volumes.sort_unstable_by_key(|v| v.record.volume_id);
        all.snapshots.sort_unstable_by_key(|s| s.record.snapshot_id);
        all
    }

    /// Names by id; empty while the KVDB does not answer.
    pub(crate) async fn volume_names(&self) -> HashMap<Uuid, String> {
        let volumes = self.node().registry.volumes().await.unwrap_or_default();
        volumes.into_iter().map(|v| (v.volume_id, v.name)).collect()
    }

    async fn volume_stats(&self, request: SdkVolumeStatsRequest) -> Result<Stats, OpError> {
        let record = self
            .node()
            .registry
            .volume(&request.volume_id)
            .await?
            .record;
        // Counters of a data path that does not answer would be old.
        let hello = self.node().link.up()?;
        let viewer = Viewer::new(self.node(), &[(record.volume_id, None)]).await?;
        let used = viewer.used(&record).unwrap_or(0);
        let page = self.node().link.stats();
        let uptime_ms = unix_ms().saturating_sub(hello.started_unix_ms);
        if request.not_cumulative {
            return Ok(self.baselines.since_last(
                record.volume_id,
                page.as_deref(),
                used,
                uptime_ms,
            ));
        }
        let counters = page
            .and_then(|p| p.volume(record.volume_id.into_bytes()))
            .unwrap_or_default();
        Ok(stats::stats(
            &counters,
            &VolumeSnapshot::default(),
            used,
            uptime_ms,
        ))
    }
}

#[tonic::async_trait]
impl OpenStorageVolume for Services {
    async fn create(
        &self,
        request: Request<SdkVolumeCreateRequest>,
    ) -> Result<Response<SdkVolumeCreateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let mut wish = self.rules.wish(request.into_inner())?;
        wish.ownership = caller.owns_new(wish.ownership)?;
        self.not_anothers(&caller, &wish.name).await?;
        let made = self.to_the_end(|node| async move { node.create_volume(wish).await });
        let volume_id = self.made_by(&caller, made.await?).await?;
        Ok(Response::new(SdkVolumeCreateResponse { volume_id }))
    }

    async fn delete(
        &self,
        request: Request<SdkVolumeDeleteRequest>,
    ) -> Result<Response<SdkVolumeDeleteResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let volume = request.into_inner().volume_id;
        let volume = match self.allowed(&caller, &volume, Access::Admin).await {
            // What does not exist is deleted already.
            Err(OpError::NotFound { .. }) => {
                return Ok(Response::new(SdkVolumeDeleteResponse {}));
            }
            allowed => allowed?,
        };
        let deleted = self
            .to_the_end(|node| async move { node.delete_volume(&volume).await })
            .await;
        answer(deleted.map(|()| SdkVolumeDeleteResponse {}))
    }

    async fn inspect(
        &self,
        request: Request<SdkVolumeInspectRequest>,
    ) -> Result<Response<SdkVolumeInspectResponse>, Refusal> {
        let name = &request.get_ref().volume_id;
        let found = self.node().registry.find("volume_id", name).await?;
        let found = found.ok_or_else(|| OpError::no_volume(name))?;
        let caller = self.caller(&request)?;
        caller.must(owned::ownership(&found), Access::Read, name)?;
        let viewer = Viewer::new(self.node(), &[view::shown(&found)]).await;
        answer(viewer.map(|viewer| viewer.found(&found)))
    }

    async fn inspect_with_filters(
        &self,
        request: Request<SdkVolumeInspectWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeInspectWithFiltersResponse>, Refusal> {
        // Over the wire it is `lists` that answers.
        let caller = self.caller(&request)?;
        let listed = self.listed(request.into_inner(), caller).await?;
        SdkVolumeInspectWithFiltersResponse::decode(listed.bytes())
            .map(Response::new)
            .map_err(|error| Refusal::internal(error.to_string()))
    }

    async fn enumerate(
        &self,
        request: Request<SdkVolumeEnumerateRequest>,
    ) -> Result<Response<SdkVolumeEnumerateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let all = Selection::new(String::new(), HashMap::new(), None, None, caller)?;
        let selected = self.select(all).await;
        answer(selected.map(|all| SdkVolumeEnumerateResponse {
            volume_ids: all.ids(),
        }))
    }

    async fn enumerate_with_filters(
        &self,
        request: Request<SdkVolumeEnumerateWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeEnumerateWithFiltersResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let r = request.into_inner();
        let wanted = Selection::new(r.name, r.labels, r.ownership, r.group, caller)?;
        let selected = self.select(wanted).await;
        answer(selected.map(|all| SdkVolumeEnumerateWithFiltersResponse {
            volume_ids: all.ids(),
        }))
    }

    async fn update(
        &self,
        request: Request<SdkVolumeUpdateRequest>,
    ) -> Result<Response<SdkVolumeUpdateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let mut change = self.rules.change(request)?;
        let volume = self.allowed(&caller, &volume, Access::Write).await?;
        if let Some(wish) = &mut change.ownership {
            wish.caller = caller;
        }
        answer(
            self.to_the_end(|node| async move { node.update_volume(&volume, change).await })
                .await
                .map(|()| SdkVolumeUpdateResponse {}),
        )
    }

    async fn stats(
        &self,
        request: Request<SdkVolumeStatsRequest>,
    ) -> Result<Response<SdkVolumeStatsResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        let volume = self.allowed(&caller, &request.volume_id, Access::Read);
        request.volume_id = volume.await?;
        let stats = self.volume_stats(request).await;
        answer(stats.map(|stats| SdkVolumeStatsResponse { stats: Some(stats) }))
    }

    async fn capacity_usage(
        &self,
        request: Request<SdkVolumeCapacityUsageRequest>,
    ) -> Result<Response<SdkVolumeCapacityUsageResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let volume = &request.get_ref().volume_id;
        let volume = self.allowed(&caller, volume, Access::Read).await?;
        let capacity = self.capacity(&volume).await;
        answer(capacity.map(|info| SdkVolumeCapacityUsageResponse {
            capacity_usage_info: Some(info),
        }))
    }

    async fn clone(
        &self,
        request: Request<SdkVolumeCloneRequest>,
    ) -> Result<Response<SdkVolumeCloneResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let SdkVolumeCloneRequest {
            name,
            parent_id,
            additional_labels,
        } = request.into_inner();
        let labels = additional_labels.into_iter().collect();
        let parent_id = self.allowed(&caller, &parent_id, Access::Read).await?;
        self.not_anothers(&caller, &name).await?;
        let by = caller.clone();
        let cloned = self.to_the_end(|node| async move {
            node.clone_volume(name, &parent_id, labels, &by).await
        });
        let volume_id = self.made_by(&caller, cloned.await?).await?;
        Ok(Response::new(SdkVolumeCloneResponse { volume_id }))
    }

    async fn snapshot_create(
        &self,
        request: Request<SdkVolumeSnapshotCreateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotCreateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        let volume = self.allowed(&caller, &request.volume_id, Access::Read);
        request.volume_id = volume.await?;
        let taken = self.take_snapshot(request).await;
        answer(taken.map(|id| SdkVolumeSnapshotCreateResponse {
            snapshot_id: id.to_string(),
        }))
    }

    async fn snapshot_restore(
        &self,
        request: Request<SdkVolumeSnapshotRestoreRequest>,
    ) -> Result<Response<SdkVolumeSnapshotRestoreResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let SdkVolumeSnapshotRestoreRequest {
            volume_id,
            snapshot_id,
        } = request.into_inner();
        let volume_id = self.allowed(&caller, &volume_id, Access::Write).await?;
        let snapshot_id = self.allowed(&caller, &snapshot_id, Access::Read).await?;
        let restored = self
            .to_the_end(|node| async move { node.restore_volume(&volume_id, &snapshot_id).await });
        answer(restored.await.map(|()| SdkVolumeSnapshotRestoreResponse {}))
    }

    async fn snapshot_enumerate(
        &self,
        request: Request<SdkVolumeSnapshotEnumerateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotEnumerateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let volume = &request.get_ref().volume_id;
        let found = self.snapshots_of(volume, &HashMap::new(), &caller).await;
        answer(found.map(|found| SdkVolumeSnapshotEnumerateResponse {
            volume_snapshot_ids: snapshot_ids(&found),
        }))
    }

    async fn snapshot_enumerate_with_filters(
        &self,
        request: Request<SdkVolumeSnapshotEnumerateWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeSnapshotEnumerateWithFiltersResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let r = request.get_ref();
        let found = self.snapshots_of(&r.volume_id, &r.labels, &caller).await;
        answer(
            found.map(|found| SdkVolumeSnapshotEnumerateWithFiltersResponse {
                volume_snapshot_ids: snapshot_ids(&found),
            }),
        )
    }

    async fn snapshot_schedule_update(
        &self,
        request: Request<SdkVolumeSnapshotScheduleUpdateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotScheduleUpdateResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (volume, policies) = (request.volume_id, request.snapshot_schedule_names);
        let volume = self.allowed(&caller, &volume, Access::Write).await?;
        let set =
            self.to_the_end(
                |node| async move { node.set_schedule(&volume, policies, unix_ms()).await },
            );
        let set = set.await;
        answer(set.map(|()| SdkVolumeSnapshotScheduleUpdateResponse {}))
    }

    async fn volume_catalog(
        &self,
        _: Request<SdkVolumeCatalogRequest>,
    ) -> Result<Response<SdkVolumeCatalogResponse>, Refusal> {
        not_yet("OpenStorageVolume.VolumeCatalog")
    }
}

fn snapshot_ids(snapshots: &[SnapshotRecord]) -> Vec<String> {
    snapshots
        .iter()
        .map(|s| s.snapshot_id.to_string())
        .collect()
}
