//! The embedded server's file: what was acknowledged is there after a restart; leases begin anew; the file has one owner.
use crate::backend::start_embedded;
use crate::watch::next;
use keelblock_control::kvdb::client::WatchEvent;
use keelblock_control::kvdb::engine::HISTORY_REVISIONS;
use keelblock_control::kvdb::store::OpenError;
use keelblock_control::kvdb::{Client, KvError, Server};
use std::time::Duration;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_keys_history_and_leases() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvdb.redb");
    let server = start_embedded(&file).await;
    let address = server.address();
    let client = Client::new(&address.to_string()).unwrap();
    let (lease, _) = client.lease_grant(60).await.unwrap();
    let first = client.put("/k", "1").await.unwrap();
    client.put_leased("/l", "1", lease).await.unwrap();
    let second = client.put("/k", "2").await.unwrap();
    let before = client.status().await.unwrap().header.unwrap();
    let mut watcher = client.watch("/k", second + 1);
    let waiting = tokio::spawn(async move { next(&mut watcher).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stop().await;

    assert!(matches!(
        client.get("/k").await,
        Err(KvError::Unavailable { .. })
    ));
    let listener = TcpListener::bind(address).await.unwrap();
    let server = Server::start(&file, listener).unwrap();
    let after = client.status().await.unwrap().header.unwrap();
    assert_eq!(
        (before.cluster_id, before.member_id, before.revision),
        (after.cluster_id, after.member_id, after.revision)
    );
    assert!(after.raft_term > before.raft_term);
    assert_eq!(client.get("/k").await.unwrap().unwrap().value, b"2");
    let old = keelblock_api::etcd::etcdserverpb::RangeRequest {
        key: "/k".into(),
        revision: first,
        ..Default::default()
    };
    assert_eq!(client.range(old).await.unwrap().kvs[0].value, b"1");
    let third = client.put("/k", "3").await.unwrap();
    assert!(third > second);
    match waiting.await.unwrap() {
        WatchEvent::Changes { events, revision } => assert_eq!(
            (events.len(), revision),
            (1, third),
            "the watch went on by itself"
        ),
        other => panic!("{other:?}"),
    }
    client.lease_revoke(lease).await.unwrap();
    assert!(
        client.get("/l").await.unwrap().is_none(),
        "the lease still knows its keys"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_expires_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvdb.redb");
    let server = start_embedded(&file).await;
    let client = Client::new(&server.address().to_string()).unwrap();
    let (lease, _) = client.lease_grant(1).await.unwrap();
    client.put_leased("/l", "1", lease).await.unwrap();
    server.stop().await;
    let server = start_embedded(&file).await;
    let client = Client::new(&server.address().to_string()).unwrap();
    let mut left = 100;
    while client.get("/l").await.unwrap().is_some() {
        left -= 1;
        assert!(left > 0, "the lease never expires");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvdb.redb");
    let server = start_embedded(&file).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(
        Server::start(&file, listener),
        Err(OpenError::InUse { .. })
    ));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvdb.redb");
    std::fs::write(&file, b"something else entirely").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(
        Server::start(&file, listener),
        Err(OpenError::Store { .. })
    ));
    assert_eq!(std::fs::read(&file).unwrap(), b"something else entirely");
    let missing = dir.path().join("no/such/dir/kvdb.redb");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(
        Server::start(&missing, listener),
        Err(OpenError::Store { .. })
    ));
}

/// History is bounded without anyone compacting: the store does it while it writes.
#[tokio::test(flavor = "multi_thread")]
async fn history_compacts_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_embedded(&dir.path().join("kvdb.redb")).await;
    let client = Client::new(&server.address().to_string()).unwrap();
    let first = client.put("/k", "first").await.unwrap();
    // Many at once share a commit, so that this does not take one sync per revision.
    let total = 2 * HISTORY_REVISIONS + 200;
    let writer = |_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..total / 100 {
                client.put("/k", "again").await.unwrap();
            }
        })
    };
    for writer in (0..100).map(writer).collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let old = keelblock_api::etcd::etcdserverpb::RangeRequest {
        key: "/k".into(),
        revision: first,
        ..Default::default()
    };
    assert!(matches!(client.range(old).await, Err(KvError::Compacted)));
    assert_eq!(
        client.get("/k").await.unwrap().unwrap().version as u64,
        total / 100 * 100 + 1
    );
    server.stop().await;
}
