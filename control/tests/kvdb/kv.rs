//! Keys: revisions, ranges, history.
use crate::backend::Backend;
use keelblock_api::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelblock_api::etcd::etcdserverpb::request_op::Request as Op;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_control::kvdb::KvError;
use keelblock_control::kvdb::client::Write;
use keelblock_control::kvdb::span::prefix_end;

pub fn put(key: &str, value: &str) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        })),
    }
}

fn names(b: &Backend, response: &RangeResponse) -> Vec<String> {
    let prefix = b.key("");
    response
        .kvs
        .iter()
        .map(|kv| {
            String::from_utf8_lossy(&kv.key)
                .trim_start_matches(&prefix)
                .to_owned()
        })
        .collect()
}

fn all(b: &Backend) -> RangeRequest {
    let key = b.key("").into_bytes();
    RangeRequest {
        range_end: prefix_end(&key),
        key,
        ..Default::default()
    }
}

pub fn refusal(result: Result<impl std::fmt::Debug, KvError>) -> String {
    match result {
        Err(KvError::Refused(message)) => message,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub async fn revisions_and_versions_count_changes(b: &Backend) {
    let key = b.key("a");
    let first = b.client.put(&key, "1").await.unwrap();
    let other = b.client.put(b.key("b"), "x").await.unwrap();
    let second = b.client.put(&key, "2").await.unwrap();
    assert!(first < other && other < second);
    let kv = b.client.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (first, second, 2)
    );
    assert_eq!(kv.value, b"2");
    assert_eq!(b.client.get(b.key("none")).await.unwrap(), None);
}

pub async fn ranges_sort_limit_and_filter(b: &Backend) {
    let mut revisions = Vec::new();
    for (name, value) in [("c", "3"), ("a", "9"), ("d", "1"), ("b", "5")] {
        revisions.push(b.client.put(b.key(name), value).await.unwrap());
    }
    b.client.put(b.key("a"), "7").await.unwrap();
    // A neighbour beyond the prefix.
    b.client
        .put(format!("{}0", b.key("").trim_end_matches('/')), "x")
        .await
        .unwrap();
    let plain = b.client.range(all(b)).await.unwrap();
    assert_eq!(
        (names(b, &plain), plain.count, plain.more),
        (
            vec!["a".into(), "b".into(), "c".into(), "d".into()],
            4,
            false
        )
    );
    let limited = b
        .client
        .range(RangeRequest { limit: 2, ..all(b) })
        .await
        .unwrap();
    assert_eq!(
        (names(b, &limited), limited.count, limited.more),
        (vec!["a".into(), "b".into()], 4, true)
    );
    let exact = b
        .client
        .range(RangeRequest { limit: 4, ..all(b) })
        .await
        .unwrap();
    assert!(!exact.more);
    let sorted = |target: SortTarget, order: SortOrder, limit| RangeRequest {
        sort_target: target.into(),
        sort_order: order.into(),
        limit,
        ..all(b)
    };
    for (target, order, limit, expected) in [
        (SortTarget::Key, SortOrder::Descend, 0, "d c b a"),
        (SortTarget::Key, SortOrder::Ascend, 3, "a b c"),
        (SortTarget::Value, SortOrder::Ascend, 0, "d c b a"),
        (SortTarget::Value, SortOrder::Descend, 2, "a b"),
        (SortTarget::Create, SortOrder::None, 0, "c a d b"),
        (SortTarget::Mod, SortOrder::Ascend, 0, "c d b a"),
        (SortTarget::Version, SortOrder::Descend, 1, "a"),
    ] {
        let found = b.client.range(sorted(target, order, limit)).await.unwrap();
        assert_eq!(
            names(b, &found).join(" "),
            expected,
            "{target:?} {order:?} {limit}"
        );
        assert_eq!(found.count, 4);
    }
    let counted = b
        .client
        .range(RangeRequest {
            count_only: true,
            ..all(b)
        })
        .await
        .unwrap();
    assert_eq!((counted.kvs.len(), counted.count), (0, 4));
    let keys = b
        .client
        .range(RangeRequest {
            keys_only: true,
            ..all(b)
        })
        .await
        .unwrap();
    assert!(
        keys.kvs
            .iter()
            .all(|kv| kv.value.is_empty() && kv.mod_revision > 0)
            && keys.kvs.len() == 4
    );
    let filtered = RangeRequest {
        min_create_revision: revisions[1],
        max_mod_revision: revisions[3],
        ..all(b)
    };
    assert_eq!(
        names(b, &b.client.range(filtered).await.unwrap()).join(" "),
        "b d"
    );
    let filtered = RangeRequest {
        max_create_revision: revisions[1],
        min_mod_revision: revisions[1],
        ..all(b)
    };
    assert_eq!(
        names(b, &b.client.range(filtered).await.unwrap()).join(" "),
        "a"
    );
    let from_c = RangeRequest {
        key: b.key("c").into(),
        ..all(b)
    };
    assert_eq!(
        names(b, &b.client.range(from_c).await.unwrap()).join(" "),
        "c d"
    );
    let backward = RangeRequest {
        key: b.key("d").into(),
        range_end: b.key("b").into(),
        ..Default::default()
    };
    assert_eq!(b.client.range(backward).await.unwrap().count, 0);
    let unbounded = RangeRequest {
        key: b.key("c").into(),
        range_end: vec![0],
        ..Default::default()
    };
    assert!(b.client.range(unbounded).await.unwrap().count >= 2);
}

pub async fn old_revisions_stay_readable_until_compaction(b: &Backend) {
    let key = b.key("k");
    let first = b.client.put(&key, "1").await.unwrap();
    b.client.put(b.key("gone"), "x").await.unwrap();
    let second = b.client.put(&key, "2").await.unwrap();
    assert!(b.client.delete(b.key("gone")).await.unwrap());
    let third = b.client.put(&key, "3").await.unwrap();
    let at = |revision| RangeRequest { revision, ..all(b) };
    let value = |r: &RangeResponse, i: usize| String::from_utf8(r.kvs[i].value.clone()).unwrap();
    let then = b.client.range(at(first)).await.unwrap();
    assert_eq!(
        (names(b, &then).join(" "), value(&then, 0)),
        ("k".into(), "1".into())
    );
    let then = b.client.range(at(second)).await.unwrap();
    assert_eq!(
        (names(b, &then).join(" "), value(&then, 1)),
        ("gone k".into(), "2".into())
    );
    assert!(refusal(b.client.range(at(third + 1_000_000)).await).contains("future revision"));
    b.client.compact(second).await.unwrap();
    assert!(matches!(
        b.client.range(at(first)).await,
        Err(KvError::Compacted)
    ));
    let then = b.client.range(at(second)).await.unwrap();
    assert_eq!(
        (names(b, &then).join(" "), value(&then, 1)),
        ("gone k".into(), "2".into()),
        "the compacted revision itself stays"
    );
    assert!(matches!(
        b.client.compact(second).await,
        Err(KvError::Compacted)
    ));
    assert!(refusal(b.client.compact(third + 1_000_000).await).contains("future revision"));
    b.client.compact(third).await.unwrap();
    assert_eq!(value(&b.client.range(at(third)).await.unwrap(), 0), "3");
    assert_eq!(value(&b.client.range(all(b)).await.unwrap(), 0), "3");
}

pub async fn deletions_end_a_key_and_a_put_begins_it_anew(b: &Backend) {
    let key = b.key("k");
    b.client.put(&key, "1").await.unwrap();
    b.client.put(&key, "2").await.unwrap();
    let before = b
        .client
        .range(all(b))
        .await
        .unwrap()
        .header
        .unwrap()
        .revision;
    assert!(!b.client.delete(b.key("other")).await.unwrap());
    let unchanged = b
        .client
        .range(all(b))
        .await
        .unwrap()
        .header
        .unwrap()
        .revision;
    assert_eq!(before, unchanged, "deleting nothing is no revision");
    assert!(b.client.delete(&key).await.unwrap());
    assert_eq!(b.client.get(&key).await.unwrap(), None);
    let again = b.client.put(&key, "3").await.unwrap();
    let kv = b.client.get(&key).await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.version), (again, 1));
    for name in ["x", "y", "z"] {
        b.client.put(b.key(name), "").await.unwrap();
    }
    assert_eq!(b.client.delete_prefix(b.key("")).await.unwrap(), 4);
    assert!(b.client.list(b.key("")).await.unwrap().kvs.is_empty());
}

