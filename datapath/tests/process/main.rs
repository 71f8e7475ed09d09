//! The data path as a process: its command line, its commands over the channel, what it serves, its ends, and its returns.

mod harness;
mod pools;
mod rot;
mod snapshots;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use harness::*;
use keelblock_api::datapath::{self as proto, event::What};
use keelblock_nvme::initiator::Namespace;
use tonic::Code;

#[tokio::test]
async fn what_hosts_wrote_survives_an_end_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 32 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let [one, two] = &mut host.queues;
    // Over the border of a slice, by one queue, then read by the other.
    let (first, second) = (pattern(1, 256 << 10), pattern(2, 64 << 10));
    one.write(&host.namespace, 4096 - 32, &first).unwrap();
    assert_eq!(two.read(&host.namespace, 4096 - 32, 64).unwrap(), first);
    two.write(&host.namespace, 0, &second).unwrap();
    two.flush(&host.namespace).unwrap();
    drop(host);
    assert_eq!(process.terminate(), Some(0));

    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, false).await.unwrap();
    assert_eq!(process.volumes().await[0].size_bytes, 32 * MIB);
    process.export(512).await.unwrap();
    let mut host = process.connect();
    let [one, two] = &mut host.queues;
    assert_eq!(
        one.read(&host.namespace, 8 * (4096 - 32), 512).unwrap(),
        first
    );
    let third = pattern(3, 512);
    two.write_fua(&host.namespace, 1, &third).unwrap();
    process.child.kill().unwrap();
    process.child.wait().unwrap();

    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, false).await.unwrap();
    process.export(512).await.unwrap();
    let mut host = process.connect();
    let got = host.queues[0].read(&host.namespace, 0, 128).unwrap();
    assert_eq!((&got[..512], &got[512..1024]), (&second[..512], &third[..]));
    assert_eq!(got[1024..], second[1024..]);
}

