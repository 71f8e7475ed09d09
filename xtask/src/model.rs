//! `cargo xtask model`: the model check of the replication protocol, at length.
use crate::run::{Outcome, cargo, step};
use clap::Args;

#[derive(Args)]
pub struct ModelArgs {
    /// The short bounds, which `cargo test` has too.
    #[arg(long)]
    pub short: bool,
    /// Leave out each rule in its turn: each must be found.
    #[arg(long)]
    pub planted: bool,
    /// Only this world, or this rule.
    #[arg(long)]
    pub only: Option<String>,
    /// Show the traces of what is found.
    #[arg(long)]
    pub trace: bool,
}

pub fn model(args: &ModelArgs) -> Outcome {
    let mut run = cargo(&["run", "--release", "--package", "keelblock-model", "--"]);
    if !args.short && !args.planted {
        run.arg("--long");
    }
    if args.planted {
        run.arg("--planted");
    }
    if let Some(only) = &args.only {
        run.args(["--only", only]);
    }
    if args.trace {
        run.arg("--trace");
    }
    step(&mut run)?;
    Ok(())
}
