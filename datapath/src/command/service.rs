//! The side of the command service on the service thread: the gRPC methods.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keelblock_api::datapath as proto;
use keelblock_api::datapath::datapath_server::Datapath;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{export_of, maybe_snapshot_id, named_volume_id, snapshot_id, volume_id};
use super::prepare::{join_pool, open_pool, size_of};
use super::replication::{
    Epoch, NewReplica, Path, Wanted, answer_of, forward_of, keys_of, named_of, record_of, route_of,
    uuid_bytes,
};
use super::snapshots::{RANGES_MAX, SNAPSHOTS_MAX};
use super::{CommandError, Commander, Events, Job};
use crate::store::types::SnapshotId;
use crate::store::{Name, VolumeId};

/// How long a command's answer is waited for. Its work goes on; asked again, the answer is what came of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of this process once it serves.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Random at each start.
    pub incarnation: [u8; 16],
    /// Where hosts connect.
    pub nvme_address: std::net::SocketAddr,
    /// The reactors.
    pub reactors: Vec<proto::Reactor>,
    /// Bytes of DMA memory.
    pub memory_bytes: u64,
    /// Whether it is hugepages.
    pub hugepages: bool,
    /// When the process started.
    pub started_unix_ms: u64,
}

/// The `keelblock.datapath.v1.Datapath` service.
pub struct Service {
    facts: Facts,
    jobs: mpsc::Sender<Job>,
    events: Events,
    /// Cluster and node, fixed by the first Hello.
    serves: OnceLock<(String, String)>,
    /// Drives are prepared for one command at a time: two would be in each other's way over the locks.
    preparing: Arc<Mutex<()>>,
}

type EventStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

impl Service {
    /// A service that sends its jobs to reactor 0 through `jobs`.
    pub fn new(facts: Facts, jobs: mpsc::Sender<Job>, events: Events) -> Self {
        Self {
            facts,
            jobs,
            events,
            serves: OnceLock::new(),
            preparing: Arc::default(),
        }
    }

    async fn steer_scrub(
        &self,
        request: proto::ScrubRequest,
        to: proto::ScrubState,
    ) -> Result<Response<proto::ScrubStatus>, Status> {
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let status = self.ask(move |c| async move { c.steer_scrub(&pool, &request.scrub_id, to) });
        status.await.map(Response::new)
    }

