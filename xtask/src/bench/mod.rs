//! `cargo xtask bench`: the table of `docs/performance.md`, measured now: a volume on memory, one reactor pinned to core 0, and
//! `keelblock-perf` on core 1. Figures of one machine move by a tenth and more from minute to minute, so what is compared is
//! measured in turns, round after round, and medians count.
use crate::cluster::{build_release, builder, release_dir};
use crate::run::Outcome;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::Duration;

#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Seconds of each measurement.
    #[arg(long, default_value = "3")]
    seconds: f64,
    /// Rounds; medians over them are shown.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Another target to measure in turn with ours, ADDRESS:PORT.
    #[arg(long, requires = "peer_nqn")]
    peer: Option<String>,
    /// Its subsystem.
    #[arg(long, requires = "peer")]
    peer_nqn: Option<String>,
    /// How our reactors wait.
    #[arg(long, default_value = "adaptive", value_parser = ["adaptive", "always"])]
    poll: String,
    /// Only rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Subcommand)]
enum What {
    /// What a cluster costs that nobody uses: CPU of all its processes, resident memory. Fails above 1 % of a core or 200 MiB.
    Idle {
        /// Seconds to watch.
        #[arg(long, default_value = "30")]
        seconds: u64,
    },
}

/// A row of the table.
struct Row {
    name: &'static str,
    rw: &'static str,
    bs: &'static str,
    depth: u32,
    /// Whether the row is about latency (less is better) rather than rate.
    latency: bool,
}

const ROWS: [Row; 8] = [
    Row {
        name: "4k randread QD1",
        rw: "randread",
        bs: "4k",
        depth: 1,
        latency: true,
    },
    Row {
        name: "4k randread QD32",
        rw: "randread",
        bs: "4k",
        depth: 32,
        latency: false,
    },
    Row {
        name: "4k randread QD128",
        rw: "randread",
        bs: "4k",
        depth: 128,
        latency: false,
    },
    Row {
        name: "4k randwrite QD1",
        rw: "randwrite",
        bs: "4k",
        depth: 1,
        latency: true,
    },
    Row {
        name: "4k randwrite QD32",
        rw: "randwrite",
        bs: "4k",
        depth: 32,
        latency: false,
    },
    Row {
        name: "4k randwrite QD128",
        rw: "randwrite",
        bs: "4k",
        depth: 128,
        latency: false,
    },
    Row {
        name: "128k read QD8",
        rw: "read",
        bs: "128k",
        depth: 8,
        latency: false,
    },
    Row {
        name: "128k write QD8",
        rw: "write",
        bs: "128k",
        depth: 8,
        latency: false,
    },
];

/// Runs the table, or what else was asked for.
pub fn bench(args: &BenchArgs) -> Outcome {
    build_release()?;
    match &args.what {
        Some(What::Idle { seconds }) => idle(*seconds),
        None => table(args),
    }
}

/// One measurement.
#[derive(Clone, Copy, Default)]
struct Figure {
    iops: f64,
    mb_per_s: f64,
    mean_us: f64,
}

fn table(args: &BenchArgs) -> Outcome {
    let options = [
        "--device",
        "memory",
        "--size",
        "1280M",
        "--reactors",
        "1",
        "--cpus",
        "0",
        "--poll",
        &args.poll,
    ];
    let cluster = builder().arg(&options).volume("bench:1G").start();
    let ready = cluster.ready();
    let ours = (
        ready.nodes[0].nvme.to_string(),
        ready.volume("bench").nqn.clone(),
    );
    // Memory that is touched for the first time costs a page fault, which is not what the table is about.
    let (address, nqn) = (ours.0.as_str(), ours.1.as_str());
    perf(&[
        "run",
        "--target",
        address,
        "--nqn",
        nqn,
        "--rw",
        "write",
        "--bs",
        "128k",
        "--fill",
        "--seconds",
        "0.1",
        "--json",
    ])?;
    println!(
        "\n{:20} {:>22} {:>22} {:>14} {:>22} {:>8}",
        "", "keelblock", "loopback limit", "of the limit", "peer", "to peer"
    );
    for row in ROWS.iter().filter(|r| {
        args.only
            .as_ref()
            .is_none_or(|o| r.name.contains(o.as_str()))
    }) {
        let (mut own, mut limits, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            own.push(measure(args, row, &ours.0, &ours.1)?);
            limits.push(limit(args, row)?);
            if let (Some(peer), Some(nqn)) = (&args.peer, &args.peer_nqn) {
                peers.push(measure(args, row, peer, nqn)?);
            }
        }
        let (own, limit) = (median(&own), median(&limits));
        let of_limit = own.iops / limit.iops;
        let (peer, to_peer) = if peers.is_empty() {
            (String::new(), String::new())
        } else {
            let peer = median(&peers);
            let ratio = if row.latency {
                own.mean_us / peer.mean_us
            } else {
                own.iops / peer.iops
            };
            (show(peer, row), format!("{ratio:.2}"))
        };
        println!(
            "{:20} {:>22} {:>22} {of_limit:>14.2} {peer:>22} {to_peer:>8}",
            row.name,
            show(own, row),
            show(limit, row)
        );
    }
    println!(
        "\nRows of depth 1 compare mean latencies (less than 1.00 to the peer is better), the others rates."
    );
    Ok(())
}

