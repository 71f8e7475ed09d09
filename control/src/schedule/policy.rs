//! A policy: when snapshots are taken, and how many are kept. Times are UTC.
use super::calendar::{DAY_S, Date, weekday};
use crate::error::OpError;
use serde::{Deserialize, Serialize};

/// Longest name.
const NAME_BYTES_MAX: usize = 128;
/// Most times in one policy.
const TIMES_MAX: usize = 16;
/// Shortest period: a snapshot is a barrier of all lanes.
const PERIOD_MIN_S: u64 = 60;
/// Longest period: a year.
const PERIOD_MAX_S: u64 = 366 * DAY_S;
/// Most snapshots that are kept of one time.
pub const RETAIN_MAX: u32 = 1000;

/// When.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum When {
    /// Again and again, from when the volume got the schedule.
    Periodic {
        /// From one to the next.
        seconds: u64,
    },
    /// Each day.
    Daily {
        /// 0 to 23.
        hour: u8,
        /// 0 to 59.
        minute: u8,
    },
    /// Each week.
    Weekly {
        /// 0 is Sunday.
        day: u8,
        /// 0 to 23.
        hour: u8,
        /// 0 to 59.
        minute: u8,
    },
    /// Each month.
    Monthly {
        /// 1 to 31; in shorter months the last.
        day: u8,
        /// 0 to 23.
        hour: u8,
        /// 0 to 59.
        minute: u8,
    },
}

/// When, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// When.
    pub when: When,
    /// The newest of these are kept, at least one.
    pub retain: u32,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    /// Its name.
    pub name: String,
    /// All of its times.
    pub schedules: Vec<Interval>,
    /// When it was made or changed, ms since the Unix epoch: new times count from then on.
    pub changed_unix_ms: u64,
}

impl When {
    /// The word for it, which is part of snapshots' names.
    pub fn frequency(&self) -> &'static str {
        match self {
            Self::Periodic { .. } => "periodic",
            Self::Daily { .. } => "daily",
            Self::Weekly { .. } => "weekly",
            Self::Monthly { .. } => "monthly",
        }
    }

    /// How many are kept unless somebody says.
    pub fn retain_default(&self) -> u32 {
        match self {
            Self::Periodic { .. } | Self::Weekly { .. } => 5,
            Self::Daily { .. } => 7,
            Self::Monthly { .. } => 12,
        }
    }

    /// In words that tell it from others of a policy, and stay the same as long as it does.
    pub fn key(&self) -> String {
        match self {
            Self::Periodic { seconds } => format!("periodic@{seconds}s"),
            Self::Daily { hour, minute } => format!("daily@{hour:02}:{minute:02}"),
            Self::Weekly { day, hour, minute } => format!("weekly@{day}@{hour:02}:{minute:02}"),
            Self::Monthly { day, hour, minute } => format!("monthly@{day}@{hour:02}:{minute:02}"),
        }
    }

    /// The last time at or before `now_s` and after `from_s` at which a snapshot is due; seconds since the Unix epoch.
    pub fn due(&self, from_s: u64, now_s: u64) -> Option<u64> {
        let at = |hour: u8, minute: u8| u64::from(hour) * 3600 + u64::from(minute) * 60;
        let day = now_s / DAY_S;
        let last = match *self {
            Self::Periodic { seconds } => {
                let passed = now_s.checked_sub(from_s)?;
                from_s + passed / seconds * seconds
            }
            Self::Daily { hour, minute } => latest(now_s, |back| {
                Some(day.checked_sub(back)? * DAY_S + at(hour, minute))
            })?,
            Self::Weekly {
                day: wanted,
                hour,
                minute,
            } => {
                let back_to = (weekday(day) + 7 - u64::from(wanted)) % 7;
                latest(now_s, |back| {
                    Some(day.checked_sub(back_to + 7 * back)? * DAY_S + at(hour, minute))
                })?
            }
            Self::Monthly {
                day: wanted,
                hour,
                minute,
            } => {
                let Date { year, month, .. } = Date::of_day(day);
                latest(now_s, |back| {
                    let months = (year * 12 + month - 1).checked_sub(back)?;
                    let (year, month) = (months / 12, months % 12 + 1);
                    if year < 1970 {
                        return None;
                    }
                    let in_month = u64::from(wanted).min(Date::days_of(year, month)) - 1;
                    Some((Date::first_of(year, month) + in_month) * DAY_S + at(hour, minute))
                })?
            }
        };
        (last > from_s).then_some(last)
    }

    /// Whether there is such a time.
    pub(crate) fn check(&self, field: &str) -> Result<(), OpError> {
        let time = |hour: u8, minute: u8| match (hour, minute) {
            (0..=23, 0..=59) => Ok(()),
            _ => Err(OpError::invalid(
                field,
                format!("{hour}:{minute:02} is no time of day: hours are 0 to 23, minutes 0 to 59"),
            )),
        };
        match *self {
            Self::Periodic { seconds } if !(PERIOD_MIN_S..=PERIOD_MAX_S).contains(&seconds) => {
                Err(OpError::invalid(
                    field,
                    format!("a period is {PERIOD_MIN_S} s to {PERIOD_MAX_S} s, not {seconds}"),
                ))
            }
            Self::Periodic { .. } => Ok(()),
            Self::Daily { hour, minute } => time(hour, minute),
            Self::Weekly { day: 7.., .. } => {
                Err(OpError::invalid(field, "weekdays are 0 (Sunday) to 6"))
            }
            Self::Weekly { hour, minute, .. } => time(hour, minute),
            Self::Monthly {
                day: 1..=31,
                hour,
                minute,
            } => time(hour, minute),
            Self::Monthly { .. } => Err(OpError::invalid(field, "days of a month are 1 to 31")),
        }
    }
}

