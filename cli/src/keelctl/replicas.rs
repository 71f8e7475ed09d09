//! `keelctl volume locate` and `replicas`.
use super::ha;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use keelblock_api::admin::{DecideReplicasRequest, LocateVolumeReply, ReplicaStatus};
use serde_json::{Value, json};

/// Where a volume is coordinated, and how its replicas are.
pub async fn locate(client: &mut Client, volume: &str) -> Result<Answer> {
    let found = client.locate(volume).await?;
    let mut text = facts(&[
        ("Volume", found.name.clone()),
        ("Id", found.volume_id.clone()),
        ("Attached on", found.attached_on.clone()),
        ("Coordinator", found.coordinator.clone()),
        ("State", found.state.clone()),
        ("Epoch", found.epoch.clone()),
        ("Replicas wanted", found.ha_level.to_string()),
        ("Served by at least", found.minimum.to_string()),
        ("In the way", found.trouble.clone()),
        (
            "Change",
            found.task.as_ref().map(ha::shown).unwrap_or_default(),
        ),
    ]);
    text += "\n";
    text += &replica_table(&found.replicas);
    Ok(Answer::new(json_of(&found), text))
}

/// The replicas alone.
pub async fn list(client: &mut Client, volume: &str) -> Result<Answer> {
    let found = client.locate(volume).await?;
    let mut text = replica_table(&found.replicas);
    if let Some(task) = found.task.as_ref().filter(|t| !ha::is_over(t)) {
        text += &format!("\n{}\n", ha::shown(task));
    }
    Ok(Answer::new(json_of(&found)["replicas"].clone(), text))
}

fn replica_table(replicas: &[ReplicaStatus]) -> String {
    let rows = replicas.iter().map(|r| {
        vec![
            r.node_id.clone(),
            if r.node_alive { "up" } else { "down" }.to_owned(),
            r.state.clone(),
            match r.connected {
                Some(true) => "yes".to_owned(),
                Some(false) => "no".to_owned(),
                None => String::new(),
            },
            r.behind_records.map(|n| n.to_string()).unwrap_or_default(),
            match r.resync_total_bytes {
                0 => String::new(),
                total => format!("{} %", r.resync_done_bytes.saturating_mul(100) / total),
            },
            r.replica_id.clone(),
            r.error.clone(),
        ]
    });
    let head = [
        "NODE",
        "NODE IS",
        "STATE",
        "CONNECTED",
        "BEHIND>",
        "RESYNC",
        "REPLICA",
        "ERROR",
    ];
    table(&head, rows)
}

fn json_of(found: &LocateVolumeReply) -> Value {
    let replica = |r: &ReplicaStatus| {
        json!({
            "replica_id": r.replica_id,
            "node_id": r.node_id,
            "pool_id": r.pool_id,
            "state": r.state,
            "node_alive": r.node_alive,
            "connected": r.connected,
            "behind_records": r.behind_records,
            "resync_done_bytes": r.resync_done_bytes,
            "resync_total_bytes": r.resync_total_bytes,
            "resync_copied_bytes": r.resync_copied_bytes,
            "error": r.error,
        })
    };
    json!({
        "id": found.volume_id,
        "name": found.name,
        "ha_level": found.ha_level,
        "minimum": found.minimum,
        "attached_on": found.attached_on,
        "coordinator": found.coordinator,
        "state": found.state,
        "epoch": found.epoch,
        "trouble": found.trouble,
        "task": found.task.as_ref().map(ha::json_of),
        "replicas": found.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

/// `keelctl volume decide-replicas`.
pub async fn decide(
    client: &mut Client,
    volume: String,
    nodes: Vec<String>,
    minimum: u32,
) -> Result<Answer> {
    let what = format!("decide which replicas of volume {volume} count");
    let request = DecideReplicasRequest {
        volume: volume.clone(),
        nodes,
        minimum,
    };
    let reply = client.admin.decide_replicas(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner();
    let data = json!({ "volume": volume, "nodes": reply.nodes, "minimum": reply.minimum });
    let text = format!(
        "The replicas of volume {volume} on {} count now, and it may be served by {} of them: attach it.",
        reply.nodes.join(", "),
        reply.minimum
    );
    Ok(Answer::new(data, text))
}
