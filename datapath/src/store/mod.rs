//! What a drive holds.
//!
//! Volumes lie on the plain linear map (`linear`) so far. Beside it grow the rooms of the store that replaces it, each after its section
//! of `docs/store-format.md`: `superblock` (§2), `group` (§3, space), `journal` (§4), `map` (§6 and 7), over the words in `types`.

mod bytes;
pub mod check;
pub mod engine;
pub mod group;
pub mod journal;
pub mod linear;
pub mod map;
pub mod name;
#[cfg(planted)]
pub mod planted;
pub mod superblock;
pub mod types;

use std::fmt;

pub use linear::{DriveError, GRAIN_BYTES, Pool, PoolDrive, PoolError, PoolVolume};
pub use linear::{pool, table};
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
