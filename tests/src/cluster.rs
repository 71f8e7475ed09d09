//! A cluster for a test: `keelblock up` on free ports and a temporary directory. When the test panics, all logs come out.
use crate::programs::program;
use crate::workload::Target;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a cluster may take to serve, and a condition to come true. Generous: machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often conditions are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much of each log is shown.
const LOG_TAIL: usize = 16 << 10;
/// Of a drive whose test does not care: a file of it is allocated whole, and several tests run beside each other.
const DRIVE_SIZE: &str = "1G";

/// The ready file of `up`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
}

/// A node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// NVMe/TCP.
    pub nvme: SocketAddr,
    /// OpenStorage SDK and admin (gRPC).
    pub sdk: SocketAddr,
    /// REST and metrics.
    pub rest: SocketAddr,
    /// Key-value database; of an etcd all members, with commas between them.
    pub kvdb: String,
    /// Process id of the data path, while there is one.
    pub datapath_pid: Option<u32>,
    /// Process id of the control process, while there is one.
    pub control_pid: Option<u32>,
}

/// A volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its subsystem.
    pub nqn: String,
    /// Its size.
    pub size_bytes: u64,
    /// Node where it is attached.
    pub coordinator: String,
}

impl Ready {
    /// The volume of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn volume(&self, name: &str) -> &Volume {
        self.volumes
            .iter()
            .find(|v| v.name == name)
            .unwrap_or_else(|| panic!("no volume {name} in {self:?}"))
    }

    /// Where hosts connect to that volume. One that is not in the file yet, or not attached there, is on the only node.
    ///
    /// # Panics
    /// If its node is not there.
    pub fn address_of(&self, volume: &str) -> SocketAddr {
        let mut attached = self.volumes.iter().filter(|v| !v.coordinator.is_empty());
        let at = attached.find(|v| v.name == volume);
        let node = at.map_or(&self.nodes[0].id, |v| &v.coordinator);
        let found = self.nodes.iter().find(|n| n.id == *node);
        found
            .unwrap_or_else(|| panic!("no node {node} in {self:?}"))
            .nvme
    }
}

/// How a cluster shall be started.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    args: Vec<String>,
    prefix: Vec<String>,
    volumes: Vec<String>,
    programs: Option<PathBuf>,
}

impl Builder {
    /// `up`'s own arguments.
    #[must_use]
    pub fn arg(mut self, words: &[&str]) -> Builder {
        self.args.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    /// A volume, as `NAME:SIZE`.
    #[must_use]
    pub fn volume(mut self, wish: &str) -> Builder {
        self.volumes.push(wish.into());
        self
    }

    /// Words before `keelblock up`, like `setpriv …`.
    #[must_use]
    pub fn prefix(mut self, words: &[&str]) -> Builder {
        self.prefix = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Where the programs are, if not where they were built.
    #[must_use]
    pub fn programs(mut self, dir: PathBuf) -> Builder {
        self.programs = Some(dir);
        self
    }

    /// The directory that goes at the end.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the cluster's files will be.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up; with all logs.
    pub fn start(self) -> Cluster {
        let mut cluster = Cluster {
            builder: self,
            up: None,
        };
        cluster.start();
        cluster
    }

    /// Runs `up` to its end (with `--check`, or where it must fail) and gives its exit code and all it said.
    pub fn run(&self, words: &[&str]) -> (i32, String) {
        let mut command = self.command(words);
        let output = command
            .stdin(Stdio::null())
            .output()
            .expect("keelblock starts");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs
            .as_ref()
            .map_or_else(|| program(name), |dir| dir.join(name))
    }

    /// `up` with these arguments, too; with one node unless it is told otherwise.
    fn command(&self, more: &[&str]) -> Command {
        let built = || program("keelblock");
        let keelblock = self
            .programs
            .as_ref()
            .map_or_else(built, |dir| dir.join("keelblock"))
            .display()
            .to_string();
        let mut words = self.prefix.iter().cloned().chain([keelblock]);
        let mut command = Command::new(words.next().expect("there is at least one word"));
        command.args(words).arg("up").arg("--data").arg(self.data());
        if !self.args.iter().any(|a| a == "--port-base") {
            command.args(["--port-base", "0"]);
        }
        let given = self
            .args
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied());
        if !given.into_iter().any(|a| a == "--nodes") {
            command.args(["--nodes", "1"]);
        }
        command
            .args(&self.args)
            .args(more)
            .args(self.volumes.iter().flat_map(|v| ["--volume", v]));
        // Under cargo, `up` would have cargo build its programs; the tests have seen to that.
        command.env_remove("CARGO").current_dir(self.dir.path());
        command
    }
}

/// A running cluster. Dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    builder: Builder,
    up: Option<Child>,
}

impl Cluster {
    /// What a test starts from: the data path without its pins, everything else by default.
    ///
    /// # Panics
    /// If there is no temporary directory to be had.
    pub fn builder() -> Builder {
        let dir = tempfile::Builder::new()
            .prefix("keelblock-test-")
            .tempdir()
            .expect("a temporary directory");
        Builder {
            dir,
            args: Vec::new(),
            prefix: Vec::new(),
            volumes: Vec::new(),
            programs: None,
        }
    }

