//! Torn writes vanish whole, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::super::group::Run;
use super::super::types::{
    CatalogueHandle, Crc, Generation, LaneBlock, LaneSequence, PhysicalBlock, SnapshotId, Stamp,
};
use super::{Given, Record, RecordRef, Records, Snapshot, Tombstone, Write, select};

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(out) => out,
        Poll::Pending => panic!("nothing waits here"),
    }
}

fn write(handle: u32, sequence: u64, generation: u32, first: u64, places: &[u64]) -> Write {
    let run = |&first: &u64| Run {
        first: PhysicalBlock(first),
        blocks: 1,
    };
    Write {
        handle: CatalogueHandle(handle),
        lane_sequence: LaneSequence(sequence),
        generation: Generation(generation),
        stamp: Stamp { epoch: 1, seq: 9 },
        first: LaneBlock(first),
        runs: places.iter().map(run).collect(),
        crcs: places.iter().map(|&p| Crc(p as u32)).collect(),
        tags: None,
        given: Given::No,
        again: false,
    }
}

fn tombstone(handle: u32, sequence: u64, generation: u32, first: u64, blocks: u64) -> Record {
    Record::Tombstone(Tombstone {
        handle: CatalogueHandle(handle),
        lane_sequence: LaneSequence(sequence),
        generation: Generation(generation),
        stamp: Stamp { epoch: 1, seq: 9 },
        first: LaneBlock(first),
        blocks,
        given: Given::No,
        again: false,
    })
}

/// Selects with a drive that lost these blocks. The answer: what is left, and what was tested.
fn selected(
    records: &[(u64, Record)],
    watermark: u64,
    done: u64,
    lost: &[u64],
) -> (Vec<Record>, BTreeSet<u64>) {
    let mut found = Records::new(1);
    for (block, record) in records {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        found.push(*block, &bytes).unwrap();
    }
    let mut tested = BTreeSet::new();
    let chosen = now(select(
        found,
        watermark,
        |_| LaneSequence(done),
        |_| Stamp { epoch: 0, seq: 0 },
        async |blocks: &[(PhysicalBlock, Crc)]| {
            tested.extend(blocks.iter().map(|b| b.0.0));
            let matches = blocks.iter().map(|(at, crc)| {
                assert_eq!(u64::from(crc.0), at.0);
                !lost.contains(&at.0)
            });
            Ok::<_, ()>(matches.collect())
        },
    ));
    let chosen = chosen.unwrap().records;
    (chosen.iter().map(|r| r.to_record()).collect(), tested)
}

fn sequences(records: &[Record]) -> Vec<u64> {
    let mut bytes = Vec::new();
    let sequence = |r: &Record| {
        bytes.clear();
        r.encode(&mut bytes);
        RecordRef::decode(&bytes)
            .unwrap()
            .lane_sequence()
            .map_or(0, |s| s.0)
    };
    records.iter().map(sequence).collect()
}

#[test]
fn a_torn_write_is_dropped_whole_and_one_that_was_flushed_is_believed() {
    let records = [
        (5, Record::Write(write(1, 1, 1, 0, &[10, 11]))),
        (6, Record::Write(write(1, 2, 1, 4, &[12, 13]))),
        (7, Record::Write(write(1, 3, 1, 8, &[14, 15]))),
    ];
    let (left, tested) = selected(&records, 5, 0, &[11, 13]);
    assert_eq!(sequences(&left), [1, 3]);
    assert_eq!(tested, BTreeSet::from([12, 13, 14, 15]));
    // What the map has is not looked at.
    let (left, tested) = selected(&records, 5, 2, &[13]);
    assert_eq!(sequences(&left), [3]);
    assert_eq!(tested, BTreeSet::from([14, 15]));
}

