//! The programs of a node: beside this one. Under `cargo run` only this package was built, so there cargo is asked to bring the
//! others up to date; that is quick when they are, and never silent.
use crate::failure::{Failure, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of a node.
const PROGRAMS: [&str; 2] = ["keelblock-datapath", "keelblock-control"];

/// Where the programs of a node are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `keelblock-datapath`.
    pub datapath: PathBuf,
    /// `keelblock-control`.
    pub control: PathBuf,
}

impl Binaries {
    /// Finds the programs; under cargo, builds them first.
    pub fn find() -> Result<Binaries> {
        let what = "find the programs of a node";
        let exe = std::env::current_exe().map_err(|e| Failure::local(what, e))?;
        let dir = exe
            .parent()
            .ok_or_else(|| Failure::local(what, "this program has no directory"))?;
        if let (Some(cargo), Some(manifest)) = (
            std::env::var_os("CARGO"),
            std::env::var_os("CARGO_MANIFEST_DIR"),
        ) {
            build(Path::new(&cargo), Path::new(&manifest), dir)?;
        }
        let [datapath, control] = PROGRAMS.map(|name| dir.join(name));
        for program in [&datapath, &control] {
            if !program.is_file() {
                let why = "it is not there. `cargo build --release --workspace --bins` builds all programs into one directory";
                return Err(Failure::local(
                    format!("program {}", program.display()),
                    why,
                ));
            }
        }
        Ok(Binaries { datapath, control })
    }
}

/// Has cargo build the programs into `dir`, which is `target/PROFILE`.
fn build(cargo: &Path, manifest_dir: &Path, dir: &Path) -> Result<()> {
    let mut command = Command::new(cargo);
    command.arg("build").current_dir(manifest_dir);
    match dir.file_name().and_then(|d| d.to_str()) {
        Some("debug") | None => {}
        Some("release") => drop(command.arg("--release")),
        Some(profile) => drop(command.args(["--profile", profile])),
    }
    // Of the whole workspace, as `cargo run` chooses it: of these packages alone, dependencies would have other features, and most of what
    // `cargo run` has just built would be built again. The command line goes with them: what `up` prints tells people to use it.
    command.arg("--workspace");
    for program in PROGRAMS.into_iter().chain(["keelctl"]) {
        command.args(["--bin", program]);
    }
    println!(
        "Bringing {} and keelctl up to date with cargo (the first time takes minutes).",
        PROGRAMS.join(", ")
    );
    // What cargo set for this program is not meant for another run of cargo.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    let what = "build the programs of a node";
    let status = command
        .status()
        .map_err(|e| Failure::local(what, format!("{}: {e}", cargo.display())))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::local(what, format!("cargo failed ({status})")))
    }
}
