//! How one control process does with many volumes and nodes: `cargo xtask bench control [-- --volumes 10000 --nodes 200 --kvdb etcd]`.
//!
//! The control process is real, and so is the KVDB, in a process of its own; the node's data path is the one of the tests, which only remembers, and the other nodes are simulated: they have
//! records, leases and watches, and make their replicas in the KVDB as nodes do. `docs/performance.md`, *Control*, has the figures and what each of them is.
//! Fails if, at the last count, a list takes 200 ms or a create 50 ms (medians).

mod calls;
#[allow(
    dead_code,
    reason = "the tests' own; most of what it can do wrong is not wanted here"
)]
#[path = "../../tests/control/fake.rs"]
mod fake;
#[allow(
    dead_code,
    reason = "the tests' own; most of what it can do wrong is not wanted here"
)]
#[path = "../../tests/control/fake_replication.rs"]
mod fake_replication;
mod nodes;
mod processes;
mod relay;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use calls::{Calls, Times};
use clap::{Parser, ValueEnum};
use keelblock_control::kvdb::Client;
use keelblock_control::records::Keys;
use processes::{CLUSTER, Process, Used, free_port, program};
use relay::{Passed, Relay};

/// Creates that are measured one by one, up to each count.
const MEASURED: usize = 100;
/// Creates at a time, up to those.
const AT_ONCE: usize = 4;
/// Calls of each kind of list.
const LISTS: usize = 11;
/// Longest wait for processes to begin.
const BEGIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// What is wanted at the last count.
const LIST_LIMIT: Duration = Duration::from_millis(200);
const CREATE_LIMIT: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Keelblock's own.
    Embedded,
    /// One member of etcd.
    Etcd,
}

#[derive(Debug, Parser)]
struct Args {
    /// Volumes at which it is measured, each more than the one before.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    volumes: Vec<usize>,
    /// Nodes, of which one is real but for its data path.
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// Replicas of each volume.
    #[arg(long, default_value_t = 3)]
    replicas: i64,
    /// The key-value database.
    #[arg(long, value_enum, default_value = "embedded")]
    kvdb: Kind,
    /// Simulated nodes do not watch the KVDB: what it costs to tell them is left out.
    #[arg(long)]
    no_watches: bool,
    /// Seconds in which nothing is asked for, at each count.
    #[arg(long, default_value_t = 15)]
    idle: u64,
}

