//! The number of a volume's replicas is changed while it is written to and read: one more, one less, one elsewhere. Nothing that was acknowledged is lost, whoever
//! dies afterwards or meanwhile.
use keelblock_tests::cluster::{Cluster, PATIENCE, kill};
use keelblock_tests::seed;
use keelblock_tests::several::{Held, at, coordinator, locate, place};
use keelblock_tests::workload::{WhenLost, Workload, verify_region, write_region};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(100);

/// Three nodes, and a volume with two replicas.
fn two_of_three() -> Cluster {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    Cluster::builder().arg(&size).volume("r:64M:2").start()
}

fn id(cluster: &Cluster, node: usize) -> String {
    cluster.ready().nodes[node].id.clone()
}

fn until(cluster: &Cluster, node: usize, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = locate(cluster, node);
        if let Some(found) = found.as_ref().filter(|f| is(f)) {
            return found.clone();
        }
        let late = Instant::now() >= deadline;
        assert!(!late, "{what}: {found:?}\n{}", cluster.logs());
        std::thread::sleep(LOOK);
    }
}

/// Places of the nodes that have a replica in sync, in order.
fn members(cluster: &Cluster, found: &Value) -> Vec<usize> {
    let all = found["replicas"].as_array().expect("replicas");
    let members = all.iter().filter(|r| r["state"] == "member");
    let nodes = members.filter_map(|r| r["node_id"].as_str());
    let mut nodes: Vec<usize> = nodes.map(|n| place(cluster, n)).collect();
    nodes.sort_unstable();
    nodes
}

/// Of the three nodes, the one that has none.
fn without(cluster: &Cluster) -> usize {
    let found = locate(cluster, 0).expect("it answers");
    let has = members(cluster, &found);
    (0..3).find(|n| !has.contains(n)).expect("one has none")
}

fn ha_update(cluster: &Cluster, words: &[&str]) -> Value {
    let all = ["volume", "ha-update", "r"];
    let said = cluster.keelctl(&[&all[..], words, &["--json"]].concat());
    assert!(said.status.success(), "{said:?}\n{}", cluster.logs());
    serde_json::from_slice(&said.stdout).expect("JSON")
}

fn resync(cluster: &Cluster, node: &str) -> Value {
    let words = ["volume", "resync", "r", "--node", node, "--wait", "--json"];
    let said = cluster.keelctl(&words);
    assert!(said.status.success(), "{said:?}\n{}", cluster.logs());
    serde_json::from_slice(&said.stdout).expect("JSON")
}

fn refused(cluster: &Cluster, words: &[&str]) -> String {
    let all = ["volume", "ha-update", "r"];
    let said = cluster.keelctl(&[&all[..], words].concat());
    assert!(!said.status.success(), "{said:?}");
    String::from_utf8_lossy(&said.stderr).into_owned()
}

#[test]
fn one_more_then_an_old_one_dies_then_one_less_and_one_elsewhere() {
    let cluster = two_of_three();
    let first = coordinator(&cluster);
    let new = without(&cluster);
    let old = (0..3)
        .find(|n| *n != first && *n != new)
        .expect("three nodes");
    let mut io = Workload::start(at(&cluster, first), seed(), WhenLost::Fail);
    io.wait_for_progress(200);
    let done = ha_update(&cluster, &["--repl", "3", "--wait"]);
    assert_eq!(
        (&done["ha_level"], &done["task"]["state"]),
        (&3.into(), &"done".into())
    );
    assert_eq!(done["task"]["new_node"], id(&cluster, new).as_str());
    let found = until(&cluster, first, "the minimum follows", |f| {
        f["minimum"] == 2
    });
    assert_eq!(members(&cluster, &found), [0, 1, 2]);
    io.wait_for_progress(200);
    // It is compared as a whole, which finds nothing, and is none of the set meanwhile.
    let new_id = id(&cluster, new);
    let compared = resync(&cluster, &new_id);
    let task = &compared["task"];
    assert_eq!(
        (&task["kind"], &task["state"], &task["new_node"]),
        (&"resync".into(), &"done".into(), &new_id.as_str().into())
    );
    let found = locate(&cluster, first).expect("it answers");
    assert_eq!(members(&cluster, &found), [0, 1, 2]);
    // The copy that was there from the beginning goes: the new one is as good.
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[old].clone();
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    io.wait_for_progress(300);
    drop(held);
    until(&cluster, first, "it comes back", |f| {
        members(&cluster, f).len() == 3
    });
    io.wait_for_progress(100);
    let old_id = id(&cluster, old);
    ha_update(&cluster, &["--repl", "2", "--node", &old_id, "--wait"]);
    let found = until(&cluster, first, "it is gone", |f| {
        f["replicas"].as_array().map(Vec::len) == Some(2)
    });
    assert_eq!(
        (&found["minimum"], &found["ha_level"]),
        (&1.into(), &2.into())
    );
    assert_eq!(without(&cluster), old);
    // To where the first one was, and from the coordinator's own node.
    let first_id = id(&cluster, first);
    ha_update(&cluster, &["--move", &first_id, "--to", &old_id, "--wait"]);
    assert_eq!(without(&cluster), first);
    io.wait_for_progress(100);
    io.finish().unwrap();
    assert_eq!(coordinator(&cluster), first, "it needs no replica");
}

