//! Volumes on running reactors: what is written is read back, from whichever reactor, over drives with different homes.

mod moving;
mod simulated;
mod workload;

use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

use keelblock_api::stats::StatsPage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::device::{DeviceSource, DeviceSpec, Latch};
use crate::reactor::{Config, Endpoint, Handle, mesh, run};
use crate::store::Name;
use crate::store::engine::{CacheBudget, StoreConfig};
use workload::Workload;

const MIB: u64 = 1 << 20;
const ID: VolumeId = VolumeId([7; 16]);
const SECTOR: u64 = 512;

struct Seed {
    endpoint: Endpoint<Message>,
    stats: StatsPage,
    done: mpsc::Sender<()>,
}

/// What a test gets on each reactor.
#[derive(Clone)]
struct Here {
    handle: Handle,
    hub: Hub,
    volume: Volume,
    /// On reactor 0.
    registry: Option<Registry>,
}

/// Opens drives, each with a store of its own, and makes the volume on all of them, lane by lane.
async fn open_all(registry: &Registry, sources: Vec<DeviceSource>, size: u64, format: bool) {
    let (mut drives, mut volatile_cache) = (Vec::new(), false);
    for (n, source) in sources.into_iter().enumerate() {
        let opening = DriveOpening {
            source,
            latch: Latch::new(|_| {}),
            faults: Arc::new(|_| {}),
            drive: Name::new(&format!("d{n}")).unwrap(),
            pool: Name::new("p").unwrap(),
            format,
            config: StoreConfig {
                cache: CacheBudget::new(1 << 20),
            },
        };
        let (number, facts) = registry.open_drive(opening).await.unwrap();
        volatile_cache |= facts.volatile_cache;
        drives.push(number);
    }
    let lanes = Lanes::for_size(size);
    for (place, &drive) in drives.iter().enumerate() {
        let count = drives.len();
        let mine = lanes.all().map(|lane| lane.index() as u8);
        let mine: Vec<u8> = mine.filter(|l| usize::from(*l) % count == place).collect();
        let made = registry.on_drive(drive, move |hub| async move {
            let store = hub.store(drive).unwrap();
            store
                .create_lanes(ID, &mine, lanes.count() as u8, size)
                .await
        });
        made.await.unwrap();
    }
    let opening = VolumeOpening {
        id: ID,
        size_bytes: size,
        drives: lanes
            .all()
            .map(|lane| drives[lane.index() % drives.len()])
            .collect(),
        volatile_cache,
        replicated: false,
    };
    registry.open(opening).await;
}

/// Runs `test` on each of `reactors` reactors with a volume over the drives of these sources.
fn with_volume<F, Fut>(reactors: usize, sources: Vec<DeviceSource>, size: u64, test: F)
where
    F: Fn(Here) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let stats = StatsPage::create(reactors as u32, 4, [0; 16], 0).unwrap();
    let (done, wait) = mpsc::channel();
    let seeds = mesh(reactors).into_iter().map(|endpoint| Seed {
        endpoint,
        stats: stats.clone(),
        done: done.clone(),
    });
    let seeds = seeds.collect();
    drop(done);
    let config = Config {
        buffer_bytes: 32 << 20,
        ..Config::default()
    };
    let running = run(&config, seeds, move |handle: Handle, seed: Seed| {
        let (sources, test) = (sources.clone(), test.clone());
        async move {
            let hub = Hub::start(&handle, seed.endpoint).unwrap();
            let mut registry = None;
            if handle.id() == ReactorId(0) {
                registry = Some(Registry::start(&hub, seed.stats));
                open_all(registry.as_ref().unwrap(), sources, size, true).await;
            }
            while hub.volume(ID).is_none() {
                handle.sleep(Duration::from_micros(100)).await;
            }
            let volume = hub.volume(ID).unwrap();
            let here = Here {
                handle,
                hub,
                volume,
                registry,
            };
            test(here).await;
            seed.done.send(()).unwrap();
        }
    });
    let running = running.unwrap();
    let mut left = reactors;
    let begun = std::time::Instant::now();
    while left > 0 {
        match wait.recv_timeout(Duration::from_millis(100)) {
            Ok(()) => left -= 1,
            // A reactor panicked, and join says so.
            Err(_) if running.ended() || begun.elapsed() > Duration::from_secs(120) => break,
            Err(_) => {}
        }
    }
    running.stopper().stop();
    running.join().unwrap();
}

/// A drive with room for a volume of so many bytes.
fn drive_bytes(size: u64) -> u64 {
    size * 5 / 4 + 64 * MIB
}

/// Drives in memory.
fn memories(count: usize, size: u64) -> Vec<DeviceSource> {
    (0..count).map(|_| memory(drive_bytes(size))).collect()
}

