//! What Keelblock has and the SDK has no words for (`api/proto/keelblock/admin.proto`).
use super::{Services, answer, replicas, storage};
use crate::auth::Access;
use crate::error::OpError;
use crate::gossip::Board;
use crate::names;
use crate::node::{SnapshotWish as Wish, Steer};
use crate::records::{AttachmentRecord, PathState};
use crate::replication::record::{Phase, ReplicaState, ReplicationRecord};
use crate::secrets::SecretRecord;
use keelblock_api::admin::admin_server::Admin;
use keelblock_api::admin::*;
use keelblock_api::datapath::{HelloReply, Pool};
use keelblock_api::stats::{ReactorField, ReactorSnapshot};
use tonic::{Request, Response, Status};

impl Services {
    /// The node, its reactors and pools.
    pub(crate) async fn status_of_node(&self) -> NodeStatusReply {
        let node = self.node();
        let mut reply = NodeStatusReply {
            cluster_id: node.cluster_id().into(),
            node_id: node.node_id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            control_pid: std::process::id(),
            gossip: Some(gossip_counts(node.gossip())),
            ..Default::default()
        };
        if let Ok(hello) = node.link.up() {
            self.describe_datapath(&mut reply, &hello).await;
        }
        reply
    }

    async fn describe_datapath(&self, reply: &mut NodeStatusReply, hello: &HelloReply) {
        reply.datapath_up = true;
        reply.datapath_pid = hello.pid;
        reply.nvme_address = hello.nvme_address.clone();
        reply.memory_bytes = hello.memory_bytes;
        reply.hugepages = hello.hugepages;
        reply.datapath_started_unix_ms = hello.started_unix_ms;
        let page = self.node().link.stats();
        reply.reactors = page
            .map(|p| p.reactors().iter().map(reactor).collect())
            .unwrap_or_default();
        let records = self.node().registry.pools().await.unwrap_or_default();
        let named = |pool: Pool| {
            let record = records
                .iter()
                .find(|r| r.pool_id.to_string() == pool.pool_id);
            let name = record.map(|r| r.name.clone()).unwrap_or_default();
            storage::pool_status(pool, name)
        };
        reply.pools = self.pools().await.into_iter().map(named).collect();
    }

    async fn status_of_volume(&self, volume: &str) -> Result<VolumeStatusReply, OpError> {
        let record = self.node().registry.volume(volume).await?.record;
        self.node().link.up()?;
        let page = self.node().link.stats();
        let counters = page
            .and_then(|p| p.volume(record.volume_id.into_bytes()))
            .unwrap_or_default();
        Ok(VolumeStatusReply {
            volume_id: record.volume_id.to_string(),
            reads: counters.reads,
            writes: counters.writes,
            others: counters.others,
            read_bytes: counters.read_bytes,
            write_bytes: counters.write_bytes,
            errors: counters.errors,
            connections: counters.connections,
            read_latency: counters.read_latency.counts().to_vec(),
            write_latency: counters.write_latency.counts().to_vec(),
        })
    }

    /// The volume that a request is about, if whoever calls may do this with it.
    async fn of_request<T>(
        &self,
        request: &Request<T>,
        volume: &str,
        access: Access,
    ) -> Result<String, OpError> {
        let caller = self.caller(request)?;
        self.allowed(&caller, volume, access).await
    }

    async fn wrapped_volumes(&self) -> Result<Vec<WrappedVolume>, OpError> {
        let registry = &self.node().registry;
        let prefix = registry.keys().secrets();
        let mut all = Vec::new();
        for found in registry.list::<SecretRecord>(&prefix).await? {
            let record = found.record;
            let volume = registry.volume_by_id(record.volume_id).await?;
            let current = record.keys.iter().find(|k| k.index == record.current);
            all.push(WrappedVolume {
                volume_id: record.volume_id.to_string(),
                name: volume.map(|v| v.record.name).unwrap_or_default(),
                key_id: current.map(|k| k.wrap_key.clone()).unwrap_or_default(),
            });
        }
        Ok(all)
    }