#[test]
fn what_is_in_the_way_is_said_and_a_change_can_be_taken_back() {
    let cluster = two_of_three();
    let first = coordinator(&cluster);
    let new = without(&cluster);
    let written = write_region(&at(&cluster, first), seed()).unwrap();
    assert!(refused(&cluster, &["--repl", "4"]).contains("has one"));
    let first_id = id(&cluster, first);
    let says = refused(&cluster, &["--repl", "3", "--node", &first_id]);
    assert!(says.contains("has a replica"), "{says}");
    assert!(refused(&cluster, &["--cancel"]).contains("not being changed"));
    // Its data path does nothing, so the new replica is not made yet.
    let pid = cluster.ready().nodes[new].datapath_pid.expect("it runs");
    let stopped = Held::new(pid);
    let begun = ha_update(&cluster, &["--repl", "3"]);
    assert_eq!(begun["ha_level"], 2, "not before it has everything");
    until(&cluster, first, "it is added", |f| {
        f["replicas"].as_array().map(Vec::len) == Some(3)
    });
    let says = refused(&cluster, &["--repl", "1"]);
    assert!(says.contains("being changed already"), "{says}");
    ha_update(&cluster, &["--cancel"]);
    drop(stopped);
    let found = until(&cluster, first, "it is taken back", |f| {
        f["task"]["state"] == "cancelled" && f["replicas"].as_array().map(Vec::len) == Some(2)
    });
    assert_eq!(found["ha_level"], 2);
    // One of one cannot go; one that is there is served by one.
    ha_update(&cluster, &["--repl", "1", "--wait"]);
    let says = refused(&cluster, &["--move", "nowhere"]);
    assert!(says.contains("no replica on nowhere"), "{says}");
    verify_region(&at(&cluster, first), &written).unwrap();
}

#[test]
fn a_change_goes_on_when_whoever_did_it_has_died() {
    let cluster = two_of_three();
    let first = coordinator(&cluster);
    let new = without(&cluster);
    let other = (0..3)
        .find(|n| *n != first && *n != new)
        .expect("three nodes");
    let written = write_region(&at(&cluster, first), seed()).unwrap();
    let pid = cluster.ready().nodes[new].datapath_pid.expect("it runs");
    let stopped = Held::new(pid);
    ha_update(&cluster, &["--repl", "3"]);
    until(&cluster, first, "it is added", |f| {
        f["replicas"].as_array().map(Vec::len) == Some(3)
    });
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[first].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    let other_id = id(&cluster, other);
    until(&cluster, other, "another serves", |f| {
        f["state"] == "serving" && f["coordinator"] == other_id.as_str()
    });
    drop(stopped);
    let found = until(&cluster, other, "it is done", |f| {
        f["task"]["state"] == "done"
    });
    assert!(members(&cluster, &found).contains(&new), "{found}");
    verify_region(&at(&cluster, other), &written).unwrap();
    drop(held);
    until(&cluster, other, "all are there", |f| {
        members(&cluster, f).len() == 3
    });
    verify_region(&at(&cluster, other), &written).unwrap();
}

