//! Rebalances, as the SDK's Pool service and the admin service have them.
use super::view::timestamp;
use super::{Services, answer, placement};
use crate::error::OpError;
use crate::placement::rebalance::Aim;
use crate::rebalancing::{
    JobState, MOVES_MAX, MoveRecord, MoveState, RebalanceRecord, RebalanceWish, ScheduleRecord,
    Steering,
};
use crate::records::unix_ms;
use keelblock_api::admin;
use keelblock_api::openstorage::storage_rebalance_audit::StorageRebalanceAction;
use keelblock_api::openstorage::storage_rebalance_trigger_threshold::{Metric, Type as Threshold};
use keelblock_api::openstorage::storage_rebalance_work_summary::Type as Work;
use keelblock_api::openstorage::*;
use tonic::{Response, Status as Refusal};

/// Unless somebody says otherwise.
const PERCENT: u32 = 5;
const PERCENT_MAX: u32 = 1000;
const AT_ONCE: u32 = 2;
const MOVES: u32 = 10;

fn percent(field: &str, number: u64) -> Result<u32, OpError> {
    let fits = u32::try_from(number).ok();
    let fits = fits.filter(|n| (1..=PERCENT_MAX).contains(n));
    fits.ok_or_else(|| {
        let why = format!("must be 1 to {PERCENT_MAX} percent, not {number}");
        OpError::invalid(format!("trigger_thresholds.{field}"), why)
    })
}

/// What is wanted of a rebalance.
///
/// # Errors
/// What this version cannot do, by its field.
fn wish(request: SdkStorageRebalanceRequest) -> Result<RebalanceWish, OpError> {
    let unsupported = |field: &str, why| {
        let field = field.into();
        Err(OpError::Unsupported { field, why })
    };
    if request.remove_repl_1_snapshots {
        return unsupported(
            "remove_repl_1_snapshots",
            ": snapshots move with their volume",
        );
    }
    if request.mode() != sdk_storage_rebalance_request::Mode::StorageRebalance
        || request.mode != request.mode() as i32
    {
        return unsupported(
            "mode",
            " by this version, but for STORAGE_REBALANCE, which has replicas share zones and racks less, too",
        );
    }
    let (over_percent, under_percent) = match request.trigger_thresholds.as_slice() {
        [] => (PERCENT, PERCENT),
        [one] => {
            if one.metric() != Metric::ProvisionSpace {
                return unsupported(
                    "trigger_thresholds.metric",
                    " but for PROVISION_SPACE: how much is written of a volume is not known in one place",
                );
            }
            if one.r#type() != Threshold::DeltaMeanPercent {
                return unsupported(
                    "trigger_thresholds.type",
                    " but for DELTA_MEAN_PERCENT: pools are compared with the mean of all",
                );
            }
            (
                percent(
                    "over_load_trigger_threshold",
                    one.over_load_trigger_threshold,
                )?,
                percent(
                    "under_load_trigger_threshold",
                    one.under_load_trigger_threshold,
                )?,
            )
        }
        _ => return unsupported("trigger_thresholds", " with more than one of them"),
    };
    let selector = |field: &str, all| placement::requirements(field, all);
    Ok(RebalanceWish {
        over_percent,
        under_percent,
        moves_max: MOVES_MAX as u32,
        at_once: AT_ONCE,
        minutes_max: request.max_duration_minutes,
        from: selector("source_pool_selector", request.source_pool_selector)?,
        to: selector("target_pool_selector", request.target_pool_selector)?,
    })
}

/// What was wanted, as it is asked for.
fn parameters(wish: &RebalanceWish) -> SdkStorageRebalanceRequest {
    let all = |of: &[crate::placement::Requirement]| of.iter().map(placement::expression).collect();
    SdkStorageRebalanceRequest {
        trigger_thresholds: vec![StorageRebalanceTriggerThreshold {
            r#type: Threshold::DeltaMeanPercent.into(),
            metric: Metric::ProvisionSpace.into(),
            over_load_trigger_threshold: wish.over_percent.into(),
            under_load_trigger_threshold: wish.under_percent.into(),
        }],
        source_pool_selector: all(&wish.from),
        target_pool_selector: all(&wish.to),
        max_duration_minutes: wish.minutes_max,
        ..Default::default()
    }
}

