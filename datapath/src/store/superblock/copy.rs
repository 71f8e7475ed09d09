//! One superblock copy: bytes at named offsets (`docs/store-format.md` §2).
//!
//! Decoding takes whatever a drive holds and never panics: it answers a [`Superblock`] that is consistent in itself, or why not.

use super::super::bytes::{get32, get64, is_zero, put32, put64};
use super::super::name::{NAME_BYTES_MAX, Name};
use super::super::types::{
    CatalogueHandle, CheckpointNumber, Crc, DriveId, Generation, MountGeneration,
};
use super::layout::{Layout, TABLE_PAGES_MAX};
use super::replicas::{self, ReplicaEntry, ReplicaState};

/// Bytes of one copy.
pub const COPY_BYTES: usize = 256 * 1024;
/// Bytes of the catalogue's root: a child entry (§6).
pub const ROOT_BYTES: usize = 56;
/// The format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"KEELSTO1";
/// What the linear map's superblocks begin with.
const MAGIC_LINEAR: [u8; 8] = *b"KEELDRV1";

const VERSION: usize = 8;
const BODY_CRC: usize = 12;
const SEQUENCE: usize = 16;
const MOUNT_GENERATION: usize = 24;
const JOURNAL_GENERATION: usize = 32;
const CHECKPOINT: usize = 40;
const DRIVE_ID: usize = 48;
const ZERO: std::ops::Range<usize> = 64..BLOCKS;
const BLOCKS: usize = 80;
const GROUPS_START: usize = 88;
const TABLE_PAGES: usize = 96;
const JOURNAL_BLOCKS: usize = 100;
const FREE_BLOCKS: usize = 104;
const JOURNAL_FIRST: usize = 112;
const CATALOGUE_ROOT: usize = 120;
const CATALOGUE_DEPTH: usize = CATALOGUE_ROOT + ROOT_BYTES;
const NEXT_HANDLE: usize = 180;
const NEXT_GENERATION: usize = 184;
const MEMBERS: usize = 188;
const CLEAN: usize = 192;
const STATE: usize = 193;
const DRIVE_NAME: usize = 194;
const POOL_NAME: usize = DRIVE_NAME + NAME_FIELD;
const NAME_FIELD: usize = 1 + NAME_BYTES_MAX;
const LOST_PAGES: usize = POOL_NAME + NAME_FIELD;
const PAGES: usize = LOST_PAGES + 8;
const REPLICAS_VERSION: usize = PAGES + 8;
const TAIL: std::ops::Range<usize> = REPLICAS_VERSION + 8..HEADER_CRC;
const HEADER_CRC: usize = 4092;
const HEADER_BYTES: usize = 4096;
const TABLE: usize = HEADER_BYTES;
/// The table of replicas.
const REPLICAS: usize = TABLE + TABLE_PAGES_MAX as usize * TABLE_ENTRY_BYTES;

const TABLE_ENTRY_BYTES: usize = 8;
const ENTRY_COPY: usize = 4;
const ENTRY_IN_USE: usize = 5;

const _: () = assert!(CATALOGUE_DEPTH == 176);
const _: () = assert!(LOST_PAGES == 320);
const _: () = assert!(HEADER_CRC + 4 == HEADER_BYTES);
const _: () = assert!(REPLICAS == 36_864 && REPLICAS + replicas::TABLE_BYTES == COPY_BYTES);

/// What the superblock says of a page of the group table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Of the page; 0 if not in use.
    pub crc: Crc,
    /// Which copy holds it, 0 or 1; 0 if not in use.
    pub copy: u8,
    /// False: all groups of the page were never used.
    pub in_use: bool,
}

impl TableEntry {
    /// Of a page that was never written.
    pub const UNUSED: Self = Self {
        crc: Crc(0),
        copy: 0,
        in_use: false,
    };
}

/// What is to become of a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DriveState {
    /// It takes new lanes.
    #[default]
    InUse = 0,
    /// Its lanes are being moved to others.
    Evacuating = 1,
    /// It holds no lanes, and gets none.
    Evacuated = 2,
}

