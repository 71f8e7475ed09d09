//! Model check of the replication protocol (`docs/replication.md`): [`checker`] searches all states of [`protocol`], world by world.
//! `docs/replication-testing.md` says what is in it, with which bounds, and what it finds when a rule is left out.
pub mod checker;
pub mod protocol;
