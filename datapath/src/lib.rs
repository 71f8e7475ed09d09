//! The polled data path of a node.
//!
//! Under `cfg(loom)` only the reactor's lock-free parts are compiled, for the model checker.

#[cfg(all(test, not(loom)))]
mod cases;
#[cfg(not(loom))]
pub mod cipher;
#[cfg(not(loom))]
pub mod command;
#[cfg(not(loom))]
pub mod device;
#[cfg(not(loom))]
pub mod nvmf;
#[cfg(not(loom))]
pub mod process;
#[cfg(not(loom))]
pub mod reactor;
#[cfg(not(loom))]
pub mod replication;
#[cfg(all(test, not(loom)))]
mod simulator;
#[cfg(not(loom))]
pub mod store;
#[cfg(not(loom))]
pub mod volume;

#[cfg(loom)]
#[path = "reactor/loom.rs"]
pub mod reactor;
