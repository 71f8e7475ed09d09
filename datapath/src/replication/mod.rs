//! Replication between data paths (`docs/replication.md`).
//!
//! [`wire`] is the bytes of its messages, [`held`] a record in memory, [`summary`] what replicas compare, [`seam`] what it wants of the store that holds a replica. [`session`] carries
//! messages between nodes, [`replica`] is what takes them where a replica is; [`node`] is all of that on one reactor of a process.
pub mod held;
pub mod node;
pub mod planted;
pub mod replica;
pub mod seam;
pub mod session;
pub mod summary;
pub mod wire;
