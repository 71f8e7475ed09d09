//! Which replicas to move, so that pools are promised alike and domains shared less (`docs/placement.md` §8). A plan: nothing is moved here.
use super::{Cluster, Limits, Neighbour, Request, Rules};
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// Volumes of a pool that are tried before it is left as it is.
const TRIES_MAX: usize = 16;

/// A volume that may be moved.
#[derive(Debug, Clone)]
pub struct Movable<'a> {
    /// Its id.
    pub volume_id: Uuid,
    /// Its size.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its rules.
    pub rules: Option<&'a Rules>,
    /// Nodes and pools of its replicas.
    pub replicas: Vec<(&'a str, Uuid)>,
    /// Other volumes, if rules speak of them.
    pub neighbours: Vec<Neighbour<'a>>,
}

/// How far it goes.
#[derive(Debug, Clone)]
pub struct Aim {
    /// A pool is relieved if more of it is provisioned than this many percent of its size above the mean.
    pub over_percent: u32,
    /// A pool takes nothing that brings it above the mean by more than this.
    pub under_percent: u32,
    /// Most moves.
    pub moves_max: usize,
    /// Pools that are relieved; `None`: any.
    pub from: Option<HashSet<Uuid>>,
    /// Pools that take something; `None`: any.
    pub to: Option<HashSet<Uuid>>,
}

/// Why a replica is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It shares a zone or rack, and need not.
    Shared,
    /// Its pool has more promised than others.
    Level,
}

/// A move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Of which volume.
    pub volume_id: Uuid,
    /// Its size.
    pub size_bytes: u64,
    /// From which node and pool.
    pub from: (String, Uuid),
    /// To which.
    pub to: (String, Uuid),
    /// Why.
    pub why: Why,
}

/// Moves, in the order in which they are to be made.
#[derive(Debug, Default)]
pub struct Plan {
    /// All of them.
    pub moves: Vec<Move>,
    /// Pools above the mean by more than was asked, before and after.
    pub unbalanced: (usize, usize),
}

/// What is planned with.
struct Planner<'c, 'a> {
    cluster: &'c mut Cluster,
    volumes: Vec<Movable<'a>>,
    limits: Limits,
    aim: Aim,
    /// Volumes with a replica in a pool, the largest first.
    by_pool: HashMap<Uuid, Vec<usize>>,
    moved: HashSet<usize>,
    moves: Vec<Move>,
}

impl Cluster {
    /// Plans moves, each volume at most once, and leaves the cluster as it is after them.
    pub fn rebalance(&mut self, volumes: Vec<Movable<'_>>, limits: Limits, aim: Aim) -> Plan {
        let mut by_pool: HashMap<Uuid, Vec<usize>> = HashMap::new();
        for (i, volume) in volumes.iter().enumerate() {
            for (_, pool) in &volume.replicas {
                by_pool.entry(*pool).or_default().push(i);
            }
        }
        for there in by_pool.values_mut() {
            there.sort_by_key(|i| (std::cmp::Reverse(volumes[*i].size_bytes), *i));
        }
        let mut planner = Planner {
            volumes,
            limits,
            aim,
            by_pool,
            moved: HashSet::new(),
            moves: Vec::new(),
            cluster: self,
        };
        let before = planner.over().len();
        planner.unshare();
        planner.level();
        let after = planner.over().len();
        Plan {
            moves: planner.moves,
            unbalanced: (before, after),
        }
    }

    /// Pairs of these nodes that share a zone, and a rack.
    pub fn shared(&self, nodes: &[&str]) -> (usize, usize) {
        let at: Vec<usize> = nodes.iter().filter_map(|n| self.index(n)).collect();
        let pairs = |level: usize| {
            let of = |n: &usize| self.domains(*n)[level];
            let pair = |(i, n): (usize, &usize)| at[..i].iter().filter(|m| of(m) == of(n)).count();
            at.iter().enumerate().map(pair).sum()
        };
        (pairs(1), pairs(2))
    }

    /// What is provisioned of all pools that are not memory, in thousandths of their size.
    fn mean(&self) -> u128 {
        let pools = self.nodes().iter().flat_map(|n| &n.pools);
        let used = pools.filter(|p| !p.memory);
        let (total, provisioned) = used.fold((0u128, 0u128), |(t, p), pool| {
            (
                t + u128::from(pool.total_bytes),
                p + u128::from(pool.provisioned_bytes),
            )
        });
        (1000 * provisioned).checked_div(total).unwrap_or(0)
    }
}

/// In thousandths of its size.
fn ratio(provisioned: u64, total: u64) -> u128 {
    let of = u128::from(total);
    (1000 * u128::from(provisioned))
        .checked_div(of)
        .unwrap_or(0)
}

impl Planner<'_, '_> {
    /// Pools above the mean by more than is wanted, the worst first: node and pool.
    fn over(&self) -> Vec<(u128, String, Uuid)> {
        let most = self.cluster.mean() + 10 * u128::from(self.aim.over_percent);
        let mut over = Vec::new();
        for node in self.cluster.nodes() {
            for pool in node.pools.iter().filter(|p| !p.memory) {
                let from = self.aim.from.as_ref();
                let ratio = ratio(pool.provisioned_bytes, pool.total_bytes);
                if ratio > most && from.is_none_or(|from| from.contains(&pool.pool_id)) {
                    over.push((ratio, node.node_id.clone(), pool.pool_id));
                }
            }
        }
        over.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        over
    }

