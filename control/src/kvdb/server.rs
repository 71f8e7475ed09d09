//! The embedded server: etcd's services on a port.
use super::engine::{Change, Engine, Outcome};
use super::error::StoreError;
use super::lease::{self, Leases};
use super::store::{OpenError, Snapshot, Store};
use super::txn::REQUEST_BYTES_MAX;
use super::watch;
use keelblock_api::etcd::etcdserverpb::cluster_server::{Cluster, ClusterServer};
use keelblock_api::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use keelblock_api::etcd::etcdserverpb::lease_server::{Lease, LeaseServer};
use keelblock_api::etcd::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use keelblock_api::etcd::etcdserverpb::watch_server::{Watch, WatchServer};
use keelblock_api::etcd::etcdserverpb::*;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// The etcd API level that is served.
const API_VERSION: &str = "3.4.0";
/// A request that has not been answered by then is not going to be.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls in progress may take to end when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// What all services share.
pub struct Shared {
    store: Arc<Store>,
    leases: Arc<Leases>,
    /// The writing thread's door.
    pub engine: Engine,
    /// Becomes true when the server stops.
    pub stop: signal::Receiver<bool>,
    address: SocketAddr,
}

/// A running embedded KVDB.
pub struct Server {
    stop: signal::Sender<bool>,
    serving: JoinHandle<()>,
    sweeping: JoinHandle<()>,
    writer: std::thread::JoinHandle<()>,
    address: SocketAddr,
}

impl Server {
    /// Opens (or makes) the file and serves it on `listener`.
    pub fn start(file: &Path, listener: TcpListener) -> Result<Self, OpenError> {
        let failed = |error: String| OpenError::Store {
            path: file.to_owned(),
            error,
        };
        let address = listener.local_addr().map_err(|e| failed(e.to_string()))?;
        let store = Arc::new(Store::open(file)?);
        let found = store
            .snapshot()
            .and_then(|s| s.leases())
            .map_err(|e| failed(e.to_string()))?;
        let leases = Arc::new(Leases::new(found, Instant::now()));
        let (engine, writer) =
            Engine::start(store.clone(), leases.clone()).map_err(|e| failed(e.to_string()))?;
        let (stop, stopped) = signal::channel(false);
        let shared = Arc::new(Shared {
            store,
            leases,
            engine,
            stop: stopped.clone(),
            address,
        });
        let sweeping = tokio::spawn(sweep(shared.clone(), stopped.clone()));
        let serving = tokio::spawn(serve(shared, listener, stopped));
        Ok(Self {
            stop,
            serving,
            sweeping,
            writer,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all watches, lets calls in progress finish, and closes the file.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(STOP_GRACE, &mut self.serving)
            .await
            .is_err()
        {
            self.serving.abort();
            let _ = self.serving.await;
        }
        let _ = self.sweeping.await;
        // The thread ends when the last stream has let go of its door; the streams have been told to.
        let writer = self.writer;
        let ended = tokio::task::spawn_blocking(move || writer.join().is_ok());
        if !matches!(tokio::time::timeout(STOP_GRACE, ended).await, Ok(Ok(true))) {
            tracing::warn!("kvdb: the writing thread did not end in time");
        }
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, mut stop: signal::Receiver<bool>) {
    // An answer is several small frames: without this each change of direction costs the 40 ms of a delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = Service { shared };
    let result = tonic::transport::Server::builder()
        .timeout(CALL_TIMEOUT)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(
            KvServer::new(service.clone()).max_decoding_message_size(2 * REQUEST_BYTES_MAX),
        )
        .add_service(WatchServer::new(service.clone()))
        .add_service(LeaseServer::new(service.clone()))
        .add_service(ClusterServer::new(service.clone()))
        .add_service(MaintenanceServer::new(service))
        .serve_with_incoming_shutdown(incoming, async move { stopped(&mut stop).await })
        .await;
    if let Err(error) = result {
        tracing::error!(%error, "kvdb: the server ended");
    }
}

/// Ends leases whose time is over.
async fn sweep(shared: Arc<Shared>, mut stop: signal::Receiver<bool>) {
    let mut tick = tokio::time::interval(lease::SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        for id in shared.leases.expired(Instant::now()) {
            match shared.engine.change(Change::Expire(id)).await {
                Ok(_) => tracing::debug!(id, "kvdb: lease expired"),
                Err(StoreError::LeaseNotFound) => {}
                Err(error) => {
                    tracing::warn!(id, %error, "kvdb: an expired lease could not be ended")
                }
            }
        }
    }
}

/// Returns when the server stops.
pub async fn stopped(stop: &mut signal::Receiver<bool>) {
    // An error means that the server is gone, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Shared {
    /// The header of an answer.
    pub fn header(&self, revision: u64) -> ResponseHeader {
        let identity = self.store.identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision: revision as i64,
            raft_term: identity.term,
        }
    }

    /// Reads one consistent point of the file, off the runtime's threads.
    pub async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || f(&store.snapshot()?));
        read.await.map_err(|_| StoreError::Stopped)?
    }

    /// The header of an answer that no revision belongs to in particular.
    fn header_now(&self) -> ResponseHeader {
        self.header(*self.engine.revision().borrow())
    }
}

fn check_size(request: &impl Message) -> Result<(), StoreError> {
    if request.encoded_len() > REQUEST_BYTES_MAX {
        Err(StoreError::TooLarge)
    } else {
        Ok(())
    }
}

