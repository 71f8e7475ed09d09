//! `keelctl service drive …`.
use super::pool::{called, drive_json, state};
use super::pools;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::keelctl::progress::{Amount, LOOK, Progress, with_percent};
use crate::render::{Answer, facts, table};
use crate::size::{parse_size, show_size};
use clap::Subcommand;
use keelblock_api::admin::{self, DriveStatus, PoolStatus};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// All drives, a line each.
    List,
    /// Everything about drives; all of them, a line each, unless named.
    Show {
        /// Id or path.
        drive: Option<String>,
    },
    /// Add a drive to the pool. WHAT IT HOLDS IS LOST.
    Add {
        /// A block device, or a file that is made if there is none.
        path: String,
        /// Size of a file that is to be made, like 100G.
        #[arg(long, short, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Use more of a drive: a larger file, or a device that has grown.
    Grow {
        /// Id or path.
        drive: String,
        /// New size of a file, like 200G; as large as it is now, unless given.
        #[arg(long, short, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Move everything off a drive, while volumes are used.
    Evacuate {
        /// Id or path.
        drive: String,
        /// End the evacuation, and use the drive again.
        #[arg(long, conflicts_with = "wait")]
        cancel: bool,
        /// Stay until it is done.
        #[arg(long)]
        wait: bool,
    },
    /// Take an evacuated drive out of the pool.
    Remove {
        /// Id or path.
        drive: String,
    },
    /// Give up a drive that failed, and put another in its place. What only it held is lost.
    Replace {
        /// Id or path of the failed drive.
        drive: String,
        /// The new drive: a block device, or a file that is made if there is none. None, unless given.
        #[arg(long, value_name = "PATH")]
        with: Option<String>,
        /// Size of a file that is to be made.
        #[arg(long, short, value_parser = parse_size, requires = "with")]
        size: Option<u64>,
        /// Say that what only the failed drive held may be lost.
        #[arg(long)]
        accept_loss: bool,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List | Command::Show { drive: None } => {
            let pools = pools(client).await?;
            let drives = pools
                .iter()
                .flat_map(|p| p.drives.iter().map(|d| drive_json(&p.pool_id, d)));
            Ok(Answer::new(drives.collect::<Vec<_>>(), drive_table(&pools)))
        }
        Command::Show { drive: Some(name) } => {
            let (pool, drive) = find(client, &name).await?;
            Ok(Answer::new(
                drive_json(&pool.pool_id, &drive),
                described(&pool, &drive),
            ))
        }
        Command::Add { path, size } => {
            let request = admin::AddDriveRequest {
                path: path_for(&path)?,
                size_bytes: size.unwrap_or(0),
            };
            let reply = client.admin.add_drive(request).await;
            let what = format!("add drive {path}");
            changed(what, reply, |d| {
                format!(
                    "Drive {} added: {}, id {}.",
                    d.path,
                    show_size(d.size_bytes),
                    d.drive_id
                )
            })
        }
        Command::Grow { drive, size } => {
            let request = admin::GrowDriveRequest {
                drive: drive.clone(),
                size_bytes: size.unwrap_or(0),
            };
            let reply = client.admin.grow_drive(request).await;
            changed(format!("grow drive {drive}"), reply, |d| {
                format!("Drive {} has {}.", d.path, show_size(d.size_bytes))
            })
        }
        Command::Evacuate {
            drive,
            cancel,
            wait,
        } => evacuate(client, drive, cancel, wait).await,
        Command::Remove { drive } => {
            let request = admin::RemoveDriveRequest {
                drive: drive.clone(),
            };
            let reply = client.admin.remove_drive(request).await;
            reply.map_err(|s| Failure::from_status(format!("remove drive {drive}"), &s))?;
            let text = format!("Drive {drive} is no longer in the pool.");
            Ok(Answer::new(
                json!({ "drive": drive, "removed": true }),
                text,
            ))
        }
        Command::Replace {
            drive,
            with,
            size,
            accept_loss,
        } => {
            if !accept_loss {
                return Err(Failure::Usage(format!(
                    "what only drive {drive} holds is lost when it is given up: pass --accept-loss if it does not come back. A drive \
                     that works is evacuated and removed instead"
                )));
            }
            replace(client, drive, with, size.unwrap_or(0)).await
        }
    }
}

/// A path as the control process needs it, which has a working directory of its own.
fn path_for(path: &str) -> Result<String> {
    if path.starts_with("memory:") {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|e| Failure::Usage(format!("{path}: {e}")))?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Usage(format!("{path} is not UTF-8")))
}

fn changed(
    what: String,
    reply: std::result::Result<tonic::Response<admin::DriveReply>, tonic::Status>,
    text: impl Fn(&DriveStatus) -> String,
) -> Result<Answer> {
    let reply = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner();
    let drive = reply.drive.unwrap_or_default();
    Ok(Answer::new(
        drive_json(&reply.pool_id, &drive),
        text(&drive),
    ))
}

