//! What pools may be asked for (`docs/placement.md` §5).
use super::Pool;
use serde::{Deserialize, Serialize};

/// Limits of a cluster's pools. All 0: there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How much may be provisioned in a pool, in percent of its size less what is reserved; 0: no limit.
    #[serde(default)]
    pub overcommit_percent: u32,
    /// Part of each pool, in percent, that new replicas leave free.
    #[serde(default)]
    pub reserve_percent: u32,
}

impl Limits {
    /// Highest [`Self::overcommit_percent`]: a thousand times.
    pub const OVERCOMMIT_MAX: u32 = 100_000;
    /// Highest [`Self::reserve_percent`].
    pub const RESERVE_MAX: u32 = 90;

    /// Bytes of a pool that are reserved.
    pub fn reserved(&self, pool: &Pool) -> u64 {
        part(pool.total_bytes, self.reserve_percent)
    }

    /// Bytes that may be provisioned in a pool; `None`: any.
    pub fn provisionable(&self, pool: &Pool) -> Option<u64> {
        let percent = Some(self.overcommit_percent).filter(|p| *p > 0)?;
        let size = pool.total_bytes.saturating_sub(self.reserved(pool));
        Some(part(size, percent))
    }
}

fn part(bytes: u64, percent: u32) -> u64 {
    let part = u128::from(bytes) * u128::from(percent) / 100;
    u64::try_from(part).unwrap_or(u64::MAX)
}
