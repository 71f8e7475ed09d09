//! What others in this process may know of what is heard.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::engine::Counts;
use super::stats::{NodeStats, PoolStats};

/// Whether a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Life {
    /// It answers.
    Alive,
    /// It did not answer, and has a moment to say that it lives.
    Suspect,
    /// It does not answer.
    Down,
}

impl Life {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// A node, as it is heard.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// Whether it is.
    pub life: Life,
    /// Its newest statistics, and how old they are.
    pub stats: Option<(NodeStats, Duration)>,
}

/// Datagrams that were refused, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// Counts.
    pub counts: [u64; 5],
}

impl Refusals {
    /// Reasons, as the counts have them.
    pub const REASONS: [&'static str; 5] = ["short", "cluster", "seal", "replayed", "malformed"];

    /// Each reason with its count.
    pub fn each(self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::REASONS.into_iter().zip(self.counts)
    }
}

/// Nodes by id: whether each is heard, and its newest statistics with when they came.
pub(crate) type Nodes = BTreeMap<String, (Life, Option<(NodeStats, Instant)>)>;

#[derive(Debug, Default)]
struct Shown {
    nodes: Nodes,
    counts: Counts,
    pools: Vec<PoolStats>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Shown>);

impl Board {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Nothing that holds the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is heard now, this node included, each with statistics and when they came.
    pub fn put(&self, nodes: Nodes, counts: Counts) {
        let mut shown = self.shown();
        shown.nodes = nodes;
        shown.counts = counts;
    }

    /// Room in this node's pools, as it was looked at last.
    pub fn put_pools(&self, pools: Vec<PoolStats>) {
        self.shown().pools = pools;
    }

    /// The same.
    pub fn pools(&self) -> Vec<PoolStats> {
        self.shown().pools.clone()
    }

    /// A node; `None`: it was never heard.
    pub fn of(&self, node_id: &str) -> Option<Heard> {
        let shown = self.shown();
        let (life, stats) = shown.nodes.get(node_id)?;
        let stats = stats.as_ref().map(|(s, at)| (s.clone(), at.elapsed()));
        Some(Heard { life: *life, stats })
    }

    /// How busy each node is, in percent, as far as it is heard and said so lately.
    pub fn loads(&self) -> BTreeMap<String, u8> {
        let shown = self.shown();
        let alive = shown.nodes.iter().filter(|(_, n)| n.0 == Life::Alive);
        let told = alive.filter_map(|(id, n)| Some((id, n.1.as_ref()?)));
        let fresh = told.filter(|(_, (_, at))| at.elapsed() < STALE);
        let percent = |stats: &NodeStats| (stats.load_permille / 10).min(100) as u8;
        let loads = fresh.map(|(id, (stats, _))| (id.clone(), percent(stats)));
        loads.collect()
    }

    /// Nodes that are not alive.
    pub fn doubtful(&self) -> Vec<String> {
        let shown = self.shown();
        let all = shown
            .nodes
            .iter()
            .filter(|(_, (life, _))| *life != Life::Alive);
        all.map(|(id, _)| id.clone()).collect()
    }

    /// How many nodes are alive, suspect and down.
    pub fn census(&self) -> [(Life, usize); 3] {
        let shown = self.shown();
        let count = |life| shown.nodes.values().filter(|(l, _)| *l == life).count();
        [Life::Alive, Life::Suspect, Life::Down].map(|life| (life, count(life)))
    }

    /// Datagrams sent and taken.
    pub fn datagrams(&self) -> (u64, u64) {
        let shown = self.shown();
        (shown.counts.sent, shown.counts.received)
    }

    /// Datagrams refused.
    pub fn refusals(&self) -> Refusals {
        Refusals {
            counts: self.shown().counts.refused,
        }
    }
}

/// Statistics that are older say nothing of now.
pub(crate) const STALE: Duration = Duration::from_secs(15);
