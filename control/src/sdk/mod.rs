//! The OpenStorage SDK (`SURFACE.md` §1) and the admin service, over gRPC: messages in, an operation of the node, messages out. A
//! field that is set and not supported is refused by its name (`spec`), and methods that are not there yet answer UNIMPLEMENTED.

mod admin;
mod alerts;
mod diags;
mod identity;
mod jobs;
mod kvdb;
mod lists;
mod members;
mod mount_attach;
mod nodes;
mod owned;
mod placement;
mod pools;
mod rebalances;
mod replicas;
mod roles;
mod schedules;
mod snapshots;
mod spec;
mod stats;
mod storage;
mod tokens;
mod trash;
mod usage;
mod view;
mod volumes;
mod watch;

use crate::auth::Door;
use crate::error::OpError;
use crate::node::Node;
use crate::system::Observer;
use keelblock_api::admin::admin_server::AdminServer;
use keelblock_api::openstorage::open_storage_alerts_server::OpenStorageAlertsServer;
use keelblock_api::openstorage::open_storage_cluster_server::OpenStorageClusterServer;
use keelblock_api::openstorage::open_storage_identity_server::OpenStorageIdentityServer;
use keelblock_api::openstorage::open_storage_job_server::OpenStorageJobServer;
use keelblock_api::openstorage::open_storage_mount_attach_server::OpenStorageMountAttachServer;
use keelblock_api::openstorage::open_storage_node_server::OpenStorageNodeServer;
use keelblock_api::openstorage::open_storage_pool_server::OpenStoragePoolServer;
use keelblock_api::openstorage::open_storage_role_server::OpenStorageRoleServer;
use keelblock_api::openstorage::open_storage_schedule_policy_server::OpenStorageSchedulePolicyServer;
use keelblock_api::openstorage::open_storage_volume_server::OpenStorageVolumeServer;
use keelblock_api::openstorage::open_storage_watch_server::OpenStorageWatchServer;
use lists::WithLists;
use prost_reflect::DescriptorPool;
use std::sync::Arc;
use tonic::service::Routes;
use tonic::{Response, Status};

/// Largest request, in bytes.
const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Largest answer: a list of all volumes has some 700 bytes of each.
pub(crate) const ANSWER_BYTES_MAX: usize = 256 << 20;

/// How long what is only shown may take: exactly means that the data path may have to read pages of maps.
const SHOW_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// What the services share. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    node: Arc<Node>,
    observer: Arc<Observer>,
    baselines: Arc<stats::Baselines>,
    rules: Arc<spec::Rules>,
    door: Option<Arc<Door>>,
}

impl Services {
    /// The services of a node, behind a door if there is one (`docs/auth.md`). `descriptors` are those of the contracts.
    pub fn new(
        node: Arc<Node>,
        descriptors: &DescriptorPool,
        door: Option<Door>,
    ) -> Result<Self, OpError> {
        Ok(Self {
            node,
            observer: Arc::default(),
            baselines: Arc::default(),
            rules: Arc::new(spec::Rules::new(descriptors)?),
            door: door.map(Arc::new),
        })
    }

    /// All of them, for a server, or to be called in this process.
    pub fn routes(&self) -> Routes {
        let volumes = OpenStorageVolumeServer::new(self.clone())
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX);
        let routes = Routes::new(OpenStorageIdentityServer::new(self.clone()))
            .add_service(OpenStorageClusterServer::new(self.clone()))
            .add_service(OpenStorageNodeServer::new(self.clone()))
            .add_service(WithLists::new(volumes, self.clone()))
            .add_service(OpenStorageMountAttachServer::new(self.clone()))
            .add_service(OpenStoragePoolServer::new(self.clone()))
            .add_service(OpenStorageAlertsServer::new(self.clone()))
            .add_service(OpenStorageJobServer::new(self.clone()))
            .add_service(OpenStorageSchedulePolicyServer::new(self.clone()))
            .add_service(OpenStorageWatchServer::new(self.clone()))
            .add_service(OpenStorageRoleServer::new(self.clone()))
            .add_service(AdminServer::new(self.clone()));
        match &self.door {
            Some(door) => door.clone().guard(routes),
            None => routes,
        }
    }

    /// Does a change to its end, also when the caller does not wait for it: one that stopped half-way would stay so until the data path
    /// is connected anew. Refused while the KVDB is being restored.
    async fn to_the_end<T: Send + 'static, F>(
        &self,
        change: impl FnOnce(Arc<Node>) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<T, OpError>> + Send + 'static,
    {
        self.node.no_restore().await?;
        self.to_the_end_even_so(change).await
    }

    /// The same of a restore itself.
    async fn to_the_end_even_so<T: Send + 'static, F>(
        &self,
        change: impl FnOnce(Arc<Node>) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<T, OpError>> + Send + 'static,
    {
        let ended = tokio::spawn(change(self.node.clone())).await;
        ended.unwrap_or_else(|error| {
            Err(OpError::Internal(format!(
                "the change ended with a fault of this program: {error}"
            )))
        })
    }

    /// This node.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

/// The answer of a method that is not there yet.
fn not_yet<T>(method: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!(
        "{method} is not in version {} of Keelblock",
        env!("CARGO_PKG_VERSION")
    )))
}

fn answer<T>(result: Result<T, OpError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}
