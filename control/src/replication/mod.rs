//! Who coordinates a volume, and which replicas are in sync (`docs/replication.md` §3): one record for each volume in the KVDB.
//!
//! [`record`] is the record, which cannot hold what it must not; [`transition`] is all that may become of it (K1 to K8), as functions from record
//! to record; [`swap`] writes one by comparing the revision at which it was read, and says *unknown* where it does not know; [`change`] is what a
//! coordinator asks for (K2 to K6), [`attach`] takes an epoch for a process of this node (K1).
pub mod attach;
pub mod change;
pub mod record;
pub mod swap;
#[cfg(test)]
mod tests;
pub mod transition;
