//! The bytes of replication (`docs/replication.md` §§4 and 5), by named offsets.
//!
//! Decoding never trusts: a length is compared with its bound before anything is read by it, reserved bytes must be zero, and what breaks a rule is a
//! [`WireError`] that ends the session. Nothing here allocates while it decodes, and nothing here does I/O: [`hello`] is the handshake, [`frame`] the header of
//! everything after it, [`record`] what streams consist of, [`batch`] and [`ack`] the two frames that writes need, [`message`] any frame there is.
pub mod ack;
pub mod batch;
mod bytes;
pub mod damaged;
mod error;
pub mod forward;
pub mod frame;
pub mod heart;
pub mod hello;
pub mod items;
pub mod list;
pub mod message;
pub mod open;
pub mod promise;
pub mod read;
pub mod record;
pub mod refused;
pub mod resync;
pub mod snapshots;
#[cfg(test)]
mod tests;

pub use error::WireError;
