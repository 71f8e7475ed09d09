//! Whole-system tests: a cluster builder, faults, real Linux hosts.
//!
//! Everything here treats Keelblock as its users do: it starts `keelblock up`, talks to it with `keelctl` and NVMe/TCP, and
//! kills processes. [`cluster`] is that cluster, [`programs`] finds (or builds) the executables, [`guest`] boots Debian's
//! kernel in a virtual machine, [`workload`] is verified I/O from our own initiator. The tests are in `tests/tests`, one file
//! per kind of failure.
pub mod cluster;
pub mod guest;
pub mod programs;
