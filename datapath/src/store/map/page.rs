//! The header that every page of metadata but bitmaps has, and what makes a page a valid one (`docs/store-format.md` §5).
//!
//! A page counts if its CRC is that of the entry that led to it, *and* its header says that it is the page that was looked for: same kind,
//! level, index and drive. Then its body is looked at once, so that whoever reads an entry of it later need not doubt the bytes.

use std::rc::Rc;

use super::super::types::{BLOCK_BYTES, CatalogueHandle, CheckpointNumber, DriveId, Generation};
use super::bytes::{array, get8, get16, get32, get64, is_zero, put, put16, put32, put64};
use super::{catalogue, interior, leaf};

/// A block of metadata.
pub type Page = [u8; BLOCK_BYTES];

/// Bytes of a page's header.
pub const HEADER_BYTES: usize = 64;

/// `KPG1`.
const MAGIC: [u8; 4] = *b"KPG1";

const KIND: usize = 4;
const LEVEL: usize = 5;
const ENTRIES: usize = 6;
const INDEX: usize = 8;
const HANDLE: usize = 16;
const GENERATION: usize = 20;
const CHECKPOINT: usize = 24;
const DRIVE: usize = 32;
const ZERO: usize = 48;
const _: () = assert!(ZERO + 16 == HEADER_BYTES);

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageKind {
    /// Group entries (§3).
    GroupTable = 1,
    /// Entries of a map's blocks.
    Leaf = 2,
    /// The same, with tags.
    SealedLeaf = 3,
    /// Child entries.
    Interior = 4,
    /// Records of the catalogue.
    CatalogueLeaf = 5,
}

impl PageKind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::GroupTable,
            2 => Self::Leaf,
            3 => Self::SealedLeaf,
            4 => Self::Interior,
            5 => Self::CatalogueLeaf,
            _ => return None,
        })
    }
}

/// Which page of a tree (or of the group table) is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// What it is.
    pub kind: PageKind,
    /// 0 for leaves.
    pub level: u8,
    /// Place in its level.
    pub index: u64,
}

/// A page's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// What it is.
    pub kind: PageKind,
    /// 0 for leaves.
    pub level: u8,
    /// Present children, or entries that are not absent.
    pub entries: u16,
    /// Place in its level.
    pub index: u64,
    /// Whose map it was written for; 0 for group table and catalogue.
    pub handle: CatalogueHandle,
    /// At which it was written; 0 for group table and catalogue.
    pub generation: Generation,
    /// That wrote it.
    pub checkpoint: CheckpointNumber,
    /// That it is on.
    pub drive: DriveId,
}

/// What headers of new pages get from the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStamp {
    /// The drive.
    pub drive: DriveId,
    /// The checkpoint that is being written.
    pub checkpoint: CheckpointNumber,
}

/// Why a page is not the one that was looked for. Its CRC was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It does not begin as a page.
    #[error("no page begins with {found:02x?}")]
    Magic {
        /// What is there.
        found: [u8; 4],
    },
    /// Of no kind that is known, or of another one.
    #[error("a page of kind {found} where a page of kind {expected:?} belongs")]
    Kind {
        /// What was looked for.
        expected: PageKind,
        /// What is there.
        found: u8,
    },
    /// Of another level.
    #[error("a page of level {found} where one of level {expected} belongs")]
    Level {
        /// What was looked for.
        expected: u8,
        /// What is there.
        found: u8,
    },
    /// Another page of the same level.
    #[error("page {found} of its level where page {expected} belongs")]
    Index {
        /// What was looked for.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Of another drive.
    #[error("a page of drive {found} on drive {expected}")]
    Drive {
        /// This drive.
        expected: DriveId,
        /// What the page says.
        found: DriveId,
    },
    /// Bytes that must be zero are not: a later version wrote it.
    #[error("reserved bytes from {at} on are not zero")]
    Reserved {
        /// Offset in the page.
        at: usize,
    },
    /// It holds another number of entries than its header says.
    #[error("{found} entries where the header says {expected}")]
    Entries {
        /// As the header says.
        expected: u16,
        /// As counted.
        found: u16,
    },
    /// An entry has a kind or fields that no entry has.
    #[error("entry {slot} makes no sense")]
    Entry {
        /// Which.
        slot: u8,
    },
}

impl PageHeader {
    /// Writes it to the beginning of a page.
    pub fn encode(&self, page: &mut Page) {
        page[..HEADER_BYTES].fill(0);
        put(page, 0, &MAGIC);
        page[KIND] = self.kind as u8;
        page[LEVEL] = self.level;
        put16(page, ENTRIES, self.entries);
        put64(page, INDEX, self.index);
        put32(page, HANDLE, self.handle.0);
        put32(page, GENERATION, self.generation.0);
        put64(page, CHECKPOINT, self.checkpoint.0);
        put(page, DRIVE, &self.drive.0);
    }

