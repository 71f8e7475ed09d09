//! The control process of a node: everything that is not I/O.
//!
//! `config` and `datadir` are what it starts with; `kvdb` is the cluster's database, `records` what is kept in it and `backup` what becomes of it; `membership` says which nodes there are and what is wanted of them; `replication`
//! is who coordinates a volume, and `coordination` this node's part in it, `gossip` what nodes tell each other of themselves, `mending` what is done about lost replicas without being asked, `rebalancing` has replicas moved by a plan; `node` makes changes to volumes and exports, `datapath` keeps the connection to the process that
//! serves them; `sdk`, `admin` and `rest` are the doors, `auth` who may come in.

pub mod auth;
pub mod backup;
pub mod config;
pub mod coordination;
pub mod datadir;
pub mod datapath;
pub mod error;
mod gossip;
pub mod kvdb;
mod leader;
pub mod logs;
pub mod membership;
pub mod mending;
pub mod names;
pub mod node;
pub mod placement;
pub mod rebalancing;
pub mod records;
pub mod replication;
pub mod rest;
pub mod run;
pub mod schedule;
pub mod sdk;
pub mod secrets;
pub mod system;
