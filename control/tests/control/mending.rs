//! Replicas that are lost are made again by themselves, and those of volumes that are attached nowhere are brought back: over nodes with fake data paths, on a clock
//! of the test's own, which is years ahead of the one that control processes look at by themselves.
use crate::bench::refused;
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use keelblock_api::datapath::event;
use keelblock_api::openstorage::VolumeState;
use keelblock_control::mending::Mending;
use keelblock_control::node::AlertFilter;
use tonic::Code;

/// 2035-03-01 00:00 UTC.
const BEGIN_MS: u64 = 2_056_320_000_000;
const MINUTE_MS: u64 = 60_000;

/// Looks, one after the other.
struct Clock {
    mending: Mending,
    now_ms: u64,
}

impl Clock {
    fn new() -> Self {
        Self {
            mending: Mending::default(),
            now_ms: BEGIN_MS,
        }
    }

    /// A minute goes by, and a node looks.
    async fn minute(&mut self, c: &Nodes, at: usize) {
        self.now_ms += MINUTE_MS;
        let node = &c.nodes[at].control().node;
        node.mend(&mut self.mending, self.now_ms).await.unwrap();
    }
}

async fn replace_after(c: &Nodes, seconds: u64) {
    let request = SetClusterOptionsRequest {
        replace_after_s: Some(seconds),
    };
    let said = c.nodes[0].admin().set_cluster_options(request).await;
    assert_eq!(said.unwrap().into_inner().replace_after_s, seconds);
}

async fn die(c: &mut Nodes, at: usize) {
    c.nodes[at].fake.kill();
    c.nodes[at].stop_control().await;
}

async fn return_(c: &mut Nodes, at: usize) {
    c.nodes[at].fake.restart();
    c.nodes[at].start_control().await.unwrap();
    c.nodes[at].ready().await;
}

/// Looks, a minute after the other, until a volume is as it is to be.
async fn until(
    c: &Nodes,
    clock: &mut Clock,
    at: usize,
    what: &str,
    is: impl Fn(&LocateVolumeReply) -> bool,
) -> LocateVolumeReply {
    let wait = async {
        loop {
            let found = c.locate(at, "v").await;
            if is(&found) {
                return found;
            }
            clock.minute(c, at).await;
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    match waited {
        Ok(found) => found,
        Err(_) => panic!("in vain until {what}: {:?}", c.locate(at, "v").await),
    }
}

fn task<'a>(found: &'a LocateVolumeReply, state: &str) -> Option<&'a ReplicaTask> {
    found.task.as_ref().filter(|t| t.state == state)
}

fn at_step(found: &LocateVolumeReply, step: &str) -> bool {
    task(found, "running").is_some_and(|t| t.step == step)
}

/// Nodes of members, in order.
fn members(found: &LocateVolumeReply) -> Vec<&str> {
    let members = found.replicas.iter().filter(|r| r.state == "member");
    let mut nodes: Vec<&str> = members.map(|r| r.node_id.as_str()).collect();
    nodes.sort_unstable();
    nodes
}

/// Messages of alerts about lost replicas, and whether they are over.
async fn alerts(c: &Nodes, at: usize) -> Vec<(String, bool)> {
    let filter = AlertFilter {
        alert_type: Some(11),
        ..Default::default()
    };
    let found = c.nodes[at].control().node.find_alerts(&[filter]).await;
    let told = found.unwrap().into_iter().map(|a| (a.message, a.cleared));
    told.collect()
}

/// The replica that was added has been copied to.
async fn copied(c: &Nodes, at: usize, id: &str, replica: &str) {
    let asks = c.nodes[at].fake.memory().replication.copied(id, replica);
    let asks = asks.expect("it is served there");
    c.nodes[at].fake.report(event::What::SetChange(asks)).await;
}

