//! Replicated volumes that are set back to a snapshot, or deleted but for their snapshots, over three nodes with fake data paths.
use crate::bench::refused;
use crate::replicated::Nodes;
use keelblock_api::datapath::Snapshot;
use keelblock_api::openstorage::VolumeState;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::Code;

const MIB: u64 = 1 << 20;

impl Nodes {
    fn replica_of(&self, at: usize, volume: &str) -> Option<String> {
        let memory = self.nodes[at].fake.memory();
        let mut all = memory.replication.replicas.values();
        let found = all.find(|r| r.volume_id == volume);
        found.map(|r| r.replica_id.clone())
    }

    fn replicas_of(&self, volume: &str) -> Vec<Option<String>> {
        (0..3).map(|n| self.replica_of(n, volume)).collect()
    }

    /// Snapshots that replicas of a node were made of.
    fn made_of(&self, at: usize) -> Vec<String> {
        let memory = self.nodes[at].fake.memory();
        let sources = memory.replication.sources.iter();
        sources.map(|s| s.snapshot_id.clone()).collect()
    }

    /// Deletions of replicas of a node: which, and whether snapshots were kept.
    fn removed(&self, at: usize) -> Vec<(String, bool)> {
        self.nodes[at].fake.memory().replication.removed.clone()
    }

    async fn state(&self, name: &str) -> VolumeState {
        self.nodes[1].inspect(name).await.unwrap().state()
    }

