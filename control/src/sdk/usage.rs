//! Space by volume on a node: volumes with a single copy, replicas, and snapshots of both. Any node may be asked; the one that is meant counts.
use super::{SHOW_LIMIT, Services};
use crate::auth::Way;
use crate::error::OpError;
use keelblock_api::datapath::{
    ListReplicasRequest, ListSnapshotsRequest, ListVolumesRequest, SpaceUsageRequest,
};
use keelblock_api::openstorage::open_storage_node_client::OpenStorageNodeClient;
use keelblock_api::openstorage::*;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// How long counting what only one refers to may take, of all volumes of a node together: it walks their maps. Below what is waited for another node.
const COUNT_LIMIT: Duration = Duration::from_secs(12);

/// Something that uses space here.
struct User {
    volume_id: String,
    snapshot_id: String,
    pool_id: String,
    used_bytes: u64,
}

impl User {
    fn id(&self) -> &str {
        match self.snapshot_id.as_str() {
            "" => &self.volume_id,
            snapshot => snapshot,
        }
    }
}

impl Services {
    /// The way to a node; `None`: it is this one.
    async fn way_to(&self, node_id: &str) -> Result<Option<Way>, OpError> {
        if node_id.is_empty() {
            return Err(OpError::Missing {
                field: "node_id",
                hint: "the id of a node",
            });
        }
        let nodes = self.node().registry.nodes().await?;
        if !nodes.iter().any(|(n, _)| n.node_id == node_id) {
            return Err(OpError::NotFound {
                kind: "node",
                name: node_id.into(),
            });
        }
        self.node().elsewhere(node_id).await
    }

    /// All that use space of this node's pool, by id.
    async fn users(&self) -> Result<Vec<User>, OpError> {
        let link = &self.node().link;
        link.up()?;
        let volumes = link.call_within(SHOW_LIMIT, "list volumes", |mut c| async move {
            c.list_volumes(ListVolumesRequest::default()).await
        });
        let replicas = link.call_within(SHOW_LIMIT, "list replicas", |mut c| async move {
            c.list_replicas(ListReplicasRequest {}).await
        });
        let snapshots = link.call_within(SHOW_LIMIT, "list snapshots", |mut c| async move {
            c.list_snapshots(ListSnapshotsRequest::default()).await
        });
        let (volumes, replicas, snapshots) = tokio::join!(volumes, replicas, snapshots);
        let mut users: Vec<User> = Vec::new();
        users.extend(volumes?.volumes.into_iter().map(|v| User {
            volume_id: v.volume_id,
            snapshot_id: String::new(),
            pool_id: v.pool_id,
            used_bytes: v.used_bytes,
        }));
        users.extend(replicas?.replicas.into_iter().map(|r| User {
            volume_id: r.volume_id,
            snapshot_id: String::new(),
            pool_id: r.pool_id,
            used_bytes: r.used_bytes,
        }));
        let pools: HashMap<String, String> = users
            .iter()
            .map(|u| (u.volume_id.clone(), u.pool_id.clone()))
            .collect();
        let pool = self.node().pool.as_ref();
        let pool = pool.map_or_else(String::new, |p| p.record.pool_id.to_string());
        users.extend(snapshots?.snapshots.into_iter().map(|s| User {
            // Its volume may be gone.
            pool_id: pools.get(&s.volume_id).unwrap_or(&pool).clone(),
            volume_id: s.volume_id,
            snapshot_id: s.snapshot_id,
            used_bytes: s.used_bytes,
        }));
        users.sort_by(|a, b| a.id().cmp(b.id()));
        Ok(users)
    }

    async fn names_of_all(&self) -> Result<HashMap<String, String>, OpError> {
        let registry = &self.node().registry;
        let volumes = registry.volumes().await?.into_iter();
        let volumes = volumes.map(|v| (v.volume_id, v.name));
        let snapshots = registry.snapshots().await?.into_iter();
        let snapshots = snapshots.map(|s| (s.snapshot_id, s.name));
        let text = |(id, name): (Uuid, String)| (id.to_string(), name);
        Ok(volumes.chain(snapshots).map(text).collect())
    }

    pub(super) async fn usage_by_node(
        &self,
        request: SdkNodeVolumeUsageByNodeRequest,
    ) -> Result<VolumeUsageByNode, OpError> {
        if let Some(way) = self.way_to(&request.node_id).await? {
            let node_id = request.node_id.clone();
            let mut client = OpenStorageNodeClient::new(way);
            let asked = client.volume_usage_by_node(request).await;
            let reply = asked.map_err(|s| self.node().said(&node_id, &s))?;
            return Ok(reply.into_inner().volume_usage_info.unwrap_or_default());
        }
        let names = self.names_of_all().await?;
        let counted = async {
            let mut all = Vec::new();
            for user in self.users().await? {
                let exclusive_bytes = self.exclusive(&user).await?;
                all.push(VolumeUsage {
                    volume_name: names.get(user.id()).cloned().unwrap_or_default(),
                    volume_id: user.id().to_owned(),
                    exclusive_bytes,
                    total_bytes: user.used_bytes.max(exclusive_bytes),
                    pool_uuid: user.pool_id,
                    local_cloud_snapshot: false,
                });
            }
            Ok(VolumeUsageByNode { volume_usage: all })
        };
        let late = |_| {
            OpError::Unavailable(format!(
                "counting all volumes of node {} takes longer than {} s: ask CapacityUsage of one after the other",
                self.node().node_id(),
                COUNT_LIMIT.as_secs()
            ))
        };
        tokio::time::timeout(COUNT_LIMIT, counted)
            .await
            .map_err(late)?
    }

    /// What nothing else refers to.
    async fn exclusive(&self, user: &User) -> Result<u64, OpError> {
        let request = SpaceUsageRequest {
            volume_id: user.volume_id.clone(),
            snapshot_id: user.snapshot_id.clone(),
        };
        let what = format!("count the space of {}", user.id());
        let counted = self
            .node()
            .link
            .call_within(COUNT_LIMIT, &what, |mut c| async move {
                c.space_usage(request).await
            });
        Ok(counted.await?.unique_bytes)
    }

    pub(super) async fn bytes_used_by_node(
        &self,
        request: SdkVolumeBytesUsedRequest,
    ) -> Result<VolumeBytesUsedByNode, OpError> {
        if !request.ids.is_empty() {
            return Err(OpError::Unsupported {
                field: "ids".into(),
                why: ": ids of volumes are no numbers here, so all of the node are counted",
            });
        }
        if let Some(way) = self.way_to(&request.node_id).await? {
            let node_id = request.node_id.clone();
            let mut client = OpenStorageNodeClient::new(way);
            let asked = client.volume_bytes_used_by_node(request).await;
            let reply = asked.map_err(|s| self.node().said(&node_id, &s))?;
            return Ok(reply.into_inner().vol_util_info.unwrap_or_default());
        }
        let all = self.users().await?.into_iter();
        let volumes = all.filter(|u| u.snapshot_id.is_empty());
        let used = volumes.map(|u| VolumeBytesUsed {
            volume_id: u.volume_id,
            total_bytes: u.used_bytes,
        });
        Ok(VolumeBytesUsedByNode {
            node_id: request.node_id,
            vol_usage: used.collect(),
        })
    }
}
