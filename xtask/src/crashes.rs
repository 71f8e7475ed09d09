//! `cargo xtask crashes` and `cargo xtask planted`: the store's harness at length, and whether it finds bugs.
use crate::ahead::release_tests;
use crate::run::{Outcome, root, shown, step_seen};
use clap::Args;
use std::process::Command;
use std::time::Instant;

/// Bugs that can be planted (`datapath/src/store/planted.rs`).
const BUGS: &str = include_str!("../../datapath/src/store/planted.rs");

#[derive(Args)]
pub struct CrashesArgs {
    /// Crash points, all processes together.
    #[arg(long, default_value_t = 20_000)]
    pub count: u64,
    /// Where the seeds begin: the same seed gives the same runs.
    #[arg(long)]
    pub seed: Option<u64>,
    /// End after this time, whatever was reached.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Processes beside each other [default: one per core]
    #[arg(long)]
    pub processes: Option<u64>,
}

#[derive(Args)]
pub struct PlantedArgs {
    /// Only this bug.
    #[arg(long)]
    pub bug: Option<String>,
    /// Crash points after which a bug counts as not found.
    #[arg(long, default_value_t = 50_000)]
    pub bound: u64,
    /// Where the seeds begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The test program, built in release; `planted` with bugs to switch on.
pub fn program(planted: bool) -> Outcome<std::path::PathBuf> {
    let mut build = release_tests();
    build.args(["--message-format", "json-render-diagnostics"]);
    if planted {
        build.env("RUSTFLAGS", "--cfg planted");
        build.env("CARGO_TARGET_DIR", root().join("target/planted"));
    }
    let mut found = None;
    println!("\n==> {}", shown(&build));
    let output = build.stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|e| format!("cannot build the tests: {e}"))?;
    if !output.status.success() {
        return Err("the tests do not build".into());
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = line
            .split_once("\"executable\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        if let Some((path, _)) = path {
            found = Some(path.into());
        }
    }
    found.ok_or_else(|| "cargo named no test program".to_owned())
}

/// One test of that program, which tells what it does.
pub fn test(program: &std::path::Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", name, "--nocapture"])
        .current_dir(root().join("datapath"));
    command
}

/// Runs the harness in several processes, each from seeds of its own.
pub fn crashes(args: &CrashesArgs) -> Outcome {
    let program = program(false)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let processes = args.processes.unwrap_or(cores).max(1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = args
        .seed
        .unwrap_or_else(|| now.map_or(1, |t| t.as_secs() % 1_000_000 * 1000));
    let mut running = Vec::new();
    let began = Instant::now();
    for n in 0..processes {
        let mut command = test(&program, "store::tests::crashes");
        command.env("KEEL_CRASHES", args.count.div_ceil(processes).to_string());
        command.env("KEEL_SEED", (seed + n * 100_000_000).to_string());
        if let Some(seconds) = args.seconds {
            command.env("KEEL_SECONDS", seconds.to_string());
        }
        println!("==> {}", shown(&command));
        running.push(
            command
                .spawn()
                .map_err(|e| format!("cannot start the harness: {e}"))?,
        );
    }
    let mut failed = 0;
    for mut child in running {
        let status = child
            .wait()
            .map_err(|e| format!("cannot wait for the harness: {e}"))?;
        failed += u32::from(!status.success());
    }
    println!("{:.0} s", began.elapsed().as_secs_f64());
    match failed {
        0 => Ok(()),
        n => Err(format!(
            "{n} of {processes} processes found something: see the seeds above"
        )),
    }
}

/// A bug, and the rule of the design that it leaves out.
struct Planted {
    name: String,
    rule: String,
}

/// All bugs, with what their documentation says of their rule.
fn bugs() -> Vec<Planted> {
    let (enumeration, all) = BUGS.split_once("pub const ALL").unwrap_or((BUGS, ""));
    let rule = |name: &str| {
        let says = enumeration.lines().zip(enumeration.lines().skip(1));
        let says = says
            .filter(|(_, line)| line.trim_start().starts_with(&format!("{name} = ")))
            .find_map(|(says, _)| {
                says.trim_start()
                    .strip_prefix("/// ")?
                    .split([' ', ':'])
                    .next()
            });
        let is_rule = |word: &&str| {
            let number = word.strip_prefix(['S', '§']);
            number.is_some_and(|n| n.parse::<u8>().is_ok())
        };
        let rule = says.filter(is_rule);
        rule.map_or("none by itself".to_owned(), str::to_owned)
    };
    let names = all
        .split("Bug::")
        .skip(1)
        .filter_map(|rest| rest.split(',').next());
    let planted = names.map(|name| Planted {
        name: name.to_owned(),
        rule: rule(name),
    });
    planted.collect()
}

/// Plants each bug in a process of its own, and fails if one is not found.
pub fn planted(args: &PlantedArgs) -> Outcome {
    let program = program(true)?;
    let mut table = Vec::new();
    let mut missed = Vec::new();
    for Planted { name: bug, rule } in bugs() {
        if args.bug.as_ref().is_some_and(|only| *only != bug) {
            continue;
        }
        let mut command = test(&program, "store::tests::planted::planted");
        command.env("KEEL_BUG", &bug);
        command.env("KEEL_CRASHES", args.bound.to_string());
        command.env("KEEL_SEED", args.seed.to_string());
        let mut found = None;
        let began = Instant::now();
        let ended = step_seen(&mut command, |line| {
            // libtest's own words stand before ours in the first line.
            if let Some((_, what)) = line.split_once("FOUND ") {
                found = what.split_once(": ").map(|(_, how)| how.to_owned());
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        match (found, ended) {
            (Some(how), _) => table.push(format!("| {bug} | {rule} | {how} | {seconds:.1} |")),
            // A bug that ends the process is found as well; what ended it is above.
            (None, Err(e)) if e.contains("signal") => table.push(format!(
                "| {bug} | {rule} | the process died | {seconds:.1} |"
            )),
            (None, _) => missed.push(bug),
        }
    }
    println!("\n==> planted bugs");
    println!("| bug | rule left out | found | seconds |\n| --- | --- | --- | --- |");
    for line in &table {
        println!("{line}");
    }
    for bug in &missed {
        println!("MISSED  {bug}");
    }
    if missed.is_empty() {
        Ok(())
    } else {
        Err(format!("{} planted bugs were not found", missed.len()))
    }
}
