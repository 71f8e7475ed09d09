//! Rules, bound to the nodes that there are: what each says of each node, and of nodes together.
use super::choose::Request;
use super::rules::cost;
use super::view::is_region;
use super::{Cluster, Neighbour, matches};
use std::collections::HashSet;

/// How many replicas must keep a rule, and what it is if they do not.
#[derive(Debug)]
struct Terms {
    /// As it is called in explanations.
    name: String,
    /// What it costs for each replica that lacks; `None`: it is required.
    cost: Option<u64>,
    need: usize,
}

/// What a rule counts.
#[derive(Debug)]
enum Counts {
    /// Replicas on nodes that match.
    Matching(Vec<bool>),
    /// Domains in which there are replicas.
    Apart(Vec<Option<u32>>),
    /// Replicas in the domain with most.
    Together(Vec<Option<u32>>),
}

#[derive(Debug)]
struct Rule {
    terms: Terms,
    counts: Counts,
}

impl Rule {
    /// How many of these nodes keep it.
    fn kept(&self, nodes: &[usize]) -> usize {
        match &self.counts {
            Counts::Matching(hits) => nodes.iter().filter(|n| hits[**n]).count(),
            Counts::Apart(of) => {
                let first = |(i, n): &(usize, &usize)| {
                    of[**n].is_some() && !nodes[..*i].iter().any(|m| of[*m] == of[**n])
                };
                nodes.iter().enumerate().filter(first).count()
            }
            Counts::Together(of) => {
                let said = nodes.iter().filter(|n| of[**n].is_some());
                let with = said.map(|n| nodes.iter().filter(|m| of[**m] == of[*n]).count());
                with.max().unwrap_or(0)
            }
        }
    }

    /// Whether a node that is no part of what keeps it can be in no placement, if all must keep it.
    fn lacks(&self, node: usize) -> bool {
        match &self.counts {
            Counts::Matching(hits) => !hits[node],
            Counts::Apart(of) | Counts::Together(of) => of[node].is_none(),
        }
    }
}

/// All rules of a request.
#[derive(Debug)]
pub(super) struct Bound {
    rules: Vec<Rule>,
    /// Replicas with those that are there.
    total: usize,
    /// A rule speaks of regions.
    pub of_regions: bool,
}

impl Bound {
    pub fn new(cluster: &Cluster, request: &Request<'_>) -> Self {
        let total = request.held.len() + request.replicas;
        let mut new = Self {
            rules: Vec::new(),
            total,
            of_regions: false,
        };
        let rules = request.rules.cloned().unwrap_or_default();
        let sides = [
            ("replica_affinity", &rules.replica_affinity, false),
            ("replica_anti_affinity", &rules.replica_anti_affinity, true),
        ];
        for (field, all, anti) in sides {
            for (i, rule) in all.iter().enumerate() {
                let need = match usize::from(rule.affected_replicas) {
                    0 => total,
                    k => k.min(total),
                };
                let cost = (!rule.required).then(|| cost(rule.weight));
                let name = format!("{field}[{i}]");
                if !rule.match_expressions.is_empty() {
                    let nodes = cluster.nodes().iter();
                    let hit = |labels| matches(&rule.match_expressions, labels) != anti;
                    let hits = nodes.map(|n| hit(&n.labels)).collect();
                    new.add(name.clone(), cost, need, Counts::Matching(hits));
                }
                if !rule.topology_key.is_empty() {
                    new.of_regions |= is_region(&rule.topology_key);
                    let of = cluster.by_key(&rule.topology_key);
                    let counts = match anti {
                        true => Counts::Apart(of),
                        false => Counts::Together(of),
                    };
                    new.add(name, cost, need, counts);
                }
            }
        }
        let sides = [
            ("volume_affinity", &rules.volume_affinity, false),
            ("volume_anti_affinity", &rules.volume_anti_affinity, true),
        ];
        for (field, all, anti) in sides {
            for (i, rule) in all.iter().enumerate() {
                new.of_regions |= is_region(&rule.topology_key);
                let chosen = |n: &&Neighbour<'_>| matches(&rule.match_expressions, n.labels);
                let of = cluster.by_key(&rule.topology_key);
                let there = domains(cluster, &of, request.neighbours.iter().filter(chosen));
                if there.is_empty() {
                    continue;
                }
                // Of a node that does not say its domain nothing can be known.
                let hit = |d: &Option<u32>| d.is_some_and(|d| there.contains(&d) != anti);
                let hits = of.iter().map(hit).collect();
                let cost = (!rule.required).then(|| cost(rule.weight));
                new.add(format!("{field}[{i}]"), cost, total, Counts::Matching(hits));
            }
        }
        new.add_of_others(cluster, request);
        new
    }

