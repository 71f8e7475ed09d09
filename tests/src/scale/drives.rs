//! A large drive with a larger volume: what formatting and opening take, and what the data path keeps in memory.

use super::writer::Writer;
use super::{Accounts, accounts};
use crate::cluster::{Cluster, kill};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Blocks of one scattered write: few, so that there are many leaves.
const PIECE_BLOCKS: u64 = 16;
/// Blocks of the volume: 64 TiB.
const VOLUME_BLOCKS: u64 = 1 << 34;
/// Blocks that are compared after each opening.
const COMPARED: usize = 2000;

/// What was measured. Times are in seconds, from the control process having reached the data path to the pool being open.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Bytes of the drive.
    pub drive_bytes: u64,
    /// Formatting and opening.
    pub format_s: f64,
    /// Bytes written at random places, in pieces of 64 KiB.
    pub scattered_bytes: u64,
    /// What writing them took.
    pub scattered_s: f64,
    /// A clean close, the data path's end included.
    pub close_s: f64,
    /// Opening after it.
    pub clean_open_s: f64,
    /// Blocks that were written at random places before the kill.
    pub before_kill: u64,
    /// Opening after the kill.
    pub crash_open_s: f64,
    /// Of that, until the journal was replayed: the rest is the checkpoint that ends an opening.
    pub replay_s: f64,
    /// Records that were replayed: entries of the delta that the kill met.
    pub replayed: u64,
    /// The most memory that the data path had resident, of each of its lives, in MiB: ordinary pages, and huge ones beside them.
    pub resident_mib: Vec<(u64, u64)>,
    /// The drive at the end.
    pub accounts: Option<Accounts>,
}

