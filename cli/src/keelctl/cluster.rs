//! `keelctl cluster …`.
use super::member::MemberView;
use super::node::all_members;
use super::placement;
use super::token;
use super::view::word;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use clap::Subcommand;
use keelblock_api::openstorage as sdk;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The cluster's nodes, a line each.
    List,
    /// The cluster's id, name and state.
    Inspect,
    /// What pools may be asked for, and when replicas are replaced; shows it, changed as is said.
    Options(placement::Options),
    /// Pools of all nodes that live: what is in them, and what was promised to volumes.
    ProvisionStatus,
    /// The token that nodes bring when they join.
    #[command(subcommand)]
    Token(token::Command),
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Options(args) => placement::options(client, args).await,
        Command::ProvisionStatus => placement::provision_status(client).await,
        Command::Token(command) => token::run(client, command).await,
        Command::List => described(client, true).await,
        Command::Inspect => described(client, false).await,
    }
}

async fn described(client: &mut Client, list: bool) -> Result<Answer> {
    let reply = client
        .cluster
        .inspect_current(sdk::SdkClusterInspectCurrentRequest {})
        .await;
    let reply = reply.map_err(|s| Failure::from_status("inspect the cluster", &s))?;
    let cluster = reply.into_inner().cluster.unwrap_or_default();
    let nodes = all_members(client).await?;
    let status = word(cluster.status().as_str_name(), "STATUS_");
    let data = json!({ "id": cluster.id, "name": cluster.name, "status": status, "nodes": nodes });
    let mut text = facts(&[
        ("Cluster", cluster.name.clone()),
        ("Id", cluster.id.clone()),
        ("Status", status),
    ]);
    match list {
        false => text += &facts(&[("Nodes  ", nodes.len().to_string())]),
        true => {
            let rows = nodes.iter().map(|n| {
                let load = n.member.as_ref().map(MemberView::load_shown);
                vec![
                    n.id.clone(),
                    n.hostname.clone(),
                    n.data_ip.clone(),
                    n.status.clone(),
                    load.unwrap_or_default(),
                ]
            });
            text += "\n";
            text += &table(&["NODE", "HOST", "ADDRESS", "STATUS", "LOAD>"], rows);
        }
    }
    Ok(Answer::new(data, text))
}