    async fn key_of_cluster(&self) -> Result<ClusterKeyReply, OpError> {
        let (key_ids, error) = match self.node().cluster_keys().await {
            Ok(keys) => (keys.ids().map(str::to_owned).collect(), String::new()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        Ok(ClusterKeyReply {
            source: self.node().key_source().name(),
            key_ids,
            error,
            volumes: self.wrapped_volumes().await?,
        })
    }

    async fn connection(&self, volume: &str) -> Result<ConnectionInfoReply, OpError> {
        let node = self.node();
        let record = node.registry.volume(volume).await?.record;
        let attachment = node
            .registry
            .attachment(record.volume_id)
            .await?
            .map(|a| a.record);
        let subsystem_of = attachment
            .as_ref()
            .map_or(record.volume_id, |a| a.subsystem_of);
        // Hosts and path state are the subsystem's.
        let owner = node
            .registry
            .volume_by_id(subsystem_of)
            .await?
            .map_or_else(|| record.clone(), |o| o.record);
        let mut paths = Vec::new();
        if let Some(a) = &attachment {
            let state = node
                .registry
                .attachment(subsystem_of)
                .await?
                .map_or(a.path_state, |o| o.record.path_state);
            let mut states = vec![(a.node_id.clone(), state)];
            if let Some(set) = node.replication(record.volume_id).await? {
                states = replicated_paths(&set.record, a);
            }
            let nodes = node.registry.nodes().await?;
            for (node_id, state) in states {
                let found = nodes.iter().find(|(n, _)| n.node_id == node_id);
                paths.extend(found.and_then(|(n, _)| path(&node_id, &n.nvme_address, state)));
            }
        }
        Ok(ConnectionInfoReply {
            volume_id: record.volume_id.to_string(),
            nqn: names::subsystem_nqn(node.cluster_id(), subsystem_of),
            nsid: attachment.map_or(0, |a| a.nsid),
            paths,
            allowed_hosts: owner.allowed_hosts,
            any_host: owner.any_host,
        })
    }
}

/// Every node with a replica, and the one that coordinates, which comes first: its path is the best one.
fn replicated_paths(
    set: &ReplicationRecord,
    attachment: &AttachmentRecord,
) -> Vec<(String, PathState)> {
    let coordinator = &attachment.node_id;
    let holds = set
        .holder
        .as_ref()
        .is_some_and(|h| h.node_id == *coordinator);
    // The others forward to the one that serves.
    let (state, other) = match holds && set.phase == Phase::Serving {
        true => (PathState::Optimized, PathState::NonOptimized),
        false => (PathState::Inaccessible, PathState::Inaccessible),
    };
    let others = set
        .replicas
        .iter()
        .filter(|r| r.node_id != *coordinator && r.state != ReplicaState::Leaving);
    let others = others.map(|r| (r.node_id.clone(), other));
    std::iter::once((coordinator.clone(), state))
        .chain(others)
        .collect()
}

fn path(node_id: &str, address: &str, state: PathState) -> Option<Path> {
    let (host, port) = address.rsplit_once(':')?;
    Some(Path {
        node_id: node_id.into(),
        transport: "tcp".into(),
        address: host.trim_matches(['[', ']']).into(),
        port: port.parse().ok()?,
        state: state.name().into(),
    })
}

fn gossip_counts(board: &Board) -> GossipCounts {
    let (sent, received) = board.datagrams();
    let refused = board.refusals().each();
    GossipCounts {
        sent,
        received,
        refused: refused.map(|(why, n)| (why.to_owned(), n)).collect(),
    }
}

fn reactor(r: &ReactorSnapshot) -> ReactorStatus {
    ReactorStatus {
        id: r.id,
        cpu: r.cpu().map_or(-1, |cpu| cpu as i32),
        poll: if r.get(ReactorField::PollAlways) == 1 {
            "always"
        } else {
            "adaptive"
        }
        .into(),
        busy_ns: r.get(ReactorField::BusyNs),
        idle_ns: r.get(ReactorField::IdleNs),
        asleep_ns: r.get(ReactorField::AsleepNs),
        passes: r.get(ReactorField::Passes),
        wakeups: r.get(ReactorField::Wakeups),
        connections: r.get(ReactorField::Connections),
        commands: r.get(ReactorField::Commands),
        stalls: r.get(ReactorField::Stalls),
        cpu_ns: r.get(ReactorField::CpuNs),
    }
}

#[tonic::async_trait]
impl Admin for Services {
    async fn node_status(
        &self,
        _: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        Ok(Response::new(self.status_of_node().await))
    }

    async fn volume_status(
        &self,
        request: Request<VolumeStatusRequest>,
    ) -> Result<Response<VolumeStatusReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Read);
        answer(self.status_of_volume(&volume.await?).await)
    }

