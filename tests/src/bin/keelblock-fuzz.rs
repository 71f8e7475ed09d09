//! Starts a cluster and fuzzes its target over live connections; see `keelblock_tests::fuzz`.
use clap::Parser;
use keelblock_tests::cluster::Cluster;
use keelblock_tests::fuzz::{self, Config};
use std::process::ExitCode;

/// Fuzzes the NVMe/TCP target of a cluster of its own.
#[derive(Debug, Parser)]
struct Args {
    /// PDUs to send.
    #[arg(long, default_value = "1000000")]
    pdus: u64,
    /// Decides everything that is random; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
    /// Misbehaving hosts at a time.
    #[arg(long, default_value = "2")]
    threads: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    let device = ["--device", "memory", "--size", "256M"];
    let cluster = Cluster::builder()
        .arg(&device)
        .volume("fuzzed:32M")
        .volume("verified:96M")
        .start();
    match fuzz::run(
        &cluster,
        Config {
            pdus: args.pdus,
            seed,
            threads: args.threads,
            verbose: true,
        },
    ) {
        Ok(report) => {
            let rate = report.pdus as f64 / report.seconds;
            println!("seed {seed}: {report:#?}\n{rate:.0} PDUs/s");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seed {seed}: {error}\n{}", cluster.logs());
            ExitCode::FAILURE
        }
    }
}