#[tokio::test]
async fn commands_said_twice_answer_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let path = "memory:67108864";
    let pool = process.open(path, 0, true).await.unwrap();
    assert!((60 * MIB..64 * MIB).contains(&pool.total_bytes), "{pool:?}");
    assert!(pool.used_bytes < 16 * 4096, "{pool:?}");
    assert_eq!(process.open(path, 0, true).await.unwrap(), pool);
    let volume = process.create(VOLUME, 8 * MIB).await.unwrap();
    assert_eq!(process.create(VOLUME, 8 * MIB).await.unwrap(), volume);
    assert_eq!(
        process.resize(VOLUME, 9 * MIB).await.unwrap().size_bytes,
        9 * MIB
    );
    let volume = process.resize(VOLUME, 9 * MIB).await.unwrap();
    assert_eq!((volume.size_bytes, volume.stats_slot), (9 * MIB, -1));
    let subsystem = process.export(4096).await.unwrap();
    assert_eq!(process.export(4096).await.unwrap(), subsystem);
    assert!(process.volumes().await[0].stats_slot >= 0);
    process.unexport().await;
    process.unexport().await;
    process.delete(VOLUME).await.unwrap();
    process.delete(VOLUME).await.unwrap();
    assert_eq!(process.volumes().await, []);
    process.data_goes().await;
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let other = proto::HelloRequest {
        cluster_id: "another".into(),
        node_id: "n".into(),
    };
    assert_eq!(
        code(process.client.hello(other).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(process.create(VOLUME, MIB).await), Code::NotFound);
    assert_eq!(
        code(process.open("/nonexistent/d", MIB, true).await),
        Code::NotFound
    );
    assert_eq!(
        code(process.open("memory:x", 0, true).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.open(&drive(&dir), 1 << 50, true).await),
        Code::ResourceExhausted
    );
    // Refused for want of a superblock, then formatted: the first attempt holds on to nothing.
    let blank = process.open(&drive(&dir), 16 * MIB, false).await;
    assert_eq!(code(blank), Code::FailedPrecondition);
    process.open(&drive(&dir), 16 * MIB, true).await.unwrap();

    let mut second = Process::start(tempfile::tempdir().unwrap().path()).await;
    let busy = second.open(&drive(&dir), 0, false).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("in use"), "{busy}");

    assert_eq!(
        code(process.create("no-uuid", MIB).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.create(VOLUME, 100).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.create(VOLUME, 1 << 60).await),
        Code::InvalidArgument
    );
    process.create(VOLUME, 4 * MIB).await.unwrap();
    assert_eq!(
        code(process.create(VOLUME, 5 * MIB).await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(process.resize(VOLUME, 3 * MIB).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(process.resize(VOLUME, 1 << 60).await),
        Code::InvalidArgument
    );
    assert_eq!(code(process.resize(OTHER, MIB).await), Code::NotFound);
    assert_eq!(code(process.export(520).await), Code::InvalidArgument);
    process.export(4096).await.unwrap();
    let exported = process.delete(VOLUME).await.unwrap_err();
    assert_eq!(exported.code(), Code::FailedPrecondition);
    assert!(exported.message().contains(NQN), "{exported}");
}

#[tokio::test]
async fn a_resize_reaches_hosts_and_new_space_is_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    // What the deleted volume held must not be seen in the one that grows over its place.
    process.create(VOLUME, 24 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let secret = vec![0xa5; 1 << 20];
    for block in (0..24 * 256).step_by(256) {
        host.queues[0]
            .write(&host.namespace, block, &secret)
            .unwrap();
    }
    drop(host);
    process.unexport().await;
    process.delete(VOLUME).await.unwrap();

    process.create(VOLUME, 4 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    host.controller.watch_events().unwrap();
    process.resize(VOLUME, 40 * MIB).await.unwrap();
    let begun = Instant::now();
    while !host
        .controller
        .take_events()
        .unwrap()
        .iter()
        .any(|e| (e.kind(), e.information()) == (2, 0))
    {
        assert!(
            begun.elapsed() < PATIENCE,
            "no event of a changed namespace"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let data = host.controller.namespace(1).unwrap();
    let grown = Namespace::new(1, &data).unwrap();
    assert_eq!(grown.bytes(), 40 * MIB);
    for block in (0..40 * 256).step_by(256) {
        let got = host.queues[1].read(&grown, block, 256).unwrap();
        assert!(got.iter().all(|&b| b == 0), "old data at block {block}");
    }
}

#[tokio::test]
async fn the_stats_page_counts_and_events_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let watch = process.client.watch(proto::WatchRequest {}).await;
    let mut events = watch.unwrap().into_inner();
    process.open("memory:67108864", 0, true).await.unwrap();
    process.create(VOLUME, 8 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    for _ in 0..5 {
        host.queues[0]
            .write(&host.namespace, 1, &[1; 4096])
            .unwrap();
        host.queues[1].read(&host.namespace, 1, 2).unwrap();
    }
    let slot = process.volumes().await[0].stats_slot;
    let counted = process.stats.current().unwrap().slot(slot as u32).unwrap();
    assert_eq!((counted.writes, counted.write_bytes), (5, 5 * 4096));
    assert_eq!((counted.reads, counted.read_bytes), (5, 5 * 8192));
    assert_eq!(counted.connections, 2);
    loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(What::HostConnected(host)) = event.what {
            assert_eq!((host.nqn.as_str(), host.host_nqn.as_str()), (NQN, HOST));
            break;
        }
    }
}

#[test]
fn what_is_wrong_at_the_start_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = holder.local_addr().unwrap().to_string();
    let (code, said) = failed(dir.path(), &["--listen", &busy]);
    assert!(
        code == Some(1) && said.contains(&busy) && said.contains("in use"),
        "{said}"
    );

    let (code, said) = failed(&dir.path().join("missing"), &[]);
    assert!(code == Some(1) && said.contains("missing"), "{said}");

    let (code, said) = failed(dir.path(), &["--cpus", "4000", "--reactors", "1"]);
    assert!(code == Some(1) && said.contains("4000"), "{said}");

    let (code, said) = failed(dir.path(), &["--memory", "1MiB"]);
    assert!(code == Some(1) && said.contains("--memory"), "{said}");

    for wrong in [
        ["--cpus", "a"],
        ["--poll", "often"],
        ["--log", "k=l=m"],
        ["--reactors", "0"],
    ] {
        let (code, said) = failed(dir.path(), &wrong);
        assert!(code == Some(2) && said.contains(wrong[0]), "{said}");
    }
}

#[tokio::test]
async fn a_second_one_on_the_same_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Process::start(dir.path()).await;
    let (code, said) = failed(dir.path(), &[]);
    assert!(
        code == Some(1) && said.contains("already running"),
        "{said}"
    );
}
