//! The trashcan: what is deleted stays for its time, can be taken back, and its space is free afterwards.
use crate::bench::{Bench, Drive, refused};
use crate::replicated::Nodes;
use keelblock_api::admin::*;
use keelblock_control::records::unix_ms;
use tonic::Code;

const MIB: u64 = 1 << 20;
const MINUTE_MS: u64 = 60_000;

async fn keep(node: &Bench, minutes: u64) {
    let request = TrashOptionsRequest {
        keep_minutes: Some(minutes),
    };
    let set = node.admin().trash_options(request).await.unwrap();
    assert_eq!(set.into_inner().keep_minutes, minutes);
}

async fn trash(node: &Bench) -> Vec<TrashedVolume> {
    let reply = node.admin().list_trash(ListTrashRequest {}).await;
    reply.unwrap().into_inner().volumes
}

async fn restore(node: &Bench, volume: &str, name: &str) -> Result<String, tonic::Status> {
    let request = RestoreTrashRequest {
        volume: volume.into(),
        name: name.into(),
    };
    let reply = node.admin().restore_trash(request).await?;
    Ok(reply.into_inner().volume_id)
}

/// What is due so many minutes from now.
async fn later(node: &Bench, minutes: u64) {
    let then = unix_ms() + minutes * MINUTE_MS;
    node.control().node.trash_tick(then).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_back_or_goes_when_its_time_is_over() {
    let node = Bench::new(Drive::File).await;
    let there = |node: &Bench| node.fake.memory().volumes.len();
    let gone = node.create("gone", MIB).await;
    node.delete(&gone).await.unwrap();
    assert_eq!(
        (there(&node), trash(&node).await.len()),
        (0, 0),
        "it is off"
    );

    keep(&node, 10).await;
    let id = node.create("v", MIB).await;
    node.attach("v").await;
    refused(node.delete("v").await, Code::FailedPrecondition, "attached");
    node.detach("v").await.unwrap();
    node.delete("v").await.unwrap();
    let listed = trash(&node).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.as_str(), listed[0].volume_id.as_str()),
        ("v", id.as_str())
    );
    let kept_ms = listed[0].until_unix_ms - listed[0].deleted_unix_ms;
    assert_eq!(kept_ms, 10 * MINUTE_MS);
    assert_eq!(there(&node), 1, "its data are kept");
    for name in ["v", &id] {
        refused(node.inspect(name).await, Code::NotFound, name);
        refused(node.try_attach(name, None).await, Code::NotFound, name);
    }
    // Deleting what is deleted succeeds, and does not hurry it.
    node.delete(&id).await.unwrap();
    assert_eq!(trash(&node).await.len(), 1);

    let other = node.create("v", 2 * MIB).await;
    assert_ne!(other, id, "its name is free");
    refused(restore(&node, "v", "").await, Code::AlreadyExists, "--name");
    assert_eq!(restore(&node, "v", "old").await.unwrap(), id);
    let back = node.inspect("old").await.unwrap();
    assert_eq!(
        (back.id.as_str(), back.spec.unwrap().size),
        (id.as_str(), MIB)
    );
    node.attach("old").await;
    node.detach("old").await.unwrap();
    refused(restore(&node, "v", "").await, Code::NotFound, "trashcan");

    node.delete("old").await.unwrap();
    node.delete("v").await.unwrap();
    later(&node, 9).await;
    assert_eq!((there(&node), trash(&node).await.len()), (2, 2));
    later(&node, 11).await;
    assert_eq!((there(&node), trash(&node).await.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_of_one_name_are_told_apart_and_one_can_be_deleted_before_its_time() {
    let mut node = Bench::new(Drive::File).await;
    keep(&node, 10).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(node.create("v", MIB).await);
        node.delete("v").await.unwrap();
    }
    refused(
        restore(&node, "v", "").await,
        Code::FailedPrecondition,
        "several",
    );
    let purge = PurgeTrashRequest {
        volume: ids[0].clone(),
    };
    node.admin().purge_trash(purge).await.unwrap();
    // A process that starts again finds what is there.
    node.restart_control().await;
    assert_eq!(trash(&node).await.len(), 1);
    assert_eq!(restore(&node, "v", "").await.unwrap(), ids[1]);
    assert_eq!(node.fake.memory().volumes.len(), 1);
    let far = TrashOptionsRequest {
        keep_minutes: Some(u64::MAX),
    };
    refused(
        node.admin().trash_options(far).await,
        Code::InvalidArgument,
        "keep_minutes",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_stay_where_they_are_and_go_everywhere() {
    let c = Nodes::start(3).await;
    keep(&c.nodes[1], 10).await;
    let id = c.create("v", 3).await;
    let replicas = |c: &Nodes| {
        let of = |n: &Bench| n.fake.memory().replication.replicas.len();
        c.nodes.iter().map(of).sum::<usize>()
    };
    c.nodes[0].delete("v").await.unwrap();
    assert_eq!(replicas(&c), 3);
    assert_eq!(trash(&c.nodes[2]).await[0].replicas, 3);
    assert_eq!(restore(&c.nodes[2], "v", "").await.unwrap(), id);
    c.attach_to(0, "v", "n2").await.unwrap();
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[0].delete("v").await.unwrap();
    later(&c.nodes[1], 11).await;
    c.until("all replicas are deleted", |c| replicas(c) == 0)
        .await;
    assert!(trash(&c.nodes[0]).await.is_empty());
    c.stop().await;
}
