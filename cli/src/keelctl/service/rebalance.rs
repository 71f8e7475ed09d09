//! `keelctl service pool rebalance`: replicas are moved so that pools have alike parts of what was promised. It is a job of the cluster, which goes on whatever becomes of this
//! process: this begins it, and shows how far it is.
use super::super::progress::{LOOK, Progress};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::size::show_size;
use crate::time::show_time;
use clap::{Args, Subcommand};
use keelblock_api::admin::{
    PlanRebalanceReply, PlanRebalanceRequest, PlannedMove, RebalanceStatusReply,
    RebalanceStatusRequest, StartRebalanceRequest,
};
use keelblock_api::openstorage as sdk;
use sdk::StorageRebalanceJobState as JobState;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Rebalance {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    wish: Wish,
}

#[derive(Debug, Args)]
struct Wish {
    /// Only say what would be moved.
    #[arg(long)]
    dry_run: bool,
    /// Relieve pools of which more than this many percent of their size above the mean of all pools is provisioned.
    #[arg(long, default_value = "5", value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    over: u32,
    /// Bring no pool above the mean by more than this.
    #[arg(long, default_value = "5", value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    under: u32,
    /// Move at most so many replicas.
    #[arg(long, default_value = "10", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    moves: u32,
    /// Move so many at a time.
    #[arg(long, default_value = "2", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    at_once: u32,
    /// Begin no more moves, and wait for none, after this many minutes; those that have begun go on.
    #[arg(long, default_value = "60", value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    max_minutes: u64,
    /// Do not stay until it is done.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All rebalances that are known, the last one first.
    List,
    /// How far one is.
    Show {
        /// Its id [default: the last one].
        job: Option<String>,
    },
    /// Begin no more moves; those that have begun go on.
    Pause {
        /// Its id [default: the last one].
        job: Option<String>,
    },
    /// Begin moves again.
    Resume {
        /// Its id [default: the last one].
        job: Option<String>,
    },
    /// End it: moves that have begun are taken back, as far as that is not final.
    Cancel {
        /// Its id [default: the last one].
        job: Option<String>,
    },
    /// When one begins without being asked; one schedule for the cluster. Without options it is shown.
    Schedule {
        /// One or more of periodic=MINUTES, daily=HH:MM, weekly=DAY@HH:MM, monthly=DAY@HH:MM, with ; between, in UTC; or `never`.
        #[arg(long, value_name = "TIMES|never")]
        at: Option<String>,
        /// Begin no more moves after this many minutes.
        #[arg(long, default_value = "0", value_name = "MINUTES", requires = "at")]
        max_minutes: u64,
    },
}

pub async fn rebalance(client: &mut Client, args: Rebalance) -> Result<Answer> {
    match args.command {
        None => begin(client, args.wish).await,
        Some(Command::List) => list(client).await,
        Some(Command::Show { job }) => Ok(told(&look(client, job.unwrap_or_default()).await?)),
        Some(Command::Pause { job }) => steer(client, job, JobState::Paused).await,
        Some(Command::Resume { job }) => steer(client, job, JobState::Running).await,
        Some(Command::Cancel { job }) => steer(client, job, JobState::Cancelled).await,
        Some(Command::Schedule { at, max_minutes }) => schedule(client, at, max_minutes).await,
    }
}

async fn begin(client: &mut Client, wish: Wish) -> Result<Answer> {
    let plan = PlanRebalanceRequest {
        over_percent: wish.over,
        under_percent: wish.under,
        moves_max: wish.moves,
    };
    if wish.dry_run {
        let reply = client.admin.plan_rebalance(plan).await;
        let plan = reply.map_err(|s| Failure::from_status("plan a rebalance", &s))?;
        return Ok(planned(&plan.into_inner()));
    }
    let request = StartRebalanceRequest {
        plan: Some(plan),
        at_once: wish.at_once,
        minutes_max: wish.max_minutes,
    };
    let begun = client.admin.start_rebalance(request).await;
    let mut job = begun
        .map_err(|s| Failure::from_status("begin a rebalance", &s))?
        .into_inner();
    let end = Instant::now() + Duration::from_secs(60 * wish.max_minutes);
    let mut progress = Progress::new();
    while !wish.detach && job.state == "running" && Instant::now() < end {
        progress.show(&job.says, amount(&job));
        tokio::time::sleep(LOOK).await;
        job = look(client, job.job_id).await?;
    }
    progress.end();
    Ok(told(&job))
}

