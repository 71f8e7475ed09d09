//! Resync by itself: what it moves, what it is spared, snapshots, and what a member has damaged.

use std::ops::Range;
use std::time::Duration;

use super::cluster::{Cluster, Coordinator, LANES, Shape};
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, LaneBlock, SnapshotId};
use crate::volume::coordinator::driver::Peers;
use crate::volume::coordinator::state::Standing;

const LONG: Duration = Duration::from_secs(60);

fn cluster(nodes: usize) -> Cluster {
    let shape = Shape {
        nodes,
        spares: 0,
        minimum: 1,
        volatile: false,
        lossy: true,
        real: false,
        drift: false,
        sealed: false,
        list_max: 0,
    };
    Cluster::new(7, shape)
}

fn until(cluster: &mut Cluster, what: &str, is: impl Fn(&Cluster) -> bool) {
    let deadline = cluster.rig.sim.now() + LONG;
    while !is(cluster) {
        let late = cluster.rig.sim.now() >= deadline;
        assert!(!late, "not in time: {what}\n{}", cluster.describe());
        cluster.rig.sim.run_for(Duration::from_millis(10));
    }
}

fn serving(cluster: &mut Cluster, node: usize) -> Coordinator {
    let driver = cluster.attach(node).expect("it runs");
    let of = driver.clone();
    until(cluster, "it serves", |_| of.standing() == Standing::Serving);
    driver
}

/// Writes a value to blocks, up to 128 at a time.
fn write(cluster: &Cluster, driver: &Coordinator, lane: u8, blocks: Range<u64>, value: u8) {
    let handle = cluster.outside();
    let (driver, on) = (driver.clone(), handle.clone());
    let work = async move {
        for first in blocks.clone().step_by(128) {
            let count = (blocks.end - first).min(128) as usize;
            let mut buffer = on.buffers().take(count * BLOCK_BYTES).await;
            buffer[..count * BLOCK_BYTES].fill(value);
            let written = driver.write(lane, LaneBlock(first), buffer, count, false);
            assert_eq!(written.await, Ok(()));
        }
    };
    cluster
        .rig
        .sim
        .run(&handle, LONG, work)
        .expect("it is written");
}

fn all_are_members(cluster: &mut Cluster, driver: &Coordinator) {
    let nodes = cluster.shape.nodes;
    until(cluster, "all are members", |c| {
        c.kvdb.record().members().count() == nodes && driver.kept().records == 0
    });
    for lane in 0..LANES {
        let first = cluster.entries(0, lane, 256);
        assert!(first.is_some());
        (1..nodes).for_each(|n| assert_eq!(cluster.entries(n, lane, 256), first));
    }
}

#[test]
fn little_more_is_moved_than_what_differs() {
    let mut cluster = cluster(2);
    let driver = serving(&mut cluster, 0);
    write(&cluster, &driver, 0, 0..8000, 1);
    cluster.end(1, false);
    // One block in twenty, here and there.
    let mut random = 5_u64;
    for group in 0..400 {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let block = group * 20 + (random >> 33) % 20;
        write(&cluster, &driver, 0, block..block + 1, 2);
    }
    let there = driver.place(&[2; 16]).expect("its place");
    let before = driver.peers().moved(there);
    cluster.begin(1);
    all_are_members(&mut cluster, &driver);
    let (moved, differs) = (driver.peers().moved(there) - before, 400 * 4096);
    println!("moved {moved} for {differs}");
    assert!(moved >= differs && moved * 100 <= differs * 105, "{moved}");
}

#[test]
fn after_the_coordinator_died_with_writes_in_flight_nobody_needs_a_full_copy() {
    let mut cluster = cluster(3);
    let driver = serving(&mut cluster, 0);
    write(&cluster, &driver, 0, 0..4000, 1);
    let handle = cluster.outside();
    for first in 0..32 {
        let (driver, on) = (driver.clone(), handle.clone());
        handle.spawn("write", async move {
            let buffer = on.buffers().take(BLOCK_BYTES).await;
            // It is acknowledged, or its coordinator dies.
            let written = driver.write(1, LaneBlock(first), buffer, 1, false);
            let _ = on.timeout(LONG, written).await;
        });
    }
    cluster.rig.sim.run_for(Duration::from_micros(150));
    cluster.end(0, true);
    let driver = serving(&mut cluster, 1);
    write(&cluster, &driver, 0, 100..140, 2);
    cluster.begin(0);
    all_are_members(&mut cluster, &driver);
    let moved: u64 = (1..=3)
        .filter_map(|id| driver.place(&[id; 16]))
        .map(|place| driver.peers().moved(place))
        .sum();
    let whole = 4000 * BLOCK_BYTES as u64;
    assert!(moved * 10 < whole, "{moved} of {whole}");
}

