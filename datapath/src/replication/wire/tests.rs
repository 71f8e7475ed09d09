//! Everything comes back as it was sent; nothing else is taken for a message, and nothing a peer sends is worth a panic.

mod again;
mod bounds;
mod frames;
mod samples;

use proptest::collection::vec;
use proptest::prelude::*;

use super::WireError;
use super::ack::{self, Ack, AckHead, EARLY_MAX, Early, LaneAck};
use super::batch::{Batch, BatchWriter, RECORDS_MAX};
use super::frame::{DATA_BYTES_MAX, HEADER_BYTES, Header, Kind};
use super::hello::{Hello, PeerId, Proof, Refusal, Side};
use super::record::{Blocks, Content, Head, Record, WRITE_BLOCKS_MAX, flag};
use super::resync::Tree;
use crate::replication::wire;
use crate::store::types::{BLOCK_BYTES, BLOCKS_MAX, LaneBlock, SnapshotId, Stamp};

/// A record with bytes of its own.
#[derive(Clone, Debug)]
struct Owned {
    head: Head,
    kind: u8,
    first: u64,
    blocks: u64,
    crcs: Vec<u8>,
    tags: Vec<u8>,
    id: [u8; 16],
}

impl Owned {
    fn record(&self) -> Record<'_> {
        let blocks = || {
            let b = Blocks::new(LaneBlock(self.first), &self.crcs, &self.tags);
            b.expect("generated to fit")
        };
        let content = match self.kind {
            1 => Content::Write(blocks()),
            2 => Content::Tombstone {
                first: LaneBlock(self.first),
                blocks: self.blocks,
            },
            3 => Content::Snapshot(SnapshotId(self.id)),
            _ => Content::Poison(blocks()),
        };
        let mut head = self.head;
        match content {
            Content::Write(b) | Content::Poison(b) if b.sealed() => head.flags |= flag::SEALED,
            _ => head.key = 0,
        }
        Record { head, content }
    }
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u32>(), 0..u64::MAX - 1024).prop_map(|(epoch, seq)| Stamp { epoch, seq })
}

fn record(blocks_max: usize) -> impl Strategy<Value = Owned> {
    let head = (0_u8..16, 0_u8..16, stamp(), any::<u64>(), 1_u32..=63);
    let head = head.prop_map(|(flags, lane, stamp, position, key)| Head {
        flags: flags << 1,
        lane,
        stamp,
        position,
        key,
    });
    let body = (1_u8..=4, 1..=blocks_max, any::<bool>(), any::<u8>());
    (head, body, 0..BLOCKS_MAX - 256, any::<[u8; 16]>()).prop_map(
        |(head, (kind, n, sealed, fill), first, id)| Owned {
            head,
            kind,
            first,
            blocks: BLOCKS_MAX - first,
            crcs: (0..n * 4).map(|i| fill.wrapping_add(i as u8)).collect(),
            tags: vec![fill ^ 0x5a; if sealed { n * 16 } else { 0 }],
            id,
        },
    )
}

