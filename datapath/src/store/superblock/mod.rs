//! Superblock copies (`docs/store-format.md` §2): what a drive is, and the roots of everything on it.
//!
//! There are four copies. A commit writes the two that the present state is not in, so a crash at any point leaves the old state or the
//! new one. [`Layout`] says where the areas of a drive are, [`Superblock`] is what a copy says, [`find`] and [`commit`] read and write it.
//!
//! - `Layout::for_drive(bytes)`, `.grown(bytes)`; `.table_page(page, copy)`, `.journal_block(sequence)`, `.group_start(group)`,
//!   `.group_blocks(group)`, `.place(block)`, `.usable_blocks()`, `.fixed_blocks()`.
//! - `Superblock::new(layout, id, drive, pool)` of a drive that is formatted; `encode`, `decode`.
//! - `find(device, buffers)` → `Found::{Present, Blank, Corrupt}`; `commit(device, &mut superblock, buffer)`, `heal` before the first one. The caller flushes before a
//!   commit: what was found may only be in the drive's cache, and what the new state refers to must be stable.

mod copy;
mod io;
#[cfg(test)]
mod io_tests;
mod layout;
mod replicas;
#[cfg(test)]
mod tests;

pub use copy::{
    COPY_BYTES, CopyError, DriveState, FORMAT_VERSION, ROOT_BYTES, Superblock, TableEntry,
};
pub use io::{Found, Present, SuperblockError, commit, find, heal, read_copy};
pub use layout::{
    BITMAP_BLOCKS, DRIVE_BYTES_MIN, GROUP_BLOCKS, GROUPS_OF_PAGE, GroupId, JOURNAL_BLOCKS_MAX,
    JOURNAL_BLOCKS_MIN, LAST_GROUP_BLOCKS_MIN, Layout, Shrunk, TABLE_PAGES_MAX, TooSmall,
};
pub use replicas::{OTHERS_MAX, REPLICAS_MAX, ReplicaEntry, ReplicaState};

/// Copies of the superblock, at the start of a drive.
pub const COPIES: usize = 4;
