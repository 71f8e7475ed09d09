//! What snapshots cost the volume that they are of: 4 KiB random overwrites before, while and after one is taken, and before and after a hundred.
//!
//! `snapshot-rates DRIVE [SECONDS [BYTES]]`: DRIVE is a path (a file is made, BYTES large) or `memory:BYTES`. THE DRIVE IS OVERWRITTEN. Two volumes
//! of an eighth of it each are written once. Of one, snapshots are taken under load, and deleted again before the next: printed are medians over them of
//! what writes took that were issued [`WINDOW`] before it, that it met under way, and that were issued [`WINDOW`] after it, and of the first ones
//! after it. Then both are overwritten in turns, SECONDS each, before and after a hundred snapshots of the first: the second says how
//! the machine was at either time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use keelblock_datapath::device::{Device, DeviceSource, DeviceSpec, Latch};
use keelblock_datapath::reactor::{Config, Handle, Nanos, run};
use keelblock_datapath::store::engine::{CacheBudget, Store, StoreConfig, StoreLane};
use keelblock_datapath::store::types::SnapshotId;
use keelblock_datapath::store::{Name, VolumeId};

const BLOCK: u64 = 4096;
/// Turns before, and after, the hundred.
const ROUNDS: usize = 5;
/// Snapshots of the second part.
const MANY: u64 = 100;
/// Snapshots of each case of the first part.
const EVENTS: u64 = 12;
/// What is compared, before and after.
const WINDOW: Duration = Duration::from_millis(100);
/// Writes right after it that are looked at by themselves.
const FIRST: usize = 256;
const CACHE_BYTES: u64 = 64 << 20;

const A: VolumeId = VolumeId([1; 16]);
const B: VolumeId = VolumeId([2; 16]);

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn percentile(all: &mut [u64], of_thousand: usize) -> f64 {
    all.sort_unstable();
    let at = (all.len() * of_thousand / 1000).min(all.len().saturating_sub(1));
    all.get(at).map_or(f64::NAN, |ns| *ns as f64 / 1000.0)
}

fn snapshot_id(n: u64) -> SnapshotId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    SnapshotId(id)
}

/// A write: when it was issued and when it was done, in nanoseconds.
type Op = (u64, u64);

/// Random overwrites until it is told to stop.
struct Load {
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<usize>>,
    ops: Rc<RefCell<Vec<Op>>>,
}

impl Load {
    fn start(handle: &Handle, store: &Store, lane: &StoreLane, blocks: u64, depth: usize) -> Self {
        let memory = matches!(store.device(), Device::Memory(_));
        let load = Self {
            stop: Rc::default(),
            running: Rc::new(Cell::new(if memory { 1 } else { depth })),
            ops: Rc::default(),
        };
        for _ in 0..load.running.get() {
            let (handle, store, lane) = (handle.clone(), store.clone(), lane.clone());
            let (stop, running, ops) = (load.stop.clone(), load.running.clone(), load.ops.clone());
            handle.clone().spawn("load", async move {
                let mut buffer = handle.buffers().take(BLOCK as usize).await;
                while !stop.get() {
                    buffer[..8].copy_from_slice(&handle.random().to_le_bytes());
                    let began = handle.clock().0;
                    if memory {
                        // As the target does: what came together is written together.
                        for _ in 0..depth {
                            let at = handle.random() % blocks;
                            match lane.write_now(at..at + 1, &buffer[..]) {
                                Some(written) => written.expect("the store works"),
                                None => {
                                    let (back, written) =
                                        lane.write(at..at + 1, buffer, false).await;
                                    written.expect("the store works");
                                    buffer = back;
                                }
                            }
                        }
                        store.commit_now().expect("the store works");
                        let done = handle.clock().0;
                        ops.borrow_mut().extend((0..depth).map(|_| (began, done)));
                        handle.yield_now().await;
                        continue;
                    }
                    let at = handle.random() % blocks;
                    let (back, written) = lane.write(at..at + 1, buffer, false).await;
                    written.expect("the store works");
                    buffer = back;
                    ops.borrow_mut().push((began, handle.clock().0));
                }
                running.set(running.get() - 1);
            });
        }
        load
    }

    async fn end(self, handle: &Handle) -> Vec<Op> {
        self.stop.set(true);
        while self.running.get() > 0 {
            handle.sleep(Duration::from_millis(1)).await;
        }
        self.ops.take()
    }
}

