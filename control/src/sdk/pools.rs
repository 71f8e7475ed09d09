//! Pool.
use super::{Services, answer};
use crate::error::OpError;
use crate::node::{ResizeFactor, ResizeHow};
use keelblock_api::openstorage::open_storage_pool_server::OpenStoragePool;
use keelblock_api::openstorage::sdk_storage_pool::ResizeOperationType;
use keelblock_api::openstorage::sdk_storage_pool_resize_request::ResizeFactor as Wanted;
use keelblock_api::openstorage::*;
use tonic::{Request, Response, Status as Refusal};

/// `skip_wait_for_clean_volumes` changes nothing: there is no such wait.
fn wish(
    request: SdkStoragePoolResizeRequest,
) -> Result<(String, ResizeFactor, ResizeHow), OpError> {
    if request.uuid.is_empty() {
        return Err(OpError::Missing {
            field: "uuid",
            hint: "the id of a pool",
        });
    }
    let how = match ResizeOperationType::try_from(request.operation_type) {
        Ok(ResizeOperationType::ResizeTypeAuto) => ResizeHow::Auto,
        Ok(ResizeOperationType::ResizeTypeAddDisk) => ResizeHow::AddDisk,
        Ok(ResizeOperationType::ResizeTypeResizeDisk) => ResizeHow::ResizeDisk,
        Err(_) => {
            let why = format!("there is no operation {}", request.operation_type);
            return Err(OpError::invalid("operation_type", why));
        }
    };
    let factor = match request.resize_factor {
        Some(Wanted::Size(bytes)) => ResizeFactor::Bytes(bytes),
        Some(Wanted::Percentage(percent)) => ResizeFactor::Percent(percent),
        None => {
            return Err(OpError::Missing {
                field: "resize_factor",
                hint: "size in bytes, or percentage to grow by",
            });
        }
    };
    Ok((request.uuid, factor, how))
}

#[tonic::async_trait]
impl OpenStoragePool for Services {
    async fn resize(
        &self,
        request: Request<SdkStoragePoolResizeRequest>,
    ) -> Result<Response<SdkStoragePoolResizeResponse>, Refusal> {
        let (uuid, factor, how) = wish(request.into_inner())?;
        let resized =
            self.to_the_end(|node| async move { node.resize_pool(&uuid, factor, how).await });
        answer(resized.await.map(|()| SdkStoragePoolResizeResponse {}))
    }

    async fn rebalance(
        &self,
        request: Request<SdkStorageRebalanceRequest>,
    ) -> Result<Response<SdkStorageRebalanceResponse>, Refusal> {
        answer(Services::rebalance(self, request.into_inner()).await)
    }

    async fn update_rebalance_job_state(
        &self,
        request: Request<SdkUpdateRebalanceJobRequest>,
    ) -> Result<Response<SdkUpdateRebalanceJobResponse>, Refusal> {
        answer(self.update_rebalance(request.into_inner()).await)
    }

    async fn get_rebalance_job_status(
        &self,
        request: Request<SdkGetRebalanceJobStatusRequest>,
    ) -> Result<Response<SdkGetRebalanceJobStatusResponse>, Refusal> {
        answer(self.rebalance_job(request.into_inner()).await)
    }

    async fn enumerate_rebalance_jobs(
        &self,
        _: Request<SdkEnumerateRebalanceJobsRequest>,
    ) -> Result<Response<SdkEnumerateRebalanceJobsResponse>, Refusal> {
        answer(self.rebalance_jobs().await)
    }

    async fn create_rebalance_schedule(
        &self,
        request: Request<SdkCreateRebalanceScheduleRequest>,
    ) -> Result<Response<SdkCreateRebalanceScheduleResponse>, Refusal> {
        answer(self.make_rebalance_schedule(request.into_inner()).await)
    }

    async fn get_rebalance_schedule(
        &self,
        _: Request<SdkGetRebalanceScheduleRequest>,
    ) -> Result<Response<SdkGetRebalanceScheduleResponse>, Refusal> {
        answer(self.rebalance_schedule().await)
    }

    async fn delete_rebalance_schedule(
        &self,
        _: Request<SdkDeleteRebalanceScheduleRequest>,
    ) -> Result<Response<SdkDeleteRebalanceScheduleResponse>, Refusal> {
        let deleted = self.to_the_end(|node| async move { node.delete_rebalance_schedule().await });
        answer(
            deleted
                .await
                .map(|()| SdkDeleteRebalanceScheduleResponse {}),
        )
    }
}
