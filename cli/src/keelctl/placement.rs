//! Where the replicas of a volume are to be: `keelctl volume create … --zones …`, and `--explain`; what pools may be asked for: `keelctl cluster options`,
//! `provision-status`.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::show_size;
use crate::time::parse_interval;
use clap::Args;
use keelblock_api::admin::{self, NodeVerdict, ProvisionedPool};
use keelblock_api::json::Codec;
use keelblock_api::openstorage as sdk;
use sdk::label_selector_requirement::Operator;
use serde_json::json;
use std::path::PathBuf;

/// Wishes for the place of a volume's replicas.
#[derive(Debug, Default, Args)]
pub struct Place {
    /// Only on these nodes (ids with commas between them), for this once: replicas that are added later may be elsewhere.
    #[arg(long, value_name = "NODE,…", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Only in these zones, now and later: the label `zone` of their nodes.
    #[arg(long, value_name = "ZONE,…", value_delimiter = ',')]
    zones: Vec<String>,
    /// Only in these racks, now and later: the label `rack` of their nodes.
    #[arg(long, value_name = "RACK,…", value_delimiter = ',')]
    racks: Vec<String>,
    /// No two where nodes have the same of this label, like zone, or none at all (repeatable). Without it zones and racks are shared only where they must be.
    #[arg(long, value_name = "LABEL")]
    apart: Vec<String>,
    /// All where nodes have the same of this label (repeatable).
    #[arg(long, value_name = "LABEL")]
    together: Vec<String>,
    /// A file with rules: a VolumePlacementStrategy of the OpenStorage SDK, in JSON.
    #[arg(long, value_name = "FILE")]
    placement: Option<PathBuf>,
}

impl Place {
    /// Writes them into the spec of a volume.
    ///
    /// # Errors
    /// The file cannot be read, or is no such thing.
    pub fn into_spec(self, spec: &mut sdk::VolumeSpec) -> Result<()> {
        let mut strategy = match &self.placement {
            None => sdk::VolumePlacementStrategy::default(),
            Some(path) => {
                let what = || format!("read placement rules from {}", path.display());
                let text =
                    std::fs::read(path).map_err(|e| Failure::local(what(), e.to_string()))?;
                let read = Codec::new().decode(&text);
                read.map_err(|e| Failure::Usage(format!("{}: {e}", what())))?
            }
        };
        let required = sdk::EnforcementType::Required.into();
        let among = |key: &str, values: Vec<String>| sdk::ReplicaPlacementSpec {
            enforcement: required,
            match_expressions: vec![sdk::LabelSelectorRequirement {
                key: key.into(),
                operator: Operator::In.into(),
                values,
            }],
            ..Default::default()
        };
        let by = |key: String| sdk::ReplicaPlacementSpec {
            enforcement: required,
            topology_key: key,
            ..Default::default()
        };
        for (key, values) in [("zone", self.zones), ("rack", self.racks)] {
            if !values.is_empty() {
                strategy.replica_affinity.push(among(key, values));
            }
        }
        strategy
            .replica_affinity
            .extend(self.together.into_iter().map(by));
        strategy
            .replica_anti_affinity
            .extend(self.apart.into_iter().map(by));
        if strategy != sdk::VolumePlacementStrategy::default() {
            spec.placement_strategy = Some(strategy);
        }
        if !self.nodes.is_empty() {
            spec.replica_set = Some(sdk::ReplicaSet {
                nodes: self.nodes,
                ..Default::default()
            });
        }
        Ok(())
    }
}

