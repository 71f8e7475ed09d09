//! Snapshots and clones of replicated volumes, over three nodes with fake data paths: asked for anywhere, taken where the volume is served.
use crate::replicated::Nodes;
use keelblock_api::datapath::SnapshotOf;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_where_the_volume_is_served_and_named_to_whoever_is_next() {
    let c = Nodes::start(3).await;
    c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    let id = c.nodes[1].snapshot("v", "s").await.unwrap();
    {
        let memory = c.nodes[0].fake.memory();
        assert_eq!(memory.replication.snapshots, std::slice::from_ref(&id));
    }
    assert_eq!(
        c.nodes[2].snapshot("v", "s").await.unwrap(),
        id,
        "it is there"
    );
    c.attach_to(1, "v", "n2").await.unwrap();
    {
        let memory = c.nodes[1].fake.memory();
        let named = &memory.replication.named;
        assert_eq!((named.len(), named[0].ready), (1, true));
        assert_eq!(named[0].snapshot_id, id);
    }
    c.nodes[0].detach("v").await.unwrap();
    // Whoever serves it next is told of none.
    c.nodes[0].delete("s").await.unwrap();
    c.attach_to(2, "v", "n3").await.unwrap();
    assert!(c.nodes[2].fake.memory().replication.named.is_empty());
    c.nodes[0].snapshot("v", "t").await.unwrap();
    c.nodes[1].delete("t").await.unwrap();
    c.until("it is deleted where the volume is served", |c| {
        c.nodes[2].fake.memory().replication.snapshots.is_empty()
    })
    .await;
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[0].delete("v").await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_a_takeover_interrupts_is_taken_under_another_id() {
    let c = Nodes::start(3).await;
    c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].fake.memory().hang = Some("take_snapshot");
    let take = c.nodes[1].snapshot("v", "s");
    let moves = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        c.attach_to(2, "v", "n3").await.unwrap();
    };
    let (id, ()) = tokio::join!(take, moves);
    let id = id.unwrap();
    {
        let memory = c.nodes[2].fake.memory();
        let named = &memory.replication.named;
        assert_eq!((named.len(), named[0].ready), (1, false), "{named:?}");
        assert_ne!(named[0].snapshot_id, id, "that one never existed");
        assert_eq!(memory.replication.snapshots, [id]);
    }
    c.nodes[0].fake.memory().hang = None;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_its_replicas_where_the_snapshot_is() {
    let c = Nodes::start(3).await;
    let volume_id = c.create("v", 2).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    let snapshot_id = c.nodes[2].snapshot("v", "s").await.unwrap();
    let id = c.nodes[2].clone_of("s", "c").await.unwrap();
    assert_eq!(
        c.nodes[1].clone_of("s", "c").await.unwrap(),
        id,
        "it is there"
    );
    let of = SnapshotOf {
        volume_id: volume_id.clone(),
        snapshot_id,
    };
    for node in &c.nodes {
        let memory = node.fake.memory();
        let all = || memory.replication.replicas.values();
        let has = |id: &str| all().filter(|r| r.volume_id == id).count();
        assert_eq!(has(&id), has(&volume_id));
        assert_eq!(memory.replication.sources, vec![of.clone(); has(&id)]);
    }
    let epochs = || {
        let served = c
            .nodes
            .iter()
            .map(|n| n.fake.memory().replication.served.clone());
        served.flatten().max()
    };
    let before = epochs();
    c.attach_to(1, "c", "n2").await.unwrap();
    assert!(epochs() > before, "its stamps are above those that it has");
    c.stop().await;
}
