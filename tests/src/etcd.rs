//! An etcd of several members on this machine, each of which can be killed, come back with what it had, and stand still.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::kill;

/// How long members may take until they answer.
const BEGIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// History that is kept, so that a long run does not fill the disk.
const KEPT: [&str; 2] = ["--auto-compaction-retention", "10m"];

/// One member.
#[derive(Debug)]
struct Member {
    dir: PathBuf,
    client: u16,
    peer: u16,
    running: Mutex<Option<Child>>,
}

/// See the module's text. Dropping it kills all members.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

/// Whether it is installed.
pub fn is_there() -> bool {
    let mut version = Command::new("etcd");
    version.arg("--version").stdout(Stdio::null());
    version.status().is_ok_and(|s| s.success())
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Etcd {
    /// Starts so many members with their data in `dir`, and waits until they answer.
    ///
    /// # Errors
    /// etcd is not installed, or does not begin.
    pub fn start(dir: PathBuf, members: usize) -> Result<Self, String> {
        let said = |e: std::io::Error| format!("etcd: {e}");
        std::fs::create_dir_all(&dir).map_err(said)?;
        let mut all = Vec::new();
        for n in 0..members {
            all.push(Member {
                dir: dir.join(format!("etcd-{n}")),
                client: free_port().map_err(said)?,
                peer: free_port().map_err(said)?,
                running: Mutex::default(),
            });
        }
        let etcd = Self { members: all };
        for n in 0..members {
            etcd.begin(n)?;
        }
        etcd.until_it_answers()?;
        Ok(etcd)
    }

    /// How many members it has.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// As `--etcd` takes it.
    pub fn endpoints(&self) -> String {
        let of = |m: &Member| format!("127.0.0.1:{}", m.client);
        let all: Vec<String> = self.members.iter().map(of).collect();
        all.join(",")
    }

    /// Starts a member, unless it runs.
    ///
    /// # Errors
    /// It does not start.
    pub fn begin(&self, n: usize) -> Result<(), String> {
        let member = &self.members[n];
        let mut running = member.running.lock().unwrap_or_else(|e| e.into_inner());
        if running.is_some() {
            return Ok(());
        }
        let http = |port: u16| format!("http://127.0.0.1:{port}");
        let (clients, peers) = (http(member.client), http(member.peer));
        let all = self.members.iter().enumerate();
        let all: Vec<String> = all.map(|(n, m)| format!("m{n}={}", http(m.peer))).collect();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(member.dir.with_extension("log"))
            .map_err(|e| format!("etcd's log: {e}"))?;
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(&member.dir).args(KEPT);
        let child = command
            .args(["--name", &format!("m{n}")])
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &all.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        *running = Some(child.map_err(|e| format!("etcd does not start: {e}"))?);
        Ok(())
    }

    /// Ends a member at once.
    pub fn end(&self, n: usize) {
        let running = &self.members[n].running;
        let child = running.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(mut child) = child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets a member stand still, or go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stand_still(&self, n: usize, still: bool) {
        let running = &self.members[n].running;
        let running = running.lock().unwrap_or_else(|e| e.into_inner());
        let child = running.as_ref().expect("it runs");
        kill(
            child.id(),
            match still {
                true => Signal::STOP,
                false => Signal::CONT,
            },
        );
    }

    /// Waits until a key can be read.
    ///
    /// # Errors
    /// Not in time.
    pub fn until_it_answers(&self) -> Result<(), String> {
        let deadline = Instant::now() + BEGIN;
        while self.keys("/?").is_err() {
            if Instant::now() > deadline {
                return Err("etcd does not answer".into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// All keys under a prefix, in their order.
    ///
    /// # Errors
    /// It does not answer.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints(), "--command-timeout", "3s"])
            .args(["get", "--prefix", "--keys-only", prefix]);
        let output = command.output().map_err(|e| format!("etcdctl: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|l| !l.is_empty());
        Ok(lines.map(str::to_owned).collect())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|n| self.end(n));
    }
}
