//! The trashcan in the words of `Admin`.
use super::{Services, answer};
use crate::auth::{Access, Caller};
use crate::error::OpError;
use crate::records::{TrashOptions, VolumeRecord};
use keelblock_api::admin::*;
use tonic::{Response, Status};

impl Services {
    /// What is done with a volume of the trashcan is done by who could delete it.
    async fn allowed_in_trash(&self, caller: &Caller, volume: &str) -> Result<String, OpError> {
        if caller.asks_nobody() {
            return Ok(volume.to_owned());
        }
        let found = self.node().find_in_trash(volume).await?.record;
        caller.must(found.ownership.as_ref(), Access::Admin, volume)?;
        Ok(found.volume_id.to_string())
    }

    pub(super) async fn list_trash(
        &self,
        caller: &Caller,
    ) -> Result<Response<ListTrashReply>, Status> {
        let mut volumes = Vec::new();
        for found in self.node().trashed().await? {
            let VolumeRecord {
                volume_id,
                size_bytes,
                trashed,
                ownership,
                ..
            } = &found.record;
            let Some(trashed) = trashed else { continue };
            if !caller.may(ownership.as_ref(), Access::Read) {
                continue;
            }
            volumes.push(TrashedVolume {
                volume_id: volume_id.to_string(),
                name: trashed.name.clone(),
                size_bytes: *size_bytes,
                replicas: self.node().ha_level(&found.record).await?.into(),
                deleted_unix_ms: trashed.deleted_unix_ms,
                until_unix_ms: trashed.until_unix_ms,
            });
        }
        Ok(Response::new(ListTrashReply { volumes }))
    }

    pub(super) async fn restore_trash(
        &self,
        caller: &Caller,
        request: RestoreTrashRequest,
    ) -> Result<Response<RestoreTrashReply>, Status> {
        let RestoreTrashRequest { volume, name } = request;
        let volume = self.allowed_in_trash(caller, &volume).await?;
        let restored =
            self.to_the_end(|node| async move { node.restore_from_trash(&volume, &name).await });
        answer(restored.await.map(|id| RestoreTrashReply {
            volume_id: id.to_string(),
        }))
    }

    pub(super) async fn purge_trash(
        &self,
        caller: &Caller,
        request: PurgeTrashRequest,
    ) -> Result<Response<PurgeTrashReply>, Status> {
        let volume = self.allowed_in_trash(caller, &request.volume).await?;
        let purged = self.to_the_end(|node| async move { node.purge(&volume).await });
        answer(purged.await.map(|id| PurgeTrashReply {
            volume_id: id.to_string(),
        }))
    }

    pub(super) async fn trash_options(
        &self,
        request: TrashOptionsRequest,
    ) -> Result<Response<TrashOptionsReply>, Status> {
        if let Some(keep_minutes) = request.keep_minutes {
            let options = TrashOptions { keep_minutes };
            let set = self.to_the_end(|node| async move { node.set_trash_options(options).await });
            set.await?;
        }
        answer(
            self.node()
                .trash_options()
                .await
                .map(|o| TrashOptionsReply {
                    keep_minutes: o.keep_minutes,
                }),
        )
    }
}
