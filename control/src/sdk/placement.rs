//! Placement in the words of the SDK: rules of a spec, explanations, limits of pools.
use super::{Services, answer};
use crate::error::OpError;
use crate::node::NamedPlan;
use crate::placement::rebalance::Move;
use crate::placement::{
    Limits, Operator, Outcome, ReplicaRule, Requirement, Rules, Verdict, VolumeRule,
};
use crate::rebalancing::why;
use keelblock_api::admin::*;
use keelblock_api::openstorage as sdk;
use sdk::label_selector_requirement::Operator as SdkOperator;
use std::collections::HashMap;
use tonic::{Response, Status};

/// Most replicas that a rule can speak of.
const AFFECTED_MAX: i32 = 5;

/// The rules of a spec; `None`: it has none.
///
/// # Errors
/// A rule that says nothing or cannot be, by its field.
pub fn rules(
    strategy: Option<sdk::VolumePlacementStrategy>,
    topology: Option<sdk::TopologyRequirement>,
) -> Result<Option<Rules>, OpError> {
    let strategy = strategy.unwrap_or_default();
    let mut rules = Rules {
        replica_affinity: replica_rules("replica_affinity", strategy.replica_affinity)?,
        replica_anti_affinity: replica_rules(
            "replica_anti_affinity",
            strategy.replica_anti_affinity,
        )?,
        volume_affinity: volume_rules("volume_affinity", strategy.volume_affinity)?,
        volume_anti_affinity: volume_rules("volume_anti_affinity", strategy.volume_anti_affinity)?,
    };
    if let Some((field, why)) = rules.fault() {
        return Err(OpError::invalid(field_of(&field), why));
    }
    let mut labels: Vec<_> = topology.unwrap_or_default().labels.into_iter().collect();
    labels.sort();
    if !labels.is_empty() {
        let is = |(key, value)| Requirement {
            key,
            operator: Operator::In,
            values: vec![value],
        };
        let all = ReplicaRule {
            required: true,
            match_expressions: labels.into_iter().map(is).collect(),
            ..ReplicaRule::default()
        };
        if let Some(why) = all.match_expressions.iter().find_map(Requirement::fault) {
            return Err(OpError::invalid("spec.topology_requirement.labels", why));
        }
        rules.replica_affinity.push(all);
    }
    Ok((!rules.is_empty()).then_some(rules))
}

/// Rules as the SDK shows them. Labels of a topology requirement are among them, as what they are: a required affinity.
pub fn strategy(rules: &Rules) -> sdk::VolumePlacementStrategy {
    let replica = |r: &ReplicaRule| sdk::ReplicaPlacementSpec {
        weight: r.weight.into(),
        enforcement: enforcement(r.required),
        affected_replicas: r.affected_replicas.into(),
        topology_key: r.topology_key.clone(),
        match_expressions: r.match_expressions.iter().map(expression).collect(),
    };
    let volume = |r: &VolumeRule| sdk::VolumePlacementSpec {
        weight: r.weight.into(),
        enforcement: enforcement(r.required),
        topology_key: r.topology_key.clone(),
        match_expressions: r.match_expressions.iter().map(expression).collect(),
    };
    sdk::VolumePlacementStrategy {
        replica_affinity: rules.replica_affinity.iter().map(replica).collect(),
        replica_anti_affinity: rules.replica_anti_affinity.iter().map(replica).collect(),
        volume_affinity: rules.volume_affinity.iter().map(volume).collect(),
        volume_anti_affinity: rules.volume_anti_affinity.iter().map(volume).collect(),
    }
}

fn field_of(field: &str) -> String {
    format!("spec.placement_strategy.{field}")
}

fn enforcement(required: bool) -> i32 {
    match required {
        true => sdk::EnforcementType::Required,
        false => sdk::EnforcementType::Preferred,
    }
    .into()
}

fn is_required(field: &str, enforcement: i32) -> Result<bool, OpError> {
    match sdk::EnforcementType::try_from(enforcement) {
        Ok(kind) => Ok(kind == sdk::EnforcementType::Required),
        Err(_) => Err(OpError::invalid(
            format!("{}.enforcement", field_of(field)),
            format!("{enforcement} is neither required nor preferred"),
        )),
    }
}

fn weight(field: &str, weight: i64) -> Result<u32, OpError> {
    u32::try_from(weight).map_err(|_| {
        OpError::invalid(
            format!("{}.weight", field_of(field)),
            format!("must be 0 (counts as 1) to {}, not {weight}", u32::MAX),
        )
    })
}

fn replica_rules(
    field: &str,
    specs: Vec<sdk::ReplicaPlacementSpec>,
) -> Result<Vec<ReplicaRule>, OpError> {
    let one = |(i, spec): (usize, sdk::ReplicaPlacementSpec)| {
        let field = format!("{field}[{i}]");
        if !(0..=AFFECTED_MAX).contains(&spec.affected_replicas) {
            return Err(OpError::invalid(
                format!("{}.affected_replicas", field_of(&field)),
                format!(
                    "must be 0 (all) to {AFFECTED_MAX}, not {}",
                    spec.affected_replicas
                ),
            ));
        }
        Ok(ReplicaRule {
            weight: weight(&field, spec.weight)?,
            required: is_required(&field, spec.enforcement)?,
            affected_replicas: spec.affected_replicas as u8,
            topology_key: spec.topology_key,
            match_expressions: conditions(&field, spec.match_expressions)?,
        })
    };
    specs.into_iter().enumerate().map(one).collect()
}

