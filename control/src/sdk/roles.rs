//! Roles (`docs/auth.md`).
use super::{Services, answer};
use crate::auth::{RoleRecord, RuleRecord};
use crate::error::OpError;
use keelblock_api::openstorage::open_storage_role_server::OpenStorageRole;
use keelblock_api::openstorage::*;
use tonic::{Request, Response, Status as Refusal};

/// As it is kept.
fn record(role: Option<SdkRole>) -> Result<RoleRecord, OpError> {
    let role = role.ok_or(OpError::Missing {
        field: "role",
        hint: "a name, and rules",
    })?;
    let rule = |r: SdkRule| RuleRecord {
        services: r.services,
        apis: r.apis,
    };
    Ok(RoleRecord {
        name: role.name,
        rules: role.rules.into_iter().map(rule).collect(),
    })
}

fn shown(role: RoleRecord) -> Option<SdkRole> {
    let rule = |r: RuleRecord| SdkRule {
        services: r.services,
        apis: r.apis,
    };
    Some(SdkRole {
        name: role.name,
        rules: role.rules.into_iter().map(rule).collect(),
    })
}

#[tonic::async_trait]
impl OpenStorageRole for Services {
    async fn create(
        &self,
        request: Request<SdkRoleCreateRequest>,
    ) -> Result<Response<SdkRoleCreateResponse>, Refusal> {
        let role = record(request.into_inner().role)?;
        let made = self.to_the_end(|node| async move { node.create_role(role).await });
        answer(
            made.await
                .map(|role| SdkRoleCreateResponse { role: shown(role) }),
        )
    }

    async fn enumerate(
        &self,
        _: Request<SdkRoleEnumerateRequest>,
    ) -> Result<Response<SdkRoleEnumerateResponse>, Refusal> {
        let names = self.node().role_names().await;
        answer(names.map(|names| SdkRoleEnumerateResponse { names }))
    }

    async fn inspect(
        &self,
        request: Request<SdkRoleInspectRequest>,
    ) -> Result<Response<SdkRoleInspectResponse>, Refusal> {
        let found = self.node().role(&request.get_ref().name).await;
        answer(found.map(|role| SdkRoleInspectResponse { role: shown(role) }))
    }

    async fn delete(
        &self,
        request: Request<SdkRoleDeleteRequest>,
    ) -> Result<Response<SdkRoleDeleteResponse>, Refusal> {
        let name = request.into_inner().name;
        let deleted = self.to_the_end(|node| async move { node.delete_role(&name).await });
        answer(deleted.await.map(|()| SdkRoleDeleteResponse {}))
    }

    async fn update(
        &self,
        request: Request<SdkRoleUpdateRequest>,
    ) -> Result<Response<SdkRoleUpdateResponse>, Refusal> {
        let role = record(request.into_inner().role)?;
        let changed = self.to_the_end(|node| async move { node.update_role(role).await });
        answer(
            changed
                .await
                .map(|role| SdkRoleUpdateResponse { role: shown(role) }),
        )
    }
}