fn places(c: &Nodes) -> (Vec<usize>, usize) {
    let has = |n: &usize| !c.nodes[*n].fake.memory().replication.replicas.is_empty();
    let (with, without): (Vec<_>, Vec<_>) = (0..c.nodes.len()).partition(has);
    (with, without[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_meanwhile_a_node_that_is_away_for_long_is_replaced() {
    let mut c = Nodes::start(4).await;
    let id = c.create("v", 3).await;
    let (with, spare) = places(&c);
    let (first, leader, lost) = (with[0], with[1], with[2]);
    let first_id = format!("n{}", first + 1);
    c.attach_to(first, "v", &first_id).await.unwrap();
    refused(
        c.nodes[0]
            .admin()
            .set_cluster_options(SetClusterOptionsRequest {
                replace_after_s: Some(59),
            })
            .await,
        Code::InvalidArgument,
        "replace_after_s",
    );
    replace_after(&c, 300).await;
    let mut clock = Clock::new();
    die(&mut c, lost).await;
    clock.minute(&c, leader).await;
    for _ in 0..3 {
        clock.minute(&c, leader).await;
    }
    assert!(c.locate(leader, "v").await.task.is_none(), "not yet");
    // Whoever counted dies; another counts on.
    c.nodes[leader].restart_control().await;
    clock.mending = Mending::default();
    c.nodes[first].fake.memory().replication.stays_empty = true;
    let late = ("create_replica", std::time::Duration::from_secs(2));
    c.nodes[spare].fake.memory().late.extend([late]);
    let found = until(&c, &mut clock, first, "a task is begun", |f| {
        task(f, "running").is_some()
    })
    .await;
    let begun = found.task.unwrap();
    assert!(begun.automatic && begun.kind == "move");
    assert_eq!(begun.old_node, format!("n{}", lost + 1));
    assert_eq!(begun.new_node, format!("n{}", spare + 1));
    let said = alerts(&c, first).await;
    assert!(
        said.len() == 1 && !said[0].1 && said[0].0.contains("away for 300 s"),
        "{said:?}"
    );
    // Each step is interrupted: by the end of the process that serves the volume, of the one that makes the replica, and of whoever looks.
    for step in ["make", "resync"] {
        let mid = until(&c, &mut clock, first, step, |f| at_step(f, step)).await;
        assert_eq!(mid.task.unwrap().task_id, begun.task_id);
        for node in [first, spare, leader] {
            c.nodes[node].restart_control().await;
        }
        clock.mending = Mending::default();
        c.nodes[spare].fake.memory().late.clear();
    }
    let mid = c.locate(first, "v").await;
    let new = mid.replicas.iter().find(|r| r.node_id == begun.new_node);
    let new = new.expect("it was added").replica_id.clone();
    assert_eq!(mid.ha_level, 3);
    copied(&c, first, &id, &new).await;
    let done = until(&c, &mut clock, first, "it is done", |f| {
        task(f, "done").is_some() && members(f).len() == 3
    })
    .await;
    assert_eq!(
        done.task.as_ref().unwrap().task_id,
        begun.task_id,
        "one only"
    );
    assert!(!members(&done).contains(&begun.old_node.as_str()));
    clock.minute(&c, first).await;
    let said = alerts(&c, first).await;
    assert!(said.iter().all(|(_, cleared)| *cleared), "{said:?}");
    // It comes back to a cluster that does not want its copy any more.
    return_(&mut c, lost).await;
    c.until("it deletes its replica", |c| {
        c.nodes[lost].fake.memory().replication.replicas.is_empty()
    })
    .await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_back_first_keeps_its_replica() {
    let mut c = Nodes::start(4).await;
    c.create("v", 3).await;
    let (with, spare) = places(&c);
    let (first, lost) = (with[0], with[2]);
    let first_id = format!("n{}", first + 1);
    c.attach_to(first, "v", &first_id).await.unwrap();
    replace_after(&c, 60).await;
    let mut clock = Clock::new();
    c.nodes[first].fake.memory().replication.stays_empty = true;
    die(&mut c, lost).await;
    let found = until(&c, &mut clock, first, "it is copied to", |f| {
        at_step(f, "resync")
    })
    .await;
    assert_eq!(found.replicas.len(), 4);
    return_(&mut c, lost).await;
    let over = until(&c, &mut clock, first, "it is taken back", |f| {
        task(f, "cancelled").is_some() && f.replicas.len() == 3
    })
    .await;
    assert!(members(&over).contains(&format!("n{}", lost + 1).as_str()));
    c.until("the new one is deleted", |c| {
        c.nodes[spare].fake.memory().replication.replicas.is_empty()
    })
    .await;
    for _ in 0..3 {
        clock.minute(&c, first).await;
    }
    let said = alerts(&c, first).await;
    assert!(said.iter().all(|(_, cleared)| *cleared), "{said:?}");
    // What was away is not counted any more.
    let kv = c.nodes[first].control().node.registry.kv();
    assert!(kv.list("/test/away/").await.unwrap().kvs.is_empty());
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_replica_of_a_volume_that_is_attached_nowhere_is_made_again() {
    let mut c = Nodes::start(3).await;
    let id = c.create("v", 2).await;
    let (with, spare) = places(&c);
    let (first, lost) = (with[0], with[1]);
    // Its drive was replaced by an empty one.
    c.nodes[lost].fake.kill();
    c.nodes[lost].fake.memory().replication.replicas.clear();
    c.nodes[lost].fake.restart();
    c.nodes[lost].ready().await;
    let mut clock = Clock::new();
    let done = until(&c, &mut clock, first, "another is there", |f| {
        task(f, "done").is_some() && f.replicas.len() == 2
    })
    .await;
    let mut wanted = [format!("n{}", first + 1), format!("n{}", spare + 1)];
    wanted.sort();
    assert_eq!(members(&done), wanted);
    assert!(done.task.unwrap().automatic);
    assert_eq!(done.state, "detached");
    let state = c.nodes[0].inspect("v").await.unwrap().state();
    assert_eq!(state, VolumeState::Detached);
    for n in &c.nodes {
        let memory = n.fake.memory();
        assert!(memory.exports.values().all(|e| !e.nqn.ends_with(&id)));
    }
    c.until("nobody coordinates it any more", |c| {
        let here = |n: &crate::bench::Bench| {
            let memory = n.fake.memory();
            memory.replication.coordinators.contains_key(&id)
        };
        !c.nodes.iter().any(here)
    })
    .await;
    clock.minute(&c, first).await;
    let said = alerts(&c, first).await;
    assert!(!said.is_empty() && said.iter().all(|(_, c)| *c), "{said:?}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_behind_are_brought_back_without_a_host() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    for n in &c.nodes {
        n.fake.memory().replication.stays_empty = true;
    }
    // One is excluded, and stays behind, as whoever served the volume does so no more.
    let resync = async |node: &str| {
        let request = UpdateReplicasRequest {
            volume: "v".into(),
            change: Some(update_replicas_request::Change::Resync(node.into())),
            node: String::new(),
        };
        c.nodes[0].admin().update_replicas(request).await
    };
    let begun = resync("n3").await.unwrap().into_inner().task.unwrap();
    assert_eq!((begun.kind.as_str(), begun.automatic), ("resync", false));
    let behind = |f: &LocateVolumeReply| members(f) == ["n1", "n2"];
    let mut clock = Clock::new();
    until(&c, &mut clock, 0, "it is behind", behind).await;
    let request = CancelUpdateReplicasRequest { volume: "v".into() };
    let cancelled = c.nodes[1].admin().cancel_update_replicas(request).await;
    cancelled.unwrap();
    // A host that comes and goes ends what it was coordinated for.
    c.attach_to(1, "v", "n2").await.unwrap();
    c.nodes[0].detach("v").await.unwrap();
    let found = c.locate(0, "v").await;
    assert!(behind(&found) && found.state == "detached", "{found:?}");
    for n in &c.nodes {
        let mut memory = n.fake.memory();
        memory.replication.stays_empty = false;
        memory.replication.brings_back = true;
    }
    let done = until(&c, &mut clock, 0, "all are in sync", |f| {
        members(f).len() == 3
    })
    .await;
    assert_eq!(done.state, "detached");
    // Asked for at once, there is nothing to do.
    assert!(resync("").await.unwrap().into_inner().task.is_none());
    let exported = |n: &crate::bench::Bench| {
        let memory = n.fake.memory();
        memory.exports.values().any(|e| e.nqn.ends_with(&id))
    };
    c.until("nothing is exported", |c| !c.nodes.iter().any(exported))
        .await;
    c.stop().await;
}
