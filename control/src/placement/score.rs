//! How well a pool would do (`docs/placement.md` §4). Whole numbers, so that every node computes the same.
use super::{Limits, Pool};

/// Parts of a score, each of 0 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// Free, less what is reserved.
    pub space: u32,
    /// Not promised to volumes.
    pub promised: u32,
    /// Not busy.
    pub calm: u32,
}

impl Score {
    /// Of a pool that a volume of this size would come to.
    pub fn of(pool: &Pool, size_bytes: u64, load_percent: u8, limits: &Limits) -> Self {
        let free = pool.free_bytes.saturating_sub(limits.reserved(pool));
        let promised = u128::from(pool.provisioned_bytes) + u128::from(size_bytes);
        Self {
            space: thousandths(free.into(), pool.total_bytes.into()),
            promised: thousandths(
                pool.total_bytes.into(),
                u128::from(pool.total_bytes) + promised,
            ),
            calm: 1000 - 10 * u32::from(load_percent.min(100)),
        }
    }

    /// All together.
    pub fn total(&self) -> u32 {
        (4 * self.space + 4 * self.promised + 2 * self.calm) / 10
    }
}

fn thousandths(part: u128, of: u128) -> u32 {
    // At most 1000.
    (1000 * part.min(of)).checked_div(of).unwrap_or(0) as u32
}
