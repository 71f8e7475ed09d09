//! DMA memory of a data path, and memory that two processes share.
//!
//! A [`Region`] is private memory, of huge pages where there are some. A [`BufferPool`] carves one reactor's region into [`Buffer`]s of
//! size classes from 4 KiB to 1 MiB; its budget is fixed, and running out of it is back-pressure. [`SharedRegion`] is a sealed memfd
//! mapped by two processes: the command channel and the statistics page live in such regions.

pub mod buffer;
mod carve;
pub mod pool;
pub mod region;
pub mod shared;

pub use buffer::Buffer;
pub use pool::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, BufferPool, PoolStats, Take};
pub use region::{NoMemory, PageKind, Region};
pub use shared::{RegionError, SharedRegion, SharedView};
