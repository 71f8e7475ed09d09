//! Where the next I/O goes, and which way.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A kind of workload, as fio names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    #[value(name = "randread")]
    RandRead,
    /// Random writes.
    #[value(name = "randwrite")]
    RandWrite,
    /// Sequential, reads and writes mixed.
    Rw,
    /// Random, reads and writes mixed.
    #[value(name = "randrw")]
    RandRw,
}

impl Pattern {
    /// Whether places are random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Percentage of reads, given that of mixed patterns.
    pub fn read_percent(self, mix: u8) -> u8 {
        match self {
            Self::Read | Self::RandRead => 100,
            Self::Write | Self::RandWrite => 0,
            Self::Rw | Self::RandRw => mix,
        }
    }
}

/// The stream of I/Os: an extent is one I/O's worth of blocks.
pub struct Workload {
    random: bool,
    read_percent: u8,
    extents: u64,
    next: u64,
    rng: SmallRng,
}

/// One I/O to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// Which extent.
    pub extent: u64,
    /// Which way.
    pub write: bool,
}

impl Workload {
    /// I/Os over `extents` extents (at least 1), `mix` percent of them reads where the pattern mixes. Equal seeds give equal streams.
    pub fn new(pattern: Pattern, mix: u8, extents: u64, seed: u64) -> Self {
        assert!(extents > 0, "a workload needs an extent");
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            random: pattern.is_random(),
            read_percent: pattern.read_percent(mix),
            extents,
            next: 0,
            rng,
        }
    }

    /// The next I/O.
    pub fn next_io(&mut self) -> Io {
        let write = match self.read_percent {
            0 => true,
            100.. => false,
            percent => self.rng.random_range(0..100) >= percent,
        };
        let extent = if self.random {
            self.rng.random_range(0..self.extents)
        } else {
            let at = self.next;
            self.next = if at + 1 == self.extents { 0 } else { at + 1 };
            at
        };
        Io { extent, write }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_goes_round() {
        let mut w = Workload::new(Pattern::Write, 0, 3, 1);
        let extents: Vec<_> = (0..7).map(|_| w.next_io().extent).collect();
        assert_eq!(extents, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn random_covers_the_range_and_mixes_as_told() {
        let mut w = Workload::new(Pattern::RandRw, 70, 16, 7);
        let ios: Vec<_> = (0..10_000).map(|_| w.next_io()).collect();
        let reads = ios.iter().filter(|io| !io.write).count();
        assert!(
            (6_800..7_200).contains(&reads),
            "{reads} of 10000 are reads"
        );
        for extent in 0..16 {
            let n = ios.iter().filter(|io| io.extent == extent).count();
            assert!((450..800).contains(&n), "extent {extent}: {n}");
        }
        let mut again = Workload::new(Pattern::RandRw, 70, 16, 7);
        assert!(
            ios.iter().all(|io| *io == again.next_io()),
            "equal seeds give equal streams"
        );
    }
}
