//! `keelctl volume …`.
use super::view::VolumeView;
use super::{access, ha, hosts, placement, replicas, schedules, snapshot, stats, trashcan};
use crate::client::{Client, Volume};
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::{parse_size, show_size};
use crate::time::show_time;
use clap::{Args, Subcommand, ValueEnum};
use keelblock_api::admin;
use keelblock_api::openstorage as sdk;
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume and attach it, so that hosts can connect.
    Create(Create),
    /// All volumes, or those with certain labels.
    List {
        /// Only volumes with this label (repeatable).
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Everything about volumes, how to connect to them included.
    Inspect {
        /// Names or ids.
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Grow a volume, or change its labels. Hosts see the new size without reconnecting.
    Update(Update),
    /// Delete a volume and its data. It must be detached, or --force given.
    Delete {
        /// Name or id.
        volume: String,
        /// Detach it first: hosts that use it lose it.
        #[arg(long)]
        force: bool,
        /// For good, though the trashcan is on.
        #[arg(long)]
        now: bool,
        /// Accepted so that scripts can say they mean it; nothing asks.
        #[arg(long, hide = true)]
        yes: bool,
    },
    /// I/O of a volume over an interval.
    Stats {
        /// Name or id.
        volume: String,
        /// Seconds to watch; 0 shows the totals since the data path started.
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
        interval: u64,
    },
    /// Volumes that were deleted while the trashcan is on: list, restore, delete, options.
    #[command(subcommand)]
    Trashcan(trashcan::Command),
    /// Whose a volume is, and who else may do what with it, where tokens are asked for.
    #[command(subcommand)]
    Access(access::Command),
    /// Snapshots: create, list, delete.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Make a writable volume of a snapshot, or of a volume as it is now; at once, and sharing its space.
    Clone(snapshot::Clone),
    /// Set a detached volume back to a snapshot of it.
    Restore(snapshot::Restore),
    /// Say which replicas of a detached volume have everything, after the KVDB was restored or where nobody can take it over. What the others have
    /// besides is lost: they are copied anew.
    DecideReplicas {
        /// Name or id.
        volume: String,
        /// A node whose replica counts (repeatable).
        #[arg(long = "node", value_name = "NODE", required = true)]
        nodes: Vec<String>,
        /// By how few of them the volume may be served [default: as before, or as many as are named].
        #[arg(long, default_value = "0", hide_default_value = true, value_name = "N")]
        minimum: u32,
    },
    /// Have snapshots of a volume taken by schedule policies, instead of those that it has.
    SnapSchedule {
        /// Name or id.
        volume: String,
        /// A policy (repeatable).
        #[arg(
            long = "policy",
            value_name = "POLICY",
            required_unless_present = "none"
        )]
        policies: Vec<String>,
        /// By none any more.
        #[arg(long, conflicts_with = "policies")]
        none: bool,
    },
    /// Where two states of a volume differ.
    Diff(snapshot::Diff),
    /// The hosts that may connect to a volume.
    #[command(subcommand)]
    Hosts(hosts::Command),
    /// Attach a volume, so that hosts can connect to it; a replicated one to any node, and one that is attached elsewhere is moved there.
    Attach {
        /// Name or id.
        volume: String,
        /// Id of the node that is to coordinate it [default: the one that answers].
        #[arg(long)]
        node: Option<String>,
    },
    /// Where a volume is coordinated, and how far its replicas are.
    Locate {
        /// Name or id.
        volume: String,
    },
    /// The replicas of a volume, a line each.
    Replicas {
        /// Name or id.
        volume: String,
    },
    /// Change the number of replicas of a volume, one at a time, or move one to another node, while the volume is used.
    HaUpdate(ha::Update),
    /// Bring replicas that are behind back, or compare one with the others, all of it, and copy what differs; whether the volume is used or attached nowhere.
    Resync(ha::Resync),
    /// How a host connects to a volume.
    ConnectInfo {
        /// Name or id.
        volume: String,
    },
    /// Set the state in which hosts see this node's path to a volume (ANA), for maintenance.
    Path {
        /// Name or id.
        volume: String,
        /// The state.
        #[arg(long, value_enum)]
        state: PathState,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Name of the volume.
    name: String,
    /// Size, like 10G.
    #[arg(long, short, value_parser = parse_size)]
    size: u64,
    /// Logical block size in bytes that hosts see.
    #[arg(long, default_value = "4096", value_parser = ["512", "4096"])]
    block_size: String,
    /// Number of replicas, each on another node.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(i64).range(1..=5))]
    repl: i64,
    /// Encrypt its blocks: replicas, drives and the network between nodes have ciphertext only. Nodes need the cluster key.
    #[arg(long)]
    secure: bool,
    /// A label (repeatable).
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// A schedule policy by which snapshots of it are taken (repeatable).
    #[arg(long = "policy", value_name = "POLICY")]
    policies: Vec<String>,
    /// Leave it detached; `keelctl host attach` attaches it.
    #[arg(long)]
    no_attach: bool,
    #[command(flatten)]
    place: placement::Place,
    /// Make nothing, but say where its replicas would be, and of every other node why not.
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct Update {
    /// Name or id.
    volume: String,
    /// New size; volumes only grow.
    #[arg(long, short, value_parser = parse_size, group = "change")]
    size: Option<u64>,
    /// A label to set (repeatable).
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label, group = "change")]
    label: Vec<(String, String)>,
    /// A label to take away (repeatable).
    #[arg(long, value_name = "KEY", group = "change")]
    remove_label: Vec<String>,
}

