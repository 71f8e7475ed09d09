//! Every kind of frame by one measure: what was sent comes back, what is not as the document says does not.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::again::again;
use super::samples::{Sample, any_kind};
use crate::replication::wire::WireError;
use crate::replication::wire::forward::{Command, Operation, Phase};
use crate::replication::wire::frame::{HEADER_BYTES, Header, Kind};
use crate::replication::wire::hello::Side;
use crate::replication::wire::message::Message;
use crate::replication::wire::open::{LaneState, encode_opened};
use crate::replication::wire::promise::{PromisedHead, Purpose, encode_promised, encode_set};
use crate::store::types::{BLOCK_BYTES, Stamp};

fn sender(kind: Kind) -> Side {
    match kind.may_come_from(Side::Initiator) {
        true => Side::Initiator,
        false => Side::Acceptor,
    }
}

fn header(kind: Kind, body: &[u8], data: usize) -> Result<Header, WireError> {
    let bytes: [u8; HEADER_BYTES] = Header::encode(kind, (1, 2), 3, body, data);
    let header = Header::decode(&bytes)?;
    header.check(&bytes, body)?;
    Ok(header)
}

pub fn decode(kind: Kind, body: &[u8], data: usize) -> Result<Message<'_>, WireError> {
    Message::decode(&header(kind, body, data)?, body, sender(kind))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn all_come_back_as_they_were_sent(s in any_kind()) {
        let message = decode(s.kind, &s.body, s.data);
        prop_assert!(message.is_ok(), "{message:?}");
        let message = message.expect("just looked at");
        prop_assert_eq!(message.kind(), s.kind);
        let (body, data) = again(&message);
        prop_assert_eq!(body, s.body);
        // A Done says nothing of the length of its data: its Command did.
        prop_assert!(data == s.data || s.kind == Kind::Done);
    }

    #[test]
    fn none_comes_cut_or_longer_or_from_the_wrong_side(s in any_kind(), more in any::<u8>()) {
        for cut in 0..s.body.len() {
            let taken = decode(s.kind, &s.body[..cut], s.data);
            prop_assert!(taken.is_err(), "{cut} of {}: {taken:?}", s.body.len());
        }
        let longer = [&s.body[..], &[more]].concat();
        prop_assert!(decode(s.kind, &longer, s.data).is_err());
        let header = header(s.kind, &s.body, s.data).expect("what was encoded");
        let other = match sender(s.kind) {
            Side::Initiator => Side::Acceptor,
            Side::Acceptor => Side::Initiator,
        };
        let taken = Message::decode(&header, &s.body, other);
        prop_assert_eq!(taken.is_ok(), s.kind == Kind::Close);
    }

    #[test]
    fn reserved_bytes_are_zero(s in any_kind(), at in any::<proptest::sample::Index>(), byte in 1_u8..) {
        prop_assume!(!s.reserved.is_empty());
        let mut body = s.body.clone();
        let at = s.reserved[at.index(s.reserved.len())];
        prop_assert_eq!(body[at], 0, "{:?} at {}", s.kind, at);
        body[at] = byte;
        prop_assert!(decode(s.kind, &body, s.data).is_err(), "{:?} at {}", s.kind, at);
    }

    #[test]
    fn data_are_as_long_as_the_body_says(s in any_kind(), blocks in 0_usize..=256) {
        let data = blocks * BLOCK_BYTES;
        prop_assume!(data != s.data && s.kind != Kind::Done);
        prop_assert!(decode(s.kind, &s.body, data).is_err());
    }

    #[test]
    fn what_is_taken_is_what_it_encodes_to(
        s in any_kind(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        // Bytes that are nearly right get further than junk does.
        let mut body = s.body.clone();
        prop_assume!(!body.is_empty());
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(message) = decode(s.kind, &body, s.data) {
            prop_assert_eq!(again(&message).0, body);
        }
    }

    #[test]
    fn junk_of_any_kind_is_worth_no_panic(
        kind in proptest::sample::select(Kind::ALL),
        junk in vec(any::<u8>(), 0..200),
        blocks in 0_usize..3,
    ) {
        if let Ok(message) = decode(kind, &junk, blocks * BLOCK_BYTES) {
            prop_assert_eq!(again(&message).0, junk);
        }
    }
}

