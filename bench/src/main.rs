//! `keelblock-perf`: load generator for NVMe/TCP targets.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keelblock_bench::limit::{LimitOptions, limit};
use keelblock_bench::run::{RunOptions, run};
use keelblock_bench::size::parse_size;
use keelblock_bench::workload::Pattern;
use keelblock_nvme::pdu::Digests;

/// Load generator for NVMe/TCP targets.
#[derive(Parser)]
#[command(name = "keelblock-perf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load a target and report rates and latencies; exits with 1 if an I/O failed or --verify found a wrong block
    Run(RunArgs),
    /// The loopback limit: the bytes of the exchanges without the protocol
    Limit(LimitArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Blocks come from the server
    #[value(alias = "read", alias = "randread")]
    R,
    /// Blocks go to the server
    #[value(alias = "write", alias = "randwrite")]
    W,
}

/// A rate that makes a finite interval.
fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("give I/Os per second, from 0.001 to 1e9".into()),
    }
}

fn parse_target(text: &str) -> Result<SocketAddr, String> {
    let mut found = text
        .to_socket_addrs()
        .map_err(|e| format!("{e}; give ADDRESS:PORT"))?;
    found.next().ok_or_else(|| "the name has no address".into())
}

#[derive(Args)]
struct RunArgs {
    /// Address and port of the target
    #[arg(long, value_parser = parse_target)]
    target: SocketAddr,
    /// NQN of the subsystem
    #[arg(long)]
    nqn: String,
    /// NQN to connect as
    #[arg(long, default_value = "nqn.2026-01.io.keelblock:perf")]
    hostnqn: String,
    /// Namespace
    #[arg(long, default_value_t = 1)]
    nsid: u32,
    /// Pattern
    #[arg(long, default_value = "randread")]
    rw: Pattern,
    /// Percentage of reads in rw and randrw
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    mix: u8,
    /// Bytes per I/O, such as 4k
    #[arg(long, default_value = "4k", value_parser = parse_size)]
    bs: u64,
    /// Commands in flight per queue; the controller's queues may allow fewer
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// I/O queues, all polled by one thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queues: u16,
    /// How long to count, in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to run before counting, in seconds
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// I/Os per second to start, over all queues; latencies then count from when an I/O was due
    #[arg(long, value_parser = parse_rate)]
    rate: Option<f64>,
    /// Write the whole range once before the run, so that reads find blocks that exist
    #[arg(long)]
    fill: bool,
    /// Write stamped blocks over the whole range first, check all that is read, read everything back at the end
    #[arg(long)]
    verify: bool,
    /// Core to pin to
    #[arg(long)]
    cpu: Option<usize>,
    /// Ask for header digests
    #[arg(long)]
    hdgst: bool,
    /// Ask for data digests
    #[arg(long)]
    ddgst: bool,
    /// Disable submission queue flow control, so that the controller may leave out responses to reads
    #[arg(long)]
    disable_sqflow: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Bytes from the start of the namespace to use; all of it if not given
    #[arg(long, value_parser = parse_size)]
    range: Option<u64>,
    /// Seed of the workload
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct LimitArgs {
    /// Exchanges outstanding
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Direction of the blocks
    #[arg(long, default_value = "r")]
    rw: Direction,
    /// Bytes of a block, such as 4k
    #[arg(long, default_value = "4k", value_parser = parse_size)]
    bs: u64,
    /// How long to count, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Let our initiator be the client: what the load generator itself could reach
    #[arg(long)]
    initiator: bool,
    /// Core of the server
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Core of the client
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn run_load(args: RunArgs) -> Outcome {
    let report = run(&RunOptions {
        target: args.target,
        nqn: args.nqn,
        hostnqn: args.hostnqn,
        nsid: args.nsid,
        pattern: args.rw,
        mix: args.mix,
        io_bytes: usize::try_from(args.bs)?,
        depth: args.depth,
        queues: args.queues,
        duration: Duration::try_from_secs_f64(args.seconds)?,
        warmup: Duration::try_from_secs_f64(args.warmup)?,
        rate: args.rate,
        fill: args.fill,
        verify: args.verify,
        cpu: args.cpu,
        digests: Digests {
            header: args.hdgst,
            data: args.ddgst,
        },
        sq_flow_control: !args.disable_sqflow,
        range_bytes: args.range,
        seed: args.seed,
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_limit(args: LimitArgs) -> Outcome {
    let report = limit(LimitOptions {
        depth: args.depth,
        write: args.rw == Direction::W,
        block_bytes: usize::try_from(args.bs)?,
        duration: Duration::try_from_secs_f64(args.seconds)?,
        server_core: args.server_cpu,
        client_core: args.cpu,
        initiator: args.initiator,
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "limit {} depth {} bs {}: {:.0} IOPS, {:.1} MB/s, mean {:.2} us, {:.2} server calls per I/O",
            if report.write { "write" } else { "read" },
            report.depth,
            report.block_bytes,
            report.iops,
            report.mb_per_s,
            report.mean_us,
            report.server_calls_per_io,
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run_load(args),
        Command::Limit(args) => run_limit(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("keelblock-perf: {error}");
            ExitCode::FAILURE
        }
    }
}