    /// Volumes that are to be away from this one.
    fn add_of_others(&mut self, cluster: &Cluster, request: &Request<'_>) {
        for other in &request.neighbours {
            let rules = other.rules.map(|r| r.volume_anti_affinity.as_slice());
            let theirs = rules.unwrap_or_default().iter();
            for rule in
                theirs.filter(|r| r.required && matches(&r.match_expressions, request.labels))
            {
                let of = cluster.by_key(&rule.topology_key);
                let there = domains(cluster, &of, std::iter::once(other));
                let hit = |d: &Option<u32>| d.is_none_or(|d| !there.contains(&d));
                let hits = of.iter().map(hit).collect();
                let name = format!("volume_anti_affinity of volume {}", other.name);
                self.add(name, None, self.total, Counts::Matching(hits));
            }
        }
    }

    fn add(&mut self, name: String, cost: Option<u64>, need: usize, counts: Counts) {
        let terms = Terms { name, cost, need };
        self.rules.push(Rule { terms, counts });
    }

    fn required(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|r| r.terms.cost.is_none())
    }

    fn preferred(&self) -> impl Iterator<Item = (&Rule, u64)> {
        self.rules.iter().filter_map(|r| Some((r, r.terms.cost?)))
    }

    /// The required rule by which a node can have no replica, whatever the others are.
    pub fn forbids(&self, node: usize) -> Option<String> {
        let mut all = self.required().filter(|r| r.terms.need >= self.total);
        all.find(|r| r.lacks(node)).map(|r| r.terms.name.clone())
    }

    /// Whether a choice of nodes one by one may turn out to be impossible to complete.
    pub fn is_joint(&self) -> bool {
        let joint = |r: &Rule| match r.counts {
            Counts::Matching(_) => r.terms.need < self.total,
            Counts::Apart(_) | Counts::Together(_) => true,
        };
        self.required().any(joint)
    }

    /// Whether these nodes and so many more can keep what is required, as well as those that were `held` leave it possible.
    pub fn possible(&self, held: &[usize], nodes: &[usize], more: usize) -> bool {
        self.required().all(|rule| {
            let best = rule.kept(held) + (self.total - held.len());
            rule.kept(nodes) + more >= rule.terms.need.min(best)
        })
    }

    /// What breaking preferred rules costs.
    pub fn penalty(&self, nodes: &[usize]) -> u64 {
        let costs = self.preferred().map(|(rule, cost)| {
            let lacking = rule.terms.need.saturating_sub(rule.kept(nodes));
            cost.saturating_mul(lacking as u64)
        });
        costs.fold(0, u64::saturating_add)
    }

    /// What it costs that one more node does not help with preferred rules that need it. `with` has the node at its end.
    pub fn unhelped(&self, with: &[usize]) -> u64 {
        let before = &with[..with.len() - 1];
        let costs = self.preferred().map(|(rule, cost)| {
            let kept = rule.kept(before);
            let helps = kept >= rule.terms.need || rule.kept(with) > kept;
            if helps { 0 } else { cost }
        });
        costs.fold(0, u64::saturating_add)
    }

    /// Preferred rules that one more node does not help with.
    pub fn unhelped_names(&self, with: &[usize]) -> Vec<&str> {
        let before = &with[..with.len() - 1];
        let all = self.preferred().filter(|(rule, _)| {
            let kept = rule.kept(before);
            kept < rule.terms.need && rule.kept(with) <= kept
        });
        all.map(|(rule, _)| rule.terms.name.as_str()).collect()
    }

    /// What rules say of a node: nodes with the same are alike to them.
    pub fn signature(&self, node: usize) -> Vec<u32> {
        let says = |r: &Rule| match &r.counts {
            Counts::Matching(hits) => u32::from(hits[node]),
            Counts::Apart(of) | Counts::Together(of) => of[node].map_or(0, |d| d + 1),
        };
        self.rules.iter().map(says).collect()
    }
}

/// Domains in which these volumes have replicas.
fn domains<'a>(
    cluster: &Cluster,
    of: &[Option<u32>],
    volumes: impl Iterator<Item = &'a Neighbour<'a>>,
) -> HashSet<u32> {
    let nodes = volumes.flat_map(|v| v.nodes.iter());
    let at = nodes.filter_map(|n| cluster.index(n));
    at.filter_map(|n| of[n]).collect()
}
