//! What is asked of the control process, by its SDK and REST.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keelblock_api::openstorage::open_storage_node_client::OpenStorageNodeClient;
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Longer than any call may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A list of all volumes.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const SIZE_BYTES: u64 = 10 << 30;

/// How long calls took.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took);
        self.0.sort_unstable();
    }

    /// Half took no longer.
    pub fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |part: usize| self.0.get(self.0.len() * part / 100).copied();
        let (late, most) = (at(95).unwrap_or_default(), self.0.last().copied());
        let (median, most) = (self.median(), most.unwrap_or_default());
        write!(
            f,
            "median {median:.1?}, 95 % {late:.1?}, at most {most:.1?}"
        )
    }
}

/// The control process.
#[derive(Clone)]
pub struct Calls {
    volumes: OpenStorageVolumeClient<Channel>,
    nodes: OpenStorageNodeClient<Channel>,
    rest: SocketAddr,
    replicas: i64,
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn all_there(found: usize, wanted: usize) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("{found} volumes are listed, not {wanted}")),
    }
}

impl Calls {
    /// Connects when first used.
    pub fn new(sdk: SocketAddr, rest: SocketAddr, replicas: i64) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{sdk}")).map_err(|e| e.to_string())?;
        let channel = endpoint.timeout(LIMIT).connect_lazy();
        Ok(Self {
            volumes: OpenStorageVolumeClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            nodes: OpenStorageNodeClient::new(channel),
            rest,
            replicas,
        })
    }

    /// How many nodes it knows.
    pub async fn nodes(&self) -> Result<usize, String> {
        let asked = self
            .nodes
            .clone()
            .enumerate(SdkNodeEnumerateRequest {})
            .await;
        let found = asked.map_err(|s| said(&s))?.into_inner().node_ids;
        Ok(found.len())
    }

    /// Makes a volume.
    pub async fn create(&self, name: &str) -> Result<(), String> {
        let request = SdkVolumeCreateRequest {
            name: name.into(),
            spec: Some(VolumeSpec {
                size: SIZE_BYTES,
                ha_level: self.replicas,
                ..Default::default()
            }),
            labels: [("app".to_owned(), format!("app-{}", name.len()))].into(),
        };
        let made = self.volumes.clone().create(request).await;
        made.map(drop)
            .map_err(|s| format!("create {name}: {}", said(&s)))
    }

    /// Makes volumes of these numbers, several at a time.
    pub async fn fill(&self, numbers: Range<usize>, at_once: usize) -> Result<(), String> {
        let next = Arc::new(AtomicUsize::new(numbers.start));
        let mut running: JoinSet<Result<(), String>> = JoinSet::new();
        for _ in 0..at_once {
            let (calls, next, end) = (self.clone(), next.clone(), numbers.end);
            running.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= end {
                        return Ok(());
                    }
                    calls.create(&format!("volume-{n}")).await?;
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(|e| e.to_string())??;
        }
        Ok(())
    }

    /// All ids.
    pub async fn enumerate(&self, wanted: usize) -> Result<(), String> {
        let request = SdkVolumeEnumerateRequest {};
        let asked = self.volumes.clone().enumerate(request).await;
        let found = asked.map_err(|s| said(&s))?.into_inner().volume_ids;
        all_there(found.len(), wanted)
    }

    /// All volumes, as `keelctl` asks for them.
    pub async fn list(&self, wanted: usize) -> Result<(), String> {
        let request = SdkVolumeInspectWithFiltersRequest::default();
        let asked = self.volumes.clone().inspect_with_filters(request).await;
        let found = asked.map_err(|s| said(&s))?.into_inner().volumes;
        all_there(found.len(), wanted)
    }

    /// One volume.
    pub async fn inspect(&self, name: &str) -> Result<(), String> {
        let request = SdkVolumeInspectRequest {
            volume_id: name.into(),
            options: None,
        };
        let asked = self.volumes.clone().inspect(request).await;
        asked.map(drop).map_err(|s| said(&s))
    }

    /// All volumes, in JSON.
    pub async fn rest(&self, wanted: usize) -> Result<(), String> {
        let text = self.get().await.map_err(|e| format!("REST: {e}"))?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("REST: {head}: {body}"));
        }
        // Each has the time at which it was made.
        all_there(body.matches("\"ctime\"").count(), wanted)
    }

    async fn get(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.rest).await?;
        let request = "POST /v1/volumes/inspectwithfilters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}
