//! Snapshots, clones, drives and scans through `keelctl`, with a host that reads and writes.
use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};
use keelblock_tests::cluster::Cluster;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:6b65656c-0000-4000-8000-6b65656c7374";
const MIB: usize = 1 << 20;

/// A host that is connected to a volume.
struct Host {
    _controller: Controller,
    queue: IoQueue,
    namespace: Namespace,
}

impl Host {
    fn connect(cluster: &Cluster, volume: &str) -> Self {
        let info = cluster.keelctl_json(&["volume", "connect-info", volume]);
        let nqn = info["nqn"].as_str().unwrap();
        let address = cluster.ready().nodes[0].nvme;
        let options = ConnectOptions::default();
        let mut controller = Controller::connect(address, nqn, HOST, &options).unwrap();
        controller.set_io_queues(1).unwrap();
        let queue = controller.io_queue(1, 32).unwrap();
        let data = controller.namespace(1).unwrap();
        Self {
            queue,
            namespace: Namespace::new(1, &data).unwrap(),
            _controller: controller,
        }
    }

    fn write(&mut self, block: u64, data: &[u8]) {
        self.queue.write(&self.namespace, block, data).unwrap();
    }

    fn assert_reads(&mut self, block: u64, bytes: usize, byte: u8) {
        let read = self
            .queue
            .read(&self.namespace, block, bytes / 4096)
            .unwrap();
        assert!(
            read.iter().all(|b| *b == byte),
            "block {block}: {:?}… instead of {byte}",
            &read[..8]
        );
    }
}

fn refused(cluster: &Cluster, words: &[&str], exit: i32, says: &str) {
    let output = cluster.keelctl(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(exit),
        "keelctl {words:?}: {said}"
    );
    assert!(
        said.contains(says),
        "keelctl {words:?} says {said:?}, not {says:?}"
    );
}

