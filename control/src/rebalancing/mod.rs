//! Rebalances that go on by themselves (`docs/placement.md` §8): replicas are moved by a plan, a few at a time, whoever dies meanwhile.
//!
//! `record` is what the KVDB has of a job, `operations` what people do with it, `follow` says what is next for its moves (pure), `run` does that: one node, which has a
//! key under a lease. Each move is a task of its volume (`node::ha`), which goes on without any of this. `schedule` is when one begins without being asked.

mod follow;
mod operations;
mod record;
mod run;
mod schedule;

pub(crate) use operations::{Steering, why};
pub use record::{JobState, MOVES_MAX, MoveRecord, MoveState, RebalanceRecord, RebalanceWish};
pub use run::keep_rebalancing;
pub use schedule::ScheduleRecord;
