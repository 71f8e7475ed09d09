//! Clusters in one process, on the simulated reactor: what hosts see is checked against one copy ([`history`]). [`cluster`] is nodes with replicas and
//! coordinators, [`drives`] what is under them, [`kvdb`] what keeps the set, [`ledger`] its keys, [`faults`] what goes wrong, `changes` replicas that come and
//! go, [`run`] hosts and faults by a seed, [`forward`] hosts that go to nodes which do not coordinate, `anywhere` what they try, `groups` snapshots of two volumes at one moment, `resync` what a resync costs, `late` answers that come late, `promised` power that is lost behind a promise, `restored` a KVDB that is put back, `rot` blocks that rot, `sealed` encryption.
mod anywhere;
mod changes;
pub mod cluster;
pub mod drives;
pub mod faults;
pub mod forward;
mod groups;
pub mod history;
pub mod kvdb;
mod late;
pub mod ledger;
mod look;
mod promised;
mod restored;
mod resync;
mod rot;
pub mod run;
mod sealed;
mod snapshots;
