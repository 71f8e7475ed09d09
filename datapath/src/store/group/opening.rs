//! From the group table on a drive to [`Space`].

use super::super::superblock::TableEntry;
use super::super::types::{Crc, DriveId, PhysicalBlock};
use super::groups::Groups;
use super::table::{self, GroupEntry, TableError};
use super::{Layout, Space};

/// A group table that is being read.
pub struct Opening {
    layout: Layout,
    drive: DriveId,
    table: Vec<TableEntry>,
    entries: Vec<GroupEntry>,
    /// Pages that were not read yet.
    missing: Vec<u32>,
}

impl Opening {
    /// With what the superblock says.
    ///
    /// # Panics
    /// If `table` has not one entry for each page.
    pub fn new(layout: Layout, drive: DriveId, table: &[TableEntry]) -> Self {
        assert_eq!(table.len(), layout.table_pages() as usize);
        let in_use = |n: &u32| table[*n as usize].in_use;
        Self {
            layout,
            drive,
            table: table.to_vec(),
            entries: vec![GroupEntry::UNUSED; layout.groups() as usize],
            missing: (0..layout.table_pages()).filter(in_use).collect(),
        }
    }

    /// Pages to read, and where they are.
    pub fn pages(&self) -> Vec<(u32, PhysicalBlock)> {
        let copy = |n: u32| self.table[n as usize].copy;
        let place = |n: &u32| (*n, self.layout.table_page(*n, copy(*n)));
        self.missing.iter().map(place).collect()
    }

    /// Takes a page.
    ///
    /// # Errors
    /// [`TableError`].
    ///
    /// # Panics
    /// If it was taken already, or is not a page long.
    pub fn page(&mut self, page: u32, bytes: &[u8]) -> Result<(), TableError> {
        let at = self.missing.iter().position(|n| *n == page);
        self.missing.swap_remove(at.expect("one of `pages`"));
        let (expected, actual) = (self.table[page as usize].crc, Crc::of(bytes));
        if expected != actual {
            return Err(TableError::Checksum {
                page,
                expected,
                actual,
            });
        }
        let entries = table::decode(bytes, page, self.drive, &self.layout)?;
        let groups = table::groups_of(&self.layout, page);
        self.entries[groups.start as usize..groups.end as usize].copy_from_slice(&entries);
        Ok(())
    }

    /// All pages were taken.
    ///
    /// # Errors
    /// [`TableError::FreeBlocks`].
    ///
    /// # Panics
    /// If a page is missing.
    pub fn finish(self, free_blocks: u64) -> Result<Space, TableError> {
        assert!(self.missing.is_empty());
        let groups = Groups::new(self.layout, &self.entries);
        if groups.free() != free_blocks {
            return Err(TableError::FreeBlocks {
                expected: free_blocks,
                actual: groups.free(),
            });
        }
        Ok(Space::new(groups, self.drive, self.table))
    }
}