/// Drives that are files.
fn files(dir: &tempfile::TempDir, count: usize, size: u64) -> Vec<DeviceSource> {
    let file = |n| {
        let spec = DeviceSpec::Path(dir.path().join(format!("drive{n}")));
        DeviceSource::prepare(&spec, drive_bytes(size)).unwrap()
    };
    (0..count).map(file).collect()
}

fn memory(bytes: u64) -> DeviceSource {
    DeviceSource::prepare(&DeviceSpec::Memory { bytes }, 0).unwrap()
}

fn fresh_seed() -> u64 {
    u64::from(StdRng::from_os_rng().random::<u32>())
}

fn range(at: u64, len: u64) -> ByteRange {
    ByteRange::new(at, len)
}

async fn filled(here: &Here, len: u64, fill: impl Fn(u64) -> u8) -> Buffer {
    let mut buffer = here.handle.buffers().take(len as usize).await;
    for (n, sector) in buffer[..len as usize]
        .chunks_mut(SECTOR as usize)
        .enumerate()
    {
        sector.fill(fill(n as u64));
    }
    buffer
}

/// Two reactors work on windows over the borders of slices.
fn work(sources: Vec<DeviceSource>, size: u64, steps: usize, seed: u64) {
    println!("seed {seed}");
    with_volume(2, sources, size, move |here: Here| async move {
        let mut work = Workload::new(here.clone(), size, seed);
        for _ in 0..steps {
            work.step().await;
        }
        here.volume.flush().await.unwrap();
        work.check_all().await;
    });
}

#[test]
fn memory_behaves() {
    let size = 1024 * MIB;
    work(memories(1, 256 * MIB), size, 2000, fresh_seed());
}

#[test]
fn two_drives_behave() {
    let size = 1024 * MIB;
    work(memories(2, 128 * MIB), size, 2000, fresh_seed());
}

#[test]
fn files_behave() {
    let dir = tempfile::tempdir().unwrap();
    work(files(&dir, 2, 64 * MIB), 128 * MIB, 400, fresh_seed());
}

/// Two hosts write neighbouring sectors of the same blocks: neither may undo what the other wrote.
#[test]
fn sectors_of_one_block_do_not_undo_each_other() {
    let dir = tempfile::tempdir().unwrap();
    with_volume(
        2,
        files(&dir, 1, 32 * MIB),
        32 * MIB,
        |here: Here| async move {
            let id = u64::from(here.handle.id().0);
            for round in 0..150u64 {
                let sector = (round % 4) * 2 + id;
                let at = range(8 * MIB + sector * SECTOR, SECTOR);
                let data = filled(&here, SECTOR, |_| round as u8 + 1).await;
                here.volume.write(at, data, false).await.1.unwrap();
                let into = here.handle.buffers().take(4096).await;
                let (got, result) = here.volume.read(at, into).await;
                result.unwrap();
                assert!(
                    got[..512].iter().all(|&b| b == round as u8 + 1),
                    "round {round}"
                );
            }
        },
    );
}

/// Counting up with compare-and-write from two reactors: no step is lost.
#[test]
fn compare_and_write_is_atomic_between_reactors() {
    const STEPS: u32 = 200;
    with_volume(
        2,
        memories(1, 32 * MIB),
        32 * MIB,
        |here: Here| async move {
            let at = range(4 * MIB, 4096);
            let mut mine = 0;
            let mut seen = 0u32;
            while mine < STEPS {
                let (mut expect, mut new) = (
                    here.handle.buffers().take(4096).await,
                    here.handle.buffers().take(4096).await,
                );
                for (buffer, value) in [(&mut expect, seen), (&mut new, seen + 1)] {
                    buffer[..4096].fill(0);
                    buffer[..4].copy_from_slice(&value.to_le_bytes());
                }
                match here
                    .volume
                    .compare_and_write(at, expect, new, false)
                    .await
                    .1
                {
                    Ok(()) => {
                        mine += 1;
                        seen += 1;
                    }
                    Err(e) => {
                        assert_eq!(e, VolumeError::Miscompare);
                        let into = here.handle.buffers().take(4096).await;
                        let (got, result) = here.volume.read(at, into).await;
                        result.unwrap();
                        let now = u32::from_le_bytes(got[..4].try_into().unwrap());
                        assert!(now > seen, "another counted, or nobody was in the way");
                        seen = now;
                    }
                }
            }
            // Whoever ends last sees the sum.
            assert!((STEPS..=2 * STEPS).contains(&seen));
            while seen < 2 * STEPS {
                here.handle.sleep(Duration::from_millis(1)).await;
                let into = here.handle.buffers().take(4096).await;
                let (got, result) = here.volume.read(at, into).await;
                result.unwrap();
                seen = u32::from_le_bytes(got[..4].try_into().unwrap());
            }
            assert_eq!(seen, 2 * STEPS);
        },
    );
}

