//! The target over real loopback sockets, PDU by PDU: what a well-behaved host gets, and what becomes of one that is not.
//!
//! `wire` is a host that sends whatever a test wants; `harness` builds reactors, a memory drive and the target in this process.

mod back_pressure;
mod data;
mod handshake;
mod harness;
mod malformed;
mod reactors;
mod wire;
