//! What the store costs beside the drive itself: the same operations on the raw device and through a store on it, in turns.
//!
//! `store-rates DRIVE [SECONDS [BYTES [CACHE_BYTES [CASE]]]]` (CASE: a part of a case's name, for those alone): DRIVE is a path (two files are made, the raw one is DRIVE.raw, each BYTES large) or `memory:BYTES`. THE DRIVES ARE OVERWRITTEN. Each case runs
//! SECONDS on either side, three times in turns; printed are medians, their ratio, and for writes how many bytes reached the drive
//! for each that was written.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use keelblock_datapath::device::{Device, DeviceSource, DeviceSpec, Latch};
use keelblock_datapath::reactor::{Config, Handle, run};
use keelblock_datapath::store::engine::{CacheBudget, Store, StoreConfig, StoreLane};
use keelblock_datapath::store::{Name, VolumeId};

const BLOCK: u64 = 4096;
const ROUNDS: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Read,
    Write,
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    op: Op,
    blocks: u64,
    depth: usize,
    random: bool,
}

const CASES: [Case; 6] = [
    Case {
        name: "128 KiB sequential write, depth 8",
        op: Op::Write,
        blocks: 32,
        depth: 8,
        random: false,
    },
    Case {
        name: "128 KiB sequential read, depth 8",
        op: Op::Read,
        blocks: 32,
        depth: 8,
        random: false,
    },
    Case {
        name: "4 KiB random write, depth 32",
        op: Op::Write,
        blocks: 1,
        depth: 32,
        random: true,
    },
    Case {
        name: "4 KiB random read, depth 32",
        op: Op::Read,
        blocks: 1,
        depth: 32,
        random: true,
    },
    Case {
        name: "4 KiB random write, depth 1",
        op: Op::Write,
        blocks: 1,
        depth: 1,
        random: true,
    },
    Case {
        name: "4 KiB random read, depth 1",
        op: Op::Read,
        blocks: 1,
        depth: 1,
        random: true,
    },
];

/// What is measured: the device behind its first MiB, or a lane.
#[derive(Clone)]
enum Side {
    Raw(Device, u64),
    Store(StoreLane, Device),
}

