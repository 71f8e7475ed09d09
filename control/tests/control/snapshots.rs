//! Snapshots, clones and setting back, through the SDK and through interruptions.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::admin::{CreateSnapshotsRequest, DiffVolumeRequest, SnapshotWish};
use keelblock_api::datapath::Snapshot;
use keelblock_api::openstorage::*;
use tonic::Code;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_a_volume_that_is_read_only_and_has_a_parent() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 8 * MIB).await;
    let snapshot = b.snapshot("v", "s").await.unwrap();
    assert_eq!(
        b.snapshot("v", "s").await.unwrap(),
        snapshot,
        "the same again"
    );
    let shown = b.inspect("s").await.unwrap();
    assert_eq!(shown.id, snapshot);
    assert!(shown.readonly);
    assert_eq!(shown.source.unwrap().parent, id);
    assert_eq!(shown.spec.unwrap().size, 8 * MIB);
    assert_eq!(shown.usage, 4 * MIB);
    let all = b.volumes().enumerate(SdkVolumeEnumerateRequest {}).await;
    let mut all = all.unwrap().into_inner().volume_ids;
    all.sort();
    let mut both = [id.clone(), snapshot.clone()];
    both.sort();
    assert_eq!(all, both);
    let of = |volume: &str| SdkVolumeSnapshotEnumerateRequest {
        volume_id: volume.into(),
    };
    for (volume, found) in [("v", 1), ("", 1), ("s", 0)] {
        let listed = b.volumes().snapshot_enumerate(of(volume)).await.unwrap();
        let listed = listed.into_inner().volume_snapshot_ids;
        assert_eq!(listed.len(), found, "{volume}");
    }
    let capacity = SdkVolumeCapacityUsageRequest {
        volume_id: "s".into(),
    };
    let capacity = b.volumes().capacity_usage(capacity).await.unwrap();
    let capacity = capacity.into_inner().capacity_usage_info.unwrap();
    assert_eq!(capacity.exclusive_bytes, MIB as i64);
    refused(
        b.try_attach("s", None).await,
        Code::FailedPrecondition,
        "clone it",
    );
    refused(
        b.update("s", &[], Some(16 * MIB)).await,
        Code::FailedPrecondition,
        "snapshot",
    );
    b.update("s", &[("k", "v")], None).await.unwrap();
    assert_eq!(
        b.inspect("s").await.unwrap().locator.unwrap().volume_labels["k"],
        "v"
    );
    b.delete("v").await.unwrap();
    assert!(b.inspect("s").await.is_ok(), "it outlives its volume");
    let of_gone = b.volumes().snapshot_enumerate(of(&id)).await.unwrap();
    assert_eq!(of_gone.into_inner().volume_snapshot_ids, [snapshot]);
    b.delete("s").await.unwrap();
    assert!(b.fake.memory().snapshots.is_empty());
    refused(b.inspect("s").await, Code::NotFound, "s");
    b.create("s", MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_shared_with_volumes() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.create("w", MIB).await;
    b.snapshot("v", "s").await.unwrap();
    refused(b.snapshot("w", "s").await, Code::AlreadyExists, "volume v");
    refused(
        b.snapshot("v", "w").await,
        Code::AlreadyExists,
        "as a volume",
    );
    let spec = VolumeSpec {
        size: MIB,
        ..Default::default()
    };
    refused(
        b.try_create("s", spec).await,
        Code::AlreadyExists,
        "snapshot",
    );
    refused(
        b.clone_of("v", "w").await,
        Code::AlreadyExists,
        "not cloned",
    );
    refused(b.snapshot("v", "").await, Code::InvalidArgument, "name");
    refused(b.snapshot("", "x").await, Code::InvalidArgument, "id");
    refused(b.snapshot("none", "x").await, Code::NotFound, "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_come_from_snapshots_and_from_volumes() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 8 * MIB).await;
    b.update("v", &[("a", "1"), ("b", "1")], None)
        .await
        .unwrap();
    let snapshot = b.snapshot("v", "s").await.unwrap();
    let clone = b.clone_of("s", "c").await.unwrap();
    assert_eq!(
        b.clone_of(&snapshot, "c").await.unwrap(),
        clone,
        "the same again"
    );
    let shown = b.inspect("c").await.unwrap();
    assert!(!shown.readonly);
    assert_eq!(shown.source.unwrap().parent, snapshot);
    assert_eq!(shown.spec.unwrap().size, 8 * MIB);
    b.attach("c").await;
    let live = b.clone_of("v", "d").await.unwrap();
    assert_eq!(b.clone_of("v", "d").await.unwrap(), live);
    let shown = b.inspect(&live).await.unwrap();
    assert_eq!(shown.source.unwrap().parent, id);
    assert_eq!(shown.locator.unwrap().volume_labels["a"], "1");
    assert_eq!(
        b.fake.memory().snapshots.len(),
        1,
        "the clone's own is gone"
    );
    // In any order.
    b.delete("s").await.unwrap();
    b.delete("v").await.unwrap();
    assert_eq!(b.inspect("d").await.unwrap().status(), VolumeStatus::Up);
    b.fake
        .memory()
        .refuse
        .insert("clone_volume", (Code::ResourceExhausted, "no room"));
    refused(
        b.clone_of("d", "e").await,
        Code::ResourceExhausted,
        "keelctl",
    );
    refused(b.inspect("e").await, Code::NotFound, "e");
    assert!(b.fake.memory().snapshots.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn setting_back_needs_a_detached_volume_and_its_own_snapshot() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.create("w", MIB).await;
    b.snapshot("v", "s").await.unwrap();
    b.update("v", &[], Some(2 * MIB)).await.unwrap();
    b.attach("v").await;
    refused(
        b.restore("v", "s").await,
        Code::FailedPrecondition,
        "detach",
    );
    b.detach("v").await.unwrap();
    refused(
        b.restore("w", "s").await,
        Code::FailedPrecondition,
        "volume v",
    );
    refused(
        b.restore("v", "w").await,
        Code::FailedPrecondition,
        "not a snapshot",
    );
    refused(b.restore("v", "none").await, Code::NotFound, "none");
    b.restore("v", "s").await.unwrap();
    assert_eq!(b.inspect("v").await.unwrap().spec.unwrap().size, MIB);
    b.fake
        .memory()
        .refuse
        .insert("restore_volume", (Code::FailedPrecondition, "exported"));
    refused(
        b.restore("v", "s").await,
        Code::FailedPrecondition,
        "exported",
    );
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Detached);
    // It may be half done: nobody gets to use that.
    b.fake
        .memory()
        .refuse
        .insert("restore_volume", (Code::DataLoss, "a lane is lost"));
    refused(b.restore("v", "s").await, Code::Internal, "lost");
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Restore);
    refused(
        b.try_attach("v", None).await,
        Code::FailedPrecondition,
        "restore it again",
    );
    b.fake.memory().refuse.clear();
    b.restore("v", "s").await.unwrap();
    b.attach("v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_volumes_at_one_barrier() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.create("w", MIB).await;
    let wish = |volume: &str, name: &str| SnapshotWish {
        volume: volume.into(),
        name: name.into(),
        ..Default::default()
    };
    let take = async |wishes: &[(&str, &str)]| {
        let snapshots = wishes.iter().map(|(v, n)| wish(v, n)).collect();
        let reply = b
            .admin()
            .create_snapshots(CreateSnapshotsRequest { snapshots })
            .await;
        reply.map(|r| r.into_inner().snapshot_ids)
    };
    let ids = take(&[("v", "v1"), ("w", "w1")]).await.unwrap();
    assert_eq!(take(&[("v", "v1"), ("w", "w1")]).await.unwrap(), ids);
    refused(
        take(&[("v", "v1"), ("w", "w2")]).await,
        Code::AlreadyExists,
        "another time",
    );
    refused(
        take(&[("v", "a"), ("v", "b")]).await,
        Code::InvalidArgument,
        "twice",
    );
    refused(
        take(&[("v", "a"), ("w", "a")]).await,
        Code::InvalidArgument,
        "twice",
    );
    refused(take(&[]).await, Code::InvalidArgument, "1 to 32");
    b.fake
        .memory()
        .refuse
        .insert("create_snapshots", (Code::ResourceExhausted, "no room"));
    refused(
        take(&[("v", "v2"), ("w", "w2")]).await,
        Code::ResourceExhausted,
        "no room",
    );
    refused(b.inspect("v2").await, Code::NotFound, "v2");
    assert_eq!(b.fake.memory().snapshots.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_given_in_parts() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.create("w", MIB).await;
    b.snapshot("v", "s").await.unwrap();
    b.snapshot("w", "t").await.unwrap();
    let diff = async |volume: &str, from: &str, to: &str, start_offset| {
        let request = DiffVolumeRequest {
            volume: volume.into(),
            from: from.into(),
            to: to.into(),
            start_offset,
            ranges_max: 0,
        };
        b.admin().diff_volume(request).await.map(|r| r.into_inner())
    };
    let first = diff("v", "s", "", 0).await.unwrap();
    assert!(first.ranges[0].data);
    let rest = diff("", "s", "", first.next_offset.unwrap()).await.unwrap();
    assert_eq!((rest.ranges[0].offset, rest.next_offset), (4096, None));
    diff("", "", "s", 0).await.unwrap();
    diff("v", "", "", 0).await.unwrap();
    refused(
        diff("", "s", "t", 0).await,
        Code::FailedPrecondition,
        "one volume",
    );
    refused(
        diff("v", "w", "", 0).await,
        Code::FailedPrecondition,
        "not a snapshot",
    );
    refused(
        diff("s", "", "", 0).await,
        Code::InvalidArgument,
        "snapshot",
    );
    refused(diff("", "", "", 0).await, Code::InvalidArgument, "volume");
}

/// The answer to taking a snapshot is lost: it is there afterwards, or it is not; never a name without data, or data without a name.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_snapshot_is_whole_or_gone() {
    for taken in [true, false] {
        let mut b = Bench::new(Drive::File).await;
        let id = b.create("v", MIB).await;
        b.fake
            .memory()
            .refuse
            .insert("create_snapshots", (Code::Unavailable, "gone"));
        refused(b.snapshot("v", "s").await, Code::Unavailable, "gone");
        b.down().await;
        let key = b.control().node.registry.keys().snapshots();
        let records = b.control().node.registry.kv().list(key).await.unwrap().kvs;
        let record: serde_json::Value = serde_json::from_slice(&records[0].value).unwrap();
        if taken {
            let snapshot = Snapshot {
                snapshot_id: record["snapshot_id"].as_str().unwrap().into(),
                volume_id: id,
                complete: true,
                ..Default::default()
            };
            let there = snapshot.snapshot_id.clone();
            b.fake.memory().snapshots.insert(there, snapshot);
        }
        b.stop_control().await;
        b.fake.memory().refuse.clear();
        b.start_control().await.unwrap();
        b.ready().await;
        assert_eq!(b.inspect("s").await.is_ok(), taken);
        assert_eq!(b.fake.memory().snapshots.len(), usize::from(taken));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_without_a_record_are_deleted_and_records_without_one_are_in_error() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    let kept = b.snapshot("v", "kept").await.unwrap();
    let lost = b.snapshot("v", "lost").await.unwrap();
    b.stop_control().await;
    {
        let mut memory = b.fake.memory();
        memory.snapshots.remove(&lost);
        let foreign = Snapshot {
            snapshot_id: "5f0c9a52-7c1e-4f0b-9d3e-6b65656c626c".into(),
            volume_id: id,
            complete: true,
            ..Default::default()
        };
        memory
            .snapshots
            .insert(foreign.snapshot_id.clone(), foreign);
    }
    b.start_control().await.unwrap();
    b.ready().await;
    let there: Vec<String> = b.fake.memory().snapshots.keys().cloned().collect();
    assert_eq!(there, [kept]);
    let shown = b.inspect("lost").await.unwrap();
    assert_eq!(shown.state(), VolumeState::Error);
    assert!(shown.error.contains("missing"), "{}", shown.error);
    refused(
        b.restore("v", "lost").await,
        Code::FailedPrecondition,
        "missing",
    );
    b.delete("lost").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_is_completed() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.snapshot("v", "s").await.unwrap();
    b.update("v", &[], Some(2 * MIB)).await.unwrap();
    b.fake
        .memory()
        .refuse
        .insert("restore_volume", (Code::Unavailable, "gone"));
    refused(b.restore("v", "s").await, Code::Unavailable, "gone");
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Restore);
    b.fake.memory().refuse.clear();
    b.restart_control().await;
    let shown = b.inspect("v").await.unwrap();
    assert_eq!(shown.state(), VolumeState::Detached);
    assert_eq!(shown.spec.unwrap().size, MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_clone_of_a_volume_is_completed() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.fake
        .memory()
        .refuse
        .insert("clone_volume", (Code::Unavailable, "gone"));
    refused(b.clone_of("v", "c").await, Code::Unavailable, "gone");
    b.fake.memory().refuse.clear();
    b.restart_control().await;
    assert_eq!(b.inspect("c").await.unwrap().state(), VolumeState::Detached);
    assert!(b.fake.memory().snapshots.is_empty());
}
