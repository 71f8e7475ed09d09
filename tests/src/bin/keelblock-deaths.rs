//! Processes of several nodes die and pause, packets are dropped and drives fail at random while hosts write; see `keelblock_tests::deaths`.
use clap::Parser;
use keelblock_tests::deaths::{self, Misfortune, Plan};
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
    /// Drop packets between nodes, the key-value database and hosts, too: needs root and nft.
    #[arg(long)]
    cuts: bool,
    /// Let drives fail and fill up, too: needs root.
    #[arg(long)]
    drives: bool,
    /// Nodes; of more than three some have no replica of a volume.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(3..=5))]
    nodes: u16,
    /// Use an etcd of three members, which die, too: it must be installed.
    #[arg(long)]
    etcd: bool,
    /// Only these misfortunes.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Misfortune>,
    /// Each begins when all is well after the one before.
    #[arg(long)]
    one_by_one: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    if args.cuts
        && let Err(error) = deaths::cuts::leave()
    {
        eprintln!(
            "--cuts: no network of its own, which needs root, `ip` and `nft` (nftables): {error}"
        );
        return ExitCode::FAILURE;
    }
    let plan = Plan {
        seconds: args.seconds,
        seed,
        cuts: args.cuts,
        drives: args.drives,
        nodes: args.nodes,
        etcd: args.etcd,
        only: args.only,
        one_by_one: args.one_by_one,
    };
    match deaths::run(plan) {
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
