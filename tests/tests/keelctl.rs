//! `keelctl` against a cluster: the life of a volume, and what it says and returns when something cannot be done.
use keelblock_nvme::initiator::{ConnectOptions, Controller, discover};
use keelblock_tests::cluster::Cluster;
use std::process::Command;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:6b65656c-0000-4000-8000-6b65656c6374";

fn code(cluster: &Cluster, words: &[&str]) -> (i32, String) {
    let output = cluster.keelctl(words);
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn the_life_of_a_volume() {
    let cluster = Cluster::builder().volume("first:16M").start();
    let made = cluster.keelctl_json(&[
        "volume", "create", "db", "--size", "32M", "--label", "app=db", "--label", "tier=1",
    ]);
    assert_eq!(made["size_bytes"], 32 << 20);
    assert_eq!(made["state"], "attached", "hosts can connect at once");
    let again = cluster.keelctl_json(&[
        "volume", "create", "db", "--size", "32M", "--label", "app=db", "--label", "tier=1",
    ]);
    assert_eq!(
        again["id"], made["id"],
        "the same request gives the same volume"
    );
    let (exit, said) = code(&cluster, &["volume", "create", "db", "--size", "64M"]);
    assert_eq!(exit, 1, "another size under the same name: {said}");

    let listed = cluster.keelctl_json(&["volume", "list", "--label", "app=db"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let updated = cluster.keelctl_json(&[
        "volume",
        "update",
        "db",
        "--size",
        "48M",
        "--label",
        "tier=2",
        "--remove-label",
        "app",
    ]);
    assert_eq!(updated["size_bytes"], 48 << 20);
    assert_eq!(updated["labels"], serde_json::json!({ "tier": "2" }));
    let (exit, said) = code(&cluster, &["volume", "update", "db", "--size", "16M"]);
    assert_eq!(exit, 1, "volumes do not shrink: {said}");

    let id = made["id"].as_str().unwrap();
    assert_eq!(
        cluster.keelctl_json(&["volume", "inspect", id])[0]["name"],
        "db",
        "ids work as names do"
    );
    let (exit, said) = code(&cluster, &["volume", "delete", "db"]);
    assert_eq!(exit, 1, "it is attached: {said}");
    assert!(said.contains("host detach"), "{said}");
    assert_eq!(
        cluster.keelctl_json(&["host", "detach", "db"])["state"],
        "detached"
    );
    cluster.keelctl_json(&["volume", "delete", "db"]);
    let (exit, said) = code(&cluster, &["volume", "inspect", "db"]);
    assert_eq!(exit, 3, "{said}");
    cluster.wait_until("the ready file forgets it", |r| {
        r.volumes.iter().all(|v| v.name != "db")
    });
}

#[test]
fn hosts_are_let_in_and_shut_out() {
    let cluster = Cluster::builder().volume("v:16M").start();
    let ready = cluster.ready();
    let (address, nqn) = (ready.nodes[0].nvme, ready.volume("v").nqn.clone());
    let connect = || Controller::connect(address, &nqn, HOST, &ConnectOptions::default());
    let seen = || {
        discover(address, HOST, &ConnectOptions::default())
            .unwrap()
            .iter()
            .any(|e| e.subnqn == nqn)
    };
    connect().unwrap().shutdown().unwrap();
    assert!(seen());
    cluster.keelctl_json(&["volume", "hosts", "deny", "v", "--any"]);
    assert!(connect().is_err(), "no host may connect");
    assert!(
        !seen(),
        "and it is not in the discovery log of a host that may not"
    );
    let list = cluster.keelctl_json(&["volume", "hosts", "allow", "v", HOST]);
    assert_eq!(list["allowed_hosts"], serde_json::json!([HOST]));
    connect().unwrap().shutdown().unwrap();
    assert!(seen());
    let (exit, _) = code(
        &cluster,
        &[
            "volume",
            "hosts",
            "deny",
            "v",
            "nqn.2014-08.org.nvmexpress:uuid:none",
        ],
    );
    assert_eq!(exit, 3);
    cluster.keelctl_json(&["volume", "hosts", "deny", "v", HOST]);
    assert!(connect().is_err());
    assert_eq!(
        cluster.keelctl_json(&["volume", "hosts", "allow", "v", "--any"])["any_host"],
        true
    );
    connect().unwrap().shutdown().unwrap();
}

#[test]
fn a_volume_can_be_a_further_namespace_of_another() {
    let cluster = Cluster::builder().volume("main:16M").start();
    cluster.keelctl_json(&["volume", "create", "more", "--size", "16M", "--no-attach"]);
    cluster.keelctl_json(&["host", "attach", "more", "--with", "main"]);
    let ready = cluster.wait_until("both are served", |r| {
        r.volumes.iter().all(|v| !v.nqn.is_empty()) && r.volumes.len() == 2
    });
    assert_eq!(ready.volume("main").nqn, ready.volume("more").nqn);
    let mut controller = Controller::connect(
        ready.nodes[0].nvme,
        &ready.volume("main").nqn,
        HOST,
        &ConnectOptions::default(),
    )
    .unwrap();
    let info = cluster.keelctl_json(&["volume", "connect-info", "more"]);
    let nsid = u32::try_from(info["nsid"].as_u64().unwrap()).unwrap();
    assert_eq!(controller.active_namespaces().unwrap(), [1, nsid]);
    cluster.keelctl_json(&["host", "detach", "more"]);
    assert_eq!(controller.active_namespaces().unwrap(), [1]);
}

#[test]
fn every_overview_answers() {
    let cluster = Cluster::builder().volume("v:16M").start();
    for words in [
        &["status"][..],
        &["volume", "list"],
        &["volume", "stats", "v", "--interval", "0"],
        &["volume", "connect-info", "v"],
        &["cluster", "list"],
        &["cluster", "inspect"],
        &["node", "list"],
        &["node", "inspect"],
        &["service", "pool", "show"],
        &["service", "drive", "show"],
    ] {
        let output = cluster.keelctl(words);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !text.trim().is_empty(),
            "keelctl {words:?}: {output:?}"
        );
        let json = cluster.keelctl_json(words);
        assert!(
            json.is_object() || json.as_array().is_some_and(|a| !a.is_empty()),
            "keelctl {words:?} --json: {json}"
        );
    }
    let status = cluster.keelctl_json(&["status"]);
    assert_eq!(status["datapath_up"], true);
    assert_eq!(status["cluster_id"], cluster.ready().cluster_id.as_str());
    assert!(
        !status["reactors"].as_array().unwrap().is_empty()
            && !status["pools"].as_array().unwrap().is_empty()
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let cluster = Cluster::builder().volume("v:16M").start();
    for (words, exit) in [
        (&["volume", "inspect", "nothing"][..], 3),
        (&["host", "attach", "nothing"], 3),
        (&["node", "inspect", "nobody"], 3),
        (&["volume", "create", "", "--size", "16M"], 1),
        (&["volume", "create", "huge", "--size", "2000P"], 1),
        (&["volume", "create", "v"], 2),
        (&["--endpoint", "127.0.0.1:1", "status"], 4),
        (&["--endpoint", "not an endpoint", "status"], 2),
    ] {
        let (found, said) = code(&cluster, words);
        assert_eq!(found, exit, "keelctl {words:?}: {said}");
        assert!(!said.trim().is_empty(), "keelctl {words:?} fails silently");
    }
}

#[test]
fn the_kvdb_is_backed_up_and_turned_back() {
    let cluster = Cluster::builder().volume("kept:16M").start();
    let status = cluster.keelctl_json(&["service", "kvdb", "status"]);
    assert_eq!(status["generation"], 0);
    let members = cluster.keelctl_json(&["service", "kvdb", "members"]);
    assert_eq!(members.as_array().unwrap().len(), 1);
    let file = cluster.path("backup");
    let file = file.to_str().unwrap();
    let made = cluster.keelctl_json(&["service", "kvdb", "backup", file]);
    assert_eq!(made["bytes"], std::fs::metadata(file).unwrap().len());
    let (exit, said) = code(&cluster, &["service", "kvdb", "backup", file]);
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("not there"), "{said}");
    cluster.keelctl_json(&["volume", "create", "later", "--size", "16M"]);
    let (exit, said) = code(&cluster, &["service", "kvdb", "restore", file]);
    assert_eq!(exit, 2, "{said}");
    let (exit, said) = code(&cluster, &["service", "kvdb", "restore", file, "--yes"]);
    assert_eq!(exit, 1, "volumes are attached: {said}");
    assert!(said.contains("detach"), "{said}");
    for volume in ["kept", "later"] {
        cluster.keelctl_json(&["host", "detach", volume]);
    }
    let restored = cluster.keelctl_json(&["service", "kvdb", "restore", file, "--yes"]);
    assert_eq!(restored["generation"], 1);
    let listed = cluster.keelctl_json(&["volume", "list"]);
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["name"])
        .collect();
    assert_eq!(names, ["kept"]);
}

#[test]
fn schedule_policies_are_looked_after() {
    let cluster = Cluster::builder().volume("v:16M").start();
    cluster.keelctl_json(&[
        "sched-policy",
        "create",
        "p",
        "--daily",
        "23:05",
        "--weekly",
        "sun@01:00,2",
    ]);
    let listed = cluster.keelctl_json(&["sched-policy", "list"]);
    let times = &listed[0]["schedules"];
    assert_eq!(
        (&times[0]["when"], &times[0]["retain"]),
        (&"daily 23:05".into(), &7.into())
    );
    assert_eq!(times[1]["when"], "weekly sunday@01:00");
    let (exit, said) = code(
        &cluster,
        &["volume", "snap-schedule", "v", "--policy", "none"],
    );
    assert_eq!(exit, 3, "{said}");
    cluster.keelctl_json(&["volume", "snap-schedule", "v", "--policy", "p"]);
    let (exit, said) = code(&cluster, &["sched-policy", "delete", "p"]);
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("volume v"), "{said}");
    cluster.keelctl_json(&["sched-policy", "update", "p", "--periodic", "30,3"]);
    cluster.keelctl_json(&["volume", "snap-schedule", "v", "--none"]);
    cluster.keelctl_json(&["sched-policy", "delete", "p"]);
    let (exit, said) = code(&cluster, &["sched-policy", "list", "p"]);
    assert_eq!(exit, 3, "{said}");
}

#[test]
fn completions_name_the_commands() {
    let program = keelblock_tests::programs::program("keelctl");
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(&program)
            .args(["completions", shell])
            .output()
            .unwrap();
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("connect-info"),
            "{shell}"
        );
    }
}
