//! Snapshots and what is made of them, as the control process asks for them and as hosts see them.

use crate::harness::*;
use tonic::Code;

const S1: &str = "6b65656c-0000-4000-8000-0000000000a1";
const S2: &str = "6b65656c-0000-4000-8000-0000000000a2";
const CLONE: &str = "6b65656c-0000-4000-8000-0000000000c1";
const BLOCK: usize = 4096;

fn write(host: &mut Host, block: u64, seed: u8) {
    let data = pattern(seed, BLOCK);
    host.queues[usize::from(seed) % 2]
        .write(&host.namespace, block, &data)
        .unwrap();
}

fn read(host: &mut Host, block: u64) -> Vec<u8> {
    host.queues[0].read(&host.namespace, block, 1).unwrap()
}

/// A volume over two drives: its snapshots are of all its lanes, and what is made of them too.
#[tokio::test]
async fn a_volume_goes_back_and_branches() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let paths = [1, 2].map(|n| dir.path().join(format!("d{n}")).display().to_string());
    process.open_files(&paths, true, false).await.unwrap();
    // Large enough for 16 lanes: they are on both drives.
    process.create(VOLUME, 1024 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    // A block in each of the first slices.
    for slice in 0..8u64 {
        write(&mut host, slice * 4096, 10 + slice as u8);
    }
    let taken = process.snapshot(&[(VOLUME, S1)]).await.unwrap();
    assert!(taken[0].complete, "{taken:?}");
    assert_eq!(taken[0].size_bytes, 1024 * MIB);
    assert_eq!(process.snapshot(&[(VOLUME, S1)]).await.unwrap(), taken);
    write(&mut host, 0, 50);
    write(&mut host, 2 * 4096, 52);
    write(&mut host, 9 * 4096 + 1, 59);
    host.queues[0]
        .deallocate(&host.namespace, &[(3 * 4096, 1)])
        .unwrap();
    process.snapshot(&[(VOLUME, S2)]).await.unwrap();
    assert_eq!(process.snapshots().await.len(), 2);

    let block = BLOCK as u64;
    let at = |slice: u64| slice * 4096 * block;
    let changed = [
        (at(0), block, true),
        (at(2), block, true),
        (at(3), block, false),
        (at(9) + block, block, true),
    ];
    assert_eq!(process.diff(VOLUME, S1, S2).await, changed);
    assert_eq!(process.diff(VOLUME, S1, "").await, changed);
    assert_eq!(process.diff(VOLUME, "", S1).await.len(), 8);
    assert_eq!(process.diff(VOLUME, S2, "").await, []);

    // The clone is of the first state, and goes its own way.
    let clone = process.clone_volume(CLONE, VOLUME, S1).await.unwrap();
    assert_eq!(clone.size_bytes, 1024 * MIB);
    assert_eq!(
        process.clone_volume(CLONE, VOLUME, S1).await.unwrap(),
        clone
    );
    assert_eq!(
        code(process.clone_volume(CLONE, VOLUME, S2).await),
        Code::AlreadyExists
    );
    let exported = process.restore(VOLUME, S1).await;
    assert_eq!(code(exported), Code::FailedPrecondition);
    drop(host);
    process.unexport().await;
    process.export_volume(CLONE, 4096).await.unwrap();
    let mut host = process.connect();
    for slice in 0..8u64 {
        assert_eq!(
            read(&mut host, slice * 4096),
            pattern(10 + slice as u8, BLOCK)
        );
    }
    assert_eq!(read(&mut host, 9 * 4096 + 1), vec![0; BLOCK]);
    write(&mut host, 4096, 77);
    drop(host);
    process.unexport().await;

    process.restore(VOLUME, S1).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    for slice in 0..8u64 {
        assert_eq!(
            read(&mut host, slice * 4096),
            pattern(10 + slice as u8, BLOCK)
        );
    }
    drop(host);
    process.unexport().await;

    // All of it is there after an end, and goes in any order.
    assert_eq!(process.terminate(), Some(0));
    let mut process = Process::start(dir.path()).await;
    process.open_files(&paths, false, false).await.unwrap();
    assert_eq!(process.snapshots().await.len(), 2);
    process.delete_snapshot(VOLUME, S1).await.unwrap();
    process.delete_snapshot(VOLUME, S1).await.unwrap();
    process.delete(VOLUME).await.unwrap();
    let left = process.snapshots().await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].snapshot_id, S2);
    process.export_volume(CLONE, 4096).await.unwrap();
    let mut host = process.connect();
    assert_eq!(read(&mut host, 4096), pattern(77, BLOCK));
    assert_eq!(read(&mut host, 0), pattern(10, BLOCK));
    drop(host);
    process.unexport().await;
    process.delete_snapshot(VOLUME, S2).await.unwrap();
    process.delete(CLONE).await.unwrap();
    assert_eq!(process.snapshots().await, []);
    process.data_goes().await;
}

