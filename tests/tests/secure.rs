//! Encrypted volumes of a cluster: made, served by those who have the cluster key, and by nobody else; the key is changed while they are used; nothing of what was
//! written is in any file of any node, the KVDB's included.

use std::path::Path;
use std::time::{Duration, Instant};

use keelblock_tests::cluster::{Cluster, PATIENCE, Volume};
use keelblock_tests::marked::{Marker, Token};
use keelblock_tests::recorder::file_holds;
use keelblock_tests::seed;
use keelblock_tests::several::until_members;
use keelblock_tests::workload::Target;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const LOOK: Duration = Duration::from_millis(50);

/// A cluster of three nodes, and the file that their cluster key is in.
fn three(key: &str) -> (Cluster, std::path::PathBuf) {
    let nodes = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let builder = Cluster::builder().arg(&nodes);
    let file = builder.dir().join("cluster-key");
    std::fs::write(&file, key).unwrap();
    let path = file.to_str().unwrap().to_owned();
    let cluster = builder.arg(&["--cluster-key-file", &path]).start();
    (cluster, file)
}

/// Runs `keelctl`; what it said, if it went well, and if not.
fn keelctl(cluster: &Cluster, words: &[&str]) -> Result<String, String> {
    let said = cluster.keelctl(words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match said.status.success() {
        true => Ok(text(&said.stdout)),
        false => Err(text(&said.stderr)),
    }
}

/// Where a volume is served.
fn target(cluster: &Cluster, volume: &str) -> Target {
    let attached = |v: &Volume| v.name == volume && !v.coordinator.is_empty();
    cluster.wait_until("it is attached", |r| r.volumes.iter().any(attached));
    cluster.target(volume)
}

fn files(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), each);
        } else if kind.is_file() {
            each(&entry.path());
        }
    }
}

/// Files under a directory that have these bytes, of how many.
fn found(dir: &Path, what: &[u8]) -> (Vec<String>, usize) {
    let (mut with, mut all) = (Vec::new(), 0);
    files(dir, &mut |path| {
        all += 1;
        if file_holds(path, what).unwrap() {
            with.push(path.display().to_string());
        }
    });
    (with, all)
}

#[test]
fn an_encrypted_volume_is_opened_by_the_cluster_key_and_by_nothing_else() {
    let mut random = SmallRng::seed_from_u64(seed());
    let token: Token = random.random();
    let (old, new) = ("11".repeat(32), "22".repeat(32));
    let (cluster, file) = three(&old);
    let plain = ["volume", "create", "p", "--size", "64M", "--repl", "2"];
    keelctl(&cluster, &plain).unwrap();
    let secure = [
        "volume", "create", "s", "--size", "64M", "--repl", "3", "--secure",
    ];
    keelctl(&cluster, &secure).unwrap();
    let shown = cluster.keelctl_json(&["secrets", "show"]);
    assert_eq!(shown["volumes"][0]["name"], "s", "{shown}");
    let first = shown["keys"][0].clone();
    // The same again is the same volume, and another one without encryption.
    keelctl(&cluster, &secure).unwrap();
    let again = keelctl(&cluster, &secure[..7]).unwrap_err();
    assert!(again.contains("encrypted"), "{again}");
    Marker::connect(&target(&cluster, "s"), token).write(1);
    Marker::connect(&target(&cluster, "s"), token).verify(1);
    let data = file.parent().unwrap().join("data");
    let (with, all) = found(&data, &token[..16]);
    assert!(with.is_empty() && all > 9, "{with:?} of {all}");

    // Without the key nobody gets at it, and it says so.
    keelctl(&cluster, &["host", "detach", "s"]).unwrap();
    std::fs::remove_file(&file).unwrap();
    let refused = keelctl(&cluster, &["host", "attach", "s"]).unwrap_err();
    assert!(
        refused.contains("is encrypted") && refused.contains("--cluster-key-file"),
        "{refused}"
    );
    std::fs::write(&file, &new).unwrap();
    let refused = keelctl(&cluster, &["host", "attach", "s"]).unwrap_err();
    assert!(refused.contains("wrapped by cluster key"), "{refused}");
    std::fs::write(&file, &old).unwrap();
    keelctl(&cluster, &["host", "attach", "s"]).unwrap();
    Marker::connect(&target(&cluster, "s"), token).verify(1);

    // Another cluster key.
    std::fs::write(&file, format!("{new}\n{old}\n")).unwrap();
    let rotated = cluster.keelctl_json(&["secrets", "rotate"]);
    assert_eq!(
        (&rotated["changed"], &rotated["unchanged"]),
        (&1.into(), &0.into())
    );
    let rotated = cluster.keelctl_json(&["secrets", "rotate"]);
    assert_eq!(
        (&rotated["changed"], &rotated["unchanged"]),
        (&0.into(), &1.into())
    );
    std::fs::write(&file, &new).unwrap();
    let shown = cluster.keelctl_json(&["secrets", "show"]);
    assert_ne!(shown["keys"][0], first, "{shown}");
    assert_eq!(shown["volumes"][0]["key"], shown["keys"][0], "{shown}");
    keelctl(&cluster, &["host", "detach", "s"]).unwrap();
    keelctl(&cluster, &["host", "attach", "s"]).unwrap();
    Marker::connect(&target(&cluster, "s"), token).verify(1);

    // A single replica is encrypted as well.
    let single = ["volume", "create", "one", "--size", "64M", "--secure"];
    keelctl(&cluster, &single).unwrap();
    Marker::connect(&target(&cluster, "one"), token).write(2);
    Marker::connect(&target(&cluster, "one"), token).verify(2);
    let (with, _) = found(&data, &token[..16]);
    assert!(with.is_empty(), "{with:?}");
    // What is looked for is found where it is.
    Marker::connect(&target(&cluster, "p"), token).write(3);
    let (with, _) = found(&data, &token[..16]);
    assert_eq!(with.len(), 2, "{with:?}");

    for volume in ["s", "one"] {
        keelctl(&cluster, &["host", "detach", volume]).unwrap();
        keelctl(&cluster, &["volume", "delete", volume, "--yes"]).unwrap();
    }
    let shown = cluster.keelctl_json(&["secrets", "show"]);
    assert_eq!(shown["volumes"], serde_json::json!([]), "{shown}");
}

