//! Starting and ending the reactors of a process.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use keelblock_ffi::clock;
use keelblock_hugepages::{BufferPool, PageKind};

use super::error::StartError;
use super::executor::{Executor, OPS_MAX};
use super::handle::{Core, Driver, Handle};
use super::stats::ReactorStats;
use super::timer::Timers;
use super::uring::{IdleRule, Uring};
use super::wake::{Remote, Wakes};
use super::{Nanos, ReactorId};

/// Most reactors of a process.
pub const REACTORS_MAX: usize = 64;
/// Timers for which room is made at start-up: one per operation, and some for connections.
const TIMERS_AT_START: usize = OPS_MAX * 2;

/// What a reactor does when it finds nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Spins on: lowest latency, a core each.
    Always,
    /// Sleeps after [`Config::idle`] without work.
    Adaptive,
}

/// Called with the reactor, the task's name and how long it held the core; on the reactor's thread.
pub type OnStall = Arc<dyn Fn(ReactorId, &'static str, Duration) + Send + Sync>;

/// How to run the reactors.
#[derive(Clone)]
pub struct Config {
    /// Cores to pin reactors to, in order; empty: as many as there are for this process.
    pub cpus: Vec<usize>,
    /// What to do without work.
    pub poll: Poll,
    /// Time without work before sleeping; default 50 microseconds.
    pub idle: Duration,
    /// DMA buffers per reactor, in bytes.
    pub buffer_bytes: usize,
    /// Told of tasks that hold the core too long.
    pub on_stall: Option<OnStall>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cpus: Vec::new(),
            poll: Poll::Adaptive,
            idle: Duration::from_micros(50),
            buffer_bytes: 64 << 20,
            on_stall: None,
        }
    }
}

/// The running reactors. Dropping it stops and joins them.
pub struct Reactors {
    threads: Vec<JoinHandle<()>>,
    remotes: Arc<Vec<Remote>>,
    stats: Vec<Arc<ReactorStats>>,
    pages: PageKind,
    pinned: bool,
}

/// Stops the reactors from any thread, a signal handler's task for example.
#[derive(Clone)]
pub struct Stopper(Arc<Vec<Remote>>);

impl Stopper {
    /// Asks all reactors to end.
    pub fn stop(&self) {
        for remote in self.0.iter() {
            remote.stop();
        }
    }
}

/// One or more reactors ended by a panic.
#[derive(Debug, thiserror::Error)]
#[error("reactor {reactor} ended by a panic: {message}")]
pub struct Panicked {
    /// The first one.
    pub reactor: ReactorId,
    /// What it said.
    pub message: String,
}

/// What a starting thread reports back.
type Started = (
    usize,
    Result<(Remote, Arc<ReactorStats>, PageKind), StartError>,
);

/// Starts a reactor thread per element of `seeds`; each runs `init` with its handle and seed as its first task, and goes on until stopped.
///
/// # Errors
/// [`StartError`]; none is running then.
pub fn run<T, F, Fut>(config: &Config, seeds: Vec<T>, init: F) -> Result<Reactors, StartError>
where
    T: Send + 'static,
    F: Fn(Handle, T) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let plan = Plan::new(config, seeds.len())?;
    let all = Arc::new(OnceLock::new());
    let (report, reports) = mpsc::channel::<Started>();
    let mut threads = Vec::with_capacity(seeds.len());
    let mut failure = None;
    for (index, seed) in seeds.into_iter().enumerate() {
        let (init, report, config, plan) =
            (init.clone(), report.clone(), config.clone(), plan.clone());
        let stop_all = StopAll(all.clone());
        let spawned = std::thread::Builder::new()
            .name(format!("reactor-{index}"))
            .spawn(move || {
                let _stop_all = stop_all;
                if let Some(cpu) = plan.pins.get(index) {
                    core_affinity::set_for_current(*cpu);
                }
                match Core::start(index, &config, &plan) {
                    Ok(core) => {
                        let _ = report.send((
                            index,
                            Ok((
                                core.executor.wakes().remote(),
                                core.stats.clone(),
                                core.buffers.kind(),
                            )),
                        ));
                        drop(report);
                        main_of(core, |handle| init(handle, seed));
                    }
                    Err(e) => {
                        let _ = report.send((index, Err(e)));
                    }
                }
            });
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                failure = Some(StartError::Resource {
                    what: "a reactor's thread",
                    source,
                });
                break;
            }
        }
    }
    drop(report);
    let mut started: Vec<_> = Vec::new();
    for (index, result) in reports {
        match result {
            Ok(parts) => started.push((index, parts)),
            Err(e) => failure = Some(e),
        }
    }
    started.sort_by_key(|s| s.0);
    let pages = if started.iter().all(|s| s.1.2 == PageKind::Huge) {
        PageKind::Huge
    } else {
        PageKind::Plain
    };
    let (remotes, stats): (Vec<_>, Vec<_>) = started
        .into_iter()
        .map(|(_, (remote, stats, _))| (remote, stats))
        .unzip();
    let remotes = all.get_or_init(|| Arc::new(remotes)).clone();
    let reactors = Reactors {
        threads,
        remotes,
        stats,
        pages,
        pinned: !plan.pins.is_empty(),
    };
    match failure {
        // Dropping them stops and joins those that run.
        Some(e) => Err(e),
        None => Ok(reactors),
    }
}