/// Writes of one kind, of one snapshot: their median and their 99th percentile in µs, and how many there were in a second.
#[derive(Default)]
struct Row {
    median: Vec<f64>,
    high: Vec<f64>,
    rate: Vec<f64>,
}

impl Row {
    fn add(&mut self, ops: &[Op], seconds: f64) {
        let mut all: Vec<u64> = ops.iter().map(|(began, done)| done - began).collect();
        if all.is_empty() {
            return;
        }
        self.median.push(percentile(&mut all, 500));
        self.high.push(percentile(&mut all, 990));
        self.rate.push(all.len() as f64 / seconds);
    }

    fn print(self, what: &str, name: &str) {
        println!(
            "  {what:12} {name:20} {:8.2} us median, {:8.2} us 99th percentile, {:9.0}/s",
            median(self.median),
            median(self.high),
            median(self.rate)
        );
    }
}

/// Snapshots under load.
async fn under_load(handle: &Handle, store: &Store, blocks: u64, depth: usize, first_id: u64) {
    let lane = store.lane(A, 0).expect("the lane");
    let load = Load::start(handle, store, &lane, blocks, depth);
    let (mut taken, mut others) = (Vec::new(), Vec::new());
    for n in 0..EVENTS {
        // At any time of a checkpoint's round, which the end of the event before begins anew.
        let wait = Duration::from_millis(200 + handle.random() % 400);
        handle.sleep(wait).await;
        let began = handle.clock();
        let pair = (A, snapshot_id(first_id + n));
        store.snapshot(&[pair]).await.expect("a snapshot");
        taken.push((began, handle.clock()));
        handle.sleep(WINDOW).await;
        let gone = store.delete_snapshot(pair.0, pair.1).await;
        gone.expect("it is deleted");
        while !store.settled() {
            handle.sleep(Duration::from_millis(5)).await;
        }
        // The same without one.
        handle.sleep(wait).await;
        let at = handle.clock();
        others.push((at, at));
        handle.sleep(WINDOW).await;
        store.checkpoint().await.expect("a checkpoint");
    }
    let mut ops = load.end(handle).await;
    ops.sort_unstable();
    let calls = taken.iter().map(|(b, e)| e.since(*b).as_secs_f64() * 1e6);
    let calls: Vec<f64> = calls.collect();
    println!(
        "depth {depth}: taking a snapshot took {:.1} us (median of {EVENTS}, longest {:.1} us)",
        median(calls.clone()),
        calls.iter().copied().fold(0.0, f64::max)
    );
    print_events(" a snapshot", &ops, &taken);
    print_events(" no snapshot", &ops, &others);
}

/// Of what was issued before and after moments; `ops` in order of their issue.
fn print_events(what: &str, ops: &[Op], events: &[(Nanos, Nanos)]) {
    let (mut before, mut during, mut after, mut first) = Default::default();
    let window = WINDOW.as_nanos() as u64;
    for &(Nanos(began), Nanos(ended)) in events {
        let issued = |from: u64, to: u64| -> Vec<Op> {
            let (i, j) = (
                ops.partition_point(|op| op.0 < from),
                ops.partition_point(|op| op.0 < to),
            );
            ops[i..j].to_vec()
        };
        let seconds = WINDOW.as_secs_f64();
        Row::add(&mut before, &issued(began - window, began), seconds);
        Row::add(&mut after, &issued(ended, ended + window), seconds);
        let mut met = issued(began.saturating_sub(10 * window), ended);
        met.retain(|op| op.1 >= began);
        Row::add(&mut during, &met, (ended - began) as f64 / 1e9);
        let mut next = issued(ended, ended + window);
        next.truncate(FIRST);
        let until = next.iter().map(|op| op.1).max().unwrap_or(ended + 1);
        Row::add(&mut first, &next, (until - ended) as f64 / 1e9);
    }
    before.print(what, "before");
    if events.iter().any(|(began, ended)| began < ended) {
        during.print(what, "met by it");
    }
    first.print(what, "the first 256 after");
    after.print(what, "after");
}

async fn rate(
    handle: &Handle,
    store: &Store,
    volume: VolumeId,
    blocks: u64,
    time: Duration,
) -> f64 {
    let lane = store.lane(volume, 0).expect("the lane");
    let began = handle.clock();
    let load = Load::start(handle, store, &lane, blocks, 32);
    handle.sleep(time).await;
    let ops = load.end(handle).await;
    ops.len() as f64 / handle.clock().since(began).as_secs_f64()
}