#[test]
fn snapshots_keep_what_was_written_and_clones_are_written_to() {
    let mut cluster = Cluster::builder().volume("other:16M").start();
    // Not one of `up`, which tries its volumes by writing to them.
    cluster.keelctl_json(&["volume", "create", "v", "--size", "64M"]);
    let mut host = Host::connect(&cluster, "v");
    host.write(0, &vec![1; MIB]);
    let shown = cluster.keelctl_json(&["volume", "inspect", "v"]);
    assert_eq!(shown[0]["used_bytes"], MIB, "exact to the block");
    let taken = cluster.keelctl_json(&["volume", "snapshot", "create", "v", "--name", "s"]);
    assert_eq!(taken[0]["name"], "s");
    host.write(0, &[2; 8192]);
    host.write(1024, &[2; 4096]);
    host.assert_reads(0, 8192, 2);
    host.assert_reads(2, MIB - 8192, 1);
    let diff = cluster.keelctl_json(&["volume", "diff", "v", "--from", "s"]);
    assert_eq!(diff["data_bytes"], 3 * 4096, "{diff}");
    let offsets: Vec<u64> = diff["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [0, 1024 * 4096]);

    cluster.keelctl_json(&["volume", "clone", "s", "--name", "c"]);
    let mut clone = Host::connect(&cluster, "c");
    clone.assert_reads(0, MIB, 1);
    clone.assert_reads(1024, 4096, 0);
    clone.write(0, &[3; 4096]);
    host.assert_reads(0, 4096, 2);
    let shown = cluster.keelctl_json(&["volume", "inspect", "c"]);
    assert_eq!(shown[0]["unique_bytes"], 4096, "exact to the block");

    refused(
        &cluster,
        &["volume", "restore", "v", "--snapshot", "s"],
        1,
        "host detach v",
    );
    drop(host);
    cluster.keelctl_json(&["host", "detach", "v"]);
    cluster.keelctl_json(&["volume", "restore", "v", "--snapshot", "s"]);
    cluster.keelctl_json(&["host", "attach", "v"]);
    let mut host = Host::connect(&cluster, "v");
    host.assert_reads(0, MIB, 1);
    host.assert_reads(1024, 4096, 0);

    // In any order, and through a restart.
    drop(host);
    cluster.keelctl_json(&["volume", "delete", "v", "--force"]);
    cluster.keelctl_json(&["volume", "snapshot", "delete", "s"]);
    let left = cluster.keelctl_json(&["volume", "snapshot", "list"]);
    assert_eq!(left, serde_json::json!([]));
    drop(clone);
    cluster.stop();
    cluster.start();
    let mut clone = Host::connect(&cluster, "c");
    clone.assert_reads(0, 4096, 3);
    clone.assert_reads(1, MIB - 4096, 1);
}

#[test]
fn several_volumes_are_kept_at_one_moment() {
    let cluster = Cluster::builder().volume("a:16M").volume("b:16M").start();
    let (mut a, mut b) = (Host::connect(&cluster, "a"), Host::connect(&cluster, "b"));
    a.write(0, &[1; 4096]);
    b.write(0, &[1; 4096]);
    cluster.keelctl_json(&["volume", "snapshot", "create", "a", "b", "--name", "both"]);
    a.write(0, &[2; 4096]);
    b.write(0, &[2; 4096]);
    let listed = cluster.keelctl_json(&["volume", "snapshot", "list"]);
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{listed}");
    assert!(
        names.contains(&"both_a") && names.contains(&"both_b"),
        "{listed}"
    );
    for name in ["both_a", "both_b"] {
        cluster.keelctl_json(&["volume", "clone", name, "--name", &format!("{name}_c")]);
        Host::connect(&cluster, &format!("{name}_c")).assert_reads(0, 4096, 1);
    }
    refused(&cluster, &["host", "attach", "both_a"], 1, "clone it");
    refused(
        &cluster,
        &["volume", "snapshot", "create", "b", "--name", "both_a"],
        1,
        "exists",
    );
}

#[test]
fn a_full_pool_says_so_and_works_again() {
    let cluster = Cluster::builder()
        .arg(&["--size", "256M"])
        .volume("v:16M")
        .start();
    // Thin: larger than the pool.
    cluster.keelctl_json(&["volume", "create", "big", "--size", "1G"]);
    let mut host = Host::connect(&cluster, "big");
    let piece = vec![9; MIB];
    let mut written: u64 = 0;
    let refused = loop {
        match host.queue.write(&host.namespace, written * 256, &piece) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 256, "more than the drive has");
    };
    assert!(
        refused.to_string().to_lowercase().contains("capacity"),
        "{refused}"
    );
    assert!(written > 128, "only {written} MiB of 256 could be written");
    let pool = cluster.keelctl_json(&["service", "pool", "show"])[0].clone();
    assert!(
        pool["free_bytes"].as_u64().unwrap() < 2 * MIB as u64,
        "{pool}"
    );
    let alert = |cluster: &Cluster| {
        let alerts = cluster.keelctl_json(&["alerts", "show", "--all", "--resource", "pool"]);
        alerts[0].clone()
    };
    cluster.wait_until("an alert says so", |_| {
        alert(&cluster)["tag"] == "pool-space-low"
    });
    // What is there is read, and written over.
    host.assert_reads(0, MIB, 9);
    host.write(0, &[8; 4096]);
    drop(host);
    cluster.keelctl_json(&["volume", "delete", "big", "--force"]);
    cluster.wait_until("there is room again", |_| {
        let pool = cluster.keelctl_json(&["service", "pool", "show"])[0].clone();
        pool["free_bytes"].as_u64().unwrap() > 128 * MIB as u64
    });
    cluster.wait_until("the alert is over", |_| alert(&cluster)["cleared"] == true);
    cluster.keelctl_json(&["volume", "create", "next", "--size", "1G"]);
    let mut host = Host::connect(&cluster, "next");
    for n in 0..128 {
        host.write(n * 256, &piece);
    }
    host.assert_reads(127 * 256, MIB, 9);
}

#[test]
fn the_pool_gets_another_drive_and_grows() {
    let mut cluster = Cluster::builder().volume("v:16M").start();
    let before = cluster.keelctl_json(&["service", "pool", "list"])[0]["total_bytes"]
        .as_u64()
        .unwrap();
    let path = cluster.path("second.img");
    let path = path.to_str().unwrap();
    refused(
        &cluster,
        &["service", "drive", "add", path],
        1,
        "give a size",
    );
    let added = cluster.keelctl_json(&["service", "drive", "add", path, "--size", "256M"]);
    assert_eq!(
        (added["path"].as_str(), added["state"].as_str()),
        (Some(path), Some("online"))
    );
    let both = cluster.keelctl_json(&["service", "pool", "list"])[0].clone();
    assert_eq!(both["drives"].as_array().unwrap().len(), 2);
    assert!(both["total_bytes"].as_u64().unwrap() > before);
    let grown = cluster.keelctl_json(&["service", "drive", "grow", path, "--size", "512M"]);
    assert_eq!(grown["size_bytes"], 512 * MIB);
    let wanted = both["total_bytes"].as_u64().unwrap() + (1 << 30);
    let grown = cluster.keelctl_json(&["service", "pool", "expand", "--size", &wanted.to_string()]);
    // The last megabytes of a group are its own.
    let total = grown["total_bytes"].as_u64().unwrap();
    assert!(total + (16 << 20) > wanted, "{total} of {wanted}");
    refused(
        &cluster,
        &["service", "pool", "expand", "--size", "1M"],
        1,
        "shrink",
    );
    refused(
        &cluster,
        &["service", "drive", "remove", "/none"],
        3,
        "/none",
    );
    refused(
        &cluster,
        &["service", "drive", "replace", path],
        2,
        "--accept-loss",
    );
    refused(
        &cluster,
        &["service", "drive", "replace", path, "--accept-loss"],
        1,
        "works",
    );
    cluster.keelctl_json(&["volume", "create", "w", "--size", "64M"]);
    let mut host = Host::connect(&cluster, "w");
    host.write(0, &vec![7; 4 * MIB]);
    drop(host);
    cluster.stop();
    cluster.start();
    let pool = cluster.keelctl_json(&["service", "pool", "show"])[0].clone();
    assert_eq!(pool["drives"].as_array().unwrap().len(), 2, "{pool}");
    Host::connect(&cluster, "w").assert_reads(0, MIB, 7);
}