impl Reactors {
    /// Stops them from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.remotes.clone())
    }

    /// Counters, by reactor.
    pub fn stats(&self) -> &[Arc<ReactorStats>] {
        &self.stats
    }

    /// What the buffers are made of.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Whether each reactor has a core of its own.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// Whether one of them has ended, stopped or by a panic.
    pub fn ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// If one of them panicked; the others are stopped then.
    pub fn join(mut self) -> Result<(), Panicked> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), Panicked> {
        let mut first = None;
        for (index, thread) in self.threads.drain(..).enumerate() {
            if let Err(panic) = thread.join() {
                for remote in self.remotes.iter() {
                    remote.stop();
                }
                let text = panic.downcast_ref::<String>().cloned();
                let message = text
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default();
                first.get_or_insert(Panicked {
                    reactor: ReactorId(index as u16),
                    message,
                });
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        for remote in self.remotes.iter() {
            remote.stop();
        }
        if let Err(e) = self.wait() {
            tracing::error!("{e}");
        }
    }
}

/// On a reactor's thread: if it panics, the others must not go on as if nothing had happened.
struct StopAll(Arc<OnceLock<Arc<Vec<Remote>>>>);

impl Drop for StopAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for remote in self.0.get().iter().flat_map(|all| all.iter()) {
                remote.stop();
            }
        }
    }
}

/// What was decided for all reactors.
#[derive(Clone)]
struct Plan {
    reactors: usize,
    /// Core of each reactor; empty if they share.
    pins: Vec<core_affinity::CoreId>,
    rule: IdleRule,
}

impl Plan {
    fn new(config: &Config, reactors: usize) -> Result<Self, StartError> {
        if reactors == 0 || reactors > REACTORS_MAX {
            return Err(StartError::Count {
                asked: reactors,
                max: REACTORS_MAX,
            });
        }
        let available = core_affinity::get_core_ids().unwrap_or_default();
        let mut cores = Vec::new();
        for &cpu in &config.cpus {
            match available.iter().find(|core| core.id == cpu) {
                Some(core) if !cores.contains(core) => cores.push(*core),
                Some(_) => {}
                None => {
                    let names: Vec<_> = available.iter().map(|core| core.id.to_string()).collect();
                    return Err(StartError::NoSuchCore {
                        cpu,
                        available: names.join(", "),
                    });
                }
            }
        }
        if config.cpus.is_empty() {
            cores = available;
        }
        let shared = reactors > cores.len();
        if shared && config.poll == Poll::Always {
            return Err(StartError::AlwaysNeedsCores {
                reactors,
                cores: cores.len(),
            });
        }
        // Cores that were named are used even if they are shared; else sharing is left to the kernel.
        let pins = match (shared, config.cpus.is_empty()) {
            (false, _) => cores.into_iter().take(reactors).collect(),
            (true, false) => cores.iter().copied().cycle().take(reactors).collect(),
            (true, true) => Vec::new(),
        };
        let rule = IdleRule {
            sleep: config.poll == Poll::Adaptive,
            after: config.idle,
            yield_core: shared,
        };
        Ok(Plan {
            reactors,
            pins,
            rule,
        })
    }
}

impl Core {
    /// Makes a reactor on the calling thread.
    fn start(index: usize, config: &Config, plan: &Plan) -> Result<Rc<Core>, StartError> {
        let id = ReactorId(index as u16);
        let bell =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(|e| {
                StartError::Resource {
                    what: "a reactor's bell",
                    source: e.into(),
                }
            })?;
        let wakes = Wakes::new(Some(bell), OPS_MAX);
        let remote = wakes.remote();
        let buffers = BufferPool::new(config.buffer_bytes, move || remote.ring())?;
        let uring = Uring::new(plan.rule).map_err(|source| StartError::Uring { source })?;
        uring.prepare_fixed_buffers(&buffers);
        let stats = Arc::new(ReactorStats::default());
        stats.buffer_bytes_total.set(buffers.stats().total as u64);
        let on_stall = config.on_stall.clone();
        let report = Box::new(move |name, held| {
            if let Some(on_stall) = &on_stall {
                on_stall(id, name, held);
            }
        });
        Ok(Rc::new(Core {
            id,
            reactors: plan.reactors as u16,
            executor: Executor::new(wakes, Some(report)),
            timers: RefCell::new(Timers::with_capacity(TIMERS_AT_START)),
            now: Cell::new(Nanos(clock::monotonic_ns())),
            random: Cell::new(random_seed().map_err(|source| StartError::Resource {
                what: "a random seed",
                source,
            })?),
            buffers,
            stats,
            driver: Driver::Uring(uring),
            progress: Cell::new(false),
        }))
    }
}

/// Runs a reactor until it is stopped, then takes it apart.
fn main_of<Fut: Future<Output = ()> + 'static>(core: Rc<Core>, init: impl FnOnce(Handle) -> Fut) {
    let handle = Handle { core: core.clone() };
    handle.spawn("init", init(handle.clone()));
    drop(handle);
    super::uring::run(&core);
    // Tasks hold the core: without this, nothing of it would ever be freed. What they had under way then goes with the kernel.
    core.executor.clear(&core.stats);
    core.uring().drain(&core);
    core.executor.clear(&core.stats);
}

fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    Ok(u64::from_ne_bytes(seed))
}
