//! Drives of the pool, and its size.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::admin::*;
use keelblock_api::datapath::DriveState;
use keelblock_api::openstorage::SdkNodeInspectCurrentRequest;
use keelblock_api::openstorage::sdk_storage_pool::{OperationStatus, ResizeOperationType};
use keelblock_api::openstorage::sdk_storage_pool_resize_request::ResizeFactor;
use keelblock_api::openstorage::{SdkStoragePoolResizeRequest, VolumeStatus};
use tonic::{Code, Status};

const GIB: u64 = 1 << 30;

async fn add(b: &Bench, path: &str, size_bytes: u64) -> Result<DriveStatus, Status> {
    let request = AddDriveRequest {
        path: path.into(),
        size_bytes,
    };
    let reply = b.admin().add_drive(request).await?;
    Ok(reply.into_inner().drive.unwrap())
}

async fn evacuate(b: &Bench, drive: &str, cancel: bool) -> Result<DriveStatus, Status> {
    let drive = drive.into();
    let reply = b
        .admin()
        .evacuate_drive(EvacuateDriveRequest { drive, cancel })
        .await?;
    Ok(reply.into_inner().drive.unwrap())
}

async fn remove(b: &Bench, drive: &str) -> Result<(), Status> {
    let drive = drive.into();
    b.admin()
        .remove_drive(RemoveDriveRequest { drive })
        .await
        .map(drop)
}

