//! Frames between data paths: any bytes as the body of every kind, from either side. None panics, and what parses encodes to the bytes that it came from.
//!
//! The first byte chooses kind and side, two more the length of the data; the rest is the body. Lengths and checksum are put right, as junk would get no further.
#![no_main]

#[path = "../../datapath/src/replication/wire/tests/again.rs"]
mod again;

use keelblock_datapath::replication::wire;
use libfuzzer_sys::fuzz_target;
use wire::frame::{BODY_BYTES_MAX, HEADER_BYTES, Header, Kind};
use wire::hello::{HELLO_BYTES, Hello, PROOF_BYTES, Proof, Side};
use wire::message::Message;

const BLOCK_BYTES: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    raw(bytes);
    let [choice, low, high, body @ ..] = bytes else {
        return;
    };
    let from = match choice & 0x80 {
        0 => Side::Initiator,
        _ => Side::Acceptor,
    };
    let kind = Kind::ALL[usize::from(choice & 0x7f) % Kind::ALL.len()];
    let blocks = usize::from(u16::from_le_bytes([*low, *high])) % 257;
    let body = &body[..body.len().min(BODY_BYTES_MAX)];
    let header = Header::encode(kind, (1, 2), 3, body, blocks * BLOCK_BYTES);
    let decoded = Header::decode(&header).expect("our own header");
    decoded.check(&header, body).expect("our own checksum");
    let Ok(message) = Message::decode(&decoded, body, from) else {
        return;
    };
    assert_eq!(message.kind(), kind);
    assert!(kind.may_come_from(from));
    let (again, data) = again::again(&message);
    assert_eq!(again, body);
    assert!(data == blocks * BLOCK_BYTES || kind == Kind::Done);
});

/// As they came: checksums keep nearly all of it out, and what comes in must be what it says.
fn raw(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>()
        && let Ok(decoded) = Header::decode(header)
    {
        let body = &bytes[HEADER_BYTES..];
        let _ = decoded.check(header, body);
    }
    for side in [Side::Initiator, Side::Acceptor] {
        if let Some(hello) = bytes.first_chunk::<HELLO_BYTES>()
            && let Ok(decoded) = Hello::decode(hello, side)
        {
            assert_eq!(&decoded.encode(), hello);
        }
        if let Some(proof) = bytes.first_chunk::<PROOF_BYTES>()
            && let Ok(decoded) = Proof::decode(proof, side)
        {
            assert_eq!(&decoded.encode(), proof);
        }
    }
}
