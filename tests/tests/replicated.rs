//! A volume with three replicas on three nodes: one that only holds a replica dies, and the one that coordinates dies. Nothing that was acknowledged is lost.
use keelblock_tests::cluster::{Cluster, kill};
use keelblock_tests::seed;
use keelblock_tests::several::{
    Held, VOLUME, at, coordinator, until_members, until_served_by_another,
};
use keelblock_tests::workload::{WhenLost, Workload, verify_region, write_region};
use rustix::process::Signal;
use std::time::Instant;

fn three() -> Cluster {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:3").start();
    // One that was not reached when the volume was first served joins later; two of which one dies would serve nothing.
    until_members(&cluster, VOLUME, 3);
    cluster
}

#[test]
fn a_node_with_a_replica_dies_and_io_goes_on() {
    let cluster = three();
    let first = coordinator(&cluster);
    let mut io = Workload::start(at(&cluster, first), seed(), WhenLost::Fail);
    io.wait_for_progress(100);
    let other = (first + 1) % 3;
    let node = cluster.ready().nodes[other].clone();
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    io.wait_for_progress(500);
    io.finish().unwrap();
    assert_eq!(coordinator(&cluster), first);
}

#[test]
fn the_coordinator_dies_and_another_has_everything() {
    let cluster = three();
    let first = coordinator(&cluster);
    let written = write_region(&at(&cluster, first), seed()).unwrap();
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[first].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    let began = Instant::now();
    let now = until_served_by_another(&cluster, (first + 1) % 3, &node.id);
    eprintln!("taken over after {:?}", began.elapsed());
    verify_region(&at(&cluster, now), &written).unwrap();
    let more = write_region(&at(&cluster, now), seed()).unwrap();
    drop(held);
    cluster.wait_until("the dead node is there again", |r| {
        r.nodes[first]
            .datapath_pid
            .is_some_and(|pid| Some(pid) != node.datapath_pid)
    });
    verify_region(&at(&cluster, now), &more).unwrap();
}

#[test]
fn a_host_of_a_node_that_forwards_goes_on_when_the_coordinator_dies() {
    let cluster = three();
    let first = coordinator(&cluster);
    let other = (first + 2) % 3;
    let mut io = Workload::start(at(&cluster, other), seed(), WhenLost::Again);
    io.wait_for_progress(200);
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[first].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    let began = Instant::now();
    until_served_by_another(&cluster, (first + 1) % 3, &node.id);
    eprintln!("taken over after {:?}", began.elapsed());
    io.wait_for_progress(200);
    drop(held);
    cluster.wait_until("the dead node is there again", |r| {
        r.nodes[first]
            .datapath_pid
            .is_some_and(|pid| Some(pid) != node.datapath_pid)
    });
    io.wait_for_progress(200);
    io.finish().unwrap();
}

#[test]
fn a_volume_is_moved_and_survives_a_stop_of_everything_and_an_older_kvdb() {
    let mut cluster = three();
    let first = coordinator(&cluster);
    let written = write_region(&at(&cluster, first), seed()).unwrap();
    let to = cluster.ready().nodes[(first + 1) % 3].id.clone();
    let moved = cluster.keelctl(&["volume", "attach", "r", "--node", &to]);
    assert!(moved.status.success(), "{moved:?}");
    let ready = cluster.wait_until("it is moved", |r| r.volume("r").coordinator == to);
    verify_region(&at(&cluster, (first + 1) % 3), &written).unwrap();
    cluster.stop();
    cluster.start();
    assert_eq!(cluster.ready().cluster_id, ready.cluster_id);
    verify_region(&at(&cluster, coordinator(&cluster)), &written).unwrap();
    let replicas = cluster.keelctl_json(&["volume", "replicas", "r"]);
    assert_eq!(replicas.as_array().map(Vec::len), Some(3), "{replicas}");
    // The KVDB is put back: what replicas say of the set counts, and nobody has to decide.
    let backup = cluster.path("kvdb-backup");
    let backup = backup.to_str().expect("it is text");
    cluster.keelctl_json(&["service", "kvdb", "backup", backup]);
    let more = write_region(&at(&cluster, coordinator(&cluster)), seed()).unwrap();
    let run = |words: &[&str]| {
        let done = cluster.keelctl(words);
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    run(&["host", "detach", "r"]);
    run(&["service", "kvdb", "restore", backup, "--yes"]);
    let to = cluster.ready().nodes[first].id.clone();
    run(&["volume", "attach", "r", "--node", &to]);
    cluster.wait_until("it is served", |r| r.volume("r").coordinator == to);
    verify_region(&at(&cluster, first), &more).unwrap();
}
