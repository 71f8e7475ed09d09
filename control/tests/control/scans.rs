//! Scans: asked for, on a schedule (the clock is the test's), and through an end of the data path.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::admin::*;
use keelblock_api::datapath::event::What;
use keelblock_api::datapath::{ScrubState, ScrubStatus};
use tonic::Code;

async fn status(b: &Bench) -> ScanStatus {
    let reply = b.admin().get_scan(ScanRequest::default()).await;
    reply.unwrap().into_inner()
}

/// The scan that goes on gets to its end.
async fn end_scan(b: &Bench, errors: u64) -> ScrubStatus {
    let done = {
        let mut memory = b.fake.memory();
        let scrub = memory.scrubs.values_mut().next().unwrap();
        scrub.set_state(ScrubState::ScrubDone);
        scrub.scanned_bytes = scrub.total_bytes;
        scrub.errors = errors;
        scrub.finished_unix_ms = scrub.started_unix_ms + 1;
        scrub.clone()
    };
    b.fake.report(What::ScrubDone(done.clone())).await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_is_started_paused_resumed_and_cancelled() {
    let b = Bench::new(Drive::File).await;
    let all = ScanRequest::default;
    assert_eq!(status(&b).await.state, "none");
    refused(
        b.admin().pause_scan(all()).await,
        Code::FailedPrecondition,
        "scan start",
    );
    let start = StartScanRequest {
        pool: "default".into(),
        rate_bytes_per_s: 77,
    };
    let started = b
        .admin()
        .start_scan(start.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (started.state.as_str(), started.rate_bytes_per_s),
        ("running", 77)
    );
    refused(
        b.admin().start_scan(start.clone()).await,
        Code::FailedPrecondition,
        "goes on",
    );
    b.admin().pause_scan(all()).await.unwrap();
    assert_eq!(status(&b).await.state, "paused");
    b.admin().resume_scan(all()).await.unwrap();
    assert_eq!(status(&b).await.state, "running");
    b.admin().cancel_scan(all()).await.unwrap();
    assert_eq!(status(&b).await.state, "cancelled");
    b.admin().start_scan(start).await.unwrap();
    end_scan(&b, 0).await;
    let done = status(&b).await;
    assert_eq!((done.state.as_str(), done.scanned_bytes), ("done", 1 << 20));
    let other = ScanRequest {
        pool: "other".into(),
    };
    refused(b.admin().get_scan(other).await, Code::NotFound, "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_come_by_themselves_and_are_done_again_when_interrupted() {
    let mut b = Bench::new(Drive::File).await;
    let node = b.control().node.clone();
    let far = u64::MAX / 4;
    node.scan_tick(far).await.unwrap();
    assert!(b.fake.memory().scrubs.is_empty(), "no schedule, no scan");
    let schedule = |interval_s| ScheduleScanRequest {
        interval_s,
        rate_bytes_per_s: 5,
        ..Default::default()
    };
    refused(
        b.admin().schedule_scan(schedule(1)).await,
        Code::InvalidArgument,
        "60",
    );
    let set = b
        .admin()
        .schedule_scan(schedule(60))
        .await
        .unwrap()
        .into_inner();
    let first = set.next_unix_ms;
    assert!(first > 0);
    node.scan_tick(first - 1).await.unwrap();
    assert!(b.fake.memory().scrubs.is_empty());
    b.fake.memory().clock = first - 1000;
    node.scan_tick(first).await.unwrap();
    assert_eq!(status(&b).await.state, "running");
    node.scan_tick(far).await.unwrap();
    assert_eq!(b.fake.memory().clock, first, "not while one goes on");
    // The data path ends in the middle of it.
    drop(node);
    b.fake.restart();
    b.down().await;
    b.ready().await;
    assert_eq!(status(&b).await.state, "interrupted");
    let node = b.control().node.clone();
    node.scan_tick(first + 1).await.unwrap();
    assert_eq!(status(&b).await.state, "running");
    let done = end_scan(&b, 0).await;
    let next = status(&b).await.next_unix_ms;
    assert_eq!(next, done.started_unix_ms + 60_000);
    node.scan_tick(next - 1).await.unwrap();
    assert_eq!(status(&b).await.state, "done");
    node.scan_tick(next).await.unwrap();
    assert_eq!(status(&b).await.state, "running");
    let ended = b
        .admin()
        .schedule_scan(schedule(0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((ended.interval_s, ended.next_unix_ms), (0, 0));
    drop(node);
    b.restart_control().await;
    assert_eq!(status(&b).await.state, "running", "what was found is kept");
}
