//! `/metrics`: reactors, volumes and pools in Prometheus' text format. Counters come straight from the stats page, and begin anew with
//! each data path.
use crate::gossip::Board;
use crate::sdk::Services;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use keelblock_api::admin::{DriveStatus, NodeStatusReply, PoolStatus};
use keelblock_api::stats::{
    Histogram, ReactorField, ReactorSnapshot, VolumeSnapshot, bucket_upper_ns,
};
use std::collections::HashMap;
use std::fmt::Write;
use uuid::Uuid;

/// Upper bounds of the latency histograms, in microseconds.
const LATENCY_BOUNDS_US: [u64; 16] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000,
    1_000_000, 5_000_000,
];

/// The page.
pub async fn page(services: &Services) -> Response {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text(services).await,
    )
        .into_response()
}

/// What is on it.
pub async fn text(services: &Services) -> String {
    let status = services.status_of_node().await;
    let names = services.volume_names().await;
    let mut text = Text::new(&status.node_id);
    node(&mut text, &status);
    gossip(&mut text, services.node().gossip());
    if let Some(page) = services.node().link.stats().filter(|_| status.datapath_up) {
        reactors(&mut text, &page.reactors());
        let volumes: Vec<VolumeSnapshot> = page.volumes().map(|(_, v)| v).collect();
        volume_counters(&mut text, &volumes, &names);
    }
    pools(&mut text, &status.pools);
    text.out
}

/// The format: a header for each metric, then its samples.
struct Text {
    out: String,
    node: String,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn new(node: &str) -> Self {
        Self {
            out: String::new(),
            node: escaped(node),
        }
    }

