//! The journal (`docs/store-format.md` §4): blocks and records as bytes, packing them, and finding them again. No I/O is done here.
//!
//! - Records: [`WriteFields`], [`Tombstone`], [`Snapshot`], [`Put`] append themselves to bytes with `encode`; [`RecordRef::decode`] reads
//!   one without copying, and [`Record`] is one that owns what it says.
//! - [`BlockHeader`]: `encode` finishes a block whose records are in place, `decode` checks one.
//! - [`Packer`]: `append…` takes records, `seal` puts all that wait, and no more than fits, into a run of blocks.
//! - [`Ring`]: what is written, durable, and reusable. `seal` (through it) → the device's write → `written`; `data_begun` and `data_done` for
//!   records with data; `durable_candidate` → FLUSH → `flushed(candidate)`; `checkpointed(tail)` when the superblock is flushed. From half
//!   full on it logs live records again by itself; `wants_flush` and `wants_checkpoint` say what would move the tail.
//! - [`Scanner`]: at opening, `next_read` → read → `feed` until there is nothing to read, then `finish` → [`Scan`] with [`Records`].
//! - [`select`]: which of these count, after testing what may be torn.

mod again;
mod block;
mod decode;
mod order;
mod pack;
mod record;
#[cfg(test)]
mod record_tests;
mod records;
mod ring;
#[cfg(test)]
mod ring_tests;
mod scan;
#[cfg(test)]
mod scan_tests;
mod select;
#[cfg(test)]
mod select_tests;

pub use block::{BlockError, BlockHeader, HEADER_BYTES, RECORDS_BYTES};
pub use decode::{RecordError, RecordRef, WriteRef};
pub use order::without;
pub use pack::{Packer, RUN_BLOCKS_MAX, Seal, SealedRun};
pub use record::{
    Given, PUT_RECORD_BYTES, Put, RECORD_BYTES_MAX, Record, Settled, Snapshot, Tags, Tombstone,
    WRITE_BLOCKS_MAX, WRITE_RUNS_MAX, Write, WriteFields,
};
pub use records::Records;
pub use ring::{FIRST_SEQUENCE, RUNS_IN_FLIGHT_MAX, Ring};
pub use scan::{Scan, ScanError, Scanner};
pub use select::{Selected, TEST_BLOCKS, select, settled};
