//! Replication between data paths (`docs/replication.md`).
//!
//! [`wire`] is the bytes of its messages, [`held`] a record in memory, [`seam`] what it wants of the store that holds a replica. Nothing uses them yet.
pub mod held;
pub mod seam;
pub mod wire;
