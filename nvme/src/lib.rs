//! NVMe and NVMe/TCP types, PDU codec and a small initiator.
//!
//! The wire comes first: [`pdu`] frames what travels, [`Sqe`] and [`Cqe`] are what capsules carry, [`fabrics`], [`identify`],
//! [`property`] and [`sgl`] what lies within them, [`Status`] and [`opcode`] the names of numbers. All of it is without I/O and
//! without allocation on the I/O path; bytes are read and written at named little-endian offsets.

mod bytes;
mod cqe;
pub mod digest;
pub mod fabrics;
pub mod identify;
pub mod initiator;
pub mod nqn;
pub mod opcode;
pub mod pdu;
pub mod property;
pub mod sgl;
mod sqe;
mod status;

pub use cqe::Cqe;
pub use sqe::{DEAC, FUA, Fuse, Sqe};
pub use status::Status;