/// Bytes of all moves: those that are over count whole.
fn amount(job: &RebalanceStatusReply) -> Option<(u64, u64)> {
    let size = |m: &PlannedMove| m.size_bytes;
    let all = job.moves.iter();
    let of = |m: &keelblock_api::admin::RebalanceMove| m.r#move.as_ref().map_or(0, size);
    let total: u64 = all.clone().map(of).sum();
    let done: u64 = all
        .map(|m| match m.state.as_str() {
            "planned" => 0,
            "running" => m.done_bytes.min(of(m)),
            _ => of(m),
        })
        .sum();
    (total > 0).then_some((done, total))
}

async fn look(client: &mut Client, job_id: String) -> Result<RebalanceStatusReply> {
    let request = RebalanceStatusRequest { job_id };
    let found = client.admin.rebalance_status(request).await;
    Ok(found
        .map_err(|s| Failure::from_status("status of a rebalance", &s))?
        .into_inner())
}

async fn steer(client: &mut Client, job: Option<String>, state: JobState) -> Result<Answer> {
    let job = look(client, job.unwrap_or_default()).await?;
    let request = sdk::SdkUpdateRebalanceJobRequest {
        id: job.job_id.clone(),
        state: state.into(),
    };
    let steered = client.pools.update_rebalance_job_state(request).await;
    steered.map_err(|s| Failure::from_status(format!("change rebalance {}", job.job_id), &s))?;
    Ok(told(&look(client, job.job_id).await?))
}

async fn list(client: &mut Client) -> Result<Answer> {
    let request = sdk::SdkEnumerateRebalanceJobsRequest {};
    let jobs = client.pools.enumerate_rebalance_jobs(request).await;
    let jobs = jobs
        .map_err(|s| Failure::from_status("list rebalances", &s))?
        .into_inner()
        .jobs;
    let began = |job: &sdk::StorageRebalanceJob| {
        let seconds = job.create_time.as_ref().map_or(0, |t| t.seconds);
        u64::try_from(seconds).unwrap_or(0) * 1000
    };
    let word = |job: &sdk::StorageRebalanceJob| job.state().as_str_name().to_lowercase();
    let data: Vec<Value> = jobs
        .iter()
        .map(|j| {
            json!({
                "job_id": j.id, "state": word(j), "says": j.status, "created_unix_ms": began(j),
            })
        })
        .collect();
    let rows = jobs.iter().map(|j| {
        let created = show_time(began(j));
        vec![j.id.clone(), word(j), created, j.status.clone()]
    });
    let text = match jobs.is_empty() {
        true => "No rebalances.".to_owned(),
        false => table(&["ID", "STATE", "BEGAN", "HOW FAR"], rows),
    };
    Ok(Answer::new(data, text))
}

async fn schedule(client: &mut Client, at: Option<String>, minutes: u64) -> Result<Answer> {
    let what = "schedule of rebalances";
    let failed = |s: tonic::Status| Failure::from_status(what, &s);
    let found = match at.as_deref() {
        Some("never") => {
            let request = sdk::SdkDeleteRebalanceScheduleRequest {};
            let gone = client.pools.delete_rebalance_schedule(request).await;
            gone.map_err(failed)?;
            None
        }
        Some(times) => {
            let request = sdk::SdkCreateRebalanceScheduleRequest {
                schedule: times.to_owned(),
                rebalance_requests: vec![sdk::SdkStorageRebalanceRequest {
                    max_duration_minutes: minutes,
                    ..Default::default()
                }],
            };
            let made = client.pools.create_rebalance_schedule(request).await;
            made.map_err(failed)?.into_inner().schedule_info
        }
        None => {
            let request = sdk::SdkGetRebalanceScheduleRequest {};
            match client.pools.get_rebalance_schedule(request).await {
                Ok(found) => found.into_inner().schedule_info,
                Err(status) if status.code() == tonic::Code::NotFound => None,
                Err(status) => return Err(failed(status)),
            }
        }
    };
    let text = found.as_ref().map_or_else(
        || "Rebalances begin only when somebody asks.".to_owned(),
        |s| format!("Rebalances begin at {} (UTC).", s.schedule),
    );
    let data = json!({ "schedule": found.map(|s| s.schedule) });
    Ok(Answer::new(data, text))
}

