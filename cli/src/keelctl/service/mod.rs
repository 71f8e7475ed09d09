//! `keelctl service …`: pools and drives of the node that answers, scans of them, and the cluster's KVDB.
mod diags;
mod drive;
mod kvdb;
mod pool;
mod rebalance;
mod scan;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::Answer;
use clap::Subcommand;
use keelblock_api::admin::PoolStatus;

pub use pool::{called, pool_json, pool_table};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pools: list, show, expand.
    #[command(subcommand)]
    Pool(pool::Command),
    /// Drives: list, show, add, grow, evacuate, remove, replace.
    #[command(subcommand)]
    Drive(drive::Command),
    /// Scans: reading everything in a pool and comparing it with its checksums.
    #[command(subcommand)]
    Scan(scan::Command),
    /// The key-value database: status, members, backup, restore.
    #[command(subcommand)]
    Kvdb(kvdb::Command),
    /// Everything that is wanted to look into a failure, of all nodes, in one file (tar.gz): versions, configuration, logs, status, metrics, records. No keys.
    Diags(diags::Diags),
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Pool(command) => pool::run(client, command).await,
        Command::Drive(command) => drive::run(client, command).await,
        Command::Scan(command) => scan::run(client, command).await,
        Command::Kvdb(command) => kvdb::run(client, command).await,
        Command::Diags(args) => diags::collect(client, args).await,
    }
}

/// The node's pools. None at all while the data path is away is said, instead of being shown as if there were none.
async fn pools(client: &mut Client) -> Result<Vec<PoolStatus>> {
    let node = client.node_status().await?;
    if !node.datapath_up {
        return Err(Failure::Unavailable {
            what: "look at the pools".into(),
            why: "the data path does not answer".into(),
        });
    }
    Ok(node.pools)
}