#[test]
fn a_clone_of_an_encrypted_volume_is_opened_by_its_parents_key_and_has_one_of_its_own() {
    let mut random = SmallRng::seed_from_u64(seed());
    let token: Token = random.random();
    let (cluster, file) = three(&"33".repeat(32));
    let secure = [
        "volume", "create", "s", "--size", "64M", "--repl", "3", "--secure",
    ];
    keelctl(&cluster, &secure).unwrap();
    until_members(&cluster, "s", 3);
    Marker::connect(&target(&cluster, "s"), token).write(1);
    let snapshot = ["volume", "snapshot", "create", "s", "--name", "s1"];
    keelctl(&cluster, &snapshot).unwrap();
    Marker::connect(&target(&cluster, "s"), token).write(2);
    keelctl(&cluster, &["volume", "clone", "s1", "--name", "c"]).unwrap();
    let shown = cluster.keelctl_json(&["secrets", "show"]);
    assert_eq!(
        shown["volumes"].as_array().map(Vec::len),
        Some(2),
        "{shown}"
    );
    // By the coordinator on each node, whose replica is asked first; after a turn everything was sealed and opened by another process.
    for (round, node) in (1..).zip(["node-1", "node-2", "node-3"]) {
        keelctl(&cluster, &["volume", "attach", "c", "--node", node]).unwrap();
        cluster.wait_until("it is there", |r| {
            r.volumes
                .iter()
                .any(|v| v.name == "c" && v.coordinator == node)
        });
        let mut host = Marker::connect(&target(&cluster, "c"), token);
        host.verify(round);
        host.write(round + 1);
        host.verify(round + 1);
    }
    Marker::connect(&target(&cluster, "s"), token).verify(2);
    set_back(&cluster, token);
    // What it was made of goes but for its snapshot, and its key stays as long as that.
    keelctl(&cluster, &["host", "detach", "s"]).unwrap();
    let parent = cluster.keelctl_json(&["volume", "inspect", "s"])[0]["id"].clone();
    let parent = parent.as_str().expect("it has an id").to_owned();
    keelctl(&cluster, &["volume", "delete", "s", "--yes"]).unwrap();
    assert!(has_key(&cluster, &parent));
    until_done(
        &cluster,
        &["volume", "clone", "s1", "--name", "d", "--no-attach"],
        "not made",
    );
    keelctl(&cluster, &["volume", "snapshot", "delete", "s1"]).unwrap();
    // Its key goes with the last of it, from backups that are made then, too; clones have what they need.
    let deadline = Instant::now() + PATIENCE;
    while has_key(&cluster, &parent) {
        assert!(Instant::now() < deadline, "its key is there still");
        std::thread::sleep(LOOK);
    }
    let clone = cluster.keelctl_json(&["volume", "inspect", "d"])[0]["id"].clone();
    let backup = file.parent().unwrap().join("backup");
    let path = backup.to_str().unwrap();
    keelctl(&cluster, &["service", "kvdb", "backup", path]).unwrap();
    let kept = |id: &str| file_holds(&backup, format!("secrets/{id}").as_bytes()).unwrap();
    assert!(kept(clone.as_str().expect("it has an id")) && !kept(&parent));
    keelctl(&cluster, &["volume", "attach", "d", "--node", "node-2"]).unwrap();
    Marker::connect(&target(&cluster, "d"), token).verify(1);
    Marker::connect(&target(&cluster, "c"), token).verify(4);
    let (with, all) = found(&file.parent().unwrap().join("data"), &token[..16]);
    assert!(with.is_empty() && all > 9, "{with:?} of {all}");
}

/// It is set back: what was sealed before its snapshot is opened, and what is written afterwards, by each node in its turn.
fn set_back(cluster: &Cluster, token: Token) {
    keelctl(cluster, &["host", "detach", "s"]).unwrap();
    let restore = ["volume", "restore", "s", "--snapshot", "s1"];
    until_done(cluster, &restore, "not wholly set back");
    for (round, node) in [(1, "node-3"), (5, "node-1"), (6, "node-2")] {
        keelctl(cluster, &["volume", "attach", "s", "--node", node]).unwrap();
        cluster.wait_until("it is there", |r| {
            r.volumes
                .iter()
                .any(|v| v.name == "s" && v.coordinator == node)
        });
        let mut host = Marker::connect(&target(cluster, "s"), token);
        host.verify(round);
        host.write(if round == 1 { 5 } else { round + 1 });
    }
    Marker::connect(&target(cluster, "s"), token).verify(7);
}

/// Whether the wrapped keys of a volume are in the KVDB.
fn has_key(cluster: &Cluster, volume: &str) -> bool {
    let shown = cluster.keelctl_json(&["secrets", "show"]);
    let all = shown["volumes"].as_array().expect("a list");
    all.iter().any(|v| v["id"] == volume)
}

/// Runs `keelctl` until it succeeds, as long as this is what it says.
fn until_done(cluster: &Cluster, words: &[&str], waits: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(said) = keelctl(cluster, words) {
        let on = said.contains(waits) || said.contains("try again");
        assert!(on && Instant::now() < deadline, "{words:?}: {said}");
        std::thread::sleep(LOOK);
    }
}
