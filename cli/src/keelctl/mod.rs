//! `keelctl`: what an operator asks of a cluster, one module per group of commands. Each command is a function from the
//! connection and its arguments to an [`Answer`]; printing and exit codes are done once, here.
mod access;
mod alerts;
mod auth;
mod cluster;
mod ha;
mod health;
mod host;
mod hosts;
mod member;
mod node;
mod placement;
mod progress;
mod replicas;
mod role;
mod schedules;
mod secrets;
mod service;
mod snapshot;
mod stats;
mod status;
mod token;
mod trashcan;
mod usage;
mod view;
mod volume;

pub(crate) use view::VolumeView;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, Format};
use clap::{ArgMatches, CommandFactory, Parser, Subcommand};
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
    #[command(flatten)]
    who: auth::Who,
    /// How to show answers.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// Short for --output json.
    #[arg(short, long, global = true)]
    json: bool,
    /// Longest wait for each answer, in seconds.
    #[arg(long, global = true, default_value = "15", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Ask again and again, and show each answer in the place of the one before, until interrupted; with JSON one document after the other. Only for what changes nothing.
    #[arg(short, long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

/// Commands that change nothing, so that they may be asked again and again.
const SHOW: [&str; 11] = [
    "status",
    "list",
    "inspect",
    "show",
    "locate",
    "replicas",
    "connect-info",
    "stats",
    "members",
    "provision-status",
    "diff",
];

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no such thing; 4 the cluster cannot be reached, or cannot do it now.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Whether anything is wrong, and what to do about it; then the nodes, this node's reactors and pools, and the volumes at a glance.
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
    /// Nodes: list, inspect, label, maintenance, drain, cordon, uncordon, decommission, remove.
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
    /// Roles: what may be called by whom, where tokens are asked for.
    #[command(subcommand)]
    Role(role::Command),
    /// Tokens, which say who asks.
    #[command(subcommand)]
    Auth(auth::Command),
    /// What went wrong, or is worth knowing.
    #[command(subcommand)]
    Alerts(alerts::Command),
    /// Completions for a shell, on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Manual pages, one for each command, written into a directory: `man -l DIR/keelctl.1`.
    Manual {
        /// The directory; it is made if there is none.
        directory: std::path::PathBuf,
    },
}

