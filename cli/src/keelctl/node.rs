//! `keelctl node …`: which nodes there are, and what is wanted of each (`docs/membership.md`).
use super::member::{self, MemberView, members};
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
    /// What volumes and snapshots use on a node: on the one that answers, unless named.
    Usage {
        /// Id of the node.
        node: Option<String>,
    },
    /// Set labels of a node, or take some away: `region`, `zone` and `rack` say where it is.
    Label(member::Label),
    /// Enter or leave maintenance: attachments move away, and the machine may be taken away.
    Maintenance(member::Maintenance),
    /// Cordon a node, and move its attachments to others.
    Drain(member::Drain),
    /// A node gets no new replicas, attachments or volumes.
    Cordon(member::One),
    /// It may get some again; ends a drain.
    Uncordon(member::One),
    /// Move everything off a node, and take it out of the cluster; what cannot be moved is named.
    Decommission(member::Decommission),
    /// Take a node out of the cluster that is away and has nothing.
    Remove(member::Remove),
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List => list(client).await,
        Command::Usage { node } => super::usage::usage(client, node).await,
        Command::Label(args) => member::label(client, args).await,
        Command::Maintenance(args) => member::maintenance(client, args).await,
        Command::Drain(args) => member::drain(client, args).await,
        Command::Cordon(args) => member::cordon(client, args, true).await,
        Command::Uncordon(args) => member::cordon(client, args, false).await,
        Command::Decommission(args) => member::decommission(client, args).await,
        Command::Remove(args) => member::remove(client, args).await,
        Command::Inspect { node } => {
            let mut view = NodeView::new(&one_node(client, node).await?);
            let known = members(client).await?.members;
            let known = known.iter().find(|m| m.node_id == view.id);
            view.member = known.map(MemberView::new);
            let of = |pick: fn(&MemberView) -> String| {
                view.member.as_ref().map(pick).unwrap_or_default()
            };
            let mut text = facts(&[
                ("Node", view.id.clone()),
                ("Status", view.status.clone()),
                ("Host", view.hostname.clone()),
                ("Data address", view.data_ip.clone()),
                ("Management address", view.management_ip.clone()),
                ("Cores", view.cpu_cores.to_string()),
                ("Memory", show_size(view.memory_bytes)),
                ("Member", of(MemberView::shown)),
                ("Heard", of(MemberView::heard_shown)),
                ("Load", of(MemberView::load_shown)),
                ("Commands per second", of(MemberView::iops_shown)),
                ("Labels", of(MemberView::labels_shown)),
                ("To be done", of(|m| m.waits.clone())),
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

async fn list(client: &mut Client) -> Result<Answer> {
    let nodes = all_members(client).await?;
    let rows = nodes.iter().map(|n| {
        let total = n.pools.iter().map(|p| p.total_bytes).sum();
        let used = n.pools.iter().map(|p| p.used_bytes).sum();
        let of = |pick: fn(&MemberView) -> String| n.member.as_ref().map(pick).unwrap_or_default();
        vec![
            n.id.clone(),
            n.status.clone(),
            of(MemberView::shown),
            n.hostname.clone(),
            n.data_ip.clone(),
            show_size(used),
            show_size(total),
            of(MemberView::heard_shown),
            of(MemberView::load_shown),
            of(MemberView::iops_shown),
            of(MemberView::labels_shown),
        ]
    });
    let text = table(
        &[
            "NODE",
            "STATUS",
            "MEMBER",
            "HOST",
            "ADDRESS",
            "USED>",
            "CAPACITY>",
            "HEARD",
            "LOAD>",
            "IOPS>",
            "LABELS",
        ],
        rows,
    );
    let left = nodes.iter().filter_map(|n| {
        let waits = n
            .member
            .as_ref()
            .map(|m| &m.waits)
            .filter(|w| !w.is_empty())?;
        Some(format!("{}: {waits}\n", n.id))
    });
    let text = text + &left.collect::<String>();
    Ok(Answer::new(&nodes, text))
}

pub(super) async fn one_node(client: &mut Client, id: Option<String>) -> Result<sdk::StorageNode> {
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

/// Every node of the cluster, and what is wanted and heard of it.
pub async fn all_members(client: &mut Client) -> Result<Vec<NodeView>> {
    let mut nodes = all_nodes(client).await?;
    let known = members(client).await?.members;
    for node in &mut nodes {
        let of_it = known.iter().find(|m| m.node_id == node.id);
        node.member = of_it.map(MemberView::new);
    }
    Ok(nodes)
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
