//! Durations as Go writes them (`180s`, `200ms`, `1m30s`, `1.5h`), which is how existing manifests spell them.

use std::time::Duration;

/// The longest duration that Go has, 292 years. Points in time stay computable with it.
const LONGEST: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// A duration of so many seconds, unless it is negative, none, or longer than any that Go has.
pub fn from_seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= LONGEST)
}

/// Parses a Go-style duration. Negative ones are refused: no setting here can use one.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 180s, 200ms or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = tail;
    }
    from_seconds(seconds).ok_or_else(wrong)
}

/// As [`parse`], for a limit that nothing could keep if it were 0.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse_above_zero(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration.is_zero() {
        return Err("must be above 0".into());
    }
    Ok(duration)
}

/// Writes a duration so that [`parse`] reads it back: milliseconds where seconds don't suffice.
pub fn display(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("0", 0),
            ("180s", 180_000),
            ("200ms", 200),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("+2s", 2_000),
            ("2562047h", 9_223_369_200_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "", "5", "s", "-1s", "1 s", "1d", "1..5s", "nan", "1e400h", "1s ", "2562048h",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_displayed_duration_reads_back() {
        for millis in [0, 1, 200, 1_000, 90_500] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&display(duration)), Ok(duration));
        }
    }
}