    /// Starts `up` (again) and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(&mut self) {
        assert!(self.up.is_none(), "it runs already");
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.path("up.log"))
            .expect("a log");
        let ready = self.path("ready.json");
        let _ = fs::remove_file(&ready);
        let mut command = self.builder.command(&[]);
        // A block device has a size of its own.
        let mut args = self.builder.args.iter();
        if !args.any(|a| a == "--size" || a.starts_with("/dev/")) {
            command.args(["--size", DRIVE_SIZE]);
        }
        command.arg("--ready-file").arg(&ready).stdin(Stdio::null());
        command
            .stdout(output.try_clone().expect("a log"))
            .stderr(output);
        self.up = Some(command.spawn().expect("keelblock starts"));
        let deadline = Instant::now() + PATIENCE;
        while !ready.exists() {
            let up = self.up.as_mut().expect("was just started");
            if let Some(status) = up.try_wait().expect("a child can be waited for") {
                self.up = None;
                panic!("`up` ended with {status}");
            }
            assert!(Instant::now() < deadline, "`up` does not serve");
            std::thread::sleep(LOOK);
        }
    }

    /// Stops it as Ctrl-C does, and checks that it ends well.
    ///
    /// # Panics
    /// If it does not.
    pub fn stop(&mut self) {
        let Some(mut up) = self.up.take() else { return };
        kill(up.id(), Signal::INT);
        let status = wait(&mut up).expect("`up` stops");
        assert!(status.success(), "`up` ended with {status}");
        assert!(
            !self.path("ready.json").exists(),
            "the ready file is there although nothing serves"
        );
    }

    /// Process id of `up`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn up_pid(&self) -> u32 {
        self.up.as_ref().expect("it runs").id()
    }

    /// Kills `up` itself, so that it cannot tidy up.
    pub fn kill_up(&mut self) {
        let mut up = self.up.take().expect("it runs");
        kill(up.id(), Signal::KILL);
        up.wait().expect("a child can be waited for");
    }

    /// Kills the data path.
    pub fn kill_datapath(&self) -> u32 {
        let pid = self.ready().nodes[0]
            .datapath_pid
            .expect("the data path runs");
        kill(pid, Signal::KILL);
        pid
    }

    /// Kills the control process.
    pub fn kill_control(&self) -> u32 {
        let pid = self.ready().nodes[0]
            .control_pid
            .expect("the control process runs");
        kill(pid, Signal::KILL);
        pid
    }

    /// What the ready file says now.
    ///
    /// # Panics
    /// If it is not there or has another shape.
    pub fn ready(&self) -> Ready {
        let text = fs::read(self.path("ready.json")).expect("the ready file is there");
        serde_json::from_slice(&text).expect("the ready file has its documented shape")
    }

    /// Waits until the ready file fulfils a condition.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Ready) -> bool) -> Ready {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = self.ready();
            if condition(&ready) {
                return ready;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain until {what}; now: {ready:?}"
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Runs `keelctl`; the first node answers.
    pub fn keelctl(&self, words: &[&str]) -> Output {
        self.keelctl_at(0, words)
    }

    /// Runs `keelctl`; the node at that place in the ready file answers.
    pub fn keelctl_at(&self, node: usize, words: &[&str]) -> Output {
        let mut command = Command::new(self.builder.program("keelctl"));
        let endpoint = self.ready().nodes[node].sdk.to_string();
        command.args(words).env("KEELBLOCK_ENDPOINT", endpoint);
        command.output().expect("keelctl starts")
    }

    /// Where a volume is served, as `keelctl` says it.
    ///
    /// # Panics
    /// If there is no such volume.
    pub fn target(&self, volume: &str) -> Target {
        let info = self.keelctl_json(&["volume", "connect-info", volume]);
        let nqn = info["nqn"].as_str().expect("a volume has a name");
        Target {
            address: self.ready().address_of(volume),
            nqn: nqn.to_owned(),
            nsid: 1,
        }
    }

    /// Runs `keelctl`, which must succeed, and gives its answer.
    ///
    /// # Panics
    /// If it fails, with what it said.
    pub fn keelctl_json(&self, words: &[&str]) -> serde_json::Value {
        let output = self.keelctl(&[words, &["--json"]].concat());
        assert!(
            output.status.success(),
            "keelctl {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("keelctl --json prints JSON")
    }

    /// `keelblock node stop|start`.
    pub fn node(&self, action: &str, id: &str) -> Output {
        let mut command = Command::new(self.builder.program("keelblock"));
        command
            .args(["node", action, id, "--data"])
            .arg(self.builder.data());
        command.output().expect("keelblock starts")
    }

    /// A path in the directory of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.builder.dir.path().join(name)
    }

    /// What it was started with.
    pub fn builder_mut(&mut self) -> &mut Builder {
        &mut self.builder
    }

    /// The end of every log.
    pub fn logs(&self) -> String {
        let mut files = vec![self.path("up.log")];
        let nodes = fs::read_dir(self.builder.data())
            .into_iter()
            .flatten()
            .flatten();
        for node in nodes.filter(|e| e.file_name().to_string_lossy().starts_with("node-")) {
            files.extend(["datapath.log", "control.log"].map(|log| node.path().join(log)));
        }
        let tail = |file: &PathBuf| {
            let text = fs::read(file).unwrap_or_default();
            let text =
                String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
            format!("--- {}\n{text}\n", file.display())
        };
        files.iter().map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            kill(up.id(), Signal::TERM);
            if wait(&mut up).is_none() {
                let _ = up.kill();
                let _ = up.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Sends a signal to a process of a cluster.
///
/// # Panics
/// If there is none.
pub fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("process ids are positive");
    kill_process(pid, signal).expect("a process of ours can be signalled");
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(LOOK);
    }
    None
}
