//! `cargo xtask guest`, `fuzz`, `kills`, `deaths`, `outage` and `scale`: long tests by themselves, on the release build.
use crate::cluster::{build_release, release_dir};
use crate::run::{Outcome, cargo, root, step};
use clap::Args;
use keelblock_tests::guest;
use std::process::Command;

#[derive(Args)]
pub struct GuestArgs {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the tests with a real Linux host.
pub fn guest(args: &GuestArgs) -> Outcome {
    let missing = guest::missing();
    if !missing.is_empty() {
        return Err(format!(
            "a guest needs: apt-get install --no-install-recommends {}",
            missing.join(" ")
        ));
    }
    build_release()?;
    let mut tests = cargo(&[
        "test",
        "--package",
        "keelblock-tests",
        "--test",
        "guest",
        "--",
    ]);
    tests
        .args(["--nocapture", "--test-threads=1"])
        .args(&args.filter);
    step(tests.env("KEELBLOCK_BIN_DIR", release_dir())).map(drop)
}

/// Runs a program of `keelblock-tests` on the release build.
fn run(program: &str, words: &[&str], seed: Option<u64>) -> Outcome {
    build_release()?;
    let mut command = Command::new(release_dir().join(program));
    command.args(words);
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    step(command.env("KEELBLOCK_BIN_DIR", release_dir())).map(drop)
}

#[derive(Args)]
pub struct FuzzArgs {
    /// PDUs to send; 10000000 is the long run.
    #[arg(long, default_value = "1000000")]
    pdus: u64,
    /// Decides everything that is random; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
    /// Misbehaving hosts at a time.
    #[arg(long, default_value = "2")]
    threads: u64,
}

/// Sends junk to the target of a cluster.
pub fn fuzz(args: &FuzzArgs) -> Outcome {
    let (pdus, threads) = (args.pdus.to_string(), args.threads.to_string());
    let words = ["--pdus", &pdus, "--threads", &threads];
    run("keelblock-fuzz", &words, args.seed)
}

#[derive(Args)]
pub struct KillsArgs {
    /// Kills.
    #[arg(long, default_value = "200")]
    count: u64,
    /// Decides everything that is random but time; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Kills the data path of a cluster while hosts write.
pub fn kills(args: &KillsArgs) -> Outcome {
    let count = args.count.to_string();
    run("keelblock-kills", &["--count", &count], args.seed)
}

#[derive(Args)]
pub struct DeathsArgs {
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
    /// Only these misfortunes, by name and with commas between them, like NodeGone.
    #[arg(long)]
    only: Option<String>,
    /// Each begins when all is well after the one before.
    #[arg(long)]
    one_by_one: bool,
}

/// Ends and pauses processes of several nodes, and cuts and fails what is wanted, while hosts write.
pub fn deaths(args: &DeathsArgs) -> Outcome {
    let (seconds, nodes) = (args.seconds.to_string(), args.nodes.to_string());
    let mut words = vec!["--seconds", &seconds, "--nodes", &nodes];
    words.extend(args.etcd.then_some("--etcd"));
    words.extend(args.only.iter().flat_map(|only| ["--only", only]));
    words.extend(args.one_by_one.then_some("--one-by-one"));
    words.extend(args.cuts.then_some("--cuts"));
    words.extend(args.drives.then_some("--drives"));
    run("keelblock-deaths", &words, args.seed)
}

#[derive(Args)]
pub struct OutageArgs {
    /// How long the key-value database is away.
    #[arg(long, default_value = "60")]
    seconds: u64,
    /// Its processes stand still, and are not killed.
    #[arg(long)]
    pause: bool,
    /// Decides everything that is random but time; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Takes the key-value database away while hosts write, and counts what they do.
pub fn outage(args: &OutageArgs) -> Outcome {
    let seconds = args.seconds.to_string();
    let mut words = vec!["--seconds", &seconds];
    words.extend(args.pause.then_some("--pause"));
    run("keelblock-outage", &words, args.seed)
}

#[derive(Args)]
pub struct ScaleArgs {
    /// Sizes of drives, in TiB; 0 for none. They are sparse files behind loop devices, which needs root.
    #[arg(long, default_value = "1,10")]
    tib: String,
    /// GiB to write at random places of a volume of 64 TiB.
    #[arg(long, default_value = "4")]
    gib: u64,
    /// Blocks to write at random places before the kill.
    #[arg(long, default_value = "60000")]
    blocks: u64,
    /// Snapshots of one volume; 0 for none.
    #[arg(long, default_value = "1000")]
    snapshots: u64,
    /// Decides everything that is random; another each time without it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Measures large drives and many snapshots.
pub fn scale(args: &ScaleArgs) -> Outcome {
    // A sparse file of 10 TiB is more than some file systems of memory take.
    let dir = root().join("target/scale");
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let (gib, blocks) = (args.gib.to_string(), args.blocks.to_string());
    let (snapshots, dir) = (args.snapshots.to_string(), dir.display().to_string());
    let mut words = vec!["--tib", &args.tib, "--gib", &gib, "--blocks", &blocks];
    words.extend(["--snapshots", &snapshots, "--dir", &dir]);
    run("keelblock-scale", &words, args.seed)
}
