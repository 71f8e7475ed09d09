//! Where the areas of a drive are (`docs/store-format.md` §1): all of it follows from three numbers of the superblock.

use super::super::types::{BLOCK_BYTES, BLOCKS_MAX, PhysicalBlock};
use super::{COPIES, COPY_BYTES};

/// The smallest drive.
pub const DRIVE_BYTES_MIN: u64 = 16 << 20;
/// Blocks of an allocation group.
pub const GROUP_BLOCKS: u32 = 32_768;
/// Fewest blocks of a drive's last group: 1 MiB. What is left beyond is not used.
pub const LAST_GROUP_BLOCKS_MIN: u32 = 256;
/// Blocks at the start of each group that hold its bitmap, one at a time.
pub const BITMAP_BLOCKS: u32 = 2;
/// Groups that a page of the group table describes.
pub const GROUPS_OF_PAGE: u32 = 504;
/// Most pages of one copy of the group table: their entries fill 32 KiB of the superblock.
pub const TABLE_PAGES_MAX: u32 = 4096;
/// Fewest blocks of a journal.
pub const JOURNAL_BLOCKS_MIN: u32 = 256;
/// Most blocks of a journal.
pub const JOURNAL_BLOCKS_MAX: u32 = 32_768;

/// Blocks that the superblock copies take.
const SUPERBLOCKS: u64 = (COPIES * COPY_BYTES / BLOCK_BYTES) as u64;
/// The groups begin at a multiple of 1 MiB.
const GROUPS_ALIGN: u64 = (1 << 20) / BLOCK_BYTES as u64;
/// A drive may become this many times larger in place.
const GROWTH: u64 = 16;
/// The part of a drive that its journal takes, as a divisor.
const JOURNAL_PART: u64 = 128;

const _: () = assert!(SUPERBLOCKS * BLOCK_BYTES as u64 == 1 << 20);
const _: () = assert!(GROUP_BLOCKS as usize == BLOCK_BYTES * 8);
const _: () = assert!(GROUPS_OF_PAGE as usize * 8 + 64 == BLOCK_BYTES);

/// An allocation group, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// The areas of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    blocks: u64,
    table_pages: u32,
    journal_blocks: u32,
}

/// A drive that is too small for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are too few for a drive: {DRIVE_BYTES_MIN} are the least")]
pub struct TooSmall {
    /// Its size.
    pub bytes: u64,
}

/// A drive that has fewer blocks than it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the drive has {found} blocks where it had {expected}")]
pub struct Shrunk {
    /// There.
    pub found: u64,
    /// Before.
    pub expected: u64,
}

impl Layout {
    /// For a drive that is formatted now.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn for_drive(bytes: u64) -> Result<Self, TooSmall> {
        if bytes < DRIVE_BYTES_MIN {
            return Err(TooSmall { bytes });
        }
        let blocks = blocks_of(bytes);
        let groups = blocks.div_ceil(u64::from(GROUP_BLOCKS));
        let table_pages = (GROWTH * groups).div_ceil(u64::from(GROUPS_OF_PAGE));
        let journal =
            (blocks / JOURNAL_PART).clamp(JOURNAL_BLOCKS_MIN.into(), JOURNAL_BLOCKS_MAX.into());
        let layout = Self {
            blocks,
            table_pages: table_pages.clamp(1, TABLE_PAGES_MAX.into()) as u32,
            journal_blocks: journal as u32,
        };
        assert!(layout.groups() > 0);
        Ok(layout)
    }

    /// As a superblock says; `None` if no drive can be like that.
    pub fn of(blocks: u64, table_pages: u32, journal_blocks: u32) -> Option<Self> {
        let sizes = (1..=TABLE_PAGES_MAX).contains(&table_pages)
            && (JOURNAL_BLOCKS_MIN..=JOURNAL_BLOCKS_MAX).contains(&journal_blocks)
            && blocks <= BLOCKS_MAX;
        let layout = Self {
            blocks,
            table_pages,
            journal_blocks,
        };
        (sizes && layout.groups() > 0).then_some(layout)
    }

    /// For the same drive, which has become larger: what was sized at format stays.
    ///
    /// # Errors
    /// [`Shrunk`].
    pub fn grown(self, bytes: u64) -> Result<Self, Shrunk> {
        let blocks = blocks_of(bytes);
        if blocks < self.blocks {
            return Err(Shrunk {
                found: blocks,
                expected: self.blocks,
            });
        }
        Ok(Self { blocks, ..self })
    }

    /// Blocks of the drive.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Pages of one copy of the group table.
    pub fn table_pages(&self) -> u32 {
        self.table_pages
    }

    /// Blocks of the journal.
    pub fn journal_blocks(&self) -> u32 {
        self.journal_blocks
    }

    /// Where a copy (0 or 1) of a page of the group table is.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn table_page(&self, page: u32, copy: u8) -> PhysicalBlock {
        assert!(page < self.table_pages);
        assert!(copy < 2);
        let before = u64::from(copy) * u64::from(self.table_pages);
        PhysicalBlock(SUPERBLOCKS + before + u64::from(page))
    }

    /// First block of the journal.
    pub fn journal_start(&self) -> PhysicalBlock {
        PhysicalBlock(SUPERBLOCKS + 2 * u64::from(self.table_pages))
    }

    /// The block of the journal that a sequence lies in.
    pub fn journal_block(&self, sequence: u64) -> PhysicalBlock {
        PhysicalBlock(self.journal_start().0 + sequence % u64::from(self.journal_blocks))
    }

    /// First block of the groups.
    pub fn groups_start(&self) -> PhysicalBlock {
        let end = self.journal_start().0 + u64::from(self.journal_blocks);
        PhysicalBlock(end.next_multiple_of(GROUPS_ALIGN))
    }

    /// How many groups there are.
    pub fn groups(&self) -> u32 {
        let blocks = self.blocks.saturating_sub(self.groups_start().0);
        let short = blocks % u64::from(GROUP_BLOCKS) >= u64::from(LAST_GROUP_BLOCKS_MIN);
        let groups = blocks / u64::from(GROUP_BLOCKS) + u64::from(short);
        groups.min(u64::from(self.table_pages) * u64::from(GROUPS_OF_PAGE)) as u32
    }

    /// First block of a group.
    pub fn group_start(&self, group: GroupId) -> PhysicalBlock {
        PhysicalBlock(self.groups_start().0 + u64::from(group.0) * u64::from(GROUP_BLOCKS))
    }

    /// Blocks of a group, the two of its bitmap among them.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn group_blocks(&self, group: GroupId) -> u32 {
        assert!(group.0 < self.groups());
        let rest = self.blocks - self.group_start(group).0;
        rest.min(GROUP_BLOCKS.into()) as u32
    }

    /// The group of a block, and its place in it; `None` if it is in no group, or holds a bitmap.
    pub fn place(&self, block: PhysicalBlock) -> Option<(GroupId, u32)> {
        if block.0 >= self.blocks {
            return None;
        }
        let at = block.0.checked_sub(self.groups_start().0)?;
        let group = at / u64::from(GROUP_BLOCKS);
        let bit = (at % u64::from(GROUP_BLOCKS)) as u32;
        let inside = group < u64::from(self.groups()) && bit >= BITMAP_BLOCKS;
        inside.then_some((GroupId(group as u32), bit))
    }

    /// Blocks that can hold pages or data.
    pub fn usable_blocks(&self) -> u64 {
        let Some(last) = self.groups().checked_sub(1) else {
            return 0;
        };
        let before = u64::from(last) * u64::from(GROUP_BLOCKS - BITMAP_BLOCKS);
        before + u64::from(self.group_blocks(GroupId(last)) - BITMAP_BLOCKS)
    }

    /// Blocks that never hold pages or data: fixed areas, two of each group, and a rest behind the last group.
    pub fn fixed_blocks(&self) -> u64 {
        self.blocks - self.usable_blocks()
    }
}