    fn header(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail; so it is below.
        let _ = writeln!(
            self.out,
            "# HELP keelblock_{name} {help}\n# TYPE keelblock_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        let _ = write!(self.out, "keelblock_{name}{{node=\"{}\"", self.node);
        for (key, value) in labels {
            let _ = write!(self.out, ",{key}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.out, "}} {value}");
    }

    fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram, sum_ns: u64) {
        for bound_us in LATENCY_BOUNDS_US {
            let bound = seconds(bound_us * 1000);
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.sample(
                &format!("{name}_bucket"),
                &labels,
                count_below(histogram, bound_us * 1000),
            );
        }
        let all = histogram.count();
        self.sample(
            &format!("{name}_bucket"),
            &[labels, &[("le", "+Inf")]].concat(),
            all,
        );
        self.sample(&format!("{name}_sum"), labels, seconds(sum_ns));
        self.sample(&format!("{name}_count"), labels, all);
    }
}

/// Latencies in buckets that end at or below a bound.
fn count_below(histogram: &Histogram, bound_ns: u64) -> u64 {
    let below = histogram
        .counts()
        .iter()
        .enumerate()
        .filter(|(bucket, _)| bucket_upper_ns(*bucket) <= bound_ns);
    below.map(|(_, count)| count).sum()
}

fn seconds(ns: u64) -> String {
    format!("{}", ns as f64 / 1e9)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn node(text: &mut Text, status: &NodeStatusReply) {
    text.header("info", "gauge", "Version of the control process; always 1.");
    text.sample(
        "info",
        &[
            ("cluster", &status.cluster_id),
            ("version", &status.version),
        ],
        1,
    );
    text.header("datapath_up", "gauge", "Whether the data path can be used.");
    text.sample("datapath_up", &[], u8::from(status.datapath_up));
    text.header("dma_memory_bytes", "gauge", "DMA memory of the data path.");
    text.sample(
        "dma_memory_bytes",
        &[("hugepages", if status.hugepages { "true" } else { "false" })],
        status.memory_bytes,
    );
}

fn gossip(text: &mut Text, board: &Board) {
    text.header(
        "gossip_members",
        "gauge",
        "Nodes by what is heard of them here, this one included.",
    );
    for (life, nodes) in board.census() {
        text.sample("gossip_members", &[("state", life.name())], nodes);
    }
    let (sent, received) = board.datagrams();
    text.header(
        "gossip_datagrams_total",
        "counter",
        "Datagrams sent, and received and taken.",
    );
    text.sample("gossip_datagrams_total", &[("direction", "sent")], sent);
    text.sample(
        "gossip_datagrams_total",
        &[("direction", "received")],
        received,
    );
    text.header(
        "gossip_datagrams_refused_total",
        "counter",
        "Datagrams that were dropped, by reason.",
    );
    for (why, count) in board.refusals().each() {
        text.sample("gossip_datagrams_refused_total", &[("reason", why)], count);
    }
}

fn reactors(text: &mut Text, reactors: &[ReactorSnapshot]) {
    const TIMES: [(&str, ReactorField, &str); 4] = [
        (
            "reactor_busy_seconds_total",
            ReactorField::BusyNs,
            "Time spent working.",
        ),
        (
            "reactor_idle_seconds_total",
            ReactorField::IdleNs,
            "Time spent spinning without work.",
        ),
        (
            "reactor_asleep_seconds_total",
            ReactorField::AsleepNs,
            "Time spent asleep.",
        ),
        (
            "reactor_cpu_seconds_total",
            ReactorField::CpuNs,
            "Processor time of the reactor's thread.",
        ),
    ];
    const COUNTS: [(&str, ReactorField, &str, &str); 8] = [
        (
            "reactor_passes_total",
            ReactorField::Passes,
            "counter",
            "Passes of the loop.",
        ),
        (
            "reactor_wakeups_total",
            ReactorField::Wakeups,
            "counter",
            "Wake-ups from sleep.",
        ),
        (
            "reactor_commands_total",
            ReactorField::Commands,
            "counter",
            "Commands completed.",
        ),
        (
            "reactor_syscalls_total",
            ReactorField::Syscalls,
            "counter",
            "System calls made.",
        ),
        (
            "reactor_stalls_total",
            ReactorField::Stalls,
            "counter",
            "Tasks that held the core for too long.",
        ),
        (
            "reactor_connections",
            ReactorField::Connections,
            "gauge",
            "Connections now.",
        ),
        (
            "reactor_ring_depth",
            ReactorField::RingDepth,
            "gauge",
            "Operations in the reactor's io_uring now.",
        ),
        (
            "reactor_buffer_bytes_in_use",
            ReactorField::BuffersInUse,
            "gauge",
            "Bytes of DMA buffers in use.",
        ),
    ];
    for (name, field, help) in TIMES {
        text.header(name, "counter", help);
        for reactor in reactors {
            text.sample(
                name,
                &[("reactor", &reactor.id.to_string())],
                seconds(reactor.get(field)),
            );
        }
    }
    for (name, field, kind, help) in COUNTS {
        text.header(name, kind, help);
        for reactor in reactors {
            text.sample(
                name,
                &[("reactor", &reactor.id.to_string())],
                reactor.get(field),
            );
        }
    }
}

fn volume_counters(text: &mut Text, volumes: &[VolumeSnapshot], names: &HashMap<Uuid, String>) {
    type Pick = fn(&VolumeSnapshot) -> u64;
    const COUNTS: [(&str, Pick, &str, &str); 9] = [
        (
            "volume_reads_total",
            |v| v.reads,
            "counter",
            "Reads completed.",
        ),
        (
            "volume_writes_total",
            |v| v.writes,
            "counter",
            "Writes completed.",
        ),
        (
            "volume_discards_total",
            |v| v.discards,
            "counter",
            "Deallocates and write-zeroes completed.",
        ),
        (
            "volume_others_total",
            |v| v.others,
            "counter",
            "Commands of other kinds completed.",
        ),
        (
            "volume_read_bytes_total",
            |v| v.read_bytes,
            "counter",
            "Bytes read.",
        ),
        (
            "volume_written_bytes_total",
            |v| v.write_bytes,
            "counter",
            "Bytes written.",
        ),
        (
            "volume_discarded_bytes_total",
            |v| v.discard_bytes,
            "counter",
            "Bytes deallocated or zeroed.",
        ),
        (
            "volume_errors_total",
            |v| v.errors,
            "counter",
            "Commands that ended with an error status.",
        ),
        (
            "volume_connections",
            |v| v.connections,
            "gauge",
            "I/O queues connected now.",
        ),
    ];
    let labelled: Vec<(String, String, &VolumeSnapshot)> = volumes
        .iter()
        .map(|volume| {
            let id = Uuid::from_bytes(volume.volume_id);
            (
                id.to_string(),
                names.get(&id).cloned().unwrap_or_default(),
                volume,
            )
        })
        .collect();
    for (name, pick, kind, help) in COUNTS {
        text.header(name, kind, help);
        for (id, volume, counters) in &labelled {
            text.sample(
                name,
                &[("volume_id", id), ("volume", volume)],
                pick(counters),
            );
        }
    }
    text.header(
        "volume_read_latency_seconds",
        "histogram",
        "Latency of reads.",
    );
    for (id, volume, c) in &labelled {
        text.histogram(
            "volume_read_latency_seconds",
            &[("volume_id", id), ("volume", volume)],
            &c.read_latency,
            c.read_ns,
        );
    }
    text.header(
        "volume_write_latency_seconds",
        "histogram",
        "Latency of writes.",
    );
    for (id, volume, c) in &labelled {
        text.histogram(
            "volume_write_latency_seconds",
            &[("volume_id", id), ("volume", volume)],
            &c.write_latency,
            c.write_ns,
        );
    }
}

type Gauge<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

const OF_POOLS: [Gauge<PoolStatus>; 6] = [
    ("pool_total_bytes", "gauge", "Capacity of a pool.", |p| {
        p.total_bytes
    }),
    (
        "pool_used_bytes",
        "gauge",
        "Bytes of a pool in use, metadata included.",
        |p| p.used_bytes,
    ),
    ("pool_free_bytes", "gauge", "What new data may take.", |p| {
        p.free_bytes
    }),
    (
        "pool_reserved_bytes",
        "gauge",
        "Kept so that a full pool can free.",
        |p| p.reserved_bytes,
    ),
    (
        "pool_metadata_bytes",
        "gauge",
        "Of the bytes in use, metadata.",
        |p| p.metadata_bytes,
    ),
    (
        "pool_provisioned_bytes",
        "gauge",
        "Sizes of all volumes.",
        |p| p.provisioned_bytes,
    ),
];

const OF_DRIVES: [Gauge<DriveStatus>; 5] = [
    (
        "drive_online",
        "gauge",
        "Whether a drive takes writes.",
        |d| u64::from(d.online),
    ),
    (
        "drive_used_bytes",
        "gauge",
        "Bytes of a drive in use.",
        |d| d.used_bytes,
    ),
    (
        "drive_read_errors_total",
        "counter",
        "Reads that a drive failed.",
        |d| d.read_errors,
    ),
    (
        "drive_write_errors_total",
        "counter",
        "Writes and flushes that a drive failed.",
        |d| d.write_errors,
    ),
    (
        "drive_checksum_errors_total",
        "counter",
        "Blocks of a drive that were not what was written.",
        |d| d.checksum_errors,
    ),
];

fn pools(text: &mut Text, pools: &[PoolStatus]) {
    for (name, kind, help, value) in OF_POOLS {
        text.header(name, kind, help);
        for pool in pools {
            text.sample(name, &[("pool_id", &pool.pool_id)], value(pool));
        }
    }
    for (name, kind, help, value) in OF_DRIVES {
        text.header(name, kind, help);
        for (pool, drive) in pools
            .iter()
            .flat_map(|p| p.drives.iter().map(move |d| (p, d)))
        {
            let labels = [
                ("pool_id", pool.pool_id.as_str()),
                ("drive_id", &drive.drive_id),
                ("path", &drive.path),
            ];
            text.sample(name, &labels, value(drive));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_labels_escaped() {
        let mut histogram = Histogram::default();
        for ns in [15_000, 15_000, 300_000, 60_000_000_000] {
            histogram.record(ns);
        }
        let mut text = Text::new("n\"1");
        text.histogram("h", &[("volume", "a\\b\nc")], &histogram, 60_000_330_000);
        let line = |le: &str, count: u64| {
            format!(
                "keelblock_h_bucket{{node=\"n\\\"1\",volume=\"a\\\\b\\nc\",le=\"{le}\"}} {count}"
            )
        };
        for expected in [
            line("0.00001", 0),
            line("0.00002", 2),
            line("0.0005", 3),
            line("+Inf", 4),
        ] {
            assert!(
                text.out.lines().any(|l| l == expected),
                "{expected}\n{}",
                text.out
            );
        }
        assert!(
            text.out
                .contains("keelblock_h_count{node=\"n\\\"1\",volume=\"a\\\\b\\nc\"} 4")
        );
    }
}
