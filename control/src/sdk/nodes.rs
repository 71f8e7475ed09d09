//! Node.
use super::{Services, answer, not_yet};
use crate::datapath::LinkState;
use crate::error::OpError;
use crate::gossip::{PoolStats, STALE};
use crate::membership::{MemberState, MemberWish, Standing};
use crate::records::{NodeRecord, PoolRecord, ResizeRecord};
use keelblock_api::datapath::{Drive, Health, ListPoolsRequest, Pool};
use keelblock_api::openstorage::open_storage_node_server::OpenStorageNode;
use keelblock_api::openstorage::*;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Request, Response, Status as Refusal};

/// What is only shown may be missing: a data path that takes longer is shown without it.
pub const SHOW_TIMEOUT: Duration = Duration::from_secs(2);

impl Services {
    /// The pools of this node as its data path has them; none while it is away.
    pub(super) async fn pools(&self) -> Vec<Pool> {
        let link = &self.node().link;
        if link.up().is_err() {
            return Vec::new();
        }
        let listed = link.call_within(SHOW_TIMEOUT, "list pools", |mut c| async move {
            c.list_pools(ListPoolsRequest {}).await
        });
        listed.await.map(|reply| reply.pools).unwrap_or_default()
    }

    async fn storage_node(
        &self,
        record: NodeRecord,
        alive: bool,
        standing: &Standing,
    ) -> Result<StorageNode, OpError> {
        let host = |address: &str| {
            address
                .rsplit_once(':')
                .map_or_else(String::new, |(host, _)| host.to_owned())
        };
        let mut node = StorageNode {
            id: record.node_id.clone(),
            mgmt_ip: host(&record.sdk_address),
            data_ip: host(&record.nvme_address),
            hostname: record.hostname.clone(),
            status: Status::Ok.into(),
            ..Default::default()
        };
        if record.node_id == self.node().node_id() {
            self.describe_this(&mut node).await?;
        } else {
            self.describe_other(&mut node);
            if !alive {
                node.set_status(Status::Offline);
            }
        }
        if let Some(member) = standing.member(&record.node_id) {
            node.node_labels = member.labels.clone().into_iter().collect();
            match member.state {
                MemberState::Decommissioning => node.set_status(Status::Decommission),
                MemberState::Maintenance if alive => node.set_status(Status::Maintenance),
                _ => {}
            }
        }
        Ok(node)
    }

    async fn describe_this(&self, node: &mut StorageNode) -> Result<(), OpError> {
        let machine = self.observer.look();
        node.cpu = machine.cpu_percent;
        node.cpu_cores = machine.cores as i64;
        node.mem_total = machine.memory_total;
        node.mem_free = machine.memory_free;
        node.mem_used = machine.memory_total.saturating_sub(machine.memory_free);
        node.avg_load = machine.load.round() as i64;
        let pools = self.pools().await;
        let records = self.node().registry.pools().await?;
        for (index, pool) in pools.iter().enumerate() {
            let record = records
                .iter()
                .find(|r| r.pool_id.to_string() == pool.pool_id);
            node.pools.push(storage_pool(index, pool, record));
            node.disks.extend(
                pool.drives
                    .iter()
                    .map(|d| (d.drive_id.clone(), storage_resource(d))),
            );
        }
        let failed = |pool: &Pool| pool.drives.iter().any(|d| d.health() != Health::Online);
        node.set_status(match self.node().link.state() {
            LinkState::Down(_) => Status::StorageDown,
            LinkState::Up(_) if pools.iter().any(failed) => Status::StorageDegraded,
            LinkState::Up(_) => Status::Ok,
        });
        Ok(())
    }

    /// What another node said of itself by gossip, if that is of now.
    fn describe_other(&self, node: &mut StorageNode) {
        let heard = self.node().gossip().of(&node.id);
        let said = heard.and_then(|h| h.stats);
        let Some((stats, _)) = said.filter(|(_, age)| *age < STALE) else {
            return;
        };
        node.cpu = f64::from(stats.machine_permille) / 10.0;
        node.cpu_cores = stats.cores.into();
        node.mem_total = stats.memory_total;
        node.mem_free = stats.memory_free;
        node.mem_used = stats.memory_total.saturating_sub(stats.memory_free);
        let pool = |(index, pool): (usize, &PoolStats)| StoragePool {
            id: index as i32,
            uuid: pool.pool_id.to_string(),
            total_size: pool.total_bytes,
            used: pool.used_bytes,
            medium: StorageMedium::Ssd.into(),
            ..Default::default()
        };
        node.pools = stats.pools.iter().enumerate().map(pool).collect();
    }

    async fn find_node(&self, node_id: &str) -> Result<StorageNode, OpError> {
        if node_id.is_empty() {
            return Err(OpError::Missing {
                field: "node_id",
                hint: "the id of a node",
            });
        }
        let nodes = self.node().registry.nodes().await?;
        let found = nodes
            .into_iter()
            .find(|(record, _)| record.node_id == node_id);
        let (record, alive) = found.ok_or_else(|| OpError::NotFound {
            kind: "node",
            name: node_id.into(),
        })?;
        let standing = self.node().standing().await?;
        self.storage_node(record, alive, &standing).await
    }
}

