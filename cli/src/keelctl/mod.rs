//! `keelctl`: what an operator asks of a cluster, one module per group of commands. Each command is a function from the
//! connection and its arguments to an [`Answer`]; printing and exit codes are done once, here.
mod alerts;
mod cluster;
mod ha;
mod host;
mod hosts;
mod node;
mod placement;
mod progress;
mod replicas;
mod schedules;
mod secrets;
mod service;
mod snapshot;
mod stats;
mod status;
mod view;
mod volume;

pub(crate) use view::VolumeView;

use crate::client::Client;
use crate::failure::Result;
use crate::render::{Answer, Format};
use clap::{CommandFactory, Parser, Subcommand};
use std::time::Duration;

/// Looks after a Keelblock cluster.
#[derive(Debug, Parser)]
#[command(name = "keelctl", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Args {
    /// A node's SDK address.
    #[arg(
        long,
        global = true,
        env = "KEELBLOCK_ENDPOINT",
        default_value = "127.0.0.1:9020",
        value_name = "ADDR:PORT"
    )]
    endpoint: String,
    /// How to show answers.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// Short for --output json.
    #[arg(short, long, global = true)]
    json: bool,
    /// Longest wait for each answer, in seconds.
    #[arg(long, global = true, default_value = "15", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no such thing; 4 the cluster cannot be reached, or cannot do it now.";

