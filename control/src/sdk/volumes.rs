//! Volume.
use super::view::Viewer;
use super::{Services, answer, not_yet, stats};
use crate::error::OpError;
use crate::records::{VolumeRecord, unix_ms};
use keelblock_api::openstorage::open_storage_volume_server::OpenStorageVolume;
use keelblock_api::openstorage::*;
use keelblock_api::stats::VolumeSnapshot;
use std::collections::HashMap;
use tonic::{Request, Response, Status as Refusal};
use uuid::Uuid;

/// What a volume must have to be selected.
struct Selection {
    name: String,
    labels: HashMap<String, String>,
    /// No volume is in a group yet, so one that is asked for selects none.
    none: bool,
}

impl Selection {
    fn new(
        name: String,
        labels: HashMap<String, String>,
        ownership: Option<Ownership>,
        group: Option<Group>,
    ) -> Result<Self, OpError> {
        if ownership.is_some_and(|o| o != Ownership::default()) {
            return Err(OpError::Unsupported {
                field: "ownership".into(),
                why: " by this version: volumes have no owners",
            });
        }
        Ok(Self {
            name,
            labels,
            none: group.is_some_and(|g| !g.id.is_empty()),
        })
    }

    fn selects(&self, record: &VolumeRecord) -> bool {
        !self.none
            && (self.name.is_empty() || record.name == self.name)
            && self
                .labels
                .iter()
                .all(|(key, value)| record.labels.get(key) == Some(value))
    }
}

impl Services {
    async fn select(&self, selection: Selection) -> Result<Vec<VolumeRecord>, OpError> {
        let mut volumes = self.node().registry.volumes().await?;
        volumes.retain(|record| selection.selects(record));
        Ok(volumes)
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
        let used = Viewer::new(self.node()).await?.used(&record).unwrap_or(0);
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

    async fn capacity(&self, volume: &str) -> Result<CapacityUsageInfo, OpError> {
        let record = self.node().registry.volume(volume).await?.record;
        self.node().link.up()?;
        let used = Viewer::new(self.node()).await?.used(&record);
        let unknown = || {
            OpError::Unavailable(format!(
                "the data path does not say how much volume {} uses: try again",
                record.name
            ))
        };
        let used = used.ok_or_else(unknown)?.min(i64::MAX as u64) as i64;
        Ok(CapacityUsageInfo {
            exclusive_bytes: used,
            shared_bytes: 0,
            total_bytes: used,
        })
    }
}

#[tonic::async_trait]
impl OpenStorageVolume for Services {
    async fn create(
        &self,
        request: Request<SdkVolumeCreateRequest>,
    ) -> Result<Response<SdkVolumeCreateResponse>, Refusal> {
        let wish = self.rules.wish(request.into_inner())?;
        let id = self
            .to_the_end(|node| async move { node.create_volume(wish).await })
            .await;
        answer(id.map(|id| SdkVolumeCreateResponse {
            volume_id: id.to_string(),
        }))
    }

    async fn delete(
        &self,
        request: Request<SdkVolumeDeleteRequest>,
    ) -> Result<Response<SdkVolumeDeleteResponse>, Refusal> {
        let volume = request.into_inner().volume_id;
        let deleted = self
            .to_the_end(|node| async move { node.delete_volume(&volume).await })
            .await;
        answer(deleted.map(|()| SdkVolumeDeleteResponse {}))
    }

    async fn inspect(
        &self,
        request: Request<SdkVolumeInspectRequest>,
    ) -> Result<Response<SdkVolumeInspectResponse>, Refusal> {
        let record = self
            .node()
            .registry
            .volume(&request.get_ref().volume_id)
            .await?
            .record;
        answer(
            Viewer::new(self.node())
                .await
                .map(|viewer| viewer.response(&record)),
        )
    }

