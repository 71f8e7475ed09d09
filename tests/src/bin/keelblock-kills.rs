//! Kills the data path of a cluster over and over while hosts write; see `keelblock_tests::kills`.
use clap::Parser;
use keelblock_tests::kills;
use std::process::ExitCode;

/// Kills the data path of a cluster of its own, and compares what is found.
#[derive(Debug, Parser)]
struct Args {
    /// Kills.
    #[arg(long, default_value = "200")]
    count: u64,
    /// Decides everything that is random but time; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    match kills::run(args.count, seed) {
        Ok(report) => {
            println!("seed {seed}: {report:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}
