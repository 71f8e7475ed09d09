//! Entry point of the control process: arguments, log, signals, exit code.
use clap::{CommandFactory, Parser};
use keelblock_control::config::{Args, Other};
use keelblock_control::logs::Kept;
use keelblock_control::run::{Control, RunError, serve_kvdb};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads of the runtime: enough for a slow call not to hold up the others.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let log_json = args.node.as_ref().is_some_and(|n| n.log_json);
    let filter =
        EnvFilter::try_from_env("KEELBLOCK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Kept::default);
    if log_json {
        log.json().init()
    } else {
        log.with_ansi(false).init()
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(error) => {
            eprintln!("keelblock-control: cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelblock-control: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(args: Args) -> Result<(), RunError> {
    match (args.other, args.node) {
        (Some(Other::Kvdb(config)), _) => serve_kvdb(&config, asked_to_stop()).await,
        (None, Some(config)) => Control::start(&config).await?.run(asked_to_stop()).await,
        // Its arguments are asked for, so this is only for a command line that the parser lets through.
        (None, None) => {
            Args::command().print_help().ok();
            std::process::exit(2)
        }
    }
}

/// SIGINT or SIGTERM. Where they cannot be heard, the process ends by their default instead.
async fn asked_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
