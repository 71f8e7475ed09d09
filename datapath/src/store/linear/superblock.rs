//! One superblock copy: bytes at named offsets (`docs/linear-format.md`).
//!
//! Decoding takes whatever a drive holds and never panics: it answers a [`Table`] that is consistent in itself, or why not.

use super::super::name::{NAME_BYTES_MAX, Name};
use super::table::{Extent, Table, TableError, VolumeRecord};

/// Bytes of one grain, the unit of space.
pub const GRAIN_BYTES: u64 = 1 << 20;
/// Copies of the superblock, all in grain 0.
pub const COPIES: usize = 4;
/// Bytes of one copy.
pub const COPY_BYTES: usize = 256 * 1024;
/// Bytes of the header at the start of a copy.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 64;
/// Most entries that a copy holds.
pub const ENTRIES_MAX: usize = (COPY_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// The format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"KEELDRV1";

const VERSION: usize = 8;
const ENTRIES: usize = 12;
const SEQUENCE: usize = 16;
const GENERATION: usize = 24;
const GRAINS: usize = 32;
const MEMBERS: usize = 40;
const ENTRIES_CRC: usize = 44;
const RESERVED: std::ops::Range<usize> = 48..64;
const DRIVE_ID: usize = 64;
const POOL_ID: usize = 128;
const NAME_FIELD: usize = 64;
const TAIL: std::ops::Range<usize> = POOL_ID + NAME_FIELD..HEADER_CRC;
const HEADER_CRC: usize = 4092;

const KIND_VOLUME: u8 = 1;
const KIND_EXTENT: u8 = 2;
const ENTRY_ID: usize = 8;
const ENTRY_A: usize = 24;
const ENTRY_B: usize = 32;
const ENTRY_C: usize = 40;

const _: () = assert!(COPIES * COPY_BYTES == GRAIN_BYTES as usize);
const _: () = assert!(HEADER_CRC + 4 == HEADER_BYTES);
const _: () = assert!(DRIVE_ID + NAME_FIELD == POOL_ID && NAME_BYTES_MAX < NAME_FIELD);
const _: () = assert!(ENTRIES_MAX == 4032);

/// What one superblock copy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with every commit.
    pub sequence: u64,
    /// Rises with every opening.
    pub generation: u64,
    /// The drive that this is.
    pub drive: Name,
    /// The pool that it belongs to.
    pub pool: Name,
    /// Drives of the pool, as far as this drive was told.
    pub members: u32,
    /// What is where.
    pub table: Table,
}

