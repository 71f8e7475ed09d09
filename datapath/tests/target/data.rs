//! Data both ways: in the capsule, by R2T in pieces of any size, with digests, damaged, fused.

use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe, Status};

use crate::harness::Setup;
use crate::wire::{BLOCK, Pdu, Wire, pair, pattern, with};

const ALL: [Digests; 4] = [
    Digests {
        header: false,
        data: false,
    },
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];

fn finish(io: &mut Wire, cid: u16, ttag: u16, data: &[u8], sizes: &[usize]) -> Status {
    let mut at = 0;
    for size in sizes.iter().copied().cycle() {
        let end = data.len().min(at + size);
        let pdu = io.h2c(cid, ttag, at, &data[at..end], end == data.len());
        io.send(&pdu);
        at = end;
        if at == data.len() {
            break;
        }
    }
    io.response().status()
}

#[test]
fn writes_in_pieces_of_any_size_come_back_whole() {
    let running = Setup::default().start();
    for digests in ALL {
        let mut pair = pair(running.address, digests);
        for (i, sizes) in [
            &[4096][..],
            &[4],
            &[12, 4096, 8, 20000],
            &[1 << 20],
            &[65536],
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = if sizes == [4] { 4096 } else { 256 << 10 };
            let data = pattern(i as u8, bytes);
            let r2t = pair.io.begin_write(5, 16, bytes);
            assert_eq!(
                (r2t.offset, r2t.length as usize),
                (0, bytes),
                "one R2T for the whole transfer"
            );
            assert_eq!(
                finish(&mut pair.io, 5, r2t.ttag, &data, sizes),
                Status::SUCCESS
            );
            assert!(
                pair.io.read(16, (bytes / BLOCK) as u32) == data,
                "{digests:?} {sizes:?}"
            );
        }
        let data = pattern(77, 2 * BLOCK);
        assert_eq!(pair.io.write(3, &data), Status::SUCCESS);
        assert!(pair.io.read(3, 2) == data);
    }
}

#[test]
fn the_largest_transfer_and_one_block_more() {
    let running = Setup::default().start();
    let mut pair = pair(running.address, Digests::default());
    let data = pattern(9, 1 << 20);
    let r2t = pair.io.begin_write(1, 0, 1 << 20);
    assert_eq!(
        finish(&mut pair.io, 1, r2t.ttag, &data, &[300_000]),
        Status::SUCCESS
    );
    assert!(pair.io.read(0, 256) == data);
    for code in [opcode::READ, opcode::WRITE] {
        let sqe = with(
            Sqe::io(code, 1, 0, 257),
            2,
            Sgl::Transport {
                length: 257 * BLOCK as u32,
            },
        );
        pair.io.send(&pair.io.capsule(&sqe, &[]));
        assert!(
            pair.io.response().status().is(Status::INVALID_FIELD),
            "above MDTS"
        );
    }
    assert!(pair.io.read(0, 1) == data[..BLOCK]);
}

#[test]
fn interleaved_transfers_do_not_mix() {
    let running = Setup::default().start();
    let mut pair = pair(running.address, Digests::default());
    let (a, b) = (pattern(1, 64 << 10), pattern(2, 64 << 10));
    let (ra, rb) = (
        pair.io.begin_write(1, 0, a.len()),
        pair.io.begin_write(2, 100, b.len()),
    );
    assert_ne!(ra.ttag, rb.ttag);
    for at in (0..a.len()).step_by(8192) {
        let last = at + 8192 == a.len();
        let both = [
            pair.io.h2c(2, rb.ttag, at, &b[at..at + 8192], last),
            pair.io.h2c(1, ra.ttag, at, &a[at..at + 8192], last),
        ];
        pair.io.send(&both.concat());
    }
    let cids = [pair.io.response().cid(), pair.io.response().cid()];
    assert_eq!(cids, [2, 1]);
    assert!(pair.io.read(0, 16) == a && pair.io.read(100, 16) == b);
}

