//! The control process' end: a tonic channel that connects when it is used, and again after the data path has restarted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use keelblock_hugepages::SharedRegion;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

use super::ring::Direction;
use super::socket::{AddressPath, check_peer, receive_hello};
use super::stream::{ChannelStream, Parts, PeerInfo};
use super::{ChannelError, HANDSHAKE_TIMEOUT, PING_INTERVAL, PING_TIMEOUT};
use crate::stats::StatsReader;

/// The stats page of the data path that a channel was last connected to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatsSource(watch::Receiver<Option<Arc<StatsReader>>>);

impl StatsSource {
    /// The page of the last connection; `None` before the first. It outlives its data path: ask for a sign of life over the channel.
    pub fn current(&self) -> Option<Arc<StatsReader>> {
        self.0.borrow().clone()
    }

    /// Waits for a connection that was made after the last call; false when the channel is gone.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// A tonic channel to the data path that listens at `path`, and its stats page. Connects with the first call, and again after the
/// connection has ended: meanwhile calls fail with UNAVAILABLE, each attempt bounded by 2 s. Needs a tokio runtime.
pub fn connect(path: impl Into<PathBuf>) -> (Channel, StatsSource) {
    let path: Arc<Path> = path.into().into();
    let (sender, receiver) = watch::channel(None);
    let sender = Arc::new(sender);
    let connector = tower::service_fn(move |_: Uri| {
        let (path, sender) = (path.clone(), sender.clone());
        async move {
            let (stream, stats) = handshake(&path).await.map_err(std::io::Error::other)?;
            sender.send_replace(Some(Arc::new(stats)));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The address names the host in HTTP/2's requests and nothing else.
    let endpoint = Endpoint::from_static("http://datapath")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    (
        endpoint.connect_with_connector_lazy(connector),
        StatsSource(receiver),
    )
}

/// Connects once: the byte stream and the stats page that came with it.
///
/// # Errors
/// What went wrong; [`ChannelError::Timeout`] after 2 s.
pub async fn handshake(path: &Path) -> Result<(ChannelStream, StatsReader), ChannelError> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(path))
        .await
        .unwrap_or(Err(ChannelError::Timeout))
}

async fn shake(path: &Path) -> Result<(ChannelStream, StatsReader), ChannelError> {
    let address = AddressPath::of(path)?;
    let socket = UnixStream::connect(&address.path)
        .await
        .map_err(|source| ChannelError::Path {
            path: path.to_owned(),
            source,
        })?;
    let (pid, uid) = check_peer(&socket)?;
    let (hello, [rings, peers_bell, bell, stats]) = receive_hello(&socket).await?;
    let stats = StatsReader::from_fd(stats)?;
    if stats.incarnation() != hello.incarnation {
        return Err(ChannelError::Greeting {
            what: "a stats page of another incarnation",
        });
    }
    let parts = Parts {
        region: Arc::new(SharedRegion::from_fd(rings)?),
        ring_bytes: hello.ring_bytes as usize,
        bell,
        peers_bell,
        life: socket,
        peer: PeerInfo { pid, uid },
        permit: None,
    };
    Ok((ChannelStream::new(parts, Direction::ToClient)?, stats))
}
