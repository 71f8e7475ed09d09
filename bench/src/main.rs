//! `keelblock-perf`: load generator for NVMe/TCP targets.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keelblock_bench::limit::{LimitOptions, limit};
use keelblock_bench::size::parse_size;

/// Load generator for NVMe/TCP targets.
#[derive(Parser)]
#[command(name = "keelblock-perf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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

fn run_limit(args: LimitArgs) -> Result<(), Box<dyn std::error::Error>> {
    let report = limit(LimitOptions {
        depth: args.depth,
        write: args.rw == Direction::W,
        block_bytes: usize::try_from(args.bs)?,
        duration: Duration::try_from_secs_f64(args.seconds)?,
        server_core: args.server_cpu,
        client_core: args.cpu,
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
    Ok(())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Limit(args) => run_limit(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelblock-perf: {error}");
            ExitCode::FAILURE
        }
    }
}
