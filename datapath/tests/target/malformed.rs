//! Hosts that break the transport lose their connection, say why to them, and nobody else notices.

use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::pdu::{Digests, Fes};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Sqe, Status};

use crate::harness::Setup;
use crate::wire::{BLOCK, Pair, pair, pattern, with};

/// A case: its name, what the target says, and the bytes that break the connection.
type Case = (&'static str, Fes, fn(&mut Pair) -> Vec<u8>);

/// Breaks one connection per case while another goes on; afterwards block 8 is as before.
fn each(cases: &[Case]) {
    let running = Setup::default().start();
    let mut witness = pair(running.address, Digests::default());
    let old = pattern(3, 2 * BLOCK);
    assert_eq!(witness.io.write(8, &old), Status::SUCCESS);
    for (what, fes, case) in cases {
        println!("{what}");
        let mut victim = pair(running.address, Digests::default());
        let bytes = case(&mut victim);
        victim.io.send(&bytes);
        victim.io.expect_end(*fes);
        assert!(witness.io.read(8, 2) == old, "{what}: the block changed");
    }
}

fn h2c(pair: &mut Pair, change: impl FnOnce(&mut Pair, u16) -> Vec<u8>) -> Vec<u8> {
    let r2t = pair.io.begin_write(1, 8, 2 * BLOCK);
    change(pair, r2t.ttag)
}

const NEW: [u8; 2 * BLOCK] = [0xee; 2 * BLOCK];

#[test]
fn h2cdata_that_no_r2t_asked_for() {
    each(&[
        ("no transfer at all", Fes::InvalidHeaderField, |p| {
            p.io.h2c(0, 0, 0, &NEW, true)
        }),
        ("a stale tag", Fes::InvalidHeaderField, |p| {
            let r2t = p.io.begin_write(1, 20, BLOCK);
            let pdu = p.io.h2c(1, r2t.ttag, 0, &NEW[..BLOCK], true);
            p.io.send(&pdu);
            assert_eq!(p.io.response().status(), Status::SUCCESS);
            pdu
        }),
        (
            "a stale tag whose slot is in use again",
            Fes::InvalidHeaderField,
            |p| {
                let r2t = p.io.begin_write(1, 20, BLOCK);
                let pdu = p.io.h2c(1, r2t.ttag, 0, &NEW[..BLOCK], true);
                p.io.send(&pdu);
                assert_eq!(p.io.response().status(), Status::SUCCESS);
                let again = p.io.begin_write(1, 8, BLOCK);
                assert_ne!(again.ttag, r2t.ttag);
                pdu
            },
        ),
        ("another command's", Fes::InvalidHeaderField, |p| {
            h2c(p, |p, tag| p.io.h2c(2, tag, 0, &NEW, true))
        }),
        ("ahead", Fes::DataOutOfRange, |p| {
            h2c(p, |p, tag| p.io.h2c(1, tag, 512, &NEW[512..], true))
        }),
        ("twice the same", Fes::DataOutOfRange, |p| {
            h2c(p, |p, tag| {
                p.io.h2c(1, tag, 0, &NEW[..512], false).repeat(2)
            })
        }),
        ("too long", Fes::DataOutOfRange, |p| {
            h2c(p, |p, tag| {
                p.io.h2c(1, tag, 0, &[&NEW[..], &[0; 4]].concat(), true)
            })
        }),
        ("an offset that wraps", Fes::DataOutOfRange, |p| {
            h2c(p, |p, tag| {
                p.io.h2c(1, tag, 0xffff_fe00, &NEW[..1024], false)
            })
        }),
        ("LAST_PDU too early", Fes::InvalidHeaderField, |p| {
            h2c(p, |p, tag| p.io.h2c(1, tag, 0, &NEW[..512], true))
        }),
        ("LAST_PDU missing", Fes::InvalidHeaderField, |p| {
            h2c(p, |p, tag| p.io.h2c(1, tag, 0, &NEW, false))
        }),
        ("PLEN that does not match", Fes::InvalidHeaderField, |p| {
            h2c(p, |p, tag| {
                let mut pdu = p.io.h2c(1, tag, 0, &NEW, true);
                pdu[4] = pdu[4].wrapping_sub(4);
                pdu
            })
        }),
    ]);
}

#[test]
fn headers_that_do_not_fit() {
    each(&[
        ("unknown type", Fes::InvalidHeaderField, |_| {
            vec![0x0b, 0, 24, 0, 24, 0, 0, 0]
        }),
        ("of the other direction", Fes::InvalidHeaderField, |_| {
            vec![7, 0, 24, 24, 28, 0, 0, 0]
        }),
        ("a second ICReq", Fes::SequenceError, |_| {
            keelblock_nvme::pdu::ICReq::default().encode().to_vec()
        }),
        ("HLEN", Fes::InvalidHeaderField, |_| {
            vec![4, 0, 71, 0, 72, 0, 0, 0]
        }),
        ("PLEN below HLEN", Fes::InvalidHeaderField, |_| {
            vec![4, 0, 72, 0, 71, 0, 0, 0]
        }),
        ("PLEN of 2 GiB", Fes::InvalidHeaderField, |_| {
            vec![4, 0, 72, 72, 0, 0, 0, 0x80]
        }),
        (
            "digest flag that was not negotiated",
            Fes::InvalidHeaderField,
            |_| vec![4, 1, 72, 0, 72, 0, 0, 0],
        ),
        (
            "in-capsule data above IOCCSZ",
            Fes::InvalidHeaderField,
            |p| {
                let data = vec![0; 12 * 1024];
                let sgl = Sgl::InCapsule {
                    offset: 0,
                    length: data.len() as u32,
                };
                p.io.capsule(&with(Sqe::io(opcode::WRITE, 1, 8, 3), 1, sgl), &data)
            },
        ),
    ]);
}

#[test]
fn a_wrong_header_digest_ends_the_connection() {
    let running = Setup::default().start();
    let mut pair = pair(
        running.address,
        Digests {
            header: true,
            data: false,
        },
    );
    let sqe = with(
        Sqe::io(opcode::READ, 1, 0, 1),
        1,
        Sgl::Transport {
            length: BLOCK as u32,
        },
    );
    let mut capsule = pair.io.capsule(&sqe, &[]);
    capsule[72] ^= 1;
    pair.io.send(&capsule);
    pair.io.expect_end(Fes::HeaderDigest);
}

#[test]
fn more_commands_than_the_queue_has_entries() {
    let running = Setup::default().start();
    let mut victim = pair(running.address, Digests::default());
    // writes that wait for their data stay in flight
    let mut all = Vec::new();
    for cid in 0..129 {
        let sqe = with(
            Sqe::io(opcode::WRITE, 1, 0, 1),
            cid,
            Sgl::Transport {
                length: BLOCK as u32,
            },
        );
        all.extend(victim.io.capsule(&sqe, &[]));
    }
    victim.io.send(&all);
    for _ in 0..128 {
        if let Some(crate::wire::Pdu::Term(_)) | None = victim.io.try_recv() {
            return;
        }
    }
    victim.io.expect_end(Fes::SequenceError);
}

#[test]
fn statuses_not_disconnects() {
    let running = Setup::default().start();
    let mut pair = pair(running.address, Digests::default());
    let block = BLOCK as u32;
    let transport = |length| Sgl::Transport { length };
    let capsule = |offset, length| Sgl::InCapsule { offset, length };
    let one = vec![1; BLOCK];
    let cases: [(&str, Sqe, &[u8], Status); 12] = [
        (
            "NSID",
            with(Sqe::io(opcode::READ, 9, 0, 1), 1, transport(block)),
            &[],
            Status::INVALID_NAMESPACE,
        ),
        (
            "opcode",
            with(Sqe::io(0x7e, 1, 0, 1), 1, transport(0)),
            &[],
            Status::INVALID_OPCODE,
        ),
        (
            "range",
            with(
                Sqe::io(opcode::READ, 1, u64::MAX, 2),
                1,
                transport(2 * block),
            ),
            &[],
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            "short SGL",
            with(Sqe::io(opcode::READ, 1, 0, 2), 1, transport(block)),
            &[],
            Status::INVALID_SGL_LENGTH,
        ),
        (
            "long SGL",
            with(Sqe::io(opcode::READ, 1, 0, 1), 1, transport(2 * block)),
            &[],
            Status::INVALID_SGL_LENGTH,
        ),
        (
            "SGL type",
            with(Sqe::io(opcode::READ, 1, 0, 1), 1, Sgl::Other { id: 0x40 }),
            &[],
            Status::INVALID_SGL_TYPE,
        ),
        (
            "read into the capsule",
            with(Sqe::io(opcode::READ, 1, 0, 1), 1, capsule(0, block)),
            &one,
            Status::INVALID_SGL_TYPE,
        ),
        (
            "capsule offset",
            with(Sqe::io(opcode::WRITE, 1, 0, 1), 1, capsule(4, block)),
            &one,
            Status::INVALID_SGL_OFFSET,
        ),
        (
            "capsule shorter than SGL",
            with(Sqe::io(opcode::WRITE, 1, 0, 1), 1, capsule(0, block)),
            &one[..512],
            Status::INVALID_SGL_LENGTH,
        ),
        (
            "no capsule data",
            with(Sqe::io(opcode::WRITE, 1, 0, 1), 1, capsule(0, block)),
            &[],
            Status::INVALID_SGL_LENGTH,
        ),
        (
            "DSM shorter than NR",
            with(
                Sqe::new(opcode::DATASET_MANAGEMENT, 1)
                    .with_cdw(10, 9)
                    .with_cdw(11, 4),
                1,
                capsule(0, 16),
            ),
            &one[..16],
            Status::INVALID_SGL_LENGTH,
        ),
        (
            "second half alone",
            {
                let mut s = with(Sqe::io(opcode::WRITE, 1, 0, 1), 1, capsule(0, block));
                s.set_fuse(keelblock_nvme::Fuse::Second);
                s
            },
            &one,
            Status::ABORT_MISSING_FUSED,
        ),
    ];
    for (what, sqe, data, status) in cases {
        pair.io.send(&pair.io.capsule(&sqe, data));
        let got = pair.io.response();
        assert!(got.status().is(status), "{what}: {:?}", got.status());
    }
    pair.io.read(0, 1);
}