    async fn inspect_with_filters(
        &self,
        request: Request<SdkVolumeInspectWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeInspectWithFiltersResponse>, Refusal> {
        let r = request.into_inner();
        let selected = self
            .select(Selection::new(r.name, r.labels, r.ownership, r.group)?)
            .await?;
        let viewer = Viewer::new(self.node()).await?;
        let volumes = selected
            .iter()
            .map(|record| viewer.response(record))
            .collect();
        Ok(Response::new(SdkVolumeInspectWithFiltersResponse {
            volumes,
        }))
    }

    async fn enumerate(
        &self,
        _: Request<SdkVolumeEnumerateRequest>,
    ) -> Result<Response<SdkVolumeEnumerateResponse>, Refusal> {
        let volumes = self.node().registry.volumes().await;
        answer(volumes.map(|all| SdkVolumeEnumerateResponse {
            volume_ids: ids(&all),
        }))
    }

    async fn enumerate_with_filters(
        &self,
        request: Request<SdkVolumeEnumerateWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeEnumerateWithFiltersResponse>, Refusal> {
        let r = request.into_inner();
        let selected = self
            .select(Selection::new(r.name, r.labels, r.ownership, r.group)?)
            .await;
        answer(selected.map(|all| SdkVolumeEnumerateWithFiltersResponse {
            volume_ids: ids(&all),
        }))
    }

    async fn update(
        &self,
        request: Request<SdkVolumeUpdateRequest>,
    ) -> Result<Response<SdkVolumeUpdateResponse>, Refusal> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let change = self.rules.change(request)?;
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
        let stats = self.volume_stats(request.into_inner()).await;
        answer(stats.map(|stats| SdkVolumeStatsResponse { stats: Some(stats) }))
    }

    async fn capacity_usage(
        &self,
        request: Request<SdkVolumeCapacityUsageRequest>,
    ) -> Result<Response<SdkVolumeCapacityUsageResponse>, Refusal> {
        let capacity = self.capacity(&request.get_ref().volume_id).await;
        answer(capacity.map(|info| SdkVolumeCapacityUsageResponse {
            capacity_usage_info: Some(info),
        }))
    }

    async fn clone(
        &self,
        _: Request<SdkVolumeCloneRequest>,
    ) -> Result<Response<SdkVolumeCloneResponse>, Refusal> {
        not_yet("OpenStorageVolume.Clone")
    }

    async fn snapshot_create(
        &self,
        _: Request<SdkVolumeSnapshotCreateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotCreateResponse>, Refusal> {
        not_yet("OpenStorageVolume.SnapshotCreate")
    }

    async fn snapshot_restore(
        &self,
        _: Request<SdkVolumeSnapshotRestoreRequest>,
    ) -> Result<Response<SdkVolumeSnapshotRestoreResponse>, Refusal> {
        not_yet("OpenStorageVolume.SnapshotRestore")
    }

    async fn snapshot_enumerate(
        &self,
        _: Request<SdkVolumeSnapshotEnumerateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotEnumerateResponse>, Refusal> {
        not_yet("OpenStorageVolume.SnapshotEnumerate")
    }

    async fn snapshot_enumerate_with_filters(
        &self,
        _: Request<SdkVolumeSnapshotEnumerateWithFiltersRequest>,
    ) -> Result<Response<SdkVolumeSnapshotEnumerateWithFiltersResponse>, Refusal> {
        not_yet("OpenStorageVolume.SnapshotEnumerateWithFilters")
    }

    async fn snapshot_schedule_update(
        &self,
        _: Request<SdkVolumeSnapshotScheduleUpdateRequest>,
    ) -> Result<Response<SdkVolumeSnapshotScheduleUpdateResponse>, Refusal> {
        not_yet("OpenStorageVolume.SnapshotScheduleUpdate")
    }

    async fn volume_catalog(
        &self,
        _: Request<SdkVolumeCatalogRequest>,
    ) -> Result<Response<SdkVolumeCatalogResponse>, Refusal> {
        not_yet("OpenStorageVolume.VolumeCatalog")
    }
}

fn ids(volumes: &[VolumeRecord]) -> Vec<String> {
    volumes.iter().map(|v| v.volume_id.to_string()).collect()
}
