//! Connections that move between reactors, and what must reach all of them before it counts.

use std::sync::Arc;

use keelblock_datapath::nvmf::seam::AnaState;
use keelblock_nvme::Status;
use keelblock_nvme::fabrics::{CNTLID_DYNAMIC, PropertyCommand};
use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::property::{cc, offset};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Sqe, pdu::Fes};

use crate::harness::{Export, Setup};
use crate::wire::{BLOCK, Wire, admin, connect_command, connect_data, io, pair, pattern, with};

fn setup() -> Setup {
    Setup {
        reactors: 2,
        ..Setup::default()
    }
}

/// I/O queues of one controller are spread round robin; each sees what the others wrote.
#[test]
fn queues_on_two_reactors_see_each_other() {
    let running = setup().start();
    let (_admin, cntlid) = admin(running.address);
    let mut queues: Vec<Wire> = (1..=6)
        .map(|qid| io(running.address, cntlid, qid, Digests::default()))
        .collect();
    for round in 0..20u8 {
        let count = queues.len();
        let data = pattern(round, 2 * BLOCK);
        assert_eq!(
            queues[round as usize % count].write(30, &data),
            Status::SUCCESS
        );
        for queue in &mut queues {
            assert!(queue.read(30, 2) == data, "round {round}");
        }
    }
}

/// SPDK's I/O queues outlive their admin connection. Ours end with it, wherever they are.
#[test]
fn io_queues_end_with_their_controller() {
    let running = setup().start();
    let (first, cntlid) = admin(running.address);
    let mut queues: Vec<Wire> = (1..=4)
        .map(|qid| io(running.address, cntlid, qid, Digests::default()))
        .collect();
    drop(first);
    queues
        .iter_mut()
        .for_each(|q| q.expect_end(Fes::SequenceError));

    let (mut second, cntlid) = admin(running.address);
    let mut queues: Vec<Wire> = (1..=4)
        .map(|qid| io(running.address, cntlid, qid, Digests::default()))
        .collect();
    let disable = PropertyCommand::set(offset::CC, false, u64::from(cc::ENTRY_SIZES | cc::CSS_ALL));
    assert_eq!(second.command(disable, 1).status(), Status::SUCCESS);
    queues
        .iter_mut()
        .for_each(|q| q.expect_end(Fes::SequenceError));
}

/// SPDK's target lets another host connect I/O queues to a controller.
#[test]
fn an_io_queue_of_another_host_is_refused() {
    let running = setup().start();
    let (_admin, cntlid) = admin(running.address);
    let mut data = connect_data(cntlid);
    data.hostnqn.push('x');
    let mut wire = Wire::ready(running.address, Digests::default());
    assert!(
        wire.connect(connect_command(1), &data)
            .status()
            .is(Status::CONNECT_INVALID_PARAMETERS)
    );
}

/// When an export has returned, no reactor serves by the old view.
#[test]
fn a_changed_export_is_in_force_everywhere_when_it_returns() {
    let setup = setup();
    let config = setup.export_config(0);
    let running = setup.start();
    let (_admin, cntlid) = admin(running.address);
    let mut queues: Vec<Wire> = (1..=4)
        .map(|qid| io(running.address, cntlid, qid, Digests::default()))
        .collect();
    for (state, status) in [
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::Optimized, Status::SUCCESS),
        (AnaState::Change, Status::ANA_TRANSITION),
    ] {
        let mut config = config.clone();
        config.ana_state = state;
        running
            .command(|target| async move { target.export(config).await })
            .expect("an export");
        for queue in &mut queues {
            assert!(queue.write(0, &pattern(1, BLOCK)).is(status), "{state:?}");
        }
    }
}

/// A host that is taken off the list loses its connections, one that stays on it notices nothing.
#[test]
fn hosts_that_are_no_longer_allowed_are_disconnected() {
    let setup = setup();
    let config = setup.export_config(0);
    let running = setup.start();
    let mut out = pair(running.address, Digests::default());
    let other = "nqn.2024-01.io.keelblock:other";
    let (mut stays, stays_cntlid) = {
        let mut wire = Wire::ready(running.address, Digests::default());
        let mut data = connect_data(CNTLID_DYNAMIC);
        (data.hostnqn, data.hostid) = (other.into(), [3; 16]);
        let cqe = wire.connect(connect_command(0), &data);
        assert_eq!(cqe.status(), Status::SUCCESS);
        (wire, cqe.dw0())
    };
    assert_ne!(u32::from(out.cntlid), stays_cntlid);
    let mut config = config;
    config.allowed_hosts = Some(vec![other.into()]);
    running
        .command(|target| async move { target.export(config).await })
        .expect("an export");
    out.io.expect_end(Fes::SequenceError);
    out.admin.expect_end(Fes::SequenceError);
    assert_eq!(
        stays
            .command(PropertyCommand::get(offset::VS, false), 1)
            .status(),
        Status::SUCCESS
    );
    let mut wire = Wire::ready(running.address, Digests::default());
    let refused = wire
        .connect(connect_command(0), &connect_data(CNTLID_DYNAMIC))
        .status();
    assert!(refused.is(Status::CONNECT_INVALID_HOST), "{refused:?}");
}