#[test]
fn the_end_of_the_volume_is_the_end_and_growing_moves_it() {
    with_volume(1, memories(1, 32 * MIB), 8 * MIB, |here: Here| async move {
        let v = &here.volume;
        let beyond = range(8 * MIB - 4096, 8192);
        assert_eq!(
            v.read_now(beyond, |_| ()).unwrap().err(),
            Some(VolumeError::OutOfRange)
        );
        assert_eq!(
            v.write_zeroes(beyond, false).await,
            Err(VolumeError::OutOfRange)
        );
        let data = filled(&here, 4096, |_| 5).await;
        v.write(range(0, 4096), data, false).await.1.unwrap();
        let registry = here.registry.as_ref().unwrap();
        registry.resize(ID, 12 * MIB).await;
        assert_eq!(v.size_bytes(), 12 * MIB);
        v.write_zeroes(beyond, false).await.unwrap();
        let into = here.handle.buffers().take(4096).await;
        let (got, result) = v.read(range(0, 4096), into).await;
        result.unwrap();
        assert!(got[..4096].iter().all(|&b| b == 5));
    });
}

#[test]
fn a_closed_volume_refuses_on_every_reactor() {
    with_volume(
        2,
        memories(1, 32 * MIB),
        32 * MIB,
        |here: Here| async move {
            let at = range(0, 4096);
            if let Some(registry) = &here.registry {
                here.handle.sleep(Duration::from_millis(5)).await;
                registry.close(ID).await;
            }
            loop {
                let into = here.handle.buffers().take(4096).await;
                match here.volume.read(at, into).await.1 {
                    Ok(()) => here.handle.sleep(Duration::from_micros(100)).await,
                    Err(e) => break assert_eq!(e, VolumeError::Closed),
                }
            }
            // The owner may say so before this reactor has been told.
            while here.hub.volume(ID).is_some() {
                here.handle.sleep(Duration::from_micros(100)).await;
            }
            assert!(here.volume.read_now(at, |_| ()).is_none());
            assert_eq!(here.volume.flush().await, Err(VolumeError::Closed));
        },
    );
}

/// Zeroes over many slices on two drives: what was there reads as zeroes, its neighbours stay.
#[test]
fn large_ranges_are_zeroed_whole() {
    let size = 1024 * MIB;
    with_volume(2, memories(2, 64 * MIB), size, |here: Here| async move {
        if here.registry.is_none() {
            return;
        }
        let v = &here.volume;
        let places = [1, 15, 16, 17, 31, 48, 60].map(|n| n * SLICE_BYTES + 4096);
        for at in places {
            let data = filled(&here, 8192, |_| 7).await;
            v.write(range(at, 8192), data, false).await.1.unwrap();
        }
        // From the middle of a block in slice 15 to the middle of one in slice 48.
        let (start, end) = (places[1] + 4096 + 512, places[5] + 1024);
        v.write_zeroes(range(start, end - start), true)
            .await
            .unwrap();
        for at in places {
            let into = here.handle.buffers().take(8192).await;
            let (got, result) = v.read(range(at, 8192), into).await;
            result.unwrap();
            for (n, &byte) in got[..8192].iter().enumerate() {
                let gone = (start..end).contains(&(at + n as u64));
                assert_eq!(byte, if gone { 0 } else { 7 }, "byte {n} of {at}");
            }
        }
    });
}

/// Nothing is under way at a barrier, on whichever reactor it began.
#[test]
fn a_barrier_holds_up_all_reactors() {
    let size = 1024 * MIB;
    with_volume(2, memories(2, 64 * MIB), size, |here: Here| async move {
        let v = here.volume.clone();
        let Some(registry) = here.registry.clone() else {
            // Two slices, on two drives, always the first before the second.
            for round in 1..=200u8 {
                for slice in [0, 1] {
                    let data = filled(&here, 4096, |_| round).await;
                    let at = range(slice * SLICE_BYTES, 4096);
                    v.write(at, data, false).await.1.unwrap();
                }
            }
            return;
        };
        let second = Duration::from_secs(1);
        for _ in 0..50 {
            let stores = registry.clone();
            let looked = registry.at_barrier(vec![(ID, None)], second, async move {
                let mut seen = Vec::new();
                for drive in [0, 1] {
                    let byte = stores.on_drive(drive, move |hub| async move {
                        let lane = hub.store(drive).unwrap().lane(ID, drive as u8).unwrap();
                        let into = hub.handle().buffers().take(4096).await;
                        let (got, result) = lane.read(0..1, into).await;
                        result.unwrap();
                        got[0]
                    });
                    seen.push(byte.await);
                }
                seen
            });
            let seen = looked.await.expect("I/O comes to rest");
            assert!(seen[0] == seen[1] || seen[0] == seen[1] + 1, "{seen:?}");
        }
    });
}