fn volume_rules(
    field: &str,
    specs: Vec<sdk::VolumePlacementSpec>,
) -> Result<Vec<VolumeRule>, OpError> {
    let one = |(i, spec): (usize, sdk::VolumePlacementSpec)| {
        let field = format!("{field}[{i}]");
        Ok(VolumeRule {
            weight: weight(&field, spec.weight)?,
            required: is_required(&field, spec.enforcement)?,
            topology_key: spec.topology_key,
            match_expressions: conditions(&field, spec.match_expressions)?,
        })
    };
    specs.into_iter().enumerate().map(one).collect()
}

fn conditions(
    field: &str,
    all: Vec<sdk::LabelSelectorRequirement>,
) -> Result<Vec<Requirement>, OpError> {
    requirements(&format!("{}.match_expressions", field_of(field)), all)
}

/// Conditions on labels, of a field.
///
/// # Errors
/// An unknown operator.
pub fn requirements(
    field: &str,
    all: Vec<sdk::LabelSelectorRequirement>,
) -> Result<Vec<Requirement>, OpError> {
    let one = |r: sdk::LabelSelectorRequirement| {
        let operator = match SdkOperator::try_from(r.operator) {
            Ok(SdkOperator::In) => Operator::In,
            Ok(SdkOperator::NotIn) => Operator::NotIn,
            Ok(SdkOperator::Exists) => Operator::Exists,
            Ok(SdkOperator::DoesNotExist) => Operator::DoesNotExist,
            Ok(SdkOperator::Gt) => Operator::Gt,
            Ok(SdkOperator::Lt) => Operator::Lt,
            Err(_) => {
                return Err(OpError::invalid(
                    field,
                    format!("there is no operator {}", r.operator),
                ));
            }
        };
        Ok(Requirement {
            key: r.key,
            operator,
            values: r.values,
        })
    };
    all.into_iter().map(one).collect()
}

/// A condition as the SDK has it.
pub fn expression(condition: &Requirement) -> sdk::LabelSelectorRequirement {
    let operator = match condition.operator {
        Operator::In => SdkOperator::In,
        Operator::NotIn => SdkOperator::NotIn,
        Operator::Exists => SdkOperator::Exists,
        Operator::DoesNotExist => SdkOperator::DoesNotExist,
        Operator::Gt => SdkOperator::Gt,
        Operator::Lt => SdkOperator::Lt,
    };
    sdk::LabelSelectorRequirement {
        key: condition.key.clone(),
        operator: operator.into(),
        values: condition.values.clone(),
    }
}

fn verdict(v: Verdict) -> NodeVerdict {
    let (outcome, replica, why) = match v.outcome {
        Outcome::Chosen(n) => ("chosen", n as u32, String::new()),
        Outcome::Held => ("held", 0, String::new()),
        Outcome::Refused(why) => ("refused", 0, why),
        Outcome::Lost(why) => ("lost", 0, why),
        Outcome::Able => ("able", 0, String::new()),
    };
    let mut reply = NodeVerdict {
        node_id: v.node_id,
        outcome: outcome.into(),
        replica,
        why,
        ..Default::default()
    };
    if let Some((pool, score)) = v.pool {
        reply.pool_id = pool.pool_id.to_string();
        reply.total_bytes = pool.total_bytes;
        reply.free_bytes = pool.free_bytes;
        reply.provisioned_bytes = pool.provisioned_bytes;
        reply.score = score.total();
        reply.space = score.space;
        reply.promised = score.promised;
        reply.calm = score.calm;
    }
    reply
}

/// A plan of a rebalance.
pub fn plan(named: NamedPlan) -> PlanRebalanceReply {
    let NamedPlan { plan, names, left } = named;
    let planned = |m: Move| PlannedMove {
        volume_id: m.volume_id.to_string(),
        name: names.get(&m.volume_id).cloned().unwrap_or_default(),
        size_bytes: m.size_bytes,
        from_node: m.from.0,
        from_pool: m.from.1.to_string(),
        to_node: m.to.0,
        to_pool: m.to.1.to_string(),
        why: why(m.why).into(),
    };
    PlanRebalanceReply {
        unbalanced_before: plan.unbalanced.0 as u32,
        unbalanced_after: plan.unbalanced.1 as u32,
        moves: plan.moves.into_iter().map(planned).collect(),
        left: left
            .into_iter()
            .map(|(name, why)| NotMoved {
                name,
                why: why.into(),
            })
            .collect(),
    }
}

