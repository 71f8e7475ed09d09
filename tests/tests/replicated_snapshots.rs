//! Snapshots of a volume with three replicas, taken while a host writes, and cloned: what they show is one moment, on each replica, whoever of the three dies.
use keelblock_tests::cluster::{Cluster, PATIENCE, kill};
use keelblock_tests::marked::{Marker, Token};
use keelblock_tests::several::{
    Held, VOLUME, at, coordinator, until_members, until_served_by_another,
};
use keelblock_tests::workload::Target;
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(50);
const TOKEN: Token = *b"keelblock test: a snapshot's one";

fn three(volume: &str) -> Cluster {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume(volume).start();
    until_members(&cluster, VOLUME, 3);
    cluster
}

/// A host that writes all blocks in order, round by round, one command at a time.
struct Writer {
    stop: Arc<AtomicBool>,
    round: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(target: Target) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let round = Arc::new(AtomicU64::new(0));
        let (stopped, now) = (stop.clone(), round.clone());
        let thread = std::thread::spawn(move || {
            let mut host = Marker::connect(&target, TOKEN);
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                host.write_while(round, || !stopped.load(Ordering::Relaxed));
                now.store(round, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            round,
            thread,
        }
    }

    fn wait_for_rounds(&self, more: u64) {
        let wanted = self.round.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.round.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "the host does not get further");
            std::thread::sleep(LOOK);
        }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every write is acknowledged");
    }
}

/// What a host that wrote one command at a time can have had at one moment: some runs of a round, and the rest of the round before.
fn assert_one_moment(rounds: &[u64]) {
    let (first, last) = (rounds[0], rounds[rounds.len() - 1]);
    assert!(rounds.is_sorted_by(|a, b| a >= b), "{rounds:?}");
    assert!(first <= last + 1 && last > 0, "{rounds:?}");
}

/// Clones a snapshot, and reads the clone by way of each node, whose replica is asked first: all the same.
fn clone_by_each(cluster: &Cluster, ask: usize, snapshot: &str, name: &str) -> Vec<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let made = cluster.keelctl_at(ask, &["volume", "clone", snapshot, "--name", name]);
        if made.status.success() {
            break;
        }
        // A replica that was away is still being copied to.
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        let waits = ["not up to date", "not made", "try again", "being deleted"];
        assert!(waits.iter().any(|w| said.contains(w)), "{said}");
        assert!(Instant::now() < deadline, "{said}");
        std::thread::sleep(4 * LOOK);
    }
    let nodes = cluster.ready().nodes;
    let mut seen: Option<Vec<u64>> = None;
    for node in &nodes {
        let words = ["volume", "attach", name, "--node", &node.id];
        let attached = cluster.keelctl_at(ask, &words);
        assert!(attached.status.success(), "{attached:?}");
        let info = cluster.keelctl_at(ask, &["volume", "connect-info", name, "--json"]);
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
        let target = Target {
            address: node.nvme,
            nqn: info["nqn"].as_str().expect("it has one").into(),
            nsid: 1,
        };
        let rounds = Marker::connect(&target, TOKEN).rounds();
        if let Some(seen) = &seen {
            assert_eq!(seen, &rounds, "by node {}", node.id);
        }
        seen = Some(rounds);
    }
    seen.expect("there are nodes")
}