/// The states of NVMe's asymmetric namespace access.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PathState {
    /// The best path.
    Optimized,
    /// Works, but others are better.
    NonOptimized,
    /// Does not work now.
    Inaccessible,
    /// Will not work again.
    PersistentLoss,
    /// About to change.
    Change,
}

/// Reads `key=value`.
pub fn parse_label(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a label: write KEY=VALUE")),
    }
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Create(args) => create(client, args).await,
        Command::List { label } => list(client, label).await,
        Command::Inspect { volumes } => inspect(client, &volumes).await,
        Command::Update(args) => update(client, args).await,
        Command::Delete {
            volume,
            force,
            now,
            yes: _,
        } => delete(client, &volume, force, now).await,
        Command::Stats { volume, interval } => {
            stats::stats(client, &volume, Duration::from_secs(interval)).await
        }
        Command::Trashcan(command) => trashcan::run(client, command).await,
        Command::Access(command) => access::run(client, command).await,
        Command::Snapshot(command) => snapshot::run(client, command).await,
        Command::Clone(args) => snapshot::clone(client, args).await,
        Command::Restore(args) => snapshot::restore(client, args).await,
        Command::Diff(args) => snapshot::diff(client, args).await,
        Command::Hosts(command) => hosts::run(client, command).await,
        Command::Attach { volume, node } => attach(client, &volume, node.as_deref()).await,
        Command::Locate { volume } => replicas::locate(client, &volume).await,
        Command::Replicas { volume } => replicas::list(client, &volume).await,
        Command::HaUpdate(args) => ha::update(client, args).await,
        Command::Resync(args) => ha::resync(client, args).await,
        Command::SnapSchedule {
            volume,
            policies,
            none: _,
        } => schedules::set(client, &volume, policies).await,
        Command::DecideReplicas {
            volume,
            nodes,
            minimum,
        } => replicas::decide(client, volume, nodes, minimum).await,
        Command::ConnectInfo { volume } => connect_info(client, &volume).await,
        Command::Path { volume, state } => path(client, &volume, state).await,
    }
}

async fn create(client: &mut Client, args: Create) -> Result<Answer> {
    let mut spec = sdk::VolumeSpec {
        size: args.size,
        block_size: args
            .block_size
            .parse()
            .expect("clap admits 512 and 4096 only"),
        ha_level: args.repl,
        encrypted: args.secure,
        ..Default::default()
    };
    if !args.policies.is_empty() {
        spec.snapshot_schedule = format!("policy={}", args.policies.join(","));
    }
    args.place.into_spec(&mut spec)?;
    let labels: HashMap<_, _> = args.label.into_iter().collect();
    let name = args.name.clone();
    let request = sdk::SdkVolumeCreateRequest {
        name: args.name,
        spec: Some(spec),
        labels,
    };
    if args.explain {
        return placement::explain(client, request).await;
    }
    let id = client.create(request).await?;
    let head = format!("Volume {name} created, id {id}.");
    ready(client, &id, args.no_attach, &head).await
}

/// Attaches a new volume, unless that is not wanted, and says how to connect; `head` says what was made.
pub async fn ready(client: &mut Client, id: &str, no_attach: bool, head: &str) -> Result<Answer> {
    let mut volume = client.volume(id).await?;
    if !no_attach && !volume.attached() {
        client.attach(&volume, None).await?;
        volume = client.volume(id).await?;
    }
    let text = if volume.attached() {
        let info = client.connection(id).await?;
        format!("{head} To connect a host:\n{}", connect_lines(&info))
    } else {
        format!(
            "{head} `keelctl host attach {}` lets hosts connect.",
            volume.name
        )
    };
    Ok(Answer::new(VolumeView::new(&volume), text))
}