async fn evacuate(client: &mut Client, drive: String, cancel: bool, wait: bool) -> Result<Answer> {
    let what = format!("evacuate drive {drive}");
    let request = admin::EvacuateDriveRequest { drive, cancel };
    let reply = client.admin.evacuate_drive(request).await;
    if !wait {
        return changed(what, reply, |d| match cancel {
            true => format!("Drive {} is used as before.", d.path),
            false if d.state == "evacuated" => format!("Drive {} is empty.", d.path),
            false => format!(
                "Drive {} is being emptied; `keelctl service drive show {}` says how far it is.",
                d.path, d.path
            ),
        });
    }
    let reply = reply
        .map_err(|s| Failure::from_status(what.clone(), &s))?
        .into_inner();
    let id = reply.drive.unwrap_or_default().drive_id;
    let mut progress = Progress::new();
    loop {
        let (pool, drive) = find(client, &id).await?;
        progress.show(&leaving(&drive), amount(&drive));
        match (drive.state.as_str(), drive.online) {
            ("evacuated", _) => {
                progress.end();
                let text = format!(
                    "Drive {} is empty; `keelctl service drive remove {}` takes it out.",
                    drive.path, drive.path
                );
                return Ok(Answer::new(drive_json(&pool.pool_id, &drive), text));
            }
            ("evacuating", true) => tokio::time::sleep(LOOK).await,
            (_, online) => {
                progress.end();
                let why = match online {
                    true => "somebody has ended the evacuation".to_owned(),
                    false => format!("the drive has failed: {}", drive.error),
                };
                return Err(Failure::local(what, why));
            }
        }
    }
}

/// How far it is.
fn evacuation(drive: &DriveStatus) -> String {
    with_percent(&leaving(drive), amount(drive))
}

/// What is moved away from it, while it is.
fn amount(drive: &DriveStatus) -> Option<Amount> {
    let moves = drive.state == "evacuating";
    moves.then_some((drive.evacuated_bytes, drive.evacuation_bytes))
}

fn leaving(drive: &DriveStatus) -> String {
    if drive.state != "evacuating" {
        return String::new();
    }
    let mut text = format!(
        "moving {}, {} lanes left",
        show_size(drive.evacuation_bytes),
        drive.lanes
    );
    if !drive.evacuation_error.is_empty() {
        text += &format!("; it waits: {}", drive.evacuation_error);
    }
    text
}

async fn replace(
    client: &mut Client,
    drive: String,
    with: Option<String>,
    size_bytes: u64,
) -> Result<Answer> {
    let what = format!("replace drive {drive}");
    let request = admin::ReplaceDriveRequest {
        drive: drive.clone(),
        path: with
            .as_deref()
            .map(path_for)
            .transpose()?
            .unwrap_or_default(),
        size_bytes,
    };
    let reply = client.admin.replace_drive(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner();
    let mut text = format!("Drive {drive} is given up.");
    if let Some(new) = &reply.drive {
        text += &format!(" Drive {} takes its place, id {}.", new.path, new.drive_id);
    }
    match reply.lost_volume_ids.as_slice() {
        [] => text += " No volume lost data.",
        lost => {
            text += &format!(
                "\nVolumes that lost data, and can only be deleted:\n{}",
                lost.join("\n")
            )
        }
    }
    let new = reply.drive.as_ref().map(|d| drive_json("", d));
    Ok(Answer::new(
        json!({ "replaced": drive, "drive": new, "lost_volume_ids": reply.lost_volume_ids }),
        text,
    ))
}

async fn find(client: &mut Client, name: &str) -> Result<(PoolStatus, DriveStatus)> {
    let pools = pools(client).await?;
    let all = pools
        .iter()
        .flat_map(|p| p.drives.iter().map(move |d| (p, d)));
    let mut found = all.filter(|(_, d)| d.drive_id == name || d.path == name);
    let Some((pool, drive)) = found.next() else {
        return Err(Failure::NotFound {
            what: format!("drive {name}"),
            why: "there is no drive of that id or path; `keelctl service drive list` shows those that there are".into(),
        });
    };
    Ok((pool.clone(), drive.clone()))
}

fn described(pool: &PoolStatus, d: &DriveStatus) -> String {
    facts(&[
        ("Drive", d.path.clone()),
        ("Id", d.drive_id.clone()),
        ("Pool", called(pool).to_owned()),
        ("State", state(d).to_owned()),
        ("Use", d.state.clone()),
        ("Evacuation", evacuation(d)),
        ("Size", show_size(d.size_bytes)),
        ("Used", show_size(d.used_bytes)),
        ("Free", show_size(d.free_bytes)),
        ("Lanes", d.lanes.to_string()),
        ("Read errors", d.read_errors.to_string()),
        ("Write errors", d.write_errors.to_string()),
        ("Checksum errors", d.checksum_errors.to_string()),
        ("Error", d.error.clone()),
    ])
}

/// Drives, a line each.
pub fn drive_table(pools: &[PoolStatus]) -> String {
    let drives = pools
        .iter()
        .flat_map(|p| p.drives.iter().map(move |d| (p, d)));
    let rows = drives.map(|(pool, d)| {
        let shown = match (d.state.as_str(), d.online) {
            (_, false) | ("in-use", true) => state(d).to_owned(),
            (other, true) => other.to_owned(),
        };
        let errors = d.read_errors + d.write_errors + d.checksum_errors;
        vec![
            d.path.clone(),
            called(pool).to_owned(),
            show_size(d.used_bytes),
            show_size(d.size_bytes),
            shown,
            d.lanes.to_string(),
            errors.to_string(),
            d.drive_id.clone(),
            d.error.clone(),
        ]
    });
    table(
        &[
            "DRIVE", "POOL", "USED>", "SIZE>", "STATE", "LANES>", "ERRORS>", "ID", "ERROR",
        ],
        rows,
    )
}
