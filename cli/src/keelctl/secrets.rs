//! `keelctl secrets …`: the cluster key.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use clap::Subcommand;
use keelblock_api::admin;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Where this node has the cluster key from, its id, and what it wraps.
    Show,
    /// Wraps the keys of all encrypted volumes by the present cluster key, which all nodes must have by then. May be interrupted, and done again.
    Rotate,
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Show => show(client).await,
        Command::Rotate => rotate(client).await,
    }
}

async fn show(client: &mut Client) -> Result<Answer> {
    let reply = client.admin.cluster_key(admin::ClusterKeyRequest {}).await;
    let reply = reply
        .map_err(|s| Failure::from_status("look at the cluster key", &s))?
        .into_inner();
    let volumes: Vec<_> = reply
        .volumes
        .iter()
        .map(|v| json!({ "id": v.volume_id, "name": v.name, "key": v.key_id }))
        .collect();
    let data = json!({
        "source": reply.source, "keys": reply.key_ids, "error": reply.error, "volumes": volumes,
    });
    let keys = match reply.error.is_empty() {
        true => reply.key_ids.join(", "),
        false => reply.error.clone(),
    };
    let mut text = facts(&[("Cluster key", keys), ("From", reply.source.clone())]);
    if !reply.volumes.is_empty() {
        let rows = reply
            .volumes
            .iter()
            .map(|v| vec![v.name.clone(), v.key_id.clone()]);
        text += "\n";
        text += &table(&["ENCRYPTED VOLUME", "WRAPPED BY"], rows);
    }
    Ok(Answer::new(data, text))
}

async fn rotate(client: &mut Client) -> Result<Answer> {
    let request = admin::RotateClusterKeyRequest {};
    let reply = client.admin.rotate_cluster_key(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status("wrap keys again", &s))?
        .into_inner();
    if let Some(first) = reply.failed.first() {
        let why = format!(
            "the keys of {} volumes are as they were; of volume {}: {}. Those of {} were wrapped again",
            reply.failed.len(),
            first.volume_id,
            first.why,
            reply.changed
        );
        let what = "wrap keys again".into();
        return Err(Failure::Failed { what, why });
    }
    let data =
        json!({ "key": reply.key_id, "changed": reply.changed, "unchanged": reply.unchanged });
    let text = format!(
        "The keys of {} volumes are wrapped by cluster key {} now, {} were before. Older cluster keys can be taken away.",
        reply.changed, reply.key_id, reply.unchanged
    );
    Ok(Answer::new(data, text))
}
