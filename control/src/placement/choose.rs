//! The best nodes together (`docs/placement.md` §4).
use super::bound::Bound;
use super::filter::candidate;
use super::{Cluster, Limits, Neighbour, Refusal, Rules, Score};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// Most nodes that are tried while a placement is searched that keeps required rules.
const STEPS_MAX: u32 = 50_000;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Size of the volume.
    pub size_bytes: u64,
    /// How many replicas are to be placed.
    pub replicas: usize,
    /// Labels of the volume.
    pub labels: &'a BTreeMap<String, String>,
    /// Its rules.
    pub rules: Option<&'a Rules>,
    /// Nodes whose replicas stay.
    pub held: Vec<&'a str>,
    /// Nodes that have one and can have no other, beside those: it leaves.
    pub shut: Vec<&'a str>,
    /// Only these nodes; `None`: any.
    pub nodes: Option<Vec<&'a str>>,
    /// Only these pools; `None`: any.
    pub pools: Option<Vec<Uuid>>,
    /// Other volumes, if rules speak of them.
    pub neighbours: Vec<Neighbour<'a>>,
    /// Limits of pools.
    pub limits: Limits,
    /// The node that is taken of those that are the same.
    pub first: &'a str,
}

/// A node that can have a replica.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub pool: usize,
    pub score: Score,
    pub class: u32,
}

/// What a node is less by, or more: the least is taken.
pub(super) type Key = (u64, bool, usize, usize, Reverse<u32>, u32, bool, usize);

/// Nodes, what each can do, and what is asked of them.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub cluster: &'a Cluster,
    pub bound: Bound,
    /// For each node.
    pub nodes: Vec<Result<Candidate, Refusal>>,
    /// Nodes whose replicas stay.
    pub held: Vec<usize>,
    pub wanted: usize,
    first: Option<usize>,
}

/// A placement.
#[derive(Debug)]
pub struct Choice<'a> {
    pub(super) table: Table<'a>,
    /// Nodes, in the order in which they were chosen.
    pub(super) picks: Vec<usize>,
}

/// That there is none.
#[derive(Debug)]
pub struct NoPlace<'a> {
    pub(super) table: Table<'a>,
    /// The search was given up.
    pub gave_up: bool,
}

/// How good a placement is: the least is the best.
type Worth = (u64, usize, usize, usize, Reverse<u64>);

impl<'a> Table<'a> {
    fn new(cluster: &'a Cluster, request: &Request<'_>) -> Self {
        let bound = Bound::new(cluster, request);
        let has: HashSet<&str> = request.held.iter().chain(&request.shut).copied().collect();
        let joint = bound.is_joint();
        let mut classes: HashMap<(Vec<u32>, [u32; 3]), u32> = HashMap::new();
        let mut nodes = Vec::with_capacity(cluster.nodes().len());
        for (at, node) in cluster.nodes().iter().enumerate() {
            let has_one = has.contains(node.node_id.as_str());
            let found = candidate(at, node, request, &bound, has_one);
            nodes.push(found.map(|(pool, score)| {
                let class = match joint {
                    true => {
                        let next = classes.len() as u32;
                        let alike = (bound.signature(at), cluster.domains(at));
                        *classes.entry(alike).or_insert(next)
                    }
                    false => 0,
                };
                Candidate { pool, score, class }
            }));
        }
        let held = request.held.iter().filter_map(|n| cluster.index(n));
        Self {
            held: held.collect(),
            wanted: request.replicas,
            first: cluster.index(request.first),
            cluster,
            bound,
            nodes,
        }
    }

    /// What a node is by, if `with`, which ends with it, has those before it.
    pub fn key(&self, with: &[usize]) -> Option<Key> {
        let (at, before) = with.split_last()?;
        let found = self.nodes[*at].as_ref().ok()?;
        let [region, zone, rack] = self.cluster.domains(*at);
        let sharing = |level: usize, domain: u32| {
            let same = |n: &&usize| self.cluster.domains(**n)[level] == domain;
            before.iter().filter(same).count()
        };
        let far = !before.is_empty() && sharing(0, region) == 0;
        let pool = &self.cluster.nodes()[*at].pools[found.pool];
        Some((
            self.bound.unhelped(with),
            far,
            sharing(1, zone),
            sharing(2, rack),
            Reverse(found.score.total()),
            pool.replicas,
            self.first != Some(*at),
            *at,
        ))
    }

    /// How many pairs of nodes share a domain of a level.
    fn pairs(&self, nodes: &[usize], level: usize) -> usize {
        let of = |n: &usize| self.cluster.domains(*n)[level];
        let pair = |(i, n): (usize, &usize)| nodes[..i].iter().filter(|m| of(m) == of(n)).count();
        nodes.iter().enumerate().map(pair).sum()
    }

    fn worth(&self, picks: &[usize]) -> Worth {
        let all: Vec<usize> = self.held.iter().chain(picks).copied().collect();
        let regions: HashSet<u32> = all.iter().map(|n| self.cluster.domains(*n)[0]).collect();
        let score = |n: &usize| {
            self.nodes[*n]
                .as_ref()
                .map_or(0, |c| u64::from(c.score.total()))
        };
        (
            self.bound.penalty(&all),
            regions.len(),
            self.pairs(&all, 1),
            self.pairs(&all, 2),
            Reverse(picks.iter().map(score).sum()),
        )
    }
}