#[test]
fn what_a_later_write_or_tombstone_of_the_generation_covers_is_not_tested() {
    let records = [
        (5, Record::Write(write(1, 1, 1, 0, &[10, 11]))),
        (6, Record::Write(write(1, 2, 1, 1, &[12]))),
        (7, tombstone(1, 3, 1, 0, 1)),
        // Another lane, and another generation: they cover nothing of it.
        (8, Record::Write(write(1, 4, 2, 1, &[13]))),
        (8, Record::Write(write(2, 5, 1, 1, &[14]))),
    ];
    let (left, tested) = selected(&records, 0, 0, &[10, 11]);
    assert_eq!(sequences(&left), [1, 2, 3, 4, 5]);
    assert_eq!(tested, BTreeSet::from([12, 13, 14]));
    // A write that is dropped covers nothing.
    let (left, tested) = selected(&records, 0, 0, &[11, 12]);
    assert_eq!(sequences(&left), [3, 4, 5]);
    assert_eq!(tested, BTreeSet::from([11, 12, 13, 14]));
}

#[test]
fn copies_are_believed_and_each_lane_comes_in_lane_order() {
    let again = |mut w: Write| {
        w.again = true;
        Record::Write(w)
    };
    let snapshot = Record::Snapshot(Snapshot {
        handle: CatalogueHandle(1),
        lane_sequence: LaneSequence(7),
        closes: Generation(1),
        snapshot: CatalogueHandle(8),
        id: SnapshotId([1; 16]),
        live_generation: Generation(2),
    });
    let records = [
        (5, Record::Write(write(1, 6, 1, 0, &[10]))),
        (6, snapshot),
        // The original of the first is there still, those of the others are not; each was copied twice.
        (7, again(write(1, 6, 1, 0, &[10]))),
        (7, again(write(1, 5, 1, 2, &[11]))),
        (7, again(write(1, 4, 1, 2, &[12]))),
        (8, again(write(1, 5, 1, 2, &[11]))),
    ];
    let (left, tested) = selected(&records, 5, 0, &[10, 11, 12]);
    assert_eq!(sequences(&left), [4, 5, 6, 7]);
    assert!(tested.is_empty());
}

fn any_records() -> impl Strategy<Value = Vec<(u64, Record)>> {
    let one = (1u32..3, 1u32..3, 0u64..12, 1usize..5, 0u8..5);
    proptest::collection::vec(one, 0..60).prop_map(|all| {
        let all = all.into_iter().zip(1u64..);
        let records = all.map(|((handle, generation, first, blocks, kind), n)| {
            let record = if kind == 0 {
                tombstone(handle, n, generation, first, blocks as u64)
            } else {
                let places: Vec<u64> = (0..blocks as u64).map(|i| n * 8 + i).collect();
                Record::Write(write(handle, n, generation, first, &places))
            };
            (1 + n / 3, record)
        });
        records.collect()
    })
}

/// One after the other, the newest first.
fn model(records: &[(u64, Record)], watermark: u64, lost: &[u64]) -> (Vec<u64>, BTreeSet<u64>) {
    let mut covered = BTreeMap::new();
    let mut left = Vec::new();
    let mut tested = BTreeSet::new();
    for (block, record) in records.iter().rev() {
        match record {
            Record::Write(w) => {
                let blocks = w.first.0..w.first.0 + w.crcs.len() as u64;
                let mut whole = true;
                for (block, run) in blocks.clone().zip(&w.runs) {
                    if !covered.contains_key(&(w.handle, w.generation, block)) {
                        tested.insert(run.first.0);
                        whole &= !lost.contains(&run.first.0);
                    }
                }
                if *block <= watermark || whole {
                    left.push(w.lane_sequence.0);
                    covered.extend(blocks.map(|b| ((w.handle, w.generation, b), ())));
                }
            }
            Record::Tombstone(t) => {
                let blocks = t.first.0..t.first.0 + t.blocks;
                covered.extend(blocks.map(|b| ((t.handle, t.generation, b), ())));
                left.push(t.lane_sequence.0);
            }
            _ => unreachable!(),
        }
    }
    left.reverse();
    (left, tested)
}

proptest! {
    #[test]
    fn waves_decide_what_one_at_a_time_decides(
        records in any_records(),
        watermark in 0u64..22,
        lost in proptest::collection::vec(0u64..500, 0..200),
    ) {
        let (left, tested) = selected(&records, watermark, 0, &lost);
        let (expected, may_be_tested) = model(&records, watermark, &lost);
        prop_assert_eq!(sequences(&left), expected);
        prop_assert!(tested.is_subset(&may_be_tested));
    }
}