    /// Has `job` run on reactor 0 and waits for its answer.
    async fn ask<T, F, Fut>(&self, job: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Commander>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, CommandError>> + 'static,
    {
        ask(&self.jobs, job).await
    }
}

pub(super) async fn ask<T, F, Fut>(jobs: &mpsc::Sender<Job>, job: F) -> Result<T, Status>
where
    T: Send + 'static,
    F: FnOnce(Rc<Commander>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, CommandError>> + 'static,
{
    let (answer, answered) = oneshot::channel();
    let job: Job = Box::new(move |commander| {
        Box::pin(async move {
            // Whoever asked may have given up.
            let _ = answer.send(job(commander).await);
        })
    });
    jobs.try_send(job).map_err(|e| match e {
        mpsc::error::TrySendError::Full(_) => {
            Status::resource_exhausted("too many commands are waiting: try again")
        }
        mpsc::error::TrySendError::Closed(_) => ending(),
    })?;
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(result)) => result.map_err(Status::from),
        Ok(Err(_)) => Err(ending()),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "not done after {} s; it goes on: ask again",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

fn ending() -> Status {
    Status::unavailable("the data path is ending")
}

fn snapshot_pairs(
    asked: &[proto::NewSnapshot],
) -> Result<Vec<(VolumeId, SnapshotId)>, CommandError> {
    if asked.is_empty() || asked.len() > SNAPSHOTS_MAX {
        let why = format!("{} of them: 1 to {SNAPSHOTS_MAX} are possible", asked.len());
        return Err(CommandError::field("snapshots", why));
    }
    let mut pairs: Vec<(VolumeId, SnapshotId)> = Vec::with_capacity(asked.len());
    for new in asked {
        let volume = volume_id(&new.volume_id)?;
        let id = snapshot_id("snapshot_id", &new.snapshot_id)?;
        if pairs.iter().any(|&(v, s)| v == volume || s == id) {
            let why = format!("volume {volume} or snapshot {id} is named twice");
            return Err(CommandError::field("snapshots", why));
        }
        pairs.push((volume, id));
    }
    Ok(pairs)
}

#[tonic::async_trait]
impl Datapath for Service {
    async fn hello(
        &self,
        request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloReply>, Status> {
        let request = request.into_inner();
        let asked = (request.cluster_id, request.node_id);
        let serves = self.serves.get_or_init(|| asked.clone());
        if *serves != asked {
            return Err(Status::failed_precondition(format!(
                "this data path serves node {} of cluster {}, not node {} of cluster {}",
                serves.1, serves.0, asked.1, asked.0
            )));
        }
        let (cluster, node) = asked;
        let replication =
            self.ask(move |c| async move { c.begin_replication(cluster, node).await });
        let replication = replication.await?;
        let facts = &self.facts;
        Ok(Response::new(proto::HelloReply {
            incarnation: uuid::Uuid::from_bytes(facts.incarnation).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            nvme_address: facts.nvme_address.to_string(),
            reactors: facts.reactors.clone(),
            memory_bytes: facts.memory_bytes,
            hugepages: facts.hugepages,
            started_unix_ms: facts.started_unix_ms,
            replication_address: replication.map_or_else(String::new, |(at, _)| at.to_string()),
            public_key: replication.map_or_else(Vec::new, |(_, key)| key.to_vec()),
        }))
    }

    async fn open_pool(
        &self,
        request: Request<proto::OpenPoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        // A task of its own: a caller that gives up must not leave drives locked and in no pool.
        let work = open_pool(
            Arc::clone(&self.preparing),
            self.jobs.clone(),
            request.into_inner(),
        );
        let done = tokio::spawn(work).await;
        done.map_err(|e| Status::internal(e.to_string()))?
            .map(Response::new)
    }

    async fn list_pools(
        &self,
        _: Request<proto::ListPoolsRequest>,
    ) -> Result<Response<proto::ListPoolsReply>, Status> {
        let pools = self
            .ask(|c| async move { Ok(c.list_pools().await) })
            .await?;
        Ok(Response::new(proto::ListPoolsReply { pools }))
    }

    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let size_bytes = request.size_bytes;
        let volume = self.ask(move |c| async move { c.create_volume(id, pool, size_bytes).await });
        volume.await.map(Response::new)
    }

    async fn resize_volume(
        &self,
        request: Request<proto::ResizeVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        let request = request.into_inner();
        let (id, size_bytes) = (volume_id(&request.volume_id)?, request.size_bytes);
        let volume = self.ask(move |c| async move { c.resize_volume(id, size_bytes).await });
        volume.await.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeReply>, Status> {
        let id = volume_id(&request.into_inner().volume_id)?;
        self.ask(move |c| async move { c.delete_volume(id).await })
            .await?;
        Ok(Response::new(proto::DeleteVolumeReply {}))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesReply>, Status> {
        let only = match request.get_ref().volume_id.as_str() {
            "" => None,
            id => Some(volume_id(id)?),
        };
        let volumes = self
            .ask(move |c| async move { Ok(c.list_volumes(only).await) })
            .await?;
        Ok(Response::new(proto::ListVolumesReply { volumes }))
    }

    async fn export(
        &self,
        request: Request<proto::ExportRequest>,
    ) -> Result<Response<proto::Subsystem>, Status> {
        let config = export_of(request.into_inner())?;
        let subsystem = self.ask(move |c| async move { c.export(config).await });
        subsystem.await.map(Response::new)
    }

    async fn unexport(
        &self,
        request: Request<proto::UnexportRequest>,
    ) -> Result<Response<proto::UnexportReply>, Status> {
        let nqn = request.into_inner().nqn;
        let done = self.ask(move |c| async move {
            c.unexport(&nqn).await;
            Ok(())
        });
        done.await?;
        Ok(Response::new(proto::UnexportReply {}))
    }

    async fn list_subsystems(
        &self,
        _: Request<proto::ListSubsystemsRequest>,
    ) -> Result<Response<proto::ListSubsystemsReply>, Status> {
        let subsystems = self
            .ask(|c| async move { Ok(c.list_subsystems().await) })
            .await?;
        Ok(Response::new(proto::ListSubsystemsReply { subsystems }))
    }

    type WatchStream = EventStream;

    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let stream = ReceiverStream::new(self.events.watch());
        let told = self.ask(|c| async move {
            c.tell_levels();
            c.tell_coordinators();
            Ok(())
        });
        told.await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn commit_reservation(
        &self,
        request: Request<proto::CommitReservationRequest>,
    ) -> Result<Response<proto::CommitReservationReply>, Status> {
        let proto::CommitReservationRequest {
            nqn,
            nsid,
            generation,
        } = request.into_inner();
        let done = self.ask(move |c| async move {
            c.commit_reservation(&nqn, nsid, generation).await;
            Ok(())
        });
        done.await?;
        Ok(Response::new(proto::CommitReservationReply {}))
    }
    async fn add_drive(
        &self,
        request: Request<proto::AddDriveRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let work = join_pool(
            Arc::clone(&self.preparing),
            self.jobs.clone(),
            pool,
            None,
            request.drive,
        );
        let done = tokio::spawn(work).await;
        let reply = done.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(reply.pool.unwrap_or_default()))
    }

    async fn grow_drive(
        &self,
        request: Request<proto::GrowDriveRequest>,
    ) -> Result<Response<proto::Drive>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let drive = Name::new(&request.drive_id).map_err(CommandError::from)?;
        let open = self.ask(|c| async move { Ok(c.open_drives()) }).await?;
        let Some(path) = open.get(&drive).cloned() else {
            return Err(CommandError::NoDrive(drive.to_string()).into());
        };
        let size_bytes = size_of(&path, request.size_bytes)?;
        let drive = self.ask(move |c| async move { c.grow_drive(pool, drive, size_bytes).await });
        drive.await.map(Response::new)
    }

    async fn evacuate_drive(
        &self,
        request: Request<proto::EvacuateDriveRequest>,
    ) -> Result<Response<proto::Drive>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let drive = Name::new(&request.drive_id).map_err(CommandError::from)?;
        let drive = self.ask(move |c| async move { c.evacuate_drive(pool, drive).await });
        drive.await.map(Response::new)
    }

    async fn cancel_evacuation(
        &self,
        request: Request<proto::CancelEvacuationRequest>,
    ) -> Result<Response<proto::Drive>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let drive = Name::new(&request.drive_id).map_err(CommandError::from)?;
        let drive = self.ask(move |c| async move { c.cancel_evacuation(pool, drive).await });
        drive.await.map(Response::new)
    }

