//! Measures large drives and many snapshots; see `keelblock_tests::scale`.
use clap::Parser;
use keelblock_tests::scale::{drives, snapshots};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures large drives (sparse, behind loop devices: needs root) and many snapshots.
#[derive(Debug, Parser)]
struct Args {
    /// Sizes of drives, in TiB.
    #[arg(long, value_delimiter = ',', default_value = "1,10")]
    tib: Vec<u64>,
    /// GiB to write at random places of a volume of 64 TiB.
    #[arg(long, default_value = "4")]
    gib: u64,
    /// Blocks to write at random places before the kill.
    #[arg(long, default_value = "60000")]
    blocks: u64,
    /// Snapshots of one volume; 0 for none.
    #[arg(long, default_value = "1000")]
    snapshots: usize,
    /// Where the sparse files go.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
    /// Decides everything that is random.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(keelblock_tests::seed);
    let mut failed = false;
    for tib in args.tib.iter().filter(|tib| **tib > 0) {
        match drives::run(&args.dir, tib << 40, args.gib << 30, args.blocks, seed) {
            Ok(report) => println!("seed {seed}: {report:#?}"),
            Err(error) => {
                eprintln!("{tib} TiB, seed {seed}: {error}");
                failed = true;
            }
        }
    }
    if args.snapshots > 0 {
        match snapshots::run(args.snapshots, seed) {
            Ok(report) => println!("seed {seed}: {report:#?}"),
            Err(error) => {
                eprintln!("{} snapshots, seed {seed}: {error}", args.snapshots);
                failed = true;
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
