//! A control process in the test's own process, with a fake data path, and its clients.
use crate::fake::Fake;
use keelblock_api::admin::admin_client::AdminClient;
use keelblock_api::openstorage::open_storage_alerts_client::OpenStorageAlertsClient;
use keelblock_api::openstorage::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use keelblock_api::openstorage::open_storage_node_client::OpenStorageNodeClient;
use keelblock_api::openstorage::open_storage_pool_client::OpenStoragePoolClient;
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::*;
use keelblock_control::config::Config;
use keelblock_control::datapath::LinkState;
use keelblock_control::run::{Control, RunError};
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Longer than anything here takes, so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// One node.
pub struct Bench {
    /// Its data path.
    pub fake: Fake,
    control: Option<Control>,
    config: Config,
    channel: Channel,
    _dir: TempDir,
}

/// What is in the pool.
pub enum Drive {
    /// Memory.
    Memory,
    /// A file.
    File,
}

impl Bench {
    /// A node whose data path is ready.
    pub async fn new(drive: Drive) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("dp.sock"));
        let config = config(&dir, drive);
        let control = Control::start(&config).await.unwrap();
        let mut bench = Self {
            fake,
            channel: channel(&control),
            control: Some(control),
            config,
            _dir: dir,
        };
        bench.ready().await;
        bench
    }

    /// A node without its data path.
    pub async fn without_datapath() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut fake = Fake::start(&dir.path().join("dp.sock"));
        fake.kill();
        let config = config(&dir, Drive::File);
        let control = Control::start(&config).await.unwrap();
        Self {
            fake,
            channel: channel(&control),
            control: Some(control),
            config,
            _dir: dir,
        }
    }

    /// A further node of the cluster whose KVDB is there, with a drive.
    pub async fn join(node_id: &str, kvdb: &str) -> Self {
        let mut bench = Self::prepare(node_id, kvdb).await;
        bench.start_control().await.unwrap();
        bench.ready().await;
        bench
    }

    /// The same, whose control process was not started yet.
    pub async fn prepare(node_id: &str, kvdb: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("dp.sock"));
        fake.memory().replicating = true;
        let config = Config {
            node_id: node_id.into(),
            etcd: Some(kvdb.into()),
            ..config(&dir, Drive::File)
        };
        let nowhere = Endpoint::from_static("http://127.0.0.1:1");
        Self {
            fake,
            channel: nowhere.connect_lazy(),
            control: None,
            config,
            _dir: dir,
        }
    }

    /// Whether its control process does.
    pub fn runs(&self) -> bool {
        self.control.is_some()
    }

    pub fn control(&self) -> &Control {
        self.control.as_ref().expect("it runs")
    }

    /// Waits until the data path can be used.
    pub async fn ready(&mut self) {
        self.until(|state| matches!(state, LinkState::Up(_))).await;
    }

    /// Waits until the data path is known to be away.
    pub async fn down(&mut self) {
        self.until(|state| matches!(state, LinkState::Down(_)))
            .await;
    }

    async fn until(&mut self, wanted: impl Fn(&LinkState) -> bool) {
        let mut link = self.control().node.link.clone();
        let wait = async {
            while !wanted(&link.state()) {
                link.changed().await;
            }
        };
        let last = self.control().node.link.clone();
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("it is {:?}", last.state()));
    }

    /// Ends the control process, and starts it again on the same data.
    pub async fn restart_control(&mut self) {
        self.stop_control().await;
        self.start_control().await.unwrap();
        self.ready().await;
    }

    pub async fn stop_control(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }

    pub async fn start_control(&mut self) -> Result<(), RunError> {
        let control = Control::start(&self.config).await?;
        self.channel = channel(&control);
        self.control = Some(control);
        Ok(())
    }

    /// What the control process is started with.
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn volumes(&self) -> OpenStorageVolumeClient<Channel> {
        OpenStorageVolumeClient::new(self.channel.clone())
    }

    pub fn nodes(&self) -> OpenStorageNodeClient<Channel> {
        OpenStorageNodeClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    pub async fn try_create(&self, name: &str, spec: VolumeSpec) -> Result<String, Status> {
        let request = SdkVolumeCreateRequest {
            name: name.into(),
            spec: Some(spec),
            ..Default::default()
        };
        Ok(self.volumes().create(request).await?.into_inner().volume_id)
    }

    /// A volume of a size.
    pub async fn create(&self, name: &str, size: u64) -> String {
        self.try_create(
            name,
            VolumeSpec {
                size,
                ..Default::default()
            },
        )
        .await
        .unwrap()
    }

    pub async fn inspect(&self, volume: &str) -> Result<Volume, Status> {
        let request = SdkVolumeInspectRequest {
            volume_id: volume.into(),
            options: None,
        };
        Ok(self
            .volumes()
            .inspect(request)
            .await?
            .into_inner()
            .volume
            .unwrap())
    }

    pub async fn try_attach(&self, volume: &str, of: Option<&str>) -> Result<String, Status> {
        let driver_options = of
            .map(|of| ("keelblock.subsystem_of".to_owned(), of.to_owned()))
            .into_iter()
            .collect();
        let request = SdkVolumeAttachRequest {
            volume_id: volume.into(),
            driver_options,
            options: None,
        };
        let reply = OpenStorageMountAttachClient::new(self.channel.clone())
            .attach(request)
            .await?;
        Ok(reply.into_inner().device_path)
    }

    pub async fn attach(&self, volume: &str) -> String {
        self.try_attach(volume, None).await.unwrap()
    }

    pub async fn detach(&self, volume: &str) -> Result<(), Status> {
        let request = SdkVolumeDetachRequest {
            volume_id: volume.into(),
            ..Default::default()
        };
        OpenStorageMountAttachClient::new(self.channel.clone())
            .detach(request)
            .await
            .map(drop)
    }

    pub fn pools(&self) -> OpenStoragePoolClient<Channel> {
        OpenStoragePoolClient::new(self.channel.clone())
    }

    pub fn alerts(&self) -> OpenStorageAlertsClient<Channel> {
        OpenStorageAlertsClient::new(self.channel.clone())
    }

    pub async fn snapshot(&self, volume: &str, name: &str) -> Result<String, Status> {
        let request = SdkVolumeSnapshotCreateRequest {
            volume_id: volume.into(),
            name: name.into(),
            ..Default::default()
        };
        let reply = self.volumes().snapshot_create(request).await?;
        Ok(reply.into_inner().snapshot_id)
    }

    pub async fn clone_of(&self, parent: &str, name: &str) -> Result<String, Status> {
        let request = SdkVolumeCloneRequest {
            name: name.into(),
            parent_id: parent.into(),
            ..Default::default()
        };
        let reply = OpenStorageVolumeClient::clone(&mut self.volumes(), request).await?;
        Ok(reply.into_inner().volume_id)
    }

    pub async fn restore(&self, volume: &str, snapshot: &str) -> Result<(), Status> {
        let request = SdkVolumeSnapshotRestoreRequest {
            volume_id: volume.into(),
            snapshot_id: snapshot.into(),
        };
        self.volumes().snapshot_restore(request).await.map(drop)
    }

    /// The only pool, as the node shows it.
    pub async fn pool(&self) -> keelblock_api::admin::PoolStatus {
        let request = keelblock_api::admin::NodeStatusRequest {};
        let node = self.admin().node_status(request).await.unwrap();
        node.into_inner().pools.remove(0)
    }

    pub async fn delete(&self, volume: &str) -> Result<(), Status> {
        self.volumes()
            .delete(SdkVolumeDeleteRequest {
                volume_id: volume.into(),
            })
            .await
            .map(drop)
    }

    pub async fn update(
        &self,
        volume: &str,
        labels: &[(&str, &str)],
        size: Option<u64>,
    ) -> Result<(), Status> {
        let spec = size.map(|size| VolumeSpecUpdate {
            size_opt: Some(volume_spec_update::SizeOpt::Size(size)),
            ..Default::default()
        });
        let labels = labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let request = SdkVolumeUpdateRequest {
            volume_id: volume.into(),
            labels,
            spec,
        };
        self.volumes().update(request).await.map(drop)
    }
}

