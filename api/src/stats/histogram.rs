//! Latency buckets: log-linear, 8 per doubling, from 128 ns to 17 s (`docs/stats-page.md`, "Latency buckets").

/// Buckets of a latency histogram.
pub const LATENCY_BUCKETS: usize = 8 + DOUBLINGS * PER_DOUBLING;

/// Doublings above the linear part: 1.024 µs × 2^24 = 17.2 s.
const DOUBLINGS: usize = 24;
const PER_DOUBLING: usize = 8;
const PER_DOUBLING_BITS: u32 = 3;
/// The finest bucket is 2^7 = 128 ns wide.
const UNIT_BITS: u32 = 7;

/// Bucket that a latency falls into. The last bucket takes everything above.
#[inline]
pub fn bucket_of_ns(ns: u64) -> usize {
    let units = ns >> UNIT_BITS;
    if units < PER_DOUBLING as u64 {
        return units as usize;
    }
    let doubling = units.ilog2() - PER_DOUBLING_BITS;
    // units >> doubling is in 8..16: the leading bit counts for the 8 linear buckets before.
    let index = (doubling as usize) * PER_DOUBLING + (units >> doubling) as usize;
    index.min(LATENCY_BUCKETS - 1)
}

/// Smallest latency in a bucket, in nanoseconds. A number past the last bucket means the last.
pub fn bucket_lower_ns(bucket: usize) -> u64 {
    let bucket = bucket.min(LATENCY_BUCKETS - 1);
    if bucket < PER_DOUBLING {
        return (bucket as u64) << UNIT_BITS;
    }
    let doubling = bucket / PER_DOUBLING - 1;
    ((bucket % PER_DOUBLING + PER_DOUBLING) as u64) << (doubling as u32 + UNIT_BITS)
}

/// First latency above a bucket, in nanoseconds: a latency of the bucket is less. For the last bucket, where it ends nominally.
/// A number past the last bucket means the last.
pub fn bucket_upper_ns(bucket: usize) -> u64 {
    let bucket = bucket.min(LATENCY_BUCKETS - 1);
    let doubling = (bucket / PER_DOUBLING).saturating_sub(1);
    bucket_lower_ns(bucket) + (1u64 << (doubling as u32 + UNIT_BITS))
}

/// Counts per bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; LATENCY_BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: Box::new([0; LATENCY_BUCKETS]),
        }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        f.debug_map()
            .entries(used.map(|(b, n)| (bucket_lower_ns(b), n)))
            .finish()
    }
}

impl Histogram {
    /// From counts as they travel in messages: missing buckets are empty, further ones are ignored.
    pub fn from_counts(counts: &[u64]) -> Self {
        let mut histogram = Histogram::default();
        histogram.add_counts(counts);
        histogram
    }

    /// The counts, one per bucket.
    pub fn counts(&self) -> &[u64] {
        &self.counts[..]
    }

    /// Counts one latency.
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket_of_ns(ns)] += 1;
    }

    /// Adds counts, bucket by bucket.
    pub fn add_counts(&mut self, counts: &[u64]) {
        for (sum, n) in self.counts.iter_mut().zip(counts) {
            *sum = sum.saturating_add(*n);
        }
    }

    /// What was counted since `before` was copied.
    #[must_use]
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut difference = self.clone();
        for (n, b) in difference.counts.iter_mut().zip(before.counts.iter()) {
            *n = n.saturating_sub(*b);
        }
        difference
    }

    /// How many latencies were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The latency in nanoseconds that `percent` (0 to 100) of all do not exceed, as the middle of its bucket: within 6.3 % from 1 µs
    /// to 17 s. `None` when nothing was counted.
    pub fn percentile_ns(&self, percent: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64) * (percent.clamp(0.0, 100.0) / 100.0))
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0u64;
        let bucket = self.counts.iter().position(|n| {
            seen = seen.saturating_add(*n);
            seen >= rank
        });
        // Rounding may put the rank past the last count.
        let bucket = bucket.or_else(|| self.counts.iter().rposition(|n| *n > 0))?;
        Some(bucket_lower_ns(bucket).midpoint(bucket_upper_ns(bucket)))
    }
}
