//! `cargo xtask ci`: what must hold before a change is merged.
use crate::run::{Outcome, cargo, step};
use crate::test::{TestArgs, test};
use keelblock_tests::guest::find_program;

/// Cheap checks first, and nothing goes on after a failure.
pub fn ci() -> Outcome {
    step(&mut cargo(&["fmt", "--all", "--", "--check"]))?;
    step(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    // A folder's story names its modules, private ones too: those who read it have the source.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    step(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", flags))?;
    if find_program("cargo-deny").is_some() {
        step(&mut cargo(&["deny", "check"]))?;
    } else {
        println!("\n==> cargo deny: SKIPPED, `cargo install cargo-deny` brings it");
    }
    test(&TestArgs {
        no_guest: false,
        quick: false,
        filter: Vec::new(),
    })?;
    up_check()
}

/// The README's first command, on a data directory of its own, twice: the second run must find the volumes of the first.
fn up_check() -> Outcome {
    let dir = tempfile::tempdir().map_err(|e| format!("cannot make a temporary directory: {e}"))?;
    let data = dir.path().join("data").display().to_string();
    for _ in 0..2 {
        let up = [
            "run",
            "--release",
            "--bin",
            "keelblock",
            "--",
            "up",
            "--check",
            "--port-base",
            "0",
            "--data",
            &data,
        ];
        step(&mut cargo(&up))?;
    }
    Ok(())
}
