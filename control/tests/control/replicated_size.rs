//! Replicated volumes that grow, over three nodes with fake data paths: asked for anywhere, first done where the volume is served.
use crate::bench::refused;
use crate::replicated::Nodes;
use std::time::Duration;
use tonic::Code;

const MIB: u64 = 1 << 20;

impl Nodes {
    /// How large the path of a node is.
    fn path_bytes(&self, at: usize, id: &str) -> Option<u64> {
        let memory = self.nodes[at].fake.memory();
        memory.replication.paths.get(id).map(|p| p.size_bytes)
    }

    async fn until_replicas_note(&self, id: &str, nodes: usize, bytes: u64) {
        self.until("replicas have noted the size", |c| {
            let of = |n: usize| {
                let memory = c.nodes[n].fake.memory();
                let all = memory.replication.replicas.values();
                let sizes: Vec<u64> = all
                    .filter(|r| r.volume_id == id)
                    .map(|r| r.size_bytes)
                    .collect();
                sizes == [bytes]
            };
            (0..nodes).all(of)
        })
        .await;
    }

    async fn shown_bytes(&self, at: usize, name: &str) -> u64 {
        let volume = self.nodes[at].inspect(name).await.unwrap();
        volume.spec.unwrap().size
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_attached_or_not_and_never_shrinks() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[1].update("v", &[], Some(24 * MIB)).await.unwrap();
    assert_eq!(c.shown_bytes(2, "v").await, 24 * MIB);
    c.until_replicas_note(&id, 3, 24 * MIB).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    assert_eq!(c.path_bytes(0, &id), Some(24 * MIB));
    // A replica whose drives have no room for the note is one like any.
    c.nodes[1].fake.memory().replication.no_room = true;
    c.nodes[2].update("v", &[], Some(32 * MIB)).await.unwrap();
    assert_eq!(c.path_bytes(0, &id), Some(32 * MIB), "before it is said");
    assert_eq!(c.shown_bytes(1, "v").await, 32 * MIB);
    c.until("all paths are as large", |c| {
        (0..3).all(|n| c.path_bytes(n, &id) == Some(32 * MIB))
    })
    .await;
    c.nodes[2].update("v", &[], Some(32 * MIB)).await.unwrap();
    refused(
        c.nodes[2].update("v", &[], Some(24 * MIB)).await,
        Code::InvalidArgument,
        "cannot shrink",
    );
    c.nodes[1].fake.memory().replication.no_room = false;
    c.nodes[0].detach("v").await.unwrap();
    c.until_replicas_note(&id, 3, 32 * MIB).await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_knows_the_size_that_the_former_was_getting() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].fake.memory().hang = Some("grow_served");
    let grow = c.nodes[1].update("v", &[], Some(32 * MIB));
    let moves = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        c.attach_to(2, "v", "n3").await.unwrap();
    };
    let (grown, ()) = tokio::join!(grow, moves);
    grown.unwrap();
    assert_eq!(c.path_bytes(2, &id), Some(32 * MIB));
    assert_eq!(c.shown_bytes(1, "v").await, 32 * MIB);
    c.nodes[0].fake.memory().hang = None;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_grows_when_somebody_does() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].fake.memory().hang = Some("grow_served");
    refused(
        c.nodes[1].update("v", &[], Some(32 * MIB)).await,
        Code::Unavailable,
        "as soon as it is served",
    );
    assert_eq!(c.shown_bytes(1, "v").await, 16 * MIB);
    c.nodes[0].fake.memory().hang = None;
    c.until("it has grown", |c| c.path_bytes(0, &id) == Some(32 * MIB))
        .await;
    c.nodes[1].update("v", &[], Some(32 * MIB)).await.unwrap();
    assert_eq!(c.shown_bytes(1, "v").await, 32 * MIB);
    c.stop().await;
}
