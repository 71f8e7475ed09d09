//! The process: from a command line to reactors that serve, and back to an orderly end.
//!
//! The main thread is the service thread: a current-thread tokio runtime with the command service on it, never pinned. It starts the
//! reactors, waits until each is up, serves commands until a signal comes or a reactor ends, and then has the drives flushed and the
//! reactors stopped.

mod args;
mod identity;
mod inspect;
mod start;
mod stats;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use keelblock_api::channel::{ChannelError, Listener};
use keelblock_api::datapath::datapath_server::DatapathServer;
use keelblock_api::stats::StatsError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

pub use args::{Args, CpuList, PollMode};
pub use inspect::{CheckArgs, DumpArgs, Inspect};

use crate::command::{Events, Facts, Service, event_channel};
use crate::reactor::{NetError, Reactors, StartError};
use start::Running;

/// How long drives may take to be flushed at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the counters of reactors go to the stats page.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// Why the data path could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// An argument makes no sense here.
    #[error("{0}")]
    Argument(String),
    /// The service thread's runtime cannot be made.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The stats page cannot be made.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The channel's socket cannot be made.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The reactors cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The target cannot listen.
    #[error("--listen: {0}")]
    Listen(#[from] NetError),
    /// This node's private key.
    #[error(transparent)]
    Key(#[from] identity::KeyError),
    /// A reactor's buffers are too few.
    #[error("the DMA memory of a reactor is too little for its scratch buffers: raise --memory")]
    Memory,
    /// A reactor ended that nobody stopped.
    #[error("{0}")]
    Reactor(String),
    /// The command service ended.
    #[error("the command service failed: {0}")]
    Service(#[from] tonic::transport::Error),
}

/// Runs the data path until it is told to stop. Exit codes: 0 stopped by a signal, 1 an error (which is logged), 2 a wrong command line.
pub fn run(args: &Args) -> ExitCode {
    if let Some(inspect) = &args.inspect {
        return inspect::run(inspect);
    }
    let filter = match tracing_subscriber::EnvFilter::try_new(&args.log) {
        Ok(filter) => filter,
        Err(e) => {
            eprintln!("keelblock-datapath: --log {}: {e}", args.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<(), ProcessError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(|source| ProcessError::System {
            what: "start the service thread",
            source,
        })?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let (sink, events) = event_channel();
        let running = start::start(args, sink).await?;
        tracing::info!("{}", running.summary());
        let outcome = until_told(args, &running, &mut signals, events).await;
        stop(running).await;
        outcome
    })
}

/// Serves commands until a signal, or until something fails.
async fn until_told(
    args: &Args,
    running: &Running,
    signals: &mut Signals,
    events: Events,
) -> Result<(), ProcessError> {
    let socket = args.socket.as_ref();
    let socket = socket.ok_or_else(|| ProcessError::Argument("--socket is needed".to_owned()))?;
    let listener = Listener::bind(socket, running.stats.clone()).await?;
    let service = Service::new(running.facts.clone(), running.jobs.clone(), events);
    let (end, ended) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(DatapathServer::new(service))
        .serve_with_incoming_shutdown(listener.into_incoming(), async {
            let _ = ended.await;
        });
    tokio::pin!(server);
    let outcome = tokio::select! {
        served = &mut server => return served.map_err(ProcessError::from),
        name = signals.next() => {
            tracing::info!("stopping: {name}");
            Ok(())
        }
        () = stats::publish(&running.reactors, &running.facts.reactors, &running.stats, STATS_INTERVAL) => {
            Err(ProcessError::Reactor("a reactor ended".to_owned()))
        }
    };
    // Calls that are under way may finish; streams end with the process.
    let _ = end.send(());
    let _ = tokio::time::timeout(Duration::from_millis(200), server).await;
    outcome
}

async fn stop(running: Running) {
    let (done, flushed) = oneshot::channel();
    let flush: crate::command::Job = Box::new(move |commander| {
        Box::pin(async move {
            commander.close_all().await;
            let _ = done.send(());
        })
    });
    if running.jobs.try_send(flush).is_ok()
        && tokio::time::timeout(FLUSH_TIMEOUT, flushed).await.is_err()
    {
        tracing::error!(
            "drives were not flushed within {} s",
            FLUSH_TIMEOUT.as_secs()
        );
    }
    let Running { reactors, .. } = running;
    reactors.stopper().stop();
    if let Err(e) = reactors.join() {
        tracing::error!("{e}");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, ProcessError> {
        let watch = |kind| {
            signal(kind).map_err(|source| ProcessError::System {
                what: "watch for signals",
                source,
            })
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
