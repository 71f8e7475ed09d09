//! What is wrong in a cluster, each with what to do about it: from what the node that answers says of itself, of all nodes, of volumes, and of alerts.
use super::member::MemberView;
use super::view::{NodeView, VolumeView};
use keelblock_api::admin::NodeStatusReply;
use keelblock_api::openstorage as sdk;
use serde::Serialize;

/// Parts of a pool that are free when it is said to be nearly full.
const LOW: u64 = 10;

/// A node that said something so lately, in ms, is heard now: they do each 2 s.
const LATELY_MS: u64 = 4000;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// `alarm`: data or service are in danger or gone. `warning`: it may come to that.
    pub severity: &'static str,
    /// What, of which thing.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

fn finding(severity: &'static str, what: String, remedy: impl Into<String>) -> Finding {
    Finding {
        severity,
        what,
        remedy: remedy.into(),
    }
}

/// Everything that is wrong, alarms first.
pub fn findings(
    node: &NodeStatusReply,
    nodes: &[NodeView],
    volumes: &[VolumeView],
    alerts: &[sdk::Alert],
) -> Vec<Finding> {
    let mut all = Vec::new();
    if !node.datapath_up {
        all.push(finding(
            "alarm",
            format!("the data path of node {} does not answer", node.node_id),
            "see that keelblock-datapath runs there, and what its log says",
        ));
    }
    for other in nodes.iter().filter(|n| n.id != node.node_id) {
        all.extend(node_trouble(other));
        all.extend(other.member.as_ref().and_then(|m| gossip(&other.id, m)));
    }
    all.extend(pools(node));
    all.extend(volumes.iter().filter_map(volume_trouble));
    all.extend(alerts.iter().filter_map(alert));
    all.sort();
    all.dedup();
    all
}

fn node_trouble(node: &NodeView) -> Option<Finding> {
    let what = format!("node {} is {}", node.id, node.status);
    match node.status.as_str() {
        "ok" => None,
        "maintenance" => Some(finding("warning", what, "end it when the work is done")),
        "decommission" => Some(finding("warning", what, "nothing: it is being emptied")),
        _ => Some(finding(
            "alarm",
            what,
            "see that the machine, keelblock-control and keelblock-datapath run there, and that it is reached",
        )),
    }
}

/// Gossip and the KVDB do not say the same of a node.
fn gossip(node: &str, member: &MemberView) -> Option<Finding> {
    let lately = member.load.as_ref().is_some_and(|l| l.age_ms < LATELY_MS);
    match (member.alive, member.heard.as_str()) {
        (true, "down") => Some(finding(
            "warning",
            format!("node {node} has its lease in the KVDB, and is not heard by gossip"),
            format!(
                "see that UDP gets to {} and back, and that both nodes have the same token; only the choice of replicas to read from suffers",
                member.gossip_address
            ),
        )),
        (false, "alive") if lately => Some(finding(
            "warning",
            format!("node {node} is heard by gossip, and has no lease in the KVDB"),
            "see that it reaches the KVDB: its volumes are taken over while it does not",
        )),
        _ => None,
    }
}

fn pools(node: &NodeStatusReply) -> Vec<Finding> {
    let mut all = Vec::new();
    for pool in &node.pools {
        let name = super::service::called(pool);
        for drive in pool.drives.iter().filter(|d| !d.online) {
            all.push(finding(
                "alarm",
                format!(
                    "drive {} of pool {name} has failed: {}",
                    drive.path, drive.error
                ),
                format!("`keelctl service drive replace {}`", drive.drive_id),
            ));
        }
        if pool.free_bytes < pool.total_bytes / LOW {
            let severity = if pool.free_bytes == 0 {
                "alarm"
            } else {
                "warning"
            };
            all.push(finding(
                severity,
                format!(
                    "pool {name} of node {} has {} free of {}",
                    node.node_id,
                    crate::size::show_size(pool.free_bytes),
                    crate::size::show_size(pool.total_bytes)
                ),
                "`keelctl service pool expand`, delete what is not needed, or move replicas (`keelctl service pool rebalance`)",
            ));
        }
    }
    all
}

