//! Snapshots of several replicated volumes at one moment, over nodes with fake data paths: all of them or none, whoever is late, superseded or dies.
use crate::bench::{Bench, refused};
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use std::time::Duration;
use tonic::{Code, Status};

async fn take(at: &Bench, of: &[(&str, &str)]) -> Result<Vec<String>, Status> {
    let wish = |(volume, name): &(&str, &str)| SnapshotWish {
        volume: (*volume).into(),
        name: (*name).into(),
        ..Default::default()
    };
    let request = CreateSnapshotsRequest {
        snapshots: of.iter().map(wish).collect(),
    };
    let taken = at.admin().create_snapshots(request).await;
    Ok(taken?.into_inner().snapshot_ids)
}

/// Names of snapshots that exist.
async fn names(at: &Bench) -> Vec<String> {
    let all = at.control().node.registry.snapshots().await.unwrap();
    let mut names: Vec<_> = all.into_iter().map(|s| s.name).collect();
    names.sort();
    names
}

/// Three nodes, with a volume that each of two serves, and one that nobody does.
async fn three() -> Nodes {
    let c = Nodes::start(3).await;
    for (name, node) in [("a", 0), ("b", 1)] {
        c.create(name, 3).await;
        c.attach_to(2, name, &format!("n{}", node + 1))
            .await
            .unwrap();
    }
    c.create("d", 2).await;
    c
}

const ALL: [(&str, &str); 3] = [("a", "sa"), ("b", "sb"), ("d", "sd")];

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_volumes_of_several_nodes_are_of_one_moment() {
    let c = three().await;
    let ids = take(&c.nodes[2], &ALL).await.unwrap();
    assert_eq!(names(&c.nodes[0]).await, ["sa", "sb", "sd"]);
    assert_eq!(
        take(&c.nodes[0], &ALL).await.unwrap(),
        ids,
        "they are there"
    );
    let all = c.nodes[0]
        .control()
        .node
        .registry
        .snapshots()
        .await
        .unwrap();
    assert!(
        all.iter()
            .all(|s| s.group == all[0].group && s.joint.is_none())
    );
    for node in [0, 1] {
        let memory = c.nodes[node].fake.memory();
        assert!(memory.replication.releases >= 1);
    }
    let other = [("a", "sa"), ("b", "sc")];
    refused(
        take(&c.nodes[1], &other).await,
        Code::AlreadyExists,
        "another time",
    );
    let twice = [("a", "x"), ("a", "y")];
    refused(
        take(&c.nodes[1], &twice).await,
        Code::InvalidArgument,
        "twice",
    );
    let alone = c.nodes[0].create("alone", 16 << 20).await;
    let both = [("a", "x"), (alone.as_str(), "y")];
    refused(
        take(&c.nodes[0], &both).await,
        Code::FailedPrecondition,
        "no barrier in common",
    );
    // Each is a snapshot like any.
    c.nodes[1].delete("sb").await.unwrap();
    c.nodes[1].clone_of("sa", "clone").await.unwrap();
    assert_eq!(names(&c.nodes[0]).await, ["sa", "sd"]);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn none_exists_if_one_was_not_held_until_all_were() {
    let c = three().await;
    // While the second one is late, the first one's hold ends, each time.
    let late = ("hold_snapshot", Duration::from_millis(600));
    c.nodes[1].fake.memory().late.extend([late]);
    let asks = take(&c.nodes[2], &ALL);
    let ends = async {
        loop {
            c.nodes[0].fake.memory().replication.holds.clear();
            tokio::time::sleep(LOOK).await;
        }
    };
    let asked = tokio::select! {
        asked = asks => asked,
        () = ends => unreachable!("it goes on for ever"),
    };
    refused(asked, Code::Unavailable, "none exists");
    assert!(names(&c.nodes[0]).await.is_empty());
    c.until("data paths forget them", |c| {
        let none = |n: &Bench| n.fake.memory().replication.snapshots.is_empty();
        c.nodes.iter().all(none)
    })
    .await;
    c.nodes[1].fake.memory().late.clear();
    take(&c.nodes[2], &ALL).await.unwrap();
    assert_eq!(names(&c.nodes[0]).await, ["sa", "sb", "sd"]);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_or_an_end_amid_it_leaves_all_or_none() {
    let mut c = three().await;
    // The first one is moved while it holds: the group is void, and begun anew, or was ready before.
    let late = ("release_snapshot", Duration::from_secs(1));
    c.nodes[0].fake.memory().late.extend([late]);
    let asks = take(&c.nodes[2], &ALL);
    let moves = async {
        let held = async {
            while c.nodes[0].fake.memory().replication.holds.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, held)
            .await
            .expect("it holds");
        c.attach_to(2, "a", "n3").await
    };
    let (asked, moved) = tokio::join!(asks, moves);
    moved.unwrap();
    let ids = asked.unwrap();
    assert_eq!(names(&c.nodes[1]).await, ["sa", "sb", "sd"]);
    let named = c.nodes[2].fake.memory().replication.named.clone();
    assert!(
        named.iter().all(|n| n.ready),
        "what is void is named to nobody: {named:?}"
    );
    assert!(
        c.nodes[2]
            .fake
            .memory()
            .replication
            .snapshots
            .contains(&ids[0])
    );
    // Whoever asked, and serves none of them, dies; a data path that serves one does, too, and its node does not come back soon.
    c.nodes[1].fake.memory().hang = Some("hold_snapshot");
    let more = [("a", "ta"), ("b", "tb")];
    let asked = tokio::time::timeout(Duration::from_secs(1), take(&c.nodes[0], &more)).await;
    assert!(asked.is_err(), "it waits");
    c.nodes[0].stop_control().await;
    c.nodes[1].fake.kill();
    c.nodes[1].stop_control().await;
    let over = async {
        while names(&c.nodes[2]).await.len() > 3 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, over)
        .await
        .expect("it is given up");
    c.nodes[1].fake.memory().hang = None;
    c.nodes[1].fake.restart();
    for node in 0..2 {
        c.nodes[node].start_control().await.unwrap();
        c.nodes[node].ready().await;
    }
    assert_eq!(names(&c.nodes[0]).await, ["sa", "sb", "sd"]);
    c.stop().await;
}
