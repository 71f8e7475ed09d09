//! Pools through crashes. A drive in memory is copied before and after a command; what a power cut leaves is any mix of the 4 KiB blocks
//! that were written since the last flush. The flushes divide a command in steps (`docs/linear-format.md`), so that every such mix can be
//! made from the two copies: zeroes of new grains first, then the superblock of one drive after the other.

use std::future::Future;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::pool::Candidate;
use super::superblock::{COPIES, COPY_BYTES, CopyError};
use super::*;
use crate::device::{Device, Memory, memory};
use crate::reactor::{BufferPool, Config, Handle, run};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// The bytes of grain 0, where the superblocks are.
const SUPERBLOCKS: usize = GRAIN_BYTES as usize;

/// Everything on a drive.
type Image = Vec<u8>;

fn on_reactor<Fut: Future<Output = ()> + 'static>(
    test: impl Fn(Handle) -> Fut + Clone + Send + 'static,
) {
    let config = Config {
        buffer_bytes: 4 << 20,
        ..Config::default()
    };
    let reactors = run(&config, vec![()], move |handle: Handle, ()| {
        let test = test.clone();
        async move {
            test(handle.clone()).await;
            handle.stop();
        }
    });
    reactors.unwrap().join().unwrap();
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

/// A drive that holds this image.
fn device(image: &[u8]) -> Device {
    let memory = Memory::new(memory::map(image.len() as u64).unwrap(), image.len() as u64);
    assert!(memory.store(0, image));
    Device::Memory(memory)
}

fn image(device: &Device) -> Image {
    let Device::Memory(memory) = device else {
        unreachable!("these tests use memory")
    };
    let mut bytes = vec![0; memory.size_bytes() as usize];
    assert!(memory.load(0, &mut bytes));
    bytes
}

fn candidates(devices: &[Device]) -> Vec<Candidate> {
    let numbered = devices.iter().enumerate();
    let candidates = numbered.map(|(n, device)| Candidate {
        id: name(&format!("d{n}")),
        number: n as u32,
        device: device.clone(),
    });
    candidates.collect()
}

async fn open(devices: &[Device], format: bool, buffers: &BufferPool) -> Result<Pool, PoolError> {
    Pool::open(name("p"), candidates(devices), format, buffers).await
}

fn blank(mib: u64) -> Device {
    device(&vec![0; (mib * MIB) as usize])
}

/// Marks every grain of a volume with its id and the grain's number.
fn mark(devices: &[Device], volume: &PoolVolume) {
    for extent in volume.extents.as_ref().unwrap().iter() {
        for at in (0..extent.end - extent.start).step_by(GRAIN_BYTES as usize) {
            let place = extent.drive_start + at;
            let mark = [volume.id.0[0], ((extent.start + at) / GRAIN_BYTES) as u8];
            devices[extent.drive as usize]
                .store_now(place, &mark)
                .unwrap()
                .unwrap();
            devices[extent.drive as usize]
                .store_now(place + MIB - 2, &mark)
                .unwrap()
                .unwrap();
        }
    }
}

/// Checks that the first `marked` grains hold their marks and the rest is zeroes.
fn check_marks(devices: &[Device], volume: &PoolVolume, marked: u64) {
    for extent in volume.extents.as_ref().unwrap().iter() {
        let Device::Memory(memory) = &devices[extent.drive as usize] else {
            unreachable!("these tests use memory")
        };
        for at in (0..extent.end - extent.start).step_by(GRAIN_BYTES as usize) {
            let grain = (extent.start + at) / GRAIN_BYTES;
            let mut got = vec![0; MIB as usize];
            assert!(memory.load(extent.drive_start + at, &mut got));
            let mark = [volume.id.0[0], grain as u8];
            let edges = [&got[..2], &got[got.len() - 2..]];
            if grain < marked {
                assert_eq!(edges, [&mark, &mark], "grain {grain} of {}", volume.id);
            } else {
                assert!(
                    got.iter().all(|&b| b == 0),
                    "grain {grain} of {} is not zeroes",
                    volume.id
                );
            }
        }
    }
}

/// Blocks that differ, in the superblocks or behind them.
fn changed(before: &Image, after: &Image, superblocks: bool) -> Vec<usize> {
    let of = |bytes: &Image, n: usize| bytes[n * BLOCK..(n + 1) * BLOCK].to_vec();
    let blocks = 0..before.len() / BLOCK;
    blocks
        .filter(|&n| (n * BLOCK < SUPERBLOCKS) == superblocks && of(before, n) != of(after, n))
        .collect()
}

fn apply(to: &mut Image, from: &Image, blocks: &[usize]) {
    for &n in blocks {
        to[n * BLOCK..(n + 1) * BLOCK].copy_from_slice(&from[n * BLOCK..(n + 1) * BLOCK]);
    }
}

/// What a power cut can leave of a command on one drive: prefixes and random subsets of each step's writes.
fn cuts(before: &Image, after: &Image, random: &mut StdRng) -> Vec<Image> {
    let mut all = Vec::new();
    let mut base = before.clone();
    for superblocks in [false, true] {
        let blocks = changed(before, after, superblocks);
        let step = (blocks.len() / 12).max(1);
        for count in (0..=blocks.len()).step_by(step) {
            let mut cut = base.clone();
            apply(&mut cut, after, &blocks[..count]);
            all.push(cut);
        }
        for _ in 0..12 {
            let some: Vec<usize> = blocks.iter().copied().filter(|_| random.random()).collect();
            let mut cut = base.clone();
            apply(&mut cut, after, &some);
            all.push(cut);
        }
        apply(&mut base, after, &blocks);
    }
    all.push(base);
    all
}

/// What a test does to a pool of one drive that has a volume 1 of 3 MiB, marked, and old bytes in free space.
#[derive(Clone, Copy, Debug)]
enum Change {
    Create,
    Grow,
    Delete,
}

async fn change(pool: &mut Pool, what: Change, buffers: &BufferPool) {
    match what {
        Change::Create => drop(pool.create(id(2), 2 * MIB, buffers).await.unwrap()),
        Change::Grow => drop(pool.grow(id(1), 5 * MIB, buffers).await.unwrap()),
        Change::Delete => pool.delete(id(1), buffers).await.unwrap(),
    }
}

#[test]
fn a_power_cut_at_any_point_leaves_the_old_or_the_new() {
    let seed = u64::from(StdRng::from_os_rng().random::<u32>());
    println!("seed {seed}");
    on_reactor(move |handle| async move {
        let mut random = StdRng::seed_from_u64(seed);
        for what in [Change::Create, Change::Grow, Change::Delete] {
            // Free space that holds what someone deleted.
            let devices = [device(&vec![0xdb; 8 * MIB as usize])];
            let Device::Memory(memory) = &devices[0] else {
                unreachable!()
            };
            assert!(memory.zero(0, SUPERBLOCKS));
            let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
            mark(
                &devices,
                &pool.create(id(1), 3 * MIB, handle.buffers()).await.unwrap(),
            );
            let before = (image(&devices[0]), pool.volumes().len());
            change(&mut pool, what, handle.buffers()).await;
            let after = image(&devices[0]);
            let mut outcomes = [0, 0];
            for cut in cuts(&before.0, &after, &mut random) {
                let devices = [device(&cut)];
                let pool = open(&devices, false, handle.buffers()).await.unwrap();
                let volumes = pool.volumes();
                let size = pool.volume(id(1)).map(|v| v.size_bytes);
                let new = match what {
                    Change::Create => pool.volume(id(2)).is_some(),
                    Change::Grow => size == Some(5 * MIB),
                    Change::Delete => size.is_none(),
                };
                outcomes[usize::from(new)] += 1;
                assert!(new || volumes.len() == before.1);
                for volume in &volumes {
                    let marked = if volume.id == id(1) { 3 } else { 0 };
                    check_marks(&devices, volume, marked);
                }
                let used: u64 = volumes.iter().map(|v| v.size_bytes).sum();
                assert_eq!(pool.used_bytes(), used, "{what:?}: space is lost");
                for drive in pool.drives() {
                    drive.present().table.check();
                }
            }
            assert!(outcomes[0] > 0 && outcomes[1] > 0, "{what:?}: {outcomes:?}");
        }
    });
}

/// A second cut while the first one is being recovered from.
#[test]
fn opening_can_be_cut_too() {
    let seed = u64::from(StdRng::from_os_rng().random::<u32>());
    println!("seed {seed}");
    on_reactor(move |handle| async move {
        let mut random = StdRng::seed_from_u64(seed);
        let devices = [blank(8)];
        let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
        mark(
            &devices,
            &pool.create(id(1), 3 * MIB, handle.buffers()).await.unwrap(),
        );
        let before = image(&devices[0]);
        pool.grow(id(1), 5 * MIB, handle.buffers()).await.unwrap();
        let after = image(&devices[0]);
        for cut in cuts(&before, &after, &mut random) {
            let devices = [device(&cut)];
            let first = open(&devices, false, handle.buffers()).await.unwrap();
            let opened = image(&devices[0]);
            for again in cuts(&cut, &opened, &mut random) {
                let devices = [device(&again)];
                let second = open(&devices, false, handle.buffers()).await.unwrap();
                assert_eq!(second.volume(id(1)), first.volume(id(1)));
                check_marks(&devices, &second.volume(id(1)).unwrap(), 3);
            }
        }
    });
}

/// A volume over two drives: each drive is cut on its own, in the order of commits.
#[test]
fn a_cut_between_drives_leaves_orphans_that_are_freed() {
    on_reactor(|handle| async move {
        for delete in [false, true] {
            let devices = [blank(6), blank(6)];
            let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
            mark(
                &devices,
                &pool.create(id(1), 2 * MIB, handle.buffers()).await.unwrap(),
            );
            let mut images = [[0, 1].map(|n| image(&devices[n])), Default::default()];
            let big = pool.create(id(2), 7 * MIB, handle.buffers()).await.unwrap();
            let home = big.extents.as_ref().unwrap()[0].drive as usize;
            assert!(
                big.extents
                    .unwrap()
                    .iter()
                    .any(|e| e.drive as usize != home)
            );
            images[1] = [0, 1].map(|n| image(&devices[n]));
            if delete {
                pool.delete(id(2), handle.buffers()).await.unwrap();
                images[0] = images[1].clone();
                images[1] = [0, 1].map(|n| image(&devices[n]));
            }
            // Creating commits the home last, deleting commits it first: in between, one of the two is new.
            let home_is_new = delete;
            let between = [0, 1].map(|n| {
                let new = (n == home) == home_is_new;
                device(&images[usize::from(new)][n])
            });
            let mut pool = open(&between, false, handle.buffers()).await.unwrap();
            assert_eq!(pool.volume(id(2)), None);
            assert_eq!(pool.used_bytes(), 2 * MIB, "orphans are freed");
            check_marks(&between, &pool.volume(id(1)).unwrap(), 2);
            let again = pool.create(id(2), 7 * MIB, handle.buffers()).await.unwrap();
            check_marks(&between, &again, 0);
        }
    });
}

#[test]
fn a_pool_without_a_drive_serves_what_is_there_and_changes_nothing() {
    on_reactor(|handle| async move {
        let devices = [blank(6), blank(6)];
        let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
        let small = pool.create(id(1), 2 * MIB, handle.buffers()).await.unwrap();
        pool.create(id(2), 7 * MIB, handle.buffers()).await.unwrap();
        let there = small.extents.as_ref().unwrap()[0].drive as usize;
        let mut alone = candidates(&devices);
        alone.retain(|c| c.number as usize == there);
        let mut pool = Pool::open(name("p"), alone, true, handle.buffers())
            .await
            .unwrap();
        assert_eq!(pool.volume(id(1)), Some(small));
        assert!(pool.volume(id(2)).is_none_or(|v| v.extents.is_none()));
        let used = pool.used_bytes();
        let refused = [
            pool.create(id(3), MIB, handle.buffers()).await.err(),
            pool.grow(id(1), 3 * MIB, handle.buffers()).await.err(),
            pool.delete(id(1), handle.buffers()).await.err(),
        ];
        for e in refused {
            assert!(
                matches!(
                    e,
                    Some(PoolError::Degraded {
                        present: 1,
                        members: 2,
                        ..
                    })
                ),
                "{e:?}"
            );
        }
        assert_eq!(pool.used_bytes(), used);
        pool.join(candidates(&devices), false, handle.buffers())
            .await
            .unwrap();
        assert!(pool.volume(id(2)).unwrap().extents.is_some());
        pool.delete(id(2), handle.buffers()).await.unwrap();
        assert_eq!(pool.used_bytes(), 2 * MIB);
    });
}

#[test]
fn copies_that_rot_are_replaced_by_their_twins() {
    on_reactor(|handle| async move {
        let devices = [blank(6)];
        let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
        pool.create(id(1), MIB, handle.buffers()).await.unwrap();
        let good = image(&devices[0]);
        let sequences: Vec<u64> = (0..COPIES)
            .map(|n| &good[n * COPY_BYTES..(n + 1) * COPY_BYTES])
            .map(|copy| superblock::Superblock::decode(copy).unwrap().sequence)
            .collect();
        let newest = sequences.iter().max().unwrap();
        for rotten in 0..COPIES {
            let mut bytes = good.clone();
            bytes[rotten * COPY_BYTES + 20] ^= 1;
            let pool = open(&[device(&bytes)], false, handle.buffers())
                .await
                .unwrap();
            assert!(pool.volume(id(1)).is_some(), "copy {rotten}");
        }
        let mut bytes = good.clone();
        for (copy, sequence) in sequences.iter().enumerate() {
            if sequence == newest {
                bytes[copy * COPY_BYTES + 20] ^= 1;
            }
        }
        let pool = open(&[device(&bytes)], false, handle.buffers())
            .await
            .unwrap();
        assert_eq!(pool.volume(id(1)), None, "the state before");
        let mut bytes = good;
        for copy in 0..COPIES {
            bytes[copy * COPY_BYTES + 20] ^= 1;
        }
        let corrupt = open(&[device(&bytes)], true, handle.buffers())
            .await
            .unwrap_err();
        let why = CopyError::Checksum { part: "header" };
        let drive = name("d0");
        assert_eq!(corrupt, DriveError::Corrupt { drive, why }.into());
    });
}

#[test]
fn drives_that_are_not_what_they_should_be_are_refused() {
    on_reactor(|handle| async move {
        let buffers = handle.buffers();
        let unformatted = open(&[blank(6)], false, buffers).await;
        assert!(matches!(
            unformatted,
            Err(PoolError::Drive(DriveError::Blank { .. }))
        ));
        let devices = [blank(6), blank(6)];
        open(&devices, true, buffers).await.unwrap();
        let swapped = [devices[1].clone(), devices[0].clone()];
        let another = open(&swapped, false, buffers).await;
        assert!(matches!(
            another,
            Err(PoolError::Drive(DriveError::Another { .. }))
        ));
        let cut = image(&devices[0])[..5 * MIB as usize].to_vec();
        let shrunk = open(&[device(&cut)], false, buffers).await;
        assert!(matches!(
            shrunk,
            Err(PoolError::Drive(DriveError::Shrunk { .. }))
        ));
        let mut twice = candidates(&devices[..1]);
        twice.extend(candidates(&devices[..1]));
        let twice = Pool::open(name("p"), twice, false, buffers).await;
        assert!(matches!(twice, Err(PoolError::Twice { .. })));
        let mut longer = image(&devices[0]);
        longer.resize(9 * MIB as usize, 0);
        let pool = open(&[device(&longer)], false, buffers).await.unwrap();
        assert_eq!(
            pool.total_bytes(),
            8 * MIB,
            "a drive that grew is used whole"
        );
    });
}

/// Any commands in any order, with openings in between, against a model of sizes.
#[test]
fn volumes_come_and_go_and_keep_their_bytes() {
    let seed = u64::from(StdRng::from_os_rng().random::<u32>());
    println!("seed {seed}");
    on_reactor(move |handle| async move {
        let mut random = StdRng::seed_from_u64(seed);
        let devices = [blank(14), blank(9)];
        let mut pool = open(&devices, true, handle.buffers()).await.unwrap();
        let mut model = std::collections::BTreeMap::new();
        for _ in 0..150 {
            let n = random.random_range(1..6);
            let size = random.random_range(1..9) * MIB;
            let room = pool.total_bytes() - pool.used_bytes();
            match random.random_range(0..4) {
                0 if !model.contains_key(&n) => {
                    match pool.create(id(n), size, handle.buffers()).await {
                        Ok(volume) => {
                            check_marks(&devices, &volume, 0);
                            mark(&devices, &volume);
                            model.insert(n, size);
                        }
                        Err(e) => assert!(
                            matches!(e, PoolError::Full { free, .. } if free == room && room < size),
                            "{e}"
                        ),
                    }
                }
                1 if model.get(&n).is_some_and(|&had| had <= size) => {
                    let had = model[&n];
                    match pool.grow(id(n), size, handle.buffers()).await {
                        Ok(volume) => {
                            check_marks(&devices, &volume, had / MIB);
                            mark(&devices, &volume);
                            model.insert(n, size);
                        }
                        Err(e) => assert!(
                            matches!(e, PoolError::Full { .. } if room < size - had),
                            "{e}"
                        ),
                    }
                }
                2 => {
                    pool.delete(id(n), handle.buffers()).await.unwrap();
                    model.remove(&n);
                }
                _ => pool = open(&devices, false, handle.buffers()).await.unwrap(),
            }
            let volumes = pool.volumes();
            let sizes: Vec<(u8, u64)> = volumes.iter().map(|v| (v.id.0[0], v.size_bytes)).collect();
            assert_eq!(sizes, model.clone().into_iter().collect::<Vec<_>>());
            for volume in &volumes {
                check_marks(&devices, volume, volume.size_bytes / MIB);
            }
            assert_eq!(pool.used_bytes(), model.values().sum::<u64>());
        }
    });
}