#[test]
fn a_member_gets_what_it_has_damaged_from_another() {
    let mut cluster = cluster(2);
    let driver = serving(&mut cluster, 0);
    write(&cluster, &driver, 0, 0..8, 1);
    until(&mut cluster, "settled", |_| driver.kept().records == 0);
    let disk = cluster.disk(0).expect("it is in memory");
    disk.borrow_mut().damaged.insert((0, 3));
    let handle = cluster.outside();
    let (of, on) = (driver.clone(), handle.clone());
    let read = async move {
        let buffer = on.buffers().take(8 * BLOCK_BYTES).await;
        let (buffer, done) = of.read(0, 0..8, buffer).await;
        assert_eq!(done, Ok(()));
        buffer[..8 * BLOCK_BYTES].iter().all(|b| *b == 1)
    };
    assert!(cluster.rig.sim.run(&handle, LONG, read).expect("it ends"));
    until(&mut cluster, "it is repaired", |_| {
        disk.borrow().damaged.is_empty()
    });
}

#[test]
fn a_member_gets_what_its_scrub_found_damaged() {
    for sealed in [false, true] {
        let shape = Shape {
            sealed,
            ..cluster(3).shape
        };
        let mut cluster = Cluster::new(3, shape);
        let driver = serving(&mut cluster, 0);
        write(&cluster, &driver, 0, 0..8, 1);
        all_are_members(&mut cluster, &driver);
        let disk = cluster.disk(1).expect("it is in memory");
        let all = [(0, LaneBlock(3)), (0, LaneBlock(7))];
        for (lane, block) in all {
            disk.borrow_mut().damaged.insert((lane, block.0));
        }
        // One that is well, and one that nobody wrote, are left alone.
        let told = [&all[..], &[(0, LaneBlock(5)), (1, LaneBlock(9))]].concat();
        assert!(cluster.tell_damaged(1, told));
        until(&mut cluster, "it is repaired", |_| {
            disk.borrow().damaged.is_empty()
        });
        all_are_members(&mut cluster, &driver);
    }
}

/// What each node has of a snapshot, block by block.
fn snapshot_blocks(cluster: &Cluster, node: usize, id: SnapshotId) -> Vec<u8> {
    let tree = Tree {
        lane: 0,
        snapshot: Some(id),
    };
    let found = cluster.blocks(node, tree, 16);
    let (_, bytes) = found.unwrap_or_else(|| panic!("node {node} has no {id}"));
    bytes.chunks_exact(BLOCK_BYTES).map(|b| b[0]).collect()
}

fn snapshot(cluster: &Cluster, driver: &Coordinator, id: SnapshotId, deleted: bool) {
    let (handle, of) = (cluster.outside(), driver.clone());
    let work = async move {
        match deleted {
            true => of.delete_snapshot(id).await,
            false => of.snapshot(id).await,
        }
    };
    let done = cluster.rig.sim.run(&handle, LONG, work);
    assert_eq!(done, Some(Ok(())), "{id}");
}

#[test]
fn a_replica_that_was_away_gets_the_snapshots_that_it_lacks_and_no_others() {
    for (real, sealed) in [(false, false), (true, false), (true, true)] {
        let shape = Shape {
            real,
            sealed,
            ..cluster(3).shape
        };
        let mut cluster = Cluster::new(7, shape);
        let driver = serving(&mut cluster, 0);
        let ids = [1, 2, 3, 4].map(|n| SnapshotId([n; 16]));
        write(&cluster, &driver, 0, 0..8, 1);
        for id in &ids[..2] {
            snapshot(&cluster, &driver, *id, false);
        }
        cluster.end(2, true);
        write(&cluster, &driver, 0, 4..12, 2);
        snapshot(&cluster, &driver, ids[2], false);
        snapshot(&cluster, &driver, ids[0], true);
        write(&cluster, &driver, 0, 0..6, 3);
        snapshot(&cluster, &driver, ids[3], false);
        write(&cluster, &driver, 0, 0..16, 4);
        cluster.begin(2);
        all_are_members(&mut cluster, &driver);
        assert_eq!(driver.snapshots(), ids[1..]);
        let expected = [
            [[1; 8], [0; 8]].concat(),
            [[1; 4], [2; 4], [2; 4], [0; 4]].concat(),
            [[3; 4], [3, 3, 2, 2], [2; 4], [0; 4]].concat(),
        ];
        for node in 0..3 {
            let there: Vec<_> = ids[1..].iter().map(|id| (*id, LANES)).collect();
            assert_eq!(cluster.snapshots(node), Some(there), "node {node}");
            for (id, expected) in ids[1..].iter().zip(&expected) {
                let found = snapshot_blocks(&cluster, node, *id);
                assert_eq!(&found, expected, "{id} of node {node}");
            }
        }
    }
}
