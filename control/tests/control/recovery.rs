//! Either side goes away, at the worst moment, and comes back.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::admin::NodeStatusRequest;
use keelblock_api::openstorage::*;
use keelblock_control::run::{Control, RunError};
use tonic::Code;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_path_that_comes_back_gets_everything_again() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.attach("v").await;
    b.fake.kill();
    b.down().await;
    assert_eq!(b.inspect("v").await.unwrap().status(), VolumeStatus::Down);
    assert!(
        !b.admin()
            .node_status(NodeStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .datapath_up
    );
    let node = b
        .nodes()
        .inspect_current(SdkNodeInspectCurrentRequest {})
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    assert_eq!(node.status(), Status::StorageDown);
    refused(
        b.try_create(
            "w",
            VolumeSpec {
                size: MIB,
                ..Default::default()
            },
        )
        .await,
        Code::Unavailable,
        "keelblock-datapath",
    );
    refused(
        b.update("v", &[], Some(2 * MIB)).await,
        Code::Unavailable,
        "data path",
    );
    refused(b.detach("v").await, Code::Unavailable, "data path");
    b.update("v", &[("label", "set meanwhile")], None)
        .await
        .unwrap();
    b.fake.restart();
    b.ready().await;
    let exports_volumes_formats = {
        let memory = b.fake.memory();
        let formats = memory.pools.values().filter(|p| p.format).count();
        (memory.exports.len(), memory.volumes.len(), formats)
    };
    assert_eq!(
        exports_volumes_formats,
        (1, 1, 0),
        "a drive that is known is never formatted"
    );
    assert_eq!(b.inspect(&id).await.unwrap().status(), VolumeStatus::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_process_that_comes_back_finds_everything_and_tears_nothing_down() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.create("w", MIB).await;
    b.attach("v").await;
    b.stop_control().await;
    assert_eq!(b.fake.memory().exports.len(), 1, "hosts go on");
    b.start_control().await.unwrap();
    b.ready().await;
    assert_eq!(b.fake.memory().exports.len(), 1);
    assert_eq!(b.create("v", MIB).await, id);
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Attached);
    assert_eq!(
        b.volumes()
            .enumerate(SdkVolumeEnumerateRequest {})
            .await
            .unwrap()
            .into_inner()
            .volume_ids
            .len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_detached_meanwhile_is_not_exported_and_foreign_volumes_are_left_alone() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.attach("v").await;
    let export = b.fake.memory().exports.values().next().unwrap().clone();
    b.detach("v").await.unwrap();
    let foreign = keelblock_api::datapath::Volume {
        volume_id: "5f0c9a52-7c1e-4f0b-9d3e-6b65656c626c".into(),
        size_bytes: MIB,
        ..Default::default()
    };
    b.fake
        .memory()
        .volumes
        .insert(foreign.volume_id.clone(), foreign);
    b.stop_control().await;
    // As if the answer to the unexport had been lost.
    b.fake.memory().exports.insert(export.nqn.clone(), export);
    b.start_control().await.unwrap();
    b.ready().await;
    assert!(b.fake.memory().exports.is_empty());
    assert_eq!(b.fake.memory().volumes.len(), 2);
    assert_eq!(b.inspect(&id).await.unwrap().status(), VolumeStatus::Up);
}

/// The data path dies in the middle of a create: the volume is completed when it is back, or by the same create again.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_create_is_completed() {
    let mut b = Bench::new(Drive::File).await;
    b.fake.memory().hang = Some("create_volume");
    let mut volumes = b.volumes();
    let spec = Some(VolumeSpec {
        size: MIB,
        ..Default::default()
    });
    let request = SdkVolumeCreateRequest {
        name: "v".into(),
        spec,
        ..Default::default()
    };
    let creating = tokio::spawn(async move { volumes.create(request).await });
    while b.inspect("v").await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Pending);
    b.fake.kill();
    refused(creating.await.unwrap(), Code::Unavailable, "data path");
    b.down().await;
    b.fake.memory().hang = None;
    b.fake.restart();
    b.ready().await;
    let volume = b.inspect("v").await.unwrap();
    assert_eq!(volume.state(), VolumeState::Detached);
    assert_eq!(b.fake.memory().volumes.len(), 1);
    assert_eq!(b.create("v", MIB).await, volume.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_delete_is_completed() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.fake.memory().hang = Some("delete_volume");
    let mut volumes = b.volumes();
    let request = SdkVolumeDeleteRequest {
        volume_id: "v".into(),
    };
    let deleting = tokio::spawn(async move { volumes.delete(request).await });
    while b.inspect("v").await.is_ok() {
        tokio::task::yield_now().await;
    }
    b.fake.kill();
    refused(deleting.await.unwrap(), Code::Unavailable, "data path");
    b.down().await;
    assert!(b.fake.memory().volumes.contains_key(&id));
    b.fake.memory().hang = None;
    b.fake.restart();
    b.ready().await;
    assert!(b.fake.memory().volumes.is_empty());
    assert_ne!(b.create("v", MIB).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_resize_is_settled_by_what_the_data_path_has() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.stop_control().await;
    b.fake.memory().volumes.get_mut(&id).unwrap().size_bytes = 4 * MIB;
    b.start_control().await.unwrap();
    b.ready().await;
    assert_eq!(b.inspect("v").await.unwrap().spec.unwrap().size, 4 * MIB);
}

/// Data that are gone are said to be gone; an empty volume in their place would be wrong data.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_a_drive_lost_is_in_error_and_not_made_anew() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("lost", MIB).await;
    b.create("kept", MIB).await;
    b.attach("lost").await;
    b.attach("kept").await;
    let lost = b.fake.memory().volumes.remove(&id).unwrap();
    b.fake.restart();
    b.down().await;
    b.ready().await;
    let volume = b.inspect("lost").await.unwrap();
    assert_eq!(
        (volume.status(), volume.state()),
        (VolumeStatus::Down, VolumeState::Error)
    );
    assert!(volume.error.contains("missing"), "{}", volume.error);
    assert!(!b.fake.memory().volumes.contains_key(&id));
    assert_eq!(
        b.fake.memory().exports.len(),
        1,
        "the other one is not affected"
    );
    refused(
        b.try_attach("lost", None).await,
        Code::FailedPrecondition,
        "in error",
    );
    b.fake.memory().volumes.insert(id, lost);
    b.fake.restart();
    b.down().await;
    b.ready().await;
    assert_eq!(
        b.inspect("lost").await.unwrap().state(),
        VolumeState::Attached,
        "the drive came back"
    );
    assert_eq!(b.fake.memory().exports.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_in_memory_come_back_empty() {
    let mut b = Bench::new(Drive::Memory).await;
    let id = b.create("v", MIB).await;
    b.attach("v").await;
    b.fake.memory().volumes.clear();
    b.fake.memory().formatted.clear();
    b.fake.restart();
    b.down().await;
    b.ready().await;
    assert!(b.fake.memory().volumes.contains_key(&id));
    assert_eq!(b.fake.memory().exports.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_drive_without_its_superblock_is_refused() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.stop_control().await;
    b.fake.memory().formatted.clear();
    b.fake.restart();
    let control = Control::start(b.config()).await.unwrap();
    let error = control.run(std::future::pending()).await.unwrap_err();
    assert!(
        matches!(&error, RunError::Refused(_)) && error.to_string().contains("superblock"),
        "{error}"
    );
    assert!(b.fake.memory().formatted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_drives_of_a_pool_must_be_given_and_new_ones_may_be() {
    let mut b = Bench::new(Drive::File).await;
    let first = b.config().drives[0].clone();
    let second = keelblock_control::config::DriveSpec {
        path: format!("{}-2", first.path),
        size_bytes: 4096,
    };
    b.stop_control().await;
    b.config().drives.push(second.clone());
    b.start_control().await.unwrap();
    b.ready().await;
    assert_eq!(b.fake.memory().formatted.len(), 2);
    b.stop_control().await;
    b.config().drives = vec![second];
    let error = Control::start(b.config())
        .await
        .unwrap()
        .run(std::future::pending())
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&first.path), "{error}");
}

/// And then done: what the data path has is looked at again, though the connection to it never broke.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_never_ends_is_given_up_and_done_later() {
    let mut b = Bench::new(Drive::File).await;
    b.fake.memory().hang = Some("create_volume");
    let spec = VolumeSpec {
        size: MIB,
        ..Default::default()
    };
    refused(
        b.try_create("v", spec).await,
        Code::Unavailable,
        "no answer",
    );
    b.fake.memory().hang = None;
    b.down().await;
    b.ready().await;
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Detached);
    assert_eq!(b.fake.memory().volumes.len(), 1);
}

/// A caller that goes away does not leave a change half done.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_ends_without_its_caller() {
    let b = Bench::new(Drive::File).await;
    b.fake.memory().hang = Some("create_volume");
    let mut volumes = b.volumes();
    let spec = Some(VolumeSpec {
        size: MIB,
        ..Default::default()
    });
    let request = SdkVolumeCreateRequest {
        name: "v".into(),
        spec,
        ..Default::default()
    };
    let creating = tokio::spawn(async move { volumes.create(request).await });
    while b.inspect("v").await.is_err() {
        tokio::task::yield_now().await;
    }
    creating.abort();
    b.fake.memory().hang = None;
    for _ in 0..300 {
        if b.inspect("v").await.unwrap().state() == VolumeState::Detached {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("it stays half made");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_is_answered_without_a_data_path() {
    let mut b = Bench::without_datapath().await;
    assert!(
        b.volumes()
            .enumerate(SdkVolumeEnumerateRequest {})
            .await
            .unwrap()
            .into_inner()
            .volume_ids
            .is_empty()
    );
    let request = VolumeSpec {
        size: MIB,
        ..Default::default()
    };
    refused(
        b.try_create("v", request).await,
        Code::Unavailable,
        "dp.sock",
    );
    b.delete("v").await.unwrap();
    b.fake.restart();
    b.ready().await;
    b.create("v", MIB).await;
}