/// A sparse file behind a loop device.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn new(file: &Path, bytes: u64) -> Result<Self, String> {
        let made = std::fs::File::create(file).and_then(|f| f.set_len(bytes));
        made.map_err(|e| format!("a sparse file of {bytes} bytes: {e}"))?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let output = output.map_err(|e| format!("losetup: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("losetup (this needs root): {said}"));
        }
        let device = String::from_utf8_lossy(&output.stdout).trim().into();
        Ok(Self { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status();
    }
}

/// Seconds of a day in a log line's time, `2026-01-31T12:34:56.789Z …`.
fn time_of(line: &str) -> Option<f64> {
    let (time, _) = line.split_once('T')?.1.split_once('Z')?;
    let mut parts = time.split(':').map(|p| p.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// What of the last opening was spent until the journal was replayed, and the records of it that counted.
fn last_replay(cluster: &Cluster) -> Result<(f64, u64), String> {
    let at = |file: &str, what: &str| {
        let log = std::fs::read_to_string(cluster.path(file));
        let log = log.map_err(|e| format!("{file}: {e}"))?;
        let line = log.lines().rev().find(|line| line.contains(what));
        let line = line.and_then(|line| Some((time_of(line)?, line.to_owned())));
        line.ok_or_else(|| format!("{file} does not say `{what}`"))
    };
    let (replayed, line) = at("data/node-1/datapath.log", "its journal was replayed")?;
    let records = line.split_once("records=").map(|(_, rest)| rest);
    let records = records.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let records = records.ok_or_else(|| format!("no number of records in `{line}`"))?;
    let (connected, _) = at("data/node-1/control.log", "data path connected")?;
    Ok(((replayed - connected).rem_euclid(86_400.0), records))
}

/// What the last opening took: the control process's log says when it reached the data path, and when the pool was open.
fn last_open(cluster: &Cluster) -> Result<f64, String> {
    let log = std::fs::read_to_string(cluster.path("data/node-1/control.log"));
    let log = log.map_err(|e| format!("the control process's log: {e}"))?;
    let at = |what: &str| {
        let line = log.lines().rev().find(|line| line.contains(what));
        line.and_then(time_of)
            .ok_or_else(|| format!("the log does not say `{what}`"))
    };
    Ok((at("pool open")? - at("data path connected")?).rem_euclid(86_400.0))
}

fn resident(cluster: &Cluster) -> (u64, u64) {
    let pid = cluster.ready().nodes[0].datapath_pid.unwrap_or(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            / 1024
    };
    (mib("VmHWM:"), mib("HugetlbPages:"))
}

/// Runs it in `dir`.
///
/// # Errors
/// The first thing that is wrong; figures are for the caller to judge.
pub fn run(
    dir: &Path,
    drive_bytes: u64,
    scattered_bytes: u64,
    before_kill: u64,
    seed: u64,
) -> Result<Report, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut report = Report {
        drive_bytes,
        before_kill,
        ..Report::default()
    };
    let file = tempfile::Builder::new().prefix("drive-").tempfile_in(dir);
    let file = file.map_err(|e| format!("{}: {e}", dir.display()))?;
    let drive = Loop::new(file.path(), drive_bytes)?;
    let device = drive.device.to_str().expect("a device's path").to_owned();
    let mut cluster = Cluster::builder()
        .arg(&["--device", &device, "--reactors", "1"])
        .volume("other:16M")
        .start();
    report.format_s = last_open(&cluster)?;
    let size = (VOLUME_BLOCKS * 4096).to_string();
    cluster.keelctl_json(&["volume", "create", "large", "--size", &size]);

    let mut writer = Writer::connect(cluster.target("large"))?;
    let pieces = scattered_bytes / 4096 / PIECE_BLOCKS;
    let places: Vec<u64> = (0..pieces)
        .map(|_| writer.anywhere(&mut random, PIECE_BLOCKS, VOLUME_BLOCKS))
        .collect();
    // The last block, so that the map has all its levels; and no place twice at a time.
    let places: std::collections::BTreeSet<u64> = places
        .into_iter()
        .chain([VOLUME_BLOCKS - PIECE_BLOCKS])
        .collect();
    let mut places: Vec<u64> = places.into_iter().collect();
    rand::seq::SliceRandom::shuffle(&mut places[..], &mut random);
    report.scattered_bytes = places.len() as u64 * PIECE_BLOCKS * 4096;
    let began = Instant::now();
    writer.write(places.iter().copied(), PIECE_BLOCKS)?;
    writer.flush()?;
    report.scattered_s = began.elapsed().as_secs_f64();
    writer.verify_some(&mut random, COMPARED)?;
    report.resident_mib.push(resident(&cluster));

    let began = Instant::now();
    cluster.stop();
    report.close_s = began.elapsed().as_secs_f64();
    cluster.start();
    report.clean_open_s = last_open(&cluster)?;
    writer.reconnect(cluster.target("large"))?;
    writer.verify_some(&mut random, COMPARED)?;

    // Each block in another leaf, as far as there are so many: what a checkpoint in the opening has most work with.
    let many = before_kill.min(places.len() as u64) as usize;
    let at: Vec<u64> = places[..many]
        .iter()
        .map(|p| p + random.random_range(0..PIECE_BLOCKS))
        .collect();
    report.before_kill = at.len() as u64;
    writer.write(at, 1)?;
    report.resident_mib.push(resident(&cluster));
    let killed = cluster.kill_datapath();
    cluster.wait_until("the data path is back", |r| {
        r.nodes[0].datapath_pid.is_some_and(|p| p != killed)
    });
    writer.reconnect(cluster.target("large"))?;
    report.crash_open_s = last_open(&cluster)?;
    (report.replay_s, report.replayed) = last_replay(&cluster)?;
    writer.verify_some(&mut random, COMPARED)?;
    for _ in 0..COMPARED {
        let block = random.random_range(0..VOLUME_BLOCKS);
        let version = writer.written.get(&block).copied().unwrap_or(0);
        writer.verify(block, version)?;
    }
    report.resident_mib.push(resident(&cluster));
    kill(cluster.up_pid(), Signal::STOP);
    kill(
        cluster.ready().nodes[0].datapath_pid.expect("it runs"),
        Signal::KILL,
    );
    std::thread::sleep(std::time::Duration::from_secs(1));
    let checked = accounts(&drive.device);
    kill(cluster.up_pid(), Signal::CONT);
    report.accounts = Some(checked?);
    drop(cluster);
    Ok(report)
}