/// Why bytes are no superblock copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// There is no magic: nothing of ours.
    #[error("no superblock")]
    Blank,
    /// A checksum does not match: torn or rotten.
    #[error("the checksum of its {part} does not match")]
    Checksum {
        /// `header` or `table`.
        part: &'static str,
    },
    /// Written by another version of the format.
    #[error("format version {found}, this version reads {FORMAT_VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A field has a value that the format does not allow.
    #[error("field {field} is not valid")]
    Field {
        /// Which.
        field: &'static str,
    },
    /// Its entries contradict each other.
    #[error(transparent)]
    Table(#[from] TableError),
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_name(bytes: &mut [u8], at: usize, name: &Name) {
    let name = name.as_str().as_bytes();
    bytes[at] = name.len() as u8;
    bytes[at + 1..at + 1 + name.len()].copy_from_slice(name);
}

fn get_name(bytes: &[u8], at: usize, field: &'static str) -> Result<Name, CopyError> {
    let bad = CopyError::Field { field };
    let len = usize::from(bytes[at]);
    let rest = &bytes[at + 1..at + NAME_FIELD];
    let (name, padding) = rest.split_at_checked(len).ok_or(bad.clone())?;
    if !is_zero(padding) {
        return Err(bad);
    }
    let name = std::str::from_utf8(name).map_err(|_| bad.clone())?;
    Name::new(name).map_err(|_| bad)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

impl Superblock {
    /// Writes the copy into `into`.
    ///
    /// # Panics
    /// If `into` is not [`COPY_BYTES`] long or the table has more than [`ENTRIES_MAX`] entries ([`Table`] sees to that).
    pub fn encode(&self, into: &mut [u8]) {
        assert_eq!(into.len(), COPY_BYTES);
        assert!(self.table.entries() <= ENTRIES_MAX);
        into.fill(0);
        let mut at = HEADER_BYTES;
        for (id, record) in self.table.volumes() {
            let entry = &mut into[at..at + ENTRY_BYTES];
            entry[0] = KIND_VOLUME;
            entry[ENTRY_ID..ENTRY_ID + 16].copy_from_slice(&id.0);
            put64(entry, ENTRY_A, record.size_bytes);
            at += ENTRY_BYTES;
        }
        for extent in self.table.extents() {
            let entry = &mut into[at..at + ENTRY_BYTES];
            entry[0] = KIND_EXTENT;
            entry[ENTRY_ID..ENTRY_ID + 16].copy_from_slice(&extent.volume.0);
            put64(entry, ENTRY_A, extent.volume_grain);
            put64(entry, ENTRY_B, extent.drive_grain);
            put64(entry, ENTRY_C, extent.grains);
            at += ENTRY_BYTES;
        }
        let entries_crc = crc32c::crc32c(&into[HEADER_BYTES..at]);
        into[..MAGIC.len()].copy_from_slice(&MAGIC);
        put32(into, VERSION, FORMAT_VERSION);
        put32(into, ENTRIES, self.table.entries() as u32);
        put64(into, SEQUENCE, self.sequence);
        put64(into, GENERATION, self.generation);
        put64(into, GRAINS, self.table.grains());
        put32(into, MEMBERS, self.members);
        put32(into, ENTRIES_CRC, entries_crc);
        put_name(into, DRIVE_ID, &self.drive);
        put_name(into, POOL_ID, &self.pool);
        let header_crc = crc32c::crc32c(&into[..HEADER_CRC]);
        put32(into, HEADER_CRC, header_crc);
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
        if from[..MAGIC.len()] != MAGIC {
            return Err(CopyError::Blank);
        }
        if crc32c::crc32c(&from[..HEADER_CRC]) != get32(from, HEADER_CRC) {
            return Err(CopyError::Checksum { part: "header" });
        }
        let found = get32(from, VERSION);
        if found != FORMAT_VERSION {
            return Err(CopyError::Version { found });
        }
        let entries = get32(from, ENTRIES) as usize;
        if entries > ENTRIES_MAX {
            return Err(CopyError::Field { field: "entries" });
        }
        if !is_zero(&from[RESERVED]) || !is_zero(&from[TAIL]) {
            return Err(CopyError::Field { field: "reserved" });
        }
        let bytes = &from[HEADER_BYTES..HEADER_BYTES + entries * ENTRY_BYTES];
        if crc32c::crc32c(bytes) != get32(from, ENTRIES_CRC) {
            return Err(CopyError::Checksum { part: "table" });
        }
        let mut table = Table::new(get64(from, GRAINS))?;
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            decode_entry(entry, &mut table)?;
        }
        Ok(Self {
            sequence: get64(from, SEQUENCE),
            generation: get64(from, GENERATION),
            drive: get_name(from, DRIVE_ID, "drive id")?,
            pool: get_name(from, POOL_ID, "pool id")?,
            members: get32(from, MEMBERS),
            table,
        })
    }
}

fn decode_entry(entry: &[u8], table: &mut Table) -> Result<(), CopyError> {
    let reserved = CopyError::Field {
        field: "reserved bytes of an entry",
    };
    if !is_zero(&entry[1..ENTRY_ID]) || !is_zero(&entry[ENTRY_C + 8..]) {
        return Err(reserved);
    }
    let id = super::VolumeId(std::array::from_fn(|i| entry[ENTRY_ID + i]));
    match entry[0] {
        KIND_VOLUME => {
            if !is_zero(&entry[ENTRY_B..]) {
                return Err(reserved);
            }
            let record = VolumeRecord {
                size_bytes: get64(entry, ENTRY_A),
            };
            table.insert_volume(id, record)?;
        }
        KIND_EXTENT => table.insert_extent(Extent {
            volume: id,
            volume_grain: get64(entry, ENTRY_A),
            drive_grain: get64(entry, ENTRY_B),
            grains: get64(entry, ENTRY_C),
        })?,
        _ => {
            return Err(CopyError::Field {
                field: "entry kind",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VolumeId;
    use proptest::prelude::*;

    fn sample() -> Superblock {
        let mut table = Table::new(100).unwrap();
        let (a, b) = (VolumeId([1; 16]), VolumeId([2; 16]));
        table
            .insert_volume(
                a,
                VolumeRecord {
                    size_bytes: 5 << 20,
                },
            )
            .unwrap();
        for (volume, volume_grain, drive_grain, grains) in [(a, 0, 1, 5), (b, 7, 50, 50)] {
            table
                .insert_extent(Extent {
                    volume,
                    volume_grain,
                    drive_grain,
                    grains,
                })
                .unwrap();
        }
        Superblock {
            sequence: 41,
            generation: 7,
            drive: Name::new("drive-α").unwrap(),
            pool: Name::new(&"p".repeat(NAME_BYTES_MAX)).unwrap(),
            members: 3,
            table,
        }
    }

    fn bytes_of(s: &Superblock) -> Vec<u8> {
        let mut bytes = vec![0xee; COPY_BYTES];
        s.encode(&mut bytes);
        bytes
    }

    /// Puts the checksums right again, so that what is behind them is looked at.
    fn seal(bytes: &mut [u8]) {
        let n = (get32(bytes, ENTRIES) as usize).min(ENTRIES_MAX);
        let crc = crc32c::crc32c(&bytes[HEADER_BYTES..HEADER_BYTES + n * ENTRY_BYTES]);
        put32(bytes, ENTRIES_CRC, crc);
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
        put32(bytes, HEADER_CRC, crc);
    }

    #[test]
    fn a_copy_is_read_back() {
        let s = sample();
        assert_eq!(Superblock::decode(&bytes_of(&s)), Ok(s));
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let bytes = bytes_of(&sample());
        assert_eq!(&bytes[..8], b"KEELDRV1");
        assert_eq!(get32(&bytes, 8), 1);
        assert_eq!(get32(&bytes, 12), 3);
        assert_eq!(get64(&bytes, 16), 41);
        assert_eq!(get64(&bytes, 24), 7);
        assert_eq!(get64(&bytes, 32), 100);
        assert_eq!(get32(&bytes, 40), 3);
        assert_eq!(&bytes[64..73], b"\x08drive-\xce\xb1");
        assert_eq!(bytes[4096], 1);
        assert_eq!(get64(&bytes, 4096 + 24), 5 << 20);
        let last = 4096 + 2 * 64;
        assert_eq!(bytes[last], 2);
        assert_eq!(&bytes[last + 8..last + 24], &[2; 16]);
        assert_eq!([24, 32, 40].map(|at| get64(&bytes, last + at)), [7, 50, 50]);
    }

    #[test]
    fn every_flipped_bit_of_what_is_in_use_is_noticed() {
        let good = bytes_of(&sample());
        for at in (0..HEADER_BYTES + 3 * ENTRY_BYTES).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn fields_are_checked_behind_valid_checksums() {
        type Harm = fn(&mut [u8]);
        let cases: [(&str, Harm); 9] = [
            ("version", |b| put32(b, VERSION, 2)),
            ("too many entries", |b| put32(b, ENTRIES, 4033)),
            ("reserved", |b| b[50] = 1),
            ("tail", |b| b[4000] = 1),
            ("empty drive id", |b| b[DRIVE_ID] = 0),
            ("long drive id", |b| b[DRIVE_ID] = 64),
            ("id not UTF-8", |b| b[DRIVE_ID + 1] = 0xff),
            ("entry kind", |b| b[HEADER_BYTES] = 9),
            ("extent beyond the drive", |b| {
                put64(b, HEADER_BYTES + 2 * ENTRY_BYTES + ENTRY_C, 51)
            }),
        ];
        for (what, harm) in cases {
            let mut bytes = bytes_of(&sample());
            harm(&mut bytes);
            seal(&mut bytes);
            assert!(Superblock::decode(&bytes).is_err(), "{what}");
        }
    }

    #[test]
    fn nothing_of_ours_is_blank() {
        assert_eq!(
            Superblock::decode(&vec![0; COPY_BYTES]),
            Err(CopyError::Blank)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_behind_valid_checksums_never_panic(
            harm in prop::collection::vec((0usize..HEADER_BYTES + 256, any::<u8>()), 1..20)
        ) {
            let mut bytes = bytes_of(&sample());
            for (at, value) in harm {
                bytes[at] = value;
            }
            bytes[..8].copy_from_slice(&MAGIC);
            seal(&mut bytes);
            if let Ok(s) = Superblock::decode(&bytes) {
                s.table.check();
                prop_assert_eq!(bytes_of(&s).len(), COPY_BYTES);
            }
        }
    }
}