fn storage_pool(index: usize, pool: &Pool, record: Option<&PoolRecord>) -> StoragePool {
    let labels = record
        .map(|r| HashMap::from([("keelblock.pool".to_owned(), r.name.clone())]))
        .unwrap_or_default();
    StoragePool {
        id: index as i32,
        uuid: pool.pool_id.clone(),
        total_size: pool.total_bytes,
        used: pool.used_bytes,
        medium: StorageMedium::Ssd.into(),
        labels,
        last_operation: record.and_then(|r| r.last_resize.as_ref()).map(operation),
        ..Default::default()
    }
}

fn operation(resize: &ResizeRecord) -> StoragePoolOperation {
    use sdk_storage_pool::{OperationStatus, OperationType};
    let status = match resize.error.is_empty() {
        true => OperationStatus::OperationSuccessful,
        false => OperationStatus::OperationFailed,
    };
    StoragePoolOperation {
        r#type: OperationType::OperationResize.into(),
        msg: resize.error.clone(),
        params: HashMap::from([("size".to_owned(), resize.wanted_bytes.to_string())]),
        status: status.into(),
    }
}

fn storage_resource(drive: &Drive) -> StorageResource {
    StorageResource {
        id: drive.drive_id.clone(),
        path: drive.path.clone(),
        medium: StorageMedium::Ssd.into(),
        online: drive.health() == Health::Online,
        size: drive.size_bytes,
        used: drive.used_bytes,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl OpenStorageNode for Services {
    async fn inspect(
        &self,
        request: Request<SdkNodeInspectRequest>,
    ) -> Result<Response<SdkNodeInspectResponse>, Refusal> {
        let node = self.find_node(&request.get_ref().node_id).await;
        answer(node.map(|node| SdkNodeInspectResponse { node: Some(node) }))
    }

    async fn inspect_current(
        &self,
        _: Request<SdkNodeInspectCurrentRequest>,
    ) -> Result<Response<SdkNodeInspectCurrentResponse>, Refusal> {
        let node = self.find_node(self.node().node_id()).await;
        answer(node.map(|node| SdkNodeInspectCurrentResponse { node: Some(node) }))
    }

    async fn enumerate(
        &self,
        _: Request<SdkNodeEnumerateRequest>,
    ) -> Result<Response<SdkNodeEnumerateResponse>, Refusal> {
        let nodes = self.node().registry.nodes().await;
        answer(nodes.map(|nodes| SdkNodeEnumerateResponse {
            node_ids: nodes.into_iter().map(|(n, _)| n.node_id).collect(),
        }))
    }

    async fn enumerate_with_filters(
        &self,
        _: Request<SdkNodeEnumerateWithFiltersRequest>,
    ) -> Result<Response<SdkNodeEnumerateWithFiltersResponse>, Refusal> {
        let mut nodes = Vec::new();
        let standing = self.node().standing().await?;
        for (record, alive) in self.node().registry.nodes().await? {
            nodes.push(self.storage_node(record, alive, &standing).await?);
        }
        Ok(Response::new(SdkNodeEnumerateWithFiltersResponse { nodes }))
    }

    async fn volume_usage_by_node(
        &self,
        request: Request<SdkNodeVolumeUsageByNodeRequest>,
    ) -> Result<Response<SdkNodeVolumeUsageByNodeResponse>, Refusal> {
        let usage = self.usage_by_node(request.into_inner()).await;
        answer(usage.map(|usage| SdkNodeVolumeUsageByNodeResponse {
            volume_usage_info: Some(usage),
        }))
    }

    async fn relaxed_reclaim_purge(
        &self,
        _: Request<SdkNodeRelaxedReclaimPurgeRequest>,
    ) -> Result<Response<SdkNodeRelaxedReclaimPurgeResponse>, Refusal> {
        not_yet("OpenStorageNode.RelaxedReclaimPurge")
    }

    async fn drain_attachments(
        &self,
        request: Request<SdkNodeDrainAttachmentsRequest>,
    ) -> Result<Response<SdkJobResponse>, Refusal> {
        let job = self.drain(request.into_inner()).await;
        answer(job.map(|job| SdkJobResponse { job: Some(job) }))
    }

    async fn cordon_attachments(
        &self,
        request: Request<SdkNodeCordonAttachmentsRequest>,
    ) -> Result<Response<SdkNodeCordonAttachmentsResponse>, Refusal> {
        let node = request.into_inner().node_id;
        let cordoned = self.wish(node, MemberWish::Cordon(true)).await;
        answer(cordoned.map(|_| SdkNodeCordonAttachmentsResponse {}))
    }

    async fn uncordon_attachments(
        &self,
        request: Request<SdkNodeUncordonAttachmentsRequest>,
    ) -> Result<Response<SdkNodeUncordonAttachmentsResponse>, Refusal> {
        let node = request.into_inner().node_id;
        let cordoned = self.wish(node, MemberWish::Cordon(false)).await;
        answer(cordoned.map(|_| SdkNodeUncordonAttachmentsResponse {}))
    }

    async fn volume_bytes_used_by_node(
        &self,
        request: Request<SdkVolumeBytesUsedRequest>,
    ) -> Result<Response<SdkVolumeBytesUsedResponse>, Refusal> {
        let used = self.bytes_used_by_node(request.into_inner()).await;
        answer(used.map(|used| SdkVolumeBytesUsedResponse {
            vol_util_info: Some(used),
        }))
    }
}
