//! Hosts that ask for more than they read, or promise data and send none, wait themselves; others do not.

use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Sqe, Status};

use crate::harness::Setup;
use crate::wire::{BLOCK, Pdu, pair, pattern, with};

/// 64 reads of 1 MiB that nobody takes are far more than any socket buffer; 100 others go through meanwhile, and in the end all 64
/// come, whole and right: what was sent from the drive's memory by reference was copied in time.
#[test]
fn a_slow_reader_gets_everything_and_disturbs_nobody() {
    for reactors in [1, 2] {
        let running = Setup {
            reactors,
            ..Setup::default()
        }
        .start();
        let mut other = pair(running.address, Digests::default());
        let data = pattern(7, 1 << 20);
        for (i, part) in data.chunks(2 * BLOCK).enumerate() {
            assert_eq!(other.io.write(2 * i as u64, part), Status::SUCCESS);
        }
        let mut slow = pair(running.address, Digests::default());
        for cid in 0..64 {
            let sqe = with(
                Sqe::io(opcode::READ, 1, 0, 256),
                cid,
                Sgl::Transport { length: 1 << 20 },
            );
            slow.io.send(&slow.io.capsule(&sqe, &[]));
        }
        for i in 0..100 {
            let block = pattern(i, BLOCK);
            assert_eq!(other.io.write(1000, &block), Status::SUCCESS);
            assert!(other.io.read(1000, 1) == block);
        }
        for _ in 0..64 {
            match slow.io.recv() {
                Pdu::Data(_, got) => assert!(got == data, "a late read differs"),
                other => panic!("{other:?}, wanted data"),
            }
            assert_eq!(slow.io.response().status(), Status::SUCCESS);
        }
    }
}

/// Twenty hosts take every R2T they get and send nothing. Another host's writes by R2T still find buffers.
#[test]
fn buffers_that_are_promised_and_not_filled_starve_nobody() {
    let running = Setup::default().start();
    let mut hoarders = Vec::new();
    for _ in 0..20 {
        let mut hoarder = pair(running.address, Digests::default());
        for cid in 0..100 {
            let sqe = with(
                Sqe::io(opcode::WRITE, 1, 0, 256),
                cid,
                Sgl::Transport { length: 1 << 20 },
            );
            hoarder.io.send(&hoarder.io.capsule(&sqe, &[]));
        }
        hoarders.push(hoarder);
    }
    let mut honest = pair(running.address, Digests::default());
    let data = pattern(5, 8 * BLOCK);
    let r2t = honest.io.begin_write(1, 50, data.len());
    honest.io.send(&honest.io.h2c(1, r2t.ttag, 0, &data, true));
    assert_eq!(honest.io.response().status(), Status::SUCCESS);
    assert!(honest.io.read(50, 8) == data);
}

/// All at once: the transfers beyond a connection's share wait in order, and every one is served.
#[test]
fn many_large_writes_at_once() {
    let running = Setup::default().start();
    let mut pair = pair(running.address, Digests::default());
    let bytes = 256 << 10;
    for cid in 0..100 {
        let sqe = with(
            Sqe::io(opcode::WRITE, 1, u64::from(cid) * 64, 64),
            cid,
            Sgl::Transport { length: bytes },
        );
        pair.io.send(&pair.io.capsule(&sqe, &[]));
    }
    let mut done = 0;
    while done < 100 {
        match pair.io.recv() {
            Pdu::R2T(r2t) => {
                let data = pattern(r2t.cccid as u8, bytes as usize);
                pair.io
                    .send(&pair.io.h2c(r2t.cccid, r2t.ttag, 0, &data, true));
            }
            Pdu::Resp(cqe) => {
                assert_eq!(cqe.status(), Status::SUCCESS);
                done += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    for cid in 0..100u8 {
        assert!(
            pair.io.read(u64::from(cid) * 64, 64) == pattern(cid, bytes as usize),
            "write {cid}"
        );
    }
}
