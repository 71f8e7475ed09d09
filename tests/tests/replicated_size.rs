//! A volume with three replicas grows while hosts use it and a replica is away: hosts are told, and what they write there survives whoever dies.
use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};
use keelblock_tests::cluster::{Cluster, PATIENCE, kill};
use keelblock_tests::several::{
    Held, VOLUME, at, coordinator, until_members, until_served_by_another,
};
use keelblock_tests::workload::{Target, queue_of};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:0cc1d0b8-0000-4000-8000-000000000004";
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// A feature: which events are sent; namespace attributes are.
const EVENTS: u8 = 0x0b;
const ATTRIBUTES: u32 = 1 << 8;

struct Host {
    controller: Controller,
    queue: IoQueue,
    ns: Namespace,
}

impl Host {
    fn connect(target: &Target) -> Self {
        let options = ConnectOptions::default();
        let controller = Controller::connect(target.address, &target.nqn, HOST, &options);
        let opened = queue_of(controller.expect("it connects"), target.nsid, 15);
        let (mut controller, queue, ns) = opened.expect("a namespace and a queue");
        controller
            .set_feature(EVENTS, 0, ATTRIBUTES)
            .expect("a feature");
        controller.watch_events().expect("events");
        Self {
            controller,
            queue,
            ns,
        }
    }

    /// Waits until it is told that the namespace is another, and looks at it.
    fn until_told(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.controller.take_events().expect("events");
            if events.iter().any(|e| (e.kind(), e.information()) == (2, 0)) {
                break;
            }
            assert!(Instant::now() < deadline, "it is not told");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.look();
    }

    fn look(&mut self) {
        let data = self.controller.namespace(self.ns.nsid).expect("Identify");
        self.ns = Namespace::new(self.ns.nsid, &data).expect("a namespace");
    }

    /// Writes 64 KiB in each of the MiB from there to the end, and flushes.
    fn write_from(&mut self, first_mib: u64, tag: u8) {
        for mib in first_mib..self.ns.bytes() / MIB {
            let data = content(mib, tag);
            let written = self.queue.write(&self.ns, mib * MIB / BLOCK, &data);
            written.expect("a write");
        }
        self.queue.flush(&self.ns).expect("a flush");
    }

    fn verify_from(&mut self, first_mib: u64, tag: u8) {
        for mib in first_mib..self.ns.bytes() / MIB {
            let data = self.queue.read(&self.ns, mib * MIB / BLOCK, 16);
            assert!(data.expect("a read") == content(mib, tag), "MiB {mib}");
        }
    }
}

fn content(mib: u64, tag: u8) -> Vec<u8> {
    let words = (0..8192_u64).flat_map(|n| (n ^ mib << 20).to_le_bytes());
    words.map(|b| b ^ tag).collect()
}

#[test]
fn a_volume_grows_under_a_host_while_a_replica_is_away() {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:3").start();
    until_members(&cluster, VOLUME, 3);
    let first = coordinator(&cluster);
    let (other, third) = ((first + 1) % 3, (first + 2) % 3);
    let mut host = Host::connect(&at(&cluster, first));
    let mut far = Host::connect(&at(&cluster, third));
    host.write_from(0, 1);
    let held = Held::new(cluster.up_pid());
    let away = cluster.ready().nodes[other].clone();
    kill(away.datapath_pid.expect("it runs"), Signal::KILL);
    kill(away.control_pid.expect("it runs"), Signal::KILL);
    // By a node that does not serve it.
    let grown = cluster.keelctl_at(third, &["volume", "update", VOLUME, "--size", "192M"]);
    assert!(grown.status.success(), "{grown:?}");
    host.until_told();
    assert_eq!(host.ns.bytes(), 192 * MIB);
    host.write_from(64, 2);
    far.until_told();
    assert_eq!(far.ns.bytes(), 192 * MIB);
    far.verify_from(64, 2);
    let smaller = cluster.keelctl_at(third, &["volume", "update", VOLUME, "--size", "64M"]);
    let said = String::from_utf8_lossy(&smaller.stderr).into_owned();
    assert!(
        !smaller.status.success() && said.contains("cannot shrink"),
        "{said}"
    );
    drop(held);
    until_members(&cluster, VOLUME, 3);
    // Its own copy is the one that it reads.
    let moved = cluster.keelctl(&["volume", "attach", VOLUME, "--node", &away.id]);
    assert!(moved.status.success(), "{moved:?}");
    let mut back = Host::connect(&at(&cluster, other));
    assert_eq!(back.ns.bytes(), 192 * MIB);
    back.verify_from(64, 2);
    back.write_from(64, 3);
    // And whoever takes over has the size, and all of it.
    let held = Held::new(cluster.up_pid());
    let away = cluster.ready().nodes[other].clone();
    kill(away.datapath_pid.expect("it runs"), Signal::KILL);
    kill(away.control_pid.expect("it runs"), Signal::KILL);
    let now = until_served_by_another(&cluster, first, &away.id);
    let mut last = Host::connect(&at(&cluster, now));
    assert_eq!(last.ns.bytes(), 192 * MIB);
    last.verify_from(64, 3);
    drop(held);
}

#[test]
fn a_detached_volume_grows_and_takes_its_clones_along() {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let cluster = Cluster::builder().arg(&size).volume("r:64M:2").start();
    until_members(&cluster, VOLUME, 2);
    Host::connect(&at(&cluster, coordinator(&cluster))).write_from(0, 4);
    cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", "before"]);
    let detached = cluster.keelctl(&["host", "detach", VOLUME]);
    assert!(detached.status.success(), "{detached:?}");
    cluster.keelctl_json(&["volume", "update", VOLUME, "--size", "128M"]);
    let shown = cluster.keelctl_json(&["volume", "list"]);
    assert_eq!(shown[0]["size_bytes"], 128 * MIB, "{shown}");
    let id = cluster.ready().nodes[0].id.clone();
    let attached = cluster.keelctl(&["volume", "attach", VOLUME, "--node", &id]);
    assert!(attached.status.success(), "{attached:?}");
    let mut host = Host::connect(&at(&cluster, 0));
    assert_eq!(host.ns.bytes(), 128 * MIB);
    host.write_from(64, 5);
    host.verify_from(64, 5);
    cluster.keelctl_json(&["volume", "snapshot", "create", VOLUME, "--name", "after"]);
    for (of, mib) in [("before", 64), ("after", 128)] {
        let name = format!("{of}-clone");
        cluster.keelctl_json(&["volume", "clone", of, "--name", &name]);
        let shown = cluster.keelctl_json(&["volume", "inspect", &name]);
        assert_eq!(shown[0]["size_bytes"], mib * MIB, "{shown}");
    }
}
