//! Pages of the group table (`docs/store-format.md` §3): what the last checkpoint says of each group.

use super::super::bytes::{get32, is_zero, put32};
use super::super::map::page::HEADER_BYTES;
use super::super::map::{Page, PageError, PageHeader, PageId, PageKind, check_page};
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, CheckpointNumber, Crc, DriveId, Generation,
};
use super::{BITMAP_BLOCKS, GROUPS_OF_PAGE, GroupId, Layout};

const ENTRY_BYTES: usize = 8;
const FREE: usize = 4;
const COPY: usize = 6;
const STATE: usize = 7;

const _: () = assert!(HEADER_BYTES + GROUPS_OF_PAGE as usize * ENTRY_BYTES == BLOCK_BYTES);

/// What the table says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// Of its bitmap page.
    pub crc: Crc,
    /// Its free blocks.
    pub free: u16,
    /// Which of its first two blocks holds the bitmap.
    pub copy: u8,
    /// False: never used, there is no bitmap, and the other fields are zero.
    pub in_use: bool,
}

impl GroupEntry {
    /// Of a group that was never used.
    pub const UNUSED: Self = Self {
        crc: Crc(0),
        free: 0,
        copy: 0,
        in_use: false,
    };
}

/// Why a page, or all of them, are no group table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The page is not the one that the superblock refers to.
    #[error(
        "page {page} of the group table: the checksum is {actual:?} where {expected:?} was written"
    )]
    Checksum {
        /// Which.
        page: u32,
        /// As the superblock has it.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// Its header is another page's.
    #[error("page {page} of the group table: {source}")]
    Page {
        /// Which.
        page: u32,
        /// What is wrong.
        source: PageError,
    },
    /// An entry, or a field of the header, has a value that the format does not allow.
    #[error("page {page} of the group table: {field} is not valid")]
    Field {
        /// Which.
        page: u32,
        /// What.
        field: &'static str,
    },
    /// The table and the superblock are not of one checkpoint.
    #[error("the group table has {actual} free blocks, the superblock says {expected}")]
    FreeBlocks {
        /// As the superblock says.
        expected: u64,
        /// Of all groups.
        actual: u64,
    },
}

/// The groups that a page describes.
pub fn groups_of(layout: &Layout, page: u32) -> std::ops::Range<u32> {
    let first = (page * GROUPS_OF_PAGE).min(layout.groups());
    first..(first + GROUPS_OF_PAGE).min(layout.groups())
}

/// Writes a page with the entries of its groups.
///
/// # Panics
/// If `into` is no page, or there are too many entries.
pub fn encode(
    into: &mut [u8],
    page: u32,
    checkpoint: CheckpointNumber,
    drive: DriveId,
    entries: impl Iterator<Item = GroupEntry>,
) {
    into.fill(0);
    let mut in_use = 0;
    for (n, entry) in entries.enumerate() {
        let at = HEADER_BYTES + n * ENTRY_BYTES;
        put32(into, at, entry.crc.0);
        into[at + FREE..at + FREE + 2].copy_from_slice(&entry.free.to_le_bytes());
        into[at + COPY] = entry.copy;
        into[at + STATE] = entry.in_use.into();
        in_use += u16::from(entry.in_use);
    }
    let header = PageHeader {
        kind: PageKind::GroupTable,
        level: 0,
        entries: in_use,
        index: page.into(),
        handle: CatalogueHandle(0),
        generation: Generation(0),
        checkpoint,
        drive,
    };
    header.encode(page_of(into));
}

/// Reads the entries of a page's groups.
///
/// # Errors
/// [`TableError::Page`], [`TableError::Field`].
///
/// # Panics
/// If `from` is no page.
pub fn decode(
    from: &[u8],
    page: u32,
    drive: DriveId,
    layout: &Layout,
) -> Result<Vec<GroupEntry>, TableError> {
    let bad = |field| TableError::Field { page, field };
    let what = PageId {
        kind: PageKind::GroupTable,
        level: 0,
        index: page.into(),
    };
    let whole: &Page = from.try_into().expect("a page is 4096 bytes");
    let header =
        check_page(whole, &drive, what).map_err(|source| TableError::Page { page, source })?;
    if (header.handle, header.generation) != (CatalogueHandle(0), Generation(0)) {
        return Err(bad("handle or generation"));
    }
    let groups = groups_of(layout, page);
    let (used, rest) = from[HEADER_BYTES..].split_at(groups.len() * ENTRY_BYTES);
    if !is_zero(rest) {
        return Err(bad("an entry of a group that is not there"));
    }
    let entries: Vec<GroupEntry> = used
        .chunks_exact(ENTRY_BYTES)
        .zip(groups)
        .map(|(bytes, group)| decode_entry(bytes, layout.group_blocks(GroupId(group))))
        .collect::<Option<_>>()
        .ok_or_else(|| bad("an entry"))?;
    if entries.iter().filter(|e| e.in_use).count() != usize::from(header.entries) {
        return Err(bad("entries in use"));
    }
    Ok(entries)
}

fn decode_entry(bytes: &[u8], blocks: u32) -> Option<GroupEntry> {
    let entry = GroupEntry {
        crc: Crc(get32(bytes, 0)),
        free: u16::from_le_bytes([bytes[FREE], bytes[FREE + 1]]),
        copy: bytes[COPY],
        in_use: bytes[STATE] == 1,
    };
    let valid = match bytes[STATE] {
        0 => entry == GroupEntry::UNUSED,
        1 => entry.copy < 2 && u32::from(entry.free) <= blocks - BITMAP_BLOCKS,
        _ => false,
    };
    valid.then_some(entry)
}

fn page_of(bytes: &mut [u8]) -> &mut Page {
    bytes.try_into().expect("a page is 4096 bytes")
}
