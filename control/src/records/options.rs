//! What was said for the whole cluster, and how long nodes are away (`docs/replication.md` §21).

use serde::{Deserialize, Serialize};

/// Without a word of anybody, replicas of a node that is away are replaced after this.
const REPLACE_AFTER_S: u64 = 900;
/// A node that starts again is there sooner.
pub const REPLACE_AFTER_S_MIN: u64 = 60;
/// Time that nobody counted does not count: no more than this is added at once.
const GAP_MS: u64 = 60_000;
/// A node that has lived for so long is not away any more.
const BACK_MS: u64 = 60_000;

/// Options of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionsRecord {
    /// Replicas of a node that is away for so many seconds are replaced; 0: nothing is replaced by itself.
    pub replace_after_s: u64,
}

impl Default for OptionsRecord {
    fn default() -> Self {
        Self {
            replace_after_s: REPLACE_AFTER_S,
        }
    }
}

/// That a node is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwayRecord {
    /// The node.
    pub node_id: String,
    /// For how long, in ms, when it was looked last.
    pub away_ms: u64,
    /// When that was, ms since the Unix epoch.
    pub looked_unix_ms: u64,
    /// It lives since then, as far as was seen. It counts as back when it has for a minute: one that starts over and over stays away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_unix_ms: Option<u64>,
}

impl AwayRecord {
    /// Away since this moment.
    pub fn new(node_id: &str, now_unix_ms: u64) -> Self {
        Self {
            node_id: node_id.into(),
            away_ms: 0,
            looked_unix_ms: now_unix_ms,
            back_unix_ms: None,
        }
    }

    /// The same of a node that lives now; `None`: it is back.
    pub fn back(&self, now_unix_ms: u64) -> Option<Self> {
        let since = self.back_unix_ms.unwrap_or(now_unix_ms);
        (now_unix_ms.saturating_sub(since) < BACK_MS).then(|| Self {
            looked_unix_ms: now_unix_ms,
            back_unix_ms: Some(since.min(now_unix_ms)),
            ..self.clone()
        })
    }

    /// The same of a node that is away now, as of this moment. A clock that jumped, and time in which nobody looked, count little or nothing.
    pub fn at(&self, now_unix_ms: u64) -> Self {
        let since = match self.back_unix_ms {
            // It lived when it was looked last.
            Some(_) => 0,
            None => now_unix_ms.saturating_sub(self.looked_unix_ms).min(GAP_MS),
        };
        Self {
            back_unix_ms: None,
            node_id: self.node_id.clone(),
            away_ms: self.away_ms.saturating_add(since),
            looked_unix_ms: now_unix_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_looked_and_clocks_that_jump_do_not_count() {
        let away = AwayRecord::new("n", 1_000_000);
        let away = away.at(1_005_000).at(1_035_000);
        assert_eq!((away.away_ms, away.looked_unix_ms), (35_000, 1_035_000));
        let after_a_night = away.at(40_000_000);
        assert_eq!(after_a_night.away_ms, 35_000 + GAP_MS);
        let back = after_a_night.at(1_000_000);
        assert_eq!(
            (back.away_ms, back.looked_unix_ms),
            (35_000 + GAP_MS, 1_000_000)
        );
    }

    #[test]
    fn who_starts_over_and_over_stays_away() {
        let away = AwayRecord::new("n", 1_000_000).at(1_030_000);
        let lives = away.back(1_040_000).unwrap();
        assert_eq!(lives.away_ms, 30_000);
        let dies = lives.at(1_050_000);
        assert_eq!((dies.away_ms, dies.back_unix_ms), (30_000, None));
        let lives = dies.at(1_055_000).back(1_060_000).unwrap();
        assert_eq!(
            (lives.away_ms, lives.back_unix_ms),
            (35_000, Some(1_060_000))
        );
        assert!(lives.back(1_119_999).is_some());
        assert_eq!(lives.back(1_120_000), None, "it is back");
    }
}
