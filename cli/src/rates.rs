//! From counters to what people read: rates over an interval, percentiles of a latency histogram.
use keelblock_api::admin::VolumeStatusReply;

/// What happened between two looks at a volume (or the sum over several volumes).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interval {
    /// Commands completed.
    pub commands: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Commands per bucket of the data path's latency histogram, reads and writes together.
    pub latency: Vec<u64>,
}

impl Interval {
    /// What `now` has and `before` had not. A counter that went back (the data path was started anew) counts from zero.
    pub fn between(before: Option<&VolumeStatusReply>, now: &VolumeStatusReply) -> Interval {
        let commands = |v: &VolumeStatusReply| v.reads + v.writes + v.others;
        let before = before.filter(|b| commands(b) <= commands(now));
        let old = |f: &dyn Fn(&VolumeStatusReply) -> u64| before.map_or(0, f);
        let bucket = |v: &VolumeStatusReply, i: usize| {
            v.read_latency.get(i).copied().unwrap_or(0)
                + v.write_latency.get(i).copied().unwrap_or(0)
        };
        let buckets = now.read_latency.len().max(now.write_latency.len());
        let bytes = |v: &VolumeStatusReply| v.read_bytes + v.write_bytes;
        Interval {
            commands: commands(now) - old(&commands),
            bytes: bytes(now).saturating_sub(old(&bytes)),
            latency: (0..buckets)
                .map(|i| bucket(now, i).saturating_sub(old(&|v| bucket(v, i))))
                .collect(),
        }
    }

    /// Adds another volume's interval.
    pub fn add(&mut self, other: &Interval) {
        self.commands += other.commands;
        self.bytes += other.bytes;
        if self.latency.len() < other.latency.len() {
            self.latency.resize(other.latency.len(), 0);
        }
        for (sum, n) in self.latency.iter_mut().zip(&other.latency) {
            *sum += n;
        }
    }

    /// The latency in nanoseconds that the fraction `q` of commands did not exceed, to the histogram's precision; `upper_ns`
    /// gives a bucket's upper bound. `None` when nothing was counted.
    pub fn percentile_ns(&self, q: f64, upper_ns: impl Fn(usize) -> u64) -> Option<u64> {
        let total: u64 = self.latency.iter().sum();
        let wanted = ((total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(upper_ns(bucket));
            }
        }
        None
    }
}

/// A latency with the unit that fits: `8.2 µs`, `1.5 ms`; a dash for none.
pub fn show_latency(ns: Option<u64>) -> String {
    match ns {
        None => "-".into(),
        Some(ns) if ns < 1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        Some(ns) if ns < 1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        Some(ns) => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(reads: u64, latency: &[u64]) -> VolumeStatusReply {
        VolumeStatusReply {
            reads,
            read_bytes: reads * 4096,
            read_latency: latency.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn interval_is_the_difference() {
        let i = Interval::between(Some(&volume(10, &[4, 6])), &volume(16, &[5, 11]));
        assert_eq!(
            i,
            Interval {
                commands: 6,
                bytes: 6 * 4096,
                latency: vec![1, 5]
            }
        );
    }

    #[test]
    fn a_restarted_data_path_counts_from_zero() {
        let i = Interval::between(Some(&volume(1000, &[600, 400])), &volume(3, &[1, 2]));
        assert_eq!(
            i,
            Interval {
                commands: 3,
                bytes: 3 * 4096,
                latency: vec![1, 2]
            }
        );
    }

    #[test]
    fn percentiles_come_from_the_right_bucket() {
        let i = Interval {
            latency: vec![0, 50, 49, 1],
            ..Default::default()
        };
        let upper = |b: usize| 1000 << b;
        assert_eq!(i.percentile_ns(0.5, upper), Some(2000));
        assert_eq!(i.percentile_ns(0.99, upper), Some(4000));
        assert_eq!(i.percentile_ns(1.0, upper), Some(8000));
        assert_eq!(Interval::default().percentile_ns(0.5, upper), None);
    }
}
