//! The bytes of replication (`docs/replication.md` §§4 and 5), by named offsets.
//!
//! Decoding never trusts: a length is compared with its bound before anything is read by it, reserved bytes must be zero, and what breaks a rule is a
//! [`WireError`] that ends the session. Nothing here allocates while it decodes, and nothing here does I/O: [`hello`] is the handshake, [`frame`] the header of
//! everything after it, [`record`] what streams consist of, [`batch`] and [`ack`] the two frames that writes need.
pub mod ack;
pub mod batch;
mod bytes;
mod error;
pub mod frame;
pub mod hello;
pub mod record;
#[cfg(test)]
mod tests;

pub use error::WireError;
