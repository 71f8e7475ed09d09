//! K1: nobody gets an epoch of which he does not know that it is his.

use std::time::Duration;

use super::faulty::{Fate, Faulty};
use super::{fresh, holder, id};
use crate::kvdb::client::{Committed, Write};
use crate::records::{ClusterRecord, Keys, encode};
use crate::replication::attach::{AttachError, Process, attach};
use crate::replication::record::{Epoch, Phase, ReplicationRecord, Token};
use crate::replication::swap::{self, Outcome, Swap};
use crate::replication::transition::{self, Refusal};

const PATIENCE: Duration = Duration::from_secs(20);

fn keys() -> Keys {
    Keys::new("c")
}

fn process(node: u8) -> Process {
    Process {
        node_id: format!("n{node}"),
        incarnation: Token([node; 16]),
    }
}

async fn cluster(kv: &Faulty, generation: u8) {
    let record = ClusterRecord {
        cluster_id: "c".into(),
        created_unix_ms: 1,
        generation,
    };
    let put = kv.client.put(keys().cluster(), encode(&record)).await;
    put.expect("put");
}

async fn volume(kv: &Faulty, record: &ReplicationRecord) {
    let key = keys().replication(id(50));
    kv.client.put(key, encode(record)).await.expect("put");
}

async fn started(fates: impl IntoIterator<Item = Fate>) -> Faulty {
    let kv = Faulty::start(fates).await;
    cluster(&kv, 1).await;
    volume(&kv, &fresh(2, 1)).await;
    kv
}

#[tokio::test]
async fn an_epoch_is_given_to_one_process() {
    let kv = started([]).await;
    let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let taken = taken.unwrap();
    let record = &taken.record.record;
    assert_eq!(record.epoch, Epoch::new(1, 1).unwrap());
    assert_eq!((record.phase, record.version), (Phase::Taking, 2));
    assert_eq!(transition::holds(record, taken.coordinator), Ok(()));
    let key = keys().replication(id(50));
    let read = swap::read(&kv, &key).await.unwrap().expect("a record");
    assert_eq!(read.record, *record);
    assert_eq!(read.revision, taken.record.revision);
    kv.stop().await;
}

#[tokio::test]
async fn an_unknown_attempt_is_given_up_for_one_above_it() {
    // The first is done and nobody hears of it; the second is done and heard.
    let kv = started([Fate::Unheard]).await;
    let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let taken = taken.unwrap();
    assert_eq!(taken.coordinator.epoch, Epoch::new(1, 2).unwrap());
    let record = &taken.record.record;
    assert_eq!(transition::holds(record, taken.coordinator), Ok(()));
    kv.stop().await;
}

#[tokio::test]
async fn an_attempt_that_arrives_late_gives_nothing() {
    let kv = started([Fate::Late]).await;
    let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let taken = taken.unwrap();
    assert_eq!(kv.arrive().await, [Committed::No]);
    let key = keys().replication(id(50));
    let read = swap::read(&kv, &key).await.unwrap().expect("a record");
    assert_eq!(transition::holds(&read.record, taken.coordinator), Ok(()));
    kv.stop().await;
}

#[tokio::test]
async fn who_comes_second_does_not_take_it_away() {
    let raised = transition::take(&fresh(2, 1), 1, holder(1, 9)).unwrap();
    let key = keys().replication(id(50));
    let first = Fate::Overtaken(Write::put(&key, encode(&raised)));
    let kv = started([first]).await;
    let second = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let Err(AttachError::Beaten { node_id, .. }) = second else {
        panic!("{second:?}");
    };
    assert_eq!(node_id, "n1");
    kv.stop().await;
    // What is in its way is not always another's epoch.
    let wanted = transition::want(&fresh(2, 1), 3).unwrap();
    let first = Fate::Overtaken(Write::put(&key, encode(&wanted)));
    let kv = started([first]).await;
    let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let record = taken.unwrap().record.record;
    assert_eq!((record.wanted, record.epoch.counter()), (3, 1));
    kv.stop().await;
}

#[tokio::test]
async fn after_a_restore_epochs_are_of_the_new_generation() {
    let kv = started([]).await;
    let key = keys().replication(id(50));
    cluster(&kv, 2).await;
    // Nobody knows which replicas have everything: who has the epoch is told to hear them all, and again in the next one, until a takeover has ended.
    for counter in 1..3 {
        let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
        let taken = taken.unwrap();
        assert_eq!(taken.coordinator.epoch, Epoch::new(2, counter).unwrap());
        assert!(taken.unverified && taken.record.record.unverified(2));
    }
    let found = swap::read(&kv, &key).await.unwrap().unwrap();
    // A person says so.
    let members = found.record.members.clone();
    let decided = transition::decide(&found.record, 2, &members, 1).unwrap();
    let decide = Swap {
        key: &key,
        from: found.revision,
        to: &decided,
    };
    let done = swap::once(&kv, decide, &[]).await.unwrap();
    assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    let taken = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let taken = taken.unwrap();
    assert_eq!(taken.coordinator.epoch, Epoch::new(2, 3).unwrap());
    assert!(!taken.unverified && !taken.record.record.unverified(2));
    // A record of a later generation than the cluster's is not attached.
    cluster(&kv, 1).await;
    let no = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    let Err(AttachError::Refused { refusal, .. }) = no else {
        panic!("{no:?}");
    };
    let (cluster, record) = (1, 2);
    assert_eq!(refusal, Refusal::Cluster { cluster, record });
    kv.stop().await;
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let kv = Faulty::start([]).await;
    let no = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    assert!(matches!(no, Err(AttachError::NoCluster)), "{no:?}");
    cluster(&kv, 1).await;
    let no = attach(&kv, &keys(), id(50), &process(2), PATIENCE).await;
    assert!(matches!(no, Err(AttachError::NoRecord(_))), "{no:?}");
    kv.stop().await;
    let kv = started(vec![Fate::Lost; 100]).await;
    let patience = Duration::from_millis(250);
    let no = attach(&kv, &keys(), id(50), &process(2), patience).await;
    assert!(matches!(no, Err(AttachError::Unknown { .. })), "{no:?}");
    kv.stop().await;
}
