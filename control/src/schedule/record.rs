//! What is kept of a volume that has schedules: its policies, and what was done for them.
use super::policy::{Interval, PolicyRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The schedules of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRecord {
    /// The volume.
    pub volume_id: Uuid,
    /// Names of its policies, and since when it has them, ms since the Unix epoch: nothing before that is due.
    pub policies: BTreeMap<String, u64>,
    /// Of each time of a policy (`policy/time`) the last one that was done; seconds since the Unix epoch.
    #[serde(default)]
    pub done: BTreeMap<String, u64>,
    /// Why the last one that was due could not be done; empty: it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What it is for: `policy/time`. The label of the snapshots that count for it.
    pub of: String,
    /// The word in its name.
    pub frequency: &'static str,
    /// When it was due, seconds since the Unix epoch.
    pub at_s: u64,
    /// How many of these are kept.
    pub retain: u32,
}

/// What a time of a policy is called in a record and in labels.
pub fn time_of(policy: &str, interval: &Interval) -> String {
    format!("{policy}/{}", interval.when.key())
}

impl ScheduleRecord {
    /// What is due of a policy. Of several that were missed, only the last.
    pub fn due(&self, policy: &PolicyRecord, now_unix_ms: u64) -> Vec<Due> {
        let Some(since_unix_ms) = self.policies.get(&policy.name) else {
            return Vec::new();
        };
        let begin_s = policy.changed_unix_ms.max(*since_unix_ms) / 1000;
        let due = |interval: &Interval| {
            let of = time_of(&policy.name, interval);
            let at_s = interval.when.due(begin_s, now_unix_ms / 1000)?;
            let done = self.done.get(&of).is_some_and(|done| *done >= at_s);
            (!done).then(|| Due {
                of,
                frequency: interval.when.frequency(),
                at_s,
                retain: interval.retain,
            })
        };
        policy.schedules.iter().filter_map(due).collect()
    }

    /// Forgets what was done for times that no policy has any more.
    pub fn forget(&mut self, policies: &[PolicyRecord]) {
        let times = policies.iter().flat_map(|p| {
            let times = p.schedules.iter();
            times.map(|i| time_of(&p.name, i))
        });
        let times: Vec<String> = times.collect();
        self.done.retain(|of, _| times.contains(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::policy::When;

    #[test]
    fn what_is_due_is_due_once_and_only_the_last_of_those_that_were_missed() {
        let policy = PolicyRecord {
            name: "p".into(),
            schedules: vec![
                Interval {
                    when: When::Periodic { seconds: 600 },
                    retain: 5,
                },
                Interval {
                    when: When::Daily { hour: 1, minute: 0 },
                    retain: 7,
                },
            ],
            changed_unix_ms: 0,
        };
        let mut record = ScheduleRecord {
            volume_id: Uuid::nil(),
            policies: BTreeMap::from([("p".into(), 1_000_000)]),
            done: BTreeMap::new(),
            error: String::new(),
        };
        assert_eq!(record.due(&policy, 1_599_999), []);
        let due = record.due(&policy, 1_600_000);
        assert_eq!((due.len(), due[0].at_s), (1, 1600));
        assert_eq!(due[0].of, "p/periodic@600s");
        record.done.insert(due[0].of.clone(), 1600);
        assert_eq!(record.due(&policy, 1_700_000), []);
        let due = record.due(&policy, 4_000_000);
        let at: Vec<_> = due.iter().map(|d| (d.frequency, d.at_s)).collect();
        assert_eq!(at, [("periodic", 4000), ("daily", 3600)]);
        record.done.insert("old/daily@01:00".into(), 5);
        record.forget(&[policy]);
        assert_eq!(record.done.len(), 1);
    }
}
