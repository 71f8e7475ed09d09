//! `keelblock up`: a whole cluster on this machine, as any user, for trying out, for tests and for benchmarks.
//!
//! In the order of the modules: [`args`] is what was asked; [`layout`] the data directory, locked and remembered; [`device`]
//! and [`ports`] check what would fail later with worse words; [`binaries`] finds (under cargo: builds) the programs of a
//! node; [`stale`] ends what a killed `up` left; [`process`] runs one program and starts it again when it dies, [`node`] is the two programs of a node, [`nodes`] all of them, with [`cores`] divided; [`check`]
//! writes and verifies data through NVMe/TCP; [`drill`] kills a node under the [`load`] of a host; [`ready`] tells scripts what serves where; [`control_socket`] is how `keelblock
//! node stop|start` reaches a running `up`; [`live`] watches, and [`screen`] shows. [`start`] puts them together.
pub mod args;
mod binaries;
mod check;
pub mod control_socket;
mod cores;
mod device;
mod drill;
mod host;
mod layout;
mod live;
mod load;
mod mark;
mod node;
mod nodes;
mod ports;
mod process;
mod ready;
mod screen;
mod stale;
mod start;

pub use start::run;
