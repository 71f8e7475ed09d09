//! Hosts that come to nodes which do not coordinate their volume: three data paths, commanded by the test (`docs/replication.md` §14).

use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use keelblock_tests::datapaths::DataPaths;
use keelblock_tests::workload::{Target, queue_of};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const VOLUME_BYTES: u64 = 64 << 20;
/// Status code type of Internal Path Error and the like.
const PATH_RELATED: u16 = 3;

struct Host {
    queue: IoQueue,
    ns: Namespace,
    controller: Controller,
}

fn connect(target: &Target, host: u8) -> Host {
    let host =
        format!("nqn.2014-08.org.nvmexpress:uuid:0cc1d0b8-0000-4000-8000-0000000000{host:02}");
    let options = ConnectOptions::default();
    let controller = Controller::connect(target.address, &target.nqn, &host, &options).unwrap();
    let (controller, queue, ns) = queue_of(controller, target.nsid, 31).unwrap();
    Host {
        queue,
        ns,
        controller,
    }
}

fn seeded() -> SmallRng {
    let given = std::env::var("KEEL_SEED").map(|s| s.parse().unwrap());
    let seed: u64 = given.unwrap_or_else(|_| SmallRng::from_os_rng().random());
    println!("KEEL_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn filled(random: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    random.fill(&mut data[..]);
    data
}

/// Three nodes; the first coordinates, and hosts are connected to each.
fn three(random: &mut SmallRng, lba_bytes: u32) -> (DataPaths, Vec<Host>) {
    let mut nodes = DataPaths::start(3, VOLUME_BYTES, SmallRng::from_rng(random));
    nodes.lba_bytes = lba_bytes;
    let targets = [nodes.attach(0), nodes.forward(1, 0), nodes.forward(2, 0)];
    let hosts = targets
        .iter()
        .zip(1..)
        .map(|(t, n)| connect(t, n))
        .collect();
    (nodes, hosts)
}

fn path_error(error: &Error) -> bool {
    error
        .status()
        .is_some_and(|s| s.code() >> 8 == PATH_RELATED)
}

/// On a machine that is so busy that a process stands still for half a second, a forwarder cannot tell whether a host holds a command still: it is sent again,
/// as hosts do.
fn again(mut command: impl FnMut() -> Result<(), Error>) {
    for attempt in 1.. {
        match command() {
            Ok(()) => return,
            Err(error) if path_error(&error) && attempt < 50 => eprintln!("again: {error}"),
            Err(error) => panic!("attempt {attempt}: {error}"),
        }
    }
}

/// Writes of every kind by any node, against what the volume must hold; all is read by any other.
fn exercise(random: &mut SmallRng, hosts: &mut [Host], lba: usize, rounds: usize) {
    let blocks = 16 << 20 >> lba.trailing_zeros();
    let mut shadow = vec![0; blocks * lba];
    for round in 0..rounds {
        let host = &mut hosts[round % 3];
        let most = [1, 8192 / lba, 65_536 / lba, (1 << 20) / lba][round / 3 % 4];
        let count = random.random_range(1..=most);
        let first = random.random_range(0..=blocks - count);
        let at = first * lba..(first + count) * lba;
        let (queue, ns) = (&mut host.queue, &host.ns);
        match random.random_range(0..12) {
            0 => {
                again(|| queue.write_zeroes(ns, first as u64, count as u32, false));
                shadow[at].fill(0);
            }
            1 => {
                again(|| queue.deallocate(ns, &[(first as u64, count as u32)]));
                shadow[at].fill(0);
            }
            2 => {
                let count = count.min((512 << 10) / lba);
                let at = first * lba..(first + count) * lba;
                let new = filled(random, count * lba);
                let old = shadow[at.clone()].to_vec();
                let done = queue.compare_and_write(ns, first as u64, &old, &new);
                // One that was not confirmed in time may be tried again; what it compares is still there.
                if done.is_err_and(|e| path_error(&e)) {
                    queue
                        .compare_and_write(ns, first as u64, &old, &new)
                        .unwrap();
                }
                shadow[at].copy_from_slice(&new);
            }
            3 => again(|| queue.compare(ns, first as u64, &shadow[at.clone()])),
            4 => again(|| queue.flush(ns)),
            5 => again(|| queue.verify(ns, first as u64, count as u32)),
            6 => {
                let data = filled(random, count * lba);
                again(|| queue.write_fua(ns, first as u64, &data));
                shadow[at].copy_from_slice(&data);
            }
            _ => {
                let data = filled(random, count * lba);
                again(|| queue.write(ns, first as u64, &data));
                shadow[at].copy_from_slice(&data);
            }
        }
        let other = &mut hosts[random.random_range(0..3)];
        let count = random.random_range(1..=(1 << 20) / lba);
        let first = random.random_range(0..=blocks - count);
        let read = other.queue.read(&other.ns, first as u64, count).unwrap();
        assert!(
            read == shadow[first * lba..(first + count) * lba],
            "round {round}"
        );
    }
    for host in hosts {
        for first in (0..blocks).step_by((1 << 20) / lba) {
            let read = host
                .queue
                .read(&host.ns, first as u64, (1 << 20) / lba)
                .unwrap();
            assert!(read == shadow[first * lba..first * lba + (1 << 20)]);
        }
    }
}

#[test]
fn every_node_serves_what_one_coordinates() {
    let mut random = seeded();
    let (_nodes, mut hosts) = three(&mut random, 4096);
    exercise(&mut random, &mut hosts, 4096, 240);
}

#[test]
fn parts_of_blocks_are_written_by_any_node() {
    let mut random = seeded();
    let (_nodes, mut hosts) = three(&mut random, 512);
    exercise(&mut random, &mut hosts, 512, 240);
}

#[test]
fn a_pair_that_differs_writes_nothing() {
    let mut random = seeded();
    let (_nodes, mut hosts) = three(&mut random, 4096);
    let (one, two) = (filled(&mut random, 8192), filled(&mut random, 8192));
    let host = &mut hosts[0];
    host.queue.write(&host.ns, 5, &one).unwrap();
    let host = &mut hosts[1];
    let failed = host.queue.compare_and_write(&host.ns, 5, &two, &two);
    let status = failed.unwrap_err().status().expect("it was answered");
    assert_eq!(status.code(), 0x285, "{status:?}");
    let host = &mut hosts[2];
    assert_eq!(host.queue.read(&host.ns, 5, 2).unwrap(), one);
}

/// The same write by this node until it is acknowledged.
fn persist(host: &mut Host, first: u64, data: &[u8]) -> u32 {
    let end = Instant::now() + Duration::from_secs(30);
    for failures in 0.. {
        match host.queue.write(&host.ns, first, data) {
            Ok(()) => return failures,
            Err(error) => assert!(path_error(&error) && Instant::now() < end, "{error}"),
        }
    }
    unreachable!()
}

#[test]
fn hosts_of_a_forwarder_outlive_the_coordinator() {
    let mut random = seeded();
    let (mut nodes, mut hosts) = three(&mut random, 4096);
    let mut host = hosts.remove(2);
    let mut shadow = Vec::new();
    for n in 0..64 {
        let data = filled(&mut random, 16_384);
        host.queue.write(&host.ns, n * 4, &data).unwrap();
        shadow.push(data);
    }
    nodes.kill(0);
    nodes.attach(1);
    nodes.forward(2, 1);
    for n in 0..64 {
        let data = filled(&mut random, 16_384);
        persist(&mut host, (64 + n) * 4, &data);
        shadow.push(data);
    }
    for (n, data) in (0..).zip(&shadow) {
        assert!(host.queue.read(&host.ns, n * 4, 4).unwrap() == *data, "{n}");
    }
    assert_eq!(nodes.members(), [1, 2]);
}

/// A host sends a write to a forwarder that stands still, gives up, writes the same by the coordinator, and then something else: what the forwarder finds in
/// its socket when it goes on is not done any more.
#[test]
fn a_write_that_waited_in_a_forwarder_does_not_come_after_what_followed_it() {
    let mut random = seeded();
    for in_capsule in [true, false] {
        let (nodes, mut hosts) = three(&mut random, 4096);
        let bytes = if in_capsule { 4096 } else { 65_536 };
        let (old, new) = (filled(&mut random, bytes), filled(&mut random, bytes));
        // Longer than what is taken for a stop.
        std::thread::sleep(Duration::from_secs(1));
        nodes.hold(1, true);
        let mut stuck = hosts.remove(1);
        let sent = {
            let old = old.clone();
            std::thread::spawn(move || {
                let done = stuck.queue.write(&stuck.ns, 7, &old);
                (stuck, done)
            })
        };
        std::thread::sleep(Duration::from_millis(300));
        let direct = &mut hosts[0];
        direct.queue.write(&direct.ns, 7, &old).unwrap();
        direct.queue.write(&direct.ns, 7, &new).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        nodes.hold(1, false);
        let (mut stuck, done) = sent.join().unwrap();
        match (in_capsule, done) {
            // The host is asked for its data once there are stamps, so it holds the command.
            (false, done) => drop(done),
            (true, Ok(())) => panic!("it was done after what followed it"),
            (true, Err(error)) => assert!(path_error(&error), "{error}"),
        }
        if in_capsule {
            assert!(direct.queue.read(&direct.ns, 7, bytes / 4096).unwrap() == new);
        }
        // It goes on after a moment.
        std::thread::sleep(Duration::from_secs(1));
        again(|| stuck.queue.write(&stuck.ns, 7, &new));
        assert!(direct.queue.read(&direct.ns, 7, bytes / 4096).unwrap() == new);
        drop(stuck.controller);
    }
}