/// Runs one command and prints its answer; with `--watch` over and over.
pub async fn run(args: Args) -> Result<()> {
    let format = if args.json { Format::Json } else { args.output };
    match args.command {
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Args::command(),
                "keelctl",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
        Command::Manual { directory } => return manual(&directory),
        Command::Auth(command) => {
            auth::run(command)?.print(format);
            return Ok(());
        }
        _ => {}
    }
    let limit = Duration::from_secs(args.timeout);
    let Some(seconds) = args.watch else {
        let mut client = connect(&args.endpoint, &args.who, limit).await?;
        answer(&mut client, args.command).await?.print(format);
        return Ok(());
    };
    let words: Vec<_> = std::env::args_os().collect();
    let given = Args::command().get_matches_from(&words);
    let command = innermost(&given);
    if !SHOW.contains(&command) {
        return Err(Failure::Usage(format!(
            "--watch repeats a command, and `{command}` may change something: {} can be watched",
            SHOW.join(", ")
        )));
    }
    loop {
        // What fails once may be well the next time: it is shown, and asked again.
        let again = Args::parse_from(&words);
        match shown(again, limit).await {
            Ok(answer) => answer.print_over(format),
            Err(failure) => Answer::failed(&failure).print_over(format),
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn connect(endpoint: &str, who: &auth::Who, limit: Duration) -> Result<Client> {
    let token = who.token()?;
    Client::connect_as(endpoint, limit, token.as_deref().map(String::as_str)).await
}

async fn shown(args: Args, limit: Duration) -> Result<Answer> {
    let mut client = connect(&args.endpoint, &args.who, limit).await?;
    answer(&mut client, args.command).await
}

/// Writes a manual page for `keelctl` and each of its commands.
fn manual(directory: &std::path::Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Failure::local(
            format!("write manual pages into {}", directory.display()),
            e.to_string(),
        )
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Args::command(), directory).map_err(failed)
}

/// The innermost command that is given.
fn innermost(mut matches: &ArgMatches) -> &str {
    let mut name = "";
    while let Some((inner, below)) = matches.subcommand() {
        (name, matches) = (inner, below);
    }
    name
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
        Command::Role(command) => role::run(client, command).await,
        Command::Alerts(command) => alerts::run(client, command).await,
        Command::Completions { .. } | Command::Manual { .. } | Command::Auth(_) => {
            unreachable!("answered before connecting")
        }
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
            "volume create db --size 1G --policy hourly --policy daily",
            "volume create db --size 1G --repl 3 --secure",
            "secrets show",
            "secrets rotate -j",
            "volume create db --size 1G --repl 3 --explain -j",
            "volume create db --size 1G --repl 3 --nodes n1,n2,n3 --zones a,b --racks r1 --apart zone --together region --placement /a/file",
            "cluster options --overcommit 200 --reserve 10",
            "cluster options",
            "cluster provision-status -j",
            "cluster token show -j",
            "cluster token rotate",
            "cluster token rotate --grace 30m --new-token-file /a/file",
            "service diags /a/file.tar.gz --max 8M --here",
            "service pool rebalance --dry-run -j",
            "service pool rebalance list",
            "service pool rebalance show",
            "service pool rebalance pause",
            "service pool rebalance resume 0f8fad5b-d9cb-469f-a165-70867728950e",
            "service pool rebalance cancel -j",
            "service pool rebalance schedule --at daily=23:05 --max-minutes 60",
            "service pool rebalance --detach",
            "service pool rebalance --over 10 --under 3 --moves 100 --at-once 4 --max-minutes 5",
            "volume access show db -j",
            "volume access update db --group dev=read --user bob=write --public read",
            "volume access update db --owner ann",
            "volume trashcan list -j",
            "volume trashcan restore db --name db2",
            "volume trashcan delete db other",
            "volume trashcan options --keep-minutes 1440",
            "volume delete db --now",
            "volume attach db --node node-2",
            "volume locate db -j",
            "volume replicas db",
            "volume ha-update db --repl 2",
            "volume resync db --wait",
            "cluster options --replace-after 15m",
            "cluster options --replace-after never",
            "cluster list",
            "cluster inspect --output json",
            "node list",
            "node inspect",
            "node label n1 zone=a rack=7 old-",
            "node maintenance n1 --enter --force",
            "node maintenance n1 --exit",
            "node drain n1 --wait",
            "node drain n1 --cancel",
            "node cordon n1",
            "node uncordon n1",
            "node decommission n1 --yes --wait",
            "node decommission n1 --cancel",
            "node remove n1 --yes",
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
            "role create ops --rule volume,mountattach:* --rule node:inspect*,!enumerate -j",
            "role update system.guest --rule !*:!*",
            "role list",
            "role inspect ops --token a.b.c",
            "role delete ops other --token-file /a/file",
            "auth token generate --issuer i --subject ann --shared-secret-file /a/file --role system.user --duration 12h",
            "auth token generate --issuer i --subject ann --private-key-file /a/file --algorithm ES256 --group *",
            "alerts show --all --severity warning",
            "alerts delete --resource drive --id x",
            "alerts delete --cleared",
            "--endpoint 127.0.0.1:1 --timeout 3 status",
            "completions bash",
            "manual /a/directory",
        ] {
            let words = std::iter::once("keelctl").chain(line.split(' '));
            assert!(Args::try_parse_from(words).is_ok(), "keelctl {line}");
        }
    }

    #[test]
    fn only_what_shows_is_watched() {
        for (line, command) in [
            ("status --watch", "status"),
            ("--watch=5 volume list", "list"),
            ("volume delete db -w", "delete"),
            ("service pool expand --percent 1 -w=1", "expand"),
        ] {
            let words = std::iter::once("keelctl").chain(line.split(' '));
            let given = Args::command().try_get_matches_from(words);
            let given = given.unwrap_or_else(|e| panic!("keelctl {line}: {e}"));
            assert_eq!(innermost(&given), command);
            assert_eq!(
                SHOW.contains(&command),
                !["delete", "expand"].contains(&command)
            );
        }
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        manual(&dir.path().join("man")).unwrap();
        let mut pages = 0;
        for entry in std::fs::read_dir(dir.path().join("man")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(text.contains(".SH NAME"), "{text}");
            pages += 1;
        }
        fn count(command: &clap::Command) -> usize {
            let all = command.get_subcommands().filter(|c| c.get_name() != "help");
            1 + all.map(count).sum::<usize>()
        }
        assert!(pages >= count(&Args::command()), "{pages}");
        let page = dir.path().join("man/keelctl-volume-create.1");
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains("explain"), "{text}");
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
            "volume access update db --group dev=all",
            "role create ops",
            "role create ops --rule volume",
            "role delete",
            "auth token generate --issuer i --subject ann",
            "service kvdb backup",
            "sched-policy create p --daily 24:00",
            "sched-policy delete",
            "volume snap-schedule db",
            "volume snap-schedule db --none --policy p",
            "volume decide-replicas db",
            "node label n1",
            "node label n1 novalue",
            "node maintenance n1",
            "node maintenance n1 --enter --exit",
            "node maintenance n1 --exit --force",
            "node decommission n1 --cancel --wait",
        ] {
            let words = std::iter::once("keelctl").chain(line.split(' ').filter(|w| !w.is_empty()));
            assert!(Args::try_parse_from(words).is_err(), "keelctl {line}");
        }
    }
}
