//! Snapshots and clones of replicated volumes that are attached nowhere, over three nodes with fake data paths: coordinated for a moment, and hosts see nothing of it.
use crate::bench::refused;
use crate::replicated::Nodes;
use keelblock_api::openstorage::VolumeState;
use tonic::Code;

impl Nodes {
    fn is_exported(&self, id: &str) -> bool {
        let mut all = self.nodes.iter();
        all.any(|n| {
            let memory = n.fake.memory();
            memory.exports.values().any(|e| e.nqn.ends_with(id))
        })
    }

    fn is_coordinated(&self, id: &str) -> bool {
        let mut all = self.nodes.iter();
        all.any(|n| {
            let memory = n.fake.memory();
            memory.replication.coordinators.contains_key(id)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_volume_is_coordinated_for_its_snapshots_only() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    let snapshot = c.nodes[1].snapshot("v", "s").await.unwrap();
    let state = c.nodes[0].inspect("v").await.unwrap().state();
    assert_eq!(state, VolumeState::Detached);
    assert!(!c.is_exported(&id));
    {
        let memory = c.nodes[1].fake.memory();
        assert_eq!(memory.replication.snapshots, [snapshot]);
    }
    // Other nodes use that one, too; and a clone is made by the way.
    c.nodes[2].snapshot("v", "t").await.unwrap();
    let clone = c.nodes[0].clone_of("v", "c").await.unwrap();
    c.until("nobody coordinates it any more", |c| !c.is_coordinated(&id))
        .await;
    assert!(!c.is_exported(&id) && !c.is_exported(&clone));
    c.nodes[0].delete("s").await.unwrap();
    c.nodes[1].delete("c").await.unwrap();
    c.nodes[1].delete("t").await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_attaches_restores_or_deletes_it_does_not_wait_for_that() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[1].snapshot("v", "s").await.unwrap();
    // On the same node, where it is coordinated already.
    c.attach_to(0, "v", "n2").await.unwrap();
    c.until("hosts can connect", |c| c.is_exported(&id)).await;
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].snapshot("v", "t").await.unwrap();
    // On another one.
    c.attach_to(0, "v", "n3").await.unwrap();
    refused(
        c.nodes[0].delete("v").await,
        Code::FailedPrecondition,
        "detach it first",
    );
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].snapshot("v", "u").await.unwrap();
    c.nodes[2].restore("v", "t").await.unwrap();
    c.nodes[1].snapshot("v", "w").await.unwrap();
    c.nodes[0].delete("v").await.unwrap();
    refused(c.nodes[0].inspect(&id).await, Code::NotFound, "");
    assert!(!c.is_exported(&id));
    c.stop().await;
}
