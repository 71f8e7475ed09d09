//! Swaps: who was first, and what is not known.

use std::time::Duration;

use super::faulty::{Fate, Faulty};
use super::{fresh, holder, id, owner, served};
use crate::kvdb::client::Committed;
use crate::records::encode;
use crate::replication::record::ReplicationRecord;
use crate::replication::swap::{self, Outcome, Swap, SwapError};
use crate::replication::transition;

const KEY: &str = "/c/replication/v";
const PATIENCE: Duration = Duration::from_secs(20);

async fn put(kv: &Faulty, record: &ReplicationRecord) -> i64 {
    kv.client.put(KEY, encode(record)).await.expect("put")
}

fn swap(from: i64, to: &ReplicationRecord) -> Swap<'_> {
    let key = KEY;
    Swap { key, from, to }
}

fn done(outcome: Outcome) -> (ReplicationRecord, i64) {
    match outcome {
        Outcome::Done(v) => (v.record, v.revision),
        other => panic!("{other:?}"),
    }
}

fn conflict(outcome: Outcome) -> ReplicationRecord {
    match outcome {
        Outcome::Conflict(Some(v)) => v.record,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_first_of_two_swaps_wins() {
    let kv = Faulty::start([]).await;
    let (record, by) = served(3, 1);
    let read_at = put(&kv, &record).await;
    let smaller = transition::exclude(&record, by, &[id(3)]).unwrap();
    let raised = transition::take(&record, 1, holder(2, 2)).unwrap();
    let first = swap::once(&kv, swap(read_at, &smaller), &[]).await.unwrap();
    let (found, revision) = done(first);
    assert_eq!(found, smaller);
    assert!(revision > read_at);
    let second = swap::once(&kv, swap(read_at, &raised), &[]).await.unwrap();
    assert_eq!(conflict(second), smaller);
    let read = swap::read(&kv, KEY).await.unwrap().expect("a record");
    assert_eq!((read.record, read.revision), (smaller, revision));
    kv.stop().await;
}

#[tokio::test]
async fn a_lost_reply_is_found_out_by_sending_again() {
    let kv = Faulty::start([Fate::Unheard, Fate::Unheard, Fate::Lost]).await;
    let (record, by) = served(3, 1);
    let read_at = put(&kv, &record).await;
    let smaller = transition::exclude(&record, by, &[id(3)]).unwrap();
    let once = swap::once(&kv, swap(read_at, &smaller), &[]).await.unwrap();
    assert!(matches!(once, Outcome::Unknown(_)), "{once:?}");
    let known = swap::until_known(&kv, swap(read_at, &smaller), PATIENCE).await;
    let (found, revision) = done(known.unwrap());
    assert_eq!(found, smaller);
    let kept = kv.client.get(KEY).await.unwrap().expect("a record");
    // It was done once.
    assert_eq!((kept.version, kept.mod_revision), (2, revision));
    kv.stop().await;
}

#[tokio::test]
async fn one_that_arrives_late_does_nothing_once_its_outcome_is_known() {
    let kv = Faulty::start([Fate::Late, Fate::Lost, Fate::Late]).await;
    let (record, by) = served(3, 1);
    let read_at = put(&kv, &record).await;
    let smaller = transition::exclude(&record, by, &[id(3)]).unwrap();
    let known = swap::until_known(&kv, swap(read_at, &smaller), PATIENCE).await;
    let (_, revision) = done(known.unwrap());
    // And the set may change again before it arrives.
    let again = transition::admit(&smaller, by, id(3)).unwrap();
    let next = swap::once(&kv, swap(revision, &again), &[]).await.unwrap();
    let (_, revision) = done(next);
    assert_eq!(kv.arrive().await, [Committed::No, Committed::No]);
    let read = swap::read(&kv, KEY).await.unwrap().expect("a record");
    assert_eq!((read.record, read.revision), (again, revision));
    kv.stop().await;
}

#[tokio::test]
async fn an_unknown_one_that_another_overtook_is_a_conflict() {
    let kv = Faulty::start([Fate::Late]).await;
    let (record, by) = served(3, 1);
    let read_at = put(&kv, &record).await;
    let smaller = transition::exclude(&record, by, &[id(3)]).unwrap();
    let once = swap::once(&kv, swap(read_at, &smaller), &[]).await.unwrap();
    assert!(matches!(once, Outcome::Unknown(_)), "{once:?}");
    // Another node takes over with the old set, before it arrives.
    let raised = transition::take(&record, 1, holder(2, 2)).unwrap();
    done(swap::once(&kv, swap(read_at, &raised), &[]).await.unwrap());
    assert_eq!(kv.arrive().await, [Committed::No]);
    let known = swap::until_known(&kv, swap(read_at, &smaller), PATIENCE).await;
    let found = conflict(known.unwrap());
    assert_eq!(found, raised);
    assert!(transition::holds(&found, by).is_err(), "so it has ended");
    kv.stop().await;
}

#[tokio::test]
async fn what_was_done_and_overtaken_is_a_conflict_with_what_came_of_it() {
    let kv = Faulty::start([Fate::Unheard]).await;
    let (record, by) = served(3, 1);
    let read_at = put(&kv, &record).await;
    let smaller = transition::exclude(&record, by, &[id(3)]).unwrap();
    let once = swap::once(&kv, swap(read_at, &smaller), &[]).await.unwrap();
    assert!(matches!(once, Outcome::Unknown(_)), "{once:?}");
    let found = swap::read(&kv, KEY).await.unwrap().expect("a record");
    let more = transition::want(&found.record, 4).unwrap();
    let wanted = swap::once(&kv, swap(found.revision, &more), &[]).await;
    done(wanted.unwrap());
    let known = swap::until_known(&kv, swap(read_at, &smaller), PATIENCE).await;
    let found = conflict(known.unwrap());
    // The epoch is still its own, so the set that it reads is the one that it made.
    assert_eq!(transition::holds(&found, by), Ok(()));
    assert_eq!(found.members, smaller.members);
    kv.stop().await;
}

#[tokio::test]
async fn patience_ends() {
    let kv = Faulty::start(vec![Fate::Lost; 100]).await;
    let record = fresh(2, 1);
    let read_at = put(&kv, &record).await;
    let raised = transition::take(&record, 1, holder(2, 2)).unwrap();
    let begun = tokio::time::Instant::now();
    let patience = Duration::from_millis(300);
    let known = swap::until_known(&kv, swap(read_at, &raised), patience).await;
    assert!(matches!(known, Ok(Outcome::Unknown(_))), "{known:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    kv.stop().await;
}

#[tokio::test]
async fn what_is_no_record_is_not_taken_for_one() {
    let kv = Faulty::start([]).await;
    let record = fresh(2, 1);
    let mut json = serde_json::to_value(&record).unwrap();
    json["write_quorum"] = 1.into();
    kv.client.put(KEY, json.to_string()).await.unwrap();
    let read = swap::read(&kv, KEY).await.unwrap_err();
    let SwapError::Unreadable { why, .. } = read else {
        panic!("{read:?}");
    };
    assert_eq!(why, "the write quorum is 1, and must be 2");
    assert!(swap::read(&kv, "/c/other").await.unwrap().is_none());
    // One that was deleted meanwhile.
    let raised = transition::take(&record, 1, holder(2, 2)).unwrap();
    assert_eq!(owner(&raised).epoch, raised.epoch);
    kv.client.delete(KEY).await.unwrap();
    let gone = swap::once(&kv, swap(2, &raised), &[]).await.unwrap();
    assert!(matches!(gone, Outcome::Conflict(None)), "{gone:?}");
    kv.stop().await;
}
