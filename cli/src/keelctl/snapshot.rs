//! `keelctl volume snapshot …`, `clone`, `restore` and `diff`.
use super::view::VolumeView;
use super::volume::parse_label;
use crate::client::{Client, Volume};
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::size::show_size;
use crate::time::{show_time, time_for_name, unix_ms};
use clap::{Args, Subcommand};
use keelblock_api::admin;
use keelblock_api::openstorage as sdk;
use sdk::open_storage_volume_client::OpenStorageVolumeClient;
use serde_json::json;
use std::collections::HashMap;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep a volume as it is now; several volumes as they are at one moment.
    Create {
        /// Names or ids.
        #[arg(required = true)]
        volumes: Vec<String>,
        /// Name of the snapshot; of several volumes' snapshots, what their names begin with. VOLUME_TIME, unless given.
        #[arg(long)]
        name: Option<String>,
        /// A label (repeatable).
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Snapshots of a volume, or of all, oldest first.
    List {
        /// Name or id; of a volume that is gone, its id.
        volume: Option<String>,
        /// Only snapshots with this label (repeatable).
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Delete snapshots, in any order; clones of them stay.
    Delete {
        /// Names or ids.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Clone {
    /// Name or id of the snapshot, or of the volume to clone as it is now.
    parent: String,
    /// Name of the new volume.
    #[arg(long)]
    name: String,
    /// A label beside those of the parent (repeatable).
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Leave it detached; `keelctl host attach` attaches it.
    #[arg(long)]
    no_attach: bool,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// Name or id of the volume, which must be detached.
    volume: String,
    /// Name or id of a snapshot of it. What was written since is lost.
    #[arg(long)]
    snapshot: String,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// Name or id of the volume; not needed when a snapshot is named.
    #[arg(required_unless_present_any = ["from", "to"])]
    volume: Option<String>,
    /// The older state, a snapshot; without it, everything that has data is a difference.
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// The newer state, a snapshot; the volume as it is now, unless named.
    #[arg(long, value_name = "SNAPSHOT")]
    to: Option<String>,
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Create {
            volumes,
            name,
            label,
        } => create(client, volumes, name, label.into_iter().collect()).await,
        Command::List { volume, label } => list(client, volume, label.into_iter().collect()).await,
        Command::Delete { snapshots } => delete(client, snapshots).await,
    }
}

/// Names of the snapshots of these volumes.
fn names(volumes: &[Volume], name: Option<&str>, now_unix_ms: u64) -> Vec<String> {
    let named = |volume: &Volume| match (name, volumes.len()) {
        (Some(name), 1) => name.to_owned(),
        (Some(name), _) => format!("{name}_{}", volume.name),
        (None, _) => format!("{}_{}", volume.name, time_for_name(now_unix_ms)),
    };
    volumes.iter().map(named).collect()
}

async fn create(
    client: &mut Client,
    volumes: Vec<String>,
    name: Option<String>,
    labels: HashMap<String, String>,
) -> Result<Answer> {
    let mut found = Vec::with_capacity(volumes.len());
    for volume in &volumes {
        found.push(client.volume(volume).await?);
    }
    let names = names(&found, name.as_deref(), unix_ms());
    let wish = |(volume, name): (&Volume, &String)| admin::SnapshotWish {
        volume: volume.id.clone(),
        name: name.clone(),
        labels: labels.clone(),
    };
    let request = admin::CreateSnapshotsRequest {
        snapshots: found.iter().zip(&names).map(wish).collect(),
    };
    let reply = client.admin.create_snapshots(request).await;
    let what = format!("create snapshot {}", names.join(", "));
    let ids = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner()
        .snapshot_ids;
    let mut views = Vec::with_capacity(ids.len());
    for id in &ids {
        views.push(VolumeView::new(&client.volume(id).await?));
    }
    let lines = views.iter().zip(&found).map(|(s, v)| {
        format!(
            "Snapshot {} of volume {} taken, id {}.\n",
            s.name, v.name, s.id
        )
    });
    let text: String = lines.collect();
    Ok(Answer::new(&views, text))
}

async fn list(
    client: &mut Client,
    volume: Option<String>,
    labels: HashMap<String, String>,
) -> Result<Answer> {
    let request = sdk::SdkVolumeSnapshotEnumerateWithFiltersRequest {
        volume_id: volume.unwrap_or_default(),
        labels,
    };
    let reply = client
        .volumes
        .snapshot_enumerate_with_filters(request)
        .await;
    let ids = reply
        .map_err(|s| Failure::from_status("list snapshots", &s))?
        .into_inner()
        .volume_snapshot_ids;
    let all = client
        .find(sdk::SdkVolumeInspectWithFiltersRequest::default())
        .await?;
    let by_id: HashMap<&str, &Volume> = all.iter().map(|v| (v.id.as_str(), v)).collect();
    let views: Vec<_> = ids
        .iter()
        .filter_map(|id| by_id.get(id.as_str()))
        .map(|v| VolumeView::new(v))
        .collect();
    let rows = views.iter().map(|s| {
        // A volume that is gone has only its id left.
        let of = by_id
            .get(s.parent.as_str())
            .map_or(s.parent.clone(), |v| v.name.clone());
        vec![
            s.name.clone(),
            of,
            show_time(s.created_unix_ms),
            show_size(s.size_bytes),
            show_size(s.used_bytes),
            s.status.clone(),
            s.labels_shown(),
            s.id.clone(),
        ]
    });
    let text = match views.is_empty() {
        true => "No snapshots. `keelctl volume snapshot create VOLUME` takes one.".to_owned(),
        false => table(
            &[
                "NAME", "VOLUME", "TAKEN", "SIZE>", "USED>", "STATUS", "LABELS", "ID",
            ],
            rows,
        ),
    };
    Ok(Answer::new(&views, text))
}

async fn delete(client: &mut Client, names: Vec<String>) -> Result<Answer> {
    let mut found = Vec::with_capacity(names.len());
    for name in &names {
        found.push(snapshot(client, name).await?);
    }
    let (mut data, mut text) = (Vec::new(), String::new());
    for snapshot in found {
        let request = sdk::SdkVolumeDeleteRequest {
            volume_id: snapshot.id.clone(),
        };
        let reply = client.volumes.delete(request).await;
        reply
            .map_err(|s| Failure::from_status(format!("delete snapshot {}", snapshot.name), &s))?;
        text += &format!("Snapshot {} deleted.\n", snapshot.name);
        data.push(json!({ "id": snapshot.id, "deleted": true }));
    }
    Ok(Answer::new(data, text))
}

/// The snapshot of that name or id. A volume is none: it is not deleted by mistake.
async fn snapshot(client: &mut Client, name: &str) -> Result<Volume> {
    let found = client.volume(name).await;
    let found = found.map_err(|failure| match failure {
        Failure::NotFound { .. } => Failure::NotFound {
            what: format!("snapshot {name}"),
            why: "there is no snapshot of that name or id; `keelctl volume snapshot list` shows those that there are".into(),
        },
        other => other,
    })?;
    match found.is_snapshot() {
        true => Ok(found),
        false => Err(Failure::Usage(format!(
            "{name} is a volume, not a snapshot"
        ))),
    }
}

pub async fn clone(client: &mut Client, args: Clone) -> Result<Answer> {
    let parent = client.volume(&args.parent).await?;
    let request = sdk::SdkVolumeCloneRequest {
        name: args.name.clone(),
        parent_id: parent.id.clone(),
        additional_labels: args.label.into_iter().collect(),
    };
    let what = format!("clone {} as {}", parent.name, args.name);
    // The method, not the trait's.
    let reply = OpenStorageVolumeClient::clone(&mut client.volumes, request).await;
    let id = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner()
        .volume_id;
    let head = format!("Volume {} cloned from {}, id {id}.", args.name, parent.name);
    super::volume::ready(client, &id, args.no_attach, &head).await
}

pub async fn restore(client: &mut Client, args: Restore) -> Result<Answer> {
    let volume = client.volume(&args.volume).await?;
    let snapshot = snapshot(client, &args.snapshot).await?;
    if volume.exported() {
        return Err(Failure::local(
            format!("restore volume {}", volume.name),
            format!(
                "it is attached, and its hosts would not notice. `keelctl host detach {}` first",
                volume.name
            ),
        ));
    }
    let request = sdk::SdkVolumeSnapshotRestoreRequest {
        volume_id: volume.id.clone(),
        snapshot_id: snapshot.id.clone(),
    };
    let reply = client.volumes.snapshot_restore(request).await;
    reply.map_err(|s| Failure::from_status(format!("restore volume {}", volume.name), &s))?;
    let view = VolumeView::new(&client.volume(&volume.id).await?);
    let text = format!(
        "Volume {} is as snapshot {} has it. `keelctl host attach {}` lets hosts connect.",
        view.name, snapshot.name, view.name
    );
    Ok(Answer::new(&view, text))
}

pub async fn diff(client: &mut Client, args: Diff) -> Result<Answer> {
    let mut request = admin::DiffVolumeRequest {
        volume: args.volume.unwrap_or_default(),
        from: args.from.unwrap_or_default(),
        to: args.to.unwrap_or_default(),
        ..Default::default()
    };
    let mut ranges: Vec<admin::DiffRange> = Vec::new();
    loop {
        let reply = client.admin.diff_volume(request.clone()).await;
        let reply = reply
            .map_err(|s| Failure::from_status("compare", &s))?
            .into_inner();
        ranges.extend(reply.ranges);
        match reply.next_offset {
            Some(next) => request.start_offset = next,
            None => break,
        }
    }
    let sum = |data: bool| {
        ranges
            .iter()
            .filter(|r| r.data == data)
            .map(|r| r.length)
            .sum::<u64>()
    };
    let (written, discarded) = (sum(true), sum(false));
    let rows = ranges.iter().map(|r| {
        let kind = if r.data { "data" } else { "discarded" };
        vec![r.offset.to_string(), r.length.to_string(), kind.to_owned()]
    });
    let mut text = match ranges.is_empty() {
        true => String::new(),
        false => table(&["OFFSET>", "LENGTH>", "WHAT"], rows),
    };
    text += &format!(
        "{} to copy, {} to discard, in {} ranges",
        show_size(written),
        show_size(discarded),
        ranges.len()
    );
    let range =
        |r: &admin::DiffRange| json!({ "offset": r.offset, "length": r.length, "data": r.data });
    let data = json!({
        "data_bytes": written, "discarded_bytes": discarded, "ranges": ranges.iter().map(range).collect::<Vec<_>>(),
    });
    Ok(Answer::new(data, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_snapshots_have_names_of_their_own() {
        let volume = |name: &str| Volume {
            id: name.into(),
            name: name.into(),
            inner: sdk::Volume::default(),
        };
        let (one, two) = ([volume("db")], [volume("db"), volume("log")]);
        assert_eq!(names(&one, Some("s"), 0), ["s"]);
        assert_eq!(names(&two, Some("s"), 0), ["s_db", "s_log"]);
        assert_eq!(
            names(&two, None, 0),
            ["db_19700101-000000", "log_19700101-000000"]
        );
    }
}
