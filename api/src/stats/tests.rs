use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use keelblock_hugepages::SharedRegion;
use proptest::prelude::*;

use super::layout::{Shape, VERSION_AT};
use super::*;

const ID: [u8; 16] = *b"volume number 01";

fn page(reactors: u32, volumes: u32) -> StatsPage {
    StatsPage::create(reactors, volumes, [7; 16], 1_700_000_000_000).unwrap()
}

fn reader(page: &StatsPage) -> StatsReader {
    StatsReader::from_fd(page.as_fd().try_clone_to_owned().unwrap()).unwrap()
}

#[test]
fn a_reader_sees_what_reactors_count() {
    let page = page(3, 16);
    let reader = reader(&page);
    assert_eq!(reader.incarnation(), [7; 16]);
    assert_eq!(reader.pid(), std::process::id());
    assert_eq!(reader.started_unix_ms(), 1_700_000_000_000);
    let stats = page.reactor(2).unwrap();
    stats.set(ReactorField::Cpu, 2);
    stats.add(ReactorField::BusyNs, 40);
    stats.add(ReactorField::BusyNs, 2);
    stats.add(ReactorField::Connections, 3);
    stats.sub(ReactorField::Connections, 1);
    assert!(page.reactor(3).is_none());

    let all = reader.reactors();
    assert_eq!(all.len(), 3);
    assert_eq!(all[2].get(ReactorField::BusyNs), 42);
    assert_eq!(all[2].get(ReactorField::Connections), 2);
    assert_eq!(all[2].cpu(), Some(1));
    assert_eq!((all[1].id, all[1].get(ReactorField::BusyNs)), (1, 0));
    assert_eq!(all[1].cpu(), None);
}

#[test]
fn a_volume_is_summed_over_reactors() {
    let page = page(2, 16);
    let reader = reader(&page);
    assert!(reader.volume(ID).is_none());
    let slot = page.volume(ID).unwrap();
    let (a, b) = (slot.reactor(0).unwrap(), slot.reactor(1).unwrap());
    assert!(slot.reactor(2).is_none());
    a.read_done(4096, 10_000);
    b.read_done(4096, 20_000);
    b.write_done(512, 1_000_000);
    a.discard_done(1 << 20, 5);
    a.other_done();
    b.failed();
    a.connected();
    b.connected();
    b.disconnected();

    let seen = reader.volume(ID).unwrap();
    assert_eq!(
        (seen.reads, seen.read_bytes, seen.read_ns),
        (2, 8192, 30_000)
    );
    assert_eq!(
        (seen.writes, seen.write_bytes, seen.write_ns),
        (1, 512, 1_000_000)
    );
    assert_eq!(
        (seen.discards, seen.discard_bytes, seen.discard_ns),
        (1, 1 << 20, 5)
    );
    assert_eq!((seen.others, seen.errors, seen.connections), (1, 1, 1));
    assert_eq!(seen.read_latency.count(), 2);
    assert_eq!(seen.read_latency.counts()[bucket_of_ns(20_000)], 1);
    assert_eq!(seen.write_latency.counts()[bucket_of_ns(1_000_000)], 1);
    assert_eq!(reader.slot(slot.index()).unwrap(), seen);
    assert!(reader.slot(16).is_none());
}

#[test]
fn a_slot_is_free_when_its_last_handle_is_gone_and_starts_at_zero_again() {
    let page = page(1, 1);
    let reader = reader(&page);
    let slot = page.volume(ID).unwrap();
    let stats = slot.reactor(0).unwrap();
    drop(slot);
    stats.write_done(4096, 1000);
    assert!(
        page.volume([2; 16]).is_none(),
        "a reactor still counts in the only slot"
    );
    drop(stats);
    assert!(reader.volume(ID).is_none());
    let slot = page.volume([2; 16]).unwrap();
    let _stats = slot.reactor(0).unwrap();
    let expected = VolumeSnapshot {
        volume_id: [2; 16],
        ..VolumeSnapshot::default()
    };
    assert_eq!(reader.volume([2; 16]).unwrap(), expected);
}

#[test]
fn unused_volumes_cost_no_memory() {
    let page = page(16, 1024);
    let slot = page.volume(ID).unwrap();
    slot.reactor(3).unwrap().read_done(1, 1);
    let reader = reader(&page);
    assert_eq!(reader.volumes().count(), 1);
    let stat = rustix::fs::fstat(page.as_fd()).unwrap();
    assert!(stat.st_size >= 64 << 20, "{}", stat.st_size);
    // Header, reactors, the table of slots (16 pages), one counter block.
    assert!(
        stat.st_blocks * 512 <= 20 * 4096,
        "{} bytes are in use",
        stat.st_blocks * 512
    );
}

