//! What a drive holds.
//!
//! The rooms follow the sections of `docs/store-format.md`: `superblock` (§2), `group` (§3, space), `journal` (§4), `map` (§6 and 7), over the
//! words in `types`; `engine` is what they do together on one drive, and `pool` what several drives are together.

mod bytes;
pub mod check;
pub mod engine;
pub mod group;
pub mod journal;
pub mod map;
pub mod mover;
pub mod name;
#[cfg(planted)]
pub mod planted;
pub mod pool;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod types;

use std::fmt;

pub use name::{Name, NameError};

/// The id of a volume: a UUID's 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
