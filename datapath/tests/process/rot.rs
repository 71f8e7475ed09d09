//! A bit of a block rots: reads of it are refused, the control process hears of it, and a scrub finds it unasked.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::harness::*;
use keelblock_api::datapath::{self as proto, ScrubState, event::What};
use tonic::Code;

const BLOCK: usize = 4096;
const SCRUB: &str = "6b65656c-0000-4000-8000-0000000005c1";

#[tokio::test]
async fn a_rotten_block_is_refused_reported_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 32 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    for block in 0..600u64 {
        let data = pattern(block as u8, 4096);
        host.queues[0].write(&host.namespace, block, &data).unwrap();
    }
    let marked = [0xa7; 4096];
    host.queues[0].write(&host.namespace, 300, &marked).unwrap();
    drop(host);
    assert_eq!(process.terminate(), Some(0));

    let content = std::fs::read(drive(&dir)).unwrap();
    let places: Vec<usize> = (0..content.len() / 4096)
        .filter(|n| content[n * 4096..][..4096] == marked)
        .collect();
    assert_eq!(places.len(), 1, "a block is written once");
    let file = std::fs::OpenOptions::new().write(true).open(drive(&dir));
    let at = places[0] as u64 * 4096 + 77;
    file.unwrap().write_all_at(&[0xa6], at).unwrap();

    let mut process = Process::start(dir.path()).await;
    let watch = process.client.watch(proto::WatchRequest {}).await;
    let mut events = watch.unwrap().into_inner();
    process.open(&drive(&dir), 0, false).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let refused = host.queues[0].read(&host.namespace, 300, 1).unwrap_err();
    assert!(
        refused.to_string().contains("Unrecovered Read Error"),
        "{refused}"
    );
    let around = host.queues[1].read(&host.namespace, 301, 1).unwrap();
    assert_eq!(around, pattern(45, 4096));
    loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(What::ChecksumError(error)) = event.what {
            assert_eq!((error.drive_id.as_str(), error.block), ("d1", 300));
            assert_eq!(error.physical_block, places[0] as u64);
            assert_eq!(error.volume_id, VOLUME);
            break;
        }
    }

    let start = proto::StartScrubRequest {
        pool_id: "p".into(),
        scrub_id: SCRUB.into(),
        rate_bytes_per_s: 0,
    };
    process.client.start_scrub(start.clone()).await.unwrap();
    let begun = Instant::now();
    let done = loop {
        let status = process.client.start_scrub(start.clone()).await.unwrap();
        let status = status.into_inner();
        if status.state() == ScrubState::ScrubDone {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
    };
    assert_eq!((done.errors, done.scanned_bytes), (1, 600 * 4096));
    assert!(process.pools().await[0].drives[0].checksum_errors >= 2);
    let other = proto::ScrubRequest {
        pool_id: "p".into(),
        scrub_id: VOLUME.into(),
    };
    assert_eq!(
        code(process.client.pause_scrub(other).await),
        Code::NotFound
    );
    // What is written anew is whole again.
    host.queues[0].write(&host.namespace, 300, &marked).unwrap();
    assert_eq!(
        host.queues[1].read(&host.namespace, 300, 1).unwrap(),
        marked
    );
}

/// A page of the map rots: what it leads to is refused, everything else goes on, and what is written anew is whole.
#[tokio::test]
async fn a_rotten_page_is_told_of_and_the_volume_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path()).await;
    process.open(&drive(&dir), 64 * MIB, true).await.unwrap();
    process.create(VOLUME, 32 * MIB).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    let data = pattern(1, 300 * BLOCK);
    host.queues[0].write(&host.namespace, 0, &data).unwrap();
    drop(host);
    assert_eq!(process.terminate(), Some(0));

    let content = std::fs::read(drive(&dir)).unwrap();
    // Kind 2 is a leaf: the one with index 0 has the lane's blocks 0 to 151. Of two, the newer one is of the newer checkpoint.
    let checkpoint = |at: &usize| {
        content[at + 24..at + 32]
            .iter()
            .rev()
            .copied()
            .collect::<Vec<u8>>()
    };
    let pages = (0..content.len())
        .step_by(4096)
        .filter(|at| content[*at..at + 5] == *b"KPG1\x02" && content[at + 8..at + 16] == [0; 8]);
    let page = pages.max_by_key(checkpoint).expect("a leaf");
    let file = std::fs::OpenOptions::new().write(true).open(drive(&dir));
    let rotten = content[page + 200] ^ 4;
    file.unwrap()
        .write_all_at(&[rotten], page as u64 + 200)
        .unwrap();

    let mut process = Process::start(dir.path()).await;
    let watch = process.client.watch(proto::WatchRequest {}).await;
    let mut events = watch.unwrap().into_inner();
    process.open(&drive(&dir), 0, false).await.unwrap();
    process.export(4096).await.unwrap();
    let mut host = process.connect();
    assert!(host.queues[0].read(&host.namespace, 5, 1).is_err());
    let beyond = host.queues[0].read(&host.namespace, 200, 1).unwrap();
    assert_eq!(beyond, data[200 * BLOCK..][..BLOCK]);
    let found = loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(What::ChecksumError(error)) = event.what {
            break error;
        }
    };
    assert!(
        found.metadata && found.expected != found.actual,
        "{found:?}"
    );
    assert_eq!(
        (found.drive_id.as_str(), found.volume_id.as_str()),
        ("d1", VOLUME)
    );
    assert_eq!((found.block, found.physical_block), (0, page as u64 / 4096));
    // The volume takes writes, its pool checkpoints, and says what it lost.
    for block in [5, 250] {
        host.queues[0]
            .write(&host.namespace, block, &data[..BLOCK])
            .unwrap();
    }
    let usage = process.usage(VOLUME, "").await;
    assert_eq!(usage.used_bytes, (148 + 1) * BLOCK as u64);
    assert_eq!(
        host.queues[0].read(&host.namespace, 5, 1).unwrap(),
        data[..BLOCK]
    );
    assert!(host.queues[0].read(&host.namespace, 6, 1).is_err());
    let listed = process
        .client
        .list_volumes(proto::ListVolumesRequest::default())
        .await;
    let listed = listed.unwrap().into_inner().volumes.remove(0);
    let error = &listed.lanes[0].error;
    assert!(error.contains("a part of its map was damaged"), "{error:?}");
    let pool = process.pools().await.remove(0);
    assert!(pool.drives[0].checksum_errors >= 1);
    assert_eq!(
        (pool.drives[0].read_errors, pool.drives[0].write_errors),
        (0, 0)
    );
    host.queues[0]
        .write(&host.namespace, 0, &data[..152 * BLOCK])
        .unwrap();
    assert_eq!(
        host.queues[0].read(&host.namespace, 0, 152).unwrap(),
        data[..152 * BLOCK]
    );
    drop(host);
    assert_eq!(process.terminate(), Some(0));
}