    async fn remove_drive(
        &self,
        request: Request<proto::RemoveDriveRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let drive = Name::new(&request.drive_id).map_err(CommandError::from)?;
        let pool = self.ask(move |c| async move { c.remove_drive(pool, drive).await });
        pool.await.map(Response::new)
    }

    async fn replace_drive(
        &self,
        request: Request<proto::ReplaceDriveRequest>,
    ) -> Result<Response<proto::ReplaceDriveReply>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let drive = Name::new(&request.drive_id).map_err(CommandError::from)?;
        if request
            .replacement
            .as_ref()
            .is_some_and(|r| r.drive_id == request.drive_id)
        {
            let why = "it has the id of the drive that it replaces";
            return Err(CommandError::field("replacement", why).into());
        }
        let work = join_pool(
            Arc::clone(&self.preparing),
            self.jobs.clone(),
            pool,
            Some(drive),
            request.replacement,
        );
        let done = tokio::spawn(work).await;
        done.map_err(|e| Status::internal(e.to_string()))?
            .map(Response::new)
    }

    async fn create_snapshots(
        &self,
        request: Request<proto::CreateSnapshotsRequest>,
    ) -> Result<Response<proto::CreateSnapshotsReply>, Status> {
        let request = request.into_inner();
        let pairs = snapshot_pairs(&request.snapshots)?;
        let snapshots = self
            .ask(move |c| async move { c.create_snapshots(pairs).await })
            .await?;
        Ok(Response::new(proto::CreateSnapshotsReply { snapshots }))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<proto::ListSnapshotsReply>, Status> {
        let request = request.into_inner();
        let volume = match request.volume_id.is_empty() {
            true => None,
            false => Some(volume_id(&request.volume_id)?),
        };
        let id = match request.snapshot_id.is_empty() {
            true => None,
            false => Some(snapshot_id("snapshot_id", &request.snapshot_id)?),
        };
        let snapshots = self
            .ask(move |c| async move { Ok(c.list_snapshots(volume, id).await) })
            .await?;
        Ok(Response::new(proto::ListSnapshotsReply { snapshots }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<proto::DeleteSnapshotRequest>,
    ) -> Result<Response<proto::DeleteSnapshotReply>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let id = snapshot_id("snapshot_id", &request.snapshot_id)?;
        self.ask(move |c| async move { c.delete_snapshot(volume, id).await })
            .await?;
        Ok(Response::new(proto::DeleteSnapshotReply {}))
    }

    async fn restore_volume(
        &self,
        request: Request<proto::RestoreVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let id = snapshot_id("snapshot_id", &request.snapshot_id)?;
        let volume = self.ask(move |c| async move { c.restore_volume(volume, id).await });
        volume.await.map(Response::new)
    }

    async fn clone_volume(
        &self,
        request: Request<proto::CloneVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        let request = request.into_inner();
        let to = volume_id(&request.volume_id)?;
        let from = named_volume_id("source_volume_id", &request.source_volume_id)?;
        let id = snapshot_id("snapshot_id", &request.snapshot_id)?;
        let volume = self.ask(move |c| async move { c.clone_volume(to, from, id).await });
        volume.await.map(Response::new)
    }

    async fn space_usage(
        &self,
        request: Request<proto::SpaceUsageRequest>,
    ) -> Result<Response<proto::SpaceUsageReply>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let id = maybe_snapshot_id("snapshot_id", &request.snapshot_id)?;
        let usage = self.ask(move |c| async move { c.space_usage(volume, id).await });
        usage.await.map(Response::new)
    }

    async fn diff_snapshots(
        &self,
        request: Request<proto::DiffSnapshotsRequest>,
    ) -> Result<Response<proto::DiffSnapshotsReply>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let older = maybe_snapshot_id("from_snapshot_id", &request.from_snapshot_id)?;
        let newer = maybe_snapshot_id("to_snapshot_id", &request.to_snapshot_id)?;
        let offset = request.start_offset;
        if !offset.is_multiple_of(4096) {
            let why = format!("{offset} is no multiple of 4096");
            return Err(CommandError::field("start_offset", why).into());
        }
        let max = match request.ranges_max {
            0 => RANGES_MAX,
            max => (max as usize).min(RANGES_MAX),
        };
        let ranges = self
            .ask(move |c| async move { c.diff_snapshots(volume, older, newer, offset, max).await });
        ranges.await.map(Response::new)
    }

    async fn start_scrub(
        &self,
        request: Request<proto::StartScrubRequest>,
    ) -> Result<Response<proto::ScrubStatus>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let (id, rate) = (request.scrub_id, request.rate_bytes_per_s);
        let status = self.ask(move |c| async move { c.start_scrub(pool, id, rate).await });
        status.await.map(Response::new)
    }

    async fn pause_scrub(
        &self,
        request: Request<proto::ScrubRequest>,
    ) -> Result<Response<proto::ScrubStatus>, Status> {
        self.steer_scrub(request.into_inner(), proto::ScrubState::ScrubPaused)
            .await
    }

    async fn resume_scrub(
        &self,
        request: Request<proto::ScrubRequest>,
    ) -> Result<Response<proto::ScrubStatus>, Status> {
        self.steer_scrub(request.into_inner(), proto::ScrubState::ScrubRunning)
            .await
    }

    async fn cancel_scrub(
        &self,
        request: Request<proto::ScrubRequest>,
    ) -> Result<Response<proto::ScrubStatus>, Status> {
        self.steer_scrub(request.into_inner(), proto::ScrubState::ScrubCancelled)
            .await
    }

    async fn list_scrubs(
        &self,
        _: Request<proto::ListScrubsRequest>,
    ) -> Result<Response<proto::ListScrubsReply>, Status> {
        let scrubs = self.ask(|c| async move { Ok(c.list_scrubs()) }).await?;
        Ok(Response::new(proto::ListScrubsReply { scrubs }))
    }

    async fn set_nodes(
        &self,
        request: Request<proto::SetNodesRequest>,
    ) -> Result<Response<proto::SetNodesReply>, Status> {
        let nodes = request.into_inner().nodes;
        self.ask(move |c| async move { c.set_nodes(nodes).await })
            .await?;
        Ok(Response::new(proto::SetNodesReply {}))
    }

    async fn set_loads(
        &self,
        request: Request<proto::SetLoadsRequest>,
    ) -> Result<Response<proto::SetLoadsReply>, Status> {
        let peers = request.into_inner().peers;
        self.ask(move |c| async move { c.set_loads(peers).await })
            .await?;
        Ok(Response::new(proto::SetLoadsReply {}))
    }

    async fn create_replica(
        &self,
        request: Request<proto::CreateReplicaRequest>,
    ) -> Result<Response<proto::Replica>, Status> {
        let request = request.into_inner();
        let pool = Name::new(&request.pool_id).map_err(CommandError::from)?;
        let new = NewReplica {
            volume: volume_id(&request.volume_id)?,
            replica: uuid_bytes("replica_id", &request.replica_id)?,
            size_bytes: request.size_bytes,
            lanes: request.lanes,
            encrypted: request.encrypted,
            source: match &request.source {
                Some(of) => Some((
                    volume_id(&of.volume_id)?,
                    snapshot_id("source.snapshot_id", &of.snapshot_id)?,
                )),
                None => None,
            },
        };
        let made = self.ask(move |c| async move { c.create_replica(pool, new).await });
        made.await.map(Response::new)
    }

    async fn resize_replica(
        &self,
        request: Request<proto::ResizeReplicaRequest>,
    ) -> Result<Response<proto::Replica>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let replica = uuid_bytes("replica_id", &request.replica_id)?;
        let size = request.size_bytes;
        let grown = self.ask(move |c| async move { c.resize_replica(volume, replica, size).await });
        grown.await.map(Response::new)
    }

    async fn delete_replica(
        &self,
        request: Request<proto::DeleteReplicaRequest>,
    ) -> Result<Response<proto::DeleteReplicaReply>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let replica = uuid_bytes("replica_id", &request.replica_id)?;
        let keep = request.keep_snapshots;
        self.ask(move |c| async move { c.delete_replica(volume, replica, keep).await })
            .await?;
        Ok(Response::new(proto::DeleteReplicaReply {}))
    }

    async fn list_replicas(
        &self,
        _: Request<proto::ListReplicasRequest>,
    ) -> Result<Response<proto::ListReplicasReply>, Status> {
        let replicas = self.ask(|c| async move { c.list_replicas().await }).await?;
        Ok(Response::new(proto::ListReplicasReply { replicas }))
    }

    async fn open_path(
        &self,
        request: Request<proto::OpenPathRequest>,
    ) -> Result<Response<proto::OpenPathReply>, Status> {
        let request = request.into_inner();
        let path = Path {
            volume: volume_id(&request.volume_id)?,
            size_bytes: request.size_bytes,
            lanes: request.lanes,
            volatile_cache: request.volatile_cache,
        };
        let forward = request.forward.as_ref().map(forward_of).transpose()?;
        self.ask(move |c| async move { c.open_path_alone(path, forward).await })
            .await?;
        Ok(Response::new(proto::OpenPathReply {}))
    }

    async fn close_path(
        &self,
        request: Request<proto::ClosePathRequest>,
    ) -> Result<Response<proto::ClosePathReply>, Status> {
        let volume = volume_id(&request.into_inner().volume_id)?;
        self.ask(move |c| async move { c.close_path(volume).await })
            .await?;
        Ok(Response::new(proto::ClosePathReply {}))
    }

    async fn serve(
        &self,
        request: Request<proto::ServeRequest>,
    ) -> Result<Response<proto::Coordinator>, Status> {
        let request = request.into_inner();
        let missing = || CommandError::field("record", "it is not given");
        let record = request.record.as_ref().ok_or_else(missing)?;
        let path = Path {
            volume: volume_id(&request.volume_id)?,
            size_bytes: request.size_bytes,
            lanes: request.lanes,
            volatile_cache: request.volatile_cache,
        };
        let epoch = Epoch {
            record: record_of(record)?,
            nodes: route_of(record)?,
            lease_ms: request.lease_ms,
            command_limit_ms: request.command_limit_ms,
            keys: request.keys.map(keys_of).transpose()?,
            snapshots: named_of(&request.snapshots)?,
            compared_bytes: request.compared_bytes,
            unverified: request.unverified,
        };
        let served = self.ask(move |c| async move { c.serve(path, epoch).await });
        served.await.map(Response::new)
    }

    async fn stop_serving(
        &self,
        request: Request<proto::StopServingRequest>,
    ) -> Result<Response<proto::StopServingReply>, Status> {
        let volume = volume_id(&request.into_inner().volume_id)?;
        self.ask(move |c| async move { c.stop_serving(volume).await })
            .await?;
        Ok(Response::new(proto::StopServingReply {}))
    }

    async fn list_coordinators(
        &self,
        _: Request<proto::ListCoordinatorsRequest>,
    ) -> Result<Response<proto::ListCoordinatorsReply>, Status> {
        let coordinators = self.ask(|c| async move { c.list_coordinators() }).await?;
        Ok(Response::new(proto::ListCoordinatorsReply { coordinators }))
    }

    async fn change_replicas(
        &self,
        request: Request<proto::ChangeReplicasRequest>,
    ) -> Result<Response<proto::Coordinator>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::new(volume_id(&request.volume_id)?, request)?;
        let changed = self.ask(move |c| async move { c.change_replicas(wanted) });
        changed.await.map(Response::new)
    }

    async fn grow_served(
        &self,
        request: Request<proto::GrowServedRequest>,
    ) -> Result<Response<proto::Coordinator>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let (epoch, size) = (request.epoch, request.size_bytes);
        let grown = self.ask(move |c| async move { c.grow_served(volume, epoch, size).await });
        grown.await.map(Response::new)
    }

    async fn take_snapshot(
        &self,
        request: Request<proto::TakeSnapshotRequest>,
    ) -> Result<Response<proto::TakeSnapshotReply>, Status> {
        let request = request.into_inner();
        let of = (
            volume_id(&request.volume_id)?,
            snapshot_id("snapshot_id", &request.snapshot_id)?,
        );
        let epochs = (request.epoch, request.of_epoch);
        let taken = self.ask(move |c| async move { c.take_snapshot(of, epochs).await });
        let exists = taken.await?;
        Ok(Response::new(proto::TakeSnapshotReply { exists }))
    }

    async fn hold_snapshot(
        &self,
        request: Request<proto::HoldSnapshotRequest>,
    ) -> Result<Response<proto::HoldSnapshotReply>, Status> {
        let request = request.into_inner();
        let of = (
            volume_id(&request.volume_id)?,
            snapshot_id("snapshot_id", &request.snapshot_id)?,
        );
        let epochs = (request.epoch, request.of_epoch);
        let hold = Duration::from_millis(request.hold_ms.into());
        let held = self
            .ask(move |c| async move { c.hold_snapshot(of, epochs, hold).await })
            .await?;
        Ok(Response::new(proto::HoldSnapshotReply { held }))
    }

    async fn release_snapshot(
        &self,
        request: Request<proto::ReleaseSnapshotRequest>,
    ) -> Result<Response<proto::HoldSnapshotReply>, Status> {
        let request = request.into_inner();
        let of = (
            volume_id(&request.volume_id)?,
            snapshot_id("snapshot_id", &request.snapshot_id)?,
        );
        let held = self
            .ask(move |c| async move { c.release_snapshot(of, request.epoch).await })
            .await?;
        Ok(Response::new(proto::HoldSnapshotReply { held }))
    }

    async fn drop_snapshot(
        &self,
        request: Request<proto::DropSnapshotRequest>,
    ) -> Result<Response<proto::DropSnapshotReply>, Status> {
        let request = request.into_inner();
        let of = (
            volume_id(&request.volume_id)?,
            snapshot_id("snapshot_id", &request.snapshot_id)?,
        );
        self.ask(move |c| async move { c.drop_snapshot(of, request.epoch).await })
            .await?;
        Ok(Response::new(proto::DropSnapshotReply {}))
    }

    async fn answer_set_change(
        &self,
        request: Request<proto::AnswerSetChangeRequest>,
    ) -> Result<Response<proto::AnswerSetChangeReply>, Status> {
        let answer = answer_of(&request.into_inner())?;
        self.ask(move |c| async move { c.answer_set_change(answer) })
            .await?;
        Ok(Response::new(proto::AnswerSetChangeReply {}))
    }
}
