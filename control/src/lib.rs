//! The control process of a node.

pub mod kvdb;