#[derive(Debug, Subcommand)]
enum Command {
    /// The node, its reactors, pools and volumes at a glance.
    Status,
    /// Volumes: create, list, inspect, update, delete, snapshot, clone, restore, statistics, allowed hosts, how to connect.
    #[command(subcommand)]
    Volume(volume::Command),
    /// Attach a volume, so that hosts can connect to it, and detach it.
    #[command(subcommand)]
    Host(host::Command),
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Nodes.
    #[command(subcommand)]
    Node(node::Command),
    /// Pools, drives, scans, the key-value database.
    #[command(subcommand)]
    Service(service::Command),
    /// Schedule policies: when snapshots are taken without being asked.
    #[command(subcommand)]
    SchedPolicy(schedules::Command),
    /// The cluster key, which wraps the keys of encrypted volumes.
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// What went wrong, or is worth knowing.
    #[command(subcommand)]
    Alerts(alerts::Command),
    /// Completions for a shell, on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs one command and prints its answer.
pub async fn run(args: Args) -> Result<()> {
    let format = if args.json { Format::Json } else { args.output };
    if let Command::Completions { shell } = args.command {
        clap_complete::generate(
            shell,
            &mut Args::command(),
            "keelctl",
            &mut std::io::stdout(),
        );
        return Ok(());
    }
    let mut client = Client::connect(&args.endpoint, Duration::from_secs(args.timeout)).await?;
    answer(&mut client, args.command).await?.print(format);
    Ok(())
}

async fn answer(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Status => status::status(client).await,
        Command::Volume(command) => volume::run(client, command).await,
        Command::Host(command) => host::run(client, command).await,
        Command::Cluster(command) => cluster::run(client, command).await,
        Command::Node(command) => node::run(client, command).await,
        Command::Service(command) => service::run(client, command).await,
        Command::SchedPolicy(command) => schedules::run(client, command).await,
        Command::Secrets(command) => secrets::run(client, command).await,
        Command::Alerts(command) => alerts::run(client, command).await,
        Command::Completions { .. } => unreachable!("answered before connecting"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_command_tree_that_operators_know() {
        for line in [
            "status -j",
            "volume create db --size 10G --block-size 512 --label app=db --label tier=1",
            "volume list --label app=db",
            "volume inspect db other -j",
            "volume update db --size 20G --label app=x --remove-label tier",
            "volume delete db --yes",
            "volume stats db --interval 2",
            "volume hosts list db",
            "volume hosts allow db nqn.2014-08.org.nvmexpress:uuid:1",
            "volume hosts deny db nqn.2014-08.org.nvmexpress:uuid:1",
            "volume hosts allow db --any",
            "volume connect-info db",
            "volume path db --state inaccessible",
            "host attach db --with other",
            "host detach db",
            "volume create db --size 1G --repl 3",
            "volume create db --size 1G --repl 3 --secure",
            "secrets show",
            "secrets rotate -j",
            "volume create db --size 1G --repl 3 --explain -j",
            "volume create db --size 1G --repl 3 --nodes n1,n2,n3 --zones a,b --racks r1 --apart zone --together region --placement /a/file",
            "cluster options --overcommit 200 --reserve 10",
            "cluster options",
            "cluster provision-status -j",
            "volume attach db --node node-2",
            "volume locate db -j",
            "volume replicas db",
            "volume ha-update db --repl 2",
            "cluster list",
            "cluster inspect --output json",
            "node list",
            "node inspect",
            "service pool show",
            "service drive show",
            "volume snapshot create db --name s --label k=v",
            "volume snapshot create db log",
            "volume snapshot list",
            "volume snapshot list db --label k=v",
            "volume snapshot delete s t",
            "volume clone s --name c --no-attach --label k=v",
            "volume restore db --snapshot s",
            "volume diff db",
            "volume diff --from s --to t",
            "service pool list",
            "service pool show default",
            "service pool expand --size 10T",
            "service pool expand default --percent 50 --operation add-disk",
            "service drive list",
            "service drive show /dev/sdb",
            "service drive add /dev/sdb",
            "service drive add /a/file --size 10G",
            "service drive grow /a/file --size 20G",
            "service drive evacuate /dev/sdb --wait",
            "service drive evacuate /dev/sdb --cancel",
            "service drive remove /dev/sdb",
            "service drive replace /dev/sdb --with /dev/sdc --accept-loss",
            "service scan start --rate 100M --wait",
            "service scan pause",
            "service scan resume --pool default",
            "service scan cancel",
            "service scan status --wait",
            "service scan schedule --every 7d --rate 50M",
            "service scan schedule --off",
            "service kvdb status -j",
            "sched-policy create p --periodic 15,3 --daily 23:05 --weekly sunday@00:00,4 --monthly 31@04:00",
            "sched-policy list p -j",
            "sched-policy list",
            "sched-policy update p --daily 01:00,7 --daily 13:00,7",
            "sched-policy delete p q",
            "volume snap-schedule db --policy p --policy q",
            "volume snap-schedule db --none",
            "service kvdb members",
            "service kvdb backup /a/file",
            "service kvdb restore /a/file --yes",
            "volume decide-replicas db --node n1 --node n2 --minimum 1",
            "alerts show --all --severity warning",
            "alerts delete --resource drive --id x",
            "alerts delete --cleared",
            "--endpoint 127.0.0.1:1 --timeout 3 status",
            "completions bash",
        ] {
            let words = std::iter::once("keelctl").chain(line.split(' '));
            assert!(Args::try_parse_from(words).is_ok(), "keelctl {line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "volume create db",
            "volume create db --size ten",
            "volume create db --size 1G --repl 6",
            "volume create db --size 1G --block-size 1024",
            "volume create db --size 1G --label novalue",
            "volume update db",
            "volume path db --state sideways",
            "volume hosts allow db",
            "volume hosts allow db --any nqn.x",
            "volume snapshot create",
            "volume clone s",
            "volume restore db",
            "volume diff",
            "service pool expand",
            "service pool expand --size 1T --percent 5",
            "service drive add",
            "service drive evacuate x --cancel --wait",
            "service drive replace x --size 1G",
            "service scan schedule --every never",
            "service scan schedule --every 7d --off",
            "alerts show --id x",
            "service kvdb backup",
            "sched-policy create p --daily 24:00",
            "sched-policy delete",
            "volume snap-schedule db",
            "volume snap-schedule db --none --policy p",
            "volume decide-replicas db",
        ] {
            let words = std::iter::once("keelctl").chain(line.split(' ').filter(|w| !w.is_empty()));
            assert!(Args::try_parse_from(words).is_err(), "keelctl {line}");
        }
    }
}
