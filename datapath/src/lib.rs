//! The polled data path of a node.

pub mod device;
pub mod nvmf;
pub mod reactor;
pub mod store;
pub mod volume;
