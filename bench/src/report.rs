//! From latencies to figures, for people and as JSON with stable keys.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies above this are counted as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// What is counted for one direction.
pub struct Tally {
    latencies: Histogram<u64>,
    /// I/Os that completed with a status other than success.
    pub errors: u64,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS)
            .expect("constant bounds are valid");
        Self {
            latencies,
            errors: 0,
        }
    }
}

impl Tally {
    /// Counts an I/O that took this long.
    pub fn record(&mut self, latency: Duration) {
        self.latencies
            .saturating_record(latency.as_nanos().try_into().unwrap_or(LATENCY_MAX_NS));
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.latencies.reset();
        self.errors = 0;
    }

    /// The figures of this tally and `other` together.
    pub fn with(&self, other: &Tally) -> Tally {
        let mut latencies = self.latencies.clone();
        latencies.add(&other.latencies).expect("equal bounds");
        Tally {
            latencies,
            errors: self.errors + other.errors,
        }
    }

    /// Figures of what was counted in `elapsed`.
    pub fn figures(&self, elapsed: Duration, block_bytes: usize) -> Figures {
        let h = &self.latencies;
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| {
            if h.is_empty() {
                0.0
            } else {
                us(h.value_at_quantile(quantile))
            }
        };
        let iops = h.len() as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        Figures {
            ios: h.len(),
            errors: self.errors,
            iops,
            mb_per_s: iops * block_bytes as f64 / 1e6,
            min_us: at(0.0),
            mean_us: h.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: at(1.0),
        }
    }
}

/// Rates and latencies.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// I/Os that succeeded.
    pub ios: u64,
    /// I/Os that did not.
    pub errors: u64,
    /// Successful I/Os per second.
    pub iops: f64,
    /// Bytes per second in units of 10^6.
    pub mb_per_s: f64,
    /// Latency in microseconds: the shortest.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// 90 % were at most this.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p99_9_us: f64,
    /// 99.99 %.
    pub p99_99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What `--verify` found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Blocks whose content was checked.
    pub blocks_checked: u64,
    /// Reads that returned something wrong.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<String>,
}

/// The outcome of a run. Keys are stable: new ones may come, none goes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Address and port.
    pub target: String,
    /// Subsystem.
    pub nqn: String,
    /// Namespace.
    pub nsid: u32,
    /// Pattern.
    pub rw: crate::workload::Pattern,
    /// Percentage of reads.
    pub read_percent: u8,
    /// Bytes per I/O.
    pub block_bytes: usize,
    /// Commands in flight per queue: what the controller's queues allow of what was asked for.
    pub depth: usize,
    /// Commands in flight per queue that were asked for.
    pub depth_asked: usize,
    /// Queues.
    pub queues: usize,
    /// Core.
    pub cpu: Option<usize>,
    /// Seconds that were counted.
    pub seconds: f64,
    /// Seconds before.
    pub warmup_seconds: f64,
    /// Rate limit.
    pub rate_iops: Option<f64>,
    /// Header digests in use.
    pub hdgst: bool,
    /// Data digests in use.
    pub ddgst: bool,
    /// Submission queue flow control in use.
    pub sq_flow_control: bool,
    /// Bytes of the namespace that were used.
    pub range_bytes: u64,
    /// Seed of the workload.
    pub seed: u64,
    /// Reads and writes together.
    pub total: Figures,
    /// Reads.
    pub read: Figures,
    /// Writes.
    pub write: Figures,
    /// Share of the time in which this process found nothing to do. Near 0 it may itself be what limits the rate.
    pub idle_share: f64,
    /// System calls per I/O of this process, polls that found nothing included.
    pub calls_per_io: f64,
    /// Status of the first I/O that failed.
    pub first_error: Option<String>,
    /// With `--verify`.
    pub verify: Option<Verified>,
}

impl Report {
    /// Whether all I/Os succeeded and all that was read was right.
    pub fn is_clean(&self) -> bool {
        self.total.errors == 0
            && self.first_error.is_none()
            && self.verify.as_ref().is_none_or(|v| v.mismatches == 0)
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        let rw = serde_json::to_string(&self.rw).unwrap_or_default();
        let _ = writeln!(
            out,
            "{} bs {} depth {} queues {} on {} ({}), {:.1} s",
            rw.trim_matches('"'),
            self.block_bytes,
            self.depth,
            self.queues,
            self.target,
            self.nqn,
            self.seconds
        );
        for (name, f) in [
            ("total", &self.total),
            ("read", &self.read),
            ("write", &self.write),
        ] {
            if f.ios + f.errors == 0 || (name != "total" && f.ios == self.total.ios) {
                continue;
            }
            let _ = writeln!(
                out,
                "{name:>6}: {:.0} IOPS, {:.1} MB/s; us: mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}; errors {}",
                f.iops,
                f.mb_per_s,
                f.mean_us,
                f.p50_us,
                f.p90_us,
                f.p99_us,
                f.p99_9_us,
                f.max_us,
                f.errors
            );
        }
        if let Some(error) = &self.first_error {
            let _ = writeln!(out, " first error: {error}");
        }
        if let Some(v) = &self.verify {
            let _ = writeln!(
                out,
                "verify: {} blocks checked, {} mismatches",
                v.blocks_checked, v.mismatches
            );
            if let Some(first) = &v.first_mismatch {
                let _ = writeln!(out, " first mismatch: {first}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_known_latencies() {
        let mut tally = Tally::default();
        (1..=1000).for_each(|us| tally.record(Duration::from_micros(us)));
        let f = tally.figures(Duration::from_secs(2), 4096);
        assert_eq!((f.ios, f.iops), (1000, 500.0));
        assert!((f.mb_per_s - 2.048).abs() < 1e-9);
        let near = |have: f64, want: f64| (have - want).abs() <= want * 0.002;
        assert!(
            near(f.mean_us, 500.5) && near(f.p50_us, 500.0) && near(f.p99_us, 990.0),
            "{f:?}"
        );
        assert!(near(f.min_us, 1.0) && near(f.max_us, 1000.0), "{f:?}");
    }

    #[test]
    fn nothing_counted_is_all_zeroes_and_hours_saturate() {
        let f = Tally::default().figures(Duration::ZERO, 4096);
        assert_eq!((f.ios, f.iops, f.max_us), (0, 0.0, 0.0));
        let mut tally = Tally::default();
        tally.record(Duration::from_secs(7200));
        assert!(tally.figures(Duration::from_secs(1), 1).max_us >= 60e6);
    }
}
