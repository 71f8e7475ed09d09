//! The executables under test.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Packages whose programs the tests start.
const PACKAGES: [&str; 3] = ["keelblock-cli", "keelblock-datapath", "keelblock-control"];

/// The directory with the programs: `KEELBLOCK_BIN_DIR`, or that of this build, where cargo brings them up to date first (once).
///
/// # Panics
/// If cargo cannot build them.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| match std::env::var_os("KEELBLOCK_BIN_DIR") {
        Some(dir) => dir.into(),
        None => build(),
    })
}

/// One of them.
pub fn program(name: &str) -> PathBuf {
    bin_dir().join(name)
}

/// Builds the programs with the profile that this test was built with.
fn build() -> PathBuf {
    let exe = std::env::current_exe().expect("a process knows its executable");
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM.
    let mut dir = exe.parent().expect("an executable lies in a directory");
    if dir.ends_with("deps") {
        dir = dir.parent().expect("deps lies in the profile's directory");
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg("build").current_dir(workspace());
    if dir.ends_with("release") {
        command.arg("--release");
    }
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    let status = command.status().expect("cargo starts");
    assert!(
        status.success(),
        "cargo could not build the programs under test"
    );
    dir.into()
}

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies in the workspace")
}
