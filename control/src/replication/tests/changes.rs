//! What a coordinator asks for: done once, or not, and it learns which.

use std::time::Duration;

use super::faulty::{Fate, Faulty};
use super::{holder, id, served};
use crate::kvdb::client::{Committed, Write};
use crate::records::encode;
use crate::replication::change::{Change, ChangeError, submit};
use crate::replication::record::ReplicationRecord;
use crate::replication::swap::{self, Outcome};
use crate::replication::transition::{self, Coordinator, Refusal};

const KEY: &str = "/c/replication/v";
const PATIENCE: Duration = Duration::from_secs(20);
/// Not enough for another attempt.
const NONE: Duration = Duration::ZERO;

async fn started(fates: Vec<Fate>) -> (Faulty, ReplicationRecord, Coordinator) {
    let kv = Faulty::start(fates).await;
    let (record, by) = served(3, 1);
    kv.client.put(KEY, encode(&record)).await.expect("put");
    (kv, record, by)
}

async fn found(kv: &Faulty) -> ReplicationRecord {
    let read = swap::read(kv, KEY).await.expect("a KVDB");
    read.expect("a record").record
}

#[tokio::test]
async fn each_change_is_its_transition() {
    let (kv, record, by) = started(Vec::new()).await;
    let changes = [
        Change::Exclude(vec![id(3)]),
        Change::Admit(id(3)),
        Change::Add {
            replica_id: id(4),
            node_id: "n4".into(),
            pool_id: id(100),
        },
        Change::Leave(id(4)),
        Change::Remove(id(4)),
        Change::Minimum(2),
    ];
    let mut expected = record;
    for change in changes {
        let version = expected.version;
        let done = submit(&kv, KEY, (by, version), &change, PATIENCE).await;
        assert!(matches!(done, Ok(Outcome::Done(_))), "{change:?}: {done:?}");
        expected = change.apply(&expected, by).unwrap();
        assert_eq!(found(&kv).await, expected);
    }
    // Serve is refused here: it serves already.
    let serve = Change::Serve {
        members: vec![id(1)],
        found: Vec::new(),
    };
    let no = submit(&kv, KEY, (by, expected.version), &serve, PATIENCE).await;
    let refused = matches!(no, Err(ChangeError::Refused(Refusal::Phase { .. })));
    assert!(refused, "{no:?}");
    assert_eq!(found(&kv).await, expected);
    kv.stop().await;
}

#[tokio::test]
async fn a_change_of_another_version_is_a_conflict() {
    let (kv, record, by) = started(Vec::new()).await;
    let more = transition::want(&record, 4).unwrap();
    kv.client.put(KEY, encode(&more)).await.expect("put");
    let change = Change::Exclude(vec![id(3)]);
    let no = submit(&kv, KEY, (by, record.version), &change, PATIENCE).await;
    let Ok(Outcome::Conflict(Some(other))) = no else {
        panic!("{no:?}");
    };
    assert_eq!(other.record, more);
    // From what it read it does.
    let done = submit(&kv, KEY, (by, more.version), &change, PATIENCE).await;
    assert!(matches!(done, Ok(Outcome::Done(_))), "{done:?}");
    kv.stop().await;
}

#[tokio::test]
async fn an_unknown_change_is_asked_for_again_and_done_once() {
    for fate in [Fate::Unheard, Fate::Late, Fate::Lost] {
        let (kv, record, by) = started(vec![fate.clone()]).await;
        let change = Change::Exclude(vec![id(3)]);
        let asked = (by, record.version);
        let first = submit(&kv, KEY, asked, &change, NONE).await;
        assert!(matches!(first, Ok(Outcome::Unknown(_))), "{first:?}");
        let second = submit(&kv, KEY, asked, &change, NONE).await;
        let now = match second {
            Ok(Outcome::Done(now) | Outcome::Conflict(Some(now))) => now.record,
            other => panic!("{fate:?}: {other:?}"),
        };
        assert_eq!(transition::holds(&now, by), Ok(()));
        assert_eq!(now.members, [id(1), id(2)], "{fate:?}");
        let late = kv.arrive().await;
        assert!(late.iter().all(|l| *l == Committed::No), "{late:?}");
        assert_eq!(found(&kv).await, now);
        assert_eq!(now.version, record.version + 1);
        kv.stop().await;
    }
}

#[tokio::test]
async fn who_has_ended_changes_nothing() {
    let (record, by) = served(3, 1);
    let raised = transition::take(&record, 1, holder(2, 2)).unwrap();
    let first = Fate::Overtaken(Write::put(KEY, encode(&raised)));
    let (kv, record, _) = started(vec![first]).await;
    let change = Change::Exclude(vec![id(3)]);
    let no = submit(&kv, KEY, (by, record.version), &change, PATIENCE).await;
    let Ok(Outcome::Conflict(Some(other))) = no else {
        panic!("{no:?}");
    };
    assert_eq!(other.record, raised);
    // And not by the version of the one that came after it.
    let no = submit(&kv, KEY, (by, raised.version), &change, PATIENCE).await;
    let refused = matches!(no, Err(ChangeError::Refused(Refusal::Epoch { .. })));
    assert!(refused, "{no:?}");
    assert_eq!(found(&kv).await, raised);
    kv.stop().await;
}
