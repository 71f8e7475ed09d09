//! `keelctl service scan …`.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::keelctl::progress::{LOOK, Progress, with_percent};
use crate::render::{Answer, facts};
use crate::size::{parse_size, show_size};
use crate::time::{parse_interval, show_interval, show_time};
use clap::{Args, Subcommand};
use keelblock_api::admin::{ScanRequest, ScanStatus, ScheduleScanRequest, StartScanRequest};
use serde_json::{Value, json};

/// Which pool.
#[derive(Debug, Args)]
pub struct Which {
    /// Name or id of the pool; the only one, unless named.
    #[arg(long, default_value = "", hide_default_value = true)]
    pool: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read everything in a pool and compare it with its checksums.
    Start {
        #[command(flatten)]
        which: Which,
        /// Bytes per second and drive to read at most, like 100M; no limit, unless given.
        #[arg(long, value_parser = parse_size)]
        rate: Option<u64>,
        /// Stay until it is done.
        #[arg(long)]
        wait: bool,
    },
    /// Have a scan wait.
    Pause(Which),
    /// Go on with a scan that waits.
    Resume(Which),
    /// End a scan.
    Cancel(Which),
    /// How far a scan is, or how the last one ended.
    Status {
        #[command(flatten)]
        which: Which,
        /// Stay until it is done.
        #[arg(long)]
        wait: bool,
    },
    /// Have a pool scanned without being asked; without options, show when it is.
    Schedule {
        #[command(flatten)]
        which: Which,
        /// Time from one start to the next, like 7d or 12h.
        #[arg(long, value_parser = parse_interval)]
        every: Option<u64>,
        /// Bytes per second and drive to read at most.
        #[arg(long, value_parser = parse_size, requires = "every")]
        rate: Option<u64>,
        /// No longer.
        #[arg(long, conflicts_with = "every")]
        off: bool,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    let status = match command {
        Command::Start { which, rate, wait } => {
            let request = StartScanRequest {
                pool: which.pool.clone(),
                rate_bytes_per_s: rate.unwrap_or(0),
            };
            let reply = client.admin.start_scan(request).await;
            let started = reply
                .map_err(|s| Failure::from_status("start scan", &s))?
                .into_inner();
            if wait {
                return follow(client, which).await;
            }
            started
        }
        Command::Pause(which) => {
            let reply = client.admin.pause_scan(request(which)).await;
            reply
                .map_err(|s| Failure::from_status("pause scan", &s))?
                .into_inner()
        }
        Command::Resume(which) => {
            let reply = client.admin.resume_scan(request(which)).await;
            reply
                .map_err(|s| Failure::from_status("resume scan", &s))?
                .into_inner()
        }
        Command::Cancel(which) => {
            let reply = client.admin.cancel_scan(request(which)).await;
            reply
                .map_err(|s| Failure::from_status("cancel scan", &s))?
                .into_inner()
        }
        Command::Status { which, wait: true } => return follow(client, which).await,
        Command::Status { which, wait: false } => look(client, which.pool).await?,
        Command::Schedule {
            which,
            every,
            rate,
            off,
        } => {
            if every == Some(0) {
                return Err(Failure::Usage(
                    "--every 0 makes no sense: --off ends a schedule".into(),
                ));
            }
            if every.is_none() && !off {
                look(client, which.pool).await?
            } else {
                let request = ScheduleScanRequest {
                    pool: which.pool,
                    interval_s: every.unwrap_or(0),
                    rate_bytes_per_s: rate.unwrap_or(0),
                };
                let reply = client.admin.schedule_scan(request).await;
                reply
                    .map_err(|s| Failure::from_status("schedule scans", &s))?
                    .into_inner()
            }
        }
    };
    Ok(Answer::new(status_json(&status), described(&status)))
}

fn request(which: Which) -> ScanRequest {
    ScanRequest { pool: which.pool }
}

async fn look(client: &mut Client, pool: String) -> Result<ScanStatus> {
    let reply = client.admin.get_scan(ScanRequest { pool }).await;
    Ok(reply
        .map_err(|s| Failure::from_status("look at scans", &s))?
        .into_inner())
}

/// Stays until the scan has ended. One that found errors, or did not get to the end, is a failure.
async fn follow(client: &mut Client, which: Which) -> Result<Answer> {
    let mut progress = Progress::new();
    let status = loop {
        let status = look(client, which.pool.clone()).await?;
        let shown = status.state == "running" || status.state == "paused";
        if !shown {
            break status;
        }
        let amount = Some((status.scanned_bytes, status.total_bytes));
        progress.show(&format!("scan {}", status.state), amount);
        tokio::time::sleep(LOOK).await;
    };
    progress.end();
    let left = status.errors.saturating_sub(status.repaired);
    match (status.state.as_str(), left) {
        ("done" | "none", 0) => Ok(Answer::new(status_json(&status), described(&status))),
        ("done", errors) => Err(Failure::local(
            "scan",
            format!(
                "{errors} blocks are not what was written, or cannot be read, and were not repaired; `keelctl alerts show` says where"
            ),
        )),
        (state, _) => Err(Failure::local(
            "scan",
            format!("it was {state} after {}", how_far(&status)),
        )),
    }
}

fn how_far(status: &ScanStatus) -> String {
    let (scanned, total) = (status.scanned_bytes, status.total_bytes);
    let text = format!("{} of {}", show_size(scanned), show_size(total));
    with_percent(&text, Some((scanned, total)))
}

fn described(status: &ScanStatus) -> String {
    let rate = |bytes: u64| match bytes {
        0 => "no limit".to_owned(),
        bytes => format!("{}/s a drive", show_size(bytes)),
    };
    let schedule = match status.interval_s {
        0 => "none".to_owned(),
        interval => format!(
            "every {}, {}",
            show_interval(interval),
            rate(status.schedule_rate_bytes_per_s)
        ),
    };
    let mut rows = vec![
        ("Pool", status.pool_id.clone()),
        ("Scan", status.state.clone()),
    ];
    if status.state != "none" {
        rows.extend([
            ("Read", how_far(status)),
            ("Errors", status.errors.to_string()),
            ("Repaired", status.repaired.to_string()),
            ("Rate", rate(status.rate_bytes_per_s)),
            ("Started", show_time(status.started_unix_ms)),
            ("Finished", show_time(status.finished_unix_ms)),
        ]);
    }
    rows.extend([
        ("Schedule", schedule),
        ("Next", show_time(status.next_unix_ms)),
    ]);
    facts(&rows)
}

fn status_json(s: &ScanStatus) -> Value {
    json!({
        "pool_id": s.pool_id, "state": s.state, "rate_bytes_per_s": s.rate_bytes_per_s, "total_bytes": s.total_bytes,
        "scanned_bytes": s.scanned_bytes, "errors": s.errors, "repaired": s.repaired,
        "started_unix_ms": s.started_unix_ms, "finished_unix_ms": s.finished_unix_ms,
        "schedule": { "interval_s": s.interval_s, "rate_bytes_per_s": s.schedule_rate_bytes_per_s, "next_unix_ms": s.next_unix_ms },
    })
}
