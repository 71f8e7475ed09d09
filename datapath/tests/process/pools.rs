//! Pools of several drives: some missing, some new, some replaced.

use crate::harness::*;
use keelblock_api::datapath::{self as proto, DriveSpec, Health};
use tonic::Code;

fn paths(dir: &tempfile::TempDir) -> [String; 2] {
    [1, 2].map(|n| dir.path().join(format!("d{n}")).display().to_string())
}

/// One volume of one lane on each drive, with a block of data in each; 16 lanes of a third are on both.
async fn filled(process: &mut Process, paths: &[String]) {
    process.open_files(paths, true, false).await.unwrap();
    for id in [VOLUME, OTHER] {
        process.create(id, 8 * MIB).await.unwrap();
        process.export_volume(id, 4096).await.unwrap();
        let mut host = process.connect();
        let data = pattern(id.as_bytes()[35], 1 << 20);
        host.queues[0].write(&host.namespace, 0, &data).unwrap();
        drop(host);
        process.unexport().await;
    }
    process.create(WIDE, 1024 * MIB).await.unwrap();
}

const WIDE: &str = "6b65656c-0000-4000-8000-000000000003";

#[tokio::test]
async fn a_missing_drive_takes_only_its_lanes() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(&dir);
    let mut process = Process::start(dir.path()).await;
    filled(&mut process, &paths).await;
    assert_eq!(process.terminate(), Some(0));

    std::fs::rename(&paths[1], dir.path().join("away")).unwrap();
    let mut process = Process::start(dir.path()).await;
    let refused = process.open_files(&paths, false, false).await;
    assert_eq!(code(refused), Code::NotFound);
    let pool = process.open_files(&paths, false, true).await.unwrap();
    let health: Vec<Health> = pool.drives.iter().map(|d| d.health()).collect();
    assert_eq!(health, [Health::Online, Health::Failed]);
    assert!(!pool.drives[1].error.is_empty(), "{pool:?}");
    let volumes = process.volumes().await;
    let complete = |v: &proto::Volume| v.lanes.iter().all(|l| l.error.is_empty());
    let whole: Vec<&proto::Volume> = volumes.iter().filter(|v| complete(v)).collect();
    assert_eq!((volumes.len(), whole.len()), (2, 1), "{volumes:?}");
    assert_eq!(
        code(process.export_volume(WIDE, 4096).await),
        Code::DataLoss
    );
    let id = whole[0].volume_id.clone();
    process.export_volume(&id, 4096).await.unwrap();
    let mut host = process.connect();
    let got = host.queues[0].read(&host.namespace, 0, 256).unwrap();
    assert!(got == pattern(id.as_bytes()[35], 1 << 20));

    // It comes back while the others serve.
    std::fs::rename(dir.path().join("away"), &paths[1]).unwrap();
    let pool = process.open_files(&paths, false, true).await.unwrap();
    assert!(pool.drives.iter().all(|d| d.health() == Health::Online));
    let volumes = process.volumes().await;
    assert_eq!(
        (
            volumes.len(),
            volumes.iter().filter(|v| complete(v)).count()
        ),
        (3, 3)
    );
    let got = host.queues[0].read(&host.namespace, 0, 256).unwrap();
    assert!(got == pattern(id.as_bytes()[35], 1 << 20));
    drop(host);
    process.unexport().await;
    process.export_volume(WIDE, 4096).await.unwrap();
}

#[tokio::test]
async fn a_lost_drive_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(&dir);
    let mut process = Process::start(dir.path()).await;
    filled(&mut process, &paths).await;
    let replace = |id: &str| proto::ReplaceDriveRequest {
        pool_id: "p".into(),
        drive_id: id.into(),
        replacement: Some(DriveSpec {
            drive_id: "d3".into(),
            path: dir.path().join("d3").display().to_string(),
            size_bytes: 64 * MIB,
        }),
    };
    let works = process.client.replace_drive(replace("d2")).await;
    assert_eq!(code(works), Code::FailedPrecondition);
    assert_eq!(process.terminate(), Some(0));

    std::fs::write(&paths[1], vec![0x55; 64 << 20]).unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open_files(&paths, false, true).await.unwrap();
    assert_eq!(
        code(process.create(LATER, 8 * MIB).await),
        Code::FailedPrecondition
    );
    let replaced = process.client.replace_drive(replace("d2")).await;
    let replaced = replaced.unwrap().into_inner();
    let ids: Vec<String> = replaced
        .pool
        .unwrap()
        .drives
        .into_iter()
        .map(|d| d.drive_id)
        .collect();
    assert_eq!(ids, ["d1", "d3"]);
    assert_eq!(replaced.lost_volume_ids, [WIDE]);
    process.delete(WIDE).await.unwrap();
    process.create(LATER, 1024 * MIB).await.unwrap();
    process.export_volume(LATER, 4096).await.unwrap();
    let mut host = process.connect();
    for slice in 0..16 {
        host.queues[0]
            .write(&host.namespace, slice * 4096, &[slice as u8; 4096])
            .unwrap();
    }
    host.queues[0].flush(&host.namespace).unwrap();
}

const LATER: &str = "6b65656c-0000-4000-8000-000000000004";

#[tokio::test]
async fn drives_are_added_grown_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(&dir);
    let mut process = Process::start(dir.path()).await;
    process.open_files(&paths[..1], true, false).await.unwrap();
    process.create(VOLUME, 8 * MIB).await.unwrap();
    let add = proto::AddDriveRequest {
        pool_id: "p".into(),
        drive: Some(DriveSpec {
            drive_id: "d2".into(),
            path: paths[1].clone(),
            size_bytes: 64 * MIB,
        }),
    };
    let pool = process.client.add_drive(add.clone()).await.unwrap();
    let before = pool.into_inner();
    assert_eq!(before.drives.len(), 2);
    let again = process.client.add_drive(add).await.unwrap().into_inner();
    assert_eq!(again.drives.len(), 2);

    let grow = |size_bytes| proto::GrowDriveRequest {
        pool_id: "p".into(),
        drive_id: "d2".into(),
        size_bytes,
    };
    let small = process.client.grow_drive(grow(32 * MIB)).await;
    assert_eq!(code(small), Code::InvalidArgument);
    for _ in 0..2 {
        let grown = process.client.grow_drive(grow(160 * MIB)).await.unwrap();
        assert_eq!(grown.into_inner().size_bytes, 160 * MIB);
    }
    let pool = process.pools().await.remove(0);
    assert!(pool.total_bytes > before.total_bytes + 90 * MIB, "{pool:?}");

    let remove = |id: &str| proto::RemoveDriveRequest {
        pool_id: "p".into(),
        drive_id: id.into(),
    };
    let used = process.client.remove_drive(remove("d1")).await;
    assert_eq!(code(used), Code::FailedPrecondition);
    for _ in 0..2 {
        let pool = process.client.remove_drive(remove("d2")).await.unwrap();
        assert_eq!(pool.into_inner().drives.len(), 1);
    }
    assert_eq!(process.terminate(), Some(0));
    let mut process = Process::start(dir.path()).await;
    process.open_files(&paths[..1], false, false).await.unwrap();
    process.create(OTHER, 8 * MIB).await.unwrap();
}