    fn full(&self) -> bool {
        self.moves.len() >= self.aim.moves_max
    }

    /// Replicas that share a zone or rack with another one of their volume go where they do not.
    fn unshare(&mut self) {
        for i in 0..self.volumes.len() {
            let nodes: Vec<&str> = self.volumes[i].replicas.iter().map(|r| r.0).collect();
            let shared = self.cluster.shared(&nodes);
            if shared == (0, 0) || self.full() {
                continue;
            }
            for r in 0..nodes.len() {
                let Some((to, with)) = self.target(i, r, self.limits) else {
                    continue;
                };
                if with < shared {
                    self.take(i, r, to, Why::Shared);
                    break;
                }
            }
        }
    }

    /// Pools that have too much promised give some of it away.
    fn level(&mut self) {
        let mut left: HashSet<Uuid> = HashSet::new();
        while !self.full() {
            let over = self.over();
            let Some((_, _, pool)) = over.into_iter().find(|(_, _, p)| !left.contains(p)) else {
                return;
            };
            if !self.relieve(pool) {
                left.insert(pool);
            }
        }
    }

    /// Moves one volume away from a pool: the largest that does not bring it below the mean.
    fn relieve(&mut self, from: Uuid) -> bool {
        let pools = self.cluster.nodes().iter().flat_map(|n| &n.pools);
        let mut pools = pools.filter(|p| p.pool_id == from);
        let Some((total, provisioned)) = pools.next().map(|p| (p.total_bytes, p.provisioned_bytes))
        else {
            return false;
        };
        let mean = self.cluster.mean();
        let at_mean = u64::try_from(u128::from(total) * mean / 1000).unwrap_or(u64::MAX);
        let excess = provisioned.saturating_sub(at_mean);
        let there = self.by_pool.get(&from).cloned().unwrap_or_default();
        let fits = there
            .into_iter()
            .filter(|i| !self.moved.contains(i) && self.volumes[*i].size_bytes <= excess);
        let tries: Vec<usize> = fits.take(TRIES_MAX).collect();
        let limits = self.limits_of_takers();
        for i in tries {
            let at = self.volumes[i].replicas.iter().position(|r| r.1 == from);
            let Some(r) = at else { continue };
            let nodes: Vec<&str> = self.volumes[i].replicas.iter().map(|r| r.0).collect();
            let shared = self.cluster.shared(&nodes);
            let Some((to, with)) = self.target(i, r, limits) else {
                continue;
            };
            if with <= shared && self.has_room(to.1, self.volumes[i].size_bytes) {
                self.take(i, r, to, Why::Level);
                return true;
            }
        }
        false
    }

    /// Limits by which only pools are chosen that stay near the mean: else the best of all would be, time and again, and others that have room never.
    fn limits_of_takers(&self) -> Limits {
        let reserve = u128::from(self.limits.reserve_percent);
        let most = self.cluster.mean() / 10 + u128::from(self.aim.under_percent);
        // In percent of what is not reserved, as limits are.
        let percent = (100 * most).div_ceil(100 - reserve.min(99));
        let percent = u32::try_from(percent).unwrap_or(u32::MAX);
        Limits {
            overcommit_percent: match self.limits.overcommit_percent {
                0 => percent,
                limit => limit.min(percent),
            },
            ..self.limits
        }
    }

    /// Whether a pool can take so much without being above the mean itself.
    fn has_room(&self, pool: Uuid, bytes: u64) -> bool {
        let most = self.cluster.mean() + 10 * u128::from(self.aim.under_percent);
        let pools = self.cluster.nodes().iter().flat_map(|n| &n.pools);
        let mut pools = pools.filter(|p| p.pool_id == pool);
        pools.next().is_some_and(|p| {
            ratio(p.provisioned_bytes.saturating_add(bytes), p.total_bytes) <= most
        })
    }

    /// Where a replica of a volume would go, and what would be shared then.
    fn target(
        &self,
        i: usize,
        r: usize,
        limits: Limits,
    ) -> Option<((String, Uuid), (usize, usize))> {
        let volume = &self.volumes[i];
        let others = volume.replicas.iter().enumerate().filter(|(n, _)| *n != r);
        let held: Vec<&str> = others.map(|(_, (node, _))| *node).collect();
        let request = Request {
            size_bytes: volume.size_bytes,
            replicas: 1,
            labels: volume.labels,
            rules: volume.rules,
            held: held.clone(),
            shut: vec![volume.replicas[r].0],
            nodes: None,
            pools: self.aim.to.as_ref().map(|to| to.iter().copied().collect()),
            neighbours: volume.neighbours.clone(),
            limits,
            first: "",
        };
        let choice = self.cluster.choose(&request).ok()?;
        let to = choice.picks().into_iter().next()?;
        let mut all = held;
        all.push(&to.0);
        let with = self.cluster.shared(&all);
        Some((to, with))
    }

    fn take(&mut self, i: usize, r: usize, to: (String, Uuid), why: Why) {
        let volume = &self.volumes[i];
        let (from, pool) = volume.replicas[r];
        let bytes = volume.size_bytes;
        self.moves.push(Move {
            volume_id: volume.volume_id,
            size_bytes: bytes,
            from: (from.to_owned(), pool),
            to: to.clone(),
            why,
        });
        self.moved.insert(i);
        self.cluster.count(from, pool, bytes, true);
        self.cluster.count(&to.0, to.1, bytes, false);
    }
}