    /// A volume with a snapshot of 16 MiB, larger by now, and detached; both ids.
    async fn with_snapshot(&self, name: &str) -> (String, String) {
        let id = self.create("v", 3).await;
        self.attach_to(0, "v", "n1").await.unwrap();
        let snapshot = self.nodes[0].snapshot("v", name).await.unwrap();
        self.nodes[0]
            .update("v", &[], Some(32 * MIB))
            .await
            .unwrap();
        (id, snapshot)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_made_of_the_snapshot() {
    let c = Nodes::start(3).await;
    let (id, snapshot) = c.with_snapshot("s").await;
    refused(
        c.nodes[1].restore("v", "s").await,
        Code::FailedPrecondition,
        "detach it first",
    );
    c.nodes[0].detach("v").await.unwrap();
    let before = c.replicas_of(&id);
    c.nodes[1].restore("v", "s").await.unwrap();
    let after = c.replicas_of(&id);
    for at in 0..3 {
        assert_ne!(before[at], after[at], "another replica");
        assert_eq!(c.made_of(at), std::slice::from_ref(&snapshot));
        let old = before[at].clone().unwrap();
        assert_eq!(c.removed(at), [(old, true)], "and no snapshot is gone");
    }
    assert_eq!(c.state("v").await, VolumeState::Detached);
    let size = c.nodes[2].inspect("v").await.unwrap().spec.unwrap().size;
    assert_eq!(size, 16 * MIB);
    c.attach_to(1, "v", "n2").await.unwrap();
    {
        let memory = c.nodes[1].fake.memory();
        assert_eq!(memory.replication.paths[&id].size_bytes, 16 * MIB);
        assert!(memory.replication.named[0].ready, "it is there still");
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_is_an_empty_one_when_it_is_back() {
    let mut c = Nodes::start(3).await;
    let (id, snapshot) = c.with_snapshot("s").await;
    c.nodes[0].detach("v").await.unwrap();
    let old = c.replica_of(2, &id).unwrap();
    c.nodes[2].stop_control().await;
    // It counts as there until its lease has run out.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while c.nodes[0].restore("v", "s").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "two are enough");
    }
    assert_eq!(c.replica_of(2, &id), Some(old.clone()));
    for at in 0..2 {
        assert!(c.made_of(at).contains(&snapshot));
    }
    c.nodes[2].start_control().await.unwrap();
    c.until("it has another replica", |c| {
        c.replica_of(2, &id).is_some_and(|now| now != old)
    })
    .await;
    let members: BTreeSet<String> = {
        let found = c.locate(0, "v").await.replicas.into_iter();
        let members = found.filter(|r| r.state == "member");
        members.map(|r| r.replica_id).collect()
    };
    // What it had went with it, unless it was thought to live when the others were set back.
    match members.contains(&c.replica_of(2, &id).unwrap()) {
        true => assert_eq!(c.made_of(2), [snapshot]),
        false => {
            assert!(c.removed(2).contains(&(old, false)));
            assert!(c.made_of(2).is_empty());
        }
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_uses_it_before_it_is_set_back_wholly() {
    let c = Nodes::start(3).await;
    let (id, snapshot) = c.with_snapshot("s").await;
    c.nodes[0].snapshot("v", "t").await.unwrap();
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].fake.memory().hang = Some("create_replica");
    let restore = c.nodes[0].restore("v", "s");
    let looks = async {
        c.until("it is begun", |c| c.made_of(0) == [snapshot.clone()])
            .await;
        assert_eq!(c.state("v").await, VolumeState::Restore);
        refused(
            c.attach_to(0, "v", "n1").await,
            Code::FailedPrecondition,
            "restore it again",
        );
        // Another snapshot is possible meanwhile: the last word counts.
        c.nodes[1].fake.memory().hang = None;
        // What hangs there already has its time, and a busy machine takes more of it than whoever restores waits.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while let Err(error) = c.nodes[2].restore("v", "t").await {
            let again = [Code::Unavailable, Code::Aborted];
            assert!(again.contains(&error.code()), "{error}");
            assert!(tokio::time::Instant::now() < deadline, "{error}");
        }
    };
    let (first, ()) = tokio::join!(restore, looks);
    // It was either done before the other one, or its members are not the ones that there are.
    drop(first);
    assert_eq!(c.state("v").await, VolumeState::Detached);
    let last: BTreeSet<String> = (0..3).map(|n| c.made_of(n).pop().unwrap()).collect();
    assert_eq!(last.len(), 1, "all of one snapshot");
    assert!(!last.contains(&snapshot));
    assert!(c.replicas_of(&id).iter().all(Option::is_some));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_outlive_their_volume() {
    let c = Nodes::start(3).await;
    let (id, snapshot) = c.with_snapshot("s").await;
    c.nodes[0].snapshot("v", "t").await.unwrap();
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    refused(c.nodes[0].inspect("v").await, Code::NotFound, "v");
    refused(c.nodes[0].inspect(&id).await, Code::NotFound, "");
    c.until("its replicas are gone", |c| {
        c.replicas_of(&id).iter().all(Option::is_none)
    })
    .await;
    for at in 0..3 {
        assert!(c.removed(at).iter().all(|(_, kept)| *kept));
    }
    assert_eq!(c.nodes[2].inspect("s").await.unwrap().id, snapshot);
    // Its name is free, and clones are made.
    let other = c.create("v", 2).await;
    assert_ne!(other, id);
    let clone = c.nodes[2].clone_of("s", "c").await.unwrap();
    for at in 0..3 {
        assert!(c.replica_of(at, &clone).is_some());
        assert!(c.made_of(at).contains(&snapshot));
    }
    // One that is deleted goes on each node, and with the last one all that is left.
    let on_drives = Snapshot {
        snapshot_id: c.nodes[0].inspect("t").await.unwrap().id,
        volume_id: id.clone(),
        ..Default::default()
    };
    let name = on_drives.snapshot_id.clone();
    {
        let mut memory = c.nodes[2].fake.memory();
        memory.snapshots.insert(name.clone(), on_drives);
    }
    c.nodes[1].delete("t").await.unwrap();
    c.until("it is gone", |c| {
        !c.nodes[2].fake.memory().snapshots.contains_key(&name)
    })
    .await;
    c.nodes[1].delete("s").await.unwrap();
    c.until("nothing is left", |c| {
        (0..3).all(|n| c.removed(n).iter().any(|(_, kept)| !kept))
    })
    .await;
    assert!(c.replica_of(0, &clone).is_some());
    c.stop().await;
}
