//! Identity and Cluster.
use super::{Services, answer};
use keelblock_api::openstorage::open_storage_cluster_server::OpenStorageCluster;
use keelblock_api::openstorage::open_storage_identity_server::OpenStorageIdentity;
use keelblock_api::openstorage::sdk_service_capability::open_storage_service::Type as ServiceType;
use keelblock_api::openstorage::sdk_service_capability::{OpenStorageService, Type};
use keelblock_api::openstorage::*;
use std::collections::HashMap;
use tonic::{Request, Response, Status as Refusal};

/// Version of the SDK's contract that is spoken.
const SDK_VERSION: (i32, i32, i32) = (0, 186, 0);
/// Services with more than UNIMPLEMENTED behind them.
const OFFERED: [ServiceType; 6] = [
    ServiceType::Cluster,
    ServiceType::Node,
    ServiceType::Volume,
    ServiceType::MountAttach,
    ServiceType::Alerts,
    ServiceType::Role,
];

#[tonic::async_trait]
impl OpenStorageIdentity for Services {
    async fn capabilities(
        &self,
        _: Request<SdkIdentityCapabilitiesRequest>,
    ) -> Result<Response<SdkIdentityCapabilitiesResponse>, Refusal> {
        let capability = |service: ServiceType| SdkServiceCapability {
            r#type: Some(Type::Service(OpenStorageService {
                r#type: service.into(),
            })),
        };
        Ok(Response::new(SdkIdentityCapabilitiesResponse {
            capabilities: OFFERED.map(capability).to_vec(),
        }))
    }

    async fn version(
        &self,
        _: Request<SdkIdentityVersionRequest>,
    ) -> Result<Response<SdkIdentityVersionResponse>, Refusal> {
        let (major, minor, patch) = SDK_VERSION;
        Ok(Response::new(SdkIdentityVersionResponse {
            sdk_version: Some(SdkVersion {
                major,
                minor,
                patch,
                version: format!("{major}.{minor}.{patch}"),
            }),
            version: Some(StorageVersion {
                driver: "keelblock".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                details: HashMap::new(),
            }),
        }))
    }
}

#[tonic::async_trait]
impl OpenStorageCluster for Services {
    async fn inspect_current(
        &self,
        _: Request<SdkClusterInspectCurrentRequest>,
    ) -> Result<Response<SdkClusterInspectCurrentResponse>, Refusal> {
        // That the KVDB answers is what makes it a cluster.
        let quorum = self.quorum().await;
        answer(quorum.map(|has_quorum| SdkClusterInspectCurrentResponse {
            cluster: Some(StorageCluster {
                status: match has_quorum {
                    true => Status::Ok.into(),
                    false => Status::NotInQuorum.into(),
                },
                id: self.node().cluster_id().into(),
                name: self.node().cluster_id().into(),
            }),
        }))
    }
}
