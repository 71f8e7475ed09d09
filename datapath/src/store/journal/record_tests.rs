//! Records come back as they were, and nothing that is none is taken for one.

use proptest::prelude::*;

use super::super::group::Run;
use super::super::types::{
    CatalogueHandle, CheckpointNumber, Crc, Generation, LaneBlock, LaneSequence, PhysicalBlock,
    SnapshotId, Stamp,
};
use super::{Given, Put, Record, RecordError, RecordRef, Settled, Snapshot, Tombstone, Write};

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u32>(), 0..u64::MAX - 300).prop_map(|(epoch, seq)| Stamp { epoch, seq })
}

fn lane() -> impl Strategy<Value = (CatalogueHandle, LaneSequence, Generation, Stamp, LaneBlock)> {
    (
        1..u32::MAX,
        any::<u64>(),
        any::<u32>(),
        stamp(),
        0..1u64 << 39,
    )
        .prop_map(|(h, s, g, stamp, b)| {
            (
                CatalogueHandle(h),
                LaneSequence(s),
                Generation(g),
                stamp,
                LaneBlock(b),
            )
        })
}

fn given() -> impl Strategy<Value = Given> {
    prop_oneof![Just(Given::No), Just(Given::Newest), Just(Given::ByStamp)]
}

/// Any write: runs of any lengths up to 256 blocks in all.
pub fn write() -> impl Strategy<Value = Record> {
    let lengths = prop_oneof![
        4 => proptest::collection::vec(1u32..4, 1..4),
        2 => Just(vec![256]),
        1 => proptest::collection::vec(1u32..2, 200..256),
        1 => proptest::collection::vec(1u32..9, 1..29),
    ];
    let runs = lengths.prop_flat_map(|lengths| {
        let firsts = proptest::collection::vec(1..1u64 << 39, lengths.len());
        (Just(lengths), firsts)
    });
    (
        lane(),
        runs,
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
        given(),
        0..5,
    )
        .prop_map(
            |(
                (handle, lane_sequence, generation, stamp, first),
                (lengths, firsts),
                seed,
                sealed,
                again,
                given,
                poison,
            )| {
                let blocks: u32 = lengths.iter().sum();
                let runs = firsts.iter().zip(&lengths).map(|(&first, &blocks)| Run {
                    first: PhysicalBlock(first),
                    blocks,
                });
                Record::Write(Write {
                    handle,
                    lane_sequence,
                    generation,
                    stamp,
                    first,
                    runs: if poison == 0 {
                        Vec::new()
                    } else {
                        runs.collect()
                    },
                    crcs: (0..blocks).map(|i| Crc(seed.wrapping_mul(i + 1))).collect(),
                    tags: sealed.then(|| super::record::Tags {
                        key: seed % 63 + 1,
                        each: (0..blocks).map(|i| [i as u8; 16]).collect(),
                    }),
                    given,
                    again,
                })
            },
        )
}

