//! `keelctl volume ha-update` and `resync`.
use super::progress::{Amount, LOOK, Progress, with_percent};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::Answer;
use clap::{ArgGroup, Args};
use keelblock_api::admin::update_replicas_request::Change;
use keelblock_api::admin::{
    CancelUpdateReplicasRequest, LocateVolumeReply, ReplicaStatus, ReplicaTask,
    UpdateReplicasRequest,
};
use serde_json::{Value, json};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Update {
    /// Name or id.
    volume: String,
    /// Number of replicas: more than now, or one less.
    #[arg(long, group = "what", value_parser = clap::value_parser!(u32).range(1..=5))]
    repl: Option<u32>,
    /// Take the replica away from this node (or the one of this id), as soon as there is another one elsewhere.
    #[arg(long = "move", group = "what", value_name = "FROM")]
    from: Option<String>,
    /// Serve the volume by no fewer replicas than this, or `auto`: by the majority of them, by one of two.
    #[arg(long, group = "what", value_name = "N|auto", value_parser = parse_minimum)]
    minimum: Option<u32>,
    /// Take back what changes the replicas now, as far as that is not final.
    #[arg(long, group = "what", conflicts_with_all = ["node", "wait"])]
    cancel: bool,
    /// Node of the replica that comes, or with fewer of the one that goes [default: chosen].
    #[arg(long, visible_alias = "to", conflicts_with = "minimum")]
    node: Option<String>,
    /// Stay until it is done.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Resync {
    /// Name or id.
    volume: String,
    /// The replica's node, or its id: all of it is compared with another one, and it is out of the set of those that count until that is done [default: those
    /// that are behind are brought back, also of a volume that is attached nowhere].
    #[arg(long)]
    node: Option<String>,
    /// Stay until it is done.
    #[arg(long)]
    wait: bool,
}

fn parse_minimum(text: &str) -> std::result::Result<u32, String> {
    match text {
        "auto" => Ok(0),
        n => match n.parse() {
            Ok(n @ 1..=5) => Ok(n),
            _ => Err("1 to 5, or auto".to_owned()),
        },
    }
}

/// Changes replicas, or takes that back.
pub async fn update(client: &mut Client, args: Update) -> Result<Answer> {
    let volume = client.volume(&args.volume).await?;
    let what = format!("update volume {}", volume.name);
    if args.cancel {
        let request = CancelUpdateReplicasRequest {
            volume: volume.id.clone(),
        };
        let taken = client.admin.cancel_update_replicas(request).await;
        taken.map_err(|s| Failure::from_status(what, &s))?;
        return now(client, &volume.id, "It is taken back.").await;
    }
    let change = match (args.repl, args.from, args.minimum) {
        (Some(n), _, _) => Change::Replicas(n),
        (_, Some(from), _) => Change::MoveFrom(from),
        (_, _, n) => Change::Minimum(n.unwrap_or(0)),
    };
    let request = UpdateReplicasRequest {
        volume: volume.id.clone(),
        change: Some(change),
        node: args.node.unwrap_or_default(),
    };
    begin(client, &volume.name, request, (what, args.wait)).await
}

/// Has a replica compared anew.
pub async fn resync(client: &mut Client, args: Resync) -> Result<Answer> {
    let volume = client.volume(&args.volume).await?;
    let what = format!("resync volume {}", volume.name);
    let request = UpdateReplicasRequest {
        volume: volume.id.clone(),
        change: Some(Change::Resync(args.node.clone().unwrap_or_default())),
        node: String::new(),
    };
    if args.node.is_some() {
        return begin(client, &volume.name, request, (what, args.wait)).await;
    }
    let begun = client.admin.update_replicas(request).await;
    begun.map_err(|s| Failure::from_status(what.clone(), &s))?;
    let mut progress = Progress::new();
    loop {
        let found = client.locate(&volume.id).await?;
        let behind: Vec<_> = found.replicas.iter().filter(|r| is_behind(r)).collect();
        if behind.is_empty() {
            progress.end();
            let mut all = found.replicas.iter();
            let says = match all.all(|r| r.state == "member") {
                true => "All of its replicas are in sync.",
                false => "Those of its replicas that can be reached are in sync.",
            };
            return Ok(answer(&found, says));
        }
        if !args.wait {
            let name = &volume.name;
            let says = format!("Begun; `keelctl volume replicas {name}` says how far it is.");
            return Ok(answer(&found, &says));
        }
        let sums = behind.iter().fold((0, 0), |(done, total), r| {
            (done + r.resync_done_bytes, total + r.resync_total_bytes)
        });
        let nodes: Vec<&str> = behind.iter().map(|r| r.node_id.as_str()).collect();
        let says = format!("resync of the replica on node {}", nodes.join(", "));
        progress.show(&says, (sums.1 > 0).then_some(sums));
        tokio::time::sleep(LOOK).await;
    }
}

/// It can be brought back, and is not yet.
fn is_behind(replica: &ReplicaStatus) -> bool {
    matches!(replica.state.as_str(), "behind" | "empty")
        && replica.node_alive
        && replica.error.is_empty()
}

