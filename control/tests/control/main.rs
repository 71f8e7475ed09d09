//! The control process with a fake data path over the real channel: what its doors answer, and that it and the data path may each be
//! killed at any time.

mod alerts;
mod auth;
mod bench;
mod changes;
mod diags;
mod drives;
mod exports;
mod fake;
mod fake_replication;
mod kvdb_backup;
mod listing;
mod membership;
mod mending;
mod owners;
mod placement;
mod program;
mod rebalance;
mod recovery;
mod replicated;
mod replicated_clones;
mod replicated_errands;
mod replicated_groups;
mod replicated_restore;
mod replicated_size;
mod replicated_snapshots;
mod rest;
mod scans;
mod schedules;
mod snapshots;
mod trashcan;
mod usage;
mod volumes;
mod watch;