/// The later of the times 0 and 1 periods back that is not in the future.
fn latest(now_s: u64, at: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    [0, 1].into_iter().filter_map(at).find(|t| *t <= now_s)
}

/// That this can be a policy's name.
///
/// # Errors
/// [`OpError::Missing`], [`OpError::Invalid`].
pub fn check_policy_name(name: &str) -> Result<(), OpError> {
    if name.is_empty() {
        return Err(OpError::Missing {
            field: "name",
            hint: "the name of a schedule policy",
        });
    }
    let bad = |c: char| c.is_control() || c == '/' || c == ',';
    if name.len() > NAME_BYTES_MAX || name.chars().any(bad) {
        let why =
            format!("at most {NAME_BYTES_MAX} bytes, without `/`, `,` and control characters");
        return Err(OpError::invalid("name", why));
    }
    Ok(())
}

impl PolicyRecord {
    /// That it can be one.
    ///
    /// # Errors
    /// [`OpError::Missing`], [`OpError::Invalid`] with the field.
    pub fn check(&self) -> Result<(), OpError> {
        check_policy_name(&self.name)?;
        if self.schedules.is_empty() {
            return Err(OpError::Missing {
                field: "schedules",
                hint: "at least one time: periodic, daily, weekly or monthly",
            });
        }
        if self.schedules.len() > TIMES_MAX {
            let why = format!("at most {TIMES_MAX} times in one policy");
            return Err(OpError::invalid("schedules", why));
        }
        for (index, interval) in self.schedules.iter().enumerate() {
            let field = format!("schedules[{index}]");
            interval.when.check(&field)?;
            if !(1..=RETAIN_MAX).contains(&interval.retain) {
                let why = format!("1 to {RETAIN_MAX} are kept, not {}", interval.retain);
                return Err(OpError::invalid(format!("{field}.retain"), why));
            }
            let same = |other: &Interval| other.when.key() == interval.when.key();
            if self.schedules[..index].iter().any(same) {
                let why = format!("{} is given twice", interval.when.key());
                return Err(OpError::invalid(field, why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27 00:00, a Friday.
    fn friday() -> u64 {
        (Date::first_of(2026, 11) + 26) * DAY_S
    }

    const HOUR: u64 = 3600;

    #[test]
    fn periods_count_from_their_begin() {
        let when = When::Periodic { seconds: 600 };
        let due = |now| when.due(1000, now);
        assert_eq!(due(900), None);
        assert_eq!(due(1599), None);
        assert_eq!(due(1600), Some(1600));
        assert_eq!(due(5000), Some(4600));
    }

    #[test]
    fn days_weeks_and_months_have_their_last_time() {
        let now = friday() + 10 * HOUR;
        let daily = |hour| When::Daily { hour, minute: 30 };
        let half = 1800;
        assert_eq!(daily(9).due(0, now), Some(friday() + 9 * HOUR + half));
        assert_eq!(daily(10).due(0, now), Some(friday() - 14 * HOUR + half));
        let weekly = |day, hour| When::Weekly {
            day,
            hour,
            minute: 0,
        };
        assert_eq!(weekly(5, 10).due(0, now), Some(now));
        assert_eq!(
            weekly(5, 11).due(0, now),
            Some(friday() - 7 * DAY_S + 11 * HOUR)
        );
        assert_eq!(weekly(6, 0).due(0, now), Some(friday() - 6 * DAY_S));
        let monthly = |day| When::Monthly {
            day,
            hour: 0,
            minute: 0,
        };
        assert_eq!(monthly(27).due(0, now), Some(friday()));
        assert_eq!(
            monthly(28).due(0, now),
            Some((Date::first_of(2026, 10) + 27) * DAY_S)
        );
        assert_eq!(
            monthly(1).due(0, now),
            Some(Date::first_of(2026, 11) * DAY_S)
        );
    }

    #[test]
    fn short_months_end_with_their_last_day() {
        let when = When::Monthly {
            day: 31,
            hour: 0,
            minute: 0,
        };
        let march = Date::first_of(2027, 3) * DAY_S;
        assert_eq!(when.due(0, march), Some(march - DAY_S));
        assert_eq!(
            when.due(0, march - DAY_S - 1),
            Some((Date::first_of(2027, 2) - 1) * DAY_S)
        );
    }

    #[test]
    fn what_was_before_the_begin_is_not_due() {
        let when = When::Daily { hour: 9, minute: 0 };
        let at = friday() + 9 * HOUR;
        assert_eq!(when.due(at, at + HOUR), None);
        assert_eq!(when.due(at - 1, at + HOUR), Some(at));
        assert_eq!(
            when.due(at, at + 3 * DAY_S),
            Some(at + 3 * DAY_S),
            "only the last one"
        );
        assert_eq!(
            When::Weekly {
                day: 0,
                hour: 23,
                minute: 0
            }
            .due(0, HOUR),
            None
        );
        assert_eq!(
            When::Monthly {
                day: 31,
                hour: 23,
                minute: 0
            }
            .due(0, HOUR),
            None
        );
    }

    /// Whoever looks each minute finds each time once, as whoever counts the days.
    #[test]
    fn a_clock_that_runs_finds_each_time_once() {
        let when = When::Monthly {
            day: 30,
            hour: 1,
            minute: 15,
        };
        let (mut from, mut found) = (friday(), Vec::new());
        for minute in 0..400 * 24 * 60 {
            let now = friday() + minute * 60;
            if let Some(due) = when.due(from, now) {
                assert_eq!(due, now);
                found.push(Date::of_day(due / DAY_S));
                from = due;
            }
        }
        let days: Vec<_> = found.iter().map(|d| (d.month, d.day)).collect();
        assert_eq!(days.len(), 14);
        assert_eq!(&days[..4], [(11, 30), (12, 30), (1, 30), (2, 28)]);
    }

    #[test]
    fn what_is_no_policy_is_refused_by_its_field() {
        let policy = |when: When, retain| PolicyRecord {
            name: "p".into(),
            schedules: vec![Interval { when, retain }],
            changed_unix_ms: 0,
        };
        let refused = |when, retain| policy(when, retain).check().unwrap_err().to_string();
        assert!(
            refused(
                When::Daily {
                    hour: 24,
                    minute: 0
                },
                1
            )
            .contains("schedules[0]")
        );
        assert!(
            refused(
                When::Daily {
                    hour: 0,
                    minute: 60
                },
                1
            )
            .contains("minutes")
        );
        assert!(
            refused(
                When::Weekly {
                    day: 7,
                    hour: 0,
                    minute: 0
                },
                1
            )
            .contains("Sunday")
        );
        assert!(
            refused(
                When::Monthly {
                    day: 0,
                    hour: 0,
                    minute: 0
                },
                1
            )
            .contains("1 to 31")
        );
        assert!(refused(When::Periodic { seconds: 0 }, 1).contains("period"));
        assert!(refused(When::Daily { hour: 0, minute: 0 }, 0).contains("retain"));
        let mut twice = policy(When::Daily { hour: 0, minute: 0 }, 1);
        twice.schedules.push(twice.schedules[0].clone());
        assert!(twice.check().unwrap_err().to_string().contains("twice"));
        twice.schedules.clear();
        assert!(twice.check().is_err());
        assert!(check_policy_name("a/b").is_err() && check_policy_name("").is_err());
    }
}