async fn attach(client: &mut Client, name: &str, node: Option<&str>) -> Result<Answer> {
    let volume = client.volume(name).await?;
    client.attach_to(&volume, None, node).await?;
    let volume = client.volume(&volume.id).await?;
    let info = client.connection(&volume.id).await?;
    let head = format!(
        "Volume {} is attached on {}.",
        volume.name, volume.inner.attached_on
    );
    let text = format!("{head} To connect a host:\n{}", connect_lines(&info));
    Ok(Answer::new(VolumeView::new(&volume), text))
}

async fn list(client: &mut Client, labels: Vec<(String, String)>) -> Result<Answer> {
    let filter = sdk::SdkVolumeInspectWithFiltersRequest {
        labels: labels.into_iter().collect(),
        ..Default::default()
    };
    let views: Vec<_> = client
        .find(filter)
        .await?
        .iter()
        .filter(|v| !v.is_snapshot())
        .map(VolumeView::new)
        .collect();
    let rows = views.iter().map(|v| {
        let (size, block) = (show_size(v.size_bytes), v.block_size.to_string());
        vec![
            v.name.clone(),
            v.id.clone(),
            size,
            show_size(v.used_bytes),
            block,
            v.replicas_shown(),
            v.status.clone(),
            v.state.clone(),
            v.attached_on.clone(),
            v.labels_shown(),
        ]
    });
    let text = if views.is_empty() {
        "No volumes. `keelctl volume create NAME --size 10G` makes one.".to_owned()
    } else {
        table(
            &[
                "NAME",
                "ID",
                "SIZE>",
                "USED>",
                "BLOCK>",
                "REPLICAS>",
                "STATUS",
                "STATE",
                "ATTACHED ON",
                "LABELS",
            ],
            rows,
        )
    };
    Ok(Answer::new(&views, text))
}

async fn inspect(client: &mut Client, names: &[String]) -> Result<Answer> {
    let (mut all, mut text) = (Vec::new(), String::new());
    for name in names {
        let volume = client.volume(name).await?;
        let view = VolumeView::new(&volume);
        let info = if volume.attached() {
            Some(client.connection(&volume.id).await?)
        } else {
            None
        };
        let unique = client.unique_bytes(&volume.id).await;
        text += &described(&view, unique, info.as_ref());
        text += "\n";
        let mut value = json!(view);
        value["unique_bytes"] = json!(unique);
        if let Some(info) = info {
            value["connection"] = connection_json(&info);
        }
        all.push(value);
    }
    Ok(Answer::new(all, text))
}

/// A volume's facts, with how to connect to it when it is attached.
fn described(
    view: &VolumeView,
    unique: Option<u64>,
    info: Option<&admin::ConnectionInfoReply>,
) -> String {
    let kind = if view.snapshot { "Snapshot" } else { "Volume" };
    let mut text = facts(&[
        (kind, view.name.clone()),
        ("Id", view.id.clone()),
        (
            if view.snapshot {
                "Of volume"
            } else {
                "Cloned from"
            },
            view.parent.clone(),
        ),
        ("Created", show_time(view.created_unix_ms)),
        ("Provisioned", show_size(view.size_bytes)),
        ("Used", show_size(view.used_bytes)),
        ("Unique", unique.map(show_size).unwrap_or_default()),
        ("Block size", format!("{} B", view.block_size)),
        ("Replicas", view.replicas_shown()),
        ("Replicas on", view.replicas_on.join(", ")),
        ("Replication", view.replication_shown()),
        ("Status", view.status.clone()),
        ("State", view.state.clone()),
        ("Attached on", view.attached_on.clone()),
        ("Labels", view.labels_shown()),
        ("Error", view.error.clone()),
    ]);
    if let Some(info) = info {
        text += &facts(&[
            ("Hosts     ", hosts::shown(info)),
            ("NQN       ", info.nqn.clone()),
            ("Namespace ", info.nsid.to_string()),
        ]);
        text += &connect_lines(info);
    }
    text
}

async fn update(client: &mut Client, args: Update) -> Result<Answer> {
    let volume = client.volume(&args.volume).await?;
    let mut labels = volume
        .inner
        .locator
        .clone()
        .unwrap_or_default()
        .volume_labels;
    let relabelled = !args.label.is_empty() || !args.remove_label.is_empty();
    for key in &args.remove_label {
        if labels.remove(key).is_none() {
            let what = format!("update volume {}", volume.name);
            return Err(Failure::NotFound {
                what,
                why: format!("it has no label {key}"),
            });
        }
    }
    labels.extend(args.label);
    // An empty value takes a label away: the SDK merges what an update names into what is there.
    let gone = args
        .remove_label
        .iter()
        .filter(|k| !labels.contains_key(*k))
        .map(|k| (k.clone(), String::new()));
    let changed: HashMap<_, _> = if relabelled {
        labels.clone().into_iter().chain(gone).collect()
    } else {
        HashMap::new()
    };
    let spec = args.size.map(|size| sdk::VolumeSpecUpdate {
        size_opt: Some(sdk::volume_spec_update::SizeOpt::Size(size)),
        ..Default::default()
    });
    let request = sdk::SdkVolumeUpdateRequest {
        volume_id: volume.id.clone(),
        labels: changed,
        spec,
    };
    let reply = client.volumes.update(request).await;
    reply.map_err(|s| Failure::from_status(format!("update volume {}", volume.name), &s))?;
    let view = VolumeView::new(&client.volume(&volume.id).await?);
    let text = format!(
        "Volume {} updated: {}, labels {}",
        view.name,
        show_size(view.size_bytes),
        view.labels_shown()
    );
    Ok(Answer::new(&view, text))
}

