//! A word on every node (`docs/placement.md` §7).
use super::choose::{Choice, NoPlace, Table};
use super::view::LEVELS;
use super::{Pool, Score};

/// What became of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It gets a replica: the first, the second, …
    Chosen(usize),
    /// It has one that stays.
    Held,
    /// It can have none: why.
    Refused(String),
    /// Others were better: why.
    Lost(String),
    /// It could have one, and there is no placement.
    Able,
}

/// A node in an explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its id.
    pub node_id: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The pool that a replica would be in, and its score; of nodes that can have one.
    pub pool: Option<(Pool, Score)>,
}

impl Choice<'_> {
    /// Every node, by id.
    pub fn explain(&self) -> Vec<Verdict> {
        let placed = |at: usize| self.picks.iter().position(|p| *p == at);
        self.table.verdicts(|at| match placed(at) {
            Some(n) => Outcome::Chosen(n + 1),
            None => Outcome::Lost(self.lost(at)),
        })
    }

    /// By what a node lost to the replica that was chosen last.
    fn lost(&self, at: usize) -> String {
        let Some((winner, before)) = self.picks.split_last() else {
            return "no replica was asked for".into();
        };
        let table = &self.table;
        let before: Vec<usize> = table.held.iter().chain(before).copied().collect();
        let with = |n: usize| before.iter().copied().chain([n]).collect::<Vec<_>>();
        let (mine, theirs) = (with(at), with(*winner));
        let (Some(key), Some(best)) = (table.key(&mine), table.key(&theirs)) else {
            return String::new();
        };
        let to = &table.cluster.nodes()[*winner].node_id;
        let shares = |level: usize| {
            let domains = |n: &usize| table.cluster.domains(*n)[level];
            let same = before.iter().filter(|n| domains(n) == domains(&at));
            let names: Vec<&str> = same
                .map(|n| table.cluster.nodes()[*n].node_id.as_str())
                .collect();
            let (level_name, name) = (LEVELS[level], table.cluster.name(at, level));
            format!("{level_name} {name} has {}", names.join(", "))
        };
        if key < best {
            return match key.1 || self.is_elsewhere(at) {
                true => format!(
                    "region {}: the others are together in {}",
                    table.cluster.name(at, 0),
                    table.cluster.name(*winner, 0)
                ),
                false => "with it the required rules cannot be kept".into(),
            };
        }
        let why = if key.0 != best.0 {
            format!(
                "does not help with {}",
                table.bound.unhelped_names(&mine).join(", ")
            )
        } else if key.1 != best.1 {
            format!("is in another region, {}", table.cluster.name(at, 0))
        } else if key.2 != best.2 {
            shares(1)
        } else if key.3 != best.3 {
            shares(2)
        } else if key.4 != best.4 {
            format!("score {} against {}", key.4.0, best.4.0)
        } else if key.5 != best.5 {
            format!("{} replicas against {}", key.5, best.5)
        } else if key.6 != best.6 {
            "as good as the node that was asked".into()
        } else {
            "as good, and later by its id".into()
        };
        format!("to {to}: {why}")
    }

    fn is_elsewhere(&self, at: usize) -> bool {
        let region = |n: usize| self.table.cluster.domains(n)[0];
        let mut all = self.table.held.iter().chain(&self.picks);
        !all.any(|n| region(*n) == region(at))
    }
}

impl NoPlace<'_> {
    /// Every node, by id.
    pub fn explain(&self) -> Vec<Verdict> {
        self.table.verdicts(|_| Outcome::Able)
    }

    /// Replicas that were wanted.
    pub fn wanted(&self) -> usize {
        self.table.wanted
    }

    /// Whether there are enough nodes, which cannot keep the rules together.
    pub fn by_rules(&self) -> bool {
        let able = self.table.nodes.iter().filter(|n| n.is_ok()).count();
        able >= self.table.wanted
    }
}

impl Table<'_> {
    fn verdicts(&self, able: impl Fn(usize) -> Outcome) -> Vec<Verdict> {
        let one = |(at, found): (usize, &Result<_, super::Refusal>)| {
            let node = &self.cluster.nodes()[at];
            let found: &Result<super::choose::Candidate, _> = found;
            let outcome = match found {
                _ if self.held.contains(&at) => Outcome::Held,
                Err(why) => Outcome::Refused(why.to_string()),
                Ok(_) => able(at),
            };
            let pool = found.as_ref().ok();
            Verdict {
                node_id: node.node_id.clone(),
                outcome,
                pool: pool.map(|c| (node.pools[c.pool].clone(), c.score)),
            }
        };
        self.nodes.iter().enumerate().map(one).collect()
    }
}