fn volume_trouble(volume: &VolumeView) -> Option<Finding> {
    let name = &volume.name;
    if !volume.error.is_empty() {
        return Some(finding(
            "alarm",
            format!("volume {name} is in error: {}", volume.error),
            format!(
                "`keelctl volume locate {name}`; restore it from a snapshot, or bring its drives back"
            ),
        ));
    }
    match volume.status.as_str() {
        "down" => Some(finding(
            "alarm",
            format!("volume {name} takes no I/O"),
            format!("`keelctl volume locate {name}` says what is in the way"),
        )),
        "degraded" => Some(finding(
            "warning",
            format!(
                "volume {name} has {} copies in sync",
                volume.replicas_shown()
            ),
            format!(
                "wait if a copy is being made (`keelctl volume replicas {name}`); of a node that does not come back, `keelctl volume ha-update --move NODE {name}`"
            ),
        )),
        _ => None,
    }
}

/// Alerts that nobody has seen to. What they say of volumes and drives is mostly found above, too, with what to do.
fn alert(alert: &sdk::Alert) -> Option<Finding> {
    let severity = match alert.severity() {
        sdk::SeverityType::Alarm => "alarm",
        sdk::SeverityType::Warning => "warning",
        _ => return None,
    };
    (!alert.cleared).then(|| {
        finding(
            severity,
            format!("alert: {}", alert.message),
            "`keelctl alerts show`; `keelctl alerts delete` when it is seen to",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::admin::{DriveStatus, PoolStatus};

    fn node() -> NodeStatusReply {
        NodeStatusReply {
            node_id: "n1".into(),
            datapath_up: true,
            pools: vec![PoolStatus {
                name: "default".into(),
                total_bytes: 1000,
                free_bytes: 500,
                drives: vec![DriveStatus {
                    path: "/dev/a".into(),
                    online: true,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn other(status: &str) -> NodeView {
        let mut node = NodeView::new(&sdk::StorageNode::default());
        node.id = "n2".into();
        node.status = status.into();
        node
    }

    fn volume(status: &str, error: &str) -> VolumeView {
        let mut volume = VolumeView::new(&crate::client::Volume::default());
        volume.name = "db".into();
        volume.status = status.into();
        volume.error = error.into();
        volume
    }

    #[test]
    fn nothing_is_wrong_where_nothing_is() {
        assert_eq!(
            findings(&node(), &[other("ok")], &[volume("up", "")], &[]),
            []
        );
    }

    #[test]
    fn it_is_said_where_gossip_and_the_kvdb_differ() {
        let said = |alive, heard: &str, age_ms| {
            let mut other = other("ok");
            let member = keelblock_api::admin::Member {
                alive,
                heard: heard.into(),
                gossip_address: "10.0.0.2:9023".into(),
                load: Some(keelblock_api::admin::MemberLoad {
                    age_ms,
                    ..Default::default()
                }),
                ..Default::default()
            };
            other.member = Some(MemberView::new(&member));
            findings(&node(), &[other], &[], &[])
        };
        let unheard = said(true, "down", 9000);
        assert!(unheard[0].remedy.contains("10.0.0.2:9023"), "{unheard:?}");
        let cut = said(false, "alive", 1000);
        assert!(cut[0].what.contains("no lease"), "{cut:?}");
        for same in [
            said(true, "alive", 1000),
            said(true, "suspect", 3000),
            said(true, "", 0),
            said(false, "down", 9000),
            said(false, "alive", 5000),
        ] {
            assert_eq!(same, []);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_a_way_out_alarms_first() {
        let mut node = node();
        node.pools[0].free_bytes = 50;
        node.pools[0].drives[0].online = false;
        let alert = |severity: sdk::SeverityType, cleared| sdk::Alert {
            severity: severity.into(),
            message: "hot".into(),
            cleared,
            ..Default::default()
        };
        let found = findings(
            &node,
            &[other("offline")],
            &[
                volume("down", ""),
                volume("degraded", ""),
                volume("up", "lost"),
            ],
            &[
                alert(sdk::SeverityType::Warning, false),
                alert(sdk::SeverityType::Alarm, true),
                alert(sdk::SeverityType::Notify, false),
            ],
        );
        let alarms = found.iter().filter(|f| f.severity == "alarm").count();
        assert_eq!((alarms, found.len()), (4, 7), "{found:#?}");
        assert!(found[..4].iter().all(|f| f.severity == "alarm"));
        assert!(found.iter().all(|f| !f.remedy.is_empty()));
        node.datapath_up = false;
        let found = findings(&node, &[], &[], &[]);
        let away = |f: &Finding| f.what.contains("data path of node n1");
        assert!(found.iter().any(away), "{found:#?}");
    }
}
