//! Starting the reactors, with everything that lives on each of them.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_api::datapath as proto;
use keelblock_api::stats::{StatsPage, StatsReader, VOLUME_SLOTS_MAX};
use keelblock_hugepages::PageKind;
use tokio::sync::mpsc;

use super::{Args, Facts, ProcessError, Reactors, identity};
use crate::command::{Commander, EventSink, HubVolumes, JOBS_MAX, Job, Replicating, unix_ms};
use crate::nvmf::seam::NodeIdentity;
use crate::nvmf::{self, Target};
use crate::reactor::{self, Config, Endpoint, Handle, mesh, run::OnStall};
use crate::replication::node::Node;
use crate::replication::session::Mail;
use crate::store::engine::CacheBudget;
use crate::volume::{self, Hub, Registry};

/// Jobs that run beside each other on reactor 0.
const JOBS_AT_ONCE: usize = 64;

/// A data path whose reactors are up.
pub struct Running {
    /// The threads.
    pub reactors: Reactors,
    /// The stats page.
    pub stats: StatsPage,
    /// What is told of this process.
    pub facts: Facts,
    /// Where jobs for reactor 0 go.
    pub jobs: mpsc::Sender<Job>,
    poll: &'static str,
}

/// What a reactor begins with.
struct Seed {
    volumes: Endpoint<volume::Message>,
    /// Of a process that replicates.
    replication: Option<Endpoint<Mail>>,
    target: Endpoint<nvmf::Message>,
    identity: NodeIdentity,
    stats: StatsPage,
    reader: Arc<StatsReader>,
    up: mpsc::Sender<Up>,
    main: Option<MainSeed>,
}

/// What reactor 0 has more.
struct MainSeed {
    jobs: mpsc::Receiver<Job>,
    events: EventSink,
    cache: CacheBudget,
    replicating: Option<Replicating>,
}

/// A reactor's word that it is up, and where hosts connect if it is the one that listens.
type Up = Result<Option<std::net::SocketAddr>, ProcessError>;

/// Starts everything.
///
/// # Errors
/// [`ProcessError`]: then nothing is left running.
pub async fn start(args: &Args, events: EventSink) -> Result<Running, ProcessError> {
    raise_descriptors();
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let count = args.reactor_count(cores.len());
    let each = args
        .memory_per_reactor(count)
        .map_err(ProcessError::Argument)?;
    let started_unix_ms = unix_ms();
    let incarnation = uuid::Uuid::new_v4().into_bytes();
    let stats = StatsPage::create(count as u32, VOLUME_SLOTS_MAX, incarnation, started_unix_ms)?;
    let (jobs, jobs_in) = mpsc::channel(JOBS_MAX);
    let (up, mut ups) = mpsc::channel(count);
    let main = MainSeed {
        jobs: jobs_in,
        events: events.clone(),
        cache: CacheBudget::new(args.cache),
        replicating: replicating(args, incarnation)?,
    };
    let seeds = seeds(args, count, &stats, &up, main)?;
    drop(up);
    let stalled: OnStall =
        Arc::new(move |reactor, task, held| events.task_stalled(reactor, task, held));
    let config = Config {
        cpus: args.cpu_numbers(),
        poll: args.poll.into(),
        idle: args.idle(),
        buffer_bytes: each,
        on_stall: Some(stalled),
    };
    let reactors = reactor::run(&config, seeds, start_one)?;
    let mut nvme_address = args.listen;
    while let Some(up) = ups.recv().await {
        // Dropping the reactors stops those that are up.
        if let Some(address) = up? {
            nvme_address = address;
        }
    }
    if reactors.ended() {
        return Err(ProcessError::Reactor(
            "a reactor ended while starting".to_owned(),
        ));
    }
    let cpus = pinned_to(args, &reactors, &cores);
    let facts = Facts {
        incarnation,
        nvme_address,
        reactors: told_reactors(args, count, &cpus),
        memory_bytes: (each * count) as u64,
        hugepages: reactors.pages() == PageKind::Huge,
        started_unix_ms,
    };
    Ok(Running {
        reactors,
        stats,
        facts,
        jobs,
        poll: args.poll.name(),
    })
}