/// Begins with a change, and waits for its end if that is wanted.
async fn begin(
    client: &mut Client,
    name: &str,
    request: UpdateReplicasRequest,
    (what, waits): (String, bool),
) -> Result<Answer> {
    let id = request.volume.clone();
    let begun = client.admin.update_replicas(request).await;
    let begun = begun.map_err(|s| Failure::from_status(what.clone(), &s))?;
    let Some(task) = begun.into_inner().task else {
        return now(client, &id, "It is as it was to be.").await;
    };
    if !waits {
        let says = format!("Begun; `keelctl volume replicas {name}` says how far it is.");
        return now(client, &id, &says).await;
    }
    wait(client, &id, &task.task_id, what).await
}

async fn now(client: &mut Client, id: &str, says: &str) -> Result<Answer> {
    let found = client.locate(id).await?;
    Ok(answer(&found, says))
}

fn answer(found: &LocateVolumeReply, says: &str) -> Answer {
    let task = found.task.as_ref();
    let mut text = format!("{says}\n");
    if let Some(task) = task {
        text += &format!("Volume {}: {}\n", found.name, shown(task));
    }
    let json = json!({
        "id": found.volume_id,
        "name": found.name,
        "ha_level": found.ha_level,
        "minimum": found.minimum,
        "task": task.map(json_of),
    });
    Answer::new(json, text)
}

async fn wait(client: &mut Client, id: &str, task_id: &str, what: String) -> Result<Answer> {
    let mut progress = Progress::new();
    loop {
        let found = client.locate(id).await?;
        let task = found.task.clone().unwrap_or_default();
        if task.task_id != task_id {
            progress.end();
            let why = "another change of its replicas was begun meanwhile".to_owned();
            return Err(Failure::local(what, why));
        }
        progress.show(&state(&task), amount(&task));
        match task.state.as_str() {
            "running" | "undoing" => tokio::time::sleep(LOOK).await,
            "done" => {
                progress.end();
                return Ok(answer(&found, "Done."));
            }
            _ => {
                progress.end();
                return Err(Failure::local(what, shown(&task)));
            }
        }
    }
}

/// Nothing more is done about it.
pub fn is_over(task: &ReplicaTask) -> bool {
    !matches!(task.state.as_str(), "running" | "undoing")
}

/// A task in a line.
pub fn shown(task: &ReplicaTask) -> String {
    with_percent(&state(task), amount(task))
}

/// What is compared and copied, while it is.
fn amount(task: &ReplicaTask) -> Option<Amount> {
    let copies = task.state == "running" && task.step == "resync" && task.total_bytes > 0;
    copies.then_some((task.done_bytes, task.total_bytes))
}

fn state(task: &ReplicaTask) -> String {
    let mut new = vec![task.new_node.as_str()];
    new.extend(task.more_nodes.iter().map(String::as_str));
    let new = new.join(", ");
    let what = match task.kind.as_str() {
        "move" => format!("move {} -> {}", task.old_node, task.new_node),
        "resync" => format!("resync of the replica on node {}", task.new_node),
        "decrease" => format!(
            "{} -> {} replicas, without node {}",
            task.replicas_before, task.replicas, task.old_node
        ),
        _ => format!(
            "{} -> {} replicas, with node {}",
            task.replicas_before, task.replicas, new
        ),
    };
    let mut text = match (task.state.as_str(), task.step.as_str()) {
        ("running", "resync") => format!("{what}: copying"),
        ("running", step) => format!("{what}: {step}"),
        (state, _) => format!("{what}: {state}"),
    };
    if task.automatic {
        text += ", by itself";
    }
    if !task.error.is_empty() {
        text += &format!(" ({})", task.error);
    }
    text
}

/// All of it.
pub fn json_of(task: &ReplicaTask) -> Value {
    json!({
        "task_id": task.task_id,
        "kind": task.kind,
        "state": task.state,
        "step": task.step,
        "replicas_before": task.replicas_before,
        "replicas": task.replicas,
        "new_node": task.new_node,
        "old_node": task.old_node,
        "done_bytes": task.done_bytes,
        "total_bytes": task.total_bytes,
        "copied_bytes": task.copied_bytes,
        "error": task.error,
        "created_unix_ms": task.created_unix_ms,
        "updated_unix_ms": task.updated_unix_ms,
        "automatic": task.automatic,
        "more_nodes": task.more_nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_said_in_a_line() {
        let mut task = ReplicaTask {
            kind: "increase".into(),
            state: "running".into(),
            step: "resync".into(),
            replicas_before: 2,
            replicas: 3,
            new_node: "n3".into(),
            done_bytes: 50,
            total_bytes: 200,
            ..Default::default()
        };
        assert_eq!(shown(&task), "2 -> 3 replicas, with node n3: copying, 25 %");
        task.state = "failed".into();
        task.error = "node n3: its pool is full".into();
        let says = "2 -> 3 replicas, with node n3: failed (node n3: its pool is full)";
        assert_eq!(shown(&task), says);
        assert!(is_over(&task));
        assert_eq!((parse_minimum("auto"), parse_minimum("3")), (Ok(0), Ok(3)));
        assert!(parse_minimum("0").is_err() && parse_minimum("6").is_err());
    }
}
