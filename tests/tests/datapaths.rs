//! Data paths of several nodes and one volume with replicas on them, commanded by the test.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};
use keelblock_tests::datapaths::DataPaths;
use keelblock_tests::workload::{Target, queue_of};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What a host wrote.
struct Host {
    queue: IoQueue,
    ns: Namespace,
    _controller: Controller,
}

fn connect(target: &Target) -> Host {
    let host = "nqn.2014-08.org.nvmexpress:uuid:0cc1d0b8-0000-4000-8000-000000000001";
    let controller = Controller::connect(
        target.address,
        &target.nqn,
        host,
        &ConnectOptions::default(),
    )
    .unwrap();
    let (controller, queue, ns) = queue_of(controller, target.nsid, 31).unwrap();
    Host {
        queue,
        ns,
        _controller: controller,
    }
}

const BLOCKS: u64 = 512;

/// Writes at random, and notes what every block holds.
fn write(host: &mut Host, random: &mut SmallRng, count: usize, shadow: &mut [u8]) {
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    for _ in 0..count {
        let blocks = random.random_range(1..=8);
        let first = random.random_range(0..=BLOCKS - blocks);
        let mut data = vec![0; blocks as usize * 4096];
        random.fill(&mut data[..]);
        let sent = Instant::now();
        host.queue.write(&host.ns, first, &data).unwrap();
        longest = longest.max(sent.elapsed());
        let at = first as usize * 4096;
        shadow[at..at + data.len()].copy_from_slice(&data);
    }
    println!(
        "{count} writes in {:?}, the longest {longest:?}",
        begin.elapsed()
    );
}

fn verify(host: &mut Host, shadow: &[u8]) {
    for first in (0..BLOCKS).step_by(8) {
        let data = host.queue.read(&host.ns, first, 8).unwrap();
        let at = first as usize * 4096;
        assert!(
            data == shadow[at..at + data.len()],
            "blocks from {first} on"
        );
    }
}

fn seeded() -> SmallRng {
    let given = std::env::var("KEEL_SEED").map(|s| s.parse().unwrap());
    let seed: u64 = given.unwrap_or_else(|_| SmallRng::from_os_rng().random());
    println!("KEEL_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

#[test]
fn a_volume_outlives_a_replica_which_comes_back() {
    let mut random = seeded();
    let mut shadow = vec![0; BLOCKS as usize * 4096];
    let mut nodes = DataPaths::start(3, 64 << 20, SmallRng::from_rng(&mut random));
    let mut host = connect(&nodes.attach(0));
    write(&mut host, &mut random, 200, &mut shadow);
    verify(&mut host, &shadow);
    host.queue.flush(&host.ns).unwrap();
    nodes.kill(2);
    let begin = Instant::now();
    write(&mut host, &mut random, 200, &mut shadow);
    nodes.wait_for_members(&[0, 1]);
    println!("excluded after {:?}", begin.elapsed());
    verify(&mut host, &shadow);

    write(&mut host, &mut random, 100, &mut shadow);
    nodes.begin(2);
    let begin = Instant::now();
    nodes.wait_for_members(&[0, 1, 2]);
    println!("back in the set after {:?}", begin.elapsed());
    // What it was copied counts: it and one other have everything.
    nodes.kill(0);
    let mut host = connect(&nodes.attach(2));
    verify(&mut host, &shadow);
    nodes.begin(0);
    nodes.wait_for_members(&[0, 1, 2]);
    verify(&mut host, &shadow);
}

#[test]
fn a_volume_outlives_its_coordinator() {
    let mut random = seeded();
    let mut shadow = vec![0; BLOCKS as usize * 4096];
    let mut nodes = DataPaths::start(3, 64 << 20, SmallRng::from_rng(&mut random));
    let mut host = connect(&nodes.attach(0));
    write(&mut host, &mut random, 200, &mut shadow);
    nodes.kill(0);
    let begin = Instant::now();
    let mut host = connect(&nodes.attach(1));
    println!("the other one coordinates after {:?}", begin.elapsed());
    verify(&mut host, &shadow);
    write(&mut host, &mut random, 200, &mut shadow);
    verify(&mut host, &shadow);
    assert_eq!(nodes.members(), [1, 2]);
}

#[test]
fn a_planned_move_waits_for_no_lease() {
    let mut random = seeded();
    let mut shadow = vec![0; BLOCKS as usize * 4096];
    let mut nodes = DataPaths::start(3, 64 << 20, SmallRng::from_rng(&mut random));
    let mut host = connect(&nodes.attach(0));
    write(&mut host, &mut random, 100, &mut shadow);
    for to in [1, 2, 0] {
        let begin = Instant::now();
        nodes.detach((to + 2) % 3);
        let target = nodes.attach(to);
        println!("moved in {:?}", begin.elapsed());
        let mut host = connect(&target);
        verify(&mut host, &shadow);
        write(&mut host, &mut random, 100, &mut shadow);
        assert_eq!(nodes.members(), [0, 1, 2]);
    }
}

/// Flips a bit of so many blocks of the volume, as a drive's file has them.
fn rot(drive: &Path, shadow: &[u8], count: usize) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(drive)
        .unwrap();
    let stored = std::fs::read(drive).unwrap();
    let mut left = count;
    for block in shadow
        .chunks_exact(4096)
        .filter(|b| b.iter().any(|b| *b != 0))
    {
        if left == 0 {
            break;
        }
        let Some(at) = stored.chunks_exact(4096).position(|b| b == block) else {
            continue;
        };
        file.write_all_at(&[block[17] ^ 4], at as u64 * 4096 + 17)
            .unwrap();
        left -= 1;
    }
    assert_eq!(left, 0, "blocks are found on the drive");
    file.sync_all().unwrap();
}

#[test]
fn what_a_scrub_finds_comes_from_another_replica() {
    let mut random = seeded();
    let mut shadow = vec![0; BLOCKS as usize * 4096];
    let mut nodes = DataPaths::start(3, 64 << 20, SmallRng::from_rng(&mut random));
    let mut host = connect(&nodes.attach(0));
    write(&mut host, &mut random, 200, &mut shadow);
    host.queue.flush(&host.ns).unwrap();
    // A replica's, and the coordinator's own; more than are told at once.
    for (node, count) in [(1, 3), (0, 40)] {
        assert_eq!(nodes.scrub(node).errors, 0);
        rot(&nodes.path(node, "drive"), &shadow, count);
        let scrubbed = nodes.scrub(node);
        let found = (scrubbed.errors, scrubbed.repaired);
        assert_eq!(found, (count as u64, count as u64), "node {node}");
        assert_eq!(nodes.scrub(node).errors, 0, "node {node}");
    }
    verify(&mut host, &shadow);
    // Nobody has what two of two lack: it is found, and stays.
    nodes.kill(2);
    nodes.wait_for_members(&[0, 1]);
    for node in [0, 1] {
        rot(&nodes.path(node, "drive"), &shadow, 1);
    }
    let scrubbed = nodes.scrub(1);
    assert_eq!((scrubbed.errors, scrubbed.repaired), (1, 0));
}
