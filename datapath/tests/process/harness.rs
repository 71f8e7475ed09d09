//! The data path as a process of its own, and a host that uses what it exports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use keelblock_api::channel::{self, StatsSource};
use keelblock_api::datapath::datapath_client::DatapathClient;
use keelblock_api::datapath::{self as proto, AnaState, DriveSpec};
use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub const MIB: u64 = 1 << 20;
pub const NQN: &str = "nqn.2026-01.io.keelblock:process";
pub const HOST: &str = "nqn.2026-01.io.keelblock:host";
pub const VOLUME: &str = "6b65656c-0000-4000-8000-000000000001";
pub const OTHER: &str = "6b65656c-0000-4000-8000-000000000002";
/// Far more than a start or an end takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running data path in a directory of its own; killed when dropped.
pub struct Process {
    pub child: Child,
    pub client: DatapathClient<Channel>,
    pub stats: StatsSource,
    pub hello: proto::HelloReply,
}

pub fn command(dir: &Path, more: &[&str]) -> Command {
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
pub fn failed(dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(dir, more).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

impl Process {
    pub async fn start(dir: &Path) -> Self {
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

    pub fn address(&self) -> SocketAddr {
        self.hello.nvme_address.parse().unwrap()
    }

    pub async fn open(
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

    /// Opens a pool of several drives in files, `d1` and so on.
    pub async fn open_files(
        &mut self,
        paths: &[String],
        format: bool,
        allow_missing: bool,
    ) -> Result<proto::Pool, Status> {
        let drives = paths.iter().zip(1..).map(|(path, n)| DriveSpec {
            drive_id: format!("d{n}"),
            path: path.clone(),
            size_bytes: if format { 64 * MIB } else { 0 },
        });
        let request = proto::OpenPoolRequest {
            pool_id: "p".into(),
            drives: drives.collect(),
            format,
            allow_missing,
        };
        self.client.open_pool(request).await.map(|r| r.into_inner())
    }

    pub async fn create(&mut self, id: &str, size_bytes: u64) -> Result<proto::Volume, Status> {
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

    pub async fn resize(&mut self, id: &str, size_bytes: u64) -> Result<proto::Volume, Status> {
        let request = proto::ResizeVolumeRequest {
            volume_id: id.into(),
            size_bytes,
        };
        self.client
            .resize_volume(request)
            .await
            .map(|r| r.into_inner())
    }

    pub async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = proto::DeleteVolumeRequest {
            volume_id: id.into(),
        };
        self.client.delete_volume(request).await.map(drop)
    }

    pub async fn export(&mut self, lba_bytes: u32) -> Result<proto::Subsystem, Status> {
        self.export_volume(VOLUME, lba_bytes).await
    }

    pub async fn export_volume(
        &mut self,
        id: &str,
        lba_bytes: u32,
    ) -> Result<proto::Subsystem, Status> {
        let namespace = proto::Namespace {
            nsid: 1,
            volume_id: id.into(),
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

    pub async fn unexport(&mut self) {
        let request = proto::UnexportRequest { nqn: NQN.into() };
        self.client.unexport(request).await.unwrap();
    }

    pub async fn volumes(&mut self) -> Vec<proto::Volume> {
        let reply = self
            .client
            .list_volumes(proto::ListVolumesRequest::default())
            .await;
        reply.unwrap().into_inner().volumes
    }

    pub async fn pools(&mut self) -> Vec<proto::Pool> {
        let reply = self.client.list_pools(proto::ListPoolsRequest {}).await;
        reply.unwrap().into_inner().pools
    }

    pub fn connect(&self) -> Host {
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
    pub fn terminate(mut self) -> Option<i32> {
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

impl Process {
    pub async fn snapshot(
        &mut self,
        pairs: &[(&str, &str)],
    ) -> Result<Vec<proto::Snapshot>, Status> {
        let snapshots = pairs.iter().map(|(volume, id)| proto::NewSnapshot {
            volume_id: (*volume).into(),
            snapshot_id: (*id).into(),
        });
        let request = proto::CreateSnapshotsRequest {
            snapshots: snapshots.collect(),
        };
        let reply = self.client.create_snapshots(request).await;
        reply.map(|r| r.into_inner().snapshots)
    }

    pub async fn snapshots(&mut self) -> Vec<proto::Snapshot> {
        let request = proto::ListSnapshotsRequest {
            volume_id: String::new(),
            ..Default::default()
        };
        let reply = self.client.list_snapshots(request).await;
        reply.unwrap().into_inner().snapshots
    }

    pub async fn delete_snapshot(&mut self, volume: &str, id: &str) -> Result<(), Status> {
        let request = proto::DeleteSnapshotRequest {
            volume_id: volume.into(),
            snapshot_id: id.into(),
        };
        self.client.delete_snapshot(request).await.map(drop)
    }

    pub async fn clone_volume(
        &mut self,
        to: &str,
        from: &str,
        id: &str,
    ) -> Result<proto::Volume, Status> {
        let request = proto::CloneVolumeRequest {
            volume_id: to.into(),
            source_volume_id: from.into(),
            snapshot_id: id.into(),
        };
        let reply = self.client.clone_volume(request).await;
        reply.map(|r| r.into_inner())
    }

    pub async fn restore(&mut self, volume: &str, id: &str) -> Result<proto::Volume, Status> {
        let request = proto::RestoreVolumeRequest {
            volume_id: volume.into(),
            snapshot_id: id.into(),
        };
        let reply = self.client.restore_volume(request).await;
        reply.map(|r| r.into_inner())
    }

    pub async fn usage(&mut self, volume: &str, id: &str) -> proto::SpaceUsageReply {
        let request = proto::SpaceUsageRequest {
            volume_id: volume.into(),
            snapshot_id: id.into(),
        };
        self.client.space_usage(request).await.unwrap().into_inner()
    }

    /// Waits until the pool holds no data any more.
    pub async fn data_goes(&mut self) {
        let begun = Instant::now();
        loop {
            let pool = self.pools().await.remove(0);
            // A few pages say what is not there any more.
            if pool.used_bytes <= 16 * 4096 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "data stays: {pool:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All differences, asked for a few at a time: offset, length and whether there is data.
    pub async fn diff(&mut self, volume: &str, from: &str, to: &str) -> Vec<(u64, u64, bool)> {
        let (mut all, mut start_offset) = (Vec::new(), 0);
        loop {
            let request = proto::DiffSnapshotsRequest {
                volume_id: volume.into(),
                from_snapshot_id: from.into(),
                to_snapshot_id: to.into(),
                start_offset,
                ranges_max: 3,
            };
            let reply = self.client.diff_snapshots(request).await;
            let reply = reply.unwrap().into_inner();
            assert!(reply.ranges.len() <= 3);
            all.extend(reply.ranges.iter().map(|r| (r.offset, r.length, r.data)));
            match reply.next_offset {
                Some(next) => start_offset = next,
                None => return all,
            }
        }
    }
}

/// A host with two I/O queues, which two reactors serve.
pub struct Host {
    pub controller: Controller,
    pub namespace: Namespace,
    pub queues: [IoQueue; 2],
}

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n as u8).wrapping_mul(7) ^ (n >> 8) as u8 ^ seed)
        .collect()
}

pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

pub fn drive(dir: &tempfile::TempDir) -> String {
    let path: PathBuf = dir.path().join("drive");
    path.to_str().unwrap().to_owned()
}
