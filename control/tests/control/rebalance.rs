//! Rebalances as jobs, over nodes with fake data paths: they go on whoever dies, are held up and taken back, and take volumes along that are attached nowhere.
use crate::bench::refused;
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use keelblock_api::datapath::event;
use keelblock_api::openstorage::*;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
/// How soon what was asked for is asked for again.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(300);

/// Three volumes with one replica on the first node, which so has more than the others: two are to go.
async fn uneven(c: &Nodes) {
    c.create("first", 3).await;
    let mut admin = c.nodes[0].admin();
    let pools = admin.provision_status(ProvisionStatusRequest {}).await;
    let total = pools.unwrap().into_inner().pools[0].total_bytes;
    for name in ["a", "b", "c"] {
        let spec = VolumeSpec {
            size: total / 4 / MIB * MIB,
            ha_level: 1,
            replica_set: Some(ReplicaSet {
                nodes: vec!["n1".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        c.nodes[0].try_create(name, spec).await.unwrap();
    }
}

fn stay_empty(c: &Nodes) {
    for n in &c.nodes {
        n.fake.memory().replication.stays_empty = true;
    }
}

async fn begin(c: &Nodes, trial_run: bool) -> Result<SdkStorageRebalanceResponse, Status> {
    let request = SdkStorageRebalanceRequest {
        trial_run,
        ..Default::default()
    };
    let begun = c.nodes[2].pools().rebalance(request).await;
    begun.map(tonic::Response::into_inner)
}

async fn steer(c: &Nodes, id: &str, state: StorageRebalanceJobState) -> Result<(), Status> {
    let request = SdkUpdateRebalanceJobRequest {
        id: id.into(),
        state: state.into(),
    };
    let mut pools = c.nodes[1].pools();
    pools.update_rebalance_job_state(request).await.map(drop)
}

async fn status(c: &Nodes, id: &str) -> RebalanceStatusReply {
    let request = RebalanceStatusRequest { job_id: id.into() };
    let found = c.nodes[1].admin().rebalance_status(request).await;
    found.unwrap().into_inner()
}

/// Nodes look, one after the other, beside the one that does so by itself, until the job is as it is to be.
async fn until(
    c: &Nodes,
    id: &str,
    what: &str,
    is: impl Fn(&RebalanceStatusReply) -> bool,
) -> RebalanceStatusReply {
    let wait = async {
        for n in (0..c.nodes.len()).cycle() {
            let found = status(c, id).await;
            if is(&found) {
                return found;
            }
            let node = &c.nodes[n].control().node;
            let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
            // Another one that was faster is no error; a node that has just started may not see all yet.
            if let Err(error) = node.rebalance_tick(now).await {
                assert!(error.to_string().contains("try again"), "{error}");
            }
            tokio::time::sleep(LOOK).await;
        }
        unreachable!("it goes round for ever");
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(found) => found,
        Err(_) => panic!("in vain until {what}: {:?}", status(c, id).await),
    }
}

fn all_are(job: &RebalanceStatusReply, state: &str) -> bool {
    job.moves.iter().all(|m| m.state == state)
}

fn names(job: &RebalanceStatusReply) -> Vec<String> {
    let all = job.moves.iter().filter_map(|m| m.r#move.clone());
    all.map(|m| m.name).collect()
}

/// Whose data path coordinates a volume, for hosts or not.
fn coordinator(c: &Nodes, id: &str) -> Option<usize> {
    let here = |n: &crate::bench::Bench| {
        let memory = n.fake.memory();
        memory.replication.coordinators.contains_key(id)
    };
    c.nodes.iter().position(here)
}

/// The replica that comes is copied to.
async fn at_resync(c: &Nodes, name: &str) -> LocateVolumeReply {
    let wait = async {
        loop {
            let found = c.locate(0, name).await;
            let step = found.task.as_ref().map(|t| t.step.as_str());
            if step == Some("resync") && coordinator(c, &found.volume_id).is_some() {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.expect("it is made and copied to")
}

/// The replica that comes has everything: whoever serves the volume asks for it to be a member. The record that it asks by may have changed since, so it asks again, as
/// coordinators do.
async fn admit(c: &Nodes, planned: &PlannedMove) {
    let found = c.locate(0, &planned.name).await;
    let mut replicas = found.replicas.iter();
    let comes = |r: &&ReplicaStatus| {
        r.node_id == planned.to_node && ["empty", "behind"].contains(&r.state.as_str())
    };
    let (Some(new), Some(at)) = (replicas.find(comes), coordinator(c, &found.volume_id)) else {
        return;
    };
    let fake = &c.nodes[at].fake;
    let asks = fake
        .memory()
        .replication
        .copied(&found.volume_id, &new.replica_id);
    if let Some(asks) = asks {
        fake.report(event::What::SetChange(asks)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_goes_on_whoever_dies_and_takes_detached_volumes_along() {
    let mut c = Nodes::start(3).await;
    uneven(&c).await;
    stay_empty(&c);
    let trial = begin(&c, true).await.unwrap();
    assert_eq!((trial.actions.len(), trial.job.unwrap().id.len()), (4, 0));
    let begun = begin(&c, false).await.unwrap();
    let job = begun.job.unwrap();
    assert_eq!(
        (job.state(), begun.actions.len()),
        (StorageRebalanceJobState::Running, 4)
    );
    refused(begin(&c, false).await, Code::FailedPrecondition, &job.id);
    // As if whoever began the first had died before the job's record had it.
    let first = status(&c, &job.id).await.moves[0].r#move.clone().unwrap();
    let request = UpdateReplicasRequest {
        volume: first.volume_id.clone(),
        node: first.to_node.clone(),
        change: Some(update_replicas_request::Change::MoveFrom(
            first.from_node.clone(),
        )),
    };
    let by_hand = c.nodes[0].admin().update_replicas(request).await.unwrap();
    let by_hand = by_hand.into_inner().task.unwrap();
    let running = until(&c, &job.id, "both move", |j| all_are(j, "running")).await;
    assert_eq!(running.moves.len(), 2);
    assert_eq!(
        c.locate(1, &first.name).await.task.unwrap().task_id,
        by_hand.task_id,
        "it is the move's, and none was begun beside it"
    );
    steer(&c, &job.id, StorageRebalanceJobState::Paused)
        .await
        .unwrap();
    let names = names(&running);
    for name in &names {
        at_resync(&c, name).await;
    }
    for n in 0..3 {
        c.nodes[n].restart_control().await;
    }
    let paused = status(&c, &job.id).await;
    assert!(
        paused.state == "paused" && all_are(&paused, "running"),
        "{paused:?}"
    );
    steer(&c, &job.id, StorageRebalanceJobState::Running)
        .await
        .unwrap();
    let admitted = async {
        loop {
            for one in &running.moves {
                admit(&c, one.r#move.as_ref().unwrap()).await;
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let done = tokio::select! {
        done = until(&c, &job.id, "it is done", |j| j.state == "done") => done,
        () = admitted => unreachable!("it asks for ever"),
    };
    assert!(all_are(&done, "done"), "{done:?}");
    assert!(done.says.starts_with("2 of 2 moved"), "{done:?}");
    for one in &done.moves {
        let planned = one.r#move.as_ref().unwrap();
        let found = c.locate(2, &planned.name).await;
        let nodes: Vec<&str> = found.replicas.iter().map(|r| r.node_id.as_str()).collect();
        assert_eq!(nodes, [planned.to_node.as_str()]);
    }
    // With nothing to move there is nothing to wait for, and nobody else is in the way.
    let again = begin(&c, false).await.unwrap();
    assert_eq!(again.job.unwrap().state(), StorageRebalanceJobState::Done);
    let mut pools = c.nodes[0].pools();
    let listed = pools.enumerate_rebalance_jobs(SdkEnumerateRebalanceJobsRequest {});
    let listed = listed.await.unwrap().into_inner().jobs;
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[1].id, job.id);
    let over = steer(&c, &job.id, StorageRebalanceJobState::Running).await;
    refused(over, Code::FailedPrecondition, "is done");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_is_taken_back_and_a_schedule_begins_the_next() {
    let c = Nodes::start(3).await;
    uneven(&c).await;
    stay_empty(&c);
    c.attach_to(0, "a", "n1").await.unwrap();
    let job = begin(&c, false).await.unwrap().job.unwrap();
    until(&c, &job.id, "both move", |j| all_are(j, "running")).await;
    steer(&c, &job.id, StorageRebalanceJobState::Cancelled)
        .await
        .unwrap();
    let request = SdkGetRebalanceJobStatusRequest { id: job.id.clone() };
    let shown = c.nodes[0].pools().get_rebalance_job_status(request).await;
    let shown = shown.unwrap().into_inner().job.unwrap();
    assert_eq!(shown.state(), StorageRebalanceJobState::Cancelled);
    let over = until(&c, &job.id, "all is taken back", |j| j.state == "cancelled").await;
    assert!(
        all_are(&over, "failed") && over.says.contains("taken back"),
        "{over:?}"
    );
    for name in names(&over) {
        let found = c.locate(0, &name).await;
        let nodes: Vec<&str> = found.replicas.iter().map(|r| r.node_id.as_str()).collect();
        assert_eq!(nodes, ["n1"]);
    }
    let mut pools = c.nodes[0].pools();
    let none = pools.get_rebalance_schedule(SdkGetRebalanceScheduleRequest {});
    refused(none.await, Code::NotFound, "schedule");
    let schedule = |text: &str, requests| SdkCreateRebalanceScheduleRequest {
        schedule: text.into(),
        rebalance_requests: vec![SdkStorageRebalanceRequest::default(); requests],
    };
    let never = pools
        .create_rebalance_schedule(schedule("whenever", 1))
        .await;
    refused(never, Code::InvalidArgument, "daily=HH:MM");
    let made = pools
        .create_rebalance_schedule(schedule("periodic=60", 2))
        .await;
    made.unwrap();
    // An hour, and a bit: two requests are due, of which the second has nothing left to move.
    for n in &c.nodes {
        n.fake.memory().replication.stays_empty = false;
    }
    let node = &c.nodes[1].control().node;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let later = now + 3_700_000;
    assert!(node.rebalance_tick(later).await.unwrap(), "it begins");
    let next = status(&c, "").await;
    assert!(next.job_id != job.id && next.moves.len() == 2, "{next:?}");
    let done = until(&c, &next.job_id, "it is done", |j| j.state == "done").await;
    assert!(all_are(&done, "done"), "{done:?}");
    node.rebalance_tick(later).await.unwrap();
    let last = status(&c, "").await;
    assert!(
        last.job_id != next.job_id && last.moves.is_empty(),
        "{last:?}"
    );
    assert!(!node.rebalance_tick(later).await.unwrap(), "all is done");
    assert_eq!(status(&c, "").await.job_id, last.job_id);
    let gone = pools.delete_rebalance_schedule(SdkDeleteRebalanceScheduleRequest {});
    gone.await.unwrap();
    c.stop().await;
}
