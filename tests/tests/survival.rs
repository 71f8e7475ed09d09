//! Processes die, and what they served goes on, or comes back with all its data.
use keelblock_tests::cluster::{Cluster, Ready};
use keelblock_tests::seed;
use keelblock_tests::workload::{Target, WhenLost, Workload, verify_region, write_region};

fn target(ready: &Ready, volume: &str) -> Target {
    Target {
        address: ready.address_of(volume),
        nqn: ready.volume(volume).nqn.clone(),
        nsid: 1,
    }
}

#[test]
fn a_second_up_finds_volumes_and_data() {
    let mut cluster = Cluster::builder().volume("a:32M").start();
    cluster.keelctl_json(&[
        "volume",
        "create",
        "b",
        "--size",
        "16M",
        "--block-size",
        "512",
        "--label",
        "tier=test",
    ]);
    let before = cluster.wait_until("b is served", |r| {
        r.volumes.len() == 2 && r.volumes.iter().all(|v| !v.nqn.is_empty())
    });
    let written = write_region(&target(&before, "b"), seed()).unwrap();
    cluster.stop();
    cluster.start();
    let after = cluster.wait_until("both volumes are served", |r| {
        r.volumes.iter().all(|v| !v.nqn.is_empty())
    });
    assert_eq!(
        (before.cluster_id, before.volumes),
        (after.cluster_id.clone(), after.volumes.clone())
    );
    verify_region(&target(&after, "b"), &written).unwrap();
    let inspected = cluster.keelctl_json(&["volume", "inspect", "b"]);
    assert_eq!(inspected[0]["labels"]["tier"], "test");
    assert_eq!(inspected[0]["block_size"], 512);
}

#[test]
fn a_killed_up_leaves_nothing_that_disturbs_the_next() {
    let mut cluster = Cluster::builder().volume("a:32M").start();
    let before = cluster.ready();
    let written = write_region(&target(&before, "a"), seed()).unwrap();
    cluster.kill_up();
    cluster.start();
    let after = cluster.ready();
    assert_eq!(before.cluster_id, after.cluster_id);
    assert_ne!(before.nodes[0].datapath_pid, after.nodes[0].datapath_pid);
    verify_region(&target(&after, "a"), &written).unwrap();
}

#[test]
fn io_goes_on_while_the_control_process_is_down() {
    let cluster = Cluster::builder().volume("a:32M").start();
    let ready = cluster.ready();
    let mut workload = Workload::start(target(&ready, "a"), seed(), WhenLost::Fail);
    workload.wait_for_progress(200);
    for _ in 0..3 {
        let killed = cluster.kill_control();
        workload.wait_for_progress(200);
        cluster.wait_until("the control process is back", |r| {
            r.nodes[0].control_pid.is_some_and(|p| p != killed)
        });
        workload.wait_for_progress(200);
    }
    cluster.wait_until("the volume is listed", |r| r.volumes.len() == 1);
    assert_eq!(
        cluster.ready().nodes[0].datapath_pid,
        ready.nodes[0].datapath_pid,
        "the data path was disturbed"
    );
    workload.finish().unwrap();
    // A control process that came back is of use.
    let status = poll_until_up(&cluster);
    assert_eq!(status["datapath_up"], true);
}

#[test]
fn a_killed_data_path_comes_back_with_its_volumes_and_data() {
    let cluster = Cluster::builder()
        .volume("a:32M")
        .arg(&["--reactors", "2"])
        .start();
    let mut workload = Workload::start(target(&cluster.ready(), "a"), seed(), WhenLost::Reconnect);
    for _ in 0..3 {
        workload.wait_for_progress(200);
        let killed = cluster.kill_datapath();
        cluster.wait_until("the data path is back", |r| {
            r.nodes[0].datapath_pid.is_some_and(|p| p != killed)
        });
        workload.wait_for_progress(200);
    }
    workload.finish().unwrap();
}

#[test]
fn a_node_can_be_taken_away_and_returned() {
    let cluster = Cluster::builder().volume("a:32M").start();
    let ready = cluster.ready();
    let written = write_region(&target(&ready, "a"), seed()).unwrap();
    let id = ready.nodes[0].id.as_str();
    assert!(!cluster.node("stop", "nobody").status.success());
    assert!(cluster.node("stop", id).status.success());
    let stopped = cluster.wait_until("the node is away", |r| r.nodes[0].datapath_pid.is_none());
    assert_eq!(stopped.nodes[0].control_pid, None);
    assert_eq!(
        cluster.keelctl(&["status"]).status.code(),
        Some(4),
        "nobody answers"
    );
    assert!(cluster.node("start", id).status.success());
    let back = cluster.wait_until("the node is back", |r| {
        r.nodes[0].datapath_pid.is_some() && r.nodes[0].control_pid.is_some()
    });
    verify_region(&target(&back, "a"), &written).unwrap();
}

/// Status as soon as the control process reaches the data path.
fn poll_until_up(cluster: &Cluster) -> serde_json::Value {
    let deadline = std::time::Instant::now() + keelblock_tests::cluster::PATIENCE;
    loop {
        let output = cluster.keelctl(&["status", "--json"]);
        let status =
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        if status["datapath_up"] == true || std::time::Instant::now() > deadline {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
