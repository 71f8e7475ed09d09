//! A data path that only remembers what it was told: it serves the real contract over the real channel, on a thread of its own, and
//! can be killed, come back with or without its memory, refuse and hang.
use crate::fake_replication::Replication;
use keelblock_api::channel::Listener;
use keelblock_api::datapath::datapath_server::{Datapath, DatapathServer};
use keelblock_api::datapath::*;
use keelblock_api::stats::{StatsPage, VolumeSlot};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

/// Where the fake says that hosts connect.
pub const NVME: &str = "127.0.0.1:14420";
const EVENTS: usize = 64;

/// What it remembers: its drives, and what it serves.
#[derive(Default)]
pub struct Memory {
    /// Volumes by id.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots by id.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// The last scrub of each pool; gone when it ends.
    pub scrubs: BTreeMap<String, ScrubStatus>,
    /// Drives that are not as large as the pool.
    pub sizes: HashMap<String, u64>,
    /// Drives that are not just in use.
    pub states: HashMap<String, DriveState>,
    /// Drives that do not work.
    pub failed: Vec<String>,
    /// When scrubs start, in ms.
    pub clock: u64,
    /// Exports by NQN.
    pub exports: BTreeMap<String, ExportRequest>,
    /// Pools as they were last opened, and whether a format was allowed.
    pub pools: BTreeMap<String, OpenPoolRequest>,
    /// Drives that have a superblock.
    pub formatted: Vec<String>,
    /// Reservations that were confirmed.
    pub commits: Vec<CommitReservationRequest>,
    /// Methods to refuse, and how.
    pub refuse: HashMap<&'static str, (Code, &'static str)>,
    /// A method that never answers.
    pub hang: Option<&'static str>,
    /// Methods that answer late, and by how much.
    pub late: HashMap<&'static str, Duration>,
    /// Bytes that may be taken in all.
    pub capacity: u64,
    /// It was started with replication.
    pub replicating: bool,
    /// What it knows of replicated volumes.
    pub replication: Replication,
    cluster: Option<String>,
    events: Option<mpsc::Sender<Result<Event, Status>>>,
    slots: HashMap<String, VolumeSlot>,
}

type Shared = Arc<Mutex<Memory>>;

