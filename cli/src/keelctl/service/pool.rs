//! `keelctl service pool …`.
use super::{pools, rebalance};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::{parse_size, show_size};
use clap::{Args, Subcommand, ValueEnum};
use keelblock_api::admin::{DriveStatus, PoolStatus};
use keelblock_api::openstorage as sdk;
use sdk::sdk_storage_pool::ResizeOperationType;
use sdk::sdk_storage_pool_resize_request::ResizeFactor;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// All pools, a line each.
    List,
    /// Everything about pools; all of them, unless named.
    Show {
        /// Name or id.
        pool: Option<String>,
    },
    /// Make a pool larger, by larger files or by another one. Of block devices, what has grown is used.
    Expand(Expand),
    /// Move replicas so that pools of all nodes have alike parts of what was promised.
    Rebalance(rebalance::Rebalance),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("to").required(true))]
pub struct Expand {
    /// Name or id; the only one, unless named.
    pool: Option<String>,
    /// The pool's new size, like 10T.
    #[arg(long, short, value_parser = parse_size, group = "to")]
    size: Option<u64>,
    /// Grow by this many percent.
    #[arg(long, value_name = "N", group = "to")]
    percent: Option<u64>,
    /// How.
    #[arg(long, value_enum, default_value = "auto")]
    operation: Operation,
}

/// As the SDK has them.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Operation {
    /// As it can be done.
    Auto,
    /// Another file beside the first.
    AddDisk,
    /// Larger files or devices.
    ResizeDisk,
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List => {
            let pools = pools(client).await?;
            let data: Vec<_> = pools.iter().map(pool_json).collect();
            Ok(Answer::new(data, pool_table(&pools)))
        }
        Command::Show { pool } => {
            let mut found = pools(client).await?;
            if let Some(name) = &pool {
                found = vec![find(found, Some(name))?];
            }
            let data: Vec<_> = found.iter().map(pool_json).collect();
            let text: Vec<_> = found.iter().map(described).collect();
            Ok(Answer::new(data, text.join("\n")))
        }
        Command::Expand(args) => expand(client, args).await,
        Command::Rebalance(args) => rebalance::rebalance(client, args).await,
    }
}

/// The pool of that name or id; without one, the only one.
fn find(pools: Vec<PoolStatus>, name: Option<&str>) -> Result<PoolStatus> {
    let all = pools.len();
    let Some(name) = name else {
        return match pools.into_iter().next() {
            Some(pool) if all == 1 => Ok(pool),
            Some(_) => Err(Failure::Usage("there are several pools: name one".into())),
            None => Err(Failure::NotFound {
                what: "pool".into(),
                why: "this node has none".into(),
            }),
        };
    };
    let mut pools = pools.into_iter();
    let found = pools.find(|p| p.pool_id == name || p.name == name);
    found.ok_or_else(|| Failure::NotFound {
        what: format!("pool {name}"),
        why: "there is no pool of that name or id; `keelctl service pool list` shows those that there are".into(),
    })
}

async fn expand(client: &mut Client, args: Expand) -> Result<Answer> {
    let pool = find(pools(client).await?, args.pool.as_deref())?;
    let how = match args.operation {
        Operation::Auto => ResizeOperationType::ResizeTypeAuto,
        Operation::AddDisk => ResizeOperationType::ResizeTypeAddDisk,
        Operation::ResizeDisk => ResizeOperationType::ResizeTypeResizeDisk,
    };
    let factor = match (args.size, args.percent) {
        (Some(bytes), _) => ResizeFactor::Size(bytes),
        (None, Some(percent)) => ResizeFactor::Percentage(percent),
        (None, None) => unreachable!("clap asks for one of them"),
    };
    let request = sdk::SdkStoragePoolResizeRequest {
        uuid: pool.pool_id.clone(),
        resize_factor: Some(factor),
        operation_type: how.into(),
        skip_wait_for_clean_volumes: false,
    };
    let reply = client.pools.resize(request).await;
    reply.map_err(|s| Failure::from_status(format!("expand pool {}", called(&pool)), &s))?;
    let grown = find(pools(client).await?, Some(&pool.pool_id))?;
    let text = format!(
        "Pool {} has {}, of which {} are free.",
        called(&grown),
        show_size(grown.total_bytes),
        show_size(grown.free_bytes)
    );
    Ok(Answer::new(pool_json(&grown), text))
}

/// Its name, or its id if it has none.
pub fn called(pool: &PoolStatus) -> &str {
    match pool.name.as_str() {
        "" => &pool.pool_id,
        name => name,
    }
}

fn described(pool: &PoolStatus) -> String {
    let mut text = facts(&[
        ("Pool", pool.name.clone()),
        ("Id", pool.pool_id.clone()),
        ("Capacity", show_size(pool.total_bytes)),
        ("Used", show_size(pool.used_bytes)),
        // Where it is not counted apart, there is nothing to say.
        ("  metadata", some_size(pool.metadata_bytes)),
        ("Free", show_size(pool.free_bytes)),
        ("Reserved", show_size(pool.reserved_bytes)),
        ("Provisioned", show_size(pool.provisioned_bytes)),
        ("Health", health(pool)),
    ]);
    text += "\n";
    text += &super::drive::drive_table(std::slice::from_ref(pool));
    text
}

fn some_size(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => show_size(bytes),
    }
}

fn health(pool: &PoolStatus) -> String {
    match pool.drives.iter().filter(|d| !d.online).count() {
        0 => "ok".to_owned(),
        failed => format!("{failed} failed"),
    }
}

/// Pools, a line each.
pub fn pool_table(pools: &[PoolStatus]) -> String {
    let rows = pools.iter().map(|p| {
        vec![
            called(p).to_owned(),
            show_size(p.used_bytes),
            show_size(p.free_bytes),
            show_size(p.total_bytes),
            show_size(p.provisioned_bytes),
            p.drives.len().to_string(),
            health(p),
        ]
    });
    table(
        &[
            "POOL",
            "USED>",
            "FREE>",
            "CAPACITY>",
            "PROVISIONED>",
            "DRIVES>",
            "HEALTH",
        ],
        rows,
    )
}

/// A pool for programs.
pub fn pool_json(pool: &PoolStatus) -> Value {
    let drives: Vec<_> = pool
        .drives
        .iter()
        .map(|d| drive_json(&pool.pool_id, d))
        .collect();
    json!({
        "id": pool.pool_id, "name": pool.name, "total_bytes": pool.total_bytes, "used_bytes": pool.used_bytes,
        "free_bytes": pool.free_bytes, "reserved_bytes": pool.reserved_bytes, "metadata_bytes": pool.metadata_bytes,
        "provisioned_bytes": pool.provisioned_bytes, "drives": drives,
    })
}

/// A drive for programs.
pub fn drive_json(pool_id: &str, d: &DriveStatus) -> Value {
    json!({
        "id": d.drive_id, "pool_id": pool_id, "path": d.path, "size_bytes": d.size_bytes, "state": state(d),
        "use": d.state, "error": d.error, "used_bytes": d.used_bytes, "free_bytes": d.free_bytes, "lanes": d.lanes,
        "read_errors": d.read_errors, "write_errors": d.write_errors, "checksum_errors": d.checksum_errors,
        "evacuation_bytes": d.evacuation_bytes, "evacuated_bytes": d.evacuated_bytes,
        "evacuation_error": d.evacuation_error,
    })
}

/// Whether a drive works.
pub fn state(drive: &DriveStatus) -> &'static str {
    if drive.online { "online" } else { "failed" }
}