proptest! {
    #![proptest_config(crate::cases::cases(64))]

    #[test]
    fn batches_come_back(
        settled in vec((0_u8..16, stamp()), 0..16),
        records in vec(record(8), 0..40),
    ) {
        let mut writer = BatchWriter::default();
        writer.begin(settled.iter().copied());
        let mut sent = Vec::new();
        for r in &records {
            if writer.add(&r.record()) {
                sent.push(r.record());
            }
        }
        let (body, data) = writer.finish();
        let blocks: usize = sent.iter().map(Record::data_blocks).sum();
        prop_assert_eq!(data, blocks * BLOCK_BYTES);
        let batch = Batch::decode(body, data).expect("what was encoded");
        prop_assert_eq!(batch.settled().collect::<Vec<_>>(), settled);
        prop_assert_eq!(batch.records().collect::<Vec<_>>(), sent);
        // Data of another length, a body cut anywhere, a byte too many.
        prop_assert!(Batch::decode(body, data + BLOCK_BYTES).is_err());
        for cut in 0..body.len() {
            prop_assert!(Batch::decode(&body[..cut], data).is_err());
        }
        let longer = [body, &[0]].concat();
        prop_assert!(Batch::decode(&longer, data).is_err());
    }

    #[test]
    fn acks_come_back(
        lanes in vec((0_u8..16, any::<u64>(), any::<u64>()), 0..=16),
        early in vec((0_u8..16, any::<u64>()), 0..=EARLY_MAX),
        counts in any::<[u64; 4]>(),
    ) {
        let lanes: Vec<_> = lanes.into_iter().map(|(lane, a, b)| LaneAck {
            lane,
            written: a.max(b),
            stable: a.min(b),
        }).collect();
        let early: Vec<_> = early.into_iter().map(|(lane, position)| Early { lane, position }).collect();
        let [flushed, records, bytes, space] = counts;
        let head = AckHead { flushed, records, bytes, space };
        let mut body = Vec::new();
        ack::encode(&mut body, &head, &lanes, &early);
        let back = Ack::decode(&body).expect("what was encoded");
        prop_assert_eq!(back.head, head);
        prop_assert_eq!(back.lanes().collect::<Vec<_>>(), lanes);
        prop_assert_eq!(back.early().collect::<Vec<_>>(), early);
        for cut in 0..body.len() {
            prop_assert!(Ack::decode(&body[..cut]).is_err());
        }
    }

    #[test]
    fn headers_come_back_and_a_flipped_bit_does_not(
        kind in proptest::sample::select(Kind::ALL),
        numbers in any::<[u32; 3]>(),
        body in vec(any::<u8>(), 0..200),
        blocks in 0..=DATA_BYTES_MAX / BLOCK_BYTES,
        flip in any::<proptest::sample::Index>(),
    ) {
        let [channel, epoch, number] = numbers;
        let data = blocks * BLOCK_BYTES;
        let header = Header::encode(kind, (channel, epoch), number, &body, data);
        let back = Header::decode(&header).expect("what was encoded");
        prop_assert!(back.check(&header, &body).is_ok());
        prop_assert_eq!((back.kind, back.channel, back.epoch, back.number), (kind, channel, epoch, number));
        prop_assert_eq!((back.body as usize, back.data as usize), (body.len(), data));
        let mut all = [&header[..], &body].concat();
        let bit = flip.index(all.len() * 8);
        all[bit / 8] ^= 1 << (bit % 8);
        let bad: [u8; HEADER_BYTES] = std::array::from_fn(|i| all[i]);
        let taken = Header::decode(&bad).and_then(|h| h.check(&bad, &all[HEADER_BYTES..]));
        prop_assert!(taken.is_err());
    }

    #[test]
    fn junk_is_no_message(junk in vec(any::<u8>(), 0..400), data in 0_usize..4) {
        // Any answer will do, but one.
        let _ = Batch::decode(&junk, data * BLOCK_BYTES);
        let _ = Ack::decode(&junk);
        let header: [u8; HEADER_BYTES] = std::array::from_fn(|i| junk.get(i).copied().unwrap_or(0));
        prop_assert!(Header::decode(&header).is_err());
    }

    #[test]
    fn hellos_come_back_and_a_flipped_bit_does_not(
        initiator in any::<bool>(),
        versions in any::<(u16, u16)>(),
        names in proptest::array::uniform3("[A-Za-z0-9._-]{1,64}"),
        bytes in any::<([u8; 16], [u8; 32])>(),
        numbers in any::<(u16, u32, u64, u64)>(),
        bit in 0_usize..320 * 8,
    ) {
        let side = if initiator { Side::Initiator } else { Side::Acceptor };
        let other = if initiator { Side::Acceptor } else { Side::Initiator };
        let name = |n: &str| PeerId::new(n).expect("generated to be one");
        let hello = Hello {
            side,
            versions: (versions.0.min(versions.1), versions.0.max(versions.1)),
            reactor: numbers.0,
            features: numbers.1,
            cluster: name(&names[0]),
            from: name(&names[1]),
            to: name(&names[2]),
            incarnation: bytes.0,
            session: numbers.2,
            unix_ms: numbers.3,
            nonce: bytes.1,
        };
        let mut sent = hello.encode();
        prop_assert_eq!(Hello::decode(&sent, side), Ok(hello));
        prop_assert!(Hello::decode(&sent, other).is_err());
        sent[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Hello::decode(&sent, side).is_err());
    }
}

/// A batch of one record, and where the record begins in it.
fn one(record: &Record<'_>) -> (Vec<u8>, usize) {
    let mut writer = BatchWriter::default();
    writer.begin([]);
    assert!(writer.add(record));
    let (body, data) = writer.finish();
    (body.to_vec(), data)
}

const AT: usize = 8;

fn write(crcs: &[u8]) -> Record<'_> {
    Record {
        head: Head {
            flags: 0,
            lane: 3,
            stamp: Stamp { epoch: 7, seq: 9 },
            position: 1,
            key: 0,
        },
        content: Content::Write(Blocks::new(LaneBlock(5), crcs, &[]).expect("fits")),
    }
}

#[test]
fn a_record_lies_where_the_document_says() {
    let crcs = [1, 2, 3, 4, 5, 6, 7, 8];
    let (body, data) = one(&write(&crcs));
    assert_eq!(data, 2 * BLOCK_BYTES);
    assert_eq!(body[..8], [0, 0, 1, 0, 0, 0, 0, 0]);
    let r = &body[AT..];
    assert_eq!(r[..4], [1, 0, 3, 0]);
    assert_eq!(r[4..8], 7_u32.to_le_bytes());
    assert_eq!(r[8..16], 9_u64.to_le_bytes());
    assert_eq!(r[16..24], 1_u64.to_le_bytes());
    assert_eq!(r[24..32], [0; 8]);
    assert_eq!(r[32..40], 5_u64.to_le_bytes());
    assert_eq!(r[40..48], 2_u64.to_le_bytes());
    assert_eq!(r[48..], crcs);
}

