//! Clusters in one process, on the simulated reactor: what hosts see is checked against one copy ([`history`]). [`cluster`] is nodes with replicas and
//! coordinators, [`kvdb`] what keeps the set, [`run`] hosts and faults by a seed.
pub mod cluster;
pub mod history;
pub mod kvdb;
pub mod run;