#[test]
fn a_drive_that_is_gone_takes_only_what_was_on_it() {
    let mut cluster = Cluster::builder().volume("v:16M").start();
    Host::connect(&cluster, "v").write(0, &[1; 4096]);
    let (second, third) = (cluster.path("second.img"), cluster.path("third.img"));
    let (second_path, third) = (second.to_str().unwrap(), third.to_str().unwrap());
    cluster.keelctl_json(&["service", "drive", "add", second_path, "--size", "2G"]);
    // Lanes go where there is room.
    cluster.keelctl_json(&["volume", "create", "w", "--size", "16M"]);
    Host::connect(&cluster, "w").write(0, &[2; 4096]);
    cluster.stop();
    std::fs::remove_file(&second).unwrap();
    cluster.start();
    let drives = cluster.keelctl_json(&["service", "drive", "list"]);
    let states: Vec<&str> = drives
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["online", "failed"], "{drives}");
    let alerts = cluster.keelctl_json(&["alerts", "show", "--resource", "drive"]);
    assert_eq!(alerts[0]["severity"], "alarm", "{alerts}");
    Host::connect(&cluster, "v").assert_reads(0, 4096, 1);
    let lost = cluster.keelctl_json(&["volume", "inspect", "w"])[0].clone();
    assert_eq!(lost["state"], "error", "{lost}");
    assert!(!second.exists(), "it is not made anew");
    let replaced = cluster.keelctl_json(&[
        "service",
        "drive",
        "replace",
        second_path,
        "--with",
        third,
        "--size",
        "1G",
        "--accept-loss",
    ]);
    assert_eq!(replaced["lost_volume_ids"], serde_json::json!([lost["id"]]));
    cluster.keelctl_json(&["volume", "delete", "w", "--force"]);
    cluster.keelctl_json(&["volume", "create", "x", "--size", "16M"]);
    Host::connect(&cluster, "x").write(0, &[3; 4096]);
    cluster.stop();
    cluster.start();
    let drives = cluster.keelctl_json(&["service", "drive", "list"]);
    assert_eq!(drives[1]["path"], third, "{drives}");
    assert_eq!(drives[1]["state"], "online", "{drives}");
    Host::connect(&cluster, "x").assert_reads(0, 4096, 3);
}

#[test]
fn a_drive_is_emptied_and_taken_out() {
    let mut cluster = Cluster::builder().volume("v:64M").start();
    let mut host = Host::connect(&cluster, "v");
    host.write(0, &vec![1; 8 * MIB]);
    cluster.keelctl_json(&["volume", "snapshot", "create", "v", "--name", "s"]);
    host.write(0, &vec![2; MIB]);
    let first = cluster.keelctl_json(&["service", "drive", "list"])[0]["path"].clone();
    let first = first.as_str().unwrap();
    refused(
        &cluster,
        &["service", "drive", "evacuate", first],
        1,
        "add another",
    );
    let path = cluster.path("second.img");
    let path = path.to_str().unwrap();
    cluster.keelctl_json(&["service", "drive", "add", path, "--size", "512M"]);
    let emptied = cluster.keelctl_json(&[
        "--timeout",
        "60",
        "service",
        "drive",
        "evacuate",
        first,
        "--wait",
    ]);
    assert_eq!(emptied["use"], "evacuated");
    host.assert_reads(0, MIB, 2);
    host.assert_reads(256, 7 * MIB, 1);
    cluster.keelctl_json(&["service", "drive", "remove", first]);
    host.write(0, &[3; 4096]);
    drop(host);
    cluster.stop();
    cluster.start();
    let drives = cluster.keelctl_json(&["service", "drive", "list"]);
    assert_eq!(drives.as_array().unwrap().len(), 1, "{drives}");
    let mut host = Host::connect(&cluster, "v");
    host.assert_reads(0, 4096, 3);
    host.assert_reads(256, 7 * MIB, 1);
    cluster.keelctl_json(&["volume", "clone", "s", "--name", "c"]);
    Host::connect(&cluster, "c").assert_reads(0, 8 * MIB, 1);
}