fn seeds(
    args: &Args,
    count: usize,
    stats: &StatsPage,
    up: &mpsc::Sender<Up>,
    main: MainSeed,
) -> Result<Vec<Seed>, ProcessError> {
    let descriptor = stats.as_fd().try_clone_to_owned();
    let descriptor = descriptor.map_err(|source| ProcessError::System {
        what: "share the stats page",
        source,
    })?;
    let reader = Arc::new(StatsReader::from_fd(descriptor)?);
    let mut replication: Vec<Option<Endpoint<Mail>>> = match main.replicating {
        Some(_) => mesh(count).into_iter().map(Some).collect(),
        None => (0..count).map(|_| None).collect(),
    };
    let mut main = Some(main);
    let ends = mesh(count).into_iter().zip(mesh(count));
    let ends = ends.zip(replication.drain(..));
    let seeds = ends.map(|((volumes, target), replication)| Seed {
        volumes,
        replication,
        target,
        identity: NodeIdentity {
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            model: "Keelblock".to_owned(),
            address: args.listen,
        },
        stats: stats.clone(),
        reader: Arc::clone(&reader),
        up: up.clone(),
        main: main.take(),
    });
    Ok(seeds.collect())
}

/// What replication is started with, if it is.
fn replicating(args: &Args, incarnation: [u8; 16]) -> Result<Option<Replicating>, ProcessError> {
    let (Some(listen), Some(file)) = (args.replication, &args.identity) else {
        return Ok(None);
    };
    Ok(Some(Replicating {
        listen,
        key: identity::key(file)?,
        secret: identity::secret()?,
        incarnation,
    }))
}

/// The first task of a reactor.
async fn start_one(handle: Handle, seed: Seed) {
    let up = seed.up.clone();
    let _ = up.try_send(bring_up(&handle, seed));
}

fn bring_up(handle: &Handle, seed: Seed) -> Up {
    let hub = Hub::start(handle, seed.volumes).ok_or(ProcessError::Memory)?;
    if let Some(mail) = seed.replication {
        hub.replicate(Node::new(handle, mail));
    }
    let volumes = Box::new(HubVolumes::new(hub.clone(), seed.reader));
    let target = Target::start(handle, seed.target, volumes, seed.identity)?;
    let Some(main) = seed.main else {
        return Ok(None);
    };
    let address = target.address();
    let registry = Registry::start(&hub, seed.stats);
    let commander = Commander::start(
        handle,
        registry,
        target,
        main.events,
        main.cache,
        main.replicating,
    );
    handle.spawn("commands", carry_out(handle.clone(), commander, main.jobs));
    Ok(Some(address))
}

/// Runs jobs as they come, beside each other.
async fn carry_out(handle: Handle, commander: Rc<Commander>, mut jobs: mpsc::Receiver<Job>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(JOBS_AT_ONCE));
    while let Some(job) = jobs.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let work = job(Rc::clone(&commander));
        handle.spawn("command", async move {
            work.await;
            drop(slot);
        });
    }
}

/// The core of each reactor; empty if they are not pinned. As `reactor::run` hands them out: those named, or those that there are, in order.
fn pinned_to(args: &Args, reactors: &Reactors, cores: &[core_affinity::CoreId]) -> Vec<usize> {
    if !reactors.pinned() {
        return Vec::new();
    }
    match args.cpu_numbers() {
        named if named.is_empty() => cores.iter().map(|core| core.id).collect(),
        named => named,
    }
}

fn told_reactors(args: &Args, count: usize, cpus: &[usize]) -> Vec<proto::Reactor> {
    let told = (0..count).map(|id| proto::Reactor {
        id: id as u32,
        cpu: cpus
            .get(id % cpus.len().max(1))
            .map_or(-1, |&cpu| cpu as i32),
        poll: args.poll.name().to_owned(),
    });
    told.collect()
}

impl Running {
    /// The one line that says what was got.
    pub fn summary(&self) -> String {
        let cpus: Vec<String> = self
            .facts
            .reactors
            .iter()
            .map(|r| r.cpu.to_string())
            .collect();
        let count = cpus.len();
        let plural = if count == 1 { "reactor" } else { "reactors" };
        let place = match self.reactors.pinned() {
            true => format!("on cores {}", cpus.join(",")),
            false => "not pinned".to_owned(),
        };
        format!(
            "{count} {plural} {place}, poll {}, {} MiB of DMA memory in {}, NVMe/TCP on {}",
            self.poll,
            self.facts.memory_bytes >> 20,
            self.reactors.pages(),
            self.facts.nvme_address,
        )
    }
}

/// Each connection is a descriptor, and many systems give a process 1024 unless it asks for what it may have.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
