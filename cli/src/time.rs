//! Times as people read them, in UTC.

/// `2026-01-31 13:05:09`; 0 is never, and shown as nothing.
pub fn show_time(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return String::new();
    }
    let [year, month, day, hour, minute, second] = parts(unix_ms / 1000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The same without blanks, for names: `20260131-130509`.
pub fn time_for_name(unix_ms: u64) -> String {
    let [year, month, day, hour, minute, second] = parts(unix_ms / 1000);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Now, ms since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Year, month, day, hour, minute, second. Days are counted in years that begin in March, so that a leap day comes last.
fn parts(seconds: u64) -> [u64; 6] {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    [year, month, day, rest / 3600, rest / 60 % 60, rest % 60]
}

/// Seconds of `90s`, `15m`, `12h`, `7d`, or of a number.
pub fn parse_interval(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "`{text}` is not a time: write seconds, or a number with s, m, h or d behind it, like 7d"
        )
    };
    let (digits, unit) = match text.char_indices().last() {
        Some((at, unit)) if !unit.is_ascii_digit() => {
            let seconds = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86_400,
                _ => return Err(wrong()),
            };
            (&text[..at], seconds)
        }
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// `7d`, `90m`, `45s`: the largest unit that it is a multiple of.
pub fn show_interval(seconds: u64) -> String {
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds > 0 && seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_the_calendar_has_them() {
        for (seconds, text) in [
            (1, "1970-01-01 00:00:01"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_767_225_599, "2025-12-31 23:59:59"),
            (1_767_225_600, "2026-01-01 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(show_time(seconds * 1000), text);
        }
        assert_eq!(show_time(0), "");
        assert_eq!(time_for_name(951_782_405_000), "20000229-000005");
    }

    #[test]
    fn intervals_are_read_and_shown() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("7d", 604_800),
        ] {
            assert_eq!(parse_interval(text), Ok(seconds));
        }
        for bad in ["", "d", "7w", "-1", "1.5h", "99999999999999999999d"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
        for (seconds, text) in [(604_800, "7d"), (5400, "90m"), (45, "45s"), (0, "0s")] {
            assert_eq!(show_interval(seconds), text);
        }
    }
}