/// What one superblock copy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with every commit; 0 was never written.
    pub sequence: u64,
    /// Rises with every opening.
    pub mount_generation: MountGeneration,
    /// The mount whose journal blocks replay applies.
    pub journal_generation: MountGeneration,
    /// Rises with every checkpoint.
    pub checkpoint: CheckpointNumber,
    /// Random at format.
    pub drive_id: DriveId,
    /// Size and areas of the drive.
    pub layout: Layout,
    /// Free blocks of all groups, as of the checkpoint.
    pub free_blocks: u64,
    /// First sequence of the journal that replay needs.
    pub journal_first: u64,
    /// The catalogue's root, a child entry's bytes.
    pub catalogue_root: [u8; ROOT_BYTES],
    /// Interior levels above the catalogue's leaves.
    pub catalogue_depth: u32,
    /// Next handle that was never used.
    pub next_handle: CatalogueHandle,
    /// Next generation that was never used.
    pub next_generation: Generation,
    /// Members of the pool, as far as this drive was told.
    pub members: u32,
    /// The journal holds nothing that replay needs, and nothing was written since.
    pub clean: bool,
    /// What is to become of it.
    pub state: DriveState,
    /// As it was named at format.
    pub drive: Name,
    /// The pool that it is of.
    pub pool: Name,
    /// Pages of maps that were damaged and given up: if there are any, blocks may be marked that nothing leads to.
    pub lost_pages: u64,
    /// Pages of maps and catalogue; of the marked blocks, the rest is data.
    pub pages: u64,
    /// One entry for each page of the group table.
    pub table: Vec<TableEntry>,
    /// Rises with every change of `replicas`; 0: there never was one.
    pub replicas_version: u64,
    /// Replicas on the drive, in the order of their volumes.
    pub replicas: Vec<ReplicaEntry>,
}

/// Why bytes are no superblock copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Zeroes where the magic should be.
    #[error("no superblock")]
    Blank,
    /// Something else than a store is there.
    #[error("no superblock of ours: it begins with {magic:02x?}")]
    NotOurs {
        /// What it begins with.
        magic: [u8; 8],
    },
    /// A drive of the linear map, which came before the store.
    #[error("a drive of an earlier version (linear map)")]
    Linear,
    /// A checksum does not match: torn or rotten.
    #[error("the checksum of its {part} does not match")]
    Checksum {
        /// `header` or `body`.
        part: &'static str,
    },
    /// Written by another version of the format.
    #[error("format version {found}, this version reads {FORMAT_VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Bytes are in use that this version does not know.
    #[error("its reserved bytes ({part}) are not zero: a later version wrote it")]
    Reserved {
        /// Which.
        part: &'static str,
    },
    /// A field has a value that the format does not allow, alone or beside the others.
    #[error("field {field} is not valid")]
    Field {
        /// Which.
        field: &'static str,
    },
}

impl CopyError {
    /// Whether the copy is, or was, something of ours.
    pub fn ours(&self) -> bool {
        !matches!(self, Self::Blank | Self::NotOurs { .. })
    }
}

fn field(field: &'static str) -> CopyError {
    CopyError::Field { field }
}

impl Superblock {
    /// Of a drive that is formatted now: empty, clean, never committed.
    pub fn new(layout: Layout, drive_id: DriveId, drive: &Name, pool: &Name) -> Self {
        Self {
            sequence: 0,
            mount_generation: MountGeneration(0),
            journal_generation: MountGeneration(0),
            checkpoint: CheckpointNumber(0),
            drive_id,
            layout,
            free_blocks: layout.usable_blocks(),
            journal_first: 0,
            catalogue_root: [0; ROOT_BYTES],
            catalogue_depth: 0,
            next_handle: CatalogueHandle(1),
            next_generation: Generation(1),
            members: 1,
            clean: true,
            state: DriveState::InUse,
            drive: drive.clone(),
            pool: pool.clone(),
            lost_pages: 0,
            pages: 0,
            table: vec![TableEntry::UNUSED; layout.table_pages() as usize],
            replicas_version: 0,
            replicas: Vec::new(),
        }
    }

    /// Copies of the superblock are gone that may have said more: none of the replicas is a replica any more.
    pub fn lose_promises(&mut self) {
        self.replicas_version += 1;
        for replica in &mut self.replicas {
            replica.state = ReplicaState::Lost;
        }
    }

    /// From here on, commits have numbers that none before had: one that was not finished may be on the drive under the next, torn, and be made whole by
    /// what another of the same number leaves of itself there when it is torn, too. The pair that is written next stays the same.
    pub fn leave_unfinished_behind(&mut self) {
        self.sequence += 2;
    }

    /// The copies that a sequence lies in.
    pub fn pair(sequence: u64) -> [usize; 2] {
        let first = 2 * (sequence % 2) as usize;
        [first, first + 1]
    }

