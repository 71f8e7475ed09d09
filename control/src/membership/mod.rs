//! Which nodes there are, and what people want of each (`docs/membership.md`).
//!
//! `record` is what the KVDB has of a node and `transition` how it may change; `token` is the cluster's secret, `former` how it is changed, and `join` what a node does with it when it starts; `standing` says
//! which nodes may have what; `weigh` what would be missing without a node; `operations` is what people ask for, `steps` what is next for a node that is to be emptied, and `leader`
//! does that. Safety of data rests on none of it: `replication` decides who coordinates and which replicas count.

mod former;
mod join;
mod leader;
mod operations;
mod record;
mod standing;
mod steps;
mod token;
mod transition;
mod weigh;
mod world;

pub use former::{FormerToken, SealedToken, TokenShown};
pub use leader::lead_membership;
pub(crate) use operations::Wish as MemberWish;
pub use record::{DrainRecord, DrainState, MemberRecord, MemberState};
pub(crate) use standing::{Standing, unfit};
pub use token::{TokenError, TokenRecord, TokenSource};
pub(crate) use world::World;
