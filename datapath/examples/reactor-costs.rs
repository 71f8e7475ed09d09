//! What the reactor's own steps cost on this machine: `cargo run --release -p keelblock-datapath --example reactor-costs [FILE]`.
//!
//! Figures are nanoseconds per step, the best of several rounds, on reactor 0 (and 1 for the ring). With FILE (an existing file or device, it is
//! only read) also random 4 KiB reads at depth 1 and 32.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use keelblock_datapath::reactor::{
    Config, DiskSpec, Endpoint, Handle, Notify, ReactorId, mesh, run,
};

const ROUNDS: usize = 7;

fn show(what: &str, n: u32, took: &[Duration]) {
    let best = took.iter().min().expect("there are rounds");
    println!("{what:44} {:9.1} ns", best.as_nanos() as f64 / f64::from(n));
}

async fn tasks(handle: &Handle) {
    const N: u32 = 1000;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..N {
            handle.start("nothing", async {}).expect("there is room");
        }
        took.push(begin.elapsed());
    }
    show("start of an operation that ends at once", N, &took);

    let (mut start, mut wake) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let gate = Rc::new(Notify::new());
        let left = Rc::new(Cell::new(N));
        let begin = Instant::now();
        for _ in 0..N {
            let (gate, left) = (gate.clone(), left.clone());
            let op = async move {
                gate.notified().await;
                left.set(left.get() - 1);
            };
            handle.start("wait", op).expect("there is room");
        }
        start.push(begin.elapsed());
        let begin = Instant::now();
        while left.get() > 0 {
            gate.notify();
            handle.yield_now().await;
        }
        wake.push(begin.elapsed());
    }
    show("start of an operation that waits", N, &start);
    show("notify, a pass, its end", N, &wake);

    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..N {
            handle.yield_now().await;
        }
        took.push(begin.elapsed());
    }
    show("a pass with one task", N, &took);

    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..N {
            drop(handle.buffers().try_take(4096));
        }
        took.push(begin.elapsed());
    }
    show("take and return a 4 KiB buffer", N, &took);
}

async fn ring(endpoint: &Endpoint<u64>, n: u32) -> Duration {
    let begin = Instant::now();
    for i in 0..n {
        endpoint.request(ReactorId(1), u64::from(i)).await;
        endpoint.recv().await;
    }
    begin.elapsed()
}

async fn rings(handle: &Handle, endpoint: &Endpoint<u64>) {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        took.push(ring(endpoint, 10_000).await);
    }
    show("ring round trip, both awake", 10_000, &took);
    let mut took = Vec::new();
    for _ in 0..ROUNDS * 20 {
        // Long enough for the other reactor to sleep.
        handle.sleep(Duration::from_millis(1)).await;
        took.push(ring(endpoint, 1).await);
    }
    took.sort_unstable();
    println!(
        "{:44} {:9.1} ns (median)",
        "ring round trip, the other asleep",
        took[took.len() / 2].as_nanos()
    );
}

async fn reads(handle: &Handle, path: &str) {
    let disk = Rc::new(
        handle
            .open_disk(&DiskSpec {
                path: path.into(),
                read_only: true,
            })
            .expect("the file opens"),
    );
    let blocks = disk.size_bytes() / 4096;
    for depth in [1u32, 32] {
        const N: u32 = 20_000;
        let mut took = Vec::new();
        for _ in 0..3 {
            let (done, all) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
            let begin = Instant::now();
            for _ in 0..depth {
                let (disk, done, all, on) =
                    (disk.clone(), done.clone(), all.clone(), handle.clone());
                let op = async move {
                    let mut buffer = on.buffers().take(4096).await;
                    while done.get() < N {
                        done.set(done.get() + 1);
                        let (back, result) =
                            disk.read(on.random() % blocks * 4096, buffer, 4096).await;
                        result.expect("the file can be read");
                        buffer = back;
                    }
                    all.notify();
                };
                handle.start("read", op).expect("there is room");
            }
            all.notified().await;
            took.push(begin.elapsed());
        }
        show(&format!("random 4 KiB read, depth {depth}"), N, &took);
    }
}

fn main() {
    let path = std::env::args().nth(1);
    let seeds = mesh::<u64>(2)
        .into_iter()
        .map(|e| (e, path.clone()))
        .collect();
    let reactors = run(
        &Config::default(),
        seeds,
        |handle, (endpoint, path)| async move {
            if handle.id() == ReactorId(1) {
                loop {
                    let (from, m) = endpoint.recv().await;
                    endpoint.reply(from, m);
                }
            }
            tasks(&handle).await;
            rings(&handle, &endpoint).await;
            if let Some(path) = path {
                reads(&handle, &path).await;
            }
            std::process::exit(0);
        },
    );
    reactors
        .expect("reactors start")
        .join()
        .expect("reactors do not panic");
}
