//! Job: drains of nodes, the last one of each. Rebalances have methods of their own (`rebalances`), changes of replicas are the admin service's.
use super::{Services, answer, members};
use crate::error::OpError;
use crate::membership::{DrainRecord, MemberRecord, MemberWish, World};
use crate::records::unix_ms;
use keelblock_api::openstorage::open_storage_job_server::OpenStorageJob;
use keelblock_api::openstorage::*;
use tonic::{Request, Response, Status as Refusal};

/// Whether drains are meant; other types there are none of.
fn of_drains(kind: i32) -> Result<bool, OpError> {
    match job::Type::try_from(kind) {
        Ok(job::Type::UnspecifiedType | job::Type::None | job::Type::DrainAttachments) => Ok(true),
        Ok(_) => Ok(false),
        Err(_) => Err(OpError::invalid("type", format!("there is no type {kind}"))),
    }
}

fn summary(drain: &DrainRecord) -> JobSummary {
    let over = drain.state != crate::membership::DrainState::Running;
    let end = if over {
        drain.updated_unix_ms
    } else {
        unix_ms()
    };
    let (done, pending) = (u64::from(drain.moved), u64::from(drain.left));
    let volumes = DrainAttachmentsSummary {
        num_volumes_total: done + pending,
        num_volumes_done: done,
        num_volumes_pending: pending,
    };
    JobSummary {
        id: drain.job_id.to_string(),
        total_runtime_seconds: end.saturating_sub(drain.created_unix_ms) / 1000,
        work_summaries: vec![JobWorkSummary {
            summary: Some(job_work_summary::Summary::DrainAttachmentsSummary(volumes)),
        }],
    }
}

impl Services {
    /// Nodes that are, or were, drained.
    async fn drained(&self) -> Result<Vec<(MemberRecord, DrainRecord)>, OpError> {
        let world = World::look(&self.node().registry).await?;
        let members = world.members.values().map(|m| m.record.clone());
        let drained = members.filter_map(|m| Some((m.clone(), m.drain?)));
        let mut drained: Vec<_> = drained.collect();
        drained.sort_by_key(|(_, d)| std::cmp::Reverse((d.created_unix_ms, d.job_id)));
        Ok(drained)
    }

    async fn drain_job(&self, id: &str, kind: i32) -> Result<(MemberRecord, DrainRecord), OpError> {
        if id.is_empty() {
            return Err(OpError::Missing {
                field: "id",
                hint: "the id of a job, of Enumerate or DrainAttachments",
            });
        }
        let missing = || OpError::NotFound {
            kind: "job",
            name: id.into(),
        };
        if !of_drains(kind)? {
            return Err(missing());
        }
        let mut all = self.drained().await?.into_iter();
        let found = all.find(|(_, d)| d.job_id.to_string() == id);
        found.ok_or_else(missing)
    }

    async fn update_job(&self, request: SdkUpdateJobRequest) -> Result<(), OpError> {
        let (member, drain) = self.drain_job(&request.id, request.r#type).await?;
        use crate::membership::DrainState;
        match (job::State::try_from(request.state), drain.state) {
            (Ok(job::State::Running), DrainState::Running)
            | (Ok(job::State::Cancelled), DrainState::Cancelled) => Ok(()),
            (Ok(job::State::Cancelled), DrainState::Running) => {
                self.wish(member.node_id, MemberWish::EndDrain).await?;
                Ok(())
            }
            (Ok(job::State::Cancelled | job::State::Running), state) => {
                Err(OpError::State(format!(
                    "job {} is {}: drain node {} again",
                    drain.job_id,
                    state.name(),
                    member.node_id
                )))
            }
            (Ok(job::State::Paused), _) => Err(OpError::Unsupported {
                field: "state".into(),
                why: " as PAUSED: a drain is cancelled, and begun again",
            }),
            _ => Err(OpError::invalid("state", "must be CANCELLED")),
        }
    }
}

#[tonic::async_trait]
impl OpenStorageJob for Services {
    async fn update(
        &self,
        request: Request<SdkUpdateJobRequest>,
    ) -> Result<Response<SdkUpdateJobResponse>, Refusal> {
        let updated = self.update_job(request.into_inner()).await;
        answer(updated.map(|()| SdkUpdateJobResponse {}))
    }

    async fn get_status(
        &self,
        request: Request<SdkGetJobStatusRequest>,
    ) -> Result<Response<SdkGetJobStatusResponse>, Refusal> {
        let request = request.into_inner();
        let found = self.drain_job(&request.id, request.r#type).await;
        answer(found.map(|(member, drain)| SdkGetJobStatusResponse {
            job: Some(members::job(&member.node_id, &drain, &member.waits)),
            summary: Some(summary(&drain)),
        }))
    }

    async fn enumerate(
        &self,
        request: Request<SdkEnumerateJobsRequest>,
    ) -> Result<Response<SdkEnumerateJobsResponse>, Refusal> {
        let all = match of_drains(request.into_inner().r#type)? {
            true => self.drained().await?,
            false => Vec::new(),
        };
        let jobs = all
            .iter()
            .map(|(m, d)| members::job(&m.node_id, d, &m.waits));
        Ok(Response::new(SdkEnumerateJobsResponse {
            jobs: jobs.collect(),
        }))
    }
}
