//! Before a queue: ICReq and Connect, and those that never get that far.

use std::time::Duration;

use keelblock_nvme::Sqe;
use keelblock_nvme::Status;
use keelblock_nvme::fabrics::CNTLID_DYNAMIC;
use keelblock_nvme::opcode::{admin as admin_opcode, fabrics};
use keelblock_nvme::pdu::{Digests, Fes, ICReq};
use keelblock_nvme::sgl::Sgl;

use crate::harness::Setup;
use crate::wire::{Pdu, Wire, admin, connect_command, connect_data, pair, pattern, with};

#[test]
fn negotiation_byte_by_byte_and_every_digest() {
    let running = Setup::default().start();
    for bits in 0..4 {
        let mut wire = Wire::open(running.address);
        for byte in (ICReq {
            digests: Digests::from_bits(bits),
            ..ICReq::default()
        })
        .encode()
        {
            wire.send(&[byte]);
        }
        assert!(
            matches!(wire.recv(), Pdu::ICResp(resp) if resp.digests.bits() == bits && resp.maxh2cdata >= 4096)
        );
    }
}

#[test]
fn icreq_that_does_not_fit_is_refused() {
    let running = Setup::default().start();
    for (at, value, fes) in [
        (0, 0x0b, Fes::InvalidHeaderField),
        (0, 4, Fes::InvalidHeaderField), // a capsule with the HLEN of an ICReq
        (2, 24, Fes::InvalidHeaderField),
        (7, 0x80, Fes::InvalidHeaderField),
        (8, 1, Fes::UnsupportedParameter),
        (10, 32, Fes::InvalidHeaderField),
    ] {
        let mut req = ICReq::default().encode();
        req[at] = value;
        let mut wire = Wire::open(running.address);
        wire.send(&req);
        wire.expect_end(fes);
    }
}

#[test]
fn commands_before_connect_get_a_status_and_may_be_followed_by_one() {
    let running = Setup::default().start();
    let mut wire = Wire::ready(running.address, Digests::default());
    for sqe in [
        Sqe::new(admin_opcode::IDENTIFY, 0),
        Sqe::fabrics(fabrics::PROPERTY_GET),
        Sqe::io(2, 1, 0, 1),
    ] {
        assert!(wire.command(sqe, 7).status().is(Status::COMMAND_SEQUENCE));
    }
    assert_eq!(
        wire.connect(connect_command(0), &connect_data(CNTLID_DYNAMIC))
            .status(),
        Status::SUCCESS
    );
}

/// SPDK's target crashes on this one, before any authentication.
#[test]
fn connect_without_data_is_refused() {
    let running = Setup::default().start();
    for sgl in [
        Sgl::Transport { length: 0 },
        Sgl::None,
        Sgl::InCapsule {
            offset: 0,
            length: 0,
        },
    ] {
        let mut wire = Wire::ready(running.address, Digests::default());
        wire.send(&wire.capsule(&with(connect_command(0).encode(), 0, sgl), &[]));
        assert!(!wire.response().status().is_success());
    }
    admin(running.address);
}

#[test]
fn connect_data_by_r2t() {
    let running = Setup::default().start();
    for digests in [
        Digests::default(),
        Digests {
            header: true,
            data: true,
        },
    ] {
        let mut wire = Wire::ready(running.address, digests);
        let sqe = with(
            connect_command(0).encode(),
            3,
            Sgl::Transport { length: 1024 },
        );
        wire.send(&wire.capsule(&sqe, &[]));
        let r2t = wire.r2t();
        assert_eq!((r2t.cccid, r2t.offset, r2t.length), (3, 0, 1024));
        let data = connect_data(CNTLID_DYNAMIC).encode().unwrap();
        wire.send(&wire.h2c(3, r2t.ttag, 0, &data[..512], false));
        wire.send(&wire.h2c(3, r2t.ttag, 512, &data[512..], true));
        assert_eq!(wire.response().status(), Status::SUCCESS);
    }
}

#[test]
fn a_refused_connect_may_be_tried_again_on_its_connection_but_not_for_ever() {
    let running = Setup {
        reactors: 2,
        ..Setup::default()
    }
    .start();
    let unknown = |i: usize| {
        let mut data = connect_data(CNTLID_DYNAMIC);
        data.subnqn = format!("nqn.2024-01.io.keelblock:unknown{i}");
        data
    };
    let mut wire = Wire::ready(running.address, Digests::default());
    let cqe = wire.connect(connect_command(0), &unknown(0));
    assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS));
    assert_eq!(cqe.dw0(), 256 | 1 << 16, "the offset of SUBNQN in the data");
    assert_eq!(
        wire.connect(connect_command(0), &connect_data(CNTLID_DYNAMIC))
            .status(),
        Status::SUCCESS
    );

    let mut wire = Wire::ready(running.address, Digests::default());
    let refused = (0..100).take_while(|i| {
        let data = unknown(*i).encode().unwrap();
        let sqe = with(
            connect_command(0).encode(),
            0,
            Sgl::InCapsule {
                offset: 0,
                length: 1024,
            },
        );
        use std::io::Write;
        wire.stream.write_all(&wire.capsule(&sqe, &data)).is_ok()
            && matches!(wire.try_recv(), Some(Pdu::Resp(_)))
    });
    assert!(
        (1..50).contains(&refused.count()),
        "a connection may try Connect for ever"
    );
}

/// Junk from many connections, some left open, keeps nobody out, and their descriptors come back.
#[test]
fn junk_and_silence_keep_nobody_out() {
    let running = Setup::default().start();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    let silent: Vec<Wire> = (0..100).map(|_| Wire::open(running.address)).collect();
    for seed in 0..100 {
        let mut wire = Wire::open(running.address);
        wire.send(&pattern(seed, 300));
    }
    let mut pair = pair(running.address, Digests::default());
    pair.io.write(0, &pattern(1, 4096));
    assert_eq!(pair.io.read(0, 1), pattern(1, 4096));
    drop((silent, pair));
    // other tests of this process open sockets too, so it is enough that they do not pile up
    for _ in 0..200 {
        if fds() < before + 100 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} descriptors before, {} after", before, fds());
}
