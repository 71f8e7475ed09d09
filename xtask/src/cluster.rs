//! A cluster for a task: the release build of everything, and `keelblock up` on free ports in a temporary directory.
use crate::run::{Outcome, cargo, root, step};
use keelblock_tests::cluster::{Builder, Cluster};
use std::path::PathBuf;

/// Programs that somebody has built already, to be used as they are.
const BIN_DIR: &str = "KEELBLOCK_BIN_DIR";

/// Where the release build's programs are.
pub fn release_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os(BIN_DIR) {
        return dir.into();
    }
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("release")
}

/// Builds all programs for release.
pub fn build_release() -> Outcome {
    if std::env::var_os(BIN_DIR).is_some() {
        println!(
            "Using the programs in {} as they are.",
            release_dir().display()
        );
        return Ok(());
    }
    step(&mut cargo(&["build", "--release", "--workspace", "--bins"])).map(drop)
}

/// A cluster of the release build, to be started.
pub fn builder() -> Builder {
    let dir = release_dir();
    Cluster::builder().programs(dir)
}
