//! The KVDB: the cluster's key-value database, the only source of truth of the control plane (`docs/kvdb.md`).
//!
//! It is etcd. Either a real one, or the embedded server of this module, which speaks the same API over one redb file:
//! `server` takes the calls; changes go to the writing thread (`engine`), which applies them (`txn`) to the tables of the
//! file (`store`, `record`), a batch to a synced commit; reads (`range`) look at a consistent point of the file, and
//! watches (`watch`) are told the newest changes from memory (`recent`) and read older ones back from the file's log, so that a
//! slow watcher costs nobody memory. `lease` knows who is alive. `client` is what the rest of the control process uses, on both.

pub mod client;
pub mod engine;
pub mod error;
pub mod lease;
pub mod range;
pub mod recent;
pub mod record;
pub mod server;
pub mod span;
pub mod store;
pub mod txn;
pub mod watch;

pub use client::{Client, KvError};
pub use server::Server;
