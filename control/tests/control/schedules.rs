//! Schedule policies, and snapshots that are taken by them: on a clock of the test's own, which is years ahead of the one that the control process looks at by
//! itself, so that nothing but what the test says becomes due.
use crate::bench::{Bench, Drive, refused};
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::openstorage::open_storage_schedule_policy_client::OpenStorageSchedulePolicyClient;
use keelblock_api::openstorage::sdk_schedule_policy_interval::PeriodType;
use keelblock_api::openstorage::*;
use keelblock_control::kvdb::Client;
use keelblock_control::node::AlertFilter;
use tonic::transport::Channel;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
const HOUR_MS: u64 = 3_600_000;
/// 2035-03-01 00:00 UTC, a Thursday.
const BEGIN_MS: u64 = 2_056_320_000_000;

fn policies(b: &Bench) -> OpenStorageSchedulePolicyClient<Channel> {
    OpenStorageSchedulePolicyClient::new(b.channel())
}

fn every(seconds: i64, retain: i64) -> SdkSchedulePolicyInterval {
    let periodic = SdkSchedulePolicyIntervalPeriodic { seconds };
    SdkSchedulePolicyInterval {
        retain,
        period_type: Some(PeriodType::Periodic(periodic)),
    }
}

fn daily(hour: i32, minute: i32, retain: i64) -> SdkSchedulePolicyInterval {
    let daily = SdkSchedulePolicyIntervalDaily { hour, minute };
    SdkSchedulePolicyInterval {
        retain,
        period_type: Some(PeriodType::Daily(daily)),
    }
}

fn policy(name: &str, schedules: &[SdkSchedulePolicyInterval]) -> Option<SdkSchedulePolicy> {
    Some(SdkSchedulePolicy {
        name: name.into(),
        schedules: schedules.to_vec(),
    })
}

async fn create(
    b: &Bench,
    name: &str,
    schedules: &[SdkSchedulePolicyInterval],
) -> Result<(), Status> {
    let request = SdkSchedulePolicyCreateRequest {
        schedule_policy: policy(name, schedules),
    };
    policies(b).create(request).await.map(drop)
}

async fn update(
    b: &Bench,
    name: &str,
    schedules: &[SdkSchedulePolicyInterval],
) -> Result<(), Status> {
    let request = SdkSchedulePolicyUpdateRequest {
        schedule_policy: policy(name, schedules),
    };
    policies(b).update(request).await.map(drop)
}

async fn delete(b: &Bench, name: &str) -> Result<(), Status> {
    let request = SdkSchedulePolicyDeleteRequest { name: name.into() };
    policies(b).delete(request).await.map(drop)
}

async fn inspect(b: &Bench, name: &str) -> Result<SdkSchedulePolicy, Status> {
    let request = SdkSchedulePolicyInspectRequest { name: name.into() };
    Ok(policies(b)
        .inspect(request)
        .await?
        .into_inner()
        .policy
        .unwrap())
}

async fn set(b: &Bench, volume: &str, names: &[&str]) -> Result<(), Status> {
    let request = SdkVolumeSnapshotScheduleUpdateRequest {
        volume_id: volume.into(),
        snapshot_schedule_names: names.iter().map(|n| (*n).into()).collect(),
    };
    b.volumes()
        .snapshot_schedule_update(request)
        .await
        .map(drop)
}

/// Names of all snapshots, in order.
async fn snapshots(b: &Bench) -> Vec<String> {
    let all = b.control().node.registry.snapshots().await.unwrap();
    let mut names: Vec<_> = all.into_iter().map(|s| s.name).collect();
    names.sort();
    names
}

async fn tick(b: &Bench, hours: u64) {
    let now = BEGIN_MS + hours * HOUR_MS;
    b.control().node.schedule_tick(now).await.unwrap();
}