    async fn connection_info(
        &self,
        request: Request<ConnectionInfoRequest>,
    ) -> Result<Response<ConnectionInfoReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Read);
        answer(self.connection(&volume.await?).await)
    }

    async fn cluster_key(
        &self,
        _: Request<ClusterKeyRequest>,
    ) -> Result<Response<ClusterKeyReply>, Status> {
        answer(self.key_of_cluster().await)
    }

    async fn rotate_cluster_key(
        &self,
        _: Request<RotateClusterKeyRequest>,
    ) -> Result<Response<RotateClusterKeyReply>, Status> {
        let rotated = self.to_the_end(|node| async move { node.rotate_cluster_key().await });
        answer(rotated.await.map(|r| {
            RotateClusterKeyReply {
                key_id: r.key_id,
                changed: r.changed,
                unchanged: r.unchanged,
                failed: r
                    .failed
                    .into_iter()
                    .map(|(id, why)| NotRotated {
                        volume_id: id.to_string(),
                        why,
                    })
                    .collect(),
            }
        }))
    }

    async fn set_allowed_hosts(
        &self,
        request: Request<SetAllowedHostsRequest>,
    ) -> Result<Response<SetAllowedHostsReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Write);
        let volume = volume.await?;
        let SetAllowedHostsRequest { host_nqns, any, .. } = request.into_inner();
        answer(
            self.to_the_end(
                |node| async move { node.set_allowed_hosts(&volume, host_nqns, any).await },
            )
            .await
            .map(|()| SetAllowedHostsReply {}),
        )
    }

    async fn set_path_state(
        &self,
        request: Request<SetPathStateRequest>,
    ) -> Result<Response<SetPathStateReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Write);
        let volume = volume.await?;
        let state = request.into_inner().state;
        let names = PathState::ALL.map(PathState::name).join(", ");
        let state = PathState::from_name(&state)
            .ok_or_else(|| OpError::invalid("state", format!("must be one of {names}")))?;
        answer(
            self.to_the_end(|node| async move { node.set_path_state(&volume, state).await })
                .await
                .map(|()| SetPathStateReply {}),
        )
    }

    async fn list_members(
        &self,
        _: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersReply>, Status> {
        answer(self.members().await)
    }

    async fn update_member(
        &self,
        request: Request<UpdateMemberRequest>,
    ) -> Result<Response<Member>, Status> {
        answer(self.update_member(request.into_inner()).await)
    }

    async fn locate_volume(
        &self,
        request: Request<LocateVolumeRequest>,
    ) -> Result<Response<LocateVolumeReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Read);
        let volume = volume.await?;
        let request = LocateVolumeRequest {
            volume,
            ..request.into_inner()
        };
        Services::locate_volume(self, request).await
    }

    async fn update_replicas(
        &self,
        request: Request<UpdateReplicasRequest>,
    ) -> Result<Response<UpdateReplicasReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Write);
        let volume = volume.await?;
        let (_, wish) = replicas::wish(request.into_inner())?;
        let begun = self.to_the_end(|node| async move { node.change_ha(&volume, wish).await });
        answer(begun.await.map(|task| UpdateReplicasReply {
            task: task.as_ref().map(replicas::task),
        }))
    }

    async fn cancel_update_replicas(
        &self,
        request: Request<CancelUpdateReplicasRequest>,
    ) -> Result<Response<UpdateReplicasReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Write);
        let volume = volume.await?;
        let taken = self.to_the_end(|node| async move { node.cancel_ha(&volume).await });
        answer(taken.await.map(|task| UpdateReplicasReply {
            task: Some(replicas::task(&task)),
        }))
    }

    async fn explain_placement(
        &self,
        request: Request<ExplainPlacementRequest>,
    ) -> Result<Response<ExplainPlacementReply>, Status> {
        Services::explain_placement(self, request.into_inner()).await
    }

    async fn plan_rebalance(
        &self,
        request: Request<PlanRebalanceRequest>,
    ) -> Result<Response<PlanRebalanceReply>, Status> {
        Services::plan_rebalance(self, request.into_inner()).await
    }

    async fn start_rebalance(
        &self,
        request: Request<StartRebalanceRequest>,
    ) -> Result<Response<RebalanceStatusReply>, Status> {
        Services::start_rebalance(self, request.into_inner()).await
    }

    async fn rebalance_status(
        &self,
        request: Request<RebalanceStatusRequest>,
    ) -> Result<Response<RebalanceStatusReply>, Status> {
        Services::rebalance_status(self, request.into_inner()).await
    }

    async fn list_trash(
        &self,
        request: Request<ListTrashRequest>,
    ) -> Result<Response<ListTrashReply>, Status> {
        let caller = self.caller(&request)?;
        Services::list_trash(self, &caller).await
    }

    async fn restore_trash(
        &self,
        request: Request<RestoreTrashRequest>,
    ) -> Result<Response<RestoreTrashReply>, Status> {
        let caller = self.caller(&request)?;
        Services::restore_trash(self, &caller, request.into_inner()).await
    }

    async fn purge_trash(
        &self,
        request: Request<PurgeTrashRequest>,
    ) -> Result<Response<PurgeTrashReply>, Status> {
        let caller = self.caller(&request)?;
        Services::purge_trash(self, &caller, request.into_inner()).await
    }

    async fn trash_options(
        &self,
        request: Request<TrashOptionsRequest>,
    ) -> Result<Response<TrashOptionsReply>, Status> {
        Services::trash_options(self, request.into_inner()).await
    }

    async fn placement_limits(
        &self,
        request: Request<PlacementLimitsRequest>,
    ) -> Result<Response<PlacementLimitsReply>, Status> {
        Services::placement_limits(self, request.into_inner()).await
    }

    async fn provision_status(
        &self,
        _: Request<ProvisionStatusRequest>,
    ) -> Result<Response<ProvisionStatusReply>, Status> {
        Services::provision_status(self).await
    }

    async fn cluster_options(
        &self,
        _: Request<ClusterOptionsRequest>,
    ) -> Result<Response<ClusterOptionsReply>, Status> {
        answer(self.node().options().await.map(|o| ClusterOptionsReply {
            replace_after_s: o.replace_after_s,
        }))
    }

    async fn cluster_token(
        &self,
        _: Request<ClusterTokenRequest>,
    ) -> Result<Response<ClusterTokenReply>, Status> {
        answer(self.token_shown().await)
    }

    async fn rotate_token(
        &self,
        request: Request<RotateTokenRequest>,
    ) -> Result<Response<RotateTokenReply>, Status> {
        answer(self.rotated_token(request.into_inner()).await)
    }

    async fn set_cluster_options(
        &self,
        request: Request<SetClusterOptionsRequest>,
    ) -> Result<Response<ClusterOptionsReply>, Status> {
        let said = match request.into_inner().replace_after_s {
            Some(seconds) => self.node().set_replace_after(seconds).await,
            None => self.node().options().await,
        };
        answer(said.map(|o| ClusterOptionsReply {
            replace_after_s: o.replace_after_s,
        }))
    }

    async fn kvdb_status(
        &self,
        _: Request<KvdbStatusRequest>,
    ) -> Result<Response<KvdbStatusReply>, Status> {
        answer(self.status_of_kvdb().await)
    }

    type BackupKvdbStream = tokio_stream::Iter<std::vec::IntoIter<Result<KvdbPart, Status>>>;

    async fn backup_kvdb(
        &self,
        _: Request<BackupKvdbRequest>,
    ) -> Result<Response<Self::BackupKvdbStream>, Status> {
        let parts: Vec<_> = self.backup_of_kvdb().await?.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    type CollectDiagsStream = tokio_stream::Iter<std::vec::IntoIter<Result<DiagsPart, Status>>>;

    async fn collect_diags(
        &self,
        request: Request<CollectDiagsRequest>,
    ) -> Result<Response<Self::CollectDiagsStream>, Status> {
        let parts = Services::collect_diags(self, request.into_inner()).await?;
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    async fn restore_kvdb(
        &self,
        request: Request<tonic::Streaming<KvdbPart>>,
    ) -> Result<Response<RestoreKvdbReply>, Status> {
        let restored = self.restore_of_kvdb(request.into_inner()).await;
        restored.map(Response::new)
    }

    async fn decide_replicas(
        &self,
        request: Request<DecideReplicasRequest>,
    ) -> Result<Response<DecideReplicasReply>, Status> {
        let volume = self.of_request(&request, &request.get_ref().volume, Access::Write);
        let volume = volume.await?;
        let request = DecideReplicasRequest {
            volume,
            ..request.into_inner()
        };
        answer(self.decide(request).await)
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsReply>, Status> {
        let wish = |w: SnapshotWish| Wish {
            volume: w.volume,
            name: w.name,
            labels: w.labels.into_iter().collect(),
        };
        let caller = self.caller(&request)?;
        let mut wishes: Vec<Wish> = request
            .into_inner()
            .snapshots
            .into_iter()
            .map(wish)
            .collect();
        for wish in &mut wishes {
            wish.volume = self.allowed(&caller, &wish.volume, Access::Read).await?;
        }
        let taken = self.to_the_end(|node| async move { node.create_snapshots(wishes).await });
        answer(taken.await.map(|ids| CreateSnapshotsReply {
            snapshot_ids: ids.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn diff_volume(
        &self,
        request: Request<DiffVolumeRequest>,
    ) -> Result<Response<DiffVolumeReply>, Status> {
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        for name in [&mut request.volume, &mut request.from, &mut request.to] {
            if !name.is_empty() {
                *name = self.allowed(&caller, name, Access::Read).await?;
            }
        }
        answer(self.diff(request).await)
    }

    async fn add_drive(
        &self,
        request: Request<AddDriveRequest>,
    ) -> Result<Response<DriveReply>, Status> {
        let r = request.into_inner();
        let done =
            self.to_the_end(|node| async move { node.add_drive(&r.path, r.size_bytes).await });
        answer(done.await.map(storage::drive_reply))
    }

    async fn grow_drive(
        &self,
        request: Request<GrowDriveRequest>,
    ) -> Result<Response<DriveReply>, Status> {
        let r = request.into_inner();
        let done =
            self.to_the_end(|node| async move { node.grow_drive(&r.drive, r.size_bytes).await });
        answer(done.await.map(storage::drive_reply))
    }

    async fn evacuate_drive(
        &self,
        request: Request<EvacuateDriveRequest>,
    ) -> Result<Response<DriveReply>, Status> {
        let r = request.into_inner();
        let done =
            self.to_the_end(|node| async move { node.evacuate_drive(&r.drive, r.cancel).await });
        answer(done.await.map(storage::drive_reply))
    }

    async fn remove_drive(
        &self,
        request: Request<RemoveDriveRequest>,
    ) -> Result<Response<RemoveDriveReply>, Status> {
        let drive = request.into_inner().drive;
        let done = self.to_the_end(|node| async move { node.remove_drive(&drive).await });
        answer(done.await.map(|()| RemoveDriveReply {}))
    }

    async fn replace_drive(
        &self,
        request: Request<ReplaceDriveRequest>,
    ) -> Result<Response<ReplaceDriveReply>, Status> {
        let r = request.into_inner();
        let done = self.to_the_end(|node| async move {
            node.replace_drive(&r.drive, &r.path, r.size_bytes).await
        });
        answer(done.await.map(|done| ReplaceDriveReply {
            drive: done.drive.map(storage::drive_status),
            lost_volume_ids: done.lost_volume_ids,
        }))
    }

    async fn start_scan(
        &self,
        request: Request<StartScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let r = request.into_inner();
        let done = self
            .to_the_end(|node| async move { node.start_scan(&r.pool, r.rate_bytes_per_s).await });
        answer(done.await.map(storage::scan_status))
    }

    async fn pause_scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let pool = request.into_inner().pool;
        let done =
            self.to_the_end(|node| async move { node.steer_scan(&pool, Steer::Pause).await });
        answer(done.await.map(storage::scan_status))
    }

    async fn resume_scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let pool = request.into_inner().pool;
        let done =
            self.to_the_end(|node| async move { node.steer_scan(&pool, Steer::Resume).await });
        answer(done.await.map(storage::scan_status))
    }

    async fn cancel_scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let pool = request.into_inner().pool;
        let done =
            self.to_the_end(|node| async move { node.steer_scan(&pool, Steer::Cancel).await });
        answer(done.await.map(storage::scan_status))
    }

    async fn get_scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let report = self.node().scan_report(&request.get_ref().pool).await;
        answer(report.map(storage::scan_status))
    }

    async fn schedule_scan(
        &self,
        request: Request<ScheduleScanRequest>,
    ) -> Result<Response<ScanStatus>, Status> {
        let r = request.into_inner();
        let done = self.to_the_end(|node| async move {
            node.schedule_scan(&r.pool, r.interval_s, r.rate_bytes_per_s)
                .await
        });
        answer(done.await.map(storage::scan_status))
    }
}
