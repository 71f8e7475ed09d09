//! Several nodes on this machine: each serves volumes of its own, and what one of them lacks, the others do not.
use keelblock_tests::cluster::{Cluster, Ready};
use keelblock_tests::seed;
use keelblock_tests::workload::{verify_region, write_region};
use std::collections::HashSet;

fn three() -> Cluster {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let volumes = ["a:16M", "b:16M", "c:16M"].into_iter();
    volumes
        .fold(Cluster::builder().arg(&size), |b, v| b.volume(v))
        .start()
}

#[test]
fn each_node_serves_its_volumes_and_all_know_of_all() {
    let cluster = three();
    let ready = cluster.ready();
    let nodes = ["node-1", "node-2", "node-3"];
    assert_eq!(ready.nodes.iter().map(|n| &n.id).collect::<Vec<_>>(), nodes);
    let distinct = |of: &dyn Fn(usize) -> String| (0..3).map(of).collect::<HashSet<_>>().len();
    assert_eq!(distinct(&|n| format!("{:?}", ready.nodes[n].nvme)), 3);
    assert_eq!(
        distinct(&|n| format!("{:?}", ready.nodes[n].datapath_pid)),
        3
    );
    assert_eq!(
        distinct(&|n| format!("{:?}", ready.nodes[n].kvdb)),
        1,
        "they share it"
    );
    for (volume, node) in ["a", "b", "c"].iter().zip(nodes) {
        assert_eq!(ready.volume(volume).coordinator, node);
        let target = cluster.target(volume);
        let written = write_region(&target, seed()).unwrap();
        verify_region(&target, &written).unwrap();
    }
    let listed = cluster.keelctl_at(2, &["node", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    let refused = cluster.keelctl_at(1, &["volume", "delete", "a", "--force"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("node-1"),
        "{said}"
    );
}

#[test]
fn a_node_that_is_away_takes_only_its_own_volumes() {
    let mut cluster = three();
    let ready = cluster.ready();
    let targets = ["a", "b", "c"].map(|v| cluster.target(v));
    let written = targets.each_ref().map(|t| write_region(t, seed()).unwrap());
    assert!(cluster.node("stop", "node-1").status.success());
    cluster.wait_until("it is away", |r| r.nodes[0].datapath_pid.is_none());
    assert!(verify_region(&targets[0], &written[0]).is_err());
    for n in [1, 2] {
        verify_region(&targets[n], &written[n]).unwrap();
    }
    // The key-value database is no node's.
    let made = cluster.keelctl_at(1, &["volume", "create", "d", "--size", "16M"]);
    assert!(made.status.success(), "{made:?}");
    // A volume is created, then attached: `up` may see it between the two.
    let attached = |r: &Ready| {
        let d = r.volumes.iter().find(|v| v.name == "d");
        d.is_some_and(|v| !v.coordinator.is_empty())
    };
    let now = cluster.wait_until("it is attached", attached);
    assert_eq!(now.volume("d").coordinator, "node-2");
    assert!(cluster.node("start", "node-1").status.success());
    verify_region(&targets[0], &written[0]).unwrap();
    cluster.stop();
    cluster.start();
    assert_eq!(cluster.ready().cluster_id, ready.cluster_id);
    for (volume, written) in ["a", "b", "c"].iter().zip(&written) {
        verify_region(&cluster.target(volume), written).unwrap();
    }
}
