//! `keelctl node usage`: what volumes and snapshots use on a node.
use super::node::one_node;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::size::show_size;
use keelblock_api::openstorage as sdk;
use serde::Serialize;

/// A volume or snapshot, in a pool of the node.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct UsageView {
    name: String,
    id: String,
    pool: String,
    used_bytes: u64,
    /// What nothing else refers to: so much is free when it is deleted.
    exclusive_bytes: u64,
}

impl UsageView {
    fn new(usage: sdk::VolumeUsage) -> Self {
        Self {
            name: usage.volume_name,
            id: usage.volume_id,
            pool: usage.pool_uuid,
            used_bytes: usage.total_bytes,
            exclusive_bytes: usage.exclusive_bytes,
        }
    }
}

/// The largest first.
fn in_order(mut all: Vec<UsageView>) -> Vec<UsageView> {
    all.sort_by(|a, b| (b.used_bytes, &a.name, &a.id).cmp(&(a.used_bytes, &b.name, &b.id)));
    all
}

fn text(all: &[UsageView]) -> String {
    let rows = all.iter().map(|u| {
        vec![
            u.name.clone(),
            u.id.clone(),
            u.pool.clone(),
            show_size(u.used_bytes),
            show_size(u.exclusive_bytes),
        ]
    });
    let rows = table(&["NAME", "ID", "POOL", "USED>", "EXCLUSIVE>"], rows);
    let total = |pick: fn(&UsageView) -> u64| show_size(all.iter().map(pick).sum());
    format!(
        "{rows}{} used, {} exclusive\n",
        total(|u| u.used_bytes),
        total(|u| u.exclusive_bytes)
    )
}

/// Of a node; of the one that answers, unless named.
pub async fn usage(client: &mut Client, node: Option<String>) -> Result<Answer> {
    let node_id = one_node(client, node).await?.id;
    let what = format!("count what is used on node {node_id}");
    let request = sdk::SdkNodeVolumeUsageByNodeRequest { node_id };
    let reply = client.nodes.volume_usage_by_node(request).await;
    let reply = reply.map_err(|s| Failure::from_status(what, &s))?;
    let all = reply.into_inner().volume_usage_info.unwrap_or_default();
    let all = all.volume_usage.into_iter().map(UsageView::new);
    let all = in_order(all.collect());
    let shown = text(&all);
    Ok(Answer::new(&all, shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_comes_first_and_all_are_added_up() {
        let one = |name: &str, used_bytes, exclusive_bytes| UsageView {
            name: name.into(),
            id: format!("id-{name}"),
            pool: "p".into(),
            used_bytes,
            exclusive_bytes,
        };
        let all = in_order(vec![
            one("b", 1 << 20, 0),
            one("c", 3 << 20, 1 << 20),
            one("a", 1 << 20, 1 << 20),
        ]);
        let names: Vec<&str> = all.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["c", "a", "b"]);
        let shown = text(&all);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].starts_with('c') && lines.len() == 5, "{shown}");
        let (used, exclusive) = (show_size(5 << 20), show_size(2 << 20));
        assert_eq!(lines[4], format!("{used} used, {exclusive} exclusive"));
    }
}
