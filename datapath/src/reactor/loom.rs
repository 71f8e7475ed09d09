//! What the model checker compiles of the reactor: its lock-free parts. Run with
//! `RUSTFLAGS="--cfg loom" cargo test --release -p keelblock-datapath --lib reactor`.

#![allow(dead_code)] // most users of these parts are not compiled here

mod asleep;
pub mod ring;
mod wakecell;
