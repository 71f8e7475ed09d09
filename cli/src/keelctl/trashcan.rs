//! `keelctl volume trashcan …`: volumes that were deleted while the trashcan is on.
use super::view::VolumeView;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::show_size;
use crate::time::show_time;
use clap::Subcommand;
use keelblock_api::admin::*;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What is in it, and until when.
    List,
    /// Take a volume out of it, with its data.
    Restore {
        /// The name that it had, or its id.
        volume: String,
        /// Another name, if the old one is taken.
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete volumes of it for good, now.
    Delete {
        /// The names that they had, or their ids.
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// How long deleted volumes are kept; shows it, changed as is said.
    Options {
        /// Keep volumes that are deleted from now on for this many minutes; 0: delete them at once.
        #[arg(long, value_name = "MINUTES")]
        keep_minutes: Option<u64>,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List => list(client).await,
        Command::Restore { volume, name } => restore(client, volume, name).await,
        Command::Delete { volumes } => delete(client, &volumes).await,
        Command::Options { keep_minutes } => options(client, keep_minutes).await,
    }
}

async fn list(client: &mut Client) -> Result<Answer> {
    let reply = client.admin.list_trash(ListTrashRequest {}).await;
    let reply = reply.map_err(|s| Failure::from_status("list the trashcan", &s))?;
    let volumes = reply.into_inner().volumes;
    let one = |v: &TrashedVolume| {
        json!({
            "id": v.volume_id, "name": v.name, "size_bytes": v.size_bytes, "replicas": v.replicas,
            "deleted_unix_ms": v.deleted_unix_ms, "until_unix_ms": v.until_unix_ms,
        })
    };
    let data: Vec<_> = volumes.iter().map(one).collect();
    let rows = volumes.iter().map(|v| {
        vec![
            v.name.clone(),
            v.volume_id.clone(),
            show_size(v.size_bytes),
            v.replicas.to_string(),
            show_time(v.deleted_unix_ms),
            show_time(v.until_unix_ms),
        ]
    });
    let text = match volumes.is_empty() {
        true => "The trashcan is empty.".to_owned(),
        false => table(
            &["NAME", "ID", "SIZE>", "REPLICAS>", "DELETED", "KEPT UNTIL"],
            rows,
        ),
    };
    Ok(Answer::new(data, text))
}

async fn restore(client: &mut Client, volume: String, name: Option<String>) -> Result<Answer> {
    let what = format!("restore volume {volume} from the trashcan");
    let request = RestoreTrashRequest {
        volume,
        name: name.unwrap_or_default(),
    };
    let reply = client.admin.restore_trash(request).await;
    let id = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner()
        .volume_id;
    let view = VolumeView::new(&client.volume(&id).await?);
    let text = format!(
        "Volume {} is back, detached, id {id}. `keelctl host attach {}` lets hosts connect.",
        view.name, view.name
    );
    Ok(Answer::new(&view, text))
}

/// Deletes volumes of the trashcan, by names or ids.
pub async fn delete(client: &mut Client, volumes: &[String]) -> Result<Answer> {
    let mut ids = Vec::new();
    for volume in volumes {
        let request = PurgeTrashRequest {
            volume: volume.clone(),
        };
        let reply = client.admin.purge_trash(request).await;
        let what = format!("delete volume {volume} of the trashcan");
        ids.push(
            reply
                .map_err(|s| Failure::from_status(what, &s))?
                .into_inner()
                .volume_id,
        );
    }
    let text = format!("Deleted for good: {}.", volumes.join(", "));
    Ok(Answer::new(json!({ "deleted": ids }), text))
}

async fn options(client: &mut Client, keep_minutes: Option<u64>) -> Result<Answer> {
    let reply = client
        .admin
        .trash_options(TrashOptionsRequest { keep_minutes })
        .await;
    let reply = reply.map_err(|s| Failure::from_status("options of the trashcan", &s))?;
    let keep = reply.into_inner().keep_minutes;
    let shown = match keep {
        0 => "not at all: the trashcan is off".to_owned(),
        n => format!("{n} minutes"),
    };
    Ok(Answer::new(
        json!({ "keep_minutes": keep }),
        facts(&[("Deleted volumes are kept", shown)]),
    ))
}
