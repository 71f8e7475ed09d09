//! Space of a drive (`docs/store-format.md` §3): groups, their bitmaps, and when a freed block may be used again.
//!
//! [`Space`] is the allocator: in memory, of one reactor, without I/O. The engine reads and writes the pages that it names. A block is
//! *free*, *held* (allocated and not in the map yet, or freed and not reusable yet) or in the *map* (reached from a root, as the next
//! checkpoint writes it); only free ones are handed out.
//!
//! ```text
//! opening    Opening::new(layout, drive, &superblock.table); for (page, place) in .pages() { read; .page(page, bytes)? };
//!            .finish(superblock.free_blocks)? -> Space;  space.hold(block)? for each block of a replayed record
//! loading    space.wants() -> Option<GroupId>  ahead of need; whoever gets NotLoaded(group) needs it now.
//!            space.bitmap_place(group) -> Option<(PhysicalBlock, Crc)>;  read it;  space.loaded(group, Some(bytes))?, None if there is none;
//!            space.unreadable(group) if it cannot be read.
//! writing    space.allocate(blocks) -> Result<Run, NoSpace>; shorter than asked for: ask again for the rest. allocate_reserved likewise.
//!            space.release(block): held, now reusable.
//! checkpoint space.merged(block): held -> map;  space.allocate_page(): free -> map;  space.free_merged(block)?: map -> held, in take_freed().
//!            load all of space.unloaded_needed();  then for group in space.begin_write() { place = space.bitmap_to_write(group, bytes) };
//!            for page in space.table_pages_to_write() { place = space.table_page_to_write(page, checkpoint, bytes) };
//!            superblock.{table, free_blocks, layout} = space.{table_entries(), free_after(), layout()};  FLUSH, commit;
//!            space.committed();  later, when no reader is left: release each of space.take_freed().
//! growth     space.grow(layout.grown(bytes)?);  the superblock gets the new layout with the next checkpoint, never before.
//! ```

mod bits;
mod groups;
mod opening;
mod space;
mod table;
#[cfg(test)]
mod tests;

pub use super::superblock::{BITMAP_BLOCKS, GROUP_BLOCKS, GROUPS_OF_PAGE, GroupId, Layout};
pub use opening::Opening;
pub use space::{Run, Space};
pub use table::{GroupEntry, TableError, decode as decode_table_page, groups_of as groups_of_page};

use super::types::{Crc, PhysicalBlock};

/// Loaded groups that are kept without need, unless told otherwise: 8 KiB each.
pub const LOADED_GROUPS: usize = 256;

/// Why there is no block to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSpace {
    /// There are too few free ones.
    #[error("no space left on the drive")]
    Full,
    /// There are free ones: load this group, and ask again.
    #[error("group {0:?} is not loaded")]
    NotLoaded(GroupId),
}

/// Why a bitmap is not what the group table refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// Other bytes than were written. The group is given up: nothing of it is allocated any more.
    #[error("bitmap of group {group:?}: the checksum is {actual:?} where {expected:?} was written")]
    Checksum {
        /// Of this group.
        group: GroupId,
        /// As the group table has it.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// Bits that must be set are not, or their number is not that of the group table. The group is given up.
    #[error("bitmap of group {group:?}: its bits contradict the group table")]
    Bits {
        /// Of this group.
        group: GroupId,
    },
    /// A block that was freed while the group was not loaded is not in use. The group is loaded.
    #[error(transparent)]
    Free(#[from] FreeError),
}

/// A block that cannot be freed: the map that led to it contradicts the bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// It is not in use.
    #[error("block {block:?} is freed, but not in use")]
    NotInUse {
        /// Which.
        block: PhysicalBlock,
    },
    /// It is in no group.
    #[error("block {block:?} is freed, but holds no data and no page")]
    OutOfRange {
        /// Which.
        block: PhysicalBlock,
    },
}

/// Why a block of a replayed record cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Load this group, and try again.
    #[error("group {0:?} is not loaded")]
    NotLoaded(GroupId),
    /// A root, or another record, refers to it.
    #[error("block {block:?} of a journal record is in use already")]
    InUse {
        /// Which.
        block: PhysicalBlock,
    },
    /// It is in no group.
    #[error("block {block:?} of a journal record holds no data")]
    OutOfRange {
        /// Which.
        block: PhysicalBlock,
    },
    /// The bitmap of its group is damaged.
    #[error("block {block:?} of a journal record is in group {group:?}, whose bitmap is damaged")]
    Lost {
        /// Which.
        block: PhysicalBlock,
        /// Of this group.
        group: GroupId,
    },
}
