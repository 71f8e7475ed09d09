//! A target that breaks the protocol: the initiator ends the connection with an error that says what happened. It never panics, never
//! waits for ever, and never hands out bytes that it should not.

mod support;

use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use keelblock_nvme::pdu::{
    C2HData, CapsuleResp, Digests, Fes, ICResp, PduError, R2T, Sender, TermReq,
};
use keelblock_nvme::{Cqe, Sqe, Status};
use proptest::prelude::*;
use support::{BLOCK, Config, Fault, HOST, NQN, Target, framed};

const PLAIN: Digests = Digests {
    header: false,
    data: false,
};
const BOTH: Digests = Digests {
    header: true,
    data: true,
};
const LIMIT: Duration = Duration::from_secs(5);

fn options(digests: Digests, timeout: Duration) -> ConnectOptions {
    ConnectOptions {
        digests,
        timeout,
        ..ConnectOptions::default()
    }
}

fn queue(target: &Target, digests: Digests, timeout: Duration) -> (Controller, IoQueue, Namespace) {
    let mut controller =
        Controller::connect(target.addr, NQN, HOST, &options(digests, timeout)).unwrap();
    let namespace = Namespace::new(1, &controller.namespace(1).unwrap()).unwrap();
    let queue = controller.io_queue(1, 8).unwrap();
    (controller, queue, namespace)
}

/// The error of a read of 8 blocks that is answered by `fault`; the queue must refuse all use afterwards.
fn read_answered_by(fault: Fault, digests: Digests, timeout: Duration) -> (Error, Target) {
    let target = Target::start(Config {
        fault: Some(fault),
        ..Config::default()
    });
    let (_controller, mut queue, ns) = queue(&target, digests, timeout);
    let error = queue.read(&ns, 0, 8).unwrap_err();
    assert!(error.is_transport(), "{error}");
    assert!(
        matches!(queue.read(&ns, 0, 1), Err(Error::Closed)),
        "a failed queue stays failed"
    );
    (error, target)
}

