//! `keelctl`: see `keelblock_cli::keelctl`.
use clap::Parser;
use keelblock_cli::{failure, keelctl};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let outcome = keelctl::run(keelctl::Args::parse()).await;
    failure::report("keelctl", outcome)
}