fn move_json(m: &PlannedMove, state: &str, error: &str) -> Value {
    json!({
        "volume_id": m.volume_id, "name": m.name, "size_bytes": m.size_bytes, "from_node": m.from_node,
        "from_pool": m.from_pool, "to_node": m.to_node, "to_pool": m.to_pool, "why": m.why, "state": state, "error": error,
    })
}

fn moves_table(moves: impl Iterator<Item = (PlannedMove, String)>) -> String {
    let rows = moves.map(|(m, state)| {
        let size = show_size(m.size_bytes);
        vec![m.name, size, m.from_node, m.to_node, m.why, state]
    });
    table(&["VOLUME", "SIZE>", "FROM", "TO", "WHY", "STATE"], rows)
}

fn head(before: u32, after: u32) -> String {
    format!(
        "Pools above the mean by more than was asked: {before} before, {after} after these moves.\n"
    )
}

fn planned(plan: &PlanRebalanceReply) -> Answer {
    let moves = plan.moves.iter().map(|m| move_json(m, "planned", ""));
    let left: Vec<_> = plan
        .left
        .iter()
        .map(|l| json!({ "name": l.name, "why": l.why }))
        .collect();
    let data = json!({
        "moves": moves.collect::<Vec<_>>(), "unbalanced_before": plan.unbalanced_before,
        "unbalanced_after": plan.unbalanced_after, "left": left,
    });
    let mut text = head(plan.unbalanced_before, plan.unbalanced_after);
    if plan.moves.is_empty() {
        text += "Nothing to move.\n";
    } else {
        text += "\n";
        text += &moves_table(plan.moves.iter().map(|m| (m.clone(), "planned".to_owned())));
    }
    if !plan.left.is_empty() {
        text += "\nLeft as they are:\n";
        let rows = plan
            .left
            .iter()
            .map(|l| vec![l.name.clone(), l.why.clone()]);
        text += &table(&["VOLUME", "WHY"], rows);
    }
    Answer::new(data, text)
}

fn told(job: &RebalanceStatusReply) -> Answer {
    let each = || {
        job.moves
            .iter()
            .filter_map(|m| Some((m, m.r#move.as_ref()?)))
    };
    let moves: Vec<_> = each()
        .map(|(m, planned)| {
            let mut one = move_json(planned, &m.state, &m.error);
            one["done_bytes"] = m.done_bytes.into();
            one["total_bytes"] = m.total_bytes.into();
            one
        })
        .collect();
    let data = json!({
        "job_id": job.job_id, "state": job.state, "says": job.says, "moves": moves, "left_count": job.left,
        "unbalanced_before": job.unbalanced_before, "unbalanced_after": job.unbalanced_after,
        "created_unix_ms": job.created_unix_ms, "updated_unix_ms": job.updated_unix_ms,
    });
    let mut text = format!("Rebalance {}: {}, {}.\n", job.job_id, job.state, job.says);
    text += &head(job.unbalanced_before, job.unbalanced_after);
    if job.moves.is_empty() {
        text += "Nothing to move.\n";
    } else {
        let state = |m: &keelblock_api::admin::RebalanceMove| match m.error.is_empty() {
            true => m.state.clone(),
            false => format!("{}: {}", m.state, m.error),
        };
        text += "\n";
        text += &moves_table(each().map(|(m, planned)| (planned.clone(), state(m))));
    }
    if job.left > 0 {
        text += &format!(
            "\n{} volumes could not be moved: `keelctl service pool rebalance --dry-run` says why.\n",
            job.left
        );
    }
    Answer::new(data, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::admin::RebalanceMove;

    #[test]
    fn what_is_over_counts_whole_and_what_runs_as_far_as_it_is() {
        let one = |state: &str, size_bytes, done_bytes| RebalanceMove {
            r#move: Some(PlannedMove {
                size_bytes,
                ..Default::default()
            }),
            state: state.into(),
            done_bytes,
            ..Default::default()
        };
        let job = RebalanceStatusReply {
            moves: vec![
                one("done", 10, 0),
                one("running", 20, 5),
                one("planned", 30, 9),
                one("failed", 40, 0),
            ],
            ..Default::default()
        };
        assert_eq!(amount(&job), Some((55, 100)));
        assert_eq!(amount(&RebalanceStatusReply::default()), None);
    }
}
