//! The stats page (`docs/stats-page.md`): counters and latency histograms that the data path writes into shared memory and the control
//! process reads, without a message and without a lock.
//!
//! The data path makes one [`StatsPage`] and hands a [`ReactorStats`] to each reactor and, for each exported volume, a
//! [`VolumeStats`] per reactor, by way of a [`VolumeSlot`]. Control gets the descriptor over the channel and copies out of it with a
//! [`StatsReader`]. The layout is in `layout`, what can be done with latencies in `histogram`.

mod histogram;
mod layout;
mod reader;
mod writer;

pub use histogram::{Histogram, LATENCY_BUCKETS, bucket_lower_ns, bucket_of_ns, bucket_upper_ns};
pub use layout::{REACTORS_MAX, ReactorField, VOLUME_SLOTS_MAX};
pub use reader::{ReactorSnapshot, StatsReader, VolumeSnapshot};
pub use writer::{ReactorStats, StatsPage, VolumeSlot, VolumeStats};

/// Why a stats page cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The shared region could not be made or mapped.
    #[error("stats page: {0}")]
    Region(#[from] keelblock_hugepages::RegionError),
    /// More reactors or volumes than the layout has room for, or none.
    #[error(
        "a stats page for {reactors} reactors and {volumes} volumes is not possible (at most {REACTORS_MAX} and {VOLUME_SLOTS_MAX})"
    )]
    Shape {
        /// Reactors asked for, or found.
        reactors: u32,
        /// Volume slots asked for, or found.
        volumes: u32,
    },
    /// The region does not begin as a stats page does, or its maker has not finished it.
    #[error("this is no stats page")]
    Magic,
    /// The page was made by another version of the data path.
    #[error(
        "the stats page has version {found}, this program reads version {}",
        layout::VERSION
    )]
    Version {
        /// Version found.
        found: u32,
    },
    /// The page is not as long as its own header says.
    #[error("the stats page has {found} bytes where its header asks for {expected}")]
    Length {
        /// Bytes that the shape in the header needs.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
}

#[cfg(test)]
mod tests;