fn show(figure: Figure, row: &Row) -> String {
    if row.latency {
        format!("{:.1} us ({:.1}k IOPS)", figure.mean_us, figure.iops / 1e3)
    } else if row.bs == "4k" {
        format!("{:.0}k IOPS", figure.iops / 1e3)
    } else {
        format!("{:.0} MB/s", figure.mb_per_s)
    }
}

/// The round in the middle by rate.
fn median(rounds: &[Figure]) -> Figure {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    sorted[sorted.len() / 2]
}

fn measure(args: &BenchArgs, row: &Row, target: &str, nqn: &str) -> Outcome<Figure> {
    let (depth, seconds) = (row.depth.to_string(), args.seconds.to_string());
    let report = perf(&[
        "run",
        "--target",
        target,
        "--nqn",
        nqn,
        "--rw",
        row.rw,
        "--bs",
        row.bs,
        "--depth",
        &depth,
        "--seconds",
        &seconds,
        "--warmup",
        "0.5",
        "--cpu",
        "1",
        "--json",
    ])?;
    let total = &report["total"];
    if total["errors"].as_u64() != Some(0) {
        return Err(format!("{}: I/O failed: {report}", row.name));
    }
    figure(total)
}

fn limit(args: &BenchArgs, row: &Row) -> Outcome<Figure> {
    let (depth, seconds) = (row.depth.to_string(), args.seconds.to_string());
    let rw = if row.rw.contains("write") { "w" } else { "r" };
    let report = perf(&[
        "limit",
        "--depth",
        &depth,
        "--rw",
        rw,
        "--bs",
        row.bs,
        "--seconds",
        &seconds,
        "--json",
    ])?;
    figure(&report)
}

fn figure(report: &Value) -> Outcome<Figure> {
    let field = |name: &str| {
        report[name]
            .as_f64()
            .ok_or_else(|| format!("keelblock-perf did not report {name}: {report}"))
    };
    Ok(Figure {
        iops: field("iops")?,
        mb_per_s: field("mb_per_s")?,
        mean_us: field("mean_us")?,
    })
}

fn perf(words: &[&str]) -> Outcome<Value> {
    let output = Command::new(release_dir().join("keelblock-perf"))
        .args(words)
        .output();
    let output = output.map_err(|e| format!("cannot start keelblock-perf: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("keelblock-perf {} failed: {said}", words.join(" ")));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("keelblock-perf printed no JSON: {e}"))
}

/// Share of a core that an idle cluster may use, all processes together.
const IDLE_CPU_MAX: f64 = 0.01;
/// Memory that a data path with default pools may hold.
const DATAPATH_RSS_MAX: u64 = 200 << 20;

fn idle(seconds: u64) -> Outcome {
    let cluster = builder().volume("idle:1G").start();
    let node = cluster.ready().nodes[0].clone();
    let pid = |pid: Option<u32>| pid.ok_or("a process is not running");
    let processes = [
        ("up", cluster.up_pid()),
        ("datapath", pid(node.datapath_pid)?),
        ("control", pid(node.control_pid)?),
    ];
    // What starting up left to do is not idling.
    std::thread::sleep(Duration::from_secs(3));
    let before = processes.map(|(_, pid)| cpu_seconds(pid));
    std::thread::sleep(Duration::from_secs(seconds));
    let mut sum = 0.0;
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let share = (cpu_seconds(pid)? - before?) / seconds as f64;
        println!(
            "{name:10} {:6.2} % of a core  {:4} MiB resident",
            share * 100.0,
            rss(pid)? >> 20
        );
        sum += share;
    }
    println!("{:10} {:6.2} % of a core", "together", sum * 100.0);
    let memory = rss(processes[1].1)?;
    if sum > IDLE_CPU_MAX {
        return Err(format!(
            "an idle cluster uses {:.2} % of a core",
            sum * 100.0
        ));
    }
    if memory > DATAPATH_RSS_MAX {
        return Err(format!("the data path holds {} MiB", memory >> 20));
    }
    Ok(())
}

/// User and system time of a process so far. `/proc/PID/stat` counts in hundredths of a second.
fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|e| format!("process {pid}: {e}"))?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|f| f.parse::<f64>().ok())
            .ok_or(format!("/proc/{pid}/stat is odd"))
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn rss(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|e| format!("process {pid}: {e}"))?;
    let kib = status.lines().find_map(|l| {
        l.strip_prefix("VmRSS:")?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.map(|k| k << 10)
        .ok_or_else(|| format!("/proc/{pid}/status is odd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_costs() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(rss(pid).unwrap() > 1 << 20);
    }

    #[test]
    fn the_median_is_a_round() {
        let rounds = [3.0, 1.0, 2.0].map(|iops| Figure {
            iops,
            ..Figure::default()
        });
        assert_eq!(median(&rounds).iops, 2.0);
    }
}
