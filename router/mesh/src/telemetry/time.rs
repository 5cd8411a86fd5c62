//! Times as logs and metrics have them.

use std::fmt::{self, Display};
use std::time::{Duration, SystemTime};

/// The current time as RFC 3339 in UTC with milliseconds, for access and audit lines.
pub fn timestamp() -> String {
    let since = since_1970(SystemTime::now());
    format!("{}.{:03}Z", DateTime(since.as_secs()), since.subsec_millis())
}

/// A time as RFC 3339 in UTC with seconds, for what is said of certificates.
pub fn utc(time: SystemTime) -> impl Display {
    struct Utc(DateTime);
    impl Display for Utc {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}Z", self.0)
        }
    }
    Utc(DateTime(seconds_since_1970(time)))
}

/// A time as metrics have it, in whole seconds; 0 for one before 1970.
pub fn seconds_since_1970(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970 as date and time.
struct DateTime(u64);

impl Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

/// The Gregorian date `days` after 1970-01-01, counting in 400-year cycles whose years begin on 1 March.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_781, (2026, 11, 24)),
        ] {
            assert_eq!(civil_from_days(days), date);
        }
        let leap = SystemTime::UNIX_EPOCH + Duration::from_secs(951_868_799);
        assert_eq!(utc(leap).to_string(), "2000-02-29T23:59:59Z");
    }
}
