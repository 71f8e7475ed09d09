//! Leases: what goes with them, and when.
use crate::backend::Backend;
use crate::watch::next;
use keelblock_api::etcd::mvccpb::event::EventType;
use keelblock_control::kvdb::KvError;
use keelblock_control::kvdb::client::WatchEvent;
use std::time::Duration;

pub async fn keys_go_when_their_lease_ends(b: &Backend) {
    let (lease, ttl) = b.client.lease_grant(60).await.unwrap();
    assert_eq!(ttl, 60);
    b.client.put_leased(b.key("a"), "1", lease).await.unwrap();
    b.client.put_leased(b.key("b"), "1", lease).await.unwrap();
    b.client.put(b.key("c"), "1").await.unwrap();
    assert_eq!(
        b.client.get(b.key("a")).await.unwrap().unwrap().lease,
        lease
    );
    assert!(b.client.leases().await.unwrap().contains(&lease));
    let info = b.client.lease_time_to_live(lease).await.unwrap();
    assert_eq!(info.granted_ttl, 60);
    assert!(info.ttl > 0 && info.ttl <= 60);
    let mut keys = info.keys;
    keys.sort();
    assert_eq!(keys, [b.key("a").into_bytes(), b.key("b").into_bytes()]);
    b.client.lease_revoke(lease).await.unwrap();
    let left = b.client.list(b.key("")).await.unwrap();
    assert_eq!(left.kvs.len(), 1);
    assert_eq!(left.kvs[0].key, b.key("c").as_bytes());
    assert!(matches!(
        b.client.lease_revoke(lease).await,
        Err(KvError::LeaseNotFound)
    ));
    assert!(matches!(
        b.client.lease_renew(lease).await,
        Err(KvError::LeaseNotFound)
    ));
    assert_eq!(b.client.lease_time_to_live(lease).await.unwrap().ttl, -1);
}

pub async fn a_lease_that_is_kept_alive_stays(b: &Backend) {
    let guard = b.client.hold_lease(2).await.unwrap();
    b.client
        .put_leased(b.key("alive"), "1", guard.id())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(b.client.get(b.key("alive")).await.unwrap().is_some());
    assert!(b.client.lease_renew(guard.id()).await.unwrap() >= 1);
    let mut guard = guard;
    b.client.lease_revoke(guard.id()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), guard.lost())
        .await
        .expect("the guard hears that its lease is gone");
}

pub async fn an_expired_lease_deletes_and_watchers_hear_it(b: &Backend) {
    let (lease, _) = b.client.lease_grant(1).await.unwrap();
    let put = b
        .client
        .put_leased(b.key("dying"), "1", lease)
        .await
        .unwrap();
    let mut watcher = b.client.watch(b.key(""), put + 1);
    match next(&mut watcher).await {
        WatchEvent::Changes { events, .. } => {
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].r#type(), EventType::Delete);
            assert_eq!(
                events[0].kv.as_ref().unwrap().key,
                b.key("dying").as_bytes()
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        b.client.lease_renew(lease).await,
        Err(KvError::LeaseNotFound)
    ));
}

pub async fn a_key_that_changes_its_lease_follows_the_new_one(b: &Backend) {
    let (old, _) = b.client.lease_grant(60).await.unwrap();
    let (new, _) = b.client.lease_grant(60).await.unwrap();
    b.client.put_leased(b.key("k"), "1", old).await.unwrap();
    b.client.put_leased(b.key("k"), "2", new).await.unwrap();
    b.client.lease_revoke(old).await.unwrap();
    assert!(b.client.get(b.key("k")).await.unwrap().is_some());
    b.client.delete(b.key("k")).await.unwrap();
    assert!(
        b.client
            .lease_time_to_live(new)
            .await
            .unwrap()
            .keys
            .is_empty(),
        "a deleted key leaves its lease"
    );
    b.client.put(b.key("k"), "3").await.unwrap();
    b.client.lease_revoke(new).await.unwrap();
    assert_eq!(b.client.get(b.key("k")).await.unwrap().unwrap().value, b"3");
}
