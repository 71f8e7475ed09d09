//! Processes of three nodes die and pause at random while hosts write; see `keelblock_tests::deaths`.
use clap::Parser;
use keelblock_tests::deaths;
use std::process::ExitCode;

/// Ends and pauses processes of a cluster of its own, and compares what is found.
#[derive(Debug, Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value = "1800")]
    seconds: u64,
    /// Decides everything that is random but time; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    match deaths::run(args.seconds, seed) {
        Ok(report) => {
            println!("seed {seed}: {report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}
