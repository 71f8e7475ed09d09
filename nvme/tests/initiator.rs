//! The initiator against a target that does what it should.

mod support;

use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{
    Backoff, Completion, ConnectOptions, Controller, Error, IoQueue, Namespace, Payload, discover,
};
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::{Sqe, Status, opcode};
use support::{BLOCK, BLOCKS, Config, HOST, NQN, Target};

const ALL_DIGESTS: [Digests; 4] = [
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

fn connect(target: &Target, digests: Digests) -> (Controller, IoQueue, Namespace) {
    let options = ConnectOptions {
        digests,
        ..ConnectOptions::default()
    };
    let mut controller = Controller::connect(target.addr, NQN, HOST, &options).unwrap();
    let namespace = Namespace::new(1, &controller.namespace(1).unwrap()).unwrap();
    let queue = controller.io_queue(1, 32).unwrap();
    (controller, queue, namespace)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn data_survives_every_path_with_every_digest() {
    for digests in ALL_DIGESTS {
        for (cpda, c2h_bytes, success_flag) in
            [(0, 1 << 20, false), (31, 1000, true), (3, 4096, false)]
        {
            let target = Target::start(Config {
                cpda,
                c2h_bytes,
                success_flag,
                r2t_bytes: 100_000,
                ..Config::default()
            });
            let (controller, mut queue, ns) = connect(&target, digests);
            assert_eq!(
                (ns.block_bytes as usize, ns.blocks as usize),
                (BLOCK, BLOCKS)
            );
            for blocks in [1, 8, 9, 64, 2048, 5000] {
                let data = pattern(blocks * BLOCK);
                queue.write(&ns, 3, &data).unwrap();
                assert!(
                    queue.read(&ns, 3, blocks).unwrap() == data,
                    "{digests:?} {blocks} blocks"
                );
                queue.compare(&ns, 3, &data).unwrap();
            }
            queue.flush(&ns).unwrap();
            controller.shutdown().unwrap();
        }
    }
}

#[test]
fn data_travels_in_the_capsule_up_to_ioccsz_and_by_r2t_beyond() {
    let target = Target::start(Config {
        in_capsule: 4096,
        max_h2c: 8192,
        r2t_bytes: 20_480,
        ..Config::default()
    });
    let (_controller, mut queue, ns) = connect(&target, Digests::default());
    queue.write(&ns, 0, &pattern(4096)).unwrap();
    assert_eq!(
        (target.seen().in_capsule_writes, target.seen().r2ts),
        (1, 0)
    );
    queue.write(&ns, 0, &pattern(4608)).unwrap();
    assert_eq!(
        (
            target.seen().in_capsule_writes,
            target.seen().r2ts,
            target.seen().h2c_pdus
        ),
        (1, 1, 1)
    );
    queue.write(&ns, 0, &pattern(40_960)).unwrap();
    assert_eq!(
        (target.seen().r2ts, target.seen().h2c_pdus),
        (3, 7),
        "two R2Ts of 20 KiB in pieces of 8, 8 and 4 KiB"
    );
}

#[test]
fn connect_says_who_and_how() {
    let target = Target::start(Config::default());
    let options = ConnectOptions {
        hostid: [9; 16],
        keep_alive: Duration::from_millis(4321),
        sq_flow_control: false,
        ..ConnectOptions::default()
    };
    let mut controller = Controller::connect(target.addr, NQN, HOST, &options).unwrap();
    assert_eq!(controller.set_io_queues(9).unwrap(), 4);
    let depth = controller.io_queue(2, 1000).unwrap().pair().free();
    assert_eq!(depth, 127, "a queue of MQES + 1 = 128 entries");
    let seen = target.seen();
    let [(admin, data), (io, io_data)] = &seen.connects[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((admin.qid, admin.kato_ms, admin.cattr), (0, 4321, 4));
    assert_eq!((io.qid, io.kato_ms, io.sqsize, io.cattr), (2, 0, 127, 4));
    assert_eq!((data.cntlid, io_data.cntlid), (0xffff, 1));
    assert_eq!(
        (data.hostid, data.subnqn.as_str(), data.hostnqn.as_str()),
        ([9; 16], NQN, HOST)
    );
    assert_eq!(
        (io_data.hostid, &io_data.hostnqn),
        (data.hostid, &data.hostnqn)
    );
}

#[test]
fn a_status_is_an_error_that_leaves_the_queue_usable() {
    let target = Target::start(Config::default());
    let (mut controller, mut queue, ns) = connect(&target, Digests::default());
    let refused = queue.read(&ns, ns.blocks, 1).unwrap_err();
    assert!(
        refused.status().unwrap().is(Status::LBA_OUT_OF_RANGE) && !refused.is_transport(),
        "{refused}"
    );
    let refused = queue
        .write(&ns, ns.blocks - 1, &pattern(64 * BLOCK))
        .unwrap_err();
    assert!(
        refused.status().unwrap().is(Status::LBA_OUT_OF_RANGE),
        "{refused}"
    );
    let refused = queue.compare(&ns, 0, &pattern(BLOCK)).unwrap_err();
    assert!(
        refused.status().unwrap().is(Status::COMPARE_FAILURE),
        "{refused}"
    );
    assert!(
        controller
            .feature(7, 0)
            .unwrap_err()
            .status()
            .unwrap()
            .is(Status::INVALID_OPCODE)
    );
    assert_eq!(queue.read(&ns, 0, 1).unwrap(), [0; BLOCK]);
}

#[test]
fn a_write_refused_while_its_data_leaves_gives_the_buffer_back_and_goes_on() {
    let status = Status::WRITE_FAULT;
    let target = Target::start(Config {
        fail_after_r2t: Some(status),
        max_h2c: 4096,
        ..Config::default()
    });
    for digests in ALL_DIGESTS {
        let (_controller, mut queue, ns) = connect(&target, digests);
        for _ in 0..8 {
            let data = pattern(1 << 20);
            let sqe = Sqe::io(opcode::io::WRITE, 1, 0, 2048);
            let done = queue
                .command("Write", sqe, Payload::Send(data.clone()))
                .unwrap();
            assert!(done.status().is(status) && done.buffer == data);
        }
        queue.write(&ns, 0, &pattern(4096)).unwrap();
        assert_eq!(queue.read(&ns, 0, 8).unwrap(), pattern(4096));
    }
}

#[test]
fn a_full_queue_gives_the_payload_back_and_all_complete() {
    let target = Target::start(Config {
        in_capsule: 0,
        ..Config::default()
    });
    let (_controller, mut queue, _) = connect(
        &target,
        Digests {
            header: true,
            data: true,
        },
    );
    let pair = queue.pair();
    for tag in 0..32 {
        let sqe = Sqe::io(opcode::io::READ, 1, tag * 8, 8);
        pair.submit(tag, sqe, Payload::Receive(vec![1; 4096]))
            .unwrap();
    }
    let back = pair
        .submit(
            99,
            Sqe::io(opcode::io::READ, 1, 0, 1),
            Payload::Receive(vec![7; 512]),
        )
        .unwrap_err();
    assert_eq!(
        (back.into_buffer(), pair.free(), pair.in_flight()),
        (vec![7; 512], 0, 32)
    );
    let mut done: Vec<Completion> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while done.len() < 32 {
        if pair.poll(&mut done).unwrap() == 0 {
            assert!(Instant::now() < deadline, "{} of 32 completed", done.len());
            pair.wait(deadline).unwrap();
        }
    }
    let mut tags: Vec<_> = done.iter().map(|d| d.tag).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..32));
    assert!(
        done.iter()
            .all(|d| d.status().is_success() && d.received == 4096 && d.buffer == [0; 4096])
    );
    assert_eq!(pair.free(), 32);
}

#[test]
fn discovery_reads_every_entry() {
    let target = Target::start(Config::default());
    let entries = discover(target.addr, HOST, &ConnectOptions::default()).unwrap();
    assert_eq!(entries.len(), 20);
    for (i, e) in entries.iter().enumerate() {
        let addr = format!("127.0.0.1:{}", 4420 + i).parse().unwrap();
        assert_eq!(
            (e.addr(), e.subnqn.as_str(), e.trtype, e.subtype),
            (Some(addr), NQN, 3, 2)
        );
    }
}

#[test]
fn keep_alive_is_sent_when_due_and_events_are_collected() {
    let target = Target::start(Config::default());
    let options = ConnectOptions {
        keep_alive: Duration::from_millis(30),
        ..ConnectOptions::default()
    };
    let mut controller = Controller::connect(target.addr, NQN, HOST, &options).unwrap();
    controller.watch_events().unwrap();
    let (mut events, deadline) = (0, Instant::now() + Duration::from_secs(10));
    while target.seen().keep_alives < 3 || events < 3 {
        events += controller
            .take_events()
            .unwrap()
            .iter()
            .filter(|e| e.kind() == 2 && e.log_page() == 4)
            .count();
        assert!(
            Instant::now() < deadline,
            "{events} events, {:?}",
            target.seen()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connecting_again_waits_for_the_target_and_gives_up_in_bounds() {
    // A port that nobody listens on: bound, then let go.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let backoff = Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(2),
        attempts: 4,
    };
    let error = Controller::connect_retrying(free, NQN, HOST, &ConnectOptions::default(), &backoff)
        .unwrap_err();
    assert!(
        matches!(error, Error::Connect { addr, .. } if addr == free),
        "{error}"
    );

    let target = Target::start(Config::default());
    let (mut controller, _, ns) = connect(&target, Digests::default());
    controller.reconnect(&backoff).unwrap();
    let mut queue = controller.io_queue(1, 4).unwrap();
    queue.write(&ns, 1, &pattern(BLOCK)).unwrap();
    let error = Controller::connect(
        target.addr,
        "nqn.2026-01.io.keelblock:other",
        HOST,
        &ConnectOptions::default(),
    );
    assert!(
        error
            .unwrap_err()
            .status()
            .unwrap()
            .is(Status::CONNECT_INVALID_PARAMETERS)
    );
    assert!(matches!(
        Controller::connect(target.addr, "iqn.x", HOST, &ConnectOptions::default()),
        Err(Error::Name(_))
    ));
}
