//! The key-value database is away while hosts write; see `keelblock_tests::outage`.
use clap::Parser;
use keelblock_tests::outage::{self, Plan};
use std::process::ExitCode;

/// Takes the key-value database of a cluster of its own away, and counts what hosts do.
#[derive(Debug, Parser)]
struct Args {
    /// How long it is away.
    #[arg(long, default_value = "60")]
    seconds: u64,
    /// Its processes stand still, and are not killed.
    #[arg(long)]
    pause: bool,
    /// Decides everything that is random but time; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    let plan = Plan {
        seconds: args.seconds,
        pause: args.pause,
        seed,
    };
    match outage::run(plan) {
        Ok(report) => {
            println!("seed {seed}:\n{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}
