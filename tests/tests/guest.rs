//! Real Linux hosts: Debian's kernel, in a virtual machine, uses volumes of a cluster outside. The scripts are in `tests/guest`.
use keelblock_tests::cluster::{Cluster, kill};
use keelblock_tests::guest;
use keelblock_tests::several::{Held, coordinator};
use rustix::process::Signal;
use std::sync::Mutex;
use std::time::Duration;

/// A guest takes all the cores there are: one at a time.
static ONE_GUEST: Mutex<()> = Mutex::new(());
/// Time limit of one script, on a busy machine without hardware help.
const LIMIT: Duration = Duration::from_secs(900);

/// A cluster with a volume of 4 KiB blocks and one of 512-byte blocks, and what the scripts are told about them.
fn cluster(size: &str) -> (Cluster, Vec<(&'static str, String)>) {
    let cluster = Cluster::builder().volume(&format!("big:{size}")).start();
    cluster.keelctl_json(&[
        "volume",
        "create",
        "small",
        "--size",
        size,
        "--block-size",
        "512",
    ]);
    let ready = cluster.wait_until("both volumes are served", |r| {
        r.volumes.len() == 2 && r.volumes.iter().all(|v| !v.nqn.is_empty())
    });
    let (big, small) = (ready.volume("big"), ready.volume("small"));
    let env = vec![
        ("NQN", big.nqn.clone()),
        ("NQN512", small.nqn.clone()),
        ("SIZE", big.size_bytes.to_string()),
    ];
    (cluster, env)
}

#[test]
fn discovers_connects_and_verifies_io_of_every_size() {
    if !guest::wanted() {
        return;
    }
    let _one = ONE_GUEST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (cluster, env) = cluster("128M");
    guest::run("io", cluster.ready().nodes[0].nvme, &env, LIMIT, |_| {});
}

#[test]
fn keeps_a_file_system() {
    if !guest::wanted() {
        return;
    }
    let _one = ONE_GUEST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (cluster, env) = cluster("512M");
    guest::run(
        "filesystem",
        cluster.ready().nodes[0].nvme,
        &env,
        LIMIT,
        |_| {},
    );
}

#[test]
fn follows_resets_new_sizes_deaths_and_allow_lists() {
    if !guest::wanted() {
        return;
    }
    let _one = ONE_GUEST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (cluster, mut env) = cluster("128M");
    env.push(("NEW_SIZE", (192_u64 << 20).to_string()));
    guest::run(
        "changes",
        cluster.ready().nodes[0].nvme,
        &env,
        LIMIT,
        |request| match request {
            "resize" => drop(cluster.keelctl_json(&["volume", "update", "big", "--size", "192M"])),
            "kill-datapath" => drop(cluster.kill_datapath()),
            "deny" => drop(cluster.keelctl_json(&["volume", "hosts", "deny", "big", "--any"])),
            "allow" => drop(cluster.keelctl_json(&["volume", "hosts", "allow", "big", "--any"])),
            other => panic!("the guest asks for {other}"),
        },
    );
}

/// A node of three is killed, the coordinator: `up` is held, so that it stays dead until the guest asks for it.
#[test]
fn goes_on_by_another_node_when_the_one_that_coordinates_is_killed() {
    if !guest::wanted() {
        return;
    }
    let _one = ONE_GUEST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:3").start();
    let first = coordinator(&cluster);
    let ready = cluster.ready();
    let port = |n: usize| ready.nodes[n % 3].nvme.port().to_string();
    let env = [
        ("NQN", ready.volume("r").nqn.clone()),
        ("PORT1", port(first + 1)),
        ("PORT2", port(first + 2)),
    ];
    let mut held = None;
    guest::run(
        "multipath",
        ready.nodes[first].nvme,
        &env,
        LIMIT,
        |request| match request {
            "kill-coordinator" => {
                held = Some(Held::new(cluster.up_pid()));
                let node = cluster.ready().nodes[first].clone();
                kill(node.datapath_pid.expect("it runs"), Signal::KILL);
                kill(node.control_pid.expect("it runs"), Signal::KILL);
            }
            "revive" => drop(held.take()),
            other => panic!("the guest asks for {other}"),
        },
    );
}
