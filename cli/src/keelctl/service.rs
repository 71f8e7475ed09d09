//! `keelctl service …`: pools and drives of the node that answers.
use crate::client::Client;
use crate::failure::Result;
use crate::render::{Answer, table};
use crate::size::show_size;
use clap::Subcommand;
use keelblock_api::admin::{DriveStatus, PoolStatus};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pools.
    #[command(subcommand)]
    Pool(Show),
    /// Drives.
    #[command(subcommand)]
    Drive(Show),
}

#[derive(Debug, Subcommand)]
pub enum Show {
    /// Show them.
    Show,
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    let pools = client.node_status().await?.pools;
    Ok(match command {
        Command::Pool(Show::Show) => Answer::new(
            pools.iter().map(pool_json).collect::<Vec<_>>(),
            pool_table(&pools),
        ),
        Command::Drive(Show::Show) => {
            let drives: Vec<_> = pools
                .iter()
                .flat_map(|p| p.drives.iter().map(move |d| (p, d)))
                .collect();
            let rows = drives.iter().map(|(p, d)| {
                vec![
                    d.drive_id.clone(),
                    p.pool_id.clone(),
                    show_size(d.size_bytes),
                    state(d).into(),
                    d.path.clone(),
                    d.error.clone(),
                ]
            });
            let text = table(&["DRIVE", "POOL", "SIZE>", "STATE", "PATH", "ERROR"], rows);
            Answer::new(
                drives
                    .iter()
                    .map(|(p, d)| drive_json(p, d))
                    .collect::<Vec<_>>(),
                text,
            )
        }
    })
}

fn state(drive: &DriveStatus) -> &'static str {
    if drive.online { "online" } else { "failed" }
}

/// Pools, a line each.
pub fn pool_table(pools: &[PoolStatus]) -> String {
    let rows = pools.iter().map(|p| {
        let failed = p.drives.iter().filter(|d| !d.online).count();
        let health = if failed == 0 {
            "ok".to_owned()
        } else {
            format!("{failed} failed")
        };
        vec![
            p.pool_id.clone(),
            show_size(p.used_bytes),
            show_size(p.total_bytes),
            p.drives.len().to_string(),
            health,
        ]
    });
    table(&["POOL", "USED>", "CAPACITY>", "DRIVES>", "HEALTH"], rows)
}

/// A pool for programs.
pub fn pool_json(pool: &PoolStatus) -> Value {
    let drives: Vec<_> = pool.drives.iter().map(|d| drive_json(pool, d)).collect();
    json!({ "id": pool.pool_id, "total_bytes": pool.total_bytes, "used_bytes": pool.used_bytes, "drives": drives })
}

fn drive_json(pool: &PoolStatus, d: &DriveStatus) -> Value {
    json!({ "id": d.drive_id, "pool_id": pool.pool_id, "path": d.path, "size_bytes": d.size_bytes, "state": state(d), "error": d.error })
}