#[test]
fn damaged_data_is_not_written_and_the_connection_stays() {
    let running = Setup::default().start();
    let mut pair = pair(
        running.address,
        Digests {
            header: false,
            data: true,
        },
    );
    let old = pattern(1, 2 * BLOCK);
    assert_eq!(pair.io.write(8, &old), Status::SUCCESS);

    let new = pattern(2, 2 * BLOCK);
    let sqe = with(
        Sqe::io(opcode::WRITE, 1, 8, 2),
        1,
        Sgl::InCapsule {
            offset: 0,
            length: 2 * BLOCK as u32,
        },
    );
    let mut capsule = pair.io.capsule(&sqe, &new);
    *capsule.last_mut().unwrap() ^= 1;
    pair.io.send(&capsule);
    assert!(pair.io.response().status().is(Status::TRANSIENT_TRANSPORT));

    // the first of two PDUs is damaged: the command fails when all has come
    let r2t = pair.io.begin_write(2, 8, 2 * BLOCK);
    let mut first = pair.io.h2c(2, r2t.ttag, 0, &new[..BLOCK], false);
    *first.last_mut().unwrap() ^= 1;
    pair.io.send(&first);
    pair.io.expect_silence();
    pair.io
        .send(&pair.io.h2c(2, r2t.ttag, BLOCK, &new[BLOCK..], true));
    assert!(pair.io.response().status().is(Status::TRANSIENT_TRANSPORT));
    assert!(pair.io.read(8, 2) == old);
}

#[test]
fn success_flag_only_without_flow_control() {
    let running = Setup::default().start();
    let (_admin, cntlid) = crate::wire::admin(running.address);
    let mut io = Wire::ready(running.address, Digests::default());
    let connect = keelblock_nvme::fabrics::ConnectCommand {
        cattr: 4,
        ..crate::wire::connect_command(1)
    };
    assert_eq!(
        io.connect(connect, &crate::wire::connect_data(cntlid))
            .status(),
        Status::SUCCESS
    );
    let sqe = with(
        Sqe::io(opcode::READ, 1, 0, 1),
        5,
        Sgl::Transport {
            length: BLOCK as u32,
        },
    );
    io.send(&io.capsule(&sqe, &[]));
    assert!(matches!(io.recv(), Pdu::Data(header, _) if header.success && header.last));
    io.expect_silence();
    // an error has a response all the same
    let sqe = with(
        Sqe::io(opcode::READ, 1, 1 << 40, 1),
        6,
        Sgl::Transport {
            length: BLOCK as u32,
        },
    );
    io.send(&io.capsule(&sqe, &[]));
    assert!(io.response().status().is(Status::LBA_OUT_OF_RANGE));
}

fn half(fuse: Fuse, code: u8, cid: u16, slba: u64) -> Sqe {
    let mut sqe = with(
        Sqe::io(code, 1, slba, 1),
        cid,
        Sgl::InCapsule {
            offset: 0,
            length: BLOCK as u32,
        },
    );
    sqe.set_fuse(fuse);
    sqe
}

#[test]
fn fused_pairs_and_broken_ones() {
    let running = Setup::default().start();
    let mut pair = pair(running.address, Digests::default());
    let (old, new) = (pattern(1, BLOCK), pattern(2, BLOCK));
    assert_eq!(pair.io.write(4, &old), Status::SUCCESS);
    let io = &mut pair.io;
    let mut both = |first: (Sqe, &[u8]), second: (Sqe, &[u8])| {
        io.send(
            &[
                io.capsule(&first.0, first.1),
                io.capsule(&second.0, second.1),
            ]
            .concat(),
        );
        let mut got = [io.response(), io.response()];
        got.sort_by_key(Cqe::cid);
        got.map(|c| c.status())
    };
    use keelblock_nvme::Cqe;
    let compare = |cid, slba| half(Fuse::First, opcode::COMPARE, cid, slba);
    let write = |cid, slba| half(Fuse::Second, opcode::WRITE, cid, slba);

    let [a, b] = both((compare(1, 4), &new), (write(2, 4), &new));
    assert!(
        a.is(Status::COMPARE_FAILURE) && b.is(Status::ABORT_FAILED_FUSED),
        "{a:?} {b:?}"
    );
    let [a, b] = both((compare(1, 4), &old), (write(2, 5), &new));
    assert!(!a.is_success() && !b.is_success(), "other blocks");
    let plain = with(
        Sqe::io(opcode::FLUSH, 1, 0, 1),
        2,
        Sgl::Transport { length: 0 },
    );
    let [a, b] = both((compare(1, 4), &old), (plain, &[]));
    assert!(
        a.is(Status::ABORT_MISSING_FUSED) && b.is_success(),
        "{a:?} {b:?}"
    );
    let [a, b] = both((compare(1, 4), &old), (write(2, 4), &new));
    assert!(a.is_success() && b.is_success(), "{a:?} {b:?}");
    assert!(pair.io.read(4, 1) == new);
}
