//! The data path is killed while hosts write, over and over: what was acknowledged must be there, what was in flight whole or not at all,
//! and nothing else may have changed.
//!
//! A process that dies does not lose what the kernel holds, so this is not about power cuts (the store's own harness is, on simulated
//! drives); it is about the whole program: its start, its drive's lock, replay of real journals, and control processes that saw half of
//! something. Kills come at random moments, in the middle of taking and deleting snapshots, and while the drive is being opened. The drive
//! is small, so that checkpoints are always about. [`model`] says what may be found, [`host`] sends commands.

pub mod host;
pub mod model;

use crate::cluster::{Cluster, kill};
use crate::programs::program;
use crate::workload::Target;
use host::{Host, Load};
use model::{Model, Snapshot};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Volumes, and the blocks of each.
const VOLUMES: [&str; 2] = ["one", "two"];
const VOLUME_BLOCKS: u64 = 16_384;
/// Snapshots at a time: they must fit the drive.
const SNAPSHOTS_MAX: usize = 4;
/// Deaths after which the data path is stopped kindly for once: who looks after it waits longer after each death.
const DEATHS_MAX: u32 = 4;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Kills, those while the drive was being opened included.
    pub kills: u64,
    /// Of these, soon after a start, so that many hit the opening of the drive.
    pub after_start: u64,
    /// Of these, while a snapshot was being taken.
    pub while_taking: u64,
    /// Of these, while a snapshot was being deleted.
    pub while_deleting: u64,
    /// Commands that were acknowledged.
    pub acknowledged: u64,
    /// Of these, writes with FUA, and flushes.
    pub durable: u64,
    /// Commands that were in flight at kills.
    pub in_flight: u64,
    /// Times that a whole volume was compared.
    pub volumes_verified: u64,
    /// Snapshots that were compared, through a clone.
    pub snapshots_verified: u64,
    /// Runs of the offline check on the drive as a kill left it.
    pub checks: u64,
    /// Checkpoints of the drive until the last offline check.
    pub checkpoints: u64,
    /// Seconds.
    pub seconds: f64,
}

struct Taken {
    name: String,
    volume: usize,
    is: Snapshot,
}

struct Volume {
    target: Target,
    model: Arc<Mutex<Model>>,
}

struct Run<'a> {
    cluster: &'a Cluster,
    random: SmallRng,
    volumes: Vec<Volume>,
    snapshots: Vec<Taken>,
    names: u32,
    pid: u32,
    /// That process was killed.
    dead: bool,
    deaths: u32,
    report: Report,
}

type Loads = Vec<JoinHandle<Result<Load, String>>>;

/// Kills a cluster's data path so many times.
///
/// # Errors
/// The first thing that is wrong.
pub fn run(count: u64, seed: u64) -> Result<Report, String> {
    // `up` tries its own volumes by writing to them: this one is for that.
    let cluster = Cluster::builder()
        .arg(&["--size", "1G", "--reactors", "2"])
        .volume("other:16M")
        .start();
    let began = Instant::now();
    let mut run = Run::new(&cluster, seed);
    let mut outcome = Ok(());
    while outcome.is_ok() && run.report.kills < count {
        outcome = run.round();
    }
    let outcome = outcome.and_then(|()| run.end());
    run.report.seconds = began.elapsed().as_secs_f64();
    outcome.map_err(|e| format!("{e}\nafter {:?}\n{}", run.report, cluster.logs()))?;
    Ok(run.report)
}

fn keelctl(words: &[&str], endpoint: &str) -> Output {
    let mut command = Command::new(program("keelctl"));
    command.args(words).env("KEELBLOCK_ENDPOINT", endpoint);
    command.output().expect("keelctl starts")
}

impl<'a> Run<'a> {
    fn new(cluster: &'a Cluster, seed: u64) -> Self {
        let size = (VOLUME_BLOCKS * 4096).to_string();
        let ready = cluster.ready();
        let volume = |name: &&str| {
            cluster.keelctl_json(&["volume", "create", name, "--size", &size]);
            Volume {
                target: cluster.target(name),
                model: Arc::new(Mutex::new(Model::new(VOLUME_BLOCKS))),
            }
        };
        Self {
            random: SmallRng::seed_from_u64(seed),
            volumes: VOLUMES.iter().map(volume).collect(),
            snapshots: Vec::new(),
            names: 0,
            pid: ready.nodes[0].datapath_pid.expect("the data path runs"),
            dead: false,
            deaths: 0,
            report: Report::default(),
            cluster,
        }
    }

    fn round(&mut self) -> Result<(), String> {
        let stop = Arc::new(AtomicBool::new(false));
        let loads = self.start_loads(&stop)?;
        self.pause(300);
        let with = self.random.random_range(0..10);
        match with {
            0..3 if self.snapshots.len() < SNAPSHOTS_MAX => self.kill_while_taking(loads)?,
            3..5 if !self.snapshots.is_empty() => self.kill_while_deleting(loads)?,
            _ => {
                if with < 7 && self.snapshots.len() < SNAPSHOTS_MAX {
                    self.take()?;
                    self.pause(200);
                }
                self.die()?;
                self.join(loads)?;
            }
        }
        if self.random.random_range(0..4) == 0 {
            self.kill_after_start()?;
        }
        self.verify()?;
        if !self.snapshots.is_empty() && self.random.random_range(0..4) == 0 {
            self.verify_snapshot()?;
        }
        if self.deaths >= DEATHS_MAX {
            self.restart()?;
        }
        if self.report.kills % 20 < 2 {
            println!("{:?}", self.report);
        }
        Ok(())
    }

