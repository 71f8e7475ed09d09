//! The data path as a process: its command line, its commands over the channel, what it serves, its ends, and its returns.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use keelblock_api::channel::{self, StatsSource};
use keelblock_api::datapath::datapath_client::DatapathClient;
use keelblock_api::datapath::{self as proto, AnaState, DriveSpec, event::What};
use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};
use tonic::transport::Channel;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
const NQN: &str = "nqn.2026-01.io.keelblock:process";
const HOST: &str = "nqn.2026-01.io.keelblock:host";
const VOLUME: &str = "6b65656c-0000-4000-8000-000000000001";
const OTHER: &str = "6b65656c-0000-4000-8000-000000000002";
/// Far more than a start or an end takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running data path in a directory of its own; killed when dropped.
struct Process {
    child: Child,
    client: DatapathClient<Channel>,
    stats: StatsSource,
    hello: proto::HelloReply,
}

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelblock-datapath"));
    command.arg("--socket").arg(dir.join("socket")).args(more);
    for (option, value) in [
        ("--listen", "127.0.0.1:0"),
        ("--reactors", "2"),
        ("--memory", "64MiB"),
        ("--log", "warn"),
    ] {
        if !more.contains(&option) {
            command.args([option, value]);
        }
    }
    command
}

/// Runs a data path that is expected to end by itself.
fn failed(dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(dir, more).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

impl Process {
    async fn start(dir: &Path) -> Self {
        let child = command(dir, &[]).stdin(Stdio::null()).spawn().unwrap();
        let (channel, stats) = channel::connect(dir.join("socket"));
        let mut client = DatapathClient::new(channel);
        let begun = Instant::now();
        let hello = loop {
            let request = proto::HelloRequest {
                cluster_id: "c".into(),
                node_id: "n".into(),
            };
            match client.hello(request).await {
                Ok(hello) => break hello.into_inner(),
                Err(e) => assert!(begun.elapsed() < PATIENCE, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Self {
            child,
            client,
            stats,
            hello,
        }
    }

    fn address(&self) -> SocketAddr {
        self.hello.nvme_address.parse().unwrap()
    }

    async fn open(
        &mut self,
        path: &str,
        size_bytes: u64,
        format: bool,
    ) -> Result<proto::Pool, Status> {
        let drive = DriveSpec {
            drive_id: "d1".into(),
            path: path.into(),
            size_bytes,
        };
        let request = proto::OpenPoolRequest {
            pool_id: "p".into(),
            drives: vec![drive],
            format,
            allow_missing: false,
        };
        self.client.open_pool(request).await.map(|r| r.into_inner())
    }

    async fn create(&mut self, id: &str, size_bytes: u64) -> Result<proto::Volume, Status> {
        let request = proto::CreateVolumeRequest {
            volume_id: id.into(),
            pool_id: "p".into(),
            size_bytes,
        };
        self.client
            .create_volume(request)
            .await
            .map(|r| r.into_inner())
    }

    async fn resize(&mut self, id: &str, size_bytes: u64) -> Result<proto::Volume, Status> {
        let request = proto::ResizeVolumeRequest {
            volume_id: id.into(),
            size_bytes,
        };
        self.client
            .resize_volume(request)
            .await
            .map(|r| r.into_inner())
    }

    async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = proto::DeleteVolumeRequest {
            volume_id: id.into(),
        };
        self.client.delete_volume(request).await.map(drop)
    }

    async fn export(&mut self, lba_bytes: u32) -> Result<proto::Subsystem, Status> {
        let namespace = proto::Namespace {
            nsid: 1,
            volume_id: VOLUME.into(),
            lba_bytes,
            nguid: vec![1; 16],
            uuid: vec![2; 16],
            reservation: Vec::new(),
        };
        let request = proto::ExportRequest {
            nqn: NQN.into(),
            serial: "KB".into(),
            namespaces: vec![namespace],
            allowed_hosts: Vec::new(),
            allow_any_host: true,
            ana_state: AnaState::AnaOptimized.into(),
            cntlid_min: 1,
            cntlid_max: 100,
        };
        self.client.export(request).await.map(|r| r.into_inner())
    }

    async fn unexport(&mut self) {
        let request = proto::UnexportRequest { nqn: NQN.into() };
        self.client.unexport(request).await.unwrap();
    }

    async fn volumes(&mut self) -> Vec<proto::Volume> {
        let reply = self.client.list_volumes(proto::ListVolumesRequest {}).await;
        reply.unwrap().into_inner().volumes
    }

    async fn pools(&mut self) -> Vec<proto::Pool> {
        let reply = self.client.list_pools(proto::ListPoolsRequest {}).await;
        reply.unwrap().into_inner().pools
    }

    fn connect(&self) -> Host {
        let options = ConnectOptions::default();
        let mut controller = Controller::connect(self.address(), NQN, HOST, &options).unwrap();
        controller.set_io_queues(2).unwrap();
        let data = controller.namespace(1).unwrap();
        Host {
            namespace: Namespace::new(1, &data).unwrap(),
            queues: [1, 2].map(|qid| controller.io_queue(qid, 32).unwrap()),
            controller,
        }
    }

    /// Asks it to end, and gives its exit code.
    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with two I/O queues, which two reactors serve.
struct Host {
    controller: Controller,
    namespace: Namespace,
    queues: [IoQueue; 2],
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n as u8).wrapping_mul(7) ^ (n >> 8) as u8 ^ seed)
        .collect()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

fn drive(dir: &tempfile::TempDir) -> String {
    let path: PathBuf = dir.path().join("drive");
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_hosts_wrote_survives_an_end_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 32 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let [one, two] = &mut host.queues;
    // Over the border of a slice, by one queue, then read by the other.
    let (first, second) = (pattern(1, 256 << 10), pattern(2, 64 << 10));
    one.write(&host.namespace, 4096 - 32, &first).unwrap();
    assert_eq!(two.read(&host.namespace, 4096 - 32, 64).unwrap(), first);
    two.write(&host.namespace, 0, &second).unwrap();
    two.flush(&host.namespace).unwrap();
    drop(host);
    assert_eq!(process.terminate(), Some(0));

    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, false).await.unwrap();
    assert_eq!(process.volumes().await[0].size_bytes, 32 * MIB);
    process.export(512).await.unwrap();
    let mut host = process.connect();
    let [one, two] = &mut host.queues;
    assert_eq!(
        one.read(&host.namespace, 8 * (4096 - 32), 512).unwrap(),
        first
    );
    let third = pattern(3, 512);
    two.write_fua(&host.namespace, 1, &third).unwrap();
    process.child.kill().unwrap();
    process.child.wait().unwrap();

    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, false).await.unwrap();
    process.export(512).await.unwrap();
    let mut host = process.connect();
    let got = host.queues[0].read(&host.namespace, 0, 128).unwrap();
    assert_eq!((&got[..512], &got[512..1024]), (&second[..512], &third[..]));
    assert_eq!(got[1024..], second[1024..]);
}

#[tokio::test]
async fn commands_said_twice_answer_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let path = "memory:67108864";
    let pool = process.open(path, 0, true).await.unwrap();
    assert_eq!((pool.total_bytes, pool.used_bytes), (63 * MIB, 0));
    assert_eq!(process.open(path, 0, true).await.unwrap(), pool);
    let volume = process.create(VOLUME, 8 * MIB).await.unwrap();
    assert_eq!(process.create(VOLUME, 8 * MIB).await.unwrap(), volume);
    assert_eq!(
        process.resize(VOLUME, 9 * MIB).await.unwrap().size_bytes,
        9 * MIB
    );
    let volume = process.resize(VOLUME, 9 * MIB).await.unwrap();
    assert_eq!((volume.size_bytes, volume.stats_slot), (9 * MIB, -1));
    let subsystem = process.export(4096).await.unwrap();
    assert_eq!(process.export(4096).await.unwrap(), subsystem);
    assert!(process.volumes().await[0].stats_slot >= 0);
    process.unexport().await;
    process.unexport().await;
    process.delete(VOLUME).await.unwrap();
    process.delete(VOLUME).await.unwrap();
    assert_eq!(process.volumes().await, []);
    assert_eq!(process.pools().await[0].used_bytes, 0);
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let other = proto::HelloRequest {
        cluster_id: "another".into(),
        node_id: "n".into(),
    };
    assert_eq!(
        code(process.client.hello(other).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(process.create(VOLUME, MIB).await), Code::NotFound);
    assert_eq!(
        code(process.open("/nonexistent/d", MIB, true).await),
        Code::NotFound
    );
    assert_eq!(
        code(process.open("memory:x", 0, true).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.open(&drive(&dir), 1 << 50, true).await),
        Code::ResourceExhausted
    );
    // Refused for want of a superblock, then formatted: the first attempt holds on to nothing.
    let blank = process.open(&drive(&dir), 16 * MIB, false).await;
    assert_eq!(code(blank), Code::FailedPrecondition);
    process.open(&drive(&dir), 16 * MIB, true).await.unwrap();

    let mut second = Process::start(tempfile::tempdir().unwrap().path()).await;
    let busy = second.open(&drive(&dir), 0, false).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("in use"), "{busy}");

    assert_eq!(
        code(process.create("no-uuid", MIB).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.create(VOLUME, 100).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.create(VOLUME, 64 * MIB).await),
        Code::ResourceExhausted
    );
    process.create(VOLUME, 4 * MIB).await.unwrap();
    assert_eq!(
        code(process.create(VOLUME, 5 * MIB).await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(process.resize(VOLUME, 3 * MIB).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.resize(VOLUME, 64 * MIB).await),
        Code::ResourceExhausted
    );
    assert_eq!(code(process.resize(OTHER, MIB).await), Code::NotFound);
    assert_eq!(code(process.export(520).await), Code::InvalidArgument);
    process.export(4096).await.unwrap();
    let exported = process.delete(VOLUME).await.unwrap_err();
    assert_eq!(exported.code(), Code::FailedPrecondition);
    assert!(exported.message().contains(NQN), "{exported}");
}

#[tokio::test]
async fn a_resize_reaches_hosts_and_new_space_is_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    // What the deleted volume held must not be seen in the one that grows over its place.
    process.create(VOLUME, 24 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let secret = vec![0xa5; 1 << 20];
    for block in (0..24 * 256).step_by(256) {
        host.queues[0]
            .write(&host.namespace, block, &secret)
            .unwrap();
    }
    drop(host);
    process.unexport().await;
    process.delete(VOLUME).await.unwrap();

    process.create(VOLUME, 4 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    host.controller.watch_events().unwrap();
    process.resize(VOLUME, 40 * MIB).await.unwrap();
    let begun = Instant::now();
    while !host
        .controller
        .take_events()
        .unwrap()
        .iter()
        .any(|e| (e.kind(), e.information()) == (2, 0))
    {
        assert!(
            begun.elapsed() < PATIENCE,
            "no event of a changed namespace"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let data = host.controller.namespace(1).unwrap();
    let grown = Namespace::new(1, &data).unwrap();
    assert_eq!(grown.bytes(), 40 * MIB);
    for block in (0..40 * 256).step_by(256) {
        let got = host.queues[1].read(&grown, block, 256).unwrap();
        assert!(got.iter().all(|&b| b == 0), "old data at block {block}");
    }
}

#[tokio::test]
async fn the_stats_page_counts_and_events_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let watch = process.client.watch(proto::WatchRequest {}).await;
    let mut events = watch.unwrap().into_inner();
    process.open("memory:67108864", 0, true).await.unwrap();
    process.create(VOLUME, 8 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    for _ in 0..5 {
        host.queues[0]
            .write(&host.namespace, 1, &[1; 4096])
            .unwrap();
        host.queues[1].read(&host.namespace, 1, 2).unwrap();
    }
    let slot = process.volumes().await[0].stats_slot;
    let counted = process.stats.current().unwrap().slot(slot as u32).unwrap();
    assert_eq!((counted.writes, counted.write_bytes), (5, 5 * 4096));
    assert_eq!((counted.reads, counted.read_bytes), (5, 5 * 8192));
    assert_eq!(counted.connections, 2);
    loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(What::HostConnected(host)) = event.what {
            assert_eq!((host.nqn.as_str(), host.host_nqn.as_str()), (NQN, HOST));
            break;
        }
    }
}

#[test]
fn what_is_wrong_at_the_start_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = holder.local_addr().unwrap().to_string();
    let (code, said) = failed(dir.path(), &["--listen", &busy]);
    assert!(
        code == Some(1) && said.contains(&busy) && said.contains("in use"),
        "{said}"
    );

    let (code, said) = failed(&dir.path().join("missing"), &[]);
    assert!(code == Some(1) && said.contains("missing"), "{said}");

    let (code, said) = failed(dir.path(), &["--cpus", "4000", "--reactors", "1"]);
    assert!(code == Some(1) && said.contains("4000"), "{said}");

    let (code, said) = failed(dir.path(), &["--memory", "1MiB"]);
    assert!(code == Some(1) && said.contains("--memory"), "{said}");

    for wrong in [
        ["--cpus", "a"],
        ["--poll", "often"],
        ["--log", "k=l=m"],
        ["--reactors", "0"],
    ] {
        let (code, said) = failed(dir.path(), &wrong);
        assert!(code == Some(2) && said.contains(wrong[0]), "{said}");
    }
}

#[tokio::test]
async fn a_second_one_on_the_same_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Process::start(dir.path()).await;
    let (code, said) = failed(dir.path(), &[]);
    assert!(
        code == Some(1) && said.contains("already running"),
        "{said}"
    );
}
