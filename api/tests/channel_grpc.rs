//! gRPC over the shared-memory channel, as control and data path use it: calls, large messages, streams, and a server that goes
//! away and comes back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keelblock_api::channel::{self, Listener, PeerInfo};
use keelblock_api::etcd::etcdserverpb as etcd;
use keelblock_api::openstorage as sdk;
use keelblock_api::stats::{ReactorField, StatsPage};
use sdk::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use sdk::open_storage_mount_attach_server::{OpenStorageMountAttach, OpenStorageMountAttachServer};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

/// Messages may be this large in these tests; the ring is 256 KiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Answers with what it was asked, so that the test knows what must come back.
struct Echo;

#[tonic::async_trait]
impl OpenStorageMountAttach for Echo {
    async fn attach(
        &self,
        request: Request<sdk::SdkVolumeAttachRequest>,
    ) -> Result<Response<sdk::SdkVolumeAttachResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().copied();
        assert_eq!(peer.map(|p| p.pid), Some(std::process::id()));
        let device_path = request.into_inner().volume_id;
        Ok(Response::new(sdk::SdkVolumeAttachResponse { device_path }))
    }

    async fn detach(
        &self,
        _: Request<sdk::SdkVolumeDetachRequest>,
    ) -> Result<Response<sdk::SdkVolumeDetachResponse>, Status> {
        Err(Status::failed_precondition("in use"))
    }

    /// Never answers: for calls that are in flight when a side dies.
    async fn mount(
        &self,
        _: Request<sdk::SdkVolumeMountRequest>,
    ) -> Result<Response<sdk::SdkVolumeMountResponse>, Status> {
        std::future::pending().await
    }

    async fn unmount(
        &self,
        _: Request<sdk::SdkVolumeUnmountRequest>,
    ) -> Result<Response<sdk::SdkVolumeUnmountResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl etcd::watch_server::Watch for Echo {
    type WatchStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<etcd::WatchResponse, Status>> + Send>>;

    /// Answers each request with its number; a client's end is answered with the stream's end.
    async fn watch(
        &self,
        request: Request<Streaming<etcd::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut number = 0;
        let answers = request.into_inner().map(move |request| {
            request?;
            number += 1;
            Ok(etcd::WatchResponse {
                watch_id: number,
                ..etcd::WatchResponse::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// A data path that serves on a thread of its own with a runtime of its own, as the real one does.
struct Server {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
    stats: StatsPage,
}

impl Server {
    fn start(path: &Path, incarnation: u8) -> Server {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stats = StatsPage::create(1, 1, [incarnation; 16], 0).unwrap();
        let (path, page) = (path.to_owned(), stats.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(&path, page).await.unwrap();
                ready.send(()).unwrap();
                let attach = OpenStorageMountAttachServer::new(Echo)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX);
                let serving = tonic::transport::Server::builder()
                    .add_service(attach)
                    .add_service(etcd::watch_server::WatchServer::new(Echo))
                    .serve_with_incoming(listener.into_incoming());
                tokio::select! {
                    end = serving => panic!("the server ended by itself: {end:?}"),
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Server {
            stop,
            thread,
            stats,
        }
    }

    /// Ends at once, with calls in flight.
    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("channel.sock");
    (dir, path)
}

fn attach(volume_id: String) -> sdk::SdkVolumeAttachRequest {
    sdk::SdkVolumeAttachRequest {
        volume_id,
        ..sdk::SdkVolumeAttachRequest::default()
    }
}

#[tokio::test]
async fn calls_errors_and_large_messages_pass() {
    let (_dir, path) = socket();
    let server = Server::start(&path, 1);
    let (channel, stats) = channel::connect(&path);
    assert!(stats.current().is_none());
    let mut client = OpenStorageMountAttachClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    for size in [0, 1, 1000, 300_000, 3_000_000, 12_000_000] {
        let text = "x".repeat(size);
        let answer = client
            .attach(attach(text.clone()))
            .await
            .unwrap()
            .into_inner();
        assert!(answer.device_path == text, "{size} bytes");
    }
    let error = client
        .detach(sdk::SdkVolumeDetachRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::FailedPrecondition, "in use")
    );

    server
        .stats
        .reactor(0)
        .unwrap()
        .add(ReactorField::Commands, 5);
    let page = stats.current().unwrap();
    assert_eq!(page.incarnation(), [1; 16]);
    assert_eq!(page.reactors()[0].get(ReactorField::Commands), 5);
    server.stop();
}

#[tokio::test]
async fn thousands_of_calls_at_a_time_and_one_after_the_other() {
    let (_dir, path) = socket();
    let server = Server::start(&path, 1);
    let (channel, _stats) = channel::connect(&path);
    let client = OpenStorageMountAttachClient::new(channel);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..50 {
        let mut client = client.clone();
        tasks.spawn(async move {
            for i in 0..100 {
                let text = format!("{task} {i} {}", "y".repeat(task * 40));
                let answer = client
                    .attach(attach(text.clone()))
                    .await
                    .unwrap()
                    .into_inner();
                assert_eq!(answer.device_path, text);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    server.stop();
}

#[tokio::test]
async fn streams_pass_both_ways_beside_calls() {
    let (_dir, path) = socket();
    let server = Server::start(&path, 1);
    let (channel, _stats) = channel::connect(&path);
    let mut calls = OpenStorageMountAttachClient::new(channel.clone());
    let (requests, queue) = tokio::sync::mpsc::channel(4);
    let mut watch = etcd::watch_client::WatchClient::new(channel);
    let mut answers = watch
        .watch(tokio_stream::wrappers::ReceiverStream::new(queue))
        .await
        .unwrap()
        .into_inner();
    for number in 1..=500 {
        requests.send(etcd::WatchRequest::default()).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.watch_id, number);
        if number % 50 == 0 {
            calls.attach(attach("beside".into())).await.unwrap();
        }
    }
    drop(requests);
    assert!(answers.message().await.unwrap().is_none());
    server.stop();
}

#[tokio::test]
async fn a_client_outlives_its_server_and_finds_the_next() {
    let (_dir, path) = socket();
    let (channel, stats) = channel::connect(&path);
    let mut client = OpenStorageMountAttachClient::new(channel.clone());
    let unavailable = client.attach(attach("nobody".into())).await.unwrap_err();
    assert_eq!(unavailable.code(), Code::Unavailable, "{unavailable:?}");

    for incarnation in 1..=3 {
        let server = Server::start(&path, incarnation);
        client.attach(attach("somebody".into())).await.unwrap();
        assert_eq!(stats.current().unwrap().incarnation(), [incarnation; 16]);

        let mut waiting = client.clone();
        let in_flight =
            tokio::spawn(async move { waiting.mount(sdk::SdkVolumeMountRequest::default()).await });
        // The call is in flight when a later one on the same connection has been answered.
        tokio::task::yield_now().await;
        client.attach(attach("later".into())).await.unwrap();
        server.stop();
        let lost = in_flight.await.unwrap().unwrap_err();
        // What tonic calls a connection that breaks under a call (docs/channel.md, "Ends").
        assert!(
            matches!(lost.code(), Code::Unknown | Code::Unavailable),
            "{lost:?}"
        );
        let unavailable = client.attach(attach("nobody".into())).await.unwrap_err();
        assert_eq!(unavailable.code(), Code::Unavailable, "{unavailable:?}");
    }
}

/// Clients that come and go in the middle of calls leave a server that serves the next.
#[tokio::test]
async fn a_server_outlives_its_clients() {
    let (_dir, path) = socket();
    let server = Server::start(&path, 1);
    for _ in 0..40 {
        let (channel, _stats) = channel::connect(&path);
        let mut client = OpenStorageMountAttachClient::new(channel);
        client.attach(attach("short".into())).await.unwrap();
        let mount = client.mount(sdk::SdkVolumeMountRequest::default());
        let cut = tokio::time::timeout(Duration::from_millis(1), mount).await;
        assert!(cut.is_err(), "mount never answers");
    }
    server.stop();
}
