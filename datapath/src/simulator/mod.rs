//! Clusters in one process, on the simulated reactor: what hosts see is checked against one copy ([`history`]).
pub mod history;