/// Any record.
pub fn record() -> impl Strategy<Value = Record> {
    let settled = (lane(), any::<bool>()).prop_map(|((handle, _, _, stamp, _), again)| {
        Record::Settled(Settled {
            handle,
            stamp,
            again,
        })
    });
    let tombstone = (lane(), 1..1u64 << 39, any::<bool>(), given()).prop_map(
        |((handle, lane_sequence, generation, stamp, first), blocks, again, given)| {
            Record::Tombstone(Tombstone {
                handle,
                lane_sequence,
                generation,
                stamp,
                first,
                blocks,
                given,
                again,
            })
        },
    );
    let snapshot = (lane(), 1..u32::MAX, any::<[u8; 16]>(), any::<u32>()).prop_map(
        |((handle, lane_sequence, closes, _, _), snapshot, id, live)| {
            Record::Snapshot(Snapshot {
                handle,
                lane_sequence,
                closes,
                snapshot: CatalogueHandle(snapshot),
                id: SnapshotId(id),
                live_generation: Generation(live),
            })
        },
    );
    let put = (1..u32::MAX, any::<(u64, u32, u32)>(), any::<[u8; 32]>()).prop_map(
        |(handle, (checkpoint, next_handle, next_generation), bytes)| {
            Record::Put(Put {
                handle: CatalogueHandle(handle),
                checkpoint: CheckpointNumber(checkpoint),
                next_handle: CatalogueHandle(next_handle),
                next_generation: Generation(next_generation),
                record: std::array::from_fn(|i| bytes[i % 32]),
            })
        },
    );
    prop_oneof![6 => write(), 2 => tombstone, 1 => snapshot, 1 => put, 1 => settled]
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

fn a_write() -> Vec<u8> {
    encoded(&Record::Write(Write {
        handle: CatalogueHandle(0x0102_0304),
        lane_sequence: LaneSequence(5),
        generation: Generation(6),
        stamp: Stamp { epoch: 7, seq: 8 },
        first: LaneBlock(0x99),
        runs: vec![
            Run {
                first: PhysicalBlock(0x000a_0b0c_0d0e),
                blocks: 2,
            },
            Run {
                first: PhysicalBlock(77),
                blocks: 1,
            },
        ],
        crcs: vec![Crc(1), Crc(2), Crc(3)],
        tags: None,
        given: Given::No,
        again: false,
    }))
}

#[test]
fn a_write_lies_as_documented() {
    let bytes = a_write();
    assert_eq!(bytes.len(), 40 + 2 * 8 + 3 * 4);
    assert_eq!(bytes[..8], [1, 0, 68, 0, 4, 3, 2, 1]);
    assert_eq!(
        bytes[8..24],
        [5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]
    );
    assert_eq!(
        bytes[24..40],
        [8, 0, 0, 0, 0, 0, 0, 0, 0x99, 0, 0, 0, 0, 2, 3, 0]
    );
    assert_eq!(bytes[40..48], [0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 2, 0, 0]);
    assert_eq!(bytes[56..60], [1, 0, 0, 0]);
    let RecordRef::Write(write) = RecordRef::decode(&bytes).unwrap() else {
        panic!("a write");
    };
    let last = write.entries().last().unwrap();
    let stamp = Stamp { epoch: 7, seq: 10 };
    assert_eq!(last, (LaneBlock(0x9b), PhysicalBlock(77), stamp, Crc(3)));
}

#[test]
fn what_is_malformed_is_refused() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = a_write();
        change(&mut bytes);
        RecordRef::decode(&bytes).unwrap_err()
    };
    let range = |field| RecordError::Range { field };
    assert_eq!(refused(&|b| b[0] = 9), RecordError::Kind { kind: 9 });
    assert_eq!(
        refused(&|b| b[1] = 8),
        RecordError::Flags { kind: 1, flags: 8 }
    );
    assert_eq!(
        refused(&|b| b[1] = 32),
        RecordError::Flags { kind: 1, flags: 32 }
    );
    assert_eq!(refused(&|b| b[1] = 16), range("runs"));
    assert!(matches!(refused(&|b| b[1] = 1), RecordError::Bytes { .. }));
    assert!(matches!(
        refused(&|b| b.truncate(67)),
        RecordError::Bytes { .. }
    ));
    assert!(matches!(
        refused(&|b| b.truncate(3)),
        RecordError::Bytes { .. }
    ));
    assert!(matches!(refused(&|b| b[2] = 69), RecordError::Bytes { .. }));
    assert_eq!(refused(&|b| b[4..8].fill(0)), range("handle"));
    assert_eq!(refused(&|b| b[37] = 0), range("runs"));
    assert_eq!(refused(&|b| b[38] = 0), range("blocks"));
    assert_eq!(refused(&|b| b[39] = 2), range("blocks"));
    assert_eq!(refused(&|b| b[45] = 0), range("blocks of a run"));
    assert_eq!(refused(&|b| b[48] = 0), range("physical block"));
    assert_eq!(refused(&|b| b[32..37].fill(0xff)), range("first block"));
    assert_eq!(refused(&|b| b[24..32].fill(0xff)), range("seq"));
    assert_eq!(
        refused(&|b| b[45] = 3),
        RecordError::Runs {
            blocks: 3,
            placed: 4
        }
    );
    assert_eq!(refused(&|b| b[47] = 1), RecordError::Reserved { at: 47 });
}

proptest! {
    #[test]
    fn records_come_back(record in record()) {
        let bytes = encoded(&record);
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
    }

    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..7) {
        if bytes.len() >= 4 {
            // Else nearly everything fails at the length.
            let len = bytes.len() as u16;
            bytes[0] = kind;
            bytes[1] &= 31;
            bytes[2..4].copy_from_slice(&len.to_le_bytes());
        }
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(encoded(&record), bytes);
        }
    }

    #[test]
    fn damaged_records_do_not_panic(record in record(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encoded(&record);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(encoded(&record), bytes);
        }
    }
}
