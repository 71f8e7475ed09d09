//! Replication between data paths (`docs/replication.md`).
//!
//! So far: [`wire`], the bytes of its messages. Nothing uses them yet.
pub mod wire;