/// A running fake.
pub struct Fake {
    socket: PathBuf,
    memory: Shared,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Fake {
    /// Starts one.
    pub fn start(socket: &Path) -> Self {
        let memory = Memory {
            capacity: 1 << 40,
            ..Default::default()
        };
        let mut fake = Self {
            socket: socket.to_owned(),
            memory: Arc::new(Mutex::new(memory)),
            running: None,
        };
        fake.restart();
        fake
    }

    /// What it remembers.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    /// Ends at once, with calls in flight.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send(()).unwrap();
            thread.join().unwrap();
        }
        let mut memory = self.memory();
        memory.events = None;
        memory.slots.clear();
        memory.exports.clear();
        memory.pools.clear();
        memory.scrubs.clear();
        memory.replication.end();
        memory.cluster = None;
    }

    /// Comes back: its drives and volumes are there, what it exported is not.
    pub fn restart(&mut self) {
        self.kill();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (socket, memory) = (self.socket.clone(), self.memory.clone());
        let incarnation = Uuid::new_v4();
        let stats = StatsPage::create(1, 64, incarnation.into_bytes(), 0).unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(&socket, stats.clone()).await.unwrap();
                ready.send(()).unwrap();
                let service = Service {
                    memory,
                    stats,
                    incarnation,
                };
                let serving = tonic::transport::Server::builder()
                    .add_service(DatapathServer::new(service))
                    .serve_with_incoming(listener.into_incoming());
                tokio::select! {
                    end = serving => panic!("the fake ended by itself: {end:?}"),
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        self.running = Some((stop, thread));
    }

    /// Reports an event.
    pub async fn report(&self, what: event::What) {
        let events = self.memory().events.clone().expect("somebody watches");
        events.send(Ok(happened(what))).await.unwrap();
    }

    /// Counts a read and a write of an exported volume.
    pub fn count_io(&self, volume_id: &str) {
        let counters = self.memory().slots[volume_id].reactor(0).unwrap();
        counters.read_done(4096, 50_000);
        counters.write_done(8192, 2_000_000);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service {
    memory: Shared,
    stats: StatsPage,
    incarnation: Uuid,
}

impl Service {
    async fn begin(&self, method: &'static str) -> Result<MutexGuard<'_, Memory>, Status> {
        let (hangs, refusal, late) = {
            let memory = self.memory.lock().unwrap();
            (
                memory.hang == Some(method),
                memory.refuse.get(method).copied(),
                memory.late.get(method).copied(),
            )
        };
        if let Some(late) = late {
            tokio::time::sleep(late).await;
        }
        if hangs {
            std::future::pending::<()>().await;
        }
        match refusal {
            Some((code, message)) => Err(Status::new(code, message)),
            None => Ok(self.memory.lock().unwrap()),
        }
    }
}

fn pool(request: &OpenPoolRequest, memory: &Memory) -> Pool {
    let drive = |d: &DriveSpec| Drive {
        drive_id: d.drive_id.clone(),
        path: d.path.clone(),
        size_bytes: *memory.sizes.get(&d.drive_id).unwrap_or(&memory.capacity),
        health: match memory.failed.contains(&d.drive_id) {
            true => Health::Failed.into(),
            false => Health::Online.into(),
        },
        error: match memory.failed.contains(&d.drive_id) {
            true => "it does not answer".into(),
            false => String::new(),
        },
        state: (*memory
            .states
            .get(&d.drive_id)
            .unwrap_or(&DriveState::DriveInUse))
        .into(),
        used_bytes: 4096,
        ..Default::default()
    };
    Pool {
        pool_id: request.pool_id.clone(),
        drives: request.drives.iter().map(drive).collect(),
        total_bytes: request
            .drives
            .iter()
            .map(|d| memory.sizes.get(&d.drive_id).unwrap_or(&memory.capacity))
            .sum(),
        used_bytes: memory.volumes.values().map(|v| v.used_bytes).sum(),
        free_bytes: memory.capacity / 2,
        ..Default::default()
    }
}

fn room(memory: &Memory, without: &str, size_bytes: u64) -> Result<(), Status> {
    let others = memory.volumes.values().filter(|v| v.volume_id != without);
    let taken: u64 = others.map(|v| v.size_bytes).sum();
    if taken + size_bytes > memory.capacity {
        Err(Status::resource_exhausted("the pool is full"))
    } else {
        Ok(())
    }
}

#[tonic::async_trait]
impl Datapath for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let mut memory = self.begin("hello").await?;
        let cluster = request.into_inner().cluster_id;
        if memory.cluster.get_or_insert_with(|| cluster.clone()) != &cluster {
            return Err(Status::failed_precondition(
                "this data path serves another cluster",
            ));
        }
        Ok(Response::new(HelloReply {
            incarnation: self.incarnation.to_string(),
            version: "fake".into(),
            pid: std::process::id(),
            nvme_address: NVME.into(),
            reactors: vec![Reactor {
                id: 0,
                cpu: -1,
                poll: "adaptive".into(),
            }],
            memory_bytes: 1 << 20,
            hugepages: false,
            started_unix_ms: 1,
            replication_address: match memory.replicating {
                true => "127.0.0.1:19022".into(),
                false => String::new(),
            },
            public_key: match memory.replicating {
                true => vec![7; 32],
                false => Vec::new(),
            },
        }))
    }

    async fn open_pool(&self, request: Request<OpenPoolRequest>) -> Result<Response<Pool>, Status> {
        let mut memory = self.begin("open_pool").await?;
        let request = request.into_inner();
        for drive in &request.drives {
            let failed = memory.failed.contains(&drive.drive_id) && request.allow_missing;
            if !failed && !memory.formatted.contains(&drive.drive_id) {
                if !request.format {
                    return Err(Status::failed_precondition(format!(
                        "drive {} has no superblock",
                        drive.path
                    )));
                }
                memory.formatted.push(drive.drive_id.clone());
            }
        }
        let opened = pool(&request, &memory);
        memory.pools.insert(request.pool_id.clone(), request);
        Ok(Response::new(opened))
    }

    async fn list_pools(
        &self,
        _: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsReply>, Status> {
        let memory = self.begin("list_pools").await?;
        let pools = memory.pools.values().map(|p| pool(p, &memory)).collect();
        Ok(Response::new(ListPoolsReply { pools }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let mut memory = self.begin("create_volume").await?;
        let CreateVolumeRequest {
            volume_id,
            pool_id,
            size_bytes,
        } = request.into_inner();
        if !memory.pools.contains_key(&pool_id) {
            return Err(Status::not_found("no such pool"));
        }
        if !size_bytes.is_multiple_of(4096) || Uuid::try_parse(&volume_id).is_err() {
            return Err(Status::invalid_argument("bad size or id"));
        }
        room(&memory, &volume_id, size_bytes)?;
        let volume = Volume {
            volume_id: volume_id.clone(),
            pool_id,
            size_bytes,
            used_bytes: size_bytes / 2,
            stats_slot: -1,
            ..Default::default()
        };
        Ok(Response::new(
            memory.volumes.entry(volume_id).or_insert(volume).clone(),
        ))
    }

    async fn resize_volume(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let mut memory = self.begin("resize_volume").await?;
        let ResizeVolumeRequest {
            volume_id,
            size_bytes,
        } = request.into_inner();
        room(&memory, &volume_id, size_bytes)?;
        let volume = memory
            .volumes
            .get_mut(&volume_id)
            .ok_or_else(|| Status::not_found("no such volume"))?;
        if size_bytes < volume.size_bytes {
            return Err(Status::invalid_argument("volumes do not shrink"));
        }
        volume.size_bytes = size_bytes;
        Ok(Response::new(volume.clone()))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeReply>, Status> {
        let mut memory = self.begin("delete_volume").await?;
        let id = request.into_inner().volume_id;
        if memory
            .exports
            .values()
            .flat_map(|e| &e.namespaces)
            .any(|n| n.volume_id == id)
        {
            return Err(Status::failed_precondition("the volume is exported"));
        }
        memory.volumes.remove(&id);
        Ok(Response::new(DeleteVolumeReply {}))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesReply>, Status> {
        let memory = self.begin("list_volumes").await?;
        Ok(Response::new(ListVolumesReply {
            volumes: memory.volumes.values().cloned().collect(),
        }))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Subsystem>, Status> {
        let mut memory = self.begin("export").await?;
        let request = request.into_inner();
        if request.serial.len() > 20
            || request.cntlid_min == 0
            || request.cntlid_min > request.cntlid_max
        {
            return Err(Status::invalid_argument("bad serial or controller ids"));
        }
        for namespace in &request.namespaces {
            let known = memory.volumes.contains_key(&namespace.volume_id)
                || memory.replication.paths.contains_key(&namespace.volume_id);
            if !known || namespace.nguid.len() != 16 {
                return Err(Status::not_found("no such volume"));
            }
            let id = Uuid::try_parse(&namespace.volume_id).unwrap();
            let slot = || self.stats.volume(id.into_bytes()).unwrap();
            memory
                .slots
                .entry(namespace.volume_id.clone())
                .or_insert_with(slot);
        }
        memory.exports.insert(request.nqn.clone(), request.clone());
        Ok(Response::new(Subsystem {
            config: Some(request),
            controllers: Vec::new(),
        }))
    }

    async fn unexport(
        &self,
        request: Request<UnexportRequest>,
    ) -> Result<Response<UnexportReply>, Status> {
        let mut memory = self.begin("unexport").await?;
        memory.exports.remove(&request.into_inner().nqn);
        Ok(Response::new(UnexportReply {}))
    }

    async fn list_subsystems(
        &self,
        _: Request<ListSubsystemsRequest>,
    ) -> Result<Response<ListSubsystemsReply>, Status> {
        let memory = self.begin("list_subsystems").await?;
        let subsystem = |config: &ExportRequest| Subsystem {
            config: Some(config.clone()),
            controllers: Vec::new(),
        };
        Ok(Response::new(ListSubsystemsReply {
            subsystems: memory.exports.values().map(subsystem).collect(),
        }))
    }

    type WatchStream = ReceiverStream<Result<Event, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut memory = self.begin("watch").await?;
        let (events, stream) = mpsc::channel(EVENTS);
        for coordinator in memory.replication.coordinators.values() {
            let what = event::What::Coordinator(coordinator.clone());
            events.try_send(Ok(happened(what))).unwrap();
        }
        memory.events = Some(events);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn commit_reservation(
        &self,
        request: Request<CommitReservationRequest>,
    ) -> Result<Response<CommitReservationReply>, Status> {
        self.begin("commit_reservation")
            .await?
            .commits
            .push(request.into_inner());
        Ok(Response::new(CommitReservationReply {}))
    }

    async fn add_drive(&self, request: Request<AddDriveRequest>) -> Result<Response<Pool>, Status> {
        let mut memory = self.begin("add_drive").await?;
        let request = request.into_inner();
        let drive = request.drive.unwrap_or_default();
        if !memory.formatted.contains(&drive.drive_id) {
            memory.formatted.push(drive.drive_id.clone());
        }
        let opened = memory.pool_mut(&request.pool_id)?;
        if !opened.drives.contains(&drive) {
            opened.drives.push(drive);
        }
        let opened = opened.clone();
        Ok(Response::new(pool(&opened, &memory)))
    }

    async fn grow_drive(
        &self,
        request: Request<GrowDriveRequest>,
    ) -> Result<Response<Drive>, Status> {
        let mut memory = self.begin("grow_drive").await?;
        let r = request.into_inner();
        let now = memory.capacity;
        let size = memory.sizes.entry(r.drive_id.clone()).or_insert(now);
        *size = r.size_bytes.max(*size);
        memory.drive(&r.pool_id, &r.drive_id).map(Response::new)
    }

    async fn evacuate_drive(
        &self,
        request: Request<EvacuateDriveRequest>,
    ) -> Result<Response<Drive>, Status> {
        let mut memory = self.begin("evacuate_drive").await?;
        let r = request.into_inner();
        let state = DriveState::DriveEvacuating;
        memory.states.entry(r.drive_id.clone()).or_insert(state);
        memory.drive(&r.pool_id, &r.drive_id).map(Response::new)
    }

    async fn cancel_evacuation(
        &self,
        request: Request<CancelEvacuationRequest>,
    ) -> Result<Response<Drive>, Status> {
        let mut memory = self.begin("cancel_evacuation").await?;
        let r = request.into_inner();
        memory.states.remove(&r.drive_id);
        memory.drive(&r.pool_id, &r.drive_id).map(Response::new)
    }

    async fn remove_drive(
        &self,
        request: Request<RemoveDriveRequest>,
    ) -> Result<Response<Pool>, Status> {
        let mut memory = self.begin("remove_drive").await?;
        let r = request.into_inner();
        if memory.states.get(&r.drive_id) != Some(&DriveState::DriveEvacuated) {
            return Err(Status::failed_precondition("the drive holds lanes"));
        }
        let opened = memory.pool_mut(&r.pool_id)?;
        opened.drives.retain(|d| d.drive_id != r.drive_id);
        let opened = opened.clone();
        Ok(Response::new(pool(&opened, &memory)))
    }

    async fn replace_drive(
        &self,
        request: Request<ReplaceDriveRequest>,
    ) -> Result<Response<ReplaceDriveReply>, Status> {
        let mut memory = self.begin("replace_drive").await?;
        let r = request.into_inner();
        if !memory.failed.contains(&r.drive_id) {
            return Err(Status::failed_precondition("the drive works"));
        }
        let opened = memory.pool_mut(&r.pool_id)?;
        opened.drives.retain(|d| d.drive_id != r.drive_id);
        opened.drives.extend(r.replacement.clone());
        let opened = opened.clone();
        memory.formatted.extend(r.replacement.map(|d| d.drive_id));
        let lost_volume_ids = memory.volumes.keys().cloned().collect();
        Ok(Response::new(ReplaceDriveReply {
            pool: Some(pool(&opened, &memory)),
            lost_volume_ids,
        }))
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsReply>, Status> {
        let mut memory = self.begin("create_snapshots").await?;
        let mut taken = Vec::new();
        for new in request.into_inner().snapshots {
            let volume = memory
                .volumes
                .get(&new.volume_id)
                .ok_or_else(|| Status::not_found("no such volume"))?;
            let snapshot = Snapshot {
                snapshot_id: new.snapshot_id,
                volume_id: new.volume_id,
                pool_id: volume.pool_id.clone(),
                size_bytes: volume.size_bytes,
                used_bytes: volume.used_bytes,
                complete: true,
                error: String::new(),
            };
            taken.push(snapshot);
        }
        for snapshot in &taken {
            let id = snapshot.snapshot_id.clone();
            memory.snapshots.insert(id, snapshot.clone());
        }
        Ok(Response::new(CreateSnapshotsReply { snapshots: taken }))
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsReply>, Status> {
        let memory = self.begin("list_snapshots").await?;
        Ok(Response::new(ListSnapshotsReply {
            snapshots: memory.snapshots.values().cloned().collect(),
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotReply>, Status> {
        let mut memory = self.begin("delete_snapshot").await?;
        memory.snapshots.remove(&request.into_inner().snapshot_id);
        Ok(Response::new(DeleteSnapshotReply {}))
    }

    async fn restore_volume(
        &self,
        request: Request<RestoreVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let mut memory = self.begin("restore_volume").await?;
        let r = request.into_inner();
        let snapshot = memory.snapshot(&r.volume_id, &r.snapshot_id)?;
        let volume = memory
            .volumes
            .get_mut(&r.volume_id)
            .ok_or_else(|| Status::not_found("no such volume"))?;
        volume.size_bytes = snapshot.size_bytes;
        volume.used_bytes = snapshot.used_bytes;
        Ok(Response::new(volume.clone()))
    }

    async fn clone_volume(
        &self,
        request: Request<CloneVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let mut memory = self.begin("clone_volume").await?;
        let r = request.into_inner();
        let snapshot = memory.snapshot(&r.source_volume_id, &r.snapshot_id)?;
        let volume = Volume {
            volume_id: r.volume_id.clone(),
            pool_id: snapshot.pool_id,
            size_bytes: snapshot.size_bytes,
            used_bytes: snapshot.used_bytes,
            stats_slot: -1,
            ..Default::default()
        };
        let volume = memory.volumes.entry(r.volume_id).or_insert(volume);
        Ok(Response::new(volume.clone()))
    }

    async fn space_usage(
        &self,
        request: Request<SpaceUsageRequest>,
    ) -> Result<Response<SpaceUsageReply>, Status> {
        let memory = self.begin("space_usage").await?;
        let r = request.into_inner();
        let used_bytes = match r.snapshot_id.as_str() {
            "" => memory.volumes[&r.volume_id].used_bytes,
            id => memory.snapshot(&r.volume_id, id)?.used_bytes,
        };
        Ok(Response::new(SpaceUsageReply {
            used_bytes,
            unique_bytes: used_bytes / 4,
            unique_metadata_bytes: 4096,
        }))
    }

    /// One range per call: data in the first half, nothing in the second.
    async fn diff_snapshots(
        &self,
        request: Request<DiffSnapshotsRequest>,
    ) -> Result<Response<DiffSnapshotsReply>, Status> {
        let memory = self.begin("diff_snapshots").await?;
        let r = request.into_inner();
        for id in [&r.from_snapshot_id, &r.to_snapshot_id] {
            if !id.is_empty() {
                memory.snapshot(&r.volume_id, id)?;
            }
        }
        let (range, next_offset) = match r.start_offset {
            0 => ((0, true), Some(4096)),
            offset => ((offset, false), None),
        };
        Ok(Response::new(DiffSnapshotsReply {
            ranges: vec![DiffRange {
                offset: range.0,
                length: 4096,
                data: range.1,
            }],
            next_offset,
        }))
    }

    async fn start_scrub(
        &self,
        request: Request<StartScrubRequest>,
    ) -> Result<Response<ScrubStatus>, Status> {
        let mut memory = self.begin("start_scrub").await?;
        let r = request.into_inner();
        memory.clock += 1000;
        let status = ScrubStatus {
            pool_id: r.pool_id.clone(),
            scrub_id: r.scrub_id,
            state: ScrubState::ScrubRunning.into(),
            rate_bytes_per_s: r.rate_bytes_per_s,
            total_bytes: 1 << 20,
            started_unix_ms: memory.clock,
            ..Default::default()
        };
        memory.scrubs.insert(r.pool_id, status.clone());
        Ok(Response::new(status))
    }

    async fn pause_scrub(
        &self,
        request: Request<ScrubRequest>,
    ) -> Result<Response<ScrubStatus>, Status> {
        let memory = self.begin("pause_scrub").await?;
        steer(memory, request.into_inner(), ScrubState::ScrubPaused)
    }

    async fn resume_scrub(
        &self,
        request: Request<ScrubRequest>,
    ) -> Result<Response<ScrubStatus>, Status> {
        let memory = self.begin("resume_scrub").await?;
        steer(memory, request.into_inner(), ScrubState::ScrubRunning)
    }

    async fn cancel_scrub(
        &self,
        request: Request<ScrubRequest>,
    ) -> Result<Response<ScrubStatus>, Status> {
        let memory = self.begin("cancel_scrub").await?;
        steer(memory, request.into_inner(), ScrubState::ScrubCancelled)
    }

    async fn list_scrubs(
        &self,
        _: Request<ListScrubsRequest>,
    ) -> Result<Response<ListScrubsReply>, Status> {
        let memory = self.begin("list_scrubs").await?;
        Ok(Response::new(ListScrubsReply {
            scrubs: memory.scrubs.values().cloned().collect(),
        }))
    }

    async fn set_nodes(
        &self,
        request: Request<SetNodesRequest>,
    ) -> Result<Response<SetNodesReply>, Status> {
        let mut memory = self.begin("set_nodes").await?;
        memory.replication.nodes = request.into_inner().nodes;
        Ok(Response::new(SetNodesReply {}))
    }

    async fn set_loads(
        &self,
        request: Request<SetLoadsRequest>,
    ) -> Result<Response<SetLoadsReply>, Status> {
        let mut memory = self.begin("set_loads").await?;
        memory.replication.loads = request.into_inner().peers;
        Ok(Response::new(SetLoadsReply {}))
    }

    async fn create_replica(
        &self,
        request: Request<CreateReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let mut memory = self.begin("create_replica").await?;
        let request = request.into_inner();
        if !memory.pools.contains_key(&request.pool_id) {
            return Err(Status::not_found("no such pool"));
        }
        memory.replication.make(request).map(Response::new)
    }

    async fn resize_replica(
        &self,
        request: Request<ResizeReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let mut memory = self.begin("resize_replica").await?;
        let replica = memory.replication.resize(&request.into_inner());
        replica.map(Response::new)
    }

    async fn delete_replica(
        &self,
        request: Request<DeleteReplicaRequest>,
    ) -> Result<Response<DeleteReplicaReply>, Status> {
        let mut memory = self.begin("delete_replica").await?;
        memory.replication.remove(request.into_inner());
        Ok(Response::new(DeleteReplicaReply {}))
    }

    async fn list_replicas(
        &self,
        _: Request<ListReplicasRequest>,
    ) -> Result<Response<ListReplicasReply>, Status> {
        let memory = self.begin("list_replicas").await?;
        Ok(Response::new(memory.replication.list()))
    }

    async fn open_path(
        &self,
        request: Request<OpenPathRequest>,
    ) -> Result<Response<OpenPathReply>, Status> {
        let mut memory = self.begin("open_path").await?;
        let request = request.into_inner();
        let id = request.volume_id.clone();
        memory.replication.paths.insert(id, request);
        Ok(Response::new(OpenPathReply {}))
    }

    async fn close_path(
        &self,
        request: Request<ClosePathRequest>,
    ) -> Result<Response<ClosePathReply>, Status> {
        let mut memory = self.begin("close_path").await?;
        let id = request.into_inner().volume_id;
        let mut namespaces = memory.exports.values().flat_map(|e| &e.namespaces);
        if namespaces.any(|n| n.volume_id == id) {
            return Err(Status::failed_precondition("the volume is exported"));
        }
        memory.replication.paths.remove(&id);
        Ok(Response::new(ClosePathReply {}))
    }

    async fn serve(&self, request: Request<ServeRequest>) -> Result<Response<Coordinator>, Status> {
        let mut memory = self.begin("serve").await?;
        let (coordinator, asks) = memory
            .replication
            .serve(request.into_inner(), self.incarnation)?;
        if let (Some(asks), Some(events)) = (asks, &memory.events) {
            let what = event::What::SetChange(asks);
            // Nobody hears of it if the control process is being restarted.
            let _ = events.try_send(Ok(happened(what)));
        }
        Ok(Response::new(coordinator))
    }

    async fn stop_serving(
        &self,
        request: Request<StopServingRequest>,
    ) -> Result<Response<StopServingReply>, Status> {
        let mut memory = self.begin("stop_serving").await?;
        let id = request.into_inner().volume_id;
        memory.replication.coordinators.remove(&id);
        Ok(Response::new(StopServingReply {}))
    }

    async fn list_coordinators(
        &self,
        _: Request<ListCoordinatorsRequest>,
    ) -> Result<Response<ListCoordinatorsReply>, Status> {
        let memory = self.begin("list_coordinators").await?;
        let coordinators = memory.replication.coordinators.values().cloned().collect();
        Ok(Response::new(ListCoordinatorsReply { coordinators }))
    }

    async fn answer_set_change(
        &self,
        request: Request<AnswerSetChangeRequest>,
    ) -> Result<Response<AnswerSetChangeReply>, Status> {
        let mut memory = self.begin("answer_set_change").await?;
        let said = memory.replication.answer(request.into_inner());
        if let (Some((reports, asks)), Some(events)) = (said, &memory.events) {
            let asks = asks.map(event::What::SetChange);
            for what in std::iter::once(event::What::Coordinator(reports)).chain(asks) {
                // A control process that stops hears nothing more.
                match events.try_send(Ok(happened(what))) {
                    Ok(()) | Err(TrySendError::Closed(_)) => {}
                    Err(TrySendError::Full(_)) => panic!("control does not listen"),
                }
            }
        }
        Ok(Response::new(AnswerSetChangeReply {}))
    }

    async fn grow_served(
        &self,
        request: Request<GrowServedRequest>,
    ) -> Result<Response<Coordinator>, Status> {
        let mut memory = self.begin("grow_served").await?;
        let grown = memory.replication.grow(&request.into_inner())?;
        Ok(Response::new(grown))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotReply>, Status> {
        let mut memory = self.begin("take_snapshot").await?;
        let taken = memory.replication.take(&request.into_inner())?;
        Ok(Response::new(taken))
    }

    async fn hold_snapshot(
        &self,
        request: Request<HoldSnapshotRequest>,
    ) -> Result<Response<HoldSnapshotReply>, Status> {
        let mut memory = self.begin("hold_snapshot").await?;
        let held = memory.replication.hold(&request.into_inner())?;
        Ok(Response::new(held))
    }

    async fn release_snapshot(
        &self,
        request: Request<ReleaseSnapshotRequest>,
    ) -> Result<Response<HoldSnapshotReply>, Status> {
        let mut memory = self.begin("release_snapshot").await?;
        let held = memory.replication.release(&request.into_inner())?;
        Ok(Response::new(held))
    }

    async fn drop_snapshot(
        &self,
        request: Request<DropSnapshotRequest>,
    ) -> Result<Response<DropSnapshotReply>, Status> {
        let mut memory = self.begin("drop_snapshot").await?;
        let id = request.into_inner().snapshot_id;
        memory.replication.snapshots.retain(|s| *s != id);
        memory.replication.holds.remove(&id);
        Ok(Response::new(DropSnapshotReply {}))
    }

    async fn change_replicas(
        &self,
        request: Request<ChangeReplicasRequest>,
    ) -> Result<Response<Coordinator>, Status> {
        let mut memory = self.begin("change_replicas").await?;
        let (coordinator, asks) = memory.replication.change(request.into_inner())?;
        if let (Some(asks), Some(events)) = (asks, &memory.events) {
            let what = event::What::SetChange(asks);
            events.try_send(Ok(happened(what))).unwrap();
        }
        Ok(Response::new(coordinator))
    }
}

fn happened(what: event::What) -> Event {
    Event {
        unix_ms: 0,
        what: Some(what),
    }
}

fn steer(
    mut memory: MutexGuard<'_, Memory>,
    request: ScrubRequest,
    state: ScrubState,
) -> Result<Response<ScrubStatus>, Status> {
    let status = memory.scrubs.get_mut(&request.pool_id);
    let status = status.filter(|s| s.scrub_id == request.scrub_id);
    let status = status.ok_or_else(|| Status::not_found("no such scrub"))?;
    status.set_state(state);
    Ok(Response::new(status.clone()))
}

impl Memory {
    fn pool_mut(&mut self, id: &str) -> Result<&mut OpenPoolRequest, Status> {
        let pool = self.pools.get_mut(id);
        pool.ok_or_else(|| Status::not_found("no such pool"))
    }

    fn drive(&self, pool_id: &str, id: &str) -> Result<Drive, Status> {
        let opened = self.pools.get(pool_id);
        let opened = opened.ok_or_else(|| Status::not_found("no such pool"))?;
        let mut drives = pool(opened, self).drives.into_iter();
        let drive = drives.find(|d| d.drive_id == id);
        drive.ok_or_else(|| Status::not_found("no such drive"))
    }

    fn snapshot(&self, volume_id: &str, id: &str) -> Result<Snapshot, Status> {
        let found = self.snapshots.get(id).filter(|s| s.volume_id == volume_id);
        found
            .cloned()
            .ok_or_else(|| Status::not_found("no such snapshot"))
    }
}
