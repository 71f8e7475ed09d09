//! `keelctl node …`.
use super::view::NodeView;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::show_size;
use clap::Subcommand;
use keelblock_api::openstorage as sdk;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// All nodes.
    List,
    /// A node; the one that answers, unless named.
    Inspect {
        /// Id of the node.
        node: Option<String>,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List => {
            let nodes = all_nodes(client).await?;
            let rows = nodes.iter().map(|n| {
                let total = n.pools.iter().map(|p| p.total_bytes).sum();
                let used = n.pools.iter().map(|p| p.used_bytes).sum();
                vec![
                    n.id.clone(),
                    n.status.clone(),
                    n.hostname.clone(),
                    n.data_ip.clone(),
                    show_size(used),
                    show_size(total),
                ]
            });
            let text = table(
                &["NODE", "STATUS", "HOST", "ADDRESS", "USED>", "CAPACITY>"],
                rows,
            );
            Ok(Answer::new(&nodes, text))
        }
        Command::Inspect { node } => {
            let view = NodeView::new(&one_node(client, node).await?);
            let mut text = facts(&[
                ("Node", view.id.clone()),
                ("Status", view.status.clone()),
                ("Host", view.hostname.clone()),
                ("Data address", view.data_ip.clone()),
                ("Management address", view.management_ip.clone()),
                ("Cores", view.cpu_cores.to_string()),
                ("Memory", show_size(view.memory_bytes)),
            ]);
            for pool in &view.pools {
                text += &format!(
                    "Pool {}: {} of {} used\n",
                    pool.id,
                    show_size(pool.used_bytes),
                    show_size(pool.total_bytes)
                );
            }
            Ok(Answer::new(&view, text))
        }
    }
}

async fn one_node(client: &mut Client, id: Option<String>) -> Result<sdk::StorageNode> {
    let (what, node) = match id {
        None => {
            let reply = client
                .nodes
                .inspect_current(sdk::SdkNodeInspectCurrentRequest {})
                .await;
            (
                "inspect this node".to_owned(),
                reply.map(|r| r.into_inner().node),
            )
        }
        Some(node_id) => {
            let what = format!("inspect node {node_id}");
            let reply = client
                .nodes
                .inspect(sdk::SdkNodeInspectRequest { node_id })
                .await;
            (what, reply.map(|r| r.into_inner().node))
        }
    };
    let node = node.map_err(|s| Failure::from_status(what.clone(), &s))?;
    node.ok_or_else(|| Failure::local(what, "the answer is empty"))
}

/// Every node of the cluster.
pub async fn all_nodes(client: &mut Client) -> Result<Vec<NodeView>> {
    let reply = client
        .nodes
        .enumerate_with_filters(sdk::SdkNodeEnumerateWithFiltersRequest {})
        .await;
    let reply = reply.map_err(|s| Failure::from_status("list nodes", &s))?;
    Ok(reply.into_inner().nodes.iter().map(NodeView::new).collect())
}
