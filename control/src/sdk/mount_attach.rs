//! MountAttach. Attaching exports a volume on this node over NVMe/TCP; a host's own kernel connects to it. Driver options:
//!
//! - `keelblock.subsystem_of`: the name or id of an attached volume. The volume becomes a further namespace of that one's
//!   subsystem instead of having one of its own.
//! - `keelblock.node`: the node that is to coordinate a replicated volume; one that is attached elsewhere is moved there.
use super::{Services, answer, not_yet};
use crate::auth::{Access, Caller};
use crate::error::OpError;
use crate::names;
use keelblock_api::openstorage::open_storage_mount_attach_server::OpenStorageMountAttach;
use keelblock_api::openstorage::*;
use std::collections::HashMap;
use tonic::{Request, Response, Status as Refusal};

/// Attach: export as a further namespace of this volume's subsystem.
pub const SUBSYSTEM_OF: &str = "keelblock.subsystem_of";

/// Attach: to this node.
pub const NODE: &str = "keelblock.node";

fn refuse_unknown(options: &HashMap<String, String>, known: &[&str]) -> Result<(), OpError> {
    match options.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(OpError::Unsupported {
            field: format!("driver_options[\"{key}\"]"),
            why: "",
        }),
    }
}

fn check_attach_options(options: Option<&SdkVolumeAttachOptions>) -> Result<(), OpError> {
    let Some(o) = options else { return Ok(()) };
    let fields = [
        ("secret_name", &o.secret_name),
        ("secret_key", &o.secret_key),
        ("secret_context", &o.secret_context),
        ("fastpath", &o.fastpath),
    ];
    match fields.iter().find(|(_, value)| !value.is_empty()) {
        None => Ok(()),
        Some((name, _)) => Err(OpError::Unsupported {
            field: format!("options.{name}"),
            why: " by this version",
        }),
    }
}

impl Services {
    async fn attach_volume(
        &self,
        caller: &Caller,
        request: SdkVolumeAttachRequest,
    ) -> Result<String, OpError> {
        check_attach_options(request.options.as_ref())?;
        refuse_unknown(&request.driver_options, &[SUBSYSTEM_OF, NODE])?;
        let SdkVolumeAttachRequest {
            volume_id,
            mut driver_options,
            ..
        } = request;
        let volume_id = self.allowed(caller, &volume_id, Access::Write).await?;
        let of = match driver_options.remove(SUBSYSTEM_OF) {
            Some(of) => Some(self.allowed(caller, &of, Access::Write).await?),
            None => None,
        };
        let to = driver_options.remove(NODE);
        let attached = self.to_the_end(|node| async move {
            node.attach(&volume_id, of.as_deref(), to.as_deref()).await
        });
        let attachment = attached.await?;
        Ok(names::device_path(attachment.volume_id))
    }

    async fn detach_volume(
        &self,
        caller: &Caller,
        request: SdkVolumeDetachRequest,
    ) -> Result<(), OpError> {
        refuse_unknown(&request.driver_options, &[])?;
        let options = request.options.unwrap_or_default();
        // `force` changes nothing: a detach always ends the connections of hosts.
        let unsupported = [
            ("unmount_before_detach", options.unmount_before_detach),
            ("redirect", options.redirect),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(OpError::Unsupported {
                field: format!("options.{name}"),
                why: " by this version",
            });
        }
        let volume_id = self.allowed(caller, &request.volume_id, Access::Write);
        let volume_id = volume_id.await?;
        self.to_the_end(|node| async move { node.detach(&volume_id).await })
            .await
    }
}

#[tonic::async_trait]
impl OpenStorageMountAttach for Services {
    async fn attach(
        &self,
        request: Request<SdkVolumeAttachRequest>,
    ) -> Result<Response<SdkVolumeAttachResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let attached = self.attach_volume(&caller, request.into_inner()).await;
        answer(attached.map(|device_path| SdkVolumeAttachResponse { device_path }))
    }

    async fn detach(
        &self,
        request: Request<SdkVolumeDetachRequest>,
    ) -> Result<Response<SdkVolumeDetachResponse>, Refusal> {
        let caller = self.caller(&request)?;
        let detached = self.detach_volume(&caller, request.into_inner()).await;
        answer(detached.map(|()| SdkVolumeDetachResponse {}))
    }

    async fn mount(
        &self,
        _: Request<SdkVolumeMountRequest>,
    ) -> Result<Response<SdkVolumeMountResponse>, Refusal> {
        not_yet("OpenStorageMountAttach.Mount")
    }

    async fn unmount(
        &self,
        _: Request<SdkVolumeUnmountRequest>,
    ) -> Result<Response<SdkVolumeUnmountResponse>, Refusal> {
        not_yet("OpenStorageMountAttach.Unmount")
    }
}
