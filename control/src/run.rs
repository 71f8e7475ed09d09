//! Start, serve, stop. What can be wrong with how the process was started is found here, before anything is changed: a busy
//! port, a directory of another cluster, a drive that cannot be. Stopping leaves every export as it is.
use crate::auth::{AuthFileError, Authenticators, Door};
use crate::config::{Config, KvdbConfig};
use crate::coordination::{coordinate, stay_alive};
use crate::datadir::{DataDir, DataDirError};
use crate::datapath::{Link, supervise};
use crate::error::OpError;
use crate::gossip::{bind as bind_gossip, gossip, tell_loads};
use crate::kvdb::store::OpenError;
use crate::kvdb::{Client, KvError, Server};
use crate::membership::lead_membership;
use crate::mending::keep_mending;
use crate::node::Node;
use crate::rebalancing::keep_rebalancing;
use crate::records::{Keys, PoolRecord, Registry, unix_ms};
use crate::rest;
use crate::schedule::keep_schedules;
use crate::sdk::Services;
use axum::serve::ListenerExt;
use keelblock_api::EXIT_LEFT;
use keelblock_api::json::Codec;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

/// A call that has not been answered by then is not going to be. Above every limit inside.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long calls in progress may take to end when the process stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often it is looked for scans that are due.
const SCAN_LOOK: Duration = Duration::from_secs(15);

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port that is taken, or an address that is not this machine's.
    #[error("cannot listen on {address} for {what}: {error}. Give another address with {flag}")]
    Listen {
        /// What is served there.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What to change it with.
        flag: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// A drive that cannot be used.
    #[error("{0}")]
    Drive(String),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Who may call.
    #[error(transparent)]
    Auth(#[from] AuthFileError),
    /// The embedded KVDB.
    #[error(transparent)]
    Kvdb(#[from] OpenError),
    /// The KVDB's client.
    #[error(transparent)]
    Client(#[from] KvError),
    /// What the process was started with was refused.
    #[error("{0}")]
    Refused(#[from] OpError),
    /// The program itself is at fault.
    #[error("the contracts in this program cannot be read: {0}")]
    Contracts(String),
}

impl RunError {
    /// The process' exit code: 1, or [`EXIT_LEFT`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(OpError::Left(_)) => EXIT_LEFT,
            _ => 1,
        }
    }
}

/// A running control process.
pub struct Control {
    /// Where the SDK is served.
    pub sdk: SocketAddr,
    /// Where REST is served.
    pub rest: SocketAddr,
    /// Where the KVDB is served.
    pub kvdb: String,
    /// The node.
    pub node: Arc<Node>,
    stop: watch::Sender<bool>,
    tasks: tokio::task::JoinSet<Option<OpError>>,
    server: Option<Server>,
    _data: DataDir,
}

/// Serves the embedded KVDB until `shutdown`.
///
/// # Errors
/// [`RunError`] of a directory or an address that cannot be used.
pub async fn serve_kvdb(
    config: &KvdbConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let data = DataDir::open(&config.data, &config.cluster_id, "kvdb")?;
    let (listener, address) = listen("the KVDB", "--listen", config.listen).await?;
    let server = Server::start(&data.kvdb_file(), listener)?;
    tracing::info!(%address, cluster = config.cluster_id, "KVDB ready");
    shutdown.await;
    server.stop().await;
    Ok(())
}

async fn listen(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |error| RunError::Listen {
        what,
        address,
        flag,
        error,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Control {
    /// Starts everything; serves before the data path is there.
    pub async fn start(config: &Config) -> Result<Self, RunError> {
        let unusable = |known: &dyn Fn(&str) -> bool| {
            let mut new = config.drives.iter().filter(|d| !known(&d.path));
            new.find_map(|d| d.unusable()).map(RunError::Drive)
        };
        if !config.data.exists()
            && let Some(why) = unusable(&|_| false)
        {
            return Err(why);
        }
        let authenticators = config.auth.as_deref().map(Authenticators::read);
        let authenticators = authenticators.transpose()?;
        let data = DataDir::open(&config.data, &config.cluster_id, &config.node_id)?;
        let own_kvdb = match config.etcd {
            Some(_) => None,
            None => Some(listen("the KVDB", "--kvdb", config.kvdb).await?),
        };
        let (sdk_listener, sdk) = listen("the SDK", "--sdk", config.sdk).await?;
        let (rest_listener, rest) = listen("REST", "--rest", config.rest).await?;
        let heard = bind_gossip(config.gossip).await;
        let (gossip_socket, gossip_at) = heard.map_err(|error| RunError::Listen {
            what: "gossip",
            address: config.gossip,
            flag: "--gossip",
            error,
        })?;
        let codec = Codec::new();
        let (server, kvdb) = match own_kvdb {
            Some((listener, at)) => {
                let server = Server::start(&data.kvdb_file(), listener)?;
                (Some(server), reachable(at).to_string())
            }
            None => (None, config.etcd.clone().unwrap_or_default()),
        };
        let registry = Registry::new(
            Client::with(&config.kvdb_options(&kvdb))?,
            Keys::new(&config.cluster_id),
        );
        let (link, link_state) = Link::new(&config.datapath_socket);
        let (node, pokes) = Node::new(
            config,
            data.identity(),
            (sdk, rest, gossip_at),
            registry,
            link,
        )?;
        let node = Arc::new(node);
        node.join().await?;
        // A drive that the pool has may be missing: the others serve, and the pool says so.
        let pools = node.registry.pools().await?;
        let known = |path: &str| {
            let of_pool = |p: &PoolRecord| {
                p.removed.iter().any(|r| r == path) || p.drives.iter().any(|d| d.path == path)
            };
            pools.iter().any(of_pool)
        };
        if let Some(why) = unusable(&known) {
            return Err(why);
        }
        let door = authenticators.map(|a| Door::new(node.clone(), a));
        let services = Services::new(node.clone(), codec.descriptors(), door)?;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(serve_sdk(services.clone(), sdk_listener, stopped.clone()));
        let router = rest::router(services, codec).map_err(RunError::Contracts)?;
        tasks.spawn(serve_rest(router, rest_listener, stopped.clone()));
        let (supervised, until) = (node.clone(), stopped.clone());
        tasks.spawn(async move {
            tokio::select! {
                error = supervise(supervised, link_state) => Some(error),
                () = ended(until) => None,
            }
        });
        tasks.spawn(scan(node.clone(), stopped.clone()));
        tasks.spawn(keep_schedules(node.clone(), stopped.clone()));
        tasks.spawn(keep_mending(node.clone(), stopped.clone()));
        tasks.spawn(keep_rebalancing(node.clone(), stopped.clone()));
        tasks.spawn(coordinate(node.clone(), pokes, stopped.clone()));
        tasks.spawn(lead_membership(node.clone(), stopped.clone()));
        tasks.spawn(gossip(node.clone(), gossip_socket, stopped.clone()));
        tasks.spawn(tell_loads(node.clone(), stopped.clone()));
        tasks.spawn(stay_alive(node.clone(), stopped));
        tracing::info!(%sdk, %rest, %kvdb, cluster = config.cluster_id, node = config.node_id, "control process ready");
        Ok(Self {
            sdk,
            rest,
            kvdb,
            node,
            stop,
            tasks,
            server,
            _data: data,
        })
    }

    /// Runs until `shutdown`, or until the data path refuses what the process was started with.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let failed = tokio::select! {
            () = shutdown => None,
            ended = self.tasks.join_next() => ended.and_then(Result::ok).flatten(),
        };
        self.stop().await;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Stops serving. Exports stay as they are.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, all).await.is_err() {
            tracing::debug!("calls were in progress, and are ended");
        }
        self.tasks.shutdown().await;
        // The KVDB's server waits for its clients to leave.
        drop(self.node);
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Where to reach what listens on every address of this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(a) if a.ip().is_unspecified() => {
            SocketAddr::from(([127, 0, 0, 1], a.port()))
        }
        SocketAddr::V6(a) if a.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, a.port()))
        }
        other => other,
    }
}