    fn pause(&mut self, most_ms: u64) {
        let ms = self.random.random_range(0..most_ms);
        std::thread::sleep(Duration::from_millis(ms));
    }

    /// One more host for each volume, which writes until it is cut off.
    fn start_loads(&mut self, stop: &Arc<AtomicBool>) -> Result<Loads, String> {
        let mut loads = Vec::new();
        for volume in &self.volumes {
            let mut host = Host::connect(&volume.target)?;
            let mut random = SmallRng::seed_from_u64(self.random.random());
            let (model, stop) = (volume.model.clone(), stop.clone());
            let load = move || host.load(&model, &mut random, &stop);
            loads.push(std::thread::spawn(load));
        }
        Ok(loads)
    }

    fn join(&mut self, loads: Loads) -> Result<(), String> {
        for load in loads {
            let load = load.join().map_err(|_| "a host panicked")??;
            self.report.acknowledged += load.acknowledged;
            self.report.durable += load.durable;
            self.report.in_flight += load.in_flight;
        }
        Ok(())
    }

    /// Kills the data path; now and then the drive is checked before anybody opens it again.
    fn die(&mut self) -> Result<(), String> {
        let check = self.random.random_range(0..6) == 0;
        if check {
            kill(self.cluster.up_pid(), Signal::STOP);
        }
        kill(self.pid, Signal::KILL);
        self.dead = true;
        self.report.kills += 1;
        self.deaths += 1;
        if check {
            let checked = self.check();
            kill(self.cluster.up_pid(), Signal::CONT);
            checked?;
        }
        Ok(())
    }

    fn drive(&self) -> PathBuf {
        let nodes = std::fs::read_dir(self.cluster.path("data")).expect("the cluster's files");
        let drives = nodes.flatten().map(|node| node.path().join("drive.img"));
        drives
            .into_iter()
            .find(|d| d.exists())
            .expect("a node has a drive")
    }