/// Ids of snapshots are of one volume each; one command takes several.
#[tokio::test]
async fn snapshots_of_several_volumes_in_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    let paths = [1, 2].map(|n| dir.path().join(format!("d{n}")).display().to_string());
    process.open_files(&paths, true, false).await.unwrap();
    process.create(VOLUME, 8 * MIB).await.unwrap();
    process.create(OTHER, 8 * MIB).await.unwrap();
    let taken = process.snapshot(&[(VOLUME, S1), (OTHER, S2)]).await;
    assert_eq!(taken.unwrap().len(), 2);
    assert_eq!(
        code(process.snapshot(&[(OTHER, S1)]).await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(process.snapshot(&[(VOLUME, S1), (VOLUME, S2)]).await),
        Code::InvalidArgument
    );
    assert_eq!(code(process.snapshot(&[(CLONE, S2)]).await), Code::NotFound);
    assert_eq!(
        code(process.clone_volume(CLONE, VOLUME, S2).await),
        Code::NotFound
    );
}

#[tokio::test]
async fn space_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 32 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let data = pattern(1, 64 * BLOCK);
    host.queues[0].write(&host.namespace, 0, &data).unwrap();
    process.snapshot(&[(VOLUME, S1)]).await.unwrap();
    host.queues[0]
        .write(&host.namespace, 0, &data[..8 * BLOCK])
        .unwrap();
    host.queues[0]
        .write(&host.namespace, 100, &data[..4 * BLOCK])
        .unwrap();
    let block = BLOCK as u64;
    let usage = process.usage(VOLUME, S1).await;
    assert_eq!(usage.used_bytes, 64 * block);
    assert_eq!(usage.unique_bytes, 8 * block);
    assert_eq!(usage.unique_metadata_bytes, block, "its leaf");
    let usage = process.usage(VOLUME, "").await;
    assert_eq!(usage.used_bytes, 68 * block);
    assert_eq!(usage.unique_bytes, 12 * block);
    assert_eq!(usage.unique_metadata_bytes, block, "its leaf");
    let pool = process.pools().await.remove(0);
    assert_eq!(pool.used_bytes - pool.metadata_bytes, 76 * block);
    // Two leaves, and a page of the catalogue.
    assert_eq!(pool.metadata_bytes, 3 * block);
    host.queues[0]
        .deallocate(&host.namespace, &[(0, 8192)])
        .unwrap();
    process.delete_snapshot(VOLUME, S1).await.unwrap();
    drop(host);
    process.unexport().await;
    process.delete(VOLUME).await.unwrap();
    process.data_goes().await;
}

/// A drive that is full refuses writes that need space, and takes them again when some was freed.
#[tokio::test]
async fn a_full_pool_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 256 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let data = pattern(9, 1 << 20);
    let mut written = 0u64;
    let refused = loop {
        match host.queues[0].write(&host.namespace, written * 256, &data) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 64, "more than the drive holds");
    };
    let said = refused.to_string();
    assert!(said.contains("Capacity Exceeded"), "{said}");
    assert!(written > 32, "{written} MiB fitted");
    // What is there can be read and written over.
    let got = host.queues[1].read(&host.namespace, 0, 256).unwrap();
    assert!(got == data);
    host.queues[1].write(&host.namespace, 0, &data).unwrap();
    host.queues[0].flush(&host.namespace).unwrap();
    host.queues[0]
        .deallocate(&host.namespace, &[(0, 16 * 256)])
        .unwrap();
    let begun = std::time::Instant::now();
    while let Err(e) = host.queues[0].write(&host.namespace, 200 * 256, &data) {
        assert!(begun.elapsed() < PATIENCE, "{e}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let got = host.queues[1]
        .read(&host.namespace, 200 * 256, 256)
        .unwrap();
    assert!(got == data);
    let got = host.queues[1].read(&host.namespace, 16 * 256, 256).unwrap();
    assert!(got == data);
}
