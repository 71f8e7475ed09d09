//! Another number of replicas, and one that is compared anew: tasks that the node which serves the volume goes on with.
use crate::bench::refused;
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn several_more_at_once_then_one_less_at_a_time() {
    let c = Nodes::start(4).await;
    c.create("v", 2).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    let update = async |replicas: u32| {
        let request = UpdateReplicasRequest {
            volume: "v".into(),
            change: Some(update_replicas_request::Change::Replicas(replicas)),
            node: String::new(),
        };
        let reply = c.nodes[0].admin().update_replicas(request).await;
        reply.map(|r| r.into_inner().task.unwrap())
    };
    let task = update(4).await.unwrap();
    assert_eq!((task.more_nodes.len(), task.replicas), (1, 4));
    assert_eq!(update(4).await.unwrap().task_id, task.task_id, "the same");
    let done = async {
        loop {
            let found = c.locate(0, "v").await;
            let over = found.task.as_ref().is_some_and(|t| t.state == "done");
            if over && (found.ha_level, found.replicas.len(), found.minimum) == (4, 4, 3) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("four");
    c.until("each has one", |c| {
        let has = |n: &crate::bench::Bench| !n.fake.memory().replication.replicas.is_empty();
        c.nodes.iter().all(has)
    })
    .await;
    refused(update(2).await, Code::FailedPrecondition, "3 first");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_replica_then_one_that_cannot_be_made_then_one_less() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 2).await;
    let has = |c: &Nodes, n: usize| !c.nodes[n].fake.memory().replication.replicas.is_empty();
    let spare = (0..3).find(|n| !has(&c, *n)).unwrap();
    let first = (spare + 1) % 3;
    let first_id = format!("n{}", first + 1);
    c.attach_to(first, &id, &first_id).await.unwrap();
    let update = async |replicas: u32, node: &str| {
        let request = UpdateReplicasRequest {
            volume: "v".into(),
            change: Some(update_replicas_request::Change::Replicas(replicas)),
            node: node.into(),
        };
        loop {
            let asked = request.clone();
            let reply = c.nodes[spare].admin().update_replicas(asked).await;
            match reply {
                // A node's last step of the change before, or what follows it, came between.
                Err(status) if status.code() == Code::Aborted => tokio::time::sleep(LOOK).await,
                reply => return reply.map(|r| r.into_inner().task.unwrap()),
            }
        }
    };
    // Records come to a node one after the other.
    let until_over = async |state: &str, level: u32| {
        let wait = async {
            loop {
                let found = c.locate(first, "v").await;
                let over = found.task.as_ref().is_some_and(|t| t.state == state);
                if over && (found.ha_level, found.replicas.len()) == (level, level as usize) {
                    return found;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect(state)
    };
    // Its pool is full.
    let full = (Code::ResourceExhausted, "there is no room");
    let refuse = |how: Option<_>| {
        let mut memory = c.nodes[spare].fake.memory();
        match how {
            Some(how) => drop(memory.refuse.insert("create_replica", how)),
            None => drop(memory.refuse.remove("create_replica")),
        }
    };
    refuse(Some(full));
    let coordinator = &c.nodes[first].fake;
    coordinator.memory().replication.stays_empty = true;
    let task = update(3, "").await.unwrap();
    let spare_id = format!("n{}", spare + 1);
    assert_eq!(
        (task.kind.as_str(), task.new_node.as_str()),
        ("increase", spare_id.as_str())
    );
    refused(
        update(1, "").await,
        Code::FailedPrecondition,
        "being changed already",
    );
    let found = until_over("failed", 2).await;
    assert!(found.task.unwrap().error.contains("there is no room"));
    refuse(None);
    coordinator.memory().replication.stays_empty = false;
    refused(update(4, "").await, Code::FailedPrecondition, "it has one");
    for replicas in [0, 6] {
        refused(
            update(replicas, "").await,
            Code::InvalidArgument,
            "must be 1 to 5",
        );
    }
    refused(
        update(3, &first_id).await,
        Code::FailedPrecondition,
        "has a replica",
    );
    refused(update(3, "n9").await, Code::NotFound, "n9");
    update(3, "").await.unwrap();
    until_over("done", 3).await;
    c.until("it is made there", |c| has(c, spare)).await;
    // Whoever is asked for less says so to the node.
    let resync = async |named: &str| {
        let request = UpdateReplicasRequest {
            volume: "v".into(),
            change: Some(update_replicas_request::Change::Resync(named.into())),
            node: String::new(),
        };
        let reply = c.nodes[spare].admin().update_replicas(request).await;
        reply.map(|r| r.into_inner().task.unwrap())
    };
    refused(
        resync("n9").await,
        Code::FailedPrecondition,
        "no replica on n9",
    );
    let task = resync(&spare_id).await.unwrap();
    assert_eq!(
        (task.kind.as_str(), task.step.as_str()),
        ("resync", "leave")
    );
    let found = until_over("done", 3).await;
    assert_eq!(found.task.unwrap().task_id, task.task_id);
    update(2, &spare_id).await.unwrap();
    c.until("it is deleted there", |c| !has(c, spare)).await;
    let found = until_over("done", 2).await;
    assert_eq!(found.minimum, 1);
    c.stop().await;
}
