//! Model check of the replication protocol (`docs/replication.md`): [`checker`] searches all states of [`protocol`], world by world.
//! `docs/replication-testing.md` says what is in it, with which bounds, and what it finds when a rule is left out.
//!
//! What has little to do with takeover has small models of its own: [`forward`], [`erase`], [`snapshot`], [`group`]; [`list`] names them all.
pub mod checker;
pub mod erase;
pub mod forward;
pub mod group;
pub mod list;
pub mod protocol;
pub mod snapshot;
