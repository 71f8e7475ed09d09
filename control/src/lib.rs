//! The control process of a node.
