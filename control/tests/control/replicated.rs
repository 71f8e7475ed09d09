//! Replicated volumes over three nodes with fake data paths: made, attached, moved, taken over.
use crate::bench::{Bench, refused};
use keelblock_api::admin::*;
use keelblock_api::datapath::answer_set_change_request::Outcome;
use keelblock_api::datapath::{AnaState, CoordinatorState, EndReason, event};
use keelblock_api::openstorage::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use keelblock_api::openstorage::*;
use keelblock_control::kvdb::Server;
use std::time::Duration;
use tempfile::TempDir;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
/// Longer than anything here takes, so that what hangs fails.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const LOOK: Duration = Duration::from_millis(20);

pub struct Nodes {
    pub nodes: Vec<Bench>,
    server: Server,
    _dir: TempDir,
}

impl Nodes {
    pub async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(&dir.path().join("kvdb.redb"), listener).unwrap();
        let at = server.address().to_string();
        let mut nodes = Vec::new();
        for n in 1..=count {
            nodes.push(Bench::join(&format!("n{n}"), &at).await);
        }
        let new = Self {
            nodes,
            server,
            _dir: dir,
        };
        new.until("all know all", |c| {
            let known = |b: &Bench| b.fake.memory().replication.nodes.len() == count;
            c.nodes.iter().all(known)
        })
        .await;
        new
    }

    /// Where the KVDB is.
    pub fn kvdb(&self) -> String {
        self.server.address().to_string()
    }

    pub async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "waited in vain until {what}");
    }

    /// Makes a volume; a node says that it lives a moment before it says what room it has.
    pub async fn create(&self, name: &str, replicas: i64) -> String {
        let create = async {
            loop {
                match self.try_create(0, name, replicas).await {
                    Ok(id) => return id,
                    Err(error) => {
                        assert!(error.message().contains("replicas need"), "{error:?}");
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
        };
        let made = tokio::time::timeout(PATIENCE, create).await;
        made.expect("nodes say what room they have")
    }

    async fn try_create(&self, at: usize, name: &str, replicas: i64) -> Result<String, Status> {
        let spec = VolumeSpec {
            size: 16 * MIB,
            ha_level: replicas,
            ..Default::default()
        };
        self.nodes[at].try_create(name, spec).await
    }

    pub async fn attach_to(&self, at: usize, volume: &str, node: &str) -> Result<(), Status> {
        let options = [("keelblock.node".to_owned(), node.to_owned())];
        let request = SdkVolumeAttachRequest {
            volume_id: volume.into(),
            driver_options: options.into(),
            options: None,
        };
        let mut client = OpenStorageMountAttachClient::new(self.nodes[at].channel());
        client.attach(request).await.map(drop)
    }

    /// The state in which hosts see a volume's path at a node, if there is one.
    fn path(&self, at: usize, id: &str) -> Option<AnaState> {
        let memory = self.nodes[at].fake.memory();
        let export = memory.exports.values().find(|e| e.nqn.ends_with(id));
        export.map(|e| e.ana_state())
    }

    fn paths(&self, id: &str) -> Vec<Option<AnaState>> {
        (0..self.nodes.len()).map(|n| self.path(n, id)).collect()
    }

    async fn until_paths(&self, id: &str, wanted: &[Option<AnaState>]) {
        let what = format!("paths are {wanted:?}");
        self.until(&what, |c| c.paths(id) == wanted).await;
    }

    /// Others, as a data path was told of them by gossip, and whether they are in doubt.
    fn doubts(&self, at: usize) -> Vec<(String, bool)> {
        let memory = self.nodes[at].fake.memory();
        let told = memory.replication.loads.iter();
        assert!(told.clone().all(|p| p.load_percent <= 100), "{told:?}");
        let mut told: Vec<_> = told.map(|p| (p.node_id.clone(), p.doubtful)).collect();
        told.sort();
        told
    }

    pub async fn locate(&self, at: usize, volume: &str) -> LocateVolumeReply {
        let request = LocateVolumeRequest {
            volume: volume.into(),
            here: false,
        };
        let reply = self.nodes[at].admin().locate_volume(request).await;
        reply.unwrap().into_inner()
    }

    pub async fn stop(mut self) {
        for node in &mut self.nodes {
            node.stop_control().await;
        }
        self.server.stop().await;
    }
}

const BEST: Option<AnaState> = Some(AnaState::AnaOptimized);
const AWAY: Option<AnaState> = Some(AnaState::AnaInaccessible);
/// To the one that serves.
const FORWARDS: Option<AnaState> = Some(AnaState::AnaNonOptimized);

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_its_replicas_when_it_is_made_and_none_when_it_is_deleted() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    for node in &c.nodes {
        let memory = node.fake.memory();
        let replica = memory.replication.replicas.values().next().unwrap();
        assert_eq!(
            (replica.volume_id.as_str(), replica.size_bytes),
            (id.as_str(), 16 * MIB)
        );
        assert_eq!(replica.lanes, 1);
    }
    assert_eq!(c.try_create(1, "v", 3).await.unwrap(), id, "it is there");
    refused(
        c.try_create(1, "v", 2).await,
        Code::AlreadyExists,
        "3 replicas",
    );
    refused(
        c.try_create(1, "v", 1).await,
        Code::AlreadyExists,
        "3 replicas",
    );
    let volume = c.nodes[2].inspect("v").await.unwrap();
    assert_eq!(
        (volume.spec.as_ref().unwrap().ha_level, volume.status()),
        (3, VolumeStatus::Up)
    );
    assert_eq!(volume.replica_sets[0].nodes.len(), 3);
    assert_eq!(
        volume.runtime_state[0].runtime_state["RuntimeState"],
        "clean"
    );
    let replicas = c.locate(0, "v").await;
    assert_eq!(
        (replicas.state.as_str(), replicas.replicas.len()),
        ("detached", 3)
    );
    c.nodes[1].update("v", &[("k", "v")], None).await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    let empty = |b: &Bench| b.fake.memory().replication.replicas.is_empty();
    c.until("replicas are gone", |c| c.nodes.iter().all(empty))
        .await;
    refused(c.nodes[0].inspect("v").await, Code::NotFound, "v");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_nodes_are_said_and_a_refused_replica_leaves_nothing_behind() {
    let mut c = Nodes::start(2).await;
    let id = c.create("v", 2).await;
    refused(
        c.try_create(0, "w", 3).await,
        Code::FailedPrecondition,
        "there are 2: n1, n2",
    );
    let refusal = (Code::ResourceExhausted, "the pool is full");
    c.nodes[1]
        .fake
        .memory()
        .refuse
        .insert("create_replica", refusal);
    refused(
        c.try_create(0, "w", 2).await,
        Code::FailedPrecondition,
        "n2 cannot make its replica",
    );
    c.until("the other one is gone", |c| {
        c.nodes[0].fake.memory().replication.replicas.len() == 1
    })
    .await;
    c.nodes[1].fake.memory().refuse.clear();
    let other = c.create("w", 2).await;
    assert_ne!(id, other);
    // A node that is away keeps its replica until it is back.
    c.nodes[1].fake.kill();
    c.nodes[1].down().await;
    c.nodes[0].delete("w").await.unwrap();
    assert_eq!(c.nodes[1].fake.memory().replication.replicas.len(), 2);
    c.nodes[1].fake.restart();
    c.until("it is gone", |c| {
        c.nodes[1].fake.memory().replication.replicas.len() == 1
    })
    .await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_is_served_by_one_and_exported_by_all() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 2).await;
    // The third has no replica.
    c.nodes[2].attach("v").await;
    let mut expected = vec![FORWARDS, FORWARDS, BEST];
    c.until_paths(&id, &expected).await;
    let epoch = c.nodes[2].fake.memory().replication.served.last().copied();
    for n in 0..2 {
        let path = c.nodes[n].fake.memory().replication.paths[&id].clone();
        let forward = path.forward.expect("it forwards");
        assert_eq!(
            (forward.node_id.as_str(), Some(forward.epoch)),
            ("n3", epoch)
        );
    }
    let ranges: Vec<u32> = (0..3)
        .map(|n| {
            c.nodes[n]
                .fake
                .memory()
                .exports
                .values()
                .next()
                .unwrap()
                .cntlid_min
        })
        .collect();
    assert!(ranges[0] != ranges[1] && ranges[1] != ranges[2] && ranges[0] != ranges[2]);
    let at = c.locate(0, "v").await;
    assert_eq!(
        (at.coordinator.as_str(), at.state.as_str()),
        ("n3", "serving")
    );
    let request = ConnectionInfoRequest { volume: "v".into() };
    let info = c.nodes[0]
        .admin()
        .connection_info(request)
        .await
        .unwrap()
        .into_inner();
    let paths: Vec<_> = info
        .paths
        .iter()
        .map(|p| (p.node_id.as_str(), p.state.as_str()))
        .collect();
    assert_eq!(
        paths,
        [
            ("n3", "optimized"),
            ("n1", "non-optimized"),
            ("n2", "non-optimized")
        ]
    );
    c.nodes[2].attach("v").await;
    assert_eq!(
        c.nodes[2].fake.memory().replication.served.len(),
        1,
        "done already is done"
    );
    refused(
        c.nodes[0].try_attach("v", None).await,
        Code::FailedPrecondition,
        "n3",
    );
    refused(
        c.nodes[0].delete("v").await,
        Code::FailedPrecondition,
        "detach it first",
    );
    // Moved: the former one has ended before the next begins.
    c.attach_to(1, "v", "n1").await.unwrap();
    expected = vec![BEST, FORWARDS, None];
    c.until_paths(&id, &expected).await;
    assert!(c.nodes[2].fake.memory().replication.coordinators.is_empty());
    assert!(c.nodes[2].fake.memory().replication.paths.is_empty());
    refused(c.attach_to(1, "v", "n9").await, Code::NotFound, "n9");
    c.nodes[1].detach("v").await.unwrap();
    c.until_paths(&id, &[None, None, None]).await;
    c.until("nobody serves", |c| {
        c.nodes[0].fake.memory().replication.coordinators.is_empty()
    })
    .await;
    c.nodes[1].detach("v").await.unwrap();
    c.nodes[1].delete("v").await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_that_comes_back_disturbs_nothing_and_a_data_path_that_does_gets_another_epoch() {
    let mut c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[0].attach("v").await;
    c.until_paths(&id, &[BEST, FORWARDS, FORWARDS]).await;
    // Others hear the coordinator, so it is left alone however long control is away.
    for node in &c.nodes {
        node.fake.memory().replication.heard_ms = Some(100);
    }
    c.nodes[0].stop_control().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(c.paths(&id), [BEST, FORWARDS, FORWARDS]);
    c.nodes[0].start_control().await.unwrap();
    c.nodes[0].ready().await;
    assert_eq!(c.nodes[0].fake.memory().replication.served.len(), 1);
    c.nodes[0].fake.kill();
    c.nodes[0].down().await;
    c.nodes[0].fake.restart();
    c.until_paths(&id, &[BEST, FORWARDS, FORWARDS]).await;
    let served = c.nodes[0].fake.memory().replication.served.clone();
    assert!(served.len() == 2 && served[1] > served[0], "{served:?}");
    // Its replicas were not made again.
    assert_eq!(c.nodes[0].fake.memory().replication.replicas.len(), 1);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_while_a_connection_begins_is_known() {
    let mut c = Nodes::start(2).await;
    let slow = &mut c.nodes[0];
    slow.fake.kill();
    slow.down().await;
    // It was told the nodes by then, and its connection has not begun yet.
    let late = ("list_coordinators", Duration::from_secs(4));
    slow.fake.memory().late.extend([late]);
    slow.fake.restart();
    let knows = |c: &Nodes| c.nodes[0].fake.memory().replication.nodes.len();
    c.until("it is told the nodes", |c| knows(c) == 2).await;
    let at = c.server.address().to_string();
    c.nodes.push(Bench::join("n3", &at).await);
    c.until("it is told of the new one", |c| knows(c) == 3)
        .await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_followed_by_another() {
    let mut c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[0].attach("v").await;
    c.until_paths(&id, &[BEST, FORWARDS, FORWARDS]).await;
    c.nodes[0].fake.kill();
    c.nodes[0].stop_control().await;
    let began = std::time::Instant::now();
    c.until("another serves", |c| {
        c.path(1, &id) == BEST || c.path(2, &id) == BEST
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_millis(4500), "{took:?}");
    let other = if c.path(1, &id) == BEST { 1 } else { 2 };
    c.until("the third forwards to it", |c| {
        c.path(3 - other, &id) == FORWARDS
    })
    .await;
    let at = c.locate(3 - other, "v").await;
    assert_eq!(at.coordinator, format!("n{}", other + 1));
    // So that nobody is asked for a read who may not be there.
    c.until("data paths are told whom gossip doubts", |c| {
        c.doubts(1) == [("n1".to_owned(), true), ("n3".to_owned(), false)]
            && c.doubts(2) == [("n1".to_owned(), true), ("n2".to_owned(), false)]
    })
    .await;
    // It comes back as one that only has a replica.
    c.nodes[0].fake.restart();
    c.nodes[0].start_control().await.unwrap();
    c.until("it has a path", |c| c.path(0, &id) == FORWARDS)
        .await;
    assert_eq!(c.path(other, &id), BEST);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_ended_is_attached_again_but_not_one_with_contradictions() {
    let c = Nodes::start(2).await;
    let id = c.create("v", 2).await;
    c.nodes[0].attach("v").await;
    let end = |reason: EndReason, alarm: &str| {
        let mut memory = c.nodes[0].fake.memory();
        let coordinator = memory.replication.coordinators.get_mut(&id).unwrap();
        coordinator.set_state(CoordinatorState::CoordinatorEnded);
        coordinator.set_end(reason);
        coordinator.alarm = alarm.into();
        event::What::Coordinator(coordinator.clone())
    };
    let ended = end(EndReason::EndAgain, "");
    c.nodes[0].fake.report(ended).await;
    c.until("it serves again", |c| {
        c.nodes[0].fake.memory().replication.served.len() == 2
    })
    .await;
    c.until_paths(&id, &[BEST, FORWARDS]).await;
    let ended = end(EndReason::EndAlarm, "two values of one stamp");
    c.nodes[0].fake.report(ended).await;
    c.until_paths(&id, &[AWAY, AWAY]).await;
    let is_error = async {
        while c.nodes[1].inspect("v").await.unwrap().state() != VolumeState::Error {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_error)
        .await
        .expect("it is in error");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(c.nodes[0].fake.memory().replication.served.len(), 2);
    // A person has looked.
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[0].attach("v").await;
    c.until_paths(&id, &[BEST, FORWARDS]).await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_set_are_answered_beside_other_changes() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[0].attach("v").await;
    // A change that is not answered holds this node's others up.
    c.nodes[0].fake.memory().hang = Some("create_volume");
    let volumes = c.nodes[0].volumes();
    let held = tokio::spawn(async move {
        let mut volumes = volumes;
        let spec = VolumeSpec {
            size: MIB,
            ..Default::default()
        };
        let request = SdkVolumeCreateRequest {
            name: "held".into(),
            spec: Some(spec),
            ..Default::default()
        };
        volumes.create(request).await
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (record, away) = {
        let memory = c.nodes[0].fake.memory();
        let record = memory.replication.coordinators[&id].record.clone().unwrap();
        (record.clone(), record.replicas[2].replica_id.clone())
    };
    // As the coordinator knows it after K2.
    let exclude = |version: u64| keelblock_api::datapath::SetChange {
        volume_id: id.clone(),
        expected_version: version,
        epoch: record.epoch,
        incarnation: record.incarnation.clone(),
        attempt: record.attempt.clone(),
        change: Some(keelblock_api::datapath::set_change::Change::Exclude(
            keelblock_api::datapath::ReplicaIds {
                replica_ids: vec![away.clone()],
            },
        )),
    };
    let answers = |c: &Nodes| c.nodes[0].fake.memory().replication.answers.clone();
    c.nodes[0]
        .fake
        .report(event::What::SetChange(exclude(record.version)))
        .await;
    c.until("it is answered", |c| answers(c).len() == 2).await;
    assert!(matches!(answers(&c)[1].outcome, Some(Outcome::Done(_))));
    // Sent again after its answer was lost.
    c.nodes[0]
        .fake
        .report(event::What::SetChange(exclude(record.version)))
        .await;
    c.until("it is answered again", |c| answers(c).len() == 3)
        .await;
    let Some(Outcome::Conflict(now)) = &answers(&c)[2].outcome else {
        panic!("{:?}", answers(&c)[2]);
    };
    assert_eq!(
        (now.version, now.epoch, now.serving),
        (record.version + 1, record.epoch, true)
    );
    let at = c.locate(1, "v").await;
    let states: Vec<_> = at.replicas.iter().map(|r| r.state.as_str()).collect();
    assert_eq!(states, ["member", "member", "behind"]);
    let volume = c.nodes[1].inspect("v").await.unwrap();
    assert_eq!(volume.status(), VolumeStatus::Degraded);
    held.abort();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_lost_is_not_made_again() {
    let mut c = Nodes::start(2).await;
    let id = c.create("v", 2).await;
    c.nodes[1].fake.kill();
    c.nodes[1].fake.memory().replication.replicas.clear();
    c.nodes[1].fake.restart();
    c.nodes[1].ready().await;
    let lost = async {
        while c
            .locate(1, &id)
            .await
            .replicas
            .iter()
            .all(|r| r.error.is_empty())
        {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost)
        .await
        .expect("it is said");
    assert!(c.nodes[1].fake.memory().replication.replicas.is_empty());
    c.stop().await;
}