async fn paths(b: &Bench) -> Vec<String> {
    let drives = b.pool().await.drives;
    drives.into_iter().map(|d| d.path).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_is_added_emptied_and_removed() {
    let mut b = Bench::new(Drive::File).await;
    let first = b.pool().await.drives[0].path.clone();
    refused(
        evacuate(&b, &first, false).await,
        Code::FailedPrecondition,
        "add another",
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("second.img").display().to_string();
    refused(
        add(&b, "second.img", GIB).await,
        Code::InvalidArgument,
        "path",
    );
    refused(
        add(&b, &path, 0).await,
        Code::InvalidArgument,
        "give a size",
    );
    refused(
        add(&b, "memory:1048576", 0).await,
        Code::InvalidArgument,
        "memory",
    );
    let added = add(&b, &path, GIB).await.unwrap();
    assert_eq!(added.state, "in-use");
    refused(
        add(&b, &path, GIB).await,
        Code::AlreadyExists,
        &added.drive_id,
    );
    b.restart_control().await;
    assert_eq!(
        paths(&b).await,
        [first.clone(), path.clone()],
        "it stays in the pool"
    );
    b.fake.restart();
    b.down().await;
    b.ready().await;
    assert_eq!(paths(&b).await, [first.clone(), path.clone()]);

    assert_eq!(
        evacuate(&b, &first, false).await.unwrap().state,
        "evacuating"
    );
    refused(remove(&b, &first).await, Code::FailedPrecondition, "lanes");
    assert_eq!(evacuate(&b, &first, true).await.unwrap().state, "in-use");
    let id = evacuate(&b, &first, false).await.unwrap().drive_id;
    b.fake
        .memory()
        .states
        .insert(id.clone(), DriveState::DriveEvacuated);
    remove(&b, &id).await.unwrap();
    assert_eq!(paths(&b).await, [path.as_str()]);
    refused(remove(&b, &first).await, Code::NotFound, &first);
    b.restart_control().await;
    assert_eq!(
        paths(&b).await,
        [path.as_str()],
        "the command line does not bring it back"
    );
    add(&b, &first, GIB).await.unwrap();
    assert_eq!(paths(&b).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_add_is_completed_and_a_refused_one_leaves_nothing() {
    let mut b = Bench::new(Drive::File).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("second.img").display().to_string();
    b.fake
        .memory()
        .refuse
        .insert("add_drive", (Code::FailedPrecondition, "other data"));
    refused(
        add(&b, &path, GIB).await,
        Code::FailedPrecondition,
        "other data",
    );
    assert_eq!(paths(&b).await.len(), 1);
    b.fake
        .memory()
        .refuse
        .insert("add_drive", (Code::Unavailable, "gone"));
    refused(add(&b, &path, GIB).await, Code::Unavailable, "gone");
    b.fake.memory().refuse.clear();
    b.restart_control().await;
    assert_eq!(paths(&b).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_drive_is_replaced_and_its_volumes_say_so() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", 1 << 20).await;
    let first = b.pool().await.drives[0].clone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.img").display().to_string();
    let replace = async |b: &Bench, path: &str| {
        let request = ReplaceDriveRequest {
            drive: first.drive_id.clone(),
            path: path.into(),
            size_bytes: GIB,
        };
        b.admin()
            .replace_drive(request)
            .await
            .map(|r| r.into_inner())
    };
    refused(
        replace(&b, &path).await,
        Code::FailedPrecondition,
        "evacuate",
    );
    b.fake.memory().failed.push(first.drive_id.clone());
    // It is not even there any more.
    b.config().drives[0].size_bytes = 0;
    b.restart_control().await;
    let pool = b.pool().await;
    assert!(!pool.drives[0].online);
    let replaced = replace(&b, &path).await.unwrap();
    assert_eq!(replaced.drive.unwrap().path, path);
    assert_eq!(replaced.lost_volume_ids.len(), 1);
    let shown = b.inspect("v").await.unwrap();
    assert_eq!(shown.status(), VolumeStatus::Down);
    assert!(shown.error.contains(&first.path), "{}", shown.error);
    b.restart_control().await;
    assert_eq!(paths(&b).await, [path]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_by_its_files_or_by_one_more() {
    let b = Bench::new(Drive::File).await;
    let pool = b.pool().await;
    // The fake makes no file.
    std::fs::write(&pool.drives[0].path, b"").unwrap();
    let resize = async |uuid: &str, factor, how: ResizeOperationType| {
        let request = SdkStoragePoolResizeRequest {
            uuid: uuid.into(),
            resize_factor: factor,
            operation_type: how.into(),
            skip_wait_for_clean_volumes: true,
        };
        b.pools().resize(request).await.map(drop)
    };
    let auto = ResizeOperationType::ResizeTypeAuto;
    let size = |bytes| Some(ResizeFactor::Size(bytes));
    let id = pool.pool_id.as_str();
    let total = pool.total_bytes;
    refused(
        resize("", size(total), auto).await,
        Code::InvalidArgument,
        "uuid",
    );
    refused(
        resize("none", size(total), auto).await,
        Code::NotFound,
        "none",
    );
    refused(
        resize(id, None, auto).await,
        Code::InvalidArgument,
        "size in bytes",
    );
    refused(
        resize(id, size(total - 1), auto).await,
        Code::InvalidArgument,
        "shrink",
    );
    resize(id, size(total), auto).await.unwrap();
    resize(id, size(total + GIB), auto).await.unwrap();
    assert_eq!(b.pool().await.total_bytes, total + GIB);
    let grow = Some(ResizeFactor::Percentage(50));
    resize(id, grow, ResizeOperationType::ResizeTypeAddDisk)
        .await
        .unwrap();
    let grown = b.pool().await;
    assert_eq!(grown.drives.len(), 2);
    assert_eq!(grown.drives[1].path, format!("{}.2", grown.drives[0].path));
    b.fake
        .memory()
        .refuse
        .insert("grow_drive", (Code::ResourceExhausted, "the disk is full"));
    refused(
        resize(id, size(8 * total), auto).await,
        Code::ResourceExhausted,
        "full",
    );
    let node = b
        .nodes()
        .inspect_current(SdkNodeInspectCurrentRequest {})
        .await;
    let node = node.unwrap().into_inner().node.unwrap();
    let last = node.pools[0].last_operation.clone().unwrap();
    assert_eq!(last.status(), OperationStatus::OperationFailed);
    assert!(last.msg.contains("full"));
    let request = GrowDriveRequest {
        drive: "/none".into(),
        size_bytes: 0,
    };
    refused(b.admin().grow_drive(request).await, Code::NotFound, "/none");
}