#[test]
fn a_drive_is_emptied_though_the_data_path_dies() {
    let cluster = Cluster::builder().volume("v:1G").start();
    let mut host = Host::connect(&cluster, "v");
    // Some of every lane.
    for n in 0..32u64 {
        host.write(n * 4096 + 7, &vec![n as u8 + 1; 3 * MIB]);
    }
    cluster.keelctl_json(&["volume", "snapshot", "create", "v", "--name", "s"]);
    for n in 0..32u64 {
        host.write(n * 4096 + 7, &[100 + n as u8; 8192]);
    }
    let drives = || cluster.keelctl_json(&["service", "drive", "list"]);
    let first = drives()[0]["path"].as_str().unwrap().to_owned();
    let small = cluster.path("small.img");
    let small = small.to_str().unwrap();
    cluster.keelctl_json(&["service", "drive", "add", small, "--size", "64M"]);
    refused(
        &cluster,
        &["service", "drive", "evacuate", &first],
        1,
        "bytes free",
    );
    let path = cluster.path("second.img");
    let path = path.to_str().unwrap();
    cluster.keelctl_json(&["service", "drive", "add", path, "--size", "1G"]);
    let begun = cluster.keelctl_json(&["service", "drive", "evacuate", &first]);
    assert_eq!(begun["use"], "evacuating", "{begun}");
    let lanes_left = || drives()[0]["lanes"].as_u64().unwrap();
    cluster.wait_until("some lanes have moved", |_| lanes_left() < 16);
    drop(host);
    let killed = cluster.kill_datapath();
    cluster.wait_until("it goes on by itself", |ready| {
        let runs = ready.nodes[0].datapath_pid.is_some_and(|pid| pid != killed);
        let listed = cluster.keelctl(&["service", "drive", "list"]);
        runs && listed.status.success() && drives()[0]["use"] == "evacuated"
    });
    // The drive says so first, its alert is written a moment later.
    cluster.wait_until("it is said", |_| {
        let alerts = cluster.keelctl_json(&["alerts", "show", "--resource", "drive"]);
        alerts[0]["tag"] == "drive-evacuated"
    });
    assert_eq!(lanes_left(), 0);
    let mut host = Host::connect(&cluster, "v");
    for n in 0..32u64 {
        host.assert_reads(n * 4096 + 7, 8192, 100 + n as u8);
        host.assert_reads(n * 4096 + 9, 3 * MIB - 8192, n as u8 + 1);
    }
    let again = cluster.keelctl_json(&["service", "drive", "evacuate", &first, "--cancel"]);
    assert_eq!(again["use"], "in-use", "{again}");
    cluster.keelctl_json(&["volume", "clone", "s", "--name", "c"]);
    let mut clone = Host::connect(&cluster, "c");
    for n in 0..32u64 {
        clone.assert_reads(n * 4096 + 7, 3 * MIB, n as u8 + 1);
    }
}

#[test]
fn a_pool_is_scanned() {
    let cluster = Cluster::builder().volume("v:16M").start();
    let mut host = Host::connect(&cluster, "v");
    host.write(0, &vec![1; 4 * MIB]);
    assert_eq!(
        cluster.keelctl_json(&["service", "scan", "status"])["state"],
        "none"
    );
    refused(&cluster, &["service", "scan", "pause"], 1, "scan start");
    let done = cluster.keelctl_json(&["service", "scan", "start", "--wait"]);
    assert_eq!(
        (done["state"].as_str(), done["errors"].as_u64()),
        (Some("done"), Some(0))
    );
    assert!(done["scanned_bytes"].as_u64().unwrap() >= 4 << 20, "{done}");
    let set = cluster.keelctl_json(&["service", "scan", "schedule", "--every", "7d"]);
    assert_eq!(set["schedule"]["interval_s"], 7 * 86_400);
    assert!(set["schedule"]["next_unix_ms"].as_u64().unwrap() > 0);
    let alerts = cluster.keelctl_json(&["alerts", "show"]);
    assert_eq!(alerts[0]["tag"], "scan-done", "{alerts}");
    cluster.keelctl_json(&["alerts", "delete", "--all"]);
    assert_eq!(
        cluster.keelctl_json(&["alerts", "show"]),
        serde_json::json!([])
    );
}
