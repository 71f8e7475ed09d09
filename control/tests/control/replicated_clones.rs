//! Clones of replicated volumes as they are at a moment, over three nodes with fake data paths: by a snapshot that nobody else sees.
use crate::bench::refused;
use crate::replicated::Nodes;
use keelblock_api::openstorage::SdkVolumeEnumerateRequest;
use std::time::Duration;
use tonic::Code;

impl Nodes {
    async fn volume_ids(&self, at: usize) -> Vec<String> {
        let all = self.nodes[at].volumes();
        let all = { all }
            .enumerate(SdkVolumeEnumerateRequest::default())
            .await;
        let mut ids = all.unwrap().into_inner().volume_ids;
        ids.sort();
        ids
    }

    async fn until_no_snapshot(&self, at: usize) {
        self.until("the snapshot is deleted", |c| {
            c.nodes[at].fake.memory().replication.snapshots.is_empty()
        })
        .await;
    }

    fn sources_of(&self, parent: &str) -> Vec<String> {
        let all = self.nodes.iter().flat_map(|n| {
            let memory = n.fake.memory();
            memory.replication.sources.clone()
        });
        let of = all.filter(|s| s.volume_id == parent);
        let mut ids: Vec<String> = of.map(|s| s.snapshot_id).collect();
        ids.dedup();
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_volume_leaves_no_snapshot_behind() {
    let c = Nodes::start(3).await;
    let parent = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    let id = c.nodes[2].clone_of("v", "c").await.unwrap();
    assert_eq!(
        c.nodes[1].clone_of("v", "c").await.unwrap(),
        id,
        "it is there"
    );
    assert_eq!(c.sources_of(&parent).len(), 1, "all of one snapshot");
    c.until_no_snapshot(0).await;
    let mut both = vec![parent, id];
    both.sort();
    assert_eq!(c.volume_ids(1).await, both, "and nobody saw it");
    c.attach_to(1, "c", "n2").await.unwrap();
    c.nodes[1].detach("c").await.unwrap();
    c.nodes[1].delete("c").await.unwrap();
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_amid_it_begins_another_snapshot() {
    let c = Nodes::start(3).await;
    let parent = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].fake.memory().hang = Some("take_snapshot");
    let clone = c.nodes[1].clone_of("v", "c");
    let moves = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        c.attach_to(2, "v", "n3").await.unwrap();
    };
    let (id, ()) = tokio::join!(clone, moves);
    id.unwrap();
    let named = c.nodes[2].fake.memory().replication.named.clone();
    assert_eq!((named.len(), named[0].ready), (1, false), "{named:?}");
    let sources = c.sources_of(&parent);
    assert_eq!(sources.len(), 1);
    assert_ne!(sources[0], named[0].snapshot_id, "that one never existed");
    c.until_no_snapshot(2).await;
    c.nodes[0].fake.memory().hang = None;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_made_is_given_up_with_its_snapshot() {
    let c = Nodes::start(3).await;
    let parent = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].fake.memory().hang = Some("take_snapshot");
    refused(
        c.nodes[1].clone_of("v", "c").await,
        Code::FailedPrecondition,
        "taken away again",
    );
    c.nodes[0].fake.memory().hang = None;
    let id = c.nodes[2].clone_of("v", "c").await.unwrap();
    c.until_no_snapshot(0).await;
    let mut both = vec![parent.clone(), id.clone()];
    both.sort();
    assert_eq!(c.volume_ids(0).await, both);
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].delete("c").await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    c.stop().await;
}