    /// Reads it, whatever page it is of.
    ///
    /// # Errors
    /// Magic, an unknown kind (said as a group table that was expected), reserved bytes.
    pub fn decode(page: &Page) -> Result<Self, PageError> {
        let found: [u8; 4] = array(page, 0);
        if found != MAGIC {
            return Err(PageError::Magic { found });
        }
        let kind = PageKind::of(get8(page, KIND)).ok_or(PageError::Kind {
            expected: PageKind::GroupTable,
            found: page[KIND],
        })?;
        if !is_zero(&page[ZERO..HEADER_BYTES]) {
            return Err(PageError::Reserved { at: ZERO });
        }
        Ok(Self {
            kind,
            level: get8(page, LEVEL),
            entries: get16(page, ENTRIES),
            index: get64(page, INDEX),
            handle: CatalogueHandle(get32(page, HANDLE)),
            generation: Generation(get32(page, GENERATION)),
            checkpoint: CheckpointNumber(get64(page, CHECKPOINT)),
            drive: DriveId(array(page, DRIVE)),
        })
    }
}

/// Whether a page, whose CRC was right, is the one that was looked for: header and body. The body of a group-table page is not looked at.
///
/// # Errors
/// [`PageError`].
pub fn check_page(page: &Page, drive: &DriveId, what: PageId) -> Result<PageHeader, PageError> {
    let header = PageHeader::decode(page)?;
    #[cfg(planted)]
    let compare = !super::super::planted::is(super::super::planted::Bug::PageHeaderNotCompared);
    #[cfg(not(planted))]
    let compare = true;
    if compare {
        compare_header(&header, drive, what)?;
    }
    let found = match header.kind {
        PageKind::GroupTable => header.entries,
        PageKind::Leaf => leaf::check_body(page, leaf::LeafShape::Plain)?,
        PageKind::SealedLeaf => leaf::check_body(page, leaf::LeafShape::Sealed)?,
        PageKind::Interior => interior::check_body(page)?,
        PageKind::CatalogueLeaf => catalogue::check_body(page, header.index)?,
    };
    if found != header.entries {
        return Err(PageError::Entries {
            expected: header.entries,
            found,
        });
    }
    Ok(header)
}

fn compare_header(header: &PageHeader, drive: &DriveId, what: PageId) -> Result<(), PageError> {
    if header.kind != what.kind {
        return Err(PageError::Kind {
            expected: what.kind,
            found: header.kind as u8,
        });
    }
    if header.level != what.level {
        return Err(PageError::Level {
            expected: what.level,
            found: header.level,
        });
    }
    if header.index != what.index {
        return Err(PageError::Index {
            expected: what.index,
            found: header.index,
        });
    }
    if header.drive != *drive {
        return Err(PageError::Drive {
            expected: *drive,
            found: header.drive,
        });
    }
    Ok(())
}

/// A page of zeroes that can be written to.
pub(super) fn blank() -> Rc<Page> {
    Rc::new([0; BLOCK_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> PageHeader {
        PageHeader {
            kind: PageKind::Interior,
            level: 2,
            entries: 0,
            index: 0x0102_0304_0506_0708,
            handle: CatalogueHandle(0x1112_1314),
            generation: Generation(0x2122_2324),
            checkpoint: CheckpointNumber(0x3132_3334_3536_3738),
            drive: DriveId([9; 16]),
        }
    }

    #[test]
    fn a_header_is_at_its_offsets() {
        let mut page = [0; BLOCK_BYTES];
        header().encode(&mut page);
        let bytes = [
            b'K', b'P', b'G', b'1', 4, 2, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11,
            0x24, 0x23, 0x22, 0x21, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,
        ];
        assert_eq!(page[..32], bytes);
        assert_eq!(page[32..48], [9; 16]);
        assert_eq!(PageHeader::decode(&page), Ok(header()));
    }

    #[test]
    fn another_page_does_not_count() {
        let mut page = [0; BLOCK_BYTES];
        header().encode(&mut page);
        let drive = DriveId([9; 16]);
        let what = PageId {
            kind: PageKind::Interior,
            level: 2,
            index: header().index,
        };
        assert_eq!(check_page(&page, &drive, what), Ok(header()));
        let check = |change: &dyn Fn(&mut Page, &mut PageId)| {
            let (mut page, mut what) = (page, what);
            change(&mut page, &mut what);
            check_page(&page, &drive, what).expect_err("another page")
        };
        assert!(matches!(check(&|p, _| p[0] = 0), PageError::Magic { .. }));
        assert!(matches!(
            check(&|p, _| p[4] = 6),
            PageError::Kind { found: 6, .. }
        ));
        assert!(matches!(
            check(&|_, w| w.kind = PageKind::Leaf),
            PageError::Kind { found: 4, .. }
        ));
        assert!(matches!(
            check(&|_, w| w.level = 1),
            PageError::Level { .. }
        ));
        assert!(matches!(
            check(&|_, w| w.index = 1),
            PageError::Index { .. }
        ));
        assert!(matches!(check(&|p, _| p[32] = 0), PageError::Drive { .. }));
        assert!(matches!(
            check(&|p, _| p[63] = 1),
            PageError::Reserved { at: 48 }
        ));
        assert!(matches!(
            check(&|p, _| p[6] = 1),
            PageError::Entries { found: 0, .. }
        ));
    }
}