#[test]
fn each_field_of_a_record_is_bounded() {
    let (good, data) = one(&write(&[0; 8]));
    // Offset in the record, the byte that is put there.
    let bad = [
        (0, 0, "no such kind"),
        (0, 9, "no such kind"),
        (0, 2, "a tombstone has no checksums behind it"),
        (0, 3, "a snapshot has no blocks"),
        (1, 32, "no such flag"),
        (1, 1, "sealed, and no tags"),
        (1, 16, "listed, and data"),
        (2, 16, "no such lane"),
        (24, 1, "a key, and no tags"),
        (24, 64, "no such key"),
        (3, 1, "reserved"),
        (28, 1, "reserved"),
        (37, 1, "beyond the last block"),
        (40, 0, "no blocks"),
        (40, 3, "more blocks than checksums"),
        (41, 2, "more blocks than a write may have"),
    ];
    for (at, byte, why) in bad {
        let mut body = good.clone();
        body[AT + at] = byte;
        assert!(Batch::decode(&body, data).is_err(), "{why}");
    }
    assert!(Batch::decode(&good, data).is_ok());
}

#[test]
fn a_batch_takes_what_fits_and_no_more() {
    let crcs = vec![0; 4 * WRITE_BLOCKS_MAX];
    let mut writer = BatchWriter::default();
    writer.begin([]);
    assert!(writer.add(&write(&crcs)), "1 MiB");
    assert!(!writer.add(&write(&crcs[..4])), "no room for data");
    let tombstone = Record {
        content: Content::Tombstone {
            first: LaneBlock(0),
            blocks: BLOCKS_MAX,
        },
        ..write(&crcs)
    };
    let mut more = 0;
    while writer.add(&tombstone) {
        more += 1;
    }
    assert!(more > 0 && more < RECORDS_MAX);
    let (body, data) = writer.finish();
    let batch = Batch::decode(body, data).expect("what was encoded");
    assert_eq!(batch.records().count(), more + 1);
}

#[test]
fn the_room_of_a_batch_is_used_again() {
    let crcs = [0; 4];
    let mut writer = BatchWriter::default();
    writer.begin([(1, Stamp { epoch: 1, seq: 1 })]);
    assert!(writer.add(&write(&crcs)));
    writer.finish();
    writer.begin([]);
    let (body, data) = writer.finish();
    assert_eq!((body, data), (&[0; 8][..], 0));
}

#[test]
fn stable_is_never_beyond_written() {
    let lane = LaneAck {
        lane: 0,
        written: 4,
        stable: 5,
    };
    let mut body = Vec::new();
    ack::encode(&mut body, &AckHead::default(), &[lane], &[]);
    assert!(matches!(Ack::decode(&body), Err(WireError::Value { .. })));
}

#[test]
fn proofs_come_back_and_a_flipped_bit_does_not() {
    let mut all = vec![
        (Side::Initiator, Proof::Initiator([7; 64])),
        (Side::Acceptor, Proof::Ready(Ok([8; 64]))),
    ];
    let refusals = Refusal::ALL.iter();
    all.extend(refusals.map(|&r| (Side::Acceptor, Proof::Ready(Err(r)))));
    for (side, proof) in all {
        let sent = proof.encode();
        assert_eq!(Proof::decode(&sent, side), Ok(proof));
        for bit in 0..sent.len() * 8 {
            let mut bad = sent;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Proof::decode(&bad, side).is_err());
        }
    }
}

#[test]
fn names_are_ids() {
    for bad in ["", "a b", "é", &"x".repeat(65)] {
        assert!(PeerId::new(bad).is_none(), "{bad}");
    }
    assert_eq!(
        PeerId::new("node-1.a_B").map(|n| n.as_str().len()),
        Some(10)
    );
}

#[test]
fn the_highest_common_version_is_chosen() {
    let name = PeerId::new("n").expect("one");
    let hello = |versions| Hello {
        side: Side::Initiator,
        versions,
        reactor: 0,
        features: 0,
        cluster: name,
        from: name,
        to: name,
        incarnation: [0; 16],
        session: 1,
        unix_ms: 0,
        nonce: [0; 32],
    };
    assert_eq!(hello((1, 3)).common_version((2, 9)), Some(3));
    assert_eq!(hello((1, 3)).common_version((3, 3)), Some(3));
    assert_eq!(hello((1, 3)).common_version((4, 9)), None);
}

fn tree() -> impl Strategy<Value = Tree> {
    (0_u8..16, any::<Option<[u8; 15]>>()).prop_map(|(lane, snapshot)| Tree {
        lane,
        snapshot: snapshot.map(|id| SnapshotId(std::array::from_fn(|i| *id.get(i).unwrap_or(&1)))),
    })
}
