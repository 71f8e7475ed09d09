//! The bytes of a copy, and what is refused.

use keelblock_nvme::digest::digest;
use proptest::prelude::*;

use super::super::VolumeId;
use super::super::bytes::{get32, get64, put32, put64};
use super::super::name::Name;
use super::super::types::{
    CatalogueHandle, CheckpointNumber, Crc, DriveId, Generation, MountGeneration,
};
use super::*;

pub fn sample() -> Superblock {
    let layout = Layout::for_drive(64 << 30).unwrap();
    let drive = Name::new("drive-α").unwrap();
    let pool = Name::new(&"p".repeat(62)).unwrap();
    let mut s = Superblock::new(layout, DriveId([0xd1; 16]), &drive, &pool);
    s.sequence = 41;
    s.mount_generation = MountGeneration(7);
    s.journal_generation = MountGeneration(6);
    s.checkpoint = CheckpointNumber(12);
    s.free_blocks = 1000;
    s.journal_first = 99;
    s.catalogue_root = std::array::from_fn(|i| i as u8 + 1);
    s.catalogue_depth = 3;
    s.next_handle = CatalogueHandle(17);
    s.next_generation = Generation(18);
    s.members = 3;
    s.clean = false;
    s.lost_pages = 0x0506;
    s.pages = 0x0708;
    s.state = DriveState::Evacuating;
    s.replicas_version = 0x11;
    s.replicas = vec![ReplicaEntry::fresh(VolumeId([0xa1; 16]), [0xa2; 16])];
    s.table[16] = TableEntry {
        crc: Crc(0x1234_5678),
        copy: 1,
        in_use: true,
    };
    s
}

fn bytes_of(s: &Superblock) -> Vec<u8> {
    let mut bytes = vec![0xee; COPY_BYTES];
    s.encode(&mut bytes);
    bytes
}

/// Puts the checksums right again, so that what is behind them is looked at.
fn seal(bytes: &mut [u8]) {
    let body = digest(&bytes[4096..]);
    put32(bytes, 12, body);
    let header = digest(&bytes[..4092]);
    put32(bytes, 4092, header);
}

