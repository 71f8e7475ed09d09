//! `keelctl service pool rebalance`: replicas are moved so that pools have alike parts of what was promised. Each move is a task of its volume, which goes on by
//! itself; this begins them, a few at a time, and shows what became of them.
use super::super::ha;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::size::show_size;
use clap::Args;
use keelblock_api::admin::update_replicas_request::Change;
use keelblock_api::admin::{
    PlanRebalanceReply, PlanRebalanceRequest, PlannedMove, UpdateReplicasRequest,
};
use serde_json::json;
use std::time::{Duration, Instant};

/// How often it is looked how far the moves are.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Rebalance {
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
    #[arg(long, default_value = "10", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    moves: u32,
    /// Move so many at a time.
    #[arg(long, default_value = "2", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    at_once: u32,
    /// Begin no more moves, and wait for none, after this many minutes; those that have begun go on.
    #[arg(long, default_value = "60", value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    max_minutes: u64,
}

/// What became of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Planned,
    /// Its task.
    Running(String),
    Ended(String),
}

pub async fn rebalance(client: &mut Client, args: Rebalance) -> Result<Answer> {
    let request = PlanRebalanceRequest {
        over_percent: args.over,
        under_percent: args.under,
        moves_max: args.moves,
    };
    let reply = client.admin.plan_rebalance(request).await;
    let plan = reply
        .map_err(|s| Failure::from_status("plan a rebalance", &s))?
        .into_inner();
    let mut states = vec![State::Planned; plan.moves.len()];
    if args.dry_run || plan.moves.is_empty() {
        return Ok(answer(&plan, &states));
    }
    let end = Instant::now() + Duration::from_secs(60 * args.max_minutes);
    while Instant::now() < end {
        for (one, state) in plan.moves.iter().zip(&mut states) {
            if let State::Running(task) = state {
                *state = look(client, one, task).await?;
            }
        }
        let running = states.iter().filter(|s| matches!(s, State::Running(_)));
        let free = (args.at_once as usize).saturating_sub(running.count());
        let next = plan.moves.iter().zip(&mut states);
        let next = next.filter(|(_, s)| **s == State::Planned).take(free);
        for (one, state) in next {
            *state = begin(client, one).await;
        }
        if states.iter().all(|s| matches!(s, State::Ended(_))) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(answer(&plan, &states))
}

async fn begin(client: &mut Client, one: &PlannedMove) -> State {
    let request = UpdateReplicasRequest {
        volume: one.volume_id.clone(),
        change: Some(Change::MoveFrom(one.from_node.clone())),
        node: one.to_node.clone(),
    };
    match client
        .admin
        .update_replicas(request)
        .await
        .map(|r| r.into_inner().task)
    {
        Ok(Some(task)) => State::Running(task.task_id),
        Ok(None) => State::Ended("nothing to do".into()),
        // Others changed something meanwhile: the rest of the plan may still be done.
        Err(status) => State::Ended(format!("refused: {}", status.message())),
    }
}

async fn look(client: &mut Client, one: &PlannedMove, task_id: &str) -> Result<State> {
    let found = client.locate(&one.volume_id).await?;
    let task = found.task.unwrap_or_default();
    Ok(match () {
        () if task.task_id != task_id => State::Ended("another change was begun".into()),
        () if ha::is_over(&task) && task.error.is_empty() => State::Ended(task.state),
        () if ha::is_over(&task) => State::Ended(format!("{}: {}", task.state, task.error)),
        () => State::Running(task.task_id),
    })
}

fn shown(state: &State) -> &str {
    match state {
        State::Planned => "planned",
        State::Running(_) => "running",
        State::Ended(how) => how,
    }
}

fn answer(plan: &PlanRebalanceReply, states: &[State]) -> Answer {
    let moves: Vec<_> = plan
        .moves
        .iter()
        .zip(states)
        .map(|(m, state)| {
            json!({
                "volume_id": m.volume_id, "name": m.name, "size_bytes": m.size_bytes, "from_node": m.from_node,
                "from_pool": m.from_pool, "to_node": m.to_node, "to_pool": m.to_pool, "why": m.why, "state": shown(state),
            })
        })
        .collect();
    let left: Vec<_> = plan
        .left
        .iter()
        .map(|l| json!({ "name": l.name, "why": l.why }))
        .collect();
    let data = json!({
        "moves": moves, "unbalanced_before": plan.unbalanced_before, "unbalanced_after": plan.unbalanced_after, "left": left,
    });
    let mut text = format!(
        "Pools above the mean by more than was asked: {} now, {} after these moves.\n",
        plan.unbalanced_before, plan.unbalanced_after
    );
    if plan.moves.is_empty() {
        text += "Nothing to move.\n";
    } else {
        let rows = plan.moves.iter().zip(states).map(|(m, state)| {
            vec![
                m.name.clone(),
                show_size(m.size_bytes),
                m.from_node.clone(),
                m.to_node.clone(),
                m.why.clone(),
                shown(state).to_owned(),
            ]
        });
        text += "\n";
        text += &table(&["VOLUME", "SIZE>", "FROM", "TO", "WHY", "STATE"], rows);
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
