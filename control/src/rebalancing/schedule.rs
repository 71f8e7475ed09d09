//! When rebalances begin without being asked: `rebalance-schedule`, one for the cluster. The node that has rebalances go on begins them.
use super::record::RebalanceWish;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{Versioned, encode};
use crate::schedule::When;
use serde::{Deserialize, Serialize};

const WEEKDAYS: [&str; 7] = [
    "sunday",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
];
/// Most times, and most requests, of a schedule.
const TIMES_MAX: usize = 16;
const REQUESTS_MAX: usize = 16;

/// The schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRecord {
    /// As it was given.
    pub text: String,
    /// When.
    pub times: Vec<When>,
    /// What, one after the other.
    pub wishes: Vec<RebalanceWish>,
    /// When it was made, ms since the Unix epoch: nothing before is due.
    pub created_unix_ms: u64,
    /// The last time that was due and begun, seconds since the Unix epoch.
    #[serde(default)]
    pub done_s: u64,
    /// Which is to begin next of those that are due; `None`: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// Times of a text like `daily=23:05;weekly=friday@23:05`.
///
/// # Errors
/// What is no time.
pub fn parse(text: &str) -> Result<Vec<When>, OpError> {
    const HINT: &str = "must be one or more of periodic=MINUTES, daily=HH:MM, weekly=DAY@HH:MM, monthly=DAY@HH:MM, with ; between";
    let bad = || OpError::invalid("schedule", HINT);
    let time = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        Some((hour.parse().ok()?, minute.parse().ok()?))
    };
    let one = |part: &str| {
        let (kind, at) = part.trim().split_once('=')?;
        Some(match kind.trim() {
            "periodic" => When::Periodic {
                seconds: at.parse::<u64>().ok()?.checked_mul(60)?,
            },
            "daily" => {
                let (hour, minute) = time(at)?;
                When::Daily { hour, minute }
            }
            "weekly" => {
                let (day, at) = at.split_once('@')?;
                let day = day.to_ascii_lowercase();
                let day = WEEKDAYS.iter().position(|d| *d == day)? as u8;
                let (hour, minute) = time(at)?;
                When::Weekly { day, hour, minute }
            }
            "monthly" => {
                let (day, at) = at.split_once('@')?;
                let (day, (hour, minute)) = (day.parse().ok()?, time(at)?);
                When::Monthly { day, hour, minute }
            }
            _ => return None,
        })
    };
    let times: Option<Vec<When>> = text.split(';').map(one).collect();
    let times = times.filter(|t| t.len() <= TIMES_MAX).ok_or_else(bad)?;
    for when in &times {
        when.check("schedule")?;
    }
    Ok(times)
}

impl ScheduleRecord {
    /// Of several that were missed, the last.
    fn due(&self, now_unix_ms: u64) -> Option<u64> {
        let begin_s = self.created_unix_ms / 1000;
        let due = |when: &When| when.due(begin_s, now_unix_ms / 1000);
        let last = self.times.iter().filter_map(due).max();
        last.filter(|at| *at > self.done_s)
    }
}

impl Node {
    /// The schedule; `None`: rebalances begin only when somebody asks.
    pub(crate) async fn rebalance_schedule(
        &self,
    ) -> Result<Option<Versioned<ScheduleRecord>>, OpError> {
        let key = self.registry.keys().rebalance_schedule();
        self.registry.get(&key).await
    }

    /// Sets the schedule, in the place of another one.
    ///
    /// # Errors
    /// What cannot be one.
    pub(crate) async fn set_rebalance_schedule(
        &self,
        text: String,
        wishes: Vec<RebalanceWish>,
        now_unix_ms: u64,
    ) -> Result<ScheduleRecord, OpError> {
        let times = parse(&text)?;
        if wishes.is_empty() || wishes.len() > REQUESTS_MAX {
            let why = format!("must be 1 to {REQUESTS_MAX}");
            return Err(OpError::invalid("rebalance_requests", why));
        }
        for wish in &wishes {
            wish.check()?;
        }
        let record = ScheduleRecord {
            text,
            times,
            wishes,
            created_unix_ms: now_unix_ms,
            done_s: 0,
            next: None,
        };
        let key = self.registry.keys().rebalance_schedule();
        self.registry.put(&key, &record).await?;
        Ok(record)
    }

    /// There is none any more; what it began goes on.
    pub(crate) async fn delete_rebalance_schedule(&self) -> Result<(), OpError> {
        let write = Write::delete(self.registry.keys().rebalance_schedule());
        self.registry.kv().commit(vec![], vec![write]).await?;
        Ok(())
    }

    /// Begins what is due, when no rebalance is under way; whether one was begun. Job and schedule are written together, so none begins twice.
    pub(super) async fn scheduled_rebalance(&self, now_unix_ms: u64) -> Result<bool, OpError> {
        let Some(found) = self.rebalance_schedule().await? else {
            return Ok(false);
        };
        let mut record = found.record;
        if let Some(at) = record.due(now_unix_ms) {
            record.done_s = at;
            record.next = Some(0);
        }
        let Some((i, wish)) = record
            .next
            .and_then(|i| Some((i, record.wishes.get(i)?.clone())))
        else {
            return Ok(false);
        };
        record.next = Some(i + 1).filter(|next| *next < record.wishes.len());
        let key = self.registry.keys().rebalance_schedule();
        let guards = vec![Guard::at(&key, found.revision)];
        let writes = vec![Write::put(&key, encode(&record))];
        match self
            .begin_rebalance_with(wish, guards.clone(), writes.clone())
            .await
        {
            Ok(_) => Ok(true),
            // Somebody was faster with another one, or with the schedule: it is looked at again.
            Err(OpError::State(_) | OpError::Contended { .. }) => Ok(false),
            Err(error) if error.is_uncertain() => Err(error),
            Err(refused) => {
                tracing::warn!(error = %refused, "a scheduled rebalance cannot begin");
                let kv = self.registry.kv();
                Ok(kv.commit(guards, writes).await? != Committed::No)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_others_refused() {
        let times = parse("periodic=60; daily=23:05;weekly=Friday@00:01;monthly=31@1:2").unwrap();
        assert_eq!(
            times,
            [
                When::Periodic { seconds: 3600 },
                When::Daily {
                    hour: 23,
                    minute: 5
                },
                When::Weekly {
                    day: 5,
                    hour: 0,
                    minute: 1
                },
                When::Monthly {
                    day: 31,
                    hour: 1,
                    minute: 2
                },
            ]
        );
        for bad in [
            "",
            "daily",
            "daily=24:00",
            "daily=1",
            "weekly=friday",
            "weekly=fri@1:00",
            "monthly=0@1:00",
            "periodic=0",
            "yearly=1",
            "daily=1:00;",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_time_is_due_once() {
        let mut record = ScheduleRecord {
            text: String::new(),
            times: parse("periodic=10;daily=00:00").unwrap(),
            wishes: Vec::new(),
            created_unix_ms: 1_000_000,
            done_s: 0,
            next: None,
        };
        assert_eq!(record.due(1_599_999), None);
        assert_eq!(record.due(1_600_000), Some(1600));
        record.done_s = 1600;
        assert_eq!(record.due(2_100_000), None);
        assert_eq!(
            record.due(9_000_000),
            Some(8800),
            "the last of those that were missed"
        );
    }
}
