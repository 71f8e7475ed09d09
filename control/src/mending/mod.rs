//! Replicas that are lost are made again, and those of volumes that are attached nowhere are brought back, without anybody having asked (`docs/replication.md` §21).
//!
//! One node does it, which has a key under a lease. `away` counts how long nodes are away, `decide` says what a volume needs (pure), `run` does that: a task is
//! written, which whoever serves the volume goes on with (`coordination/tasks`), and a volume that nobody serves gets somebody who does for a while (`errands`).

mod away;
mod decide;
mod errands;
mod options;
mod run;
#[cfg(test)]
mod tests;

pub use run::{Mending, keep_mending};
