//! Days and times of day, in UTC.

/// Seconds of a day.
pub const DAY_S: u64 = 86_400;

/// A day: year, month (1 to 12), day of it (1 to 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// Year.
    pub year: u64,
    /// Month, from 1.
    pub month: u64,
    /// Day of the month, from 1.
    pub day: u64,
}

impl Date {
    /// Of a day since 1970-01-01. Days are counted in years that begin in March, so that a leap day comes last.
    pub fn of_day(day: u64) -> Self {
        let days = day + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
        }
    }

    /// Days since 1970-01-01 of the first of a month.
    pub fn first_of(year: u64, month: u64) -> u64 {
        let (year, from_march) = match month {
            1 | 2 => (year - 1, month + 9),
            _ => (year, month - 3),
        };
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100;
        era * 146_097 + day_of_era + (153 * from_march + 2) / 5 - 719_468
    }

    /// Days of a month.
    pub fn days_of(year: u64, month: u64) -> u64 {
        let next = match month {
            12 => Self::first_of(year + 1, 1),
            _ => Self::first_of(year, month + 1),
        };
        next - Self::first_of(year, month)
    }
}

/// Weekday of a day since 1970-01-01, which was a Thursday: 0 is Sunday.
pub fn weekday(day: u64) -> u64 {
    (day + 4) % 7
}

/// A time for a name: `20260131T130509Z`.
pub fn stamp(unix_s: u64) -> String {
    let Date { year, month, day } = Date::of_day(unix_s / DAY_S);
    let rest = unix_s % DAY_S;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates_and_back() {
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(951_782_400), "20000229T000000Z");
        assert_eq!(stamp(1_795_823_109), "20261127T234509Z");
        let mut before = Date::of_day(0);
        for day in 1..80_000 {
            let date = Date::of_day(day);
            let next = match before.day == Date::days_of(before.year, before.month) {
                false => (before.year, before.month, before.day + 1),
                true if before.month == 12 => (before.year + 1, 1, 1),
                true => (before.year, before.month + 1, 1),
            };
            assert_eq!((date.year, date.month, date.day), next);
            assert_eq!(Date::first_of(date.year, date.month) + date.day - 1, day);
            before = date;
        }
    }

    #[test]
    fn weekdays_follow_each_other() {
        assert_eq!((weekday(0), weekday(3)), (4, 0));
        // 2026-11-27, a Friday.
        assert_eq!(weekday(Date::first_of(2026, 11) + 26), 5);
    }

    #[test]
    fn months_have_their_days() {
        let february = |year| Date::days_of(year, 2);
        assert_eq!([2000, 2024, 2026, 2100].map(february), [29, 29, 28, 28]);
        assert_eq!(Date::days_of(2026, 12), 31);
    }
}
