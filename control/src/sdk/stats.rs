//! A volume's counters, cumulative or since the last call that asked for that.
use keelblock_api::openstorage::Stats;
use keelblock_api::stats::{StatsReader, VolumeSnapshot};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;
use uuid::Uuid;

/// Volumes whose last call is remembered; beyond that, all are forgotten and count from the start again.
const BASELINES_MAX: usize = 4096;

struct Baseline {
    /// Of the data path that counted: another one starts from zero.
    incarnation: [u8; 16],
    at: Instant,
    counters: VolumeSnapshot,
}

/// Where the counters stood at the last call that was not cumulative.
#[derive(Default)]
pub struct Baselines {
    by_volume: Mutex<HashMap<Uuid, Baseline>>,
}

impl Baselines {
    /// Counters since the last call of this, or since the data path's start at the first.
    pub fn since_last(
        &self,
        id: Uuid,
        page: Option<&StatsReader>,
        bytes_used: u64,
        uptime_ms: u64,
    ) -> Stats {
        let now = Instant::now();
        let counters = page
            .and_then(|p| p.volume(id.into_bytes()))
            .unwrap_or_default();
        let incarnation = page.map(StatsReader::incarnation).unwrap_or_default();
        // Nothing that holds the lock can panic.
        let mut all = self
            .by_volume
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if all.len() >= BASELINES_MAX {
            all.clear();
        }
        let last = all.insert(
            id,
            Baseline {
                incarnation,
                at: now,
                counters: counters.clone(),
            },
        );
        match last.filter(|l| l.incarnation == incarnation) {
            None => stats(&counters, &VolumeSnapshot::default(), bytes_used, uptime_ms),
            Some(last) => {
                let interval_ms = now.duration_since(last.at).as_millis() as u64;
                stats(&counters, &last.counters, bytes_used, interval_ms)
            }
        }
    }
}

/// Counters since `before`. A volume that was detached meanwhile has begun anew, which shows as nothing.
pub fn stats(
    now: &VolumeSnapshot,
    before: &VolumeSnapshot,
    bytes_used: u64,
    interval_ms: u64,
) -> Stats {
    let since = |pick: fn(&VolumeSnapshot) -> u64| pick(now).saturating_sub(pick(before));
    let (read_ns, write_ns, discard_ns) = (
        since(|s| s.read_ns),
        since(|s| s.write_ns),
        since(|s| s.discard_ns),
    );
    Stats {
        reads: since(|s| s.reads),
        read_ms: read_ns / 1_000_000,
        read_bytes: since(|s| s.read_bytes),
        writes: since(|s| s.writes),
        write_ms: write_ns / 1_000_000,
        write_bytes: since(|s| s.write_bytes),
        io_ms: (read_ns + write_ns + discard_ns) / 1_000_000,
        bytes_used,
        interval_ms,
        discards: since(|s| s.discards),
        discard_ms: discard_ns / 1_000_000,
        discard_bytes: since(|s| s.discard_bytes),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_differences_and_never_negative() {
        let now = VolumeSnapshot {
            reads: 10,
            read_ns: 9_000_000,
            read_bytes: 4096,
            writes: 2,
            ..Default::default()
        };
        let before = VolumeSnapshot {
            reads: 4,
            read_ns: 2_500_000,
            writes: 3,
            ..Default::default()
        };
        let s = stats(&now, &before, 7, 1000);
        assert_eq!(
            (
                s.reads,
                s.read_ms,
                s.read_bytes,
                s.writes,
                s.io_ms,
                s.bytes_used
            ),
            (6, 6, 4096, 0, 6, 7)
        );
    }
}