    /// Writes the copy into `into`.
    ///
    /// # Panics
    /// If `into` is not [`COPY_BYTES`] long, or the fields contradict each other.
    pub fn encode(&self, into: &mut [u8]) {
        assert_eq!(into.len(), COPY_BYTES);
        // What decoding would refuse must not replace what it would take.
        assert_eq!(self.consistent(), Ok(()));
        into.fill(0);
        for (page, entry) in self.table.iter().enumerate() {
            let at = TABLE + page * TABLE_ENTRY_BYTES;
            put32(into, at, entry.crc.0);
            into[at + ENTRY_COPY] = entry.copy;
            into[at + ENTRY_IN_USE] = entry.in_use.into();
        }
        into[..MAGIC.len()].copy_from_slice(&MAGIC);
        put32(into, VERSION, FORMAT_VERSION);
        put64(into, SEQUENCE, self.sequence);
        put64(into, MOUNT_GENERATION, self.mount_generation.0);
        put64(into, JOURNAL_GENERATION, self.journal_generation.0);
        put64(into, CHECKPOINT, self.checkpoint.0);
        into[DRIVE_ID..DRIVE_ID + 16].copy_from_slice(&self.drive_id.0);
        put64(into, BLOCKS, self.layout.blocks());
        put64(into, GROUPS_START, self.layout.groups_start().0);
        put32(into, TABLE_PAGES, self.layout.table_pages());
        put32(into, JOURNAL_BLOCKS, self.layout.journal_blocks());
        put64(into, FREE_BLOCKS, self.free_blocks);
        put64(into, JOURNAL_FIRST, self.journal_first);
        into[CATALOGUE_ROOT..CATALOGUE_ROOT + ROOT_BYTES].copy_from_slice(&self.catalogue_root);
        put32(into, CATALOGUE_DEPTH, self.catalogue_depth);
        put32(into, NEXT_HANDLE, self.next_handle.0);
        put32(into, NEXT_GENERATION, self.next_generation.0);
        put32(into, MEMBERS, self.members);
        into[CLEAN] = self.clean.into();
        into[STATE] = self.state as u8;
        put_name(into, DRIVE_NAME, &self.drive);
        put_name(into, POOL_NAME, &self.pool);
        put64(into, LOST_PAGES, self.lost_pages);
        put64(into, PAGES, self.pages);
        put64(into, REPLICAS_VERSION, self.replicas_version);
        replicas::encode(&self.replicas, &mut into[REPLICAS..]);
        let body = Crc::of(&into[HEADER_BYTES..]);
        put32(into, BODY_CRC, body.0);
        let header = Crc::of(&into[..HEADER_CRC]);
        put32(into, HEADER_CRC, header.0);
    }

    /// Reads a copy.
    ///
    /// # Errors
    /// [`CopyError`]: what is wrong with it.
    ///
    /// # Panics
    /// If `from` is not [`COPY_BYTES`] long.
    pub fn decode(from: &[u8]) -> Result<Self, CopyError> {
        assert_eq!(from.len(), COPY_BYTES);
        envelope(from)?;
        let layout = Layout::of(
            get64(from, BLOCKS),
            get32(from, TABLE_PAGES),
            get32(from, JOURNAL_BLOCKS),
        )
        .ok_or_else(|| field("blocks, table pages or journal blocks"))?;
        if get64(from, GROUPS_START) != layout.groups_start().0 {
            return Err(field("first block of the groups"));
        }
        let this = Self {
            sequence: get64(from, SEQUENCE),
            mount_generation: MountGeneration(get64(from, MOUNT_GENERATION)),
            journal_generation: MountGeneration(get64(from, JOURNAL_GENERATION)),
            checkpoint: CheckpointNumber(get64(from, CHECKPOINT)),
            drive_id: DriveId(std::array::from_fn(|i| from[DRIVE_ID + i])),
            layout,
            free_blocks: get64(from, FREE_BLOCKS),
            journal_first: get64(from, JOURNAL_FIRST),
            catalogue_root: std::array::from_fn(|i| from[CATALOGUE_ROOT + i]),
            catalogue_depth: get32(from, CATALOGUE_DEPTH),
            next_handle: CatalogueHandle(get32(from, NEXT_HANDLE)),
            next_generation: Generation(get32(from, NEXT_GENERATION)),
            members: get32(from, MEMBERS),
            clean: boolean(from[CLEAN]).ok_or_else(|| field("clean"))?,
            state: match from[STATE] {
                0 => DriveState::InUse,
                1 => DriveState::Evacuating,
                2 => DriveState::Evacuated,
                _ => return Err(field("state")),
            },
            drive: get_name(from, DRIVE_NAME).ok_or_else(|| field("drive name"))?,
            pool: get_name(from, POOL_NAME).ok_or_else(|| field("pool name"))?,
            lost_pages: get64(from, LOST_PAGES),
            pages: get64(from, PAGES),
            table: get_table(&from[TABLE..REPLICAS], layout.table_pages() as usize)?,
            replicas_version: get64(from, REPLICAS_VERSION),
            replicas: replicas::decode(&from[REPLICAS..])?,
        };
        this.consistent()?;
        Ok(this)
    }