fn blocks_of(bytes: u64) -> u64 {
    (bytes / BLOCK_BYTES as u64).min(BLOCKS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_drive_has_a_group() {
        let layout = Layout::for_drive(16 << 20).unwrap();
        assert_eq!((layout.table_pages(), layout.journal_blocks()), (1, 256));
        assert_eq!(layout.table_page(0, 1), PhysicalBlock(257));
        assert_eq!(layout.journal_start(), PhysicalBlock(258));
        assert_eq!(layout.groups_start(), PhysicalBlock(768));
        assert_eq!(layout.groups(), 1);
        assert_eq!(layout.group_blocks(GroupId(0)), 4096 - 768);
        assert_eq!(layout.usable_blocks(), 4096 - 770);
        let bytes = (16 << 20) - 1;
        assert_eq!(Layout::for_drive(bytes), Err(TooSmall { bytes }));
    }

    #[test]
    fn large_drives_have_large_areas() {
        let layout = Layout::for_drive(10 << 40).unwrap();
        assert_eq!(layout.journal_blocks(), 32_768);
        assert_eq!(layout.table_pages(), (16 * 81_920_u32).div_ceil(504));
        // The areas before them take the room of one.
        assert_eq!(layout.groups(), 81_919);
        assert_eq!(Layout::for_drive(1 << 60).unwrap().groups(), 4096 * 504);
    }

    #[test]
    fn a_journal_is_a_ring() {
        let layout = Layout::for_drive(16 << 20).unwrap();
        assert_eq!(layout.journal_block(255), PhysicalBlock(513));
        assert_eq!(layout.journal_block(256), layout.journal_start());
    }

    #[test]
    fn a_drive_does_not_shrink() {
        let layout = Layout::for_drive(1 << 30).unwrap();
        assert!(layout.grown((1 << 30) - 1).is_err());
        let grown = layout.grown(3 << 30).unwrap();
        assert_eq!(grown.groups_start(), layout.groups_start());
        assert_eq!(grown.blocks(), 3 * layout.blocks());
    }

    proptest! {
        #[test]
        fn areas_follow_one_another(bytes in prop_oneof![(16_u64 << 20)..(1 << 33), (16_u64 << 20)..(1 << 52)]) {
            let layout = Layout::for_drive(bytes).unwrap();
            prop_assert_eq!(Layout::of(layout.blocks(), layout.table_pages(), layout.journal_blocks()), Some(layout));
            prop_assert!(layout.groups_start().0.is_multiple_of(256));
            prop_assert!(layout.groups_start().0 > layout.journal_block(u64::from(layout.journal_blocks()) - 1).0);
            let last = GroupId(layout.groups() - 1);
            let blocks = layout.group_blocks(last);
            prop_assert!(blocks >= LAST_GROUP_BLOCKS_MIN);
            let end = layout.group_start(last).0 + u64::from(blocks);
            prop_assert!(end <= layout.blocks());
            prop_assert_eq!(layout.place(PhysicalBlock(end - 1)), Some((last, blocks - 1)));
            prop_assert_eq!(layout.place(PhysicalBlock(layout.group_start(last).0 + 1)), None);
            prop_assert_eq!(layout.place(PhysicalBlock(layout.blocks())), None);
            prop_assert_eq!(layout.place(PhysicalBlock(layout.groups_start().0 - 1)), None);
            if u64::from(layout.groups()) < u64::from(layout.table_pages()) * 504 {
                prop_assert!(layout.blocks() - end < 256);
            }
        }
    }
}
