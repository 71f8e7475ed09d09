//! Transactions: all or nothing, and what they compare.
use crate::backend::Backend;
use crate::kv::{put, refusal};
use keelblock_api::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelblock_api::etcd::etcdserverpb::request_op::Request as Op;
use keelblock_api::etcd::etcdserverpb::response_op::Response;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_control::kvdb::client::{Committed, Guard, Write};
use keelblock_control::kvdb::span::prefix_end;

fn range(key: &str) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestRange(RangeRequest {
            key: key.into(),
            ..Default::default()
        })),
    }
}

fn delete(key: &str, range_end: &[u8]) -> RequestOp {
    let request = DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.to_vec(),
        prev_kv: false,
    };
    RequestOp {
        request: Some(Op::RequestDeleteRange(request)),
    }
}

fn value_is(key: &str, result: CompareResult, value: &str) -> Compare {
    Compare {
        key: key.into(),
        target: CompareTarget::Value.into(),
        result: result.into(),
        target_union: Some(TargetUnion::Value(value.into())),
        range_end: Vec::new(),
    }
}

pub async fn transactions_are_all_or_nothing(b: &Backend) {
    let (a, c) = (b.key("a"), b.key("c"));
    let made = b
        .client
        .commit(
            vec![Guard::absent(&a), Guard::absent(&c)],
            vec![Write::put(&a, "1"), Write::put(&c, "1")],
        )
        .await;
    let Ok(Committed::Yes(revision)) = made else {
        panic!("{made:?}")
    };
    for key in [&a, &c] {
        assert_eq!(
            b.client.get(key).await.unwrap().unwrap().mod_revision,
            revision,
            "one transaction, one revision"
        );
    }
    let stale = b
        .client
        .commit(
            vec![Guard::at(&a, revision), Guard::absent(&c)],
            vec![Write::put(&a, "2")],
        )
        .await
        .unwrap();
    assert_eq!(stale, Committed::No);
    assert_eq!(b.client.get(&a).await.unwrap().unwrap().value, b"1");
    let moved = vec![Write::delete(&a), Write::put(b.key("d"), "1")];
    assert!(matches!(
        b.client
            .commit(vec![Guard::exists(&a)], moved)
            .await
            .unwrap(),
        Committed::Yes(_)
    ));
    assert_eq!(
        b.client
            .commit(vec![Guard::exists(&a)], vec![])
            .await
            .unwrap(),
        Committed::No
    );
    // The failure branch, its answers in order, and a range that sees what came before it in the same transaction.
    let request = TxnRequest {
        compare: vec![value_is(&c, CompareResult::Equal, "other")],
        success: vec![put(&c, "wrong")],
        failure: vec![range(&c), put(&c, "2"), range(&c)],
    };
    let response = b.client.txn(request).await.unwrap();
    assert!(!response.succeeded);
    let values = response.responses.iter().filter_map(|r| match &r.response {
        Some(Response::ResponseRange(r)) => Some(r.kvs[0].value.clone()),
        _ => None,
    });
    let values: Vec<_> = values.collect();
    assert_eq!(values, [b"1".to_vec(), b"2".to_vec()]);
    for (result, value, holds) in [
        (CompareResult::Greater, "1", true),
        (CompareResult::Less, "3", true),
        (CompareResult::NotEqual, "2", false),
        (CompareResult::Equal, "2", true),
    ] {
        let request = TxnRequest {
            compare: vec![value_is(&c, result, value)],
            ..Default::default()
        };
        assert_eq!(
            b.client.txn(request).await.unwrap().succeeded,
            holds,
            "{result:?} {value}"
        );
    }
    // An absent key has no value, not even an empty one; over a range every key must hold.
    let absent = TxnRequest {
        compare: vec![value_is(&b.key("no"), CompareResult::NotEqual, "x")],
        ..Default::default()
    };
    assert!(!b.client.txn(absent).await.unwrap().succeeded);
    let every = |value: &str| TxnRequest {
        compare: vec![Compare {
            range_end: prefix_end(b.key("").as_bytes()),
            ..value_is(&b.key(""), CompareResult::Less, value)
        }],
        ..Default::default()
    };
    assert!(b.client.txn(every("3")).await.unwrap().succeeded);
    assert!(!b.client.txn(every("2")).await.unwrap().succeeded);
}

