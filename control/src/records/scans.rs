//! Scans of pools: when they are due, and what the last one found.
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is kept of a pool's scans.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanRecord {
    /// When it is scanned without being asked.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// The last scan, as far as was heard.
    #[serde(default)]
    pub last: Option<ScanResult>,
}

/// From one start to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Seconds.
    pub interval_s: u64,
    /// Bytes per second and drive at most; 0: no limit.
    pub rate_bytes_per_s: u64,
    /// When it was set, ms since the Unix epoch: the first scan is an interval later.
    pub set_unix_ms: u64,
}

/// Where a scan is, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScanState {
    /// It goes on.
    Running,
    /// It waits to be resumed.
    Paused,
    /// Somebody ended it.
    Cancelled,
    /// It got to the end.
    Done,
    /// The data path ended before it did.
    Interrupted,
}

impl ScanState {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanResult {
    /// Its id.
    pub scan_id: Uuid,
    /// Where it is.
    pub state: ScanState,
    /// Its limit; 0: none.
    pub rate_bytes_per_s: u64,
    /// What there was to read.
    pub total_bytes: u64,
    /// What was read.
    pub scanned_bytes: u64,
    /// What was wrong.
    pub errors: u64,
    /// Of these, what was made good.
    pub repaired: u64,
    /// ms since the Unix epoch.
    pub started_unix_ms: u64,
    /// ms since the Unix epoch; 0: not finished.
    pub finished_unix_ms: u64,
}

impl ScanRecord {
    /// When the next scan is due, ms since the Unix epoch; `None`: there is no schedule, or a scan goes on.
    pub fn next_unix_ms(&self) -> Option<u64> {
        let schedule = self.schedule.as_ref()?;
        let after = |start: u64| start.saturating_add(schedule.interval_s.saturating_mul(1000));
        match &self.last {
            Some(last) if matches!(last.state, ScanState::Running | ScanState::Paused) => None,
            Some(last) if last.state == ScanState::Interrupted => Some(last.started_unix_ms),
            // A schedule that is younger than the scan counts from the scan.
            Some(last) => Some(after(last.started_unix_ms)),
            None => Some(after(schedule.set_unix_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(state: ScanState, started_unix_ms: u64) -> ScanResult {
        ScanResult {
            scan_id: Uuid::nil(),
            state,
            rate_bytes_per_s: 0,
            total_bytes: 0,
            scanned_bytes: 0,
            errors: 0,
            repaired: 0,
            started_unix_ms,
            finished_unix_ms: 0,
        }
    }

    #[test]
    fn scans_are_due_an_interval_after_the_last_start() {
        let mut record = ScanRecord::default();
        assert_eq!(record.next_unix_ms(), None);
        record.schedule = Some(Schedule {
            interval_s: 60,
            rate_bytes_per_s: 0,
            set_unix_ms: 1000,
        });
        assert_eq!(record.next_unix_ms(), Some(61_000));
        for (state, next) in [
            (ScanState::Running, None),
            (ScanState::Paused, None),
            (ScanState::Done, Some(65_000)),
            (ScanState::Cancelled, Some(65_000)),
            (ScanState::Interrupted, Some(5_000)),
        ] {
            record.last = Some(scan(state, 5_000));
            assert_eq!(record.next_unix_ms(), next, "{state:?}");
        }
    }
}