fn job(record: &RebalanceRecord) -> StorageRebalanceJob {
    let state = match record.state {
        JobState::Running => StorageRebalanceJobState::Running,
        JobState::Paused => StorageRebalanceJobState::Paused,
        JobState::Done => StorageRebalanceJobState::Done,
        JobState::Cancelling | JobState::Cancelled => StorageRebalanceJobState::Cancelled,
    };
    StorageRebalanceJob {
        id: record.job_id.to_string(),
        status: record.says(),
        state: state.into(),
        parameters: Some(parameters(&record.wish)),
        create_time: Some(timestamp(record.created_unix_ms)),
        last_update_time: Some(timestamp(record.updated_unix_ms)),
    }
}

fn work(kind: Work, done: u64, all: u64) -> StorageRebalanceWorkSummary {
    StorageRebalanceWorkSummary {
        r#type: kind.into(),
        done,
        pending: all.saturating_sub(done),
    }
}

fn summary(record: &RebalanceRecord, now_unix_ms: u64) -> StorageRebalanceSummary {
    let end = match record.state.is_over() {
        true => record.updated_unix_ms,
        false => now_unix_ms,
    };
    let bytes = |of: &dyn Fn(&&MoveRecord) -> bool| -> u64 {
        record.moves.iter().filter(of).map(|m| m.size_bytes).sum()
    };
    let is_done = |m: &&MoveRecord| m.state == MoveState::Done;
    let (done, all) = (record.count(MoveState::Done), record.moves.len());
    StorageRebalanceSummary {
        total_run_time_seconds: end.saturating_sub(record.created_unix_ms) / 1000,
        work_summary: vec![
            work(Work::UnbalancedVolumes, done as u64, all as u64),
            work(
                Work::UnbalancedProvisionedSpaceBytes,
                bytes(&is_done),
                bytes(&|_| true),
            ),
        ],
    }
}

/// One replica comes and one goes for each move.
fn actions(record: &RebalanceRecord) -> Vec<StorageRebalanceAudit> {
    let time = |unix_ms: u64| (unix_ms > 0).then(|| timestamp(unix_ms));
    let one = |m: &MoveRecord, action: StorageRebalanceAction| {
        let (node, pool) = match action {
            StorageRebalanceAction::AddReplica => (&m.to_node, m.to_pool),
            StorageRebalanceAction::RemoveReplica => (&m.from_node, m.from_pool),
        };
        let state = match m.state {
            MoveState::Planned => StorageRebalanceJobState::Pending,
            MoveState::Running => StorageRebalanceJobState::Running,
            MoveState::Done => StorageRebalanceJobState::Done,
            MoveState::Failed | MoveState::Skipped => StorageRebalanceJobState::Cancelled,
        };
        let done = if m.state == MoveState::Done {
            m.size_bytes
        } else {
            0
        };
        StorageRebalanceAudit {
            volume_id: m.volume_id.to_string(),
            name: m.name.clone(),
            action: action.into(),
            node: node.clone(),
            pool: pool.to_string(),
            start_time: time(m.begun_unix_ms),
            end_time: time(m.ended_unix_ms),
            work_summary: vec![work(
                Work::UnbalancedProvisionedSpaceBytes,
                done,
                m.size_bytes,
            )],
            replication_set_id: 0,
            state: state.into(),
        }
    };
    let both = |m| {
        let (add, remove) = (
            StorageRebalanceAction::AddReplica,
            StorageRebalanceAction::RemoveReplica,
        );
        [one(m, add), one(m, remove)]
    };
    record.moves.iter().flat_map(both).collect()
}

fn schedule(record: &ScheduleRecord) -> RebalanceScheduleInfo {
    RebalanceScheduleInfo {
        schedule: record.text.clone(),
        rebalance_requests: record.wishes.iter().map(parameters).collect(),
        create_time: Some(timestamp(record.created_unix_ms)),
    }
}

impl Services {
    pub(super) async fn rebalance(
        &self,
        request: SdkStorageRebalanceRequest,
    ) -> Result<SdkStorageRebalanceResponse, OpError> {
        let trial = request.trial_run;
        let wish = wish(request)?;
        let record = match trial {
            true => {
                let plan = self.node().plan_wish(&wish).await?;
                self.node().planned_job(wish, plan)
            }
            false => {
                self.to_the_end(|node| async move { node.begin_rebalance(wish).await })
                    .await?
            }
        };
        let mut shown = job(&record);
        if trial {
            // It is none.
            shown.id.clear();
            shown.state = StorageRebalanceJobState::Done.into();
            if let Some(parameters) = &mut shown.parameters {
                parameters.trial_run = true;
            }
        }
        Ok(SdkStorageRebalanceResponse {
            job: Some(shown),
            summary: Some(summary(&record, unix_ms())),
            actions: actions(&record),
        })
    }

