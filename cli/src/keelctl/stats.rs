//! `keelctl volume stats`.
use crate::client::Client;
use crate::failure::Result;
use crate::rates::{Interval, show_latency};
use crate::render::{Answer, facts};
use crate::size::show_size;
use keelblock_api::stats::bucket_upper_ns;
use serde_json::json;
use std::time::Duration;

/// I/O of a volume over an interval; 0: since the data path started.
pub async fn stats(client: &mut Client, name: &str, interval: Duration) -> Result<Answer> {
    let volume = client.volume(name).await?;
    let before = if interval.is_zero() {
        None
    } else {
        Some(client.volume_status(&volume.id).await?)
    };
    tokio::time::sleep(interval).await;
    let now = client.volume_status(&volume.id).await?;
    let i = Interval::between(before.as_ref(), &now);
    let seconds = interval.as_secs_f64();
    let (p50, p99) = (
        i.percentile_ns(0.5, bucket_upper_ns),
        i.percentile_ns(0.99, bucket_upper_ns),
    );
    let mut rows = vec![("Volume", volume.name.clone())];
    if interval.is_zero() {
        rows.push(("Commands", i.commands.to_string()));
        rows.push(("Bytes", show_size(i.bytes)));
    } else {
        rows.push(("IOPS", format!("{:.0}", i.commands as f64 / seconds)));
        rows.push((
            "Bandwidth",
            format!("{:.1} MB/s", i.bytes as f64 / seconds / 1e6),
        ));
    }
    rows.extend([
        ("Latency p50", show_latency(p50)),
        ("Latency p99", show_latency(p99)),
    ]);
    rows.extend([
        (
            "Reads",
            format!("{} ({})", now.reads, show_size(now.read_bytes)),
        ),
        (
            "Writes",
            format!("{} ({})", now.writes, show_size(now.write_bytes)),
        ),
        ("Others", now.others.to_string()),
        ("Errors", now.errors.to_string()),
        ("Connections", now.connections.to_string()),
    ]);
    let data = json!({
        "id": volume.id, "name": volume.name, "interval_s": interval.as_secs(),
        "interval": { "commands": i.commands, "bytes": i.bytes, "latency_p50_ns": p50, "latency_p99_ns": p99 },
        "total": { "reads": now.reads, "writes": now.writes, "others": now.others, "errors": now.errors,
                   "read_bytes": now.read_bytes, "write_bytes": now.write_bytes },
        "connections": now.connections,
    });
    Ok(Answer::new(data, facts(&rows)))
}