/// Says where a volume's replicas would be, and makes nothing.
pub async fn explain(client: &mut Client, create: sdk::SdkVolumeCreateRequest) -> Result<Answer> {
    let what = format!("explain the placement of volume {}", create.name);
    let request = admin::ExplainPlacementRequest {
        create: Some(create),
    };
    let reply = client.admin.explain_placement(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner();
    let nodes: Vec<_> = reply.nodes.iter().map(verdict_json).collect();
    let data = json!({
        "possible": reply.possible, "error": reply.error, "note": reply.note, "nodes": nodes,
    });
    let head = match (reply.possible, reply.note.is_empty()) {
        (true, false) => format!("Nothing to choose: {}.\n", reply.note),
        (false, false) => format!(
            "It cannot be made: {}. Nothing to choose: {}.\n",
            reply.error, reply.note
        ),
        (true, true) => "It can be made. Nothing was.\n".to_owned(),
        (false, true) => format!("It cannot be made: {}.\n", reply.error),
    };
    let text = match reply.nodes.is_empty() {
        true => head,
        false => head + "\n" + &verdicts(reply.nodes),
    };
    Ok(Answer::new(data, text))
}

/// Those that are chosen first, in their order; then the others, by score.
fn verdicts(mut nodes: Vec<NodeVerdict>) -> String {
    let key = |n: &NodeVerdict| {
        let chosen = n.outcome == "chosen";
        (
            !chosen,
            n.replica,
            std::cmp::Reverse(n.score),
            n.node_id.clone(),
        )
    };
    nodes.sort_by_key(key);
    let rows = nodes.into_iter().map(|n| {
        let result = match n.outcome.as_str() {
            "chosen" => format!("replica {}", n.replica),
            "held" => "has one".to_owned(),
            other => other.to_owned(),
        };
        let number = |value: u32| match n.pool_id.is_empty() {
            true => String::new(),
            false => value.to_string(),
        };
        let size = |bytes: u64| match n.pool_id.is_empty() {
            true => String::new(),
            false => show_size(bytes),
        };
        let (score, space) = (number(n.score), number(n.space));
        let (promised, calm) = (number(n.promised), number(n.calm));
        let (free, provisioned) = (size(n.free_bytes), size(n.provisioned_bytes));
        vec![
            n.node_id,
            result,
            score,
            space,
            promised,
            calm,
            free,
            provisioned,
            n.why,
        ]
    });
    table(
        &[
            "NODE",
            "RESULT",
            "SCORE>",
            "SPACE>",
            "PROMISED>",
            "CALM>",
            "FREE>",
            "PROVISIONED>",
            "WHY",
        ],
        rows,
    )
}

fn verdict_json(n: &NodeVerdict) -> serde_json::Value {
    json!({
        "node_id": n.node_id, "outcome": n.outcome, "replica": n.replica, "why": n.why, "pool_id": n.pool_id,
        "total_bytes": n.total_bytes, "free_bytes": n.free_bytes, "provisioned_bytes": n.provisioned_bytes,
        "score": n.score, "space": n.space, "promised": n.promised, "calm": n.calm,
    })
}

/// Options of the cluster.
#[derive(Debug, Args)]
pub struct Options {
    /// How much may be provisioned in a pool, in percent of its size less what is reserved; 0: no limit.
    #[arg(long, value_name = "PERCENT")]
    overcommit: Option<u32>,
    /// Part of each pool that new replicas leave free, in percent.
    #[arg(long, value_name = "PERCENT")]
    reserve: Option<u32>,
    /// Replace the replicas of a node that is away for so long, like 15m, and lost ones at once, by themselves; or `never`.
    #[arg(long, value_name = "TIME|never", value_parser = parse_replace_after)]
    replace_after: Option<u64>,
}

fn parse_replace_after(text: &str) -> std::result::Result<u64, String> {
    match text {
        "never" => Ok(0),
        time => parse_interval(time),
    }
}

/// Shows them, changed as is said.
pub async fn options(client: &mut Client, args: Options) -> Result<Answer> {
    let request = admin::PlacementLimitsRequest {
        overcommit_percent: args.overcommit,
        reserve_percent: args.reserve,
    };
    let reply = client.admin.placement_limits(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status("options of the cluster", &s))?
        .into_inner();
    let request = admin::SetClusterOptionsRequest {
        replace_after_s: args.replace_after,
    };
    let said = client.admin.set_cluster_options(request).await;
    let said = said
        .map_err(|s| Failure::from_status("options of the cluster", &s))?
        .into_inner();
    let after = match said.replace_after_s {
        0 => "never".to_owned(),
        seconds => format!("{seconds} s"),
    };
    let overcommit = match reply.overcommit_percent {
        0 => "no limit".to_owned(),
        percent => format!("{percent} % of a pool less its reserve"),
    };
    let text = facts(&[
        ("Provisioned at most", overcommit),
        (
            "Reserved",
            format!("{} % of each pool", reply.reserve_percent),
        ),
        ("Replace replicas after", after),
    ]);
    let data = json!({
        "overcommit_percent": reply.overcommit_percent, "reserve_percent": reply.reserve_percent,
        "replace_after_s": said.replace_after_s,
    });
    Ok(Answer::new(data, text))
}

/// Pools of all nodes that live.
pub async fn provisioned(client: &mut Client) -> Result<Vec<ProvisionedPool>> {
    let request = admin::ProvisionStatusRequest {};
    let reply = client.admin.provision_status(request).await;
    let reply = reply.map_err(|s| Failure::from_status("provision status", &s))?;
    Ok(reply.into_inner().pools)
}

/// Pools of all nodes: what is in them, and what was promised.
pub async fn provision_status(client: &mut Client) -> Result<Answer> {
    let pools = provisioned(client).await?;
    let data: Vec<_> = pools.iter().map(provisioned_json).collect();
    let percent = |part: u64, of: u64| match of {
        0 => String::new(),
        of => format!("{} %", u128::from(part) * 100 / u128::from(of)),
    };
    let rows = pools.iter().map(|p| {
        vec![
            p.node_id.clone(),
            if p.name.is_empty() {
                p.pool_id.clone()
            } else {
                p.name.clone()
            },
            show_size(p.total_bytes),
            show_size(p.free_bytes),
            show_size(p.reserved_bytes),
            show_size(p.provisioned_bytes),
            percent(p.provisioned_bytes, p.total_bytes),
            p.provisionable_bytes.map_or("no limit".into(), show_size),
            p.replicas.to_string(),
        ]
    });
    let text = table(
        &[
            "NODE",
            "POOL",
            "CAPACITY>",
            "FREE>",
            "RESERVED>",
            "PROVISIONED>",
            "OF CAPACITY>",
            "AT MOST>",
            "REPLICAS>",
        ],
        rows,
    );
    Ok(Answer::new(data, text))
}

fn provisioned_json(p: &ProvisionedPool) -> serde_json::Value {
    json!({
        "node_id": p.node_id, "pool_id": p.pool_id, "name": p.name, "total_bytes": p.total_bytes,
        "free_bytes": p.free_bytes, "reserved_bytes": p.reserved_bytes, "provisioned_bytes": p.provisioned_bytes,
        "provisionable_bytes": p.provisionable_bytes, "replicas": p.replicas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_become_rules() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.json");
        let text =
            r#"{"volume_affinity": [{"match_expressions": [{"key": "app", "values": ["db"]}]}]}"#;
        std::fs::write(&file, text).unwrap();
        let place = Place {
            nodes: vec!["n1".into()],
            zones: vec!["a".into(), "b".into()],
            apart: vec!["rack".into()],
            placement: Some(file.clone()),
            ..Default::default()
        };
        let mut spec = sdk::VolumeSpec::default();
        place.into_spec(&mut spec).unwrap();
        assert_eq!(spec.replica_set.unwrap().nodes, ["n1"]);
        let strategy = spec.placement_strategy.unwrap();
        assert_eq!(
            strategy.replica_affinity[0].match_expressions[0].values,
            ["a", "b"]
        );
        assert_eq!(strategy.replica_anti_affinity[0].topology_key, "rack");
        assert_eq!(strategy.volume_affinity[0].match_expressions[0].key, "app");
        std::fs::write(&file, r#"{"rules": []}"#).unwrap();
        let place = Place {
            placement: Some(file),
            ..Default::default()
        };
        let error = place
            .into_spec(&mut sdk::VolumeSpec::default())
            .unwrap_err();
        assert!(error.to_string().contains("rules"), "{error}");
        let mut bare = sdk::VolumeSpec::default();
        Place::default().into_spec(&mut bare).unwrap();
        assert_eq!(bare, sdk::VolumeSpec::default());
    }

    #[test]
    fn the_chosen_come_first() {
        let node = |id: &str, outcome: &str, replica, score, why: &str| NodeVerdict {
            node_id: id.into(),
            outcome: outcome.into(),
            replica,
            score,
            why: why.into(),
            pool_id: if score > 0 { "p".into() } else { String::new() },
            ..Default::default()
        };
        let text = verdicts(vec![
            node("a", "refused", 0, 0, "it is away"),
            node("b", "chosen", 2, 5, ""),
            node("c", "lost", 0, 9, "to b: zone z has d"),
            node("d", "chosen", 1, 4, ""),
        ]);
        let order: Vec<_> = text.lines().skip(1).map(|l| &l[..1]).collect();
        assert_eq!(order, ["d", "b", "c", "a"]);
        assert!(text.contains("replica 1") && text.contains("it is away"));
    }
}
