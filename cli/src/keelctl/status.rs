//! `keelctl status`: whether anything is wrong, what to do about it, and the cluster and the node at a glance.
use super::health::{Finding, findings};
use super::member::MemberView;
use super::node::all_members;
use super::service::{pool_json, pool_table};
use super::view::{NodeView, VolumeView};
use crate::client::Client;
use crate::failure::Result;
use crate::render::{Answer, facts, table};
use crate::size::show_size;
use keelblock_api::admin::{GossipCounts, NodeStatusReply, ProvisionedPool, ReactorStatus};
use serde_json::json;
use std::collections::BTreeMap;

pub async fn status(client: &mut Client) -> Result<Answer> {
    let node = client.node_status().await?;
    let nodes = all_members(client).await?;
    let alerts = super::alerts::open(client).await?;
    let room = super::placement::provisioned(client).await?;
    let volumes: Vec<_> = client.list().await?.iter().map(VolumeView::new).collect();
    let wrong = findings(&node, &nodes, &volumes, &alerts);
    let data = json!({
        "healthy": wrong.is_empty(), "findings": wrong, "nodes": nodes,
        "cluster_id": node.cluster_id, "node_id": node.node_id, "version": node.version,
        "control_pid": node.control_pid, "datapath_up": node.datapath_up, "datapath_pid": node.datapath_pid,
        "nvme_address": node.nvme_address, "memory_bytes": node.memory_bytes, "hugepages": node.hugepages,
        "datapath_started_unix_ms": node.datapath_started_unix_ms,
        "reactors": node.reactors.iter().map(reactor_json).collect::<Vec<_>>(),
        "gossip": node.gossip.as_ref().map(gossip_json),
        "pools": node.pools.iter().map(pool_json).collect::<Vec<_>>(),
        "volumes": volumes,
    });
    let rows = volumes.iter().map(|v| {
        vec![
            v.name.clone(),
            show_size(v.size_bytes),
            v.status.clone(),
            v.state.clone(),
        ]
    });
    let volumes = if volumes.is_empty() {
        "No volumes.\n".into()
    } else {
        table(&["VOLUME", "SIZE>", "STATUS", "STATE"], rows)
    };
    let text = format!(
        "{}\n{}\n{}\n{}\n{}\n{volumes}",
        health(&wrong),
        head(&node),
        node_table(&nodes, &room),
        reactor_table(&node.reactors),
        pool_table(&node.pools)
    );
    Ok(Answer::new(data, text))
}

/// In a line that nothing is wrong; else what is, and what to do.
fn health(wrong: &[Finding]) -> String {
    if wrong.is_empty() {
        return "Nothing is wrong.\n".into();
    }
    let alarms = wrong.iter().filter(|f| f.severity == "alarm").count();
    let many = match wrong.len() {
        1 => "1 thing is wrong".to_owned(),
        n => format!("{n} things are wrong"),
    };
    let mut text = match alarms {
        0 => format!("{many}, no alarm among them:\n"),
        n => format!("{many}, alarms among them: {n}\n"),
    };
    for one in wrong {
        text += &format!("  {}: {}\n      {}\n", one.severity, one.what, one.remedy);
    }
    text
}

/// Of nodes that are away nothing is known of their pools.
fn node_table(nodes: &[NodeView], room: &[ProvisionedPool]) -> String {
    let rows = nodes.iter().map(|n| {
        let of_it = || room.iter().filter(|p| p.node_id == n.id);
        let total: u64 = of_it().map(|p| p.total_bytes).sum();
        let free: u64 = of_it().map(|p| p.free_bytes).sum();
        let of = |pick: fn(&MemberView) -> String| n.member.as_ref().map(pick).unwrap_or_default();
        vec![
            n.id.clone(),
            n.status.clone(),
            n.data_ip.clone(),
            show_size(free),
            show_size(total),
            of(MemberView::heard_shown),
            of(MemberView::load_shown),
        ]
    });
    table(
        &[
            "NODE",
            "STATUS",
            "ADDRESS",
            "FREE>",
            "CAPACITY>",
            "HEARD",
            "LOAD>",
        ],
        rows,
    )
}

fn head(node: &NodeStatusReply) -> String {
    let datapath = match node.datapath_up {
        true => format!(
            "up, pid {}, hosts connect to {}",
            node.datapath_pid, node.nvme_address
        ),
        false => "DOWN: it does not answer; its log says why".into(),
    };
    let pages = if node.hugepages {
        "hugepages"
    } else {
        "plain pages"
    };
    let memory = if node.datapath_up {
        format!("{} of {pages}", show_size(node.memory_bytes))
    } else {
        String::new()
    };
    facts(&[
        ("Cluster", node.cluster_id.clone()),
        ("Node", node.node_id.clone()),
        ("Version", node.version.clone()),
        ("Control", format!("up, pid {}", node.control_pid)),
        ("Data path", datapath),
        ("Memory", memory),
    ])
}

fn reactor_table(reactors: &[ReactorStatus]) -> String {
    let rows = reactors.iter().map(|r| {
        let cpu = if r.cpu < 0 {
            "-".to_owned()
        } else {
            r.cpu.to_string()
        };
        let (connections, commands) = (r.connections.to_string(), r.commands.to_string());
        vec![
            r.id.to_string(),
            cpu,
            r.poll.clone(),
            connections,
            commands,
            r.wakeups.to_string(),
            r.stalls.to_string(),
        ]
    });
    table(
        &[
            "REACTOR>",
            "CPU>",
            "POLL",
            "CONNECTIONS>",
            "COMMANDS>",
            "WAKEUPS>",
            "STALLS>",
        ],
        rows,
    )
}

fn gossip_json(counts: &GossipCounts) -> serde_json::Value {
    let refused: BTreeMap<_, _> = counts.refused.iter().collect();
    json!({ "sent": counts.sent, "received": counts.received, "refused": refused })
}

fn reactor_json(r: &ReactorStatus) -> serde_json::Value {
    json!({
        "id": r.id, "cpu": r.cpu, "poll": r.poll, "busy_ns": r.busy_ns, "idle_ns": r.idle_ns, "asleep_ns": r.asleep_ns,
        "cpu_ns": r.cpu_ns, "passes": r.passes, "wakeups": r.wakeups, "connections": r.connections,
        "commands": r.commands, "stalls": r.stalls,
    })
}
