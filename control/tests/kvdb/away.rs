//! The KVDB, or the way to it, is away and comes back: nothing is lost, everything goes on by itself, and whoever waits is told for what.
use crate::backend::Backend;
use crate::relay::Relay;
use crate::watch::{PATIENCE, next};
use keelblock_control::kvdb::client::{Committed, Guard, WatchEvent, Watcher, Write};
use keelblock_control::kvdb::{Client, KvError};
use std::time::Duration;

/// The values that a watch reports, until this one.
async fn values(watcher: &mut Watcher, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|s| s != last) {
        match next(watcher).await {
            WatchEvent::Changes { events, .. } => {
                let values = events.into_iter().filter_map(|e| e.kv).map(|kv| kv.value);
                seen.extend(values.map(|v| String::from_utf8(v).expect("text")));
            }
            other => panic!("expected changes, got {other:?}"),
        }
    }
    seen
}

fn is_unavailable<T: std::fmt::Debug>(result: &Result<T, KvError>) -> bool {
    matches!(result, Err(KvError::Unavailable { .. }))
}

/// Until it answers again.
async fn answered(client: &Client) {
    let until = async {
        while client.get("up?").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answers = tokio::time::timeout(PATIENCE, until).await;
    answers.expect("it answers again");
}

pub async fn a_watch_that_was_cut_misses_nothing(b: &Backend) {
    let relay = Relay::to(&b.address).await;
    let client = Client::new(&relay.address).unwrap();
    let from = b.client.put(b.key("k"), "0").await.unwrap();
    let mut watcher = client.watch(b.key(""), from);
    assert_eq!(values(&mut watcher, "0").await, ["0"]);
    for round in 1..4 {
        relay.cut();
        // Perhaps it had gone through when the way was cut, and only its answer is lost.
        assert!(is_unavailable(&client.put(b.key("k"), "perhaps").await));
        // It looks for the server meanwhile, and does not find it.
        let early = tokio::time::timeout(Duration::from_millis(700), watcher.next()).await;
        assert!(early.is_err(), "{early:?}");
        for part in 0..3 {
            let value = format!("{round}.{part}");
            b.client.put(b.key("k"), value).await.unwrap();
        }
        relay.heal();
        let expected: Vec<String> = (0..3).map(|part| format!("{round}.{part}")).collect();
        let mut seen = values(&mut watcher, &expected[2]).await;
        let perhaps = |seen: &[String]| seen.iter().filter(|v| *v == "perhaps").count();
        assert!(perhaps(&seen) <= 1, "{seen:?}");
        seen.retain(|v| v != "perhaps");
        assert_eq!(seen, expected, "each once, in order");
    }
}

pub async fn a_restart_keeps_keys_watches_and_leases(b: &mut Backend) {
    let guard = b.client.hold_lease(60).await.unwrap();
    b.client
        .put_leased(b.key("leased"), "1", guard.id())
        .await
        .unwrap();
    let before = b.client.put(b.key("k"), "before").await.unwrap();
    let mut watcher = b.client.watch(b.key("k"), before);
    assert_eq!(values(&mut watcher, "before").await, ["before"]);
    if !b.end().await {
        eprintln!("not run: the KVDB is not this test's, so it cannot end it");
        return;
    }
    assert!(is_unavailable(&b.client.get(b.key("k")).await));
    b.begin().await;
    answered(&b.client).await;
    let kv = b.client.get(b.key("k")).await.unwrap().unwrap();
    assert_eq!(
        (kv.value.as_slice(), kv.mod_revision),
        (&b"before"[..], before)
    );
    b.client.put(b.key("k"), "after").await.unwrap();
    assert_eq!(values(&mut watcher, "after").await, ["after"]);
    assert!(b.client.lease_renew(guard.id()).await.unwrap() > 0);
    b.client.lease_revoke(guard.id()).await.unwrap();
    let left = b.client.get(b.key("leased")).await.unwrap();
    assert!(left.is_none(), "the lease still knows its keys");
}

pub async fn leases_outlive_a_short_absence_and_no_long_one(b: &Backend) {
    let relay = Relay::to(&b.address).await;
    let client = Client::new(&relay.address).unwrap();
    let mut guard = client.hold_lease(6).await.unwrap();
    let key = b.key("leased");
    client.put_leased(&key, "1", guard.id()).await.unwrap();
    relay.cut();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    relay.heal();
    answered(&client).await;
    // Longer than it would have lived without being renewed.
    let lost = tokio::time::timeout(Duration::from_secs(8), guard.lost()).await;
    assert!(lost.is_err(), "it was renewed in time");
    assert!(b.client.get(&key).await.unwrap().is_some());
    relay.cut();
    let lost = tokio::time::timeout(PATIENCE, guard.lost()).await;
    lost.expect("whoever holds it hears that it may be gone");
    let gone = async {
        while b.client.get(&key).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    gone.expect("its key goes");
}

pub async fn history_that_is_compacted_during_an_absence_is_read_anew(b: &Backend) {
    let relay = Relay::to(&b.address).await;
    let client = Client::new(&relay.address).unwrap();
    let from = b.client.put(b.key("k"), "0").await.unwrap();
    let mut watcher = client.watch(b.key(""), from);
    assert_eq!(values(&mut watcher, "0").await, ["0"]);
    relay.cut();
    b.client.put(b.key("k"), "missed").await.unwrap();
    let last = b.client.put(b.key("k"), "1").await.unwrap();
    b.client.compact(last).await.unwrap();
    relay.heal();
    match next(&mut watcher).await {
        WatchEvent::Compacted { compacted } => assert_eq!(compacted, last),
        other => panic!("{other:?}"),
    }
    let listed = client.list(b.key("")).await.unwrap();
    assert_eq!(listed.kvs[0].value, b"1");
    let mut watcher = client.watch(b.key(""), listed.revision + 1);
    b.client.put(b.key("k"), "2").await.unwrap();
    assert_eq!(values(&mut watcher, "2").await, ["2"]);
}

pub async fn who_waits_for_a_slow_kvdb_is_told_for_what(b: &Backend) {
    let relay = Relay::to(&b.address).await;
    let client = Client::new(&relay.address).unwrap();
    client.put(b.key("k"), "1").await.unwrap();
    relay.hold();
    let (read, written, committed, leased) = tokio::join!(
        client.get(b.key("k")),
        client.put(b.key("other"), "2"),
        client.commit(
            vec![Guard::absent(b.key("new"))],
            vec![Write::put(b.key("new"), "1")]
        ),
        client.lease_grant(60),
    );
    for (error, what) in [
        (read.unwrap_err(), "a read"),
        (written.unwrap_err(), "a write"),
        (committed.unwrap_err(), "a transaction"),
        (leased.unwrap_err(), "the grant of a lease"),
    ] {
        assert!(error.is_transient(), "{error}");
        let said = error.to_string();
        assert!(said.contains(&relay.address), "{said}");
        assert!(
            said.ends_with(&format!("no answer in 5000 ms to {what}")),
            "{said}"
        );
    }
    relay.heal();
    answered(&client).await;
    // Its outcome was not known; whatever it was, it happened once at most, and the same again tells.
    let again = client
        .commit(
            vec![Guard::absent(b.key("new"))],
            vec![Write::put(b.key("new"), "1")],
        )
        .await
        .unwrap();
    let kv = client.get(b.key("new")).await.unwrap().unwrap();
    assert_eq!(kv.version, 1, "{again:?}");
}

pub async fn another_server_is_used_when_one_is_away(b: &Backend) {
    let (first, second) = (Relay::to(&b.address).await, Relay::to(&b.address).await);
    let both = format!("{},{}", first.address, second.address);
    let client = Client::new(&both).unwrap();
    let from = client.put(b.key("k"), "0").await.unwrap();
    let mut watcher = client.watch(b.key("k"), from);
    assert_eq!(values(&mut watcher, "0").await, ["0"]);
    let mut guard = client.hold_lease(3).await.unwrap();
    for (round, (away, back)) in [(&first, &second), (&second, &first)]
        .into_iter()
        .enumerate()
    {
        back.heal();
        away.cut();
        // A connection that breaks under a change leaves it unknown; then there is none, and the other server is asked.
        let _ = client.get(b.key("k")).await;
        for part in 0..20 {
            let key = b.key("count");
            let before = client.get(&key).await.unwrap();
            let read_at = before.map_or(0, |kv| kv.mod_revision);
            let swapped = client
                .compare_and_swap(&key, read_at, format!("{part}"))
                .await;
            assert!(matches!(swapped, Ok(Committed::Yes(_))), "{swapped:?}");
        }
        let value = format!("{}", round + 1);
        client.put(b.key("k"), value.clone()).await.unwrap();
        assert_eq!(values(&mut watcher, &value).await, [value]);
    }
    // One that takes connections and does not answer costs one call its time, and the lease nothing.
    second.heal();
    first.hold();
    let held = client.get(b.key("k")).await;
    answered(&client).await;
    assert_eq!(client.get(b.key("k")).await.unwrap().unwrap().value, b"2");
    let lost = tokio::time::timeout(Duration::from_secs(6), guard.lost()).await;
    assert!(lost.is_err(), "the lease was renewed elsewhere ({held:?})");
}