async fn delete(client: &mut Client, name: &str, force: bool, now: bool) -> Result<Answer> {
    let volume = client.volume(name).await?;
    if volume.exported() {
        if !force {
            return Err(Failure::local(
                format!("delete volume {}", volume.name),
                format!(
                    "it is attached, so hosts may be using it. `keelctl host detach {}` first, or pass --force to do both",
                    volume.name
                ),
            ));
        }
        client.detach(&volume).await?;
    }
    client.delete(&volume).await?;
    let trash = client.admin.list_trash(admin::ListTrashRequest {}).await;
    let trash = trash.map_err(|s| Failure::from_status("look into the trashcan", &s))?;
    let there = trash
        .into_inner()
        .volumes
        .into_iter()
        .find(|v| v.volume_id == volume.id);
    let text = match &there {
        Some(_) if now => {
            trashcan::delete(client, std::slice::from_ref(&volume.id)).await?;
            format!("Volume {} deleted.", volume.name)
        }
        Some(kept) => format!(
            "Volume {name} deleted. It is in the trashcan until {}: `keelctl volume trashcan restore {name}` takes it back.",
            show_time(kept.until_unix_ms),
            name = volume.name
        ),
        None => format!("Volume {} deleted.", volume.name),
    };
    let in_trashcan = there.is_some() && !now;
    Ok(Answer::new(
        json!({ "id": volume.id, "deleted": true, "in_trashcan": in_trashcan }),
        text,
    ))
}

async fn connect_info(client: &mut Client, name: &str) -> Result<Answer> {
    let volume: Volume = client.volume(name).await?;
    let info = client.connection(&volume.id).await?;
    let paths = info.paths.iter();
    let rows = paths.map(|p| {
        vec![
            p.node_id.clone(),
            p.transport.clone(),
            p.address.clone(),
            p.port.to_string(),
            p.state.clone(),
        ]
    });
    let mut text = facts(&[
        ("NQN", info.nqn.clone()),
        ("Namespace", info.nsid.to_string()),
        ("Hosts", hosts::shown(&info)),
    ]);
    text += "\n";
    text += &table(&["NODE", "TRANSPORT", "ADDRESS", "PORT>", "PATH"], rows);
    text += "\n";
    text += &connect_lines(&info);
    Ok(Answer::new(connection_json(&info), text))
}

async fn path(client: &mut Client, name: &str, state: PathState) -> Result<Answer> {
    let volume = client.volume(name).await?;
    let state = state
        .to_possible_value()
        .expect("no state is hidden")
        .get_name()
        .to_owned();
    let request = admin::SetPathStateRequest {
        volume: volume.id.clone(),
        state: state.clone(),
    };
    let reply = client.admin.set_path_state(request).await;
    reply
        .map_err(|s| Failure::from_status(format!("set the path to volume {}", volume.name), &s))?;
    Ok(Answer::new(
        json!({ "id": volume.id, "state": state }),
        format!("Path to volume {} is now {state}.", volume.name),
    ))
}

/// The commands that connect a Linux host.
pub fn connect_lines(info: &admin::ConnectionInfoReply) -> String {
    let line = |p: &admin::Path| {
        format!(
            "nvme connect -t {} -a {} -s {} -n {}\n",
            p.transport, p.address, p.port, info.nqn
        )
    };
    info.paths.iter().map(line).collect()
}

fn connection_json(info: &admin::ConnectionInfoReply) -> serde_json::Value {
    let path = |p: &admin::Path| json!({ "node_id": p.node_id, "transport": p.transport, "address": p.address, "port": p.port, "state": p.state });
    json!({
        "volume_id": info.volume_id, "nqn": info.nqn, "nsid": info.nsid,
        "paths": info.paths.iter().map(path).collect::<Vec<_>>(),
        "allowed_hosts": info.allowed_hosts, "any_host": info.any_host,
    })
}