/// What was measured at a number of volumes.
struct Row {
    volumes: usize,
    create: Times,
    enumerate: Times,
    list: Times,
    rest: Times,
    inspect: Times,
    keelctl: Option<Times>,
    control: Used,
    kvdb: Used,
    /// Of each create, of the control process; time of processors in ms: control process, KVDB.
    per_create: (Passed, f64, f64),
    /// Of each idle second; processors in percent of one.
    per_second: (Passed, f64, f64),
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("control-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<bool, String> {
    let dir = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let (kvdb_at, sdk, rest) = (free_port()?, free_port()?, free_port()?);
    let kvdb = match args.kvdb {
        Kind::Embedded => Process::embedded(dir.path(), kvdb_at)?,
        Kind::Etcd => Process::etcd(dir.path(), kvdb_at)?,
    };
    let client = Client::new(&kvdb_at.to_string()).map_err(|e| e.to_string())?;
    until("the KVDB answers", async || client.get("?").await.is_ok()).await?;
    let relay = Relay::start(kvdb_at).await.map_err(|e| e.to_string())?;
    let fake = fake::Fake::start(&dir.path().join("dp.sock"));
    fake.memory().replicating = true;
    fake.memory().capacity = nodes::POOL_BYTES;
    let control = Process::control(dir.path(), relay.address, sdk, rest)?;
    let calls = Calls::new(sdk, rest, args.replicas)?;
    let log = || std::fs::read_to_string(dir.path().join("control.log")).unwrap_or_default();
    let begun = until("the control process answers", async || {
        calls.nodes().await.is_ok()
    });
    begun.await.map_err(|e| format!("{e}\n{}", log()))?;
    let keys = Keys::new(CLUSTER);
    let simulated = nodes::Nodes::start(
        &kvdb_at.to_string(),
        &keys,
        (2, args.nodes),
        !args.no_watches,
    )
    .await;
    let _simulated = simulated.map_err(|e| e.to_string())?;
    let wanted = args.nodes;
    until("all nodes are known", async || {
        calls.nodes().await == Ok(wanted)
    })
    .await?;
    // What a node has to say about its room comes a moment later than its life.
    until("a volume is made", async || {
        calls.create("first").await.is_ok()
    })
    .await?;
    let mut rows = Vec::new();
    let mut made = 1;
    for volumes in args.volumes.iter().copied() {
        let slow = MEASURED.min(volumes.saturating_sub(made));
        calls.fill(made..volumes - slow, AT_ONCE).await?;
        let before = (relay.passed(), control.used(), kvdb.used());
        let mut create = Times::default();
        for n in volumes - slow..volumes {
            let began = Instant::now();
            calls.create(&format!("volume-{n}")).await?;
            create.add(began.elapsed());
        }
        let each = slow.max(1) as f64;
        let per_create = (
            relay.passed() - before.0,
            (control.used().cpu_s - before.1.cpu_s) * 1000.0 / each,
            (kvdb.used().cpu_s - before.2.cpu_s) * 1000.0 / each,
        );
        made = volumes;
        let row = Row {
            volumes,
            create,
            enumerate: times(async || calls.enumerate(volumes).await).await?,
            list: times(async || calls.list(volumes).await).await?,
            rest: times(async || calls.rest(volumes).await).await?,
            inspect: times(async || calls.inspect("first").await).await?,
            keelctl: keelctl(sdk, volumes).await?,
            control: control.used(),
            kvdb: kvdb.used(),
            per_create,
            per_second: idle(&relay, (&control, &kvdb), args.idle).await,
        };
        println!("{}", row.told(slow, args.idle));
        rows.push(row);
    }
    let Some(last) = rows.last() else {
        return Err("no volumes were asked for".into());
    };
    let well = last.list.median() < LIST_LIMIT && last.create.median() < CREATE_LIMIT;
    let nodes = args.nodes;
    println!(
        "{} volumes, {nodes} nodes, {:?}: a list under {LIST_LIMIT:?} and a create under {CREATE_LIMIT:?}: {}",
        last.volumes,
        args.kvdb,
        if well { "yes" } else { "NO" }
    );
    Ok(well)
}

impl Row {
    fn told(&self, creates: usize, idle: u64) -> String {
        let ((passed, control, kvdb), each) = (self.per_create, creates.max(1) as f64);
        let (quiet, control_idle, kvdb_idle) = self.per_second;
        let idle = idle.max(1) as f64;
        let keelctl = match &self.keelctl {
            Some(times) => times.to_string(),
            None => "keelctl is not built".into(),
        };
        [
            format!("--- {} volumes", self.volumes),
            format!("create: {}", self.create),
            format!(
                "  of each: {:.1} requests, {:.0} bytes to and {:.0} from the KVDB; {control:.1} ms of a processor, {kvdb:.1} ms of the KVDB's",
                passed.requests as f64 / each,
                passed.sent as f64 / each,
                passed.got as f64 / each,
            ),
            format!("list (InspectWithFilters): {}", self.list),
            format!("Enumerate: {}", self.enumerate),
            format!("list by REST: {}", self.rest),
            format!("`keelctl volume list`, with its start: {keelctl}"),
            format!("Inspect: {}", self.inspect),
            format!(
                "resident: control process {:.0} MiB, KVDB {:.0} MiB",
                self.control.resident_mib, self.kvdb.resident_mib
            ),
            format!(
                "each idle second: {:.1} requests, {:.0} bytes to and {:.0} from the KVDB; {control_idle:.1} % of a processor, {kvdb_idle:.1} % of the KVDB's",
                quiet.requests as f64 / idle,
                quiet.sent as f64 / idle,
                quiet.got as f64 / idle,
            ),
            format!("KVDB: {} MiB written to its drive so far", self.kvdb.written >> 20),
        ]
        .join("\n")
    }
}

/// What nothing costs.
async fn idle(relay: &Relay, of: (&Process, &Process), seconds: u64) -> (Passed, f64, f64) {
    let before = (relay.passed(), of.0.used().cpu_s, of.1.used().cpu_s);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let percent = |now: f64, before: f64| (now - before) * 100.0 / seconds.max(1) as f64;
    (
        relay.passed() - before.0,
        percent(of.0.used().cpu_s, before.1),
        percent(of.1.used().cpu_s, before.2),
    )
}

async fn keelctl(sdk: SocketAddr, volumes: usize) -> Result<Option<Times>, String> {
    let Ok(program) = program("keelctl") else {
        return Ok(None);
    };
    let one = async || {
        let mut command = tokio::process::Command::new(&program);
        command.args(["volume", "list"]);
        let output = command.env("KEELBLOCK_ENDPOINT", sdk.to_string()).output();
        let output = output.await.map_err(|e| format!("keelctl: {e}"))?;
        let lines = output.stdout.iter().filter(|b| **b == b'\n').count();
        match output.status.success() && lines >= volumes {
            true => Ok(()),
            false => Err(format!(
                "keelctl volume list shows {lines} lines: {}",
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    };
    times(one).await.map(Some)
}

async fn times<E>(call: impl AsyncFn() -> Result<(), E>) -> Result<Times, E> {
    let mut times = Times::default();
    for _ in 0..LISTS {
        let began = Instant::now();
        call().await?;
        times.add(began.elapsed());
    }
    Ok(times)
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + BEGIN;
    while !is_so().await {
        if Instant::now() > deadline {
            return Err(format!("waited in vain until {what}"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
