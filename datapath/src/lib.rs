//! The polled data path of a node.

pub mod command;
pub mod device;
pub mod nvmf;
pub mod process;
pub mod reactor;
pub mod store;
pub mod volume;
