//! `cargo xtask bench`: the table of `docs/performance.md`, measured now: a volume on memory, one reactor pinned to core 0, and
//! `keelblock-perf` on core 1. Figures of one machine move by a tenth and more from minute to minute, so what is compared is
//! measured in turns, round after round, and medians count.
use crate::cluster::{build_release, builder};
use crate::run::{Outcome, cargo, step};
use clap::{Args, Subcommand};
use perf::{Figure, Job, figure, median, perf};

mod idle;
mod perf;
mod process;
mod replicas;

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
        /// Nodes; three or more have a volume with three replicas.
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u16).range(1..=5))]
        nodes: u16,
    },
    /// Three nodes: a volume with three replicas in turns with one that has one, and what each write costs in processor time.
    Replicas,
    /// The same of an encrypted volume with three replicas, and one that is not.
    Encryption,
    /// One control process with many volumes and simulated nodes: create, list, memory, traffic with the KVDB. Fails if a list or a create is too slow.
    Control {
        /// `--volumes`, `--nodes`, `--replicas`, `--kvdb`, `--idle`, each with a value; `--no-watches`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Placement on simulated nodes: balance, spread, time, and a rebalance after growth. Fails if a rule or limit is broken.
    Placement {
        /// `--nodes`, `--volumes`, `--seed`, `--moves`, each with a number.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
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
    if let Some(What::Placement { options }) = &args.what {
        return placement(options);
    }
    if let Some(What::Control { options }) = &args.what {
        return control(options);
    }
    build_release()?;
    match &args.what {
        Some(What::Idle { seconds, nodes }) => idle::idle(*seconds, *nodes),
        Some(What::Replicas) => replicas::replicas(args.seconds, args.rounds),
        Some(What::Encryption) => replicas::encryption(args.seconds, args.rounds),
        Some(What::Placement { options }) => placement(options),
        Some(What::Control { options }) => control(options),
        None => table(args),
    }
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
    perf::fill(address, nqn)?;
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

/// It needs no cluster, so nothing else is built.
fn placement(options: &[String]) -> Outcome {
    let words = [
        "run",
        "--release",
        "--package",
        "keelblock-control",
        "--example",
        "placement",
        "--",
    ];
    step(cargo(&words).args(options)).map(drop)
}

/// The control process, its KVDB and `keelctl` are programs of their own; no data path is built.
fn control(options: &[String]) -> Outcome {
    let parts = [
        "--package",
        "keelblock-control",
        "--package",
        "keelblock-cli",
    ];
    step(cargo(&["build", "--release", "--bins"]).args(parts))?;
    let words = [
        "run",
        "--release",
        "--package",
        "keelblock-control",
        "--example",
        "control-scale",
        "--",
    ];
    step(cargo(&words).args(options)).map(drop)
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

fn measure(args: &BenchArgs, row: &Row, target: &str, nqn: &str) -> Outcome<Figure> {
    let job = Job {
        rw: row.rw,
        bs: row.bs,
        depth: row.depth,
        seconds: args.seconds,
        cpu: Some(1),
    };
    job.measure(target, nqn)
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