/// The writing thread answers a change with the outcome of its kind.
fn wrong_outcome() -> Status {
    Status::internal("the KVDB's writing thread answered with another kind of outcome")
}

/// Answers etcd's calls.
#[derive(Clone)]
struct Service {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        let (response, revision) = self
            .shared
            .read(move |s| Ok((s.range(&request)?, s.revisions.current)))
            .await?;
        Ok(Response::new(RangeResponse {
            header: Some(self.shared.header(revision)),
            ..response
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        check_size(request.get_ref())?;
        match self
            .shared
            .engine
            .change(Change::Put(request.into_inner()))
            .await?
        {
            (Outcome::Put(r), revision) => Ok(Response::new(PutResponse {
                header: Some(self.shared.header(revision)),
                ..r
            })),
            _ => Err(wrong_outcome()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        match self
            .shared
            .engine
            .change(Change::DeleteRange(request.into_inner()))
            .await?
        {
            (Outcome::DeleteRange(r), revision) => Ok(Response::new(DeleteRangeResponse {
                header: Some(self.shared.header(revision)),
                ..r
            })),
            _ => Err(wrong_outcome()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        check_size(request.get_ref())?;
        match self
            .shared
            .engine
            .change(Change::Txn(request.into_inner()))
            .await?
        {
            (Outcome::Txn(r), revision) => Ok(Response::new(TxnResponse {
                header: Some(self.shared.header(revision)),
                ..r
            })),
            _ => Err(wrong_outcome()),
        }
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let (_, revision) = self
            .shared
            .engine
            .change(Change::Compact(request.into_inner().revision))
            .await?;
        Ok(Response::new(CompactionResponse {
            header: Some(self.shared.header(revision)),
        }))
    }
}

#[tonic::async_trait]
impl Watch for Service {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, responses) = mpsc::channel(watch::RESPONSES);
        tokio::spawn(watch::Stream::serve(
            self.shared.clone(),
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl Lease for Service {
    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let LeaseGrantRequest { id, ttl } = request.into_inner();
        if ttl > lease::TTL_MAX_S {
            return Err(StoreError::LeaseTtl.into());
        }
        let ttl = ttl.max(1);
        // The server's choice is positive, as etcd's is.
        let id = if id != 0 {
            id
        } else {
            StdRng::from_os_rng().random_range(1..=i64::MAX)
        };
        let (_, revision) = self.shared.engine.change(Change::Grant(id, ttl)).await?;
        Ok(Response::new(LeaseGrantResponse {
            header: Some(self.shared.header(revision)),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let (_, revision) = self
            .shared
            .engine
            .change(Change::Revoke(request.into_inner().id))
            .await?;
        Ok(Response::new(LeaseRevokeResponse {
            header: Some(self.shared.header(revision)),
        }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (out, responses) = mpsc::channel(watch::RESPONSES);
        tokio::spawn(keep_alive(self.shared.clone(), request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let header = Some(self.shared.header_now());
        let Some((ttl, granted_ttl)) = self.shared.leases.remaining(id, Instant::now()) else {
            return Ok(Response::new(LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..Default::default()
            }));
        };
        let keys = if keys {
            self.shared.read(move |s| s.lease_keys(id)).await?
        } else {
            Vec::new()
        };
        Ok(Response::new(LeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self
            .shared
            .leases
            .ids()
            .into_iter()
            .map(|id| LeaseStatus { id })
            .collect();
        Ok(Response::new(LeaseLeasesResponse {
            header: Some(self.shared.header_now()),
            leases,
        }))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(
        &self,
        _: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let member = Member {
            id: self.shared.store.identity().member_id,
            name: "keelblock".into(),
            client_ur_ls: vec![format!("http://{}", self.shared.address)],
            ..Default::default()
        };
        Ok(Response::new(MemberListResponse {
            header: Some(self.shared.header_now()),
            members: vec![member],
        }))
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    /// There are no alarms to list; one cannot be raised by hand.
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        if request.get_ref().action() == alarm_request::AlarmAction::Activate {
            return Err(Status::unimplemented(
                "the embedded KVDB has no alarms to raise",
            ));
        }
        Ok(Response::new(AlarmResponse {
            header: Some(self.shared.header_now()),
            alarms: Vec::new(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let identity = self.shared.store.identity();
        let header = self.shared.header_now();
        let bytes = self.shared.store.file_bytes() as i64;
        let index = header.revision as u64;
        Ok(Response::new(StatusResponse {
            header: Some(header),
            version: API_VERSION.into(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader: identity.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: identity.term,
            ..Default::default()
        }))
    }
}

/// Renews leases until either side ends the stream.
async fn keep_alive(
    shared: Arc<Shared>,
    mut requests: Streaming<LeaseKeepAliveRequest>,
    out: mpsc::Sender<Result<LeaseKeepAliveResponse, Status>>,
) {
    let mut stop = shared.stop.clone();
    loop {
        let id = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => request.id,
                Ok(None) | Err(_) => return,
            },
            () = stopped(&mut stop) => return,
        };
        let ttl = shared.leases.keep_alive(id, Instant::now()).unwrap_or(0);
        let response = LeaseKeepAliveResponse {
            header: Some(shared.header_now()),
            id,
            ttl,
        };
        if out.send(Ok(response)).await.is_err() {
            return;
        }
    }
}
