//! The journal (`docs/store-format.md` §4): blocks and records as bytes, packing them, and finding them again. No I/O is done here.
//!
//! - Records: [`WriteFields`], [`Tombstone`], [`Snapshot`], [`Put`] append themselves to bytes with `encode`; [`RecordRef::decode`] reads
//!   one without copying, and [`Record`] is one that owns what it says.
//! - [`BlockHeader`]: `encode` finishes a block whose records are in place, `decode` checks one.
//! - [`Packer`]: `append…` takes records, `seal` puts all that wait, and no more than fits, into a run of blocks.

mod block;
mod decode;
mod pack;
mod record;
#[cfg(test)]
mod record_tests;

pub use block::{BlockError, BlockHeader, HEADER_BYTES, RECORDS_BYTES};
pub use decode::{RecordError, RecordRef, WriteRef};
pub use pack::{Packer, RUN_BLOCKS_MAX, Seal, SealedRun};
pub use record::{
    PUT_RECORD_BYTES, Put, RECORD_BYTES_MAX, Record, Run, Snapshot, TAG_BYTES, Tombstone,
    WRITE_BLOCKS_MAX, WRITE_RUNS_MAX, Write, WriteFields,
};