#[test]
fn a_snapshot_under_load_outlives_the_coordinator() {
    let cluster = three("r:64M:3");
    let first = coordinator(&cluster);
    let writer = Writer::start(at(&cluster, first));
    writer.wait_for_rounds(2);
    let taken = cluster.keelctl_json(&["volume", "snapshot", "create", "r", "--name", "s"]);
    assert_eq!(taken[0]["name"], "s", "{taken}");
    writer.wait_for_rounds(2);
    writer.finish();
    let rounds = clone_by_each(&cluster, first, "s", "c");
    assert_one_moment(&rounds);
    // Whoever takes over knows it, and so does the node that was away.
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[first].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    let ask = (first + 1) % 3;
    until_served_by_another(&cluster, ask, &node.id);
    let listed = cluster.keelctl_at(ask, &["volume", "snapshot", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(listed[0]["name"], "s", "{listed}");
    drop(held);
    assert_eq!(clone_by_each(&cluster, ask, "s", "c2"), rounds);
    cluster.keelctl_json(&["volume", "snapshot", "delete", "s"]);
    let left = cluster.keelctl_json(&["volume", "snapshot", "list"]);
    assert_eq!(left, serde_json::json!([]));
}

#[test]
fn a_replica_that_was_away_gets_snapshots_that_were_taken_meanwhile() {
    let cluster = three("r:64M:3");
    let first = coordinator(&cluster);
    let writer = Writer::start(at(&cluster, first));
    writer.wait_for_rounds(2);
    cluster.keelctl_json(&["volume", "snapshot", "create", "r", "--name", "before"]);
    let held = Held::new(cluster.up_pid());
    let other = (first + 1) % 3;
    let node = cluster.ready().nodes[other].clone();
    kill(node.datapath_pid.expect("it runs"), Signal::KILL);
    kill(node.control_pid.expect("it runs"), Signal::KILL);
    writer.wait_for_rounds(1);
    for name in ["s1", "s2"] {
        let words = ["volume", "snapshot", "create", "r", "--name", name];
        let taken = cluster.keelctl_at(first, &words);
        assert!(taken.status.success(), "{taken:?}");
        writer.wait_for_rounds(1);
    }
    let deleted = cluster.keelctl_at(first, &["volume", "snapshot", "delete", "before"]);
    assert!(deleted.status.success(), "{deleted:?}");
    drop(held);
    writer.wait_for_rounds(2);
    let each = ["s1", "s2"].map(|s| clone_by_each(&cluster, first, s, &format!("{s}c")));
    writer.finish();
    each.iter().for_each(|rounds| assert_one_moment(rounds));
    assert!(each[0][0] < each[1][0], "{each:?}");
}

#[test]
fn a_clone_of_a_volume_is_one_moment_of_it_whoever_dies() {
    let cluster = three("r:64M:3");
    let first = coordinator(&cluster);
    let writer = Writer::start(at(&cluster, first));
    writer.wait_for_rounds(2);
    let ask = (first + 1) % 3;
    let rounds = clone_by_each(&cluster, ask, VOLUME, "c1");
    assert_one_moment(&rounds);
    writer.wait_for_rounds(1);
    writer.finish();
    let left = cluster.keelctl_json(&["volume", "snapshot", "list"]);
    assert_eq!(left, serde_json::json!([]), "its snapshot is nobody's");
    // The coordinator dies amid the next one: it is made by whoever follows.
    let held = Held::new(cluster.up_pid());
    let node = cluster.ready().nodes[first].clone();
    let asked = std::thread::scope(|s| {
        let asked = s.spawn(|| cluster.keelctl_at(ask, &["volume", "clone", "r", "--name", "c2"]));
        std::thread::sleep(LOOK);
        kill(node.datapath_pid.expect("it runs"), Signal::KILL);
        kill(node.control_pid.expect("it runs"), Signal::KILL);
        asked.join().expect("it ends")
    });
    until_served_by_another(&cluster, ask, &node.id);
    drop(held);
    eprintln!("amid it: {asked:?}");
    let again = clone_by_each(&cluster, ask, VOLUME, "c2");
    assert!(again[0] > rounds[0], "{again:?} {rounds:?}");
    assert_one_moment(&again);
    for name in ["c1", "c2"] {
        let words: [&[&str]; 2] = [
            &["host", "detach", name],
            &["volume", "delete", name, "--force"],
        ];
        for words in words {
            let done = cluster.keelctl_at(ask, words);
            assert!(done.status.success(), "{done:?}");
        }
    }
}

#[test]
fn one_that_is_attached_nowhere_is_kept_and_cloned_as_it_is() {
    let cluster = three("r:64M:3");
    let first = coordinator(&cluster);
    let mut host = Marker::connect(&at(&cluster, first), TOKEN);
    host.write(1);
    drop(host);
    let ask = (first + 1) % 3;
    let run = |words: &[&str]| {
        let done = cluster.keelctl_at(ask, words);
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    run(&["host", "detach", VOLUME]);
    run(&["volume", "snapshot", "create", VOLUME, "--name", "s"]);
    run(&["volume", "clone", VOLUME, "--name", "c", "--no-attach"]);
    let shown = cluster.keelctl_json(&["volume", "inspect", VOLUME]);
    assert_eq!(shown[0]["attached_on"], "", "{shown}");
    let id = cluster.ready().nodes[first].id.clone();
    run(&["volume", "attach", VOLUME, "--node", &id]);
    cluster.wait_until("it is attached", |r| r.volume(VOLUME).coordinator == id);
    Marker::connect(&at(&cluster, first), TOKEN).write(2);
    for (of, name) in [("s", "sc"), ("c", "cc")] {
        let rounds = clone_by_each(&cluster, ask, of, name);
        assert!(rounds.iter().all(|r| *r == 1), "{of}: {rounds:?}");
    }
}
