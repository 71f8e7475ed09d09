//! The polled data path of a node.

pub mod reactor;