async fn ended(mut stop: watch::Receiver<bool>) {
    // An error means that the process is ending, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve_sdk(
    services: Services,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Option<OpError> {
    // Of connections that it is given, the server does not set this itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let result = tonic::transport::Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(services.routes())
        .serve_with_incoming_shutdown(incoming, ended(stop))
        .await;
    result
        .err()
        .map(|error| OpError::Internal(format!("the SDK's server ended: {error}")))
}

async fn serve_rest(
    router: axum::Router,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Option<OpError> {
    let listener = listener.tap_io(|stream| {
        // It only costs time if this fails.
        let _ = stream.set_nodelay(true);
    });
    let result = axum::serve(listener, router)
        .with_graceful_shutdown(ended(stop))
        .await;
    result
        .err()
        .map(|error| OpError::Internal(format!("the REST server ended: {error}")))
}

/// Starts scans that are due.
async fn scan(node: Arc<Node>, stop: watch::Receiver<bool>) -> Option<OpError> {
    let look = async {
        loop {
            tokio::time::sleep(SCAN_LOOK).await;
            if let Err(error) = node.scan_tick(unix_ms()).await {
                tracing::warn!(%error, "cannot see whether a scan is due");
            }
        }
    };
    tokio::select! {
        () = look => None,
        () = ended(stop) => None,
    }
}