impl Side {
    fn device(&self) -> &Device {
        match self {
            Side::Raw(device, _) | Side::Store(_, device) => device,
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Operations per second, and bytes that reached the drive for each byte written.
async fn measure(
    handle: &Handle,
    side: &Side,
    case: Case,
    blocks: u64,
    time: Duration,
) -> (f64, f64) {
    let deadline = handle.clock() + time;
    let (done, running) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(case.depth)));
    let next = Rc::new(Cell::new(0u64));
    let before = side.device().written_bytes();
    let began = handle.clock();
    for _ in 0..case.depth {
        let (handle2, side, done, running, next) = (
            handle.clone(),
            side.clone(),
            done.clone(),
            running.clone(),
            next.clone(),
        );
        handle.spawn("load", async move {
            let mut buffer = handle2.buffers().take((case.blocks * BLOCK) as usize).await;
            while handle2.clock() < deadline {
                let slots = blocks / case.blocks;
                let slot = if case.random {
                    handle2.random() % slots
                } else {
                    next.set(next.get() + 1);
                    next.get() % slots
                };
                let first = slot * case.blocks;
                let len = (case.blocks * BLOCK) as usize;
                if case.op == Op::Write {
                    buffer[..8].copy_from_slice(&handle2.random().to_le_bytes());
                }
                buffer = match &side {
                    Side::Raw(device, start) => {
                        let at = start + first * BLOCK;
                        let (buffer, result) = match case.op {
                            Op::Read => device.read(at, buffer, len).await,
                            Op::Write => device.write(at, buffer, len, false).await,
                        };
                        result.expect("the drive works");
                        buffer
                    }
                    Side::Store(lane, _) => {
                        let range = first..first + case.blocks;
                        let (buffer, result) = match case.op {
                            Op::Read => lane.read(range, buffer).await,
                            Op::Write => lane.write(range, buffer, false).await,
                        };
                        result.expect("the store works");
                        buffer
                    }
                };
                done.set(done.get() + 1);
                if matches!(side.device(), Device::Memory(_)) && done.get() % 16 == 0 {
                    handle2.yield_now().await;
                }
            }
            running.set(running.get() - 1);
        });
    }
    while running.get() > 0 {
        handle.sleep(Duration::from_millis(1)).await;
    }
    let seconds = handle.clock().since(began).as_secs_f64();
    let bytes = (done.get() * case.blocks * BLOCK) as f64;
    let reached = (side.device().written_bytes() - before) as f64;
    (done.get() as f64 / seconds, reached / bytes)
}

async fn fill(handle: &Handle, side: &Side, blocks: u64) {
    let mut buffer = handle.buffers().take(1 << 20).await;
    for (n, byte) in buffer.iter_mut().enumerate() {
        *byte = (n * 31 + n / 4096) as u8;
    }
    for first in (0..blocks).step_by(256) {
        let count = 256.min(blocks - first);
        let (back, ok) = match side {
            Side::Raw(device, start) => {
                let at = start + first * BLOCK;
                let (b, r) = device
                    .write(at, buffer, (count * BLOCK) as usize, false)
                    .await;
                (b, r.is_ok())
            }
            Side::Store(lane, _) => {
                let (b, r) = lane.write(first..first + count, buffer, false).await;
                (b, r.is_ok())
            }
        };
        assert!(ok, "filling block {first}");
        buffer = back;
    }
    side.device().flush().await.expect("the drive flushes");
}

/// The raw drive, and the one that the store is on.
type Drives = [DeviceSource; 2];

async fn go(handle: Handle, (drives, seconds, cache, only): (Drives, u64, u64, String)) {
    let [plain, device] = {
        let mut open = Vec::new();
        for source in &drives {
            let device = Device::open(&handle, source, &Latch::new(|_| {})).expect("it opens");
            open.push(device);
        }
        <[Device; 2]>::try_from(open).expect("two")
    };
    let bytes = device.size_bytes();
    // Half of the drive is used, so that there is always room for copies.
    let blocks = bytes / BLOCK / 2;
    let raw = Side::Raw(plain.clone(), 0);
    println!(
        "{} of {} MiB, {} MiB used",
        drives[1],
        bytes >> 20,
        (blocks * BLOCK) >> 20
    );
    for drive in [&plain, &device] {
        fill(&handle, &Side::Raw(drive.clone(), 0), bytes / BLOCK).await;
    }
    let name = Name::new("bench").expect("a name");
    let zeroed = device.write_zeroes(0, 1 << 20).await;
    zeroed.expect("the first MiB is zeroed");
    Store::format(&handle, &device, &name, &name)
        .await
        .expect("format");
    let config = StoreConfig {
        cache: CacheBudget::new(cache),
    };
    let store = Store::open(&handle, &device, &config).await.expect("open");
    let volume = VolumeId([1; 16]);
    store
        .create_lanes(volume, &[0], 1, blocks * BLOCK)
        .await
        .expect("a lane");
    let side = Side::Store(store.lane(volume, 0).expect("the lane"), device.clone());
    fill(&handle, &side, blocks).await;
    store.checkpoint().await.expect("checkpoint");
    let time = Duration::from_secs(seconds);
    for case in CASES.into_iter().filter(|c| c.name.contains(&only)) {
        let (mut raws, mut rates, mut amplified) = (Vec::new(), Vec::new(), Vec::new());
        let before = store.counters();
        for _ in 0..ROUNDS {
            raws.push(measure(&handle, &raw, case, blocks, time).await.0);
            let (rate, times) = measure(&handle, &side, case, blocks, time).await;
            rates.push(rate);
            amplified.push(times);
        }
        let (raw_rate, rate) = (median(raws), median(rates));
        let write = if case.op == Op::Write {
            format!(", {:.3} bytes written for each", median(amplified))
        } else {
            String::new()
        };
        println!(
            "{:36} raw {raw_rate:9.0}/s, store {rate:9.0}/s, ratio {:.2}{write}",
            case.name,
            rate / raw_rate
        );
        if case.op == Op::Write {
            let after = store.counters();
            let per_second =
                |now: u64, then: u64| (now - then) as f64 / (ROUNDS as u64 * seconds) as f64;
            println!(
                "{:36} a second: {:.1} checkpoints, {:.1} flushes, {:.0} journal blocks, {:.0} pages",
                "",
                per_second(after.checkpoints, before.checkpoints),
                per_second(after.flushes, before.flushes),
                per_second(after.journal_blocks, before.journal_blocks),
                per_second(after.pages, before.pages),
            );
        }
    }
    store.close().await.expect("close");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(drive) = args.first() else {
        eprintln!("store-rates DRIVE [SECONDS [BYTES [CACHE_BYTES [CASE]]]]");
        std::process::exit(2);
    };
    let seconds = args.get(1).map_or(2, |s| s.parse().expect("seconds"));
    let bytes = args.get(2).map_or(1 << 30, |s| s.parse().expect("bytes"));
    let cache = args.get(3).map_or(64 << 20, |s| s.parse().expect("bytes"));
    let only = args.get(4).cloned().unwrap_or_default();
    let plain = match drive.strip_prefix("memory") {
        Some(_) => drive.clone(),
        None => format!("{drive}.raw"),
    };
    let drives = [&plain, drive].map(|drive| {
        let spec = DeviceSpec::parse(drive).expect("a drive");
        DeviceSource::prepare(&spec, bytes).expect("the drive")
    });
    let config = Config {
        buffer_bytes: 64 << 20,
        ..Config::default()
    };
    let reactors = run(
        &config,
        vec![(drives, seconds, cache, only)],
        |handle: Handle, seed| async move {
            go(handle.clone(), seed).await;
            handle.stop();
        },
    );
    reactors.expect("a reactor").join().expect("it ends");
}
