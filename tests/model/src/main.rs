//! `keelblock-model`: the model check at length, or each rule left out in its turn. `cargo xtask model` runs it.
use std::process::ExitCode;

use clap::Parser;
use keelblock_model::checker::Outcome;
use keelblock_model::list;

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
    let searches = if args.planted {
        list::planted()
    } else {
        list::whole(args.long)
    };
    println!("| left out | world | steps | states | seconds | |");
    for search in searches {
        let bug = search.bug.as_deref().unwrap_or("nothing");
        if !(wanted(bug) || wanted(search.world)) {
            continue;
        }
        let o = search.run(args.bound);
        let verdict = match &o.found {
            Some((what, _)) => what,
            None if o.complete => "all states, nothing broken",
            None => "BOUND REACHED",
        };
        good &= match o.found {
            Some(_) => args.planted,
            None => o.complete && !args.planted,
        };
        println!(
            "| {bug} | {} | {} | {} | {:.1} | {verdict} |",
            search.world,
            o.found.as_ref().map_or(o.depth, |(_, t)| t.len()),
            o.states,
            o.time.as_secs_f64()
        );
        if args.trace || (o.found.is_some() && !args.planted) {
            show(&o);
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