pub async fn nested_transactions_compare_before_they_change(b: &Backend) {
    let key = b.key("k");
    b.client.put(&key, "old").await.unwrap();
    let inner = TxnRequest {
        compare: vec![value_is(&key, CompareResult::Equal, "old")],
        success: vec![put(&b.key("saw"), "old")],
        failure: vec![put(&b.key("saw"), "new")],
    };
    let outer = TxnRequest {
        success: vec![
            put(&key, "new"),
            RequestOp {
                request: Some(Op::RequestTxn(inner)),
            },
        ],
        ..Default::default()
    };
    assert!(b.client.txn(outer).await.unwrap().succeeded);
    assert_eq!(
        b.client.get(b.key("saw")).await.unwrap().unwrap().value,
        b"old"
    );
    assert_eq!(b.client.get(&key).await.unwrap().unwrap().value, b"new");
}

pub async fn a_key_changes_once_per_transaction(b: &Backend) {
    let (a, c) = (b.key("a"), b.key("c"));
    let end = prefix_end(b.key("").as_bytes());
    let inner = |ops| RequestOp {
        request: Some(Op::RequestTxn(TxnRequest {
            success: ops,
            ..Default::default()
        })),
    };
    for ops in [
        vec![put(&a, "1"), put(&a, "2")],
        vec![put(&a, "1"), delete(&b.key(""), &end)],
        vec![delete(&b.key(""), &end), put(&a, "1")],
        vec![put(&a, "1"), inner(vec![put(&a, "2")])],
    ] {
        let request = TxnRequest {
            success: ops,
            ..Default::default()
        };
        assert!(refusal(b.client.txn(request).await).contains("duplicate key"));
    }
    // Only one of the two branches is taken.
    let request = TxnRequest {
        success: vec![put(&a, "1")],
        failure: vec![put(&a, "2")],
        ..Default::default()
    };
    assert!(b.client.txn(request).await.unwrap().succeeded);
    let request = TxnRequest {
        success: vec![delete(&a, b""), delete(&b.key(""), &end), range(&c)],
        ..Default::default()
    };
    assert!(b.client.txn(request).await.unwrap().succeeded);
}

pub async fn racing_swaps_have_one_winner_each(b: &Backend) {
    const RACERS: u64 = 8;
    const STEPS: u64 = 10;
    let key = b.key("counter");
    let racer = |_| {
        let (client, key) = (b.client.clone(), key.clone());
        tokio::spawn(async move {
            let mut won = 0;
            while won < STEPS {
                let (value, revision) = match client.get(&key).await.unwrap() {
                    Some(kv) => (
                        String::from_utf8(kv.value).unwrap().parse::<u64>().unwrap(),
                        kv.mod_revision,
                    ),
                    None => (0, 0),
                };
                let swapped = client
                    .compare_and_swap(&key, revision, (value + 1).to_string())
                    .await
                    .unwrap();
                won += u64::from(swapped != Committed::No);
            }
        })
    };
    for racer in (0..RACERS).map(racer).collect::<Vec<_>>() {
        racer.await.unwrap();
    }
    let kv = b.client.get(&key).await.unwrap().unwrap();
    assert_eq!(
        String::from_utf8(kv.value).unwrap(),
        (RACERS * STEPS).to_string()
    );
    assert_eq!(kv.version as u64, RACERS * STEPS);
}

pub async fn ignore_value_and_lease_keep_them(b: &Backend) {
    let key = b.key("k");
    let (lease, _) = b.client.lease_grant(60).await.unwrap();
    b.client.put_leased(&key, "v", lease).await.unwrap();
    let put = |request: PutRequest| async {
        let request = TxnRequest {
            success: vec![RequestOp {
                request: Some(Op::RequestPut(request)),
            }],
            ..Default::default()
        };
        b.client.txn(request).await
    };
    put(PutRequest {
        key: key.clone().into(),
        value: "w".into(),
        ignore_lease: true,
        ..Default::default()
    })
    .await
    .unwrap();
    let kv = b.client.get(&key).await.unwrap().unwrap();
    assert_eq!((kv.value.as_slice(), kv.lease), (&b"w"[..], lease));
    put(PutRequest {
        key: key.clone().into(),
        ignore_value: true,
        ..Default::default()
    })
    .await
    .unwrap();
    let kv = b.client.get(&key).await.unwrap().unwrap();
    assert_eq!((kv.value.as_slice(), kv.lease), (&b"w"[..], 0));
    b.client.lease_revoke(lease).await.unwrap();
    assert!(
        b.client.get(&key).await.unwrap().is_some(),
        "it has left the lease"
    );
}