/// Unexport ends everything, and the name is free again.
#[test]
fn unexport_and_export_again() {
    let setup = setup();
    let config = setup.export_config(0);
    let running = setup.start();
    for _ in 0..3 {
        let mut pair = pair(running.address, Digests::default());
        assert_eq!(pair.io.write(0, &pattern(1, BLOCK)), Status::SUCCESS);
        let nqn = config.nqn.clone();
        running.command(|target| async move { target.unexport(&nqn).await });
        pair.io.expect_end(Fes::SequenceError);
        pair.admin.expect_end(Fes::SequenceError);
        let mut wire = Wire::ready(running.address, Digests::default());
        let refused = wire
            .connect(connect_command(0), &connect_data(CNTLID_DYNAMIC))
            .status();
        assert!(
            refused.is(Status::CONNECT_INVALID_PARAMETERS),
            "{refused:?}"
        );
        let again = config.clone();
        running
            .command(|target| async move { target.export(again).await })
            .expect("an export");
    }
    let listed = running.command(|target| async move { target.list().await });
    assert_eq!(listed.len(), 1);
    assert!(
        listed[0].1.is_empty(),
        "controllers are left: {:?}",
        listed[0].1
    );
}

/// Many subsystems, at home on different reactors, each with its own data.
#[test]
fn subsystems_do_not_mix() {
    let exports: Vec<Export> = (0..8)
        .map(|i| Export {
            nqn: format!("nqn.2024-01.io.keelblock:volume{i}"),
            allowed_hosts: None,
        })
        .collect();
    let setup = Setup {
        exports,
        volume_bytes: 4 << 20,
        ..setup()
    };
    let names: Vec<Arc<str>> = (0..8).map(|i| setup.export_config(i).nqn).collect();
    let running = setup.start();
    let mut queues: Vec<(Wire, Wire)> = names
        .iter()
        .map(|nqn| {
            let data = |cntlid| {
                let mut data = connect_data(cntlid);
                data.subnqn = nqn.to_string();
                data
            };
            let mut admin = Wire::ready(running.address, Digests::default());
            let cntlid = admin
                .connect(connect_command(0), &data(CNTLID_DYNAMIC))
                .dw0() as u16;
            let enable = PropertyCommand::set(
                offset::CC,
                false,
                u64::from(cc::EN | cc::ENTRY_SIZES | cc::CSS_ALL),
            );
            assert_eq!(admin.command(enable, 1).status(), Status::SUCCESS);
            let mut io = Wire::ready(running.address, Digests::default());
            assert_eq!(
                io.connect(connect_command(1), &data(cntlid)).status(),
                Status::SUCCESS
            );
            (admin, io)
        })
        .collect();
    for (i, (_, io)) in queues.iter_mut().enumerate() {
        assert_eq!(io.write(5, &pattern(i as u8, BLOCK)), Status::SUCCESS);
    }
    for (i, (_, io)) in queues.iter_mut().enumerate() {
        assert!(io.read(5, 1) == pattern(i as u8, BLOCK), "volume {i}");
    }
}

/// Flush, write zeroes, deallocate, verify and compare from a queue whose volume's lanes are elsewhere.
#[test]
fn operations_from_either_reactor() {
    let running = setup().start();
    let (_admin, cntlid) = admin(running.address);
    for qid in 1..=4 {
        let mut io = io(running.address, cntlid, qid, Digests::default());
        let data = pattern(qid as u8, 2 * BLOCK);
        assert_eq!(io.write(40, &data), Status::SUCCESS);
        let none = Sgl::Transport { length: 0 };
        for code in [opcode::FLUSH, opcode::VERIFY] {
            io.send(&io.capsule(&with(Sqe::io(code, 1, 40, 2), 1, none), &[]));
            assert_eq!(io.response().status(), Status::SUCCESS);
        }
        let compare = with(
            Sqe::io(opcode::COMPARE, 1, 40, 2),
            2,
            Sgl::InCapsule {
                offset: 0,
                length: 2 * BLOCK as u32,
            },
        );
        io.send(&io.capsule(&compare, &data));
        assert_eq!(io.response().status(), Status::SUCCESS);
        io.send(&io.capsule(&with(Sqe::io(opcode::WRITE_ZEROES, 1, 40, 1), 3, none), &[]));
        assert_eq!(io.response().status(), Status::SUCCESS);
        assert!(io.read(40, 1) == [0; BLOCK] && io.read(41, 1) == data[BLOCK..]);
        io.send(&io.capsule(&compare, &data));
        assert!(io.response().status().is(Status::COMPARE_FAILURE));
        let range = [
            0u32.to_le_bytes(),
            1u32.to_le_bytes(),
            41u32.to_le_bytes(),
            [0; 4],
        ]
        .concat();
        let dsm = Sqe::new(opcode::DATASET_MANAGEMENT, 1).with_cdw(11, 4);
        io.send(&io.capsule(
            &with(
                dsm,
                4,
                Sgl::InCapsule {
                    offset: 0,
                    length: 16,
                },
            ),
            &range,
        ));
        assert_eq!(io.response().status(), Status::SUCCESS);
        assert!(io.read(41, 1) == [0; BLOCK]);
    }
}
