//! `cargo xtask simulate`: clusters of replicas and coordinators by seeds, at length, and whether rules that are left out are found.
use crate::crashes::{program, test};
use crate::run::{Outcome, shown, step_seen};
use clap::Args;
use std::process::Child;
use std::time::{Duration, Instant};

/// Rules that can be left out (`datapath/src/replication/planted.rs`).
const BUGS: &str = include_str!("../../datapath/src/replication/planted.rs");
/// Seeds of a process: few enough that all cores have some to the end.
const SEEDS_AT_ONCE: u64 = 25;
/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct SimulateArgs {
    /// How many seeds.
    #[arg(long, default_value_t = 2_000)]
    pub seeds: u64,
    /// The first one: the same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// End after this time, whatever was reached.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Leave out each rule in its turn, for at most so many seeds, and see that it is found.
    #[arg(long)]
    pub planted: bool,
    /// Only this rule.
    #[arg(long, requires = "planted")]
    pub only: Option<String>,
}

/// Runs seeds in one process per core.
pub fn simulate(args: &SimulateArgs) -> Outcome {
    if args.planted {
        return planted(args);
    }
    let program = program(false)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (began, mut running) = (Instant::now(), Vec::<(u64, Child)>::new());
    let end = args.seed + args.seeds;
    let (mut next, mut done, mut failed) = (args.seed, 0, Vec::new());
    let late = || args.seconds.is_some_and(|s| began.elapsed().as_secs() >= s);
    println!("==> seeds {} to {}", args.seed, end - 1);
    while next < end && !late() || !running.is_empty() {
        while running.len() < cores && next < end && !late() {
            let count = SEEDS_AT_ONCE.min(end - next);
            let mut command = test(&program, "simulator::run::tests::seeds");
            command.env("KEEL_SEED", next.to_string());
            command.env("KEEL_SEEDS", count.to_string());
            command.stdout(std::process::Stdio::null());
            let child = command.spawn();
            let child = child.map_err(|e| format!("{} does not start: {e}", shown(&command)))?;
            running.push((next, child));
            next += count;
        }
        running.retain_mut(|(first, child)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => {
                done += SEEDS_AT_ONCE.min(end - *first);
                false
            }
            _ => {
                failed.push(*first);
                false
            }
        });
        std::thread::sleep(LOOK);
    }
    println!("{done} seeds in {:.0} s", began.elapsed().as_secs_f64());
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "something does not hold from seed {first} on; its own is above, and KEEL_SEED=it KEEL_SEEDS=1 repeats it"
        )),
    }
}

fn planted(args: &SimulateArgs) -> Outcome {
    let program = program(true)?;
    let (_, all) = BUGS.split_once("pub const ALL").unwrap_or_default();
    let names = all
        .split("Bug::")
        .skip(1)
        .filter_map(|rest| rest.split(',').next());
    let mut missed = Vec::new();
    for bug in names.filter(|bug| args.only.as_deref().is_none_or(|only| only == *bug)) {
        let mut command = test(&program, "simulator::run::tests::planted");
        command.env("KEEL_BUG", bug);
        command.env("KEEL_SEED", args.seed.to_string());
        command.env("KEEL_SEEDS", args.seeds.to_string());
        let mut found = false;
        // A bug that is not found is told below; one that ends the process was.
        let ended = step_seen(&mut command, |line| found |= line.contains("FOUND "));
        if !found && !ended.is_err_and(|e| e.contains("signal")) {
            missed.push(bug);
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => Err(format!("not found: {}", missed.join(", "))),
    }
}
