//! Volumes on running reactors: what is written is read back, from whichever reactor, while lanes move beneath.

mod simulated;
mod workload;

use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use keelblock_api::stats::StatsPage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::device::{DeviceSource, DeviceSpec, Latch};
use crate::reactor::{Config, Endpoint, Handle, mesh, run};
use workload::{Workload, move_lanes};

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

/// Runs `test` on each of `reactors` reactors with a volume over one drive, cut in extents that are not in order.
fn with_volume<F, Fut>(reactors: usize, source: DeviceSource, size: u64, test: F)
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
        buffer_bytes: 16 << 20,
        ..Config::default()
    };
    let running = run(&config, seeds, move |handle: Handle, seed: Seed| {
        let (source, test) = (source.clone(), test.clone());
        async move {
            let hub = Hub::start(&handle, seed.endpoint).unwrap();
            let mut registry = None;
            if handle.id() == ReactorId(0) {
                registry = Some(Registry::start(&hub, seed.stats));
                let r = registry.as_ref().unwrap();
                assert_eq!(r.open_drive(source, Latch::new(|_| {})).await, Ok(0));
                r.open(ID, size, extents(size)).await;
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
    for _ in 0..reactors {
        // An error: a reactor panicked, and join says so.
        if wait.recv_timeout(Duration::from_secs(120)).is_err() {
            break;
        }
    }
    running.stopper().stop();
    running.join().unwrap();
}

/// Extents of 3 MiB and the like, the later ones first on the drive, behind the superblocks.
fn extents(size: u64) -> Arc<[MapExtent]> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < size {
        let len = (3 * MIB).min(size - at);
        all.push(MapExtent {
            start: at,
            end: at + len,
            drive: 0,
            drive_start: MIB + size - at - len,
        });
        at += len;
    }
    all.into()
}

fn memory(bytes: u64) -> DeviceSource {
    DeviceSource::prepare(&DeviceSpec::Memory { bytes }, 0).unwrap()
}

fn file(dir: &tempfile::TempDir, bytes: u64) -> DeviceSource {
    let spec = DeviceSpec::Path(dir.path().join("drive"));
    DeviceSource::prepare(&spec, bytes).unwrap()
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

/// Two reactors work on windows over the borders of slices; lanes move all the time.
fn work(source: DeviceSource, size: u64, steps: usize, seed: u64) {
    println!("seed {seed}");
    with_volume(2, source, size, move |here: Here| async move {
        let mut work = Workload::new(here.clone(), size, seed);
        let stop = Rc::new(Cell::new(false));
        if let Some(registry) = here.registry.clone() {
            let mover = move_lanes(here.clone(), registry, seed, Rc::clone(&stop));
            here.handle.spawn("mover", mover);
        }
        for _ in 0..steps {
            work.step().await;
        }
        here.volume.flush().await.unwrap();
        work.check_all().await;
        stop.set(true);
    });
}

#[test]
fn memory_behaves_while_lanes_move() {
    let size = 1024 * MIB;
    work(memory(size + 2 * MIB), size, 3000, fresh_seed());
}

#[test]
fn a_file_behaves_while_lanes_move() {
    let dir = tempfile::tempdir().unwrap();
    let size = 128 * MIB;
    let seed = fresh_seed();
    work(file(&dir, size + 2 * MIB), size, 600, seed);
}

/// Two hosts write neighbouring sectors of the same blocks: neither may undo what the other wrote.
#[test]
fn sectors_of_one_block_do_not_undo_each_other() {
    let dir = tempfile::tempdir().unwrap();
    with_volume(2, file(&dir, 34 * MIB), 32 * MIB, |here: Here| async move {
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
    });
}

/// Counting up with compare-and-write from two reactors: no step is lost.
#[test]
fn compare_and_write_is_atomic_between_reactors() {
    const STEPS: u32 = 200;
    with_volume(2, memory(34 * MIB), 32 * MIB, |here: Here| async move {
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
    });
}

#[test]
fn the_end_of_the_volume_is_the_end_and_growing_moves_it() {
    with_volume(1, memory(34 * MIB), 8 * MIB, |here: Here| async move {
        let v = &here.volume;
        let beyond = range(8 * MIB - 4096, 8192);
        assert_eq!(
            v.read_now(beyond).unwrap().err(),
            Some(VolumeError::OutOfRange)
        );
        assert_eq!(
            v.write_now(beyond, &[0; 8192], false),
            Some(Err(VolumeError::OutOfRange))
        );
        assert_eq!(
            v.write_zeroes(beyond, false).await,
            Err(VolumeError::OutOfRange)
        );
        assert_eq!(v.write_now(range(0, 4096), &[5; 4096], false), Some(Ok(())));
        let registry = here.registry.as_ref().unwrap();
        let mut map = extents(8 * MIB).to_vec();
        map.push(MapExtent {
            start: 8 * MIB,
            end: 12 * MIB,
            drive: 0,
            drive_start: 20 * MIB,
        });
        registry.resize(ID, 12 * MIB, map.into()).await;
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
    with_volume(2, memory(34 * MIB), 32 * MIB, |here: Here| async move {
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
        assert!(here.volume.read_now(at).is_none());
        assert_eq!(here.volume.flush().await, Err(VolumeError::Closed));
    });
}

#[test]
fn lanes_follow_the_first_connection() {
    with_volume(2, memory(34 * MIB), 32 * MIB, |here: Here| async move {
        if here.handle.id() == ReactorId(1) {
            assert!(here.volume.read_now(range(0, 4096)).is_none());
            here.volume.place(ReactorId(1));
            while here.volume.read_now(range(0, 4096)).is_none() {
                here.handle.sleep(Duration::from_micros(100)).await;
            }
        } else {
            let placed = || here.registry.as_ref().unwrap().lanes(ID).unwrap();
            while placed() != LaneTable::all(ReactorId(1))
                && placed().owner(here.volume.0.lanes.of(0)) != ReactorId(1)
            {
                here.handle.sleep(Duration::from_micros(100)).await;
            }
            // A later first connection elsewhere does not move them back.
            here.volume.place(ReactorId(0));
            here.handle.sleep(Duration::from_millis(2)).await;
            assert!(here.volume.read_now(range(0, 4096)).is_none());
        }
    });
}

/// The only user of a volume is on another reactor than its lanes: they go to it, and it goes on at once from then on.
#[test]
fn lanes_follow_the_user() {
    with_volume(2, memory(34 * MIB), 32 * MIB, |here: Here| async move {
        let at = range(4096, 4096);
        if here.handle.id() == ReactorId(0) {
            let owner = || {
                here.registry
                    .as_ref()
                    .unwrap()
                    .lanes(ID)
                    .unwrap()
                    .owner(here.volume.0.lanes.of(0))
            };
            while owner() != ReactorId(1) {
                here.handle.sleep(Duration::from_micros(100)).await;
            }
        } else {
            while here.volume.read_now(at).is_none() {
                let into = here.handle.buffers().take(4096).await;
                here.volume.read(at, into).await.1.unwrap();
            }
        }
    });
}
