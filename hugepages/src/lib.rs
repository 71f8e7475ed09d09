//! DMA memory of a data path, and memory that two processes share.
//!
//! [`SharedRegion`] is a sealed memfd mapped by two processes: the command channel and the statistics page live in such regions.

pub mod shared;

pub use shared::{RegionError, SharedRegion, SharedView};
