//! The connection to a node's control process (SDK port): typed clients, a time limit on every call, errors in words.
use crate::failure::{Failure, Result};
use keelblock_api::admin::{self, admin_client::AdminClient};
use keelblock_api::openstorage as sdk;
use sdk::open_storage_alerts_client::OpenStorageAlertsClient;
use sdk::open_storage_cluster_client::OpenStorageClusterClient;
use sdk::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use sdk::open_storage_node_client::OpenStorageNodeClient;
use sdk::open_storage_pool_client::OpenStoragePoolClient;
use sdk::open_storage_role_client::OpenStorageRoleClient;
use sdk::open_storage_schedule_policy_client::OpenStorageSchedulePolicyClient;
use sdk::open_storage_volume_client::OpenStorageVolumeClient;
use std::time::Duration;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Longest wait for the TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer about volumes, in bytes: some 700 of each.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Driver option of Attach: export the volume as a further namespace of the named volume's subsystem.
pub const SUBSYSTEM_OF: &str = "keelblock.subsystem_of";

/// Driver option of Attach: the node that is to coordinate a replicated volume.
pub const NODE: &str = "keelblock.node";

/// A node's services, asked with the token of whoever asks.
pub type Door = InterceptedService<Channel, Bearer>;

/// Brings a token with every call, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Bearer {
    fn new(token: Option<&str>) -> Result<Self> {
        let value = token.map(|token| {
            let value = AsciiMetadataValue::try_from(format!("bearer {token}"));
            let mut value = value.map_err(|_| {
                Failure::Usage(
                    "the token has characters that none has: is it the right text?".into(),
                )
            })?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self(value.transpose()?))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A node's services, over one connection.
#[derive(Clone)]
pub struct Client {
    /// Keelblock's own service.
    pub admin: AdminClient<Door>,
    /// OpenStorage volumes.
    pub volumes: OpenStorageVolumeClient<Door>,
    /// OpenStorage attach and detach.
    pub attach: OpenStorageMountAttachClient<Door>,
    /// OpenStorage nodes.
    pub nodes: OpenStorageNodeClient<Door>,
    /// OpenStorage cluster.
    pub cluster: OpenStorageClusterClient<Door>,
    /// OpenStorage pools.
    pub pools: OpenStoragePoolClient<Door>,
    /// OpenStorage alerts.
    pub alerts: OpenStorageAlertsClient<Door>,
    /// OpenStorage roles.
    pub roles: OpenStorageRoleClient<Door>,
    /// OpenStorage schedule policies.
    pub policies: OpenStorageSchedulePolicyClient<Door>,
}

/// A volume as its node describes it, with its name at hand.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Id of the volume.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Everything else.
    pub inner: sdk::Volume,
}

impl Volume {
    fn new(reply: sdk::SdkVolumeInspectResponse) -> Option<Volume> {
        let inner = reply.volume?;
        let name = inner
            .locator
            .as_ref()
            .map(|l| l.name.clone())
            .filter(|n| !n.is_empty())
            .unwrap_or(reply.name);
        Some(Volume {
            id: inner.id.clone(),
            name,
            inner,
        })
    }

    /// What its creator asked for.
    pub fn spec(&self) -> sdk::VolumeSpec {
        self.inner.spec.clone().unwrap_or_default()
    }

    /// Whether it is a snapshot, which the SDK shows as a volume.
    pub fn is_snapshot(&self) -> bool {
        self.inner.readonly
    }

    /// Whether it is exported, even if its state is another: a volume in error stays so until it is detached.
    pub fn exported(&self) -> bool {
        !self.inner.attached_on.is_empty()
    }

    /// Whether a host can connect to it now.
    pub fn attached(&self) -> bool {
        self.inner.state() == sdk::VolumeState::Attached
    }
}

impl Client {
    /// Connects to `endpoint` (`address:port`); each call that follows may take up to `timeout`.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Client> {
        Self::connect_as(endpoint, timeout, None).await
    }

    /// The same, with a token.
    pub async fn connect_as(
        endpoint: &str,
        timeout: Duration,
        token: Option<&str>,
    ) -> Result<Client> {
        let bearer = Bearer::new(token)?;
        let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| {
                Failure::Usage(format!(
                    "`{endpoint}` is not an endpoint: write ADDRESS:PORT, like 127.0.0.1:9020"
                ))
            })?
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .timeout(timeout)
            .connect()
            .await
            .map_err(|e| Failure::Unreachable {
                endpoint: endpoint.into(),
                why: innermost(&e),
            })?;
        let channel = InterceptedService::new(channel, bearer);
        Ok(Client {
            admin: AdminClient::new(channel.clone()),
            volumes: OpenStorageVolumeClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            attach: OpenStorageMountAttachClient::new(channel.clone()),
            nodes: OpenStorageNodeClient::new(channel.clone()),
            cluster: OpenStorageClusterClient::new(channel.clone()),
            pools: OpenStoragePoolClient::new(channel.clone()),
            alerts: OpenStorageAlertsClient::new(channel.clone()),
            roles: OpenStorageRoleClient::new(channel.clone()),
            policies: OpenStorageSchedulePolicyClient::new(channel),
        })
    }

    /// All volumes, by name; no snapshots.
    pub async fn list(&mut self) -> Result<Vec<Volume>> {
        let mut all = self
            .find(sdk::SdkVolumeInspectWithFiltersRequest::default())
            .await?;
        all.retain(|v| !v.is_snapshot());
        Ok(all)
    }

    /// The volumes and snapshots that a filter selects, by name.
    pub async fn find(
        &mut self,
        filter: sdk::SdkVolumeInspectWithFiltersRequest,
    ) -> Result<Vec<Volume>> {
        let reply = self.volumes.inspect_with_filters(filter).await;
        let reply = reply
            .map_err(|s| Failure::from_status("list volumes", &s))?
            .into_inner();
        let mut volumes: Vec<_> = reply.volumes.into_iter().filter_map(Volume::new).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The volume or snapshot of that name or id.
    pub async fn volume(&mut self, name: &str) -> Result<Volume> {
        let absent = || {
            Failure::NotFound {
            what: format!("volume {name}"),
            why: "there is no volume of that name or id; `keelctl volume list` shows those that there are".into(),
        }
        };
        let request = sdk::SdkVolumeInspectRequest {
            volume_id: name.into(),
            ..Default::default()
        };
        match self.volumes.inspect(request).await {
            Ok(reply) => Volume::new(reply.into_inner()).ok_or_else(absent),
            Err(status) if status.code() == tonic::Code::NotFound => Err(absent()),
            Err(status) => Err(Failure::from_status(
                format!("inspect volume {name}"),
                &status,
            )),
        }
    }

    /// Bytes that only this volume or snapshot refers to; not known while that cannot be counted.
    pub async fn unique_bytes(&mut self, volume: &str) -> Option<u64> {
        let request = sdk::SdkVolumeCapacityUsageRequest {
            volume_id: volume.into(),
        };
        let reply = self.volumes.capacity_usage(request).await.ok()?;
        let usage = reply.into_inner().capacity_usage_info?;
        u64::try_from(usage.exclusive_bytes).ok()
    }

    /// Makes a volume and returns its id. The same request again returns the same id.
    pub async fn create(&mut self, request: sdk::SdkVolumeCreateRequest) -> Result<String> {
        let what = format!("create volume {}", request.name);
        let reply = self
            .volumes
            .create(request)
            .await
            .map_err(|s| Failure::from_status(what, &s))?;
        Ok(reply.into_inner().volume_id)
    }

    /// Exports a volume so that hosts can connect, in a subsystem of its own or, as a further namespace, in that of the
    /// volume with the id `subsystem_of`.
    pub async fn attach(&mut self, volume: &Volume, subsystem_of: Option<&str>) -> Result<()> {
        self.attach_to(volume, subsystem_of, None).await
    }

    /// The same, to a certain node: of a replicated volume any; one that is attached elsewhere is moved.
    pub async fn attach_to(
        &mut self,
        volume: &Volume,
        subsystem_of: Option<&str>,
        node: Option<&str>,
    ) -> Result<()> {
        let options = [(SUBSYSTEM_OF, subsystem_of), (NODE, node)];
        let given = options
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
        let driver_options = given.collect();
        let request = sdk::SdkVolumeAttachRequest {
            volume_id: volume.id.clone(),
            driver_options,
            ..Default::default()
        };
        let reply = self.attach.attach(request).await;
        reply.map_err(|s| Failure::from_status(format!("attach volume {}", volume.name), &s))?;
        Ok(())
    }

    /// Detaches a volume, whoever uses it.
    pub async fn detach(&mut self, volume: &Volume) -> Result<()> {
        let request = sdk::SdkVolumeDetachRequest {
            volume_id: volume.id.clone(),
            ..Default::default()
        };
        let reply = self.attach.detach(request).await;
        reply.map_err(|s| Failure::from_status(format!("detach volume {}", volume.name), &s))?;
        Ok(())
    }

    /// Deletes a volume that is detached, and its data.
    pub async fn delete(&mut self, volume: &Volume) -> Result<()> {
        let request = sdk::SdkVolumeDeleteRequest {
            volume_id: volume.id.clone(),
        };
        let reply = self.volumes.delete(request).await;
        reply.map_err(|s| Failure::from_status(format!("delete volume {}", volume.name), &s))?;
        Ok(())
    }

    /// How hosts connect to a volume, and which may.
    pub async fn connection(&mut self, volume: &str) -> Result<admin::ConnectionInfoReply> {
        let request = admin::ConnectionInfoRequest {
            volume: volume.into(),
        };
        let reply = self.admin.connection_info(request).await;
        Ok(reply
            .map_err(|s| Failure::from_status(format!("connection of volume {volume}"), &s))?
            .into_inner())
    }

    /// Where a volume is coordinated, and how its replicas are.
    pub async fn locate(&mut self, volume: &str) -> Result<admin::LocateVolumeReply> {
        let request = admin::LocateVolumeRequest {
            volume: volume.into(),
            here: false,
        };
        let reply = self.admin.locate_volume(request).await;
        let what = || format!("locate volume {volume}");
        Ok(reply
            .map_err(|s| Failure::from_status(what(), &s))?
            .into_inner())
    }

    /// Counters of the node, its reactors and pools.
    pub async fn node_status(&mut self) -> Result<admin::NodeStatusReply> {
        let reply = self.admin.node_status(admin::NodeStatusRequest {}).await;
        Ok(reply
            .map_err(|s| Failure::from_status("status of the node", &s))?
            .into_inner())
    }

    /// Counters of a volume.
    pub async fn volume_status(&mut self, volume: &str) -> Result<admin::VolumeStatusReply> {
        let request = admin::VolumeStatusRequest {
            volume: volume.into(),
        };
        let reply = self.admin.volume_status(request).await;
        Ok(reply
            .map_err(|s| Failure::from_status(format!("status of volume {volume}"), &s))?
            .into_inner())
    }
}

/// The cause at the bottom: "Connection refused" rather than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
