//! The two programs of a node.
use super::args::UpArgs;
use super::binaries::Binaries;
use super::ports::Ports;
use super::process::{Program, Service};
use super::ready::ReadyNode;
use super::screen::Screen;
use crate::failure::{Failure, Result};
use clap::ValueEnum;
use keelblock_api::EXIT_LEFT;
use std::path::Path;

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Where it listens.
    pub ports: Ports,
    /// Where the key-value database is.
    kvdb: String,
    datapath: Service,
    control: Service,
    stopped: bool,
}

/// What a node is started with.
pub struct NodeSpec<'a> {
    /// Its id.
    pub id: String,
    /// Its cluster.
    pub cluster_id: &'a str,
    /// Its directory.
    pub dir: &'a Path,
    /// Its drive, as the control process takes it.
    pub drive: String,
    /// Where it listens.
    pub ports: Ports,
    /// It uses the key-value database there, and serves none.
    pub joins: bool,
    /// It uses these members of an etcd instead.
    pub etcd: Option<&'a str>,
    /// Cores of its reactors, where `up` is not told.
    pub cpus: Option<String>,
}

impl Node {
    /// Starts both programs and keeps them running.
    pub fn start(
        spec: NodeSpec<'_>,
        args: &UpArgs,
        binaries: &Binaries,
        screen: &Screen,
    ) -> Result<Node> {
        let program = |name: &str, exe: &Path, args: Vec<String>| Program {
            name: format!("{} {name}", spec.id),
            exe: exe.into(),
            args,
            dir: spec.dir.into(),
            log: spec.dir.join(format!("{name}.log")),
            last_code: (name == "control").then_some(EXIT_LEFT.into()),
        };
        let datapath = program("datapath", &binaries.datapath, datapath_args(&spec, args));
        let control = program("control", &binaries.control, control_args(&spec, args));
        Ok(Node {
            datapath: Service::start(datapath, screen.clone())?,
            control: Service::start(control, screen.clone())?,
            kvdb: kvdb(&spec),
            id: spec.id,
            ports: spec.ports,
            stopped: false,
        })
    }

    /// Whether it was stopped on purpose.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether it was decommissioned, and its control process has ended for that.
    pub fn left(&self) -> bool {
        self.control.state().over
    }

    /// Takes the node away, or returns it. Control goes first, so that it does not take the data path's end for a failure.
    pub async fn set_running(&mut self, run: bool) {
        self.stopped = !run;
        if run {
            self.datapath.set_running(true).await;
            self.control.set_running(true).await;
        } else {
            self.control.set_running(false).await;
            self.datapath.set_running(false).await;
        }
    }

    /// Ends both programs at once, as if the node's machine had lost power.
    pub async fn kill(&mut self) {
        self.stopped = true;
        tokio::join!(self.datapath.kill(), self.control.kill());
    }

    /// An error with the last words of a program that died, if one did.
    pub fn death(&self) -> Option<Failure> {
        let dead = [
            ("data path", &self.datapath),
            ("control process", &self.control),
        ];
        let (name, service) = dead.into_iter().find(|(_, s)| s.state().deaths > 0)?;
        Some(Failure::local(
            format!("start of {}", self.id),
            format!("its {name} ended; {}", service.last_words()),
        ))
    }

    /// What the logs say last, when a node does not come up.
    pub fn last_words(&self) -> String {
        format!(
            "{}\n{}",
            self.datapath.last_words(),
            self.control.last_words()
        )
    }

    /// For the ready file.
    pub fn ready(&self) -> ReadyNode {
        let Ports {
            nvme, sdk, rest, ..
        } = &self.ports;
        ReadyNode {
            id: self.id.clone(),
            nvme: nvme.to_string(),
            sdk: sdk.to_string(),
            rest: rest.to_string(),
            kvdb: self.kvdb.clone(),
            datapath_pid: self.datapath.state().pid,
            control_pid: self.control.state().pid,
        }
    }
}

fn datapath_args(spec: &NodeSpec<'_>, args: &UpArgs) -> Vec<String> {
    let mut list = words([
        "--socket",
        "datapath.sock",
        "--listen",
        &spec.ports.nvme.to_string(),
        "--replication",
        &spec.ports.replication.to_string(),
        "--identity",
        "identity.key",
    ]);
    let cpus = args.cpus.as_ref().or(spec.cpus.as_ref());
    if let Some(reactors) = args.reactors {
        list.extend(words(["--reactors", &reactors.to_string()]));
    }
    if let Some(cpus) = cpus {
        list.extend(words(["--cpus", cpus]));
    }
    if let Some(poll) = args.poll.and_then(|p| p.to_possible_value()) {
        list.extend(words(["--poll", poll.get_name()]));
    }
    list
}

fn kvdb(spec: &NodeSpec<'_>) -> String {
    let own = || spec.ports.kvdb.to_string();
    spec.etcd.map_or_else(own, str::to_owned)
}

fn control_args(spec: &NodeSpec<'_>, args: &UpArgs) -> Vec<String> {
    let Ports {
        sdk, rest, gossip, ..
    } = &spec.ports;
    let (sdk, rest, kvdb) = (sdk.to_string(), rest.to_string(), kvdb(spec));
    let uses = match spec.joins || spec.etcd.is_some() {
        true => "--etcd",
        false => "--kvdb",
    };
    let mut list = words(["--cluster-id", spec.cluster_id, "--node-id", &spec.id]);
    list.extend(words([
        "--data",
        "control",
        "--datapath-socket",
        "datapath.sock",
        "--drive",
        &spec.drive,
    ]));
    list.extend(words(["--sdk", &sdk, "--rest", &rest, uses, &kvdb]));
    list.extend(words(["--gossip", &gossip.to_string()]));
    list.extend(words(["--diags-file", "datapath.log"]));
    let files = [
        ("--cluster-key-file", &args.cluster_key_file),
        ("--cluster-token-file", &args.cluster_token_file),
    ];
    for (option, file) in files {
        let Some(file) = file else { continue };
        // The process has a working directory of its own.
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        list.extend(words([option, &file.display().to_string()]));
    }
    list
}

fn words<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: UpArgs,
    }

    #[test]
    fn files_with_secrets_are_named_whole_as_nodes_run_elsewhere() {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let spec = NodeSpec {
            id: "node-1".into(),
            cluster_id: "c",
            dir: Path::new("."),
            drive: "drive.img,1G".into(),
            ports: Ports {
                nvme: at,
                sdk: at,
                rest: at,
                kvdb: at,
                replication: at,
                gossip: at,
            },
            joins: false,
            etcd: None,
            cpus: None,
        };
        let args = |line: &[&str]| {
            let line = Line::try_parse_from(line).map(|l| l.up);
            control_args(&spec, &line.unwrap())
        };
        let none = args(&["up"]);
        assert!(!none.iter().any(|a| a.contains("cluster-token")));
        let some = args(&[
            "up",
            "--cluster-token-file",
            "t",
            "--cluster-key-file",
            "/k",
        ]);
        let at = |option: &str| {
            let found = some.iter().position(|a| a == option);
            Path::new(&some[found.unwrap() + 1])
        };
        let token = at("--cluster-token-file");
        assert!(token.is_absolute() && token.ends_with("t"));
        assert_eq!(at("--cluster-key-file"), Path::new("/k"));
    }
}