/// Rates of both, in turns.
async fn turns(handle: &Handle, store: &Store, blocks: u64, time: Duration) -> (f64, f64) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(rate(handle, store, A, blocks, time).await);
        b.push(rate(handle, store, B, blocks, time).await);
    }
    (median(a), median(b))
}

async fn go(handle: Handle, (source, seconds): (DeviceSource, f64)) {
    let device = Device::open(&handle, &source, &Latch::new(|_| {})).expect("the drive opens");
    let blocks = device.size_bytes() / BLOCK / 8;
    let zeroed = device.write_zeroes(0, 1 << 20).await;
    zeroed.expect("the first MiB is zeroed");
    let name = Name::new("bench").expect("a name");
    let formatted = Store::format(&handle, &device, &name, &name).await;
    formatted.expect("format");
    let config = StoreConfig {
        cache: CacheBudget::new(CACHE_BYTES),
    };
    let store = Store::open(&handle, &device, &config).await.expect("open");
    println!(
        "{source} of {} MiB, two volumes of {} MiB",
        device.size_bytes() >> 20,
        (blocks * BLOCK) >> 20
    );
    for volume in [A, B] {
        let made = store.create_lanes(volume, &[0], 1, blocks * BLOCK).await;
        made.expect("a lane");
        let lane = store.lane(volume, 0).expect("the lane");
        let mut buffer = handle.buffers().take(1 << 20).await;
        for first in (0..blocks).step_by(256) {
            let count = 256.min(blocks - first);
            let (back, written) = lane.write(first..first + count, buffer, false).await;
            written.expect("the store works");
            buffer = back;
        }
    }
    store.checkpoint().await.expect("a checkpoint");
    let time = Duration::from_secs_f64(seconds);
    // Free space is scattered then, as it is on a drive in use.
    rate(&handle, &store, A, blocks, time).await;
    rate(&handle, &store, B, blocks, time).await;

    for (n, depth) in [32, 1].into_iter().enumerate() {
        let first_id = 1000 * (n as u64 + 1);
        under_load(&handle, &store, blocks, depth, first_id).await;
    }

    let before = turns(&handle, &store, blocks, time).await;
    let lane = store.lane(A, 0).expect("the lane");
    let mut took = Vec::new();
    for n in 0..MANY {
        let began = handle.clock();
        let taken = store.snapshot(&[(A, snapshot_id(n))]).await;
        taken.expect("a snapshot");
        took.push(handle.clock().since(began).as_secs_f64() * 1e6);
        let mut buffer = handle.buffers().take(BLOCK as usize).await;
        for _ in 0..blocks / MANY {
            let at = handle.random() % blocks;
            let (back, written) = lane.write(at..at + 1, buffer, false).await;
            written.expect("the store works");
            buffer = back;
        }
    }
    let after = turns(&handle, &store, blocks, time).await;
    println!(
        "{MANY} snapshots, {} blocks overwritten between two: {:.1} us each (median, longest {:.1} us)",
        blocks / MANY,
        median(took.clone()),
        took.iter().copied().fold(0.0, f64::max)
    );
    println!(
        "4 KiB random overwrite, depth 32: before {:.0}/s, after {:.0}/s; of a volume without snapshots at the same times {:.0}/s, {:.0}/s; ratio {:.3}, of what the other says {:.3}",
        before.0,
        after.0,
        before.1,
        after.1,
        after.0 / before.0,
        after.0 / before.0 / (after.1 / before.1)
    );
    println!("{:?}", store.counters());
    store.close().await.expect("close");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(drive) = args.first() else {
        eprintln!("snapshot-rates DRIVE [SECONDS [BYTES]]");
        std::process::exit(2);
    };
    let seconds = args.get(1).map_or(1.0, |s| s.parse().expect("seconds"));
    let bytes = args.get(2).map_or(4 << 30, |s| s.parse().expect("bytes"));
    let spec = DeviceSpec::parse(drive).expect("a drive");
    let source = DeviceSource::prepare(&spec, bytes).expect("the drive");
    let config = Config {
        buffer_bytes: 64 << 20,
        ..Config::default()
    };
    let reactors = run(
        &config,
        vec![(source, seconds)],
        |handle: Handle, seed| async move {
            go(handle.clone(), seed).await;
            handle.stop();
        },
    );
    reactors.expect("a reactor").join().expect("it ends");
}
