//! `cargo xtask guest`, `fuzz` and `kills`: long tests by themselves, on the release build.
use crate::cluster::{build_release, release_dir};
use crate::run::{Outcome, cargo, step};
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
    build_release()?;
    let mut command = Command::new(release_dir().join("keelblock-fuzz"));
    command.args([
        "--pdus",
        &args.pdus.to_string(),
        "--threads",
        &args.threads.to_string(),
    ]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    step(command.env("KEELBLOCK_BIN_DIR", release_dir())).map(drop)
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
    build_release()?;
    let mut command = Command::new(release_dir().join("keelblock-kills"));
    command.args(["--count", &args.count.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    step(command.env("KEELBLOCK_BIN_DIR", release_dir())).map(drop)
}
