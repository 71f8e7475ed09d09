//! A volume with three replicas is set back to a snapshot while nodes die, and one is deleted whose snapshots stay: what hosts read afterwards is what was there when
//! the snapshot was taken, by whichever node.
use keelblock_tests::cluster::{Cluster, PATIENCE, kill};
use keelblock_tests::marked::{Marker, Token};
use keelblock_tests::several::{Held, VOLUME, until_members};
use keelblock_tests::workload::Target;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const TOKEN: Token = *b"keelblock test: it was set back!";
const LOOK: Duration = Duration::from_millis(100);

fn three() -> Cluster {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:3").start();
    until_members(&cluster, VOLUME, 3);
    cluster
}

/// Asks a node again and again until it succeeds, as long as what it says is one of these.
fn until_done(cluster: &Cluster, ask: usize, words: &[&str], waits: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = cluster.keelctl_at(ask, words);
        if done.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(waits.iter().any(|w| said.contains(w)), "{words:?}: {said}");
        assert!(Instant::now() < deadline, "{words:?}: {said}");
        std::thread::sleep(LOOK);
    }
}

fn attach(cluster: &Cluster, ask: usize, volume: &str, node: usize) -> Marker {
    let id = cluster.ready().nodes[node].id.clone();
    let words = ["volume", "attach", volume, "--node", &id];
    until_done(
        cluster,
        ask,
        &words,
        &["not served yet", "is away", "data path", "try again"],
    );
    let info = cluster.keelctl_at(ask, &["volume", "connect-info", volume, "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    let target = Target {
        address: cluster.ready().nodes[node].nvme,
        nqn: info["nqn"].as_str().expect("it has one").into(),
        nsid: 1,
    };
    Marker::connect(&target, TOKEN)
}

fn detach(cluster: &Cluster, ask: usize) {
    let words = ["host", "detach", VOLUME];
    until_done(
        cluster,
        ask,
        &words,
        &["try again", "has not ended yet", "at the same time"],
    );
}

fn die(cluster: &Cluster, node: usize) {
    let node = cluster.ready().nodes[node].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
}

#[test]
fn a_volume_is_set_back_while_a_node_is_away_and_that_one_follows() {
    let cluster = three();
    let mut host = attach(&cluster, 0, VOLUME, 0);
    host.write(1);
    cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", "s"]);
    host.write(2);
    cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", "later"]);
    host.write(3);
    drop(host);
    detach(&cluster, 0);
    let held = Held::new(cluster.up_pid());
    die(&cluster, 2);
    let restore = ["volume", "restore", VOLUME, "--snapshot", "s"];
    // It counts as there until its lease has run out; then two of three are enough.
    until_done(&cluster, 1, &restore, &["not wholly set back"]);
    let mut host = attach(&cluster, 1, VOLUME, 1);
    host.verify(1);
    host.write(4);
    drop(held);
    until_members(&cluster, VOLUME, 3);
    drop(host);
    // By the one that was away: its own copy.
    attach(&cluster, 1, VOLUME, 2).verify(4);
    detach(&cluster, 1);
    // Later snapshots are there still, and it can be set forth again.
    let restore = ["volume", "restore", VOLUME, "--snapshot", "later"];
    until_done(&cluster, 0, &restore, &["not wholly set back"]);
    for node in 0..3 {
        attach(&cluster, 0, VOLUME, node).verify(2);
    }
}

#[test]
fn one_that_is_interrupted_can_be_set_back_again_and_is_never_a_mixture() {
    let cluster = three();
    for round in 0..4 {
        let mut host = attach(&cluster, 0, VOLUME, round % 3);
        host.write(10 * round as u64 + 1);
        let name = format!("s{round}");
        cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", &name]);
        host.write(10 * round as u64 + 2);
        drop(host);
        detach(&cluster, 0);
        let restore = ["volume", "restore", VOLUME, "--snapshot", &name];
        std::thread::scope(|s| {
            let asked = s.spawn(|| cluster.keelctl_at(0, &restore));
            // Earlier and later each time; it comes back by itself.
            std::thread::sleep(Duration::from_millis(40 * round as u64));
            let node = cluster.ready().nodes[1 + round % 2].clone();
            kill(node.datapath_pid.expect("it runs"), Signal::KILL);
            if round >= 2 {
                kill(node.control_pid.expect("it runs"), Signal::KILL);
            }
            let asked = asked.join().expect("it ends");
            eprintln!("round {round}: {asked:?}");
        });
        until_done(&cluster, 0, &restore, &["set back", "at the same time"]);
        for node in 0..3 {
            attach(&cluster, 0, VOLUME, node).verify(10 * round as u64 + 1);
        }
        until_members(&cluster, VOLUME, 3);
    }
}

#[test]
fn snapshots_of_a_volume_that_is_deleted_are_cloned_and_deleted() {
    let mut cluster = three();
    let mut host = attach(&cluster, 0, VOLUME, 0);
    host.write(1);
    cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", "s"]);
    host.write(2);
    drop(host);
    detach(&cluster, 0);
    let held = Held::new(cluster.up_pid());
    die(&cluster, 2);
    let deleted = cluster.keelctl_at(1, &["volume", "delete", VOLUME, "--force"]);
    assert!(deleted.status.success(), "{deleted:?}");
    drop(held);
    cluster.stop();
    cluster.start();
    let listed = cluster.keelctl_json(&["volume", "snapshot", "list"]);
    assert_eq!(listed[0]["name"], "s", "{listed}");
    let clone = ["volume", "clone", "s", "--name", "c", "--no-attach"];
    until_done(&cluster, 0, &clone, &["not made", "try again"]);
    for node in 0..3 {
        attach(&cluster, 0, "c", node).verify(1);
    }
    cluster.keelctl_json(&["volume", "snapshot", "delete", "s"]);
    // The clone has all of its blocks still.
    for node in 0..3 {
        attach(&cluster, 0, "c", node).verify(1);
    }
    until_done(&cluster, 0, &["host", "detach", "c"], &["try again"]);
    until_done(
        &cluster,
        0,
        &["volume", "delete", "c", "--force"],
        &["try again"],
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pools = cluster.keelctl_json(&["service", "pool", "list"]);
        let used = pools[0]["used_bytes"].as_u64().expect("a number");
        let metadata = pools[0]["metadata_bytes"].as_u64().expect("a number");
        // `up` made the volume of that name again, and wrote a little; the clone had 1.6 MiB, and so had the snapshot.
        if used - metadata < 1 << 20 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "space is not given back: {pools}"
        );
        std::thread::sleep(LOOK);
    }
}