/// As above, for faults that are protocol errors: the target is told why.
fn breaks_protocol(fault: Fault, digests: Digests, fes: Fes) {
    let (error, target) = read_answered_by(fault, digests, LIMIT);
    let Error::Protocol(why) = &error else {
        panic!("{error}")
    };
    assert_eq!(why.fes, fes, "{why}");
    let deadline = Instant::now() + LIMIT;
    while target.seen().terminated != [fes as u16] {
        assert!(
            Instant::now() < deadline,
            "no Terminate Connection Request: {:?}",
            target.seen()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn c2h(sqe: &Sqe, offset: u32, length: u32, digests: Digests) -> Vec<u8> {
    let pdu = C2HData {
        cccid: sqe.cid(),
        offset,
        length,
        last: false,
        success: false,
    };
    framed(
        &pdu.encode(digests, 4),
        &vec![0xbb; length as usize],
        digests,
    )
}

fn response(cid: u16, digests: Digests) -> Vec<u8> {
    framed(
        &CapsuleResp::encode(&Cqe::new(cid, 0, Status::SUCCESS, 0, 0), digests),
        &[],
        digests,
    )
}

#[test]
fn pdus_that_may_not_come() {
    breaks_protocol(
        |_, _| (vec![0x0b; 24], true),
        PLAIN,
        Fes::InvalidHeaderField,
    );
    breaks_protocol(
        |_, _| ([&[4, 0, 72, 0, 72], &[0; 67][..]].concat(), true),
        PLAIN,
        Fes::InvalidHeaderField,
    );
    breaks_protocol(
        |_, _| {
            (
                ICResp {
                    maxh2cdata: 4096,
                    ..ICResp::default()
                }
                .encode()
                .to_vec(),
                true,
            )
        },
        PLAIN,
        Fes::SequenceError,
    );
    breaks_protocol(
        |_, _| (vec![5, 0, 24, 0, 0xff, 0xff, 0xff, 0xff], true),
        PLAIN,
        Fes::InvalidHeaderField,
    );
    breaks_protocol(
        |_, _| ([&[7, 0, 24, 24, 24], &[0; 19][..]].concat(), true),
        PLAIN,
        Fes::InvalidHeaderField,
    );
}

#[test]
fn completions_of_nothing() {
    breaks_protocol(
        |s, d| (response(s.cid() + 1, d), true),
        PLAIN,
        Fes::InvalidHeaderField,
    );
    breaks_protocol(
        |_, d| (response(0xffff, d), true),
        BOTH,
        Fes::InvalidHeaderField,
    );
}

#[test]
fn data_where_none_was_asked_for() {
    breaks_protocol(
        |s, d| (c2h(s, 0, 4100, d), true),
        PLAIN,
        Fes::DataOutOfRange,
    );
    breaks_protocol(
        |s, d| (c2h(s, 512, 512, d), true),
        PLAIN,
        Fes::DataOutOfRange,
    );
    breaks_protocol(
        |s, d| (c2h(s, u32::MAX - 3, 8, d), true),
        BOTH,
        Fes::DataOutOfRange,
    );
    breaks_protocol(
        |s, d| ([c2h(s, 0, 512, d), c2h(s, 0, 512, d)].concat(), true),
        PLAIN,
        Fes::DataOutOfRange,
    );
    let other: Fault = |s, d| {
        let mut sqe = *s;
        sqe.set_cid(s.cid() + 1);
        (c2h(&sqe, 0, 512, d), true)
    };
    breaks_protocol(other, PLAIN, Fes::DataOutOfRange);
}

#[test]
fn requests_for_data_that_there_is_not() {
    let read: Fault = |s, d| {
        (
            R2T {
                cccid: s.cid(),
                ttag: 0,
                offset: 0,
                length: 4096,
            }
            .encode(d)
            .to_vec(),
            true,
        )
    };
    breaks_protocol(read, PLAIN, Fes::DataOutOfRange);
    let wrapped: Fault = |s, d| {
        (
            R2T {
                cccid: s.cid(),
                ttag: 0,
                offset: u32::MAX,
                length: 1,
            }
            .encode(d)
            .to_vec(),
            true,
        )
    };
    breaks_protocol(wrapped, PLAIN, Fes::DataOutOfRange);
}

#[test]
fn digests_that_do_not_match() {
    let header: Fault = |s, d| {
        let mut pdu = response(s.cid(), d);
        pdu[20] ^= 1;
        (pdu, true)
    };
    breaks_protocol(header, BOTH, Fes::HeaderDigest);
    let data: Fault = |s, d| {
        let mut pdu = c2h(s, 0, 4096, d);
        pdu[100] ^= 0x80;
        (pdu, true)
    };
    let (error, _) = read_answered_by(data, BOTH, LIMIT);
    assert!(matches!(error, Error::DataDigest { .. }), "{error}");
}

#[test]
fn the_end_of_the_connection() {
    let (error, _) = read_answered_by(|_, _| (Vec::new(), false), PLAIN, LIMIT);
    assert!(matches!(error, Error::Closed | Error::Socket(_)), "{error}");
    let (error, _) = read_answered_by(
        |s, d| (c2h(s, 0, 4096, d)[..2000].to_vec(), false),
        PLAIN,
        LIMIT,
    );
    assert!(matches!(error, Error::Closed | Error::Socket(_)), "{error}");
    let term: Fault = |_, _| {
        let mut pdu = [0; 152];
        let n = TermReq::encode(
            Sender::Controller,
            &PduError::field(3, ""),
            &[1; 8],
            &mut pdu,
        );
        (pdu[..n].to_vec(), false)
    };
    let (error, _) = read_answered_by(term, PLAIN, LIMIT);
    assert!(
        matches!(error, Error::Terminated(t) if (t.fes, t.fei) == (1, 3)),
        "{error}"
    );
}

#[test]
fn silence_ends_with_the_time_limit() {
    let limit = Duration::from_millis(50);
    let (error, _) = read_answered_by(|_, _| (Vec::new(), true), PLAIN, limit);
    assert!(
        matches!(error, Error::Timeout { what: "Read", .. }),
        "{error}"
    );
    let (error, _) = read_answered_by(
        |s, d| (c2h(s, 0, 4096, d)[..4000].to_vec(), true),
        BOTH,
        limit,
    );
    assert!(
        matches!(error, Error::Timeout { what: "Read", .. }),
        "{error}"
    );
}

#[test]
fn success_with_less_data_than_asked_for_is_not_success() {
    let short: Fault = |s, d| ([c2h(s, 0, 512, d), response(s.cid(), d)].concat(), true);
    let target = Target::start(Config {
        fault: Some(short),
        ..Config::default()
    });
    let (_controller, mut queue, ns) = queue(&target, BOTH, LIMIT);
    let error = queue.read(&ns, 0, 8).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ShortTransfer {
                want: 4096,
                got: 512,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        queue.read(&ns, 0, 1).unwrap(),
        [0; BLOCK],
        "the connection is none the worse"
    );
}

#[test]
fn bad_starts() {
    let good = ICResp {
        maxh2cdata: 4096,
        ..ICResp::default()
    };
    let answered = |icresp: Vec<u8>| {
        let target = Target::start(Config {
            icresp: Some(icresp),
            ..Config::default()
        });
        Controller::connect(
            target.addr,
            NQN,
            HOST,
            &options(PLAIN, Duration::from_millis(200)),
        )
        .unwrap_err()
    };
    for bad in [
        ICResp { pfv: 1, ..good },
        ICResp { cpda: 32, ..good },
        ICResp {
            maxh2cdata: 0,
            ..good
        },
        ICResp {
            digests: BOTH,
            ..good
        },
    ] {
        let error = answered(bad.encode().to_vec());
        assert!(matches!(error, Error::Protocol(_)), "{bad:?}: {error}");
    }
    assert!(matches!(answered(response(0, PLAIN)), Error::Protocol(_)));
    assert!(matches!(
        answered(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Error::Protocol(_)
    ));
    assert!(matches!(
        answered(good.encode()[..100].to_vec()),
        Error::Timeout { .. }
    ));
    assert!(matches!(answered(Vec::new()), Error::Timeout { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes in answer to a read are an error, or nothing, or a completion; within the time limit and without a panic.
    #[test]
    fn any_bytes(kind in prop::sample::select(vec![1u8, 3, 5, 7, 9]), mut bytes in prop::collection::vec(any::<u8>(), 24..300), plen in 20u8..80) {
        let hlen = if kind == 1 { 128 } else { 24 };
        let (flags, cid) = (bytes[1] & 0xc, bytes[8] & 3);
        bytes[..8].copy_from_slice(&[kind, flags, hlen, 24, plen, 0, 0, 0]);
        bytes[8..10].copy_from_slice(&[cid, 0]);
        let mut socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = bytes.clone();
        let outcome = answered_raw(&mut socket, answer);
        prop_assert!(!matches!(outcome, Err(Error::Unsuitable(_))), "{:?}", outcome);
    }
}

/// A queue pair whose controller answers a Read with `bytes` and closes.
fn answered_raw(listener: &mut std::net::TcpListener, bytes: Vec<u8>) -> Result<usize, Error> {
    use keelblock_nvme::initiator::{Payload, QueuePair};
    use std::io::{Read, Write};
    let addr = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 128 + 72];
            stream.read_exact(&mut request[..128]).unwrap();
            stream
                .write_all(
                    &ICResp {
                        maxh2cdata: 4096,
                        ..ICResp::default()
                    }
                    .encode(),
                )
                .unwrap();
            stream.read_exact(&mut request[128..]).unwrap();
            // The initiator may have hung up in the middle.
            let _ = stream.write_all(&bytes);
        });
        let mut pair = QueuePair::open(addr, 2, PLAIN, LIMIT)?;
        let sqe = Sqe::io(keelblock_nvme::opcode::io::READ, 1, 0, 8);
        pair.submit(0, sqe, Payload::Receive(vec![0; 64]))
            .expect("room for two");
        let deadline = Instant::now() + LIMIT;
        let mut done = Vec::new();
        while done.is_empty() {
            pair.poll(&mut done)?;
            assert!(
                Instant::now() < deadline,
                "neither a completion nor an error"
            );
            if done.is_empty() {
                pair.wait(deadline)?;
            }
        }
        Ok(done[0].received)
    })
}
