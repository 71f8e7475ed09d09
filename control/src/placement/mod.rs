//! Which nodes and pools get the replicas of a volume (`docs/placement.md`). Pure: no clock, no I/O, no randomness; the same input gives the same choice.
//!
//! `view` is what is looked at, with its fault domains; `labels` and `rules` are what is wished for, `limits` what a pool may be asked for. `filter` says who
//! cannot have a replica, `bound` what the rules say of each of the others, `score` how well a pool would do; `choose` takes the best together, and `explain` has a word on every node.

mod bound;
mod choose;
mod explain;
mod filter;
mod labels;
mod limits;
pub mod rebalance;
mod rules;
mod score;
#[cfg(test)]
mod tests;
mod view;

pub use choose::{Choice, NoPlace, Request};
pub use explain::{Outcome, Verdict};
pub use filter::Refusal;
pub use labels::{Operator, Requirement, matches};
pub use limits::Limits;
pub use rules::{ReplicaRule, Rules, VolumeRule};
pub use score::Score;
pub use view::{Cluster, Neighbour, Node, Pool};