#[test]
fn damaged_pages_are_refused() {
    let shape = Shape::new(2, 4).unwrap();
    let made = page(2, 4);
    let bytes = copy_of(&made, shape.bytes());
    let read = |bytes: &[u8]| {
        let region = SharedRegion::create("keelblock-test", bytes.len()).unwrap();
        assert!(region.write(0, bytes));
        StatsReader::from_fd(region.as_fd().try_clone_to_owned().unwrap())
    };
    assert!(read(&bytes).is_ok());
    let damaged = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        read(&bytes).unwrap_err()
    };
    assert!(matches!(damaged(0, 1), StatsError::Magic));
    assert!(matches!(
        damaged(VERSION_AT, 9),
        StatsError::Version { found: 9 }
    ));
    assert!(matches!(
        damaged(layout::REACTORS_AT, 0),
        StatsError::Shape { reactors: 0, .. }
    ));
    assert!(matches!(
        damaged(layout::SLOTS_AT, u32::MAX),
        StatsError::Shape {
            volumes: u32::MAX,
            ..
        }
    ));
    assert!(matches!(
        damaged(layout::SLOTS_AT, 5),
        StatsError::Length { .. }
    ));
    assert!(matches!(
        damaged(layout::BYTES_AT, 8),
        StatsError::Length { .. }
    ));
    assert!(matches!(
        read(&bytes[..64]),
        Err(StatsError::Length { found: 64, .. })
    ));
    assert!(matches!(
        StatsPage::create(65, 1, [0; 16], 0),
        Err(StatsError::Shape { reactors: 65, .. })
    ));
}

fn copy_of(page: &StatsPage, len: usize) -> Vec<u8> {
    let fd = page.as_fd().try_clone_to_owned().unwrap();
    let mut bytes = vec![0; len];
    assert!(
        keelblock_hugepages::SharedView::from_fd(fd)
            .unwrap()
            .read(0, &mut bytes)
    );
    bytes
}

/// A reader that copies while slots change hands never mixes the counters of two volumes: each volume here counts only its own
/// number, in every reactor's block, which makes the copy long enough to be overtaken.
#[test]
fn copies_are_never_of_two_volumes() {
    let page = page(REACTORS_MAX, 1);
    let reader = reader(&page);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 100..=3_000u64 {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&n.to_ne_bytes());
                let slot = page.volume(id).unwrap();
                for reactor in 0..REACTORS_MAX {
                    slot.reactor(reactor).unwrap().write_done(n, n);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            let Some(seen) = reader.slot(0) else { continue };
            let n = u64::from_ne_bytes(seen.volume_id[..8].try_into().unwrap());
            assert!(
                seen.write_bytes.is_multiple_of(n),
                "{n} counted {}",
                seen.write_bytes
            );
        }
    });
}

#[test]
fn buckets_touch_and_cover() {
    assert_eq!(bucket_lower_ns(0), 0);
    for bucket in 1..LATENCY_BUCKETS {
        assert_eq!(
            bucket_lower_ns(bucket),
            bucket_upper_ns(bucket - 1),
            "{bucket}"
        );
        assert_eq!(bucket_of_ns(bucket_lower_ns(bucket)), bucket);
        assert_eq!(bucket_of_ns(bucket_upper_ns(bucket) - 1), bucket);
    }
    assert!(bucket_upper_ns(LATENCY_BUCKETS - 1) > 10_000_000_000);
    assert_eq!(bucket_of_ns(u64::MAX), LATENCY_BUCKETS - 1);
    assert_eq!(
        bucket_upper_ns(usize::MAX),
        bucket_upper_ns(LATENCY_BUCKETS - 1)
    );
}

proptest! {
    #[test]
    fn the_middle_of_a_bucket_is_near_every_latency_in_it(ns in 1_000u64..10_000_000_000) {
        let mut histogram = Histogram::default();
        histogram.record(ns);
        let shown = histogram.percentile_ns(50.0).unwrap();
        prop_assert!((shown as f64 - ns as f64).abs() <= 0.066 * ns as f64, "{} shown as {}", ns, shown);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values(mut all in prop::collection::vec(0u64..20_000_000_000, 1..200), percent in 0.0f64..100.0) {
        let mut histogram = Histogram::default();
        all.iter().for_each(|ns| histogram.record(*ns));
        all.sort_unstable();
        let rank = ((all.len() as f64 * percent / 100.0).ceil() as usize).max(1);
        let exact = all[rank - 1];
        prop_assert_eq!(bucket_of_ns(histogram.percentile_ns(percent).unwrap()), bucket_of_ns(exact));
        let since = histogram.since(&Histogram::from_counts(&[]));
        prop_assert_eq!(&since, &histogram);
        prop_assert_eq!(histogram.since(&histogram).percentile_ns(percent), None);
    }
}
