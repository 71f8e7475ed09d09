//! What is wished for the place of a volume (`docs/placement.md` §3): in its record, as it is given.
use super::Requirement;
use serde::{Deserialize, Serialize};

/// Rules of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Nodes to be on, domains to share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replica_affinity: Vec<ReplicaRule>,
    /// Nodes not to be on, domains not to share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replica_anti_affinity: Vec<ReplicaRule>,
    /// Volumes to be near to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_affinity: Vec<VolumeRule>,
    /// Volumes to be away from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_anti_affinity: Vec<VolumeRule>,
}

/// A rule on nodes and domains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRule {
    /// What it costs to break it, if it is not required.
    #[serde(default)]
    pub weight: u32,
    /// There is no placement that breaks it.
    #[serde(default)]
    pub required: bool,
    /// How many replicas must keep it; 0: all.
    #[serde(default)]
    pub affected_replicas: u8,
    /// The label whose values are domains; empty: it is not about domains.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topology_key: String,
    /// Conditions on the labels of nodes; empty: it is not about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// A rule on other volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRule {
    /// What it costs to break it, if it is not required.
    #[serde(default)]
    pub weight: u32,
    /// There is no placement that breaks it.
    #[serde(default)]
    pub required: bool,
    /// The label whose values are domains; empty: nodes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topology_key: String,
    /// Conditions on the labels of volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

impl Rules {
    /// Most rules of a volume, and most conditions of a rule.
    pub const MAX: usize = 32;

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether any speaks of other volumes.
    pub fn of_volumes(&self) -> bool {
        !self.volume_affinity.is_empty() || !self.volume_anti_affinity.is_empty()
    }

    /// What is wrong with them: the field, and why; `None`: nothing.
    pub fn fault(&self) -> Option<(String, String)> {
        let replica = [
            ("replica_affinity", &self.replica_affinity),
            ("replica_anti_affinity", &self.replica_anti_affinity),
        ];
        let volume = [
            ("volume_affinity", &self.volume_affinity),
            ("volume_anti_affinity", &self.volume_anti_affinity),
        ];
        let of_replicas = replica.into_iter().flat_map(|(field, rules)| {
            rules.iter().enumerate().map(move |(i, r)| {
                let says_nothing = r.topology_key.is_empty() && r.match_expressions.is_empty();
                let nothing = "needs topology_key or match_expressions";
                (
                    field,
                    i,
                    &r.match_expressions,
                    says_nothing.then_some(nothing),
                )
            })
        });
        let of_volumes = volume.into_iter().flat_map(|(field, rules)| {
            rules.iter().enumerate().map(move |(i, r)| {
                let says_nothing = r.match_expressions.is_empty();
                let nothing = "needs match_expressions, which say of which volumes it speaks";
                (
                    field,
                    i,
                    &r.match_expressions,
                    says_nothing.then_some(nothing),
                )
            })
        });
        for (field, i, conditions, nothing) in of_replicas.chain(of_volumes) {
            let fault = nothing.map(str::to_owned);
            let fault = fault.or_else(|| conditions.iter().find_map(|c| c.fault()));
            let many = i >= Self::MAX || conditions.len() > Self::MAX;
            let many = many.then(|| format!("is one too many: at most {}", Self::MAX));
            if let Some(why) = fault.or(many) {
                return Some((format!("{field}[{i}]"), why));
            }
        }
        None
    }
}

/// What a preferred rule costs.
pub(super) fn cost(weight: u32) -> u64 {
    u64::from(weight.max(1))
}