#[test]
fn each_kind_is_tried() {
    // A kind without a sample would be one without a test.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        let tree = any_kind().new_tree(&mut runner).expect("a sample");
        let Sample { kind, .. } = tree.current();
        seen.insert(kind as u8);
    }
    let all: Vec<_> = Kind::ALL.iter().map(|&k| k as u8).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn unknown_kinds_are_none() {
    let known: Vec<_> = Kind::ALL.iter().map(|&k| k as u8).collect();
    for number in 0..=u8::MAX {
        let mut bytes = Header::encode(Kind::Close, (1, 2), 3, &[], 0);
        bytes[16] = number;
        assert_eq!(Header::decode(&bytes).is_ok(), known.contains(&number));
    }
}

pub fn lane(lane: u8) -> LaneState {
    LaneState {
        lane,
        settled: Stamp { epoch: 2, seq: 3 },
        written: 5,
        stable: 4,
        lost: true,
        resyncing: false,
    }
}

#[test]
fn a_promised_lies_where_the_document_says() {
    let head = PromisedHead {
        degraded: true,
        former: (7, [8; 16]),
        boot: [9; 16],
        set: (10, 11),
        ..PromisedHead::default()
    };
    let mut body = Vec::new();
    encode_promised(&mut body, &head, &[[12; 16], [13; 16]], &[lane(0)]);
    assert_eq!(body[..4], [0, 1, 2, 1]);
    assert_eq!(body[4..8], [7, 0, 0, 0]);
    assert_eq!(body[8..24], [8; 16]);
    assert_eq!(body[24..40], [9; 16]);
    assert_eq!(body[40..48], [0; 8]);
    assert_eq!(body[48..56], [10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[56..64], [11, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[64..96], [[12; 16], [13; 16]].concat());
    let l = &body[96..];
    assert_eq!(l[..16], [2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(l[16..32], [5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(l[32..], [0, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_command_lies_where_the_document_says() {
    let command = Command {
        host: [1; 16],
        request: 2,
        phase: Phase::Confirm(Stamp { epoch: 3, seq: 4 }),
        operation: Operation::Write,
        fused: true,
        fua: true,
        nsid: 5,
        first: 512,
        bytes: 1024,
        age_ms: 7,
    };
    let mut body = Vec::new();
    command.put(&mut body);
    assert_eq!(body.len(), 96);
    assert_eq!(command.data(), 4096);
    assert_eq!(body[16..24], 2_u64.to_le_bytes());
    assert_eq!(body[24..36], [3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[36..40], [1, 2, 3, 0]);
    assert_eq!(body[40..44], [5, 0, 0, 0]);
    assert_eq!(body[44..52], 512_u64.to_le_bytes());
    assert_eq!(body[52..60], 1024_u64.to_le_bytes());
    assert_eq!(body[60..64], [7, 0, 0, 0]);
}

/// A body with one byte changed is refused.
fn refused(kind: Kind, good: &[u8], at: usize, byte: u8, why: &str) {
    assert!(decode(kind, good, 0).is_ok(), "before: {why}");
    let mut bad = good.to_vec();
    bad[at] = byte;
    assert!(decode(kind, &bad, 0).is_err(), "{why}");
}

#[test]
fn lanes_are_in_order_and_members_not_twice() {
    let mut opened = Vec::new();
    encode_opened(&mut opened, [0; 16], &[lane(0), lane(1)]);
    refused(Kind::Opened, &opened, 24 + 32, 1, "lane 1 is the first");
    refused(Kind::Opened, &opened, 24 + 33, 4, "no such flag");
    refused(Kind::Opened, &opened, 24 + 24, 6, "stable beyond written");
    let mut set = Vec::new();
    encode_set(&mut set, 1, Purpose::Keep, &[[1; 16]]);
    refused(Kind::Set, &set, 9, 2, "no such flag");
    set[8] = 2;
    set.extend([1; 16]);
    assert!(decode(Kind::Set, &set, 0).is_err(), "a member twice");
    set[31] = 2;
    assert!(decode(Kind::Set, &set, 0).is_ok());
}