/// A node is taken out of the cluster: not while it is needed, and then with everything that was acknowledged still there.
#[test]
fn a_node_is_decommissioned_when_its_replica_and_its_volume_are_elsewhere() {
    let cluster = two_of_three();
    let new = without(&cluster);
    // Not the one that is asked.
    let gone = (1..3).find(|n| *n != new).expect("two of three have one");
    let gone_id = id(&cluster, gone);
    let run = |words: &[&str]| {
        let said = cluster.keelctl(words);
        assert!(said.status.success(), "{said:?}\n{}", cluster.logs());
    };
    run(&["volume", "attach", "r", "--node", &gone_id]);
    let written = write_region(&at(&cluster, gone), seed()).unwrap();
    let new_id = id(&cluster, new);
    run(&["node", "cordon", &new_id]);
    let words = ["node", "decommission", &gone_id, "--yes", "--wait"];
    let said = cluster.keelctl(&words);
    let why = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success(), "{said:?}");
    assert!(
        why.contains("volume r") && why.contains("it is cordoned"),
        "{why}"
    );
    run(&["node", "uncordon", &new_id]);
    run(&words);
    let stays = 3 - gone - new;
    let found = until(&cluster, stays, "both replicas are elsewhere", |f| {
        f["state"] == "serving" && f["replicas"].as_array().map(Vec::len) == Some(2)
    });
    assert!(!members(&cluster, &found).contains(&gone), "{found}");
    let serves = place(&cluster, found["coordinator"].as_str().expect("a node"));
    assert_ne!(serves, gone);
    verify_region(&at(&cluster, serves), &written).unwrap();
}

#[test]
fn without_a_host_a_stale_replica_comes_back_and_a_lost_one_is_made_again() {
    let cluster = two_of_three();
    let first = coordinator(&cluster);
    let new = without(&cluster);
    let other = (0..3)
        .find(|n| *n != first && *n != new)
        .expect("three nodes");
    let die = |node: usize| {
        let node = cluster.ready().nodes[node].clone();
        kill(node.control_pid.expect("it runs"), Signal::KILL);
        kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    };
    let hosts = at(&cluster, new);
    let held = Held::new(cluster.up_pid());
    die(other);
    let written = write_region(&at(&cluster, first), seed()).unwrap();
    until(&cluster, first, "it is excluded", |f| {
        members(&cluster, f) == [first]
    });
    let detached = cluster.keelctl_at(first, &["host", "detach", "r"]);
    assert!(detached.status.success(), "{detached:?}");
    drop(held);
    until(&cluster, first, "its node is back", |f| {
        let all = f["replicas"].as_array().expect("replicas");
        all.iter().all(|r| r["node_alive"] == true)
    });
    let said = cluster.keelctl_at(first, &["volume", "resync", "r", "--wait"]);
    assert!(said.status.success(), "{said:?}\n{}", cluster.logs());
    let mut two = [first, other];
    two.sort_unstable();
    let found = until(&cluster, first, "it is in sync", |f| {
        members(&cluster, f) == two
    });
    assert_eq!(found["state"], "detached");
    // The drive of the one that had everything all the time is gone: what is left of its pool is another one.
    let more = cluster.path("more.img");
    let more = more.to_str().expect("a name");
    let words = ["service", "drive", "add", more, "--size", "256M"];
    let added = cluster.keelctl_at(first, &words);
    assert!(added.status.success(), "{added:?}");
    let held = Held::new(cluster.up_pid());
    die(first);
    let drive = cluster.path("data").join(id(&cluster, first));
    std::fs::write(drive.join("drive.img"), vec![0; 64 << 20]).expect("it is there");
    drop(held);
    let mut two = [new, other];
    two.sort_unstable();
    let found = until(&cluster, other, "another is made", |f| {
        members(&cluster, f) == two && f["task"]["state"] == "done"
    });
    assert_eq!(found["task"]["automatic"], true);
    let node = id(&cluster, new);
    let words = ["volume", "attach", "r", "--node", &node];
    let attached = cluster.keelctl_at(new, &words);
    assert!(
        attached.status.success(),
        "{attached:?}\n{}",
        cluster.logs()
    );
    verify_region(&hosts, &written).unwrap();
}
