//! Tasks of the project that are more than one cargo command. `cargo xtask help` lists them.
//!
//! Each task is a module that builds a list of commands and runs them from the workspace's root; what a task prints is what a
//! person needs to repeat a step by hand.
mod ahead;
mod bench;
mod ci;
mod cluster;
mod conformance;
mod crashes;
mod guest;
mod model;
mod run;
mod simulate;
mod test;
mod tools;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Keelblock project")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Say which tools the tests use, which of them are missing, and what installs them.
    Tools,
    /// Run all tests, those under loom, AddressSanitizer and a real Linux host included where their tools are there.
    Test(test::TestArgs),
    /// Measure this machine: the table of docs/performance.md, or what idling costs.
    Bench(bench::BenchArgs),
    /// Crash a simulated drive under random work, over and over, and compare what is found: the store's proof, at length.
    Crashes(crashes::CrashesArgs),
    /// Plant each known bug in the store, and see that the harness finds it.
    Planted(crashes::PlantedArgs),
    /// Run simulated clusters with hosts and faults by seeds, or leave out rules of replication and see that it is found.
    Simulate(simulate::SimulateArgs),
    /// Search all states of the replication protocol's model, or leave out each rule and see that it is found.
    Model(model::ModelArgs),
    /// Run a script of raw protocol checks, like conformance.py, against a cluster.
    Conformance(conformance::ConformanceArgs),
    /// Send junk to the NVMe/TCP target of a cluster, beside a verified workload.
    Fuzz(guest::FuzzArgs),
    /// Kill the data path of a cluster over and over while hosts write, and compare what is found.
    Kills(guest::KillsArgs),
    /// End and pause processes of several nodes at random, drop packets and let drives fail if wanted, while hosts write to a volume with three replicas.
    Deaths(guest::DeathsArgs),
    /// Take the key-value database, an etcd, away from three nodes while hosts write, and count what they do each second.
    Outage(guest::OutageArgs),
    /// Measure large drives and many snapshots: what opening and deleting take, and whether accounts add up.
    Scale(guest::ScaleArgs),
    /// Run the tests with a real Linux host in a virtual machine.
    Guest(guest::GuestArgs),
    /// What `.ci/run` runs: formatting, clippy, documentation, tests, and a whole `keelblock up --check`.
    Ci,
}

fn main() -> std::process::ExitCode {
    let outcome = match Args::parse().task {
        Task::Tools => tools::report(),
        Task::Test(args) => test::test(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::Crashes(args) => crashes::crashes(&args),
        Task::Planted(args) => crashes::planted(&args),
        Task::Simulate(args) => simulate::simulate(&args),
        Task::Model(args) => model::model(&args),
        Task::Conformance(args) => conformance::conformance(&args),
        Task::Fuzz(args) => guest::fuzz(&args),
        Task::Kills(args) => guest::kills(&args),
        Task::Deaths(args) => guest::deaths(&args),
        Task::Outage(args) => guest::outage(&args),
        Task::Scale(args) => guest::scale(&args),
        Task::Guest(args) => guest::guest(&args),
        Task::Ci => ci::ci(),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            std::process::ExitCode::FAILURE
        }
    }
}