pub async fn refusals_name_the_reason_and_change_nothing(b: &Backend) {
    let key = b.key("k");
    b.client.put(&key, "1").await.unwrap();
    assert!(refusal(b.client.put("", "1").await).contains("key is not provided"));
    assert!(matches!(
        b.client.put_leased(&key, "2", 0x7fff_1234).await,
        Err(KvError::LeaseNotFound)
    ));
    let ops = vec![put(&key, "2"); 129];
    assert!(
        refusal(
            b.client
                .txn(TxnRequest {
                    success: ops,
                    ..Default::default()
                })
                .await
        )
        .contains("too many operations")
    );
    // The second operation of the branch is refused: the first leaves no trace.
    let bad = PutRequest {
        key: b.key("x").into(),
        ignore_value: true,
        ..Default::default()
    };
    let request = TxnRequest {
        success: vec![
            put(&key, "2"),
            RequestOp {
                request: Some(Op::RequestPut(bad)),
            },
        ],
        ..Default::default()
    };
    assert!(refusal(b.client.txn(request).await).contains("key not found"));
    let huge = b.client.put(b.key("huge"), vec![7; 1_600_000]).await;
    assert!(refusal(huge).contains("too large"));
    assert_eq!(b.client.get(&key).await.unwrap().unwrap().value, b"1");
    assert_eq!(b.client.list(b.key("")).await.unwrap().kvs.len(), 1);
}

pub async fn lists_page_through_one_revision(b: &Backend) {
    for batch in 0..21 {
        let writes = (0..100)
            .map(|i| Write::put(b.key(&format!("{:04}", batch * 100 + i)), "v"))
            .collect();
        b.client.commit(vec![], writes).await.unwrap();
    }
    let listed = b.client.list(b.key("")).await.unwrap();
    assert_eq!(listed.kvs.len(), 2100);
    assert!(listed.kvs.windows(2).all(|w| w[0].key < w[1].key));
    assert!(
        listed
            .kvs
            .iter()
            .all(|kv| kv.mod_revision <= listed.revision)
    );
}