fn channel(control: &Control) -> Channel {
    Endpoint::from_shared(format!("http://{}", control.sdk))
        .unwrap()
        .connect_lazy()
}

fn config(dir: &TempDir, drive: Drive) -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    let drive = match drive {
        Drive::Memory => "memory:1G".to_owned(),
        Drive::File => format!("{},1G", dir.path().join("drive.img").display()),
    };
    Config {
        cluster_id: "test".into(),
        node_id: "node-1".into(),
        data: dir.path().join("control"),
        datapath_socket: dir.path().join("dp.sock"),
        sdk: any,
        rest: any,
        gossip: any,
        kvdb: any,
        etcd: None,
        etcd_ca: None,
        etcd_cert: None,
        etcd_key: None,
        etcd_user: None,
        etcd_password_file: None,
        cluster_token_file: None,
        cluster_token_env: None,
        labels: Vec::new(),
        drives: vec![drive.parse().unwrap()],
        pool: "default".into(),
        cluster_key_file: None,
        cluster_key_env: None,
        cluster_key_command: None,
        auth: None,
        diags_files: Vec::new(),
        log_json: false,
    }
}

/// A refusal of this kind whose message says this.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, says: &str) {
    let status = result.expect_err("it should be refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().contains(says),
        "{:?} does not say {says:?}",
        status.message()
    );
}