    pub(super) async fn update_rebalance(
        &self,
        request: SdkUpdateRebalanceJobRequest,
    ) -> Result<SdkUpdateRebalanceJobResponse, OpError> {
        let wish = match StorageRebalanceJobState::try_from(request.state) {
            Ok(StorageRebalanceJobState::Paused) => Steering::Pause,
            Ok(StorageRebalanceJobState::Running) => Steering::Resume,
            Ok(StorageRebalanceJobState::Cancelled) => Steering::Cancel,
            _ => {
                let why = "must be PAUSED, RUNNING or CANCELLED";
                return Err(OpError::invalid("state", why));
            }
        };
        let id = named(request.id)?;
        self.to_the_end(|node| async move { node.steer_rebalance(&id, wish).await })
            .await?;
        Ok(SdkUpdateRebalanceJobResponse {})
    }

    pub(super) async fn rebalance_job(
        &self,
        request: SdkGetRebalanceJobStatusRequest,
    ) -> Result<SdkGetRebalanceJobStatusResponse, OpError> {
        let found = self.node().rebalance_of(&named(request.id)?).await?;
        Ok(SdkGetRebalanceJobStatusResponse {
            job: Some(job(&found.record)),
            summary: Some(summary(&found.record, unix_ms())),
            actions: actions(&found.record),
        })
    }

    pub(super) async fn rebalance_jobs(
        &self,
    ) -> Result<SdkEnumerateRebalanceJobsResponse, OpError> {
        let all = self.node().rebalances().await?;
        Ok(SdkEnumerateRebalanceJobsResponse {
            jobs: all.iter().map(|j| job(&j.record)).collect(),
        })
    }

    pub(super) async fn make_rebalance_schedule(
        &self,
        request: SdkCreateRebalanceScheduleRequest,
    ) -> Result<SdkCreateRebalanceScheduleResponse, OpError> {
        let mut wishes = Vec::new();
        for one in request.rebalance_requests {
            if one.trial_run {
                return Err(OpError::Unsupported {
                    field: "rebalance_requests.trial_run".into(),
                    why: ": nobody would see what it says",
                });
            }
            wishes.push(wish(one)?);
        }
        let text = request.schedule;
        let made = self.to_the_end(|node| async move {
            node.set_rebalance_schedule(text, wishes, unix_ms()).await
        });
        Ok(SdkCreateRebalanceScheduleResponse {
            schedule_info: Some(schedule(&made.await?)),
        })
    }

    pub(super) async fn rebalance_schedule(
        &self,
    ) -> Result<SdkGetRebalanceScheduleResponse, OpError> {
        let found = self.node().rebalance_schedule().await?;
        let found = found.ok_or_else(|| OpError::NotFound {
            kind: "rebalance schedule",
            name: "of the cluster".into(),
        })?;
        Ok(SdkGetRebalanceScheduleResponse {
            schedule_info: Some(schedule(&found.record)),
        })
    }

    pub(super) async fn start_rebalance(
        &self,
        request: admin::StartRebalanceRequest,
    ) -> Result<Response<admin::RebalanceStatusReply>, Refusal> {
        let usual = |given: u32, usual: u32| if given == 0 { usual } else { given };
        let plan = request.plan.unwrap_or_default();
        let wish = RebalanceWish {
            over_percent: usual(plan.over_percent, PERCENT),
            under_percent: usual(plan.under_percent, PERCENT),
            moves_max: usual(plan.moves_max, MOVES),
            at_once: usual(request.at_once, AT_ONCE),
            minutes_max: request.minutes_max,
            from: Vec::new(),
            to: Vec::new(),
        };
        let begun = self.to_the_end(|node| async move { node.begin_rebalance(wish).await });
        answer(begun.await.map(|record| self.describe_rebalance(record)))
    }

    pub(super) async fn rebalance_status(
        &self,
        request: admin::RebalanceStatusRequest,
    ) -> Result<Response<admin::RebalanceStatusReply>, Refusal> {
        let found = self.node().rebalance_of(&request.job_id).await;
        answer(found.map(|found| self.describe_rebalance(found.record)))
    }