#[test]
fn a_copy_is_read_back() {
    let s = sample();
    assert_eq!(Superblock::decode(&bytes_of(&s)), Ok(s));
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let bytes = bytes_of(&sample());
    assert_eq!(&bytes[..8], b"KEELSTO1");
    assert_eq!(get32(&bytes, 8), 1);
    assert_eq!([16, 24, 32, 40].map(|at| get64(&bytes, at)), [41, 7, 6, 12]);
    assert_eq!(bytes[48..64], [0xd1; 16]);
    // 64 GiB: 512 groups, so 8192 are prepared for in 17 pages; the journal is at its largest.
    let start = (256 + 34 + 32_768_u64).next_multiple_of(256);
    assert_eq!([80, 88].map(|at| get64(&bytes, at)), [16 << 20, start]);
    assert_eq!([96, 100].map(|at| get32(&bytes, at)), [17, 32_768]);
    assert_eq!([104, 112].map(|at| get64(&bytes, at)), [1000, 99]);
    assert_eq!((bytes[120], bytes[175]), (1, 56));
    let words = [176, 180, 184, 188].map(|at| get32(&bytes, at));
    assert_eq!(words, [3, 17, 18, 3]);
    assert_eq!((bytes[192], bytes[193]), (0, 1));
    assert_eq!(&bytes[194..203], b"\x08drive-\xce\xb1");
    assert_eq!((bytes[257], bytes[258], bytes[319]), (62, b'p', b'p'));
    assert_eq!([320, 328].map(|at| get64(&bytes, at)), [0x0506, 0x0708]);
    assert_eq!(get32(&bytes, 4096 + 16 * 8), 0x1234_5678);
    assert_eq!(&bytes[4096 + 16 * 8 + 4..4096 + 17 * 8], &[1, 1, 0, 0]);
    assert!(bytes[4096 + 17 * 8..36_864].iter().all(|b| *b == 0));
    assert_eq!((get64(&bytes, 336), bytes[36_864]), (0x11, 0xa1));
    assert!(bytes[36_864 + 144..].iter().all(|b| *b == 0));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = bytes_of(&sample());
    let samples = (0..4096 + 200).chain((4296..COPY_BYTES).step_by(997));
    for at in samples {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Superblock::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn fields_are_checked_behind_valid_checksums() {
    type Harm = fn(&mut [u8]);
    let cases: [(Harm, CopyError); 29] = [
        (|b| put64(b, 328, 64 << 30), field("pages")),
        (|b| put32(b, 8, 2), CopyError::Version { found: 2 }),
        (|b| b[79] = 1, reserved("behind the drive id")),
        (|b| b[344] = 1, reserved("header")),
        (|b| b[336] = 0, field("replica")),
        (|b| b[4091] = 1, reserved("header")),
        (|b| b[36_864 + 39] = 1, field("replica")),
        (|b| b[COPY_BYTES - 1] = 1, reserved("behind the replicas")),
        (|b| b[4096 + 17 * 8] = 1, reserved("behind the group table")),
        (|b| b[4096 + 6] = 1, reserved("group table entry")),
        (|b| b[4096 + 5] = 2, field("group table entry")),
        (|b| b[4096] = 2, field("group table entry")),
        (|b| b[4096 + 4] = 1, field("group table entry")),
        (|b| b[4096 + 16 * 8 + 4] = 2, field("group table entry")),
        (|b| put64(b, 16, 0), field("sequence")),
        (|b| put64(b, 32, 8), field("journal generation")),
        (|b| put64(b, 80, 1 << 41), areas()),
        (|b| put64(b, 80, 30_000), areas()),
        (|b| put32(b, 96, 0), areas()),
        (|b| put32(b, 96, 4097), areas()),
        (|b| put32(b, 100, 255), areas()),
        (|b| put64(b, 88, 0), field("first block of the groups")),
        (|b| put64(b, 104, 16 << 20), field("free blocks")),
        (|b| put32(b, 180, 0), field("next handle")),
        (|b| b[192] = 2, field("clean")),
        (|b| b[193] = 3, field("state")),
        (|b| b[194] = 0, field("drive name")),
        (|b| b[257] = 63, field("pool name")),
        (|b| b[195] = 0xff, field("drive name")),
    ];
    for (n, (harm, expected)) in cases.into_iter().enumerate() {
        let mut bytes = bytes_of(&sample());
        harm(&mut bytes);
        seal(&mut bytes);
        assert_eq!(Superblock::decode(&bytes), Err(expected), "case {n}");
    }
}

fn reserved(part: &'static str) -> CopyError {
    CopyError::Reserved { part }
}

fn field(field: &'static str) -> CopyError {
    CopyError::Field { field }
}

fn areas() -> CopyError {
    field("blocks, table pages or journal blocks")
}

#[test]
fn what_is_not_ours_is_told_from_what_is() {
    let mut bytes = vec![0; COPY_BYTES];
    assert_eq!(Superblock::decode(&bytes), Err(CopyError::Blank));
    bytes[..8].copy_from_slice(b"NTFS    ");
    let other = Superblock::decode(&bytes).unwrap_err();
    assert!(!other.ours(), "{other}");
    bytes[..8].copy_from_slice(b"KEELDRV1");
    assert_eq!(Superblock::decode(&bytes), Err(CopyError::Linear));
    assert!(CopyError::Linear.ours());
}

#[test]
#[should_panic(expected = "free blocks")]
fn what_would_be_refused_is_not_written() {
    let mut s = sample();
    s.free_blocks = u64::MAX;
    s.encode(&mut vec![0; COPY_BYTES]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_bytes_behind_valid_checksums_never_panic(
        harm in prop::collection::vec((8usize..4096 + 256, any::<u8>()), 1..4)
    ) {
        let mut bytes = bytes_of(&sample());
        for (at, value) in harm {
            bytes[at] = value;
        }
        put32(&mut bytes, 8, 1);
        seal(&mut bytes);
        if let Ok(s) = Superblock::decode(&bytes) {
            prop_assert!(bytes_of(&s) == bytes);
        }
    }
}
