//! `keelblock`: a whole cluster on this machine. See `keelblock_cli::up`.
use clap::{Parser, Subcommand};
use keelblock_cli::failure::{self, Failure, Result};
use keelblock_cli::up::{self, args::UpArgs, control_socket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs a whole Keelblock cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "keelblock", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on 127.0.0.1, check it with real data, and keep it running until Ctrl-C.
    Up(UpArgs),
    /// Take a node of a running `up` away, or return it.
    #[command(subcommand)]
    Node(NodeCommand),
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Stop both processes of a node; volumes that need it are gone until it is started.
    Stop(NodeArgs),
    /// Start a node that was stopped, and wait until it serves.
    Start(NodeArgs),
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// Id of the node, like node-1.
    id: String,
    /// Data directory of the `up`.
    #[arg(long, value_name = "DIR", default_value = "keelblock-data")]
    data: PathBuf,
}

// One thread: the programs are told to stop when the thread that started them ends, so that must be the one that stays.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Up(args) => up::run(args).await,
        Command::Node(NodeCommand::Stop(args)) => turn(&args.data, args.id, false).await,
        Command::Node(NodeCommand::Start(args)) => turn(&args.data, args.id, true).await,
    };
    failure::report("keelblock", outcome)
}

async fn turn(data: &Path, node: String, run: bool) -> Result<()> {
    let what = format!("{} node {node}", if run { "start" } else { "stop" });
    let reply = control_socket::ask(data, &control_socket::Request { node, run }).await?;
    if !reply.done {
        return Err(Failure::local(what, reply.said));
    }
    println!("{}", reply.said);
    Ok(())
}