    /// What the fields must be beside each other.
    fn consistent(&self) -> Result<(), CopyError> {
        if self.sequence == 0 {
            return Err(field("sequence"));
        }
        if self.journal_generation > self.mount_generation {
            return Err(field("journal generation"));
        }
        let usable = self.layout.usable_blocks();
        if self.free_blocks > usable {
            return Err(field("free blocks"));
        }
        if self.pages > usable - self.free_blocks {
            return Err(field("pages"));
        }
        if self.next_handle.0 == 0 {
            return Err(field("next handle"));
        }
        if self.next_generation.0 == 0 {
            return Err(field("next generation"));
        }
        if self.table.len() != self.layout.table_pages() as usize {
            return Err(field("group table"));
        }
        let valid = |e: &TableEntry| *e == TableEntry::UNUSED || e.in_use && e.copy < 2;
        if !self.table.iter().all(valid) {
            return Err(field("group table entry"));
        }
        let none = self.replicas_version == 0 && !self.replicas.is_empty();
        if none || !replicas::are_valid(&self.replicas) {
            return Err(field("replica"));
        }
        Ok(())
    }
}

/// Everything around the fields.
fn envelope(from: &[u8]) -> Result<(), CopyError> {
    let magic: [u8; 8] = std::array::from_fn(|i| from[i]);
    match magic {
        MAGIC => {}
        MAGIC_LINEAR => return Err(CopyError::Linear),
        [0, 0, 0, 0, 0, 0, 0, 0] => return Err(CopyError::Blank),
        _ => return Err(CopyError::NotOurs { magic }),
    }
    if Crc::of(&from[..HEADER_CRC]).0 != get32(from, HEADER_CRC) {
        return Err(CopyError::Checksum { part: "header" });
    }
    let found = get32(from, VERSION);
    if found != FORMAT_VERSION {
        return Err(CopyError::Version { found });
    }
    if Crc::of(&from[HEADER_BYTES..]).0 != get32(from, BODY_CRC) {
        return Err(CopyError::Checksum { part: "body" });
    }
    let reserved = |part| Err(CopyError::Reserved { part });
    if !is_zero(&from[ZERO]) {
        return reserved("behind the drive id");
    }
    if !is_zero(&from[TAIL]) {
        return reserved("header");
    }
    Ok(())
}

fn get_table(from: &[u8], pages: usize) -> Result<Vec<TableEntry>, CopyError> {
    let (used, rest) = from.split_at(pages * TABLE_ENTRY_BYTES);
    if !is_zero(rest) {
        return Err(CopyError::Reserved {
            part: "behind the group table",
        });
    }
    let decode = |bytes: &[u8]| {
        if !is_zero(&bytes[ENTRY_IN_USE + 1..]) {
            return Err(CopyError::Reserved {
                part: "group table entry",
            });
        }
        let in_use = boolean(bytes[ENTRY_IN_USE]).ok_or_else(|| field("group table entry"))?;
        Ok(TableEntry {
            crc: Crc(get32(bytes, 0)),
            copy: bytes[ENTRY_COPY],
            in_use,
        })
    };
    used.chunks_exact(TABLE_ENTRY_BYTES).map(decode).collect()
}

fn boolean(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put_name(bytes: &mut [u8], at: usize, name: &Name) {
    let name = name.as_str().as_bytes();
    bytes[at] = name.len() as u8;
    bytes[at + 1..at + 1 + name.len()].copy_from_slice(name);
}

fn get_name(bytes: &[u8], at: usize) -> Option<Name> {
    let rest = &bytes[at + 1..at + NAME_FIELD];
    let (name, padding) = rest.split_at_checked(usize::from(bytes[at]))?;
    if !is_zero(padding) {
        return None;
    }
    Name::new(std::str::from_utf8(name).ok()?).ok()
}
