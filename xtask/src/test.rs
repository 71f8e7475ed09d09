//! `cargo xtask test`: every test there is, and one summary at the end.
use crate::ahead::{Ahead, loom_tests};
use crate::crashes::{CrashesArgs, crashes, program};
use crate::run::{Outcome, cargo, root, step, step_seen};
use crate::simulate::{SimulateArgs, simulate};
use crate::tools;
use clap::Args;

/// What CI runs of the store's harness.
const CRASHES: CrashesArgs = CrashesArgs {
    count: 20_000,
    seed: None,
    seconds: None,
    processes: None,
};

/// And of clusters.
const SEEDS: SimulateArgs = SimulateArgs {
    seeds: 2_000,
    seed: 1,
    seconds: None,
    planted: false,
    only: None,
};

#[derive(Args)]
pub struct TestArgs {
    /// Leave out the tests with a real Linux host in a virtual machine.
    #[arg(long)]
    pub no_guest: bool,
    /// Leave out what needs another build: crash points, simulated clusters and long random tests in release, loom, the sanitizers.
    #[arg(long)]
    pub quick: bool,
    /// Passed on to the test programs, for example a name to filter by.
    #[arg(last = true)]
    pub filter: Vec<String>,
}

/// What the `test result:` lines of all test programs add up to.
#[derive(Default)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<String>,
    skipped: Vec<String>,
}

impl Summary {
    /// Counts a line of libtest: `test result: ok. 3 passed; 0 failed; 1 ignored; …`, or `test a::b ... FAILED`.
    fn see(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in counts.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn print(&self) {
        println!("\n==> summary");
        for name in &self.failures {
            println!("FAILED  {name}");
        }
        for what in &self.skipped {
            println!("SKIPPED {what}");
        }
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "test result: {verdict}. {} passed; {} failed; {} ignored (all test programs together)",
            self.passed, self.failed, self.ignored
        );
    }
}

/// Runs everything, goes on after a failed part, and fails at the end if any part did.
pub fn test(args: &TestArgs) -> Outcome {
    let mut summary = Summary::default();
    let mut failed = Vec::new();
    let missing = keelblock_tests::guest::missing();
    let guest = !args.no_guest && missing.is_empty();
    if args.no_guest {
        summary.skipped.push("guest tests (--no-guest)".into());
    } else if !guest {
        summary.skipped.push(format!(
            "guest tests: apt-get install {}",
            missing.join(" ")
        ));
    }

    // The whole-system tests start the programs, so these come first; together with the tests, since cargo would otherwise build
    // most crates twice, with and without the features that only tests ask of their dependencies.
    step(&mut cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    let mut ahead = (!args.quick).then(Ahead::begin);
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast", "--"]);
    tests
        .args(&args.filter)
        .env("KEELBLOCK_BIN_DIR", root().join("target/debug"));
    if !guest {
        tests.env("KEELBLOCK_NO_GUEST", "1");
    }
    failed.extend(step_seen(&mut tests, |line| summary.see(line)).err());
    if let Some(ahead) = &mut ahead {
        ahead.wait();
    }

    if args.quick {
        summary.skipped.push(
            "20,000 crash points, 2,000 simulated clusters, the store's random tests at length, loom, AddressSanitizer (--quick)"
                .into(),
        );
    } else {
        failed.extend(crashes(&CRASHES).err());
        failed.extend(simulate(&SEEDS).err());
        match longer() {
            Ok(mut longer) => {
                let before = summary.passed;
                failed.extend(step_seen(&mut longer, |line| summary.see(line)).err());
                if summary.passed == before {
                    failed.push("none of the store's random tests has these names any more".into());
                }
            }
            Err(e) => failed.push(e),
        }
        let mut loom = loom_tests(&["--", "loom"]);
        failed.extend(step_seen(&mut loom, |line| summary.see(line)).err());
        if tools::has_nightly() {
            failed.extend(step_seen(&mut address_sanitizer(), |line| summary.see(line)).err());
        } else {
            summary
                .skipped
                .push("AddressSanitizer: rustup toolchain install nightly".into());
        }
    }
    summary.print();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("\n       "))
    }
}

/// The store's tests of random work once more, in release and with more cases than a build for debugging has the time for.
fn longer() -> Outcome<std::process::Command> {
    let mut command = std::process::Command::new(program(false)?);
    command
        .args(["store::mover", "store::map::family", "store::group"])
        .args(["store::engine::catalogue", "replication::wire"])
        .env("PROPTEST_CASES", "512")
        .current_dir(root().join("datapath"));
    Ok(command)
}

/// The tests of the crate that hands out DMA memory, under AddressSanitizer (nightly only).
fn address_sanitizer() -> std::process::Command {
    let mut command = std::process::Command::new("cargo");
    command
        .args([
            "+nightly",
            "test",
            "--package",
            "keelblock-hugepages",
            "--target",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC")
        .env_remove("CARGO")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root().join("target/asan"));
    command
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn adds_up_the_results_of_several_programs() {
        let mut s = Summary::default();
        s.see("running 2 tests");
        s.see("test nvmf::a ... ok");
        s.see("test nvmf::b ... FAILED");
        s.see("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.02s");
        s.see("test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((s.passed, s.failed, s.ignored), (6, 1, 2));
        assert_eq!(s.failures, ["nvmf::b"]);
    }
}
