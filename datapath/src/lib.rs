//! The polled data path of a node.
