//! A bit of a block rots: reads of it are refused, the control process hears of it, and a scrub finds it unasked.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::harness::*;
use keelblock_api::datapath::{self as proto, ScrubState, event::What};
use tonic::Code;

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
