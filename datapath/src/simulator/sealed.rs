//! Encrypted volumes by themselves: what replicas have is not what was written, and what was changed is not shown.

use std::time::Duration;

use super::cluster::{Cluster, Coordinator, Shape};
use crate::replication::seam::Kind;
use crate::store::types::{BLOCK_BYTES, LaneBlock};
use crate::volume::coordinator::message::Failed;
use crate::volume::coordinator::state::Standing;

const LONG: Duration = Duration::from_secs(60);

fn cluster(real: bool) -> (Cluster, Coordinator) {
    let shape = Shape {
        nodes: 2,
        spares: 0,
        minimum: 1,
        volatile: false,
        lossy: true,
        real,
        drift: false,
        sealed: true,
        list_max: 0,
    };
    let mut cluster = Cluster::new(11, shape);
    let driver = cluster.attach(0).expect("it runs");
    until(&mut cluster, |_| driver.standing() == Standing::Serving);
    (cluster, driver)
}

fn until(cluster: &mut Cluster, is: impl Fn(&Cluster) -> bool) {
    let deadline = cluster.rig.sim.now() + LONG;
    while !is(cluster) {
        assert!(cluster.rig.sim.now() < deadline, "{}", cluster.describe());
        cluster.rig.sim.run_for(Duration::from_millis(10));
    }
}

/// Writes blocks of one byte each, and waits until no stream has them any more.
fn write(cluster: &mut Cluster, driver: &Coordinator, lane: u8, blocks: u64) {
    let (handle, on) = (cluster.outside(), driver.clone());
    let with = handle.clone();
    let wrote = cluster.rig.sim.run(&handle, LONG, async move {
        let len = blocks as usize * BLOCK_BYTES;
        let mut buffer = with.buffers().take(len).await;
        buffer[..len].fill(0xa7);
        let first = LaneBlock(0);
        on.write(lane, first, buffer, blocks as usize, true).await
    });
    assert_eq!(wrote, Some(Ok(())));
    until(cluster, |_| driver.kept().records == 0);
}

fn read(cluster: &Cluster, driver: &Coordinator, lane: u8, blocks: u64) -> Result<(), Failed> {
    let (handle, driver) = (cluster.outside(), driver.clone());
    let with = handle.clone();
    let read = cluster.rig.sim.run(&handle, LONG, async move {
        let len = blocks as usize * BLOCK_BYTES;
        let mut buffer = with.buffers().take(len).await;
        buffer.fill(0);
        let (buffer, read) = driver.read(lane, 0..blocks, buffer).await;
        let expected = if read.is_ok() { 0xa7 } else { 0 };
        let last = &buffer[len - BLOCK_BYTES..len];
        assert!(last.iter().all(|b| *b == expected), "{read:?}");
        read
    });
    read.expect("it ends")
}

#[test]
fn what_was_changed_is_read_from_another_member_and_refused_if_no_other_has_it() {
    let (mut cluster, driver) = cluster(false);
    write(&mut cluster, &driver, 1, 4);
    assert_eq!(read(&cluster, &driver, 1, 4), Ok(()));
    cluster.ledger.as_ref().expect("it is").changed.set(true);
    let change = |node: usize, block| {
        let disk = cluster.disk(node).expect("it is in memory");
        disk.borrow_mut().change_tag(1, block);
    };
    // The near one is asked first.
    change(0, 3);
    assert_eq!(read(&cluster, &driver, 1, 4), Ok(()));
    assert_eq!(driver.not_opened(), 1);
    change(1, 3);
    assert_eq!(read(&cluster, &driver, 1, 4), Err(Failed::NotOpened));
    assert_eq!(driver.not_opened(), 3);
    assert_eq!(read(&cluster, &driver, 1, 3), Ok(()));
}

#[test]
fn replicas_have_what_was_sealed_and_another_coordinator_opens_it() {
    for real in [false, true] {
        let (mut cluster, driver) = cluster(real);
        write(&mut cluster, &driver, 0, 3);
        // A slow one is excluded, and comes back.
        until(&mut cluster, |c| c.member_nodes().len() == 2);
        for node in 0..2 {
            let entries = cluster.entries(node, 0, 3).expect("it can be read");
            let sealed = entries
                .iter()
                .filter(|e| e.kind == Kind::Data && e.seal.key == 3);
            assert_eq!(sealed.count(), 3, "{entries:?}");
        }
        let next = cluster.attach(1).expect("it runs");
        until(&mut cluster, |_| next.standing() == Standing::Serving);
        assert_eq!(read(&cluster, &next, 0, 3), Ok(()));
    }
}
