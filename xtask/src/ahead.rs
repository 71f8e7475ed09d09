//! Builds that later steps need, made while tests mostly wait: at the lowest priority, in folders of their own, so that cargo's locks do
//! not meet.
use crate::run::{cargo, root, shown};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// Builds under way. What fails here fails again in the step that needs it, which shows why.
pub struct Ahead(Option<JoinHandle<()>>);

impl Ahead {
    /// Begins to build the release programs, the release tests of the data path and those for loom, one after the other.
    pub fn begin() -> Self {
        Self(Some(std::thread::spawn(|| {
            for mut build in builds() {
                let name = shown(&build);
                let status = build
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .map(lowered)
                    .and_then(|mut child| child.wait());
                match status {
                    Ok(status) if status.success() => println!("==> built meanwhile: {name}"),
                    other => println!("==> not built meanwhile ({other:?}): {name}"),
                }
            }
        })))
    }

    /// Waits until nothing is built any more; each build ends by itself.
    pub fn wait(&mut self) {
        if let Some(thread) = self.0.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

/// At the lowest priority; what it starts inherits that. A kernel that refuses costs time, nothing else.
fn lowered(child: Child) -> Child {
    let pid = child.id().to_string();
    let mut renice = Command::new("renice");
    renice.args(["-n", "19", "-p", &pid]).stdout(Stdio::null());
    if !renice.status().is_ok_and(|s| s.success()) {
        println!("==> `renice` did not lower the priority of process {pid}");
    }
    child
}

fn builds() -> [Command; 3] {
    [programs(), release_tests(), loom_tests(&["--no-run"])]
}

/// The programs that a user runs, of the whole workspace: its features are those of `cargo run`.
fn programs() -> Command {
    let mut command = cargo(&["build", "--release", "--workspace"]);
    for name in [
        "keelblock",
        "keelctl",
        "keelblock-control",
        "keelblock-datapath",
    ] {
        command.args(["--bin", name]);
    }
    command
}

/// Builds the data path's unit tests in release: crash points and simulated clusters are among them.
pub fn release_tests() -> Command {
    let package = ["--package", "keelblock-datapath", "--lib"];
    let mut command = cargo(&["test", "--release", "--no-run"]);
    command.args(package);
    command
}

/// The data path's tests under loom, with more arguments.
pub fn loom_tests(more: &[&str]) -> Command {
    let package = ["--package", "keelblock-datapath", "--lib"];
    let mut command = cargo(&["test", "--release"]);
    command.args(package).args(more);
    // Half of what building it costs, and nothing that its tests would notice.
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    command.env("RUSTFLAGS", "--cfg loom");
    command.env("CARGO_TARGET_DIR", root().join("target/loom"));
    command
}