/// One search among some of the nodes.
struct Search<'t, 'a> {
    table: &'t Table<'a>,
    among: Vec<usize>,
    steps: u32,
    /// Most pairs of replicas in one zone.
    pairs_max: usize,
}

impl Search<'_, '_> {
    /// The first placement, and then those with fewer pairs in one zone, as long as there are some that are better.
    fn best_found(&mut self) -> Option<(Worth, Vec<usize>)> {
        let table = self.table;
        let mut best: Option<(Worth, Vec<usize>)> = None;
        while self.among.len() >= table.wanted {
            let mut all = table.held.clone();
            if !self.complete(&mut all, table.wanted) {
                break;
            }
            let picks = all.split_off(table.held.len());
            let worth = table.worth(&picks);
            if best.as_ref().is_some_and(|(b, _)| *b <= worth) {
                break;
            }
            let pairs = worth.2;
            best = Some((worth, picks));
            // Without rules about several nodes the first is the best.
            if pairs == 0 || !table.bound.is_joint() {
                break;
            }
            self.pairs_max = pairs - 1;
        }
        best
    }

    /// Completes what is chosen; `false`: it cannot be.
    fn complete(&mut self, all: &mut Vec<usize>, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let joint = self.table.bound.is_joint();
        let mut tried: HashSet<u32> = HashSet::new();
        loop {
            let Some((at, class)) = self.best(all, &tried) else {
                return false;
            };
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return false;
            }
            all.push(at);
            let possible = !joint
                || self.table.bound.possible(&self.table.held, all, more - 1)
                    && self.table.pairs(all, 1) <= self.pairs_max;
            if possible && self.complete(all, more - 1) {
                return true;
            }
            all.pop();
            // Without rules about several nodes there are just too few.
            if !joint || self.steps > STEPS_MAX {
                return false;
            }
            tried.insert(class);
        }
    }

    fn best(&self, all: &mut Vec<usize>, tried: &HashSet<u32>) -> Option<(usize, u32)> {
        let mut best: Option<(Key, u32)> = None;
        for at in &self.among {
            let Ok(found) = &self.table.nodes[*at] else {
                continue;
            };
            if tried.contains(&found.class) || all.contains(at) {
                continue;
            }
            all.push(*at);
            let key = self.table.key(all);
            all.pop();
            if let Some(key) = key.filter(|k| best.as_ref().is_none_or(|(b, _)| k < b)) {
                best = Some((key, found.class));
            }
        }
        best.map(|(key, class)| (key.7, class))
    }
}

impl Cluster {
    /// Nodes and pools for replicas.
    ///
    /// # Errors
    /// [`NoPlace`]: too few nodes can have one, or they cannot keep the rules together.
    pub fn choose(&self, request: &Request<'_>) -> Result<Choice<'_>, Box<NoPlace<'_>>> {
        let table = Table::new(self, request);
        let mut best: Option<(Worth, Vec<usize>)> = None;
        let mut gave_up = false;
        for among in self.groups(&table) {
            // Those of all regions come last.
            if best.is_some() && among.is_none() && !table.bound.of_regions {
                break;
            }
            let in_group = |at: &usize| {
                let region = self.domains(*at)[0];
                among.as_ref().is_none_or(|only| only.contains(&region))
            };
            let able = (0..table.nodes.len()).filter(|at| table.nodes[*at].is_ok());
            let mut search = Search {
                among: able.filter(in_group).collect(),
                table: &table,
                steps: 0,
                pairs_max: usize::MAX,
            };
            if let Some((worth, picks)) = search.best_found() {
                // Of regions that are the same the first.
                if best.as_ref().is_none_or(|(b, _)| worth < *b) {
                    best = Some((worth, picks));
                }
            }
            gave_up |= search.steps > STEPS_MAX;
        }
        match best {
            Some((_, picks)) => Ok(Choice { table, picks }),
            None => Err(Box::new(NoPlace { table, gave_up })),
        }
    }

    /// Regions to search: each by itself, or those of the replicas that are there; at the end, with `None`, all.
    fn groups(&self, table: &Table<'_>) -> Vec<Option<HashSet<u32>>> {
        let mut groups = Vec::new();
        if !table.held.is_empty() {
            let held = table.held.iter().map(|n| self.domains(*n)[0]);
            groups.push(Some(held.collect()));
        } else if self.regions().len() > 1 {
            let each = self.regions().iter().map(|r| Some(HashSet::from([*r])));
            groups.extend(each);
        }
        groups.push(None);
        groups
    }
}

impl Choice<'_> {
    /// Nodes and pools, in the order in which they were chosen.
    pub fn picks(&self) -> Vec<(String, Uuid)> {
        let pick = |at: &usize| {
            let node = &self.table.cluster.nodes()[*at];
            let found = self.table.nodes[*at].as_ref().ok()?;
            Some((node.node_id.clone(), node.pools[found.pool].pool_id))
        };
        self.picks.iter().filter_map(pick).collect()
    }
}