/// The policies of a volume, from the begin of the test's clock on.
async fn begin(b: &Bench, volume: &str, names: &[&str]) {
    let names = names.iter().map(|n| (*n).to_owned()).collect();
    let node = &b.control().node;
    node.set_schedule(volume, names, BEGIN_MS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_names_policies_and_the_volume_has_them_from_the_beginning() {
    let b = Bench::new(Drive::File).await;
    create(&b, "p", &[every(900, 3)]).await.unwrap();
    create(&b, "q", &[daily(2, 30, 7)]).await.unwrap();
    let spec = |schedule: &str| VolumeSpec {
        size: 1 << 20,
        snapshot_schedule: schedule.into(),
        ..Default::default()
    };
    let unknown = b.try_create("v", spec("policy=p,none")).await;
    refused(unknown, Code::NotFound, "schedule policy none");
    let times = b.try_create("v", spec("periodic=60,5")).await;
    refused(times, Code::InvalidArgument, "spec.snapshot_schedule");
    refused(b.inspect("v").await, Code::NotFound, "v");
    let id = b.try_create("v", spec("policy=p,q")).await.unwrap();
    let shown = || async {
        b.inspect("v")
            .await
            .unwrap()
            .spec
            .unwrap()
            .snapshot_schedule
    };
    assert_eq!(shown().await, "policy=p,q");
    assert_eq!(b.try_create("v", spec("policy=p,q")).await.unwrap(), id);
    refused(delete(&b, "p").await, Code::FailedPrecondition, "volume v");
    tick(&b, 1).await;
    assert!(!snapshots(&b).await.is_empty(), "they are taken by it");
    let update = |schedule: &str| {
        let opt = volume_spec_update::SnapshotScheduleOpt::SnapshotSchedule(schedule.into());
        let request = SdkVolumeUpdateRequest {
            volume_id: "v".into(),
            spec: Some(VolumeSpecUpdate {
                snapshot_schedule_opt: Some(opt),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut volumes = b.volumes();
        async move { volumes.update(request).await.map(drop) }
    };
    update("q").await.unwrap();
    assert_eq!(shown().await, "policy=q");
    update("").await.unwrap();
    assert_eq!(shown().await, "");
    delete(&b, "p").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_made_changed_and_deleted() {
    let b = Bench::new(Drive::File).await;
    create(&b, "p", &[daily(2, 30, 0), every(900, 3)])
        .await
        .unwrap();
    let made = inspect(&b, "p").await.unwrap();
    assert_eq!(made.schedules, [daily(2, 30, 7), every(900, 3)]);
    create(&b, "p", &[daily(2, 30, 7), every(900, 3)])
        .await
        .unwrap();
    let other = create(&b, "p", &[daily(2, 30, 8)]).await;
    refused(other, Code::AlreadyExists, "other times");
    update(&b, "p", &[daily(2, 30, 8)]).await.unwrap();
    assert_eq!(inspect(&b, "p").await.unwrap().schedules, [daily(2, 30, 8)]);
    create(&b, "a", &[every(60, 1)]).await.unwrap();
    let request = SdkSchedulePolicyEnumerateRequest {};
    let all = policies(&b).enumerate(request).await.unwrap().into_inner();
    let names: Vec<_> = all.policies.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a", "p"]);
    for (schedules, says) in [
        (&[daily(24, 0, 1)][..], "hours are 0 to 23"),
        (&[every(0, 1)], "a period is"),
        (&[daily(1, 0, -1)], "retain"),
        (&[daily(1, 0, 1), daily(1, 0, 2)], "twice"),
        (&[], "at least one"),
    ] {
        refused(
            create(&b, "bad", schedules).await,
            Code::InvalidArgument,
            says,
        );
    }
    refused(
        create(&b, "", &[every(60, 1)]).await,
        Code::InvalidArgument,
        "name",
    );
    refused(inspect(&b, "bad").await, Code::NotFound, "bad");
    refused(
        update(&b, "bad", &[every(60, 1)]).await,
        Code::NotFound,
        "bad",
    );

    b.create("v", 16 * MIB).await;
    refused(set(&b, "v", &["p", "none"]).await, Code::NotFound, "none");
    refused(set(&b, "nothing", &["p"]).await, Code::NotFound, "nothing");
    set(&b, "v", &["p", "a"]).await.unwrap();
    refused(delete(&b, "p").await, Code::FailedPrecondition, "volume v");
    set(&b, "v", &["a"]).await.unwrap();
    delete(&b, "p").await.unwrap();
    delete(&b, "p").await.unwrap();
    set(&b, "v", &[]).await.unwrap();
    delete(&b, "a").await.unwrap();
    // A volume that is gone holds nothing up.
    create(&b, "b", &[every(60, 1)]).await.unwrap();
    set(&b, "v", &["b"]).await.unwrap();
    b.delete("v").await.unwrap();
    delete(&b, "b").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_taken_once_and_the_oldest_go() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", 16 * MIB).await;
    create(&b, "p", &[every(3600, 2), daily(2, 30, 1)])
        .await
        .unwrap();
    begin(&b, "v", &["p"]).await;
    b.snapshot("v", "by-hand").await.unwrap();
    tick(&b, 0).await;
    assert_eq!(snapshots(&b).await, ["by-hand"]);
    tick(&b, 1).await;
    tick(&b, 1).await;
    assert_eq!(
        snapshots(&b).await,
        ["by-hand", "v_periodic_20350301T010000Z"]
    );
    tick(&b, 2).await;
    // What was done is known to the next process, too.
    b.restart_control().await;
    tick(&b, 2).await;
    tick(&b, 3).await;
    let expected = [
        "by-hand",
        "v_daily_20350301T023000Z",
        "v_periodic_20350301T020000Z",
        "v_periodic_20350301T030000Z",
    ];
    assert_eq!(snapshots(&b).await, expected);
    // Of those that were missed, the last one.
    tick(&b, 48).await;
    let expected = [
        "by-hand",
        "v_daily_20350302T023000Z",
        "v_periodic_20350301T030000Z",
        "v_periodic_20350303T000000Z",
    ];
    assert_eq!(snapshots(&b).await, expected);
    // Others who did it already, and died before they said so.
    let kv = Client::new(&b.control().kvdb).unwrap();
    let schedule = kv.list("/test/schedules/").await.unwrap().kvs.remove(0);
    tick(&b, 49).await;
    let taken = snapshots(&b).await;
    kv.put(schedule.key, schedule.value).await.unwrap();
    tick(&b, 49).await;
    assert_eq!(snapshots(&b).await, taken, "the same again is the same");
    set(&b, "v", &[]).await.unwrap();
    tick(&b, 60).await;
    assert_eq!(snapshots(&b).await, taken, "none is taken, and none goes");
    assert!(kv.list("/test/schedules/").await.unwrap().kvs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_change_count_from_then_on() {
    let b = Bench::new(Drive::File).await;
    b.create("v", 16 * MIB).await;
    create(&b, "p", &[daily(1, 0, 5)]).await.unwrap();
    create(&b, "q", &[every(7200, 5)]).await.unwrap();
    begin(&b, "v", &["p"]).await;
    tick(&b, 3).await;
    assert_eq!(snapshots(&b).await, ["v_daily_20350301T010000Z"]);
    // A policy that comes later has no past, and what was done of the others stays done.
    let node = &b.control().node;
    let both = vec!["p".to_owned(), "q".to_owned()];
    let at = BEGIN_MS + 3 * HOUR_MS;
    node.set_schedule("v", both, at).await.unwrap();
    tick(&b, 4).await;
    assert_eq!(snapshots(&b).await.len(), 1);
    tick(&b, 5).await;
    assert_eq!(snapshots(&b).await.len(), 2);
    // Other times of a policy: what was done of the old ones is forgotten.
    update(&b, "p", &[daily(6, 0, 5)]).await.unwrap();
    tick(&b, 6).await;
    let expected = [
        "v_daily_20350301T010000Z",
        "v_daily_20350301T060000Z",
        "v_periodic_20350301T050000Z",
    ];
    assert_eq!(snapshots(&b).await, expected);
    let id = node.registry.volume("v").await.unwrap().record.volume_id;
    let schedule = node.schedule_of(id).await.unwrap().unwrap();
    let done: Vec<_> = schedule.done.keys().map(String::as_str).collect();
    assert_eq!(done, ["p/daily@06:00", "q/periodic@7200s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_said_and_tried_again() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", 16 * MIB).await;
    create(&b, "p", &[every(3600, 2)]).await.unwrap();
    begin(&b, "v", &["p"]).await;
    b.fake.kill();
    b.down().await;
    tick(&b, 1).await;
    tick(&b, 1).await;
    let alerts = async || {
        let filter = AlertFilter {
            alert_type: Some(9),
            resource_id: Some(id.clone()),
            ..Default::default()
        };
        let found = b.control().node.find_alerts(&[filter]).await.unwrap();
        let told: Vec<_> = found.iter().map(|a| (a.count, a.cleared)).collect();
        told
    };
    assert_eq!(
        alerts().await,
        [(1, false)],
        "once, as long as it is the same"
    );
    assert!(snapshots(&b).await.is_empty());
    b.fake.restart();
    b.ready().await;
    tick(&b, 1).await;
    let alerts = {
        let filter = AlertFilter {
            alert_type: Some(9),
            ..Default::default()
        };
        b.control().node.find_alerts(&[filter]).await.unwrap()
    };
    assert!(alerts[0].cleared);
    assert_eq!(snapshots(&b).await, ["v_periodic_20350301T010000Z"]);
    b.delete("v_periodic_20350301T010000Z").await.unwrap();
    b.delete("v").await.unwrap();
    tick(&b, 2).await;
    let kv = Client::new(&b.control().kvdb).unwrap();
    assert!(kv.list("/test/schedules/").await.unwrap().kvs.is_empty());
}

async fn leader(c: &Nodes) -> Option<String> {
    let running = c.nodes.iter().find(|n| n.runs()).expect("one runs");
    let kv = Client::new(&running.control().kvdb).unwrap();
    let found = kv.get("/test/leaders/schedules").await.unwrap()?;
    Some(String::from_utf8(found.value).unwrap())
}

async fn until_led(c: &Nodes, by: impl Fn(&str) -> bool) -> String {
    let led = async {
        loop {
            match leader(c).await {
                Some(leader) if by(&leader) => return leader,
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let led = tokio::time::timeout(PATIENCE, led).await;
    led.expect("a node takes scheduled snapshots")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_does_it_for_all_and_another_after_it() {
    let mut c = Nodes::start(2).await;
    let first = until_led(&c, |_| true).await;
    for (at, name) in ["on-one", "on-two"].into_iter().enumerate() {
        c.nodes[at].create(name, 16 * MIB).await;
    }
    create(&c.nodes[0], "p", &[every(3600, 1)]).await.unwrap();
    begin(&c.nodes[0], "on-one", &["p"]).await;
    begin(&c.nodes[0], "on-two", &["p"]).await;
    // Whichever it is: the other's volume is asked for there.
    tick(&c.nodes[0], 1).await;
    let taken = [
        "on-one_periodic_20350301T010000Z",
        "on-two_periodic_20350301T010000Z",
    ];
    assert_eq!(snapshots(&c.nodes[0]).await, taken);
    tick(&c.nodes[1], 2).await;
    let taken = [
        "on-one_periodic_20350301T020000Z",
        "on-two_periodic_20350301T020000Z",
    ];
    assert_eq!(snapshots(&c.nodes[0]).await, taken);
    let leads = usize::from(first != "n1");
    c.nodes[leads].stop_control().await;
    let second = until_led(&c, |leader| leader != first).await;
    assert_ne!(first, second);
    c.stop().await;
}