impl Services {
    pub(super) async fn explain_placement(
        &self,
        request: ExplainPlacementRequest,
    ) -> Result<Response<ExplainPlacementReply>, Status> {
        let wish = self.rules.wish(request.create.unwrap_or_default())?;
        let explained = self.node().explain_volume(&wish).await?;
        Ok(Response::new(match explained {
            None => {
                let full = self.node().local_room(wish.size_bytes).await?;
                ExplainPlacementReply {
                    possible: full.is_none(),
                    error: full.map(|e| e.to_string()).unwrap_or_default(),
                    note: format!(
                        "a single copy without wishes about its place is a part of the pool of the node that is asked, {}",
                        self.node().node_id()
                    ),
                    ..Default::default()
                }
            }
            Some((verdicts, error)) => ExplainPlacementReply {
                possible: error.is_none(),
                error: error.map(|e| e.to_string()).unwrap_or_default(),
                nodes: verdicts.into_iter().map(verdict).collect(),
                note: String::new(),
            },
        }))
    }

    pub(super) async fn placement_limits(
        &self,
        request: PlacementLimitsRequest,
    ) -> Result<Response<PlacementLimitsReply>, Status> {
        let before = self.node().limits().await?;
        let after = Limits {
            overcommit_percent: request
                .overcommit_percent
                .unwrap_or(before.overcommit_percent),
            reserve_percent: request.reserve_percent.unwrap_or(before.reserve_percent),
        };
        if after != before {
            let set = self.to_the_end(|node| async move { node.set_limits(after).await });
            set.await?;
        }
        Ok(Response::new(PlacementLimitsReply {
            overcommit_percent: after.overcommit_percent,
            reserve_percent: after.reserve_percent,
        }))
    }

    pub(super) async fn provision_status(&self) -> Result<Response<ProvisionStatusReply>, Status> {
        let limits = self.node().limits().await;
        let names = self.node().registry.pools().await;
        let both = limits.and_then(|limits| Ok((limits, names?)));
        answer(both.map(|(limits, records)| {
            let names: HashMap<_, _> = records.into_iter().map(|r| (r.pool_id, r.name)).collect();
            let cluster = self
                .node()
                .coordination
                .seen()
                .cluster(&self.node().gossip().loads());
            let of_node = |node: &crate::placement::Node| {
                let pool = |pool: &crate::placement::Pool| ProvisionedPool {
                    node_id: node.node_id.clone(),
                    pool_id: pool.pool_id.to_string(),
                    name: names.get(&pool.pool_id).cloned().unwrap_or_default(),
                    total_bytes: pool.total_bytes,
                    free_bytes: pool.free_bytes,
                    provisioned_bytes: pool.provisioned_bytes,
                    replicas: pool.replicas,
                    reserved_bytes: limits.reserved(pool),
                    provisionable_bytes: limits.provisionable(pool),
                };
                node.pools.iter().map(pool).collect::<Vec<_>>()
            };
            ProvisionStatusReply {
                pools: cluster.nodes().iter().flat_map(of_node).collect(),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rule: sdk::ReplicaPlacementSpec) -> Option<sdk::VolumePlacementStrategy> {
        Some(sdk::VolumePlacementStrategy {
            replica_affinity: vec![rule],
            ..Default::default()
        })
    }

    fn flash() -> sdk::ReplicaPlacementSpec {
        sdk::ReplicaPlacementSpec {
            weight: 7,
            enforcement: sdk::EnforcementType::Preferred.into(),
            affected_replicas: 1,
            topology_key: "rack".into(),
            match_expressions: vec![sdk::LabelSelectorRequirement {
                key: "disk".into(),
                operator: SdkOperator::NotIn.into(),
                values: vec!["hdd".into()],
            }],
        }
    }

    #[test]
    fn rules_come_back_as_they_were_given() {
        assert_eq!(rules(None, None).unwrap(), None);
        assert_eq!(rules(Some(Default::default()), None).unwrap(), None);
        let given = spec(flash());
        let read = rules(given.clone(), None).unwrap().unwrap();
        assert_eq!(Some(strategy(&read)), given);
        let topology = sdk::TopologyRequirement {
            labels: [("zone".to_owned(), "a".to_owned())].into(),
        };
        let read = rules(given, Some(topology)).unwrap().unwrap();
        let added = &read.replica_affinity[1];
        assert!(added.required && added.match_expressions[0].values == ["a"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let refused = |change: fn(&mut sdk::ReplicaPlacementSpec), says: &str| {
            let mut rule = flash();
            change(&mut rule);
            let error = rules(spec(rule), None).unwrap_err().to_string();
            let begins = format!("spec.placement_strategy.replica_affinity[0]{says}");
            assert!(error.starts_with(&begins), "{error} does not say {begins}");
        };
        refused(|r| r.weight = -1, ".weight");
        refused(|r| r.affected_replicas = 6, ".affected_replicas");
        refused(|r| r.enforcement = 9, ".enforcement");
        refused(
            |r| r.match_expressions[0].operator = 9,
            ".match_expressions",
        );
        refused(|r| r.match_expressions[0].key.clear(), "");
        refused(|r| *r = Default::default(), "");
    }
}
