//! `keelblock-model`: the model check at length, or each rule left out in its turn. `cargo xtask model` runs it.
use std::process::ExitCode;

use clap::Parser;
use keelblock_model::checker::{Outcome, check};
use keelblock_model::protocol::{Protocol, rules};

#[derive(Parser)]
#[command(about = "Model check of the replication protocol")]
struct Args {
    /// Larger bounds.
    #[arg(long)]
    long: bool,
    /// Leave out each rule in its turn: each must be found.
    #[arg(long)]
    planted: bool,
    /// Only this world, or this rule.
    #[arg(long)]
    only: Option<String>,
    /// Show the traces of what is found.
    #[arg(long)]
    trace: bool,
    /// States after which a search ends without having seen all.
    #[arg(long, default_value_t = 60_000_000)]
    bound: usize,
}

fn show(outcome: &Outcome) {
    for (n, step) in outcome.found.iter().flat_map(|(_, t)| t).enumerate() {
        println!("    {:>2} {step}", n + 1);
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |name: &str| args.only.as_ref().is_none_or(|o| o == name);
    let mut good = true;
    if args.planted {
        println!("| left out | world | steps | states | seconds | what breaks |");
        for (bug, world) in rules::planted() {
            if !wanted(&format!("{bug:?}")) {
                continue;
            }
            let protocol = Protocol {
                world,
                bug: Some(bug),
            };
            let o = check(&protocol, args.bound);
            let what = o.found.as_ref().map_or("NOT FOUND", |(w, _)| w);
            good &= o.found.is_some();
            let steps = o.found.as_ref().map_or(0, |(_, t)| t.len());
            let seconds = o.time.as_secs_f64();
            println!(
                "| {bug:?} | {} | {steps} | {} | {seconds:.1} | {what} |",
                world.name, o.states
            );
            if args.trace {
                show(&o);
            }
        }
    } else {
        println!("| world | states | depth | seconds | |");
        for world in rules::worlds(args.long) {
            if !wanted(world.name) {
                continue;
            }
            let o = check(&Protocol { world, bug: None }, args.bound);
            let verdict = match &o.found {
                Some((what, _)) => what,
                None if o.complete => "all states, nothing broken",
                None => "BOUND REACHED",
            };
            good &= o.complete && o.found.is_none();
            println!(
                "| {} | {} | {} | {:.1} | {verdict} |",
                world.name,
                o.states,
                o.depth,
                o.time.as_secs_f64()
            );
            show(&o);
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