    fn describe_rebalance(&self, record: RebalanceRecord) -> admin::RebalanceStatusReply {
        let says = record.says();
        let seen = self.node().coordination.seen();
        let one = |m: MoveRecord| {
            let task = seen.task(m.volume_id);
            let task =
                task.filter(|t| m.state == MoveState::Running && m.task_id == Some(t.task_id));
            admin::RebalanceMove {
                state: m.state.name().into(),
                error: match task {
                    Some(task) if !task.error.is_empty() => task.error.clone(),
                    _ => m.error,
                },
                done_bytes: task.map_or(0, |t| t.done_bytes),
                total_bytes: task.map_or(0, |t| t.total_bytes),
                begun_unix_ms: m.begun_unix_ms,
                ended_unix_ms: m.ended_unix_ms,
                r#move: Some(admin::PlannedMove {
                    volume_id: m.volume_id.to_string(),
                    name: m.name,
                    size_bytes: m.size_bytes,
                    from_node: m.from_node,
                    from_pool: m.from_pool.to_string(),
                    to_node: m.to_node,
                    to_pool: m.to_pool.to_string(),
                    why: m.why,
                }),
            }
        };
        admin::RebalanceStatusReply {
            job_id: record.job_id.to_string(),
            state: record.state.name().into(),
            says,
            unbalanced_before: record.unbalanced.0 as u32,
            unbalanced_after: record.unbalanced.1 as u32,
            created_unix_ms: record.created_unix_ms,
            updated_unix_ms: record.updated_unix_ms,
            left: record.left as u32,
            moves: record.moves.into_iter().map(one).collect(),
        }
    }

    pub(super) async fn plan_rebalance(
        &self,
        request: admin::PlanRebalanceRequest,
    ) -> Result<Response<admin::PlanRebalanceReply>, Refusal> {
        let usual = |given: u32, usual: u32| if given == 0 { usual } else { given };
        let aim = Aim {
            over_percent: usual(request.over_percent, PERCENT),
            under_percent: usual(request.under_percent, PERCENT),
            moves_max: usual(request.moves_max, MOVES).min(MOVES_MAX as u32) as usize,
            from: None,
            to: None,
        };
        let plan = self.node().plan_rebalance(aim).await?;
        Ok(Response::new(placement::plan(plan)))
    }
}

fn named(id: String) -> Result<String, OpError> {
    match id.is_empty() {
        true => Err(OpError::Missing {
            field: "id",
            hint: "the id of a rebalance, of EnumerateRebalanceJobs",
        }),
        false => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threshold(kind: Threshold, metric: Metric, over: u64) -> SdkStorageRebalanceRequest {
        SdkStorageRebalanceRequest {
            trigger_thresholds: vec![StorageRebalanceTriggerThreshold {
                r#type: kind.into(),
                metric: metric.into(),
                over_load_trigger_threshold: over,
                under_load_trigger_threshold: 3,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_wanted_comes_back_and_what_cannot_be_is_refused_by_its_field() {
        let mut asked = threshold(Threshold::DeltaMeanPercent, Metric::ProvisionSpace, 12);
        asked.max_duration_minutes = 7;
        asked.source_pool_selector = vec![LabelSelectorRequirement {
            key: "keelblock.node".into(),
            values: vec!["n1".into()],
            ..Default::default()
        }];
        let read = wish(asked.clone()).unwrap();
        assert_eq!((read.over_percent, read.under_percent), (12, 3));
        assert_eq!(parameters(&read), asked);
        assert_eq!(wish(Default::default()).unwrap().over_percent, PERCENT);
        let refused = |request: SdkStorageRebalanceRequest, field: &str| {
            let error = wish(request).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error} is not of {field}");
        };
        let mean = Threshold::DeltaMeanPercent;
        let used = threshold(mean, Metric::UsedSpace, 5);
        refused(used, "trigger_thresholds.metric");
        let absolute = threshold(Threshold::AbsolutePercent, Metric::ProvisionSpace, 5);
        refused(absolute, "trigger_thresholds.type");
        let none = threshold(mean, Metric::ProvisionSpace, 0);
        refused(none, "trigger_thresholds.over_load");
        let drain = SdkStorageRebalanceRequest {
            mode: 2,
            ..Default::default()
        };
        refused(drain, "mode");
        let unknown = SdkStorageRebalanceRequest {
            mode: 9,
            ..Default::default()
        };
        refused(unknown, "mode");
        let snapshots = SdkStorageRebalanceRequest {
            remove_repl_1_snapshots: true,
            ..Default::default()
        };
        refused(snapshots, "remove_repl_1_snapshots");
    }
}
