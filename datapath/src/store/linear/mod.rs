//! The plain linear map (`docs/linear-format.md`): what volumes lie on until the store serves them.
//!
//! A `superblock` is the bytes of one copy, a `table` what it says about space, a `drive` reads and commits superblocks so that a crash
//! at any point leaves the old or the new one, and a `pool` makes, grows and deletes volumes over several drives in the order that needs
//! no commit over all of them (`alloc` picks the space). All of it runs on reactor 0, one change at a time; nothing here is on the I/O path.

mod alloc;
pub mod drive;
pub mod pool;
#[cfg(test)]
mod power_tests;
pub mod superblock;
pub mod table;
#[cfg(test)]
mod tests;

use super::VolumeId;
pub use super::name::{Name, NameError};
pub use drive::{DriveError, PoolDrive};
pub use pool::{Pool, PoolError, PoolVolume};
pub use superblock::GRAIN_BYTES;