    fn check(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + crate::cluster::PATIENCE;
        loop {
            let mut check = Command::new(program("keelblock-datapath"));
            let output = check.args(["check", "--data"]).arg(self.drive()).output();
            let output = output.map_err(|e| format!("the check does not start: {e}"))?;
            let says = [output.stdout, output.stderr].concat();
            let says = String::from_utf8_lossy(&says).into_owned();
            match output.status.code() {
                Some(0) => break,
                // The killed process is on its way out still.
                Some(2) if says.contains("in use") && Instant::now() < deadline => {}
                _ => return Err(format!("the offline check after a kill: {says}")),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.report.checks += 1;
        let mut dump = Command::new(program("keelblock-datapath"));
        let output = dump
            .arg("dump")
            .arg(self.drive())
            .arg("superblock")
            .output();
        let output = output.map_err(|e| format!("the dump does not start: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once("checkpoint")?;
            let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
            let end = digits
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(digits.len());
            digits[..end].parse().ok()
        });
        self.report.checkpoints = numbers.max().unwrap_or(self.report.checkpoints);
        Ok(())
    }

    /// Waits until a data path runs, if the last one was killed.
    fn wait_for_next(&mut self) {
        if !std::mem::take(&mut self.dead) {
            return;
        }
        let old = self.pid;
        let ready = self.cluster.wait_until("the data path is back", |r| {
            r.nodes[0].datapath_pid.is_some_and(|pid| pid != old)
        });
        self.pid = ready.nodes[0].datapath_pid.expect("waited for");
    }

    /// Kills the next data path before, while, or soon after it opens the drive.
    fn kill_after_start(&mut self) -> Result<(), String> {
        self.wait_for_next();
        self.pause(150);
        self.report.after_start += 1;
        self.die()
    }

    /// Runs `keelctl` beside a kill that comes soon, and gives whether it says that it succeeded.
    fn kill_beside(&mut self, words: &[&str], loads: Loads, most_ms: u64) -> Result<bool, String> {
        let endpoint = self.cluster.ready().nodes[0].sdk.to_string();
        let owned: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let beside = std::thread::spawn(move || {
            let words: Vec<&str> = owned.iter().map(String::as_str).collect();
            keelctl(&words, &endpoint)
        });
        self.pause(most_ms);
        self.die()?;
        self.join(loads)?;
        let output = beside.join().map_err(|_| "keelctl was not run")?;
        Ok(output.status.success())
    }

    fn kill_while_taking(&mut self, loads: Loads) -> Result<(), String> {
        let (volume, name) = self.next_snapshot();
        let mut is = self.model(volume).snapshot_begins();
        let words = [
            "volume",
            "snapshot",
            "create",
            VOLUMES[volume],
            "--name",
            &name,
        ];
        let taken = self.kill_beside(&words, loads, 150)?;
        self.report.while_taking += 1;
        self.wait_for_next();
        let there = self.exists(&name)?;
        if taken && !there {
            return Err(format!("snapshot {name} was taken, and is gone"));
        }
        self.model(volume).snapshot_ended(&mut is);
        if there {
            self.snapshots.push(Taken { name, volume, is });
        }
        Ok(())
    }

    fn kill_while_deleting(&mut self, loads: Loads) -> Result<(), String> {
        let n = self.random.random_range(0..self.snapshots.len());
        let name = self.snapshots[n].name.clone();
        let gone = self.kill_beside(&["volume", "snapshot", "delete", &name], loads, 400)?;
        self.report.while_deleting += 1;
        self.wait_for_next();
        let there = self.exists(&name)?;
        if gone && there {
            return Err(format!("snapshot {name} was deleted, and is there"));
        }
        if !there {
            self.snapshots.remove(n);
        }
        Ok(())
    }

    fn model(&self, volume: usize) -> std::sync::MutexGuard<'_, Model> {
        self.volumes[volume]
            .model
            .lock()
            .expect("nobody panics with it")
    }

    fn next_snapshot(&mut self) -> (usize, String) {
        self.names += 1;
        let volume = self.random.random_range(0..self.volumes.len());
        (volume, format!("s{}", self.names))
    }

    /// Takes a snapshot while hosts write.
    fn take(&mut self) -> Result<(), String> {
        let (volume, name) = self.next_snapshot();
        let mut is = self.model(volume).snapshot_begins();
        self.ok(&[
            "volume",
            "snapshot",
            "create",
            VOLUMES[volume],
            "--name",
            &name,
        ])?;
        self.model(volume).snapshot_ended(&mut is);
        self.snapshots.push(Taken { name, volume, is });
        Ok(())
    }

    /// Runs `keelctl` until it succeeds: soon after a start the data path may not be reached yet.
    fn ok(&self, words: &[&str]) -> Result<Output, String> {
        let deadline = Instant::now() + crate::cluster::PATIENCE;
        loop {
            let output = self.cluster.keelctl(words);
            if output.status.success() {
                return Ok(output);
            }
            if Instant::now() > deadline {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(format!("keelctl {words:?}: {said}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn exists(&self, snapshot: &str) -> Result<bool, String> {
        let output = self.ok(&["volume", "snapshot", "list", "--json"])?;
        let list: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|e| format!("a list: {e}"))?;
        let list = list.as_array().ok_or("a list that is none")?;
        Ok(list.iter().any(|s| s["name"] == snapshot))
    }

    /// Compares all of all volumes.
    fn verify(&mut self) -> Result<(), String> {
        self.wait_for_next();
        for (name, volume) in VOLUMES.iter().zip(&self.volumes) {
            let shown = Host::connect(&volume.target)?.read_all();
            let shown = shown.map_err(|e| format!("volume {name}: {e}"))?;
            let mut model = volume.model.lock().expect("nobody panics with it");
            model
                .settle(&shown)
                .map_err(|e| format!("volume {name}: {e}"))?;
            self.report.volumes_verified += 1;
        }
        Ok(())
    }

    /// Compares a snapshot, through a clone that goes again.
    fn verify_snapshot(&mut self) -> Result<(), String> {
        let n = self.random.random_range(0..self.snapshots.len());
        self.names += 1;
        let clone = format!("c{}", self.names);
        let (name, volume) = (self.snapshots[n].name.clone(), self.snapshots[n].volume);
        self.ok(&["volume", "clone", &name, "--name", &clone])?;
        let mut host = Host::connect(&self.cluster.target(&clone))?;
        let shown = host
            .read_all()
            .map_err(|e| format!("snapshot {name}: {e}"))?;
        let checked = self
            .model(volume)
            .check_snapshot(&self.snapshots[n].is, &shown);
        checked.map_err(|e| format!("snapshot {name} of volume {}: {e}", VOLUMES[volume]))?;
        drop(host);
        self.ok(&["volume", "delete", &clone, "--force"])?;
        self.report.snapshots_verified += 1;
        Ok(())
    }

    /// Stops the node and starts it again, kindly.
    fn restart(&mut self) -> Result<(), String> {
        let id = self.cluster.ready().nodes[0].id.clone();
        for action in ["stop", "start"] {
            let output = self.cluster.node(action, &id);
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(format!("node {action}: {said}"));
            }
        }
        self.dead = true;
        self.wait_for_next();
        self.deaths = 0;
        self.verify()
    }

    /// Compares everything once more, and the drive without anybody using it.
    fn end(&mut self) -> Result<(), String> {
        while !self.snapshots.is_empty() {
            self.verify_snapshot()?;
            let last = self.snapshots.pop().expect("there is one");
            self.ok(&["volume", "snapshot", "delete", &last.name])?;
        }
        self.verify()?;
        kill(self.cluster.up_pid(), Signal::STOP);
        kill(self.pid, Signal::KILL);
        let checked = self.check();
        kill(self.cluster.up_pid(), Signal::CONT);
        checked
    }
}
