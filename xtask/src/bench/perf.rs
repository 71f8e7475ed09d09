//! `keelblock-perf`, run and read.
use crate::cluster::release_dir;
use crate::run::Outcome;
use serde_json::Value;
use std::process::Command;

/// One measurement.
#[derive(Clone, Copy, Default)]
pub struct Figure {
    /// Commands a second.
    pub iops: f64,
    /// Megabytes a second.
    pub mb_per_s: f64,
    /// Mean latency.
    pub mean_us: f64,
}

/// What is measured.
pub struct Job {
    /// As fio calls it.
    pub rw: &'static str,
    /// Bytes of a command.
    pub bs: &'static str,
    /// Commands in flight.
    pub depth: u32,
    /// How long.
    pub seconds: f64,
    /// Core of the client; absent: any.
    pub cpu: Option<u32>,
}

impl Job {
    /// Runs it.
    pub fn measure(&self, target: &str, nqn: &str) -> Outcome<Figure> {
        let (depth, seconds) = (self.depth.to_string(), self.seconds.to_string());
        let cpu = self.cpu.map(|c| c.to_string());
        let mut words = vec!["run", "--target", target, "--nqn", nqn];
        words.extend(["--rw", self.rw, "--bs", self.bs, "--depth", &depth]);
        words.extend(["--seconds", &seconds, "--warmup", "0.5", "--json"]);
        words.extend(cpu.iter().flat_map(|cpu| ["--cpu", cpu]));
        let report = perf(&words)?;
        let total = &report["total"];
        if total["errors"].as_u64() != Some(0) {
            return Err(format!("{} {}: I/O failed: {report}", self.bs, self.rw));
        }
        figure(total)
    }
}

/// Writes every block of a volume once.
pub fn fill(target: &str, nqn: &str) -> Outcome {
    let mut words = vec!["run", "--target", target, "--nqn", nqn, "--rw", "write"];
    words.extend(["--bs", "128k", "--fill", "--seconds", "0.1", "--json"]);
    perf(&words).map(drop)
}

/// The round in the middle by rate.
pub fn median(rounds: &[Figure]) -> Figure {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    sorted[sorted.len() / 2]
}

/// Reads a report.
pub fn figure(report: &Value) -> Outcome<Figure> {
    let field = |name: &str| {
        report[name]
            .as_f64()
            .ok_or_else(|| format!("keelblock-perf did not report {name}: {report}"))
    };
    Ok(Figure {
        iops: field("iops")?,
        mb_per_s: field("mb_per_s")?,
        mean_us: field("mean_us")?,
    })
}

/// Runs it with these words.
pub fn perf(words: &[&str]) -> Outcome<Value> {
    let output = Command::new(release_dir().join("keelblock-perf"))
        .args(words)
        .output();
    let output = output.map_err(|e| format!("cannot start keelblock-perf: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("keelblock-perf {} failed: {said}", words.join(" ")));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("keelblock-perf printed no JSON: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_round() {
        let rounds = [3.0, 1.0, 2.0].map(|iops| Figure {
            iops,
            ..Figure::default()
        });
        assert_eq!(median(&rounds).iops, 2.0);
    }
}
