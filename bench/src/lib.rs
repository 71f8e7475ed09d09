//! keelblock-perf, a load generator for NVMe/TCP targets, and the project's benchmarks.
//!
//! One pinned thread polls all its queue pairs. A *workload* says where the next I/O goes; *stamps* make each written block
//! recognisable and the *ledger* knows which stamps a read may return; the *report* turns histograms into figures. `limit` is what
//! the loopback could do without the protocol, to hold all of it against.

mod lane;
pub mod ledger;
pub mod limit;
pub mod pin;
pub mod report;
pub mod run;
pub mod size;
pub mod stamp;
pub mod workload;
