//! Times, as durations before now or as dates.

use anyhow::{Result, bail};

use crate::fs::sys::{LocalTime, second_of};

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

const FORMS: &str = "not a time; write it as 7d, 12h, 1d12h, 2026-01-31 or \"2026-01-31 12:00\"";

/// Parses a time: a duration before `now`, a date and perhaps an hour in local time, or `@` and
/// seconds since 1970.
pub(super) fn parse_time(text: &str, now: Time) -> Result<Time> {
    if let Some(seconds) = text.strip_prefix('@') {
        return match seconds.parse() {
            Ok(seconds) => Ok((seconds, 0)),
            Err(_) => bail!(FORMS),
        };
    }
    if let Some(seconds) = parse_duration(text) {
        return match now.0.checked_sub(seconds) {
            Some(then) => Ok((then, now.1)),
            None => bail!("out of range"),
        };
    }
    let Some(date) = parse_date(text) else {
        bail!(FORMS);
    };
    match second_of(&date) {
        Some(second) => Ok((second, 0)),
        None => bail!("there is no such day or time"),
    }
}

/// Parses a duration such as `1d12h`, in seconds.
fn parse_duration(text: &str) -> Option<i64> {
    let mut seconds = 0_i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'w' => 7 * 86_400,
            b'd' => 86_400,
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(seconds)
}

/// Parses `YYYY-MM-DD`, with `HH:MM` or `HH:MM:SS` after a space or a `T`.
fn parse_date(text: &str) -> Option<LocalTime> {
    let (date, time) = match text.split_once([' ', 'T']) {
        Some((date, time)) => (date, time),
        None => (text, "00:00"),
    };
    let numbers = |text: &str, separator: char, widths: &[usize]| -> Option<Vec<i32>> {
        let parts: Vec<&str> = text.split(separator).collect();
        let is_right = |(part, width): (&&str, &usize)| {
            part.len() == *width && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let all_right = parts.len() <= widths.len() && parts.iter().zip(widths).all(is_right);
        all_right.then(|| parts.iter().filter_map(|part| part.parse().ok()).collect())
    };
    let [year, month, day] = numbers(date, '-', &[4, 2, 2])?.try_into().ok()?;
    let (hour, minute, second) = match *numbers(time, ':', &[2, 2, 2])? {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    Some(LocalTime {
        year,
        month,
        day,
        hour,
        minute,
        second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = (2_000_000_000, 5);

    #[test]
    fn durations_count_back_from_now() {
        for (text, before) in [
            ("0s", 0),
            ("90m", 5_400),
            ("12h", 43_200),
            ("7d", 604_800),
            ("1w", 604_800),
            ("1d12h", 129_600),
        ] {
            assert_eq!(
                parse_time(text, NOW).unwrap(),
                (NOW.0 - before, 5),
                "{text}"
            );
        }
        assert_eq!(parse_time("@-5", NOW).unwrap(), (-5, 0));
        for text in [
            "",
            "7",
            "7x",
            "d",
            "-7d",
            "7 d",
            "7D",
            "99999999999999999w",
            "@x",
            "é",
        ] {
            assert!(parse_time(text, NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_are_local() {
        let day = parse_time("2026-01-31", NOW).unwrap();
        for (text, seconds) in [
            ("2026-01-31 00:00", 0),
            ("2026-01-31 12:00", 43_200),
            ("2026-01-31T23:59:59", 86_399),
        ] {
            // There is no change of clocks on that day.
            assert_eq!(
                parse_time(text, NOW).unwrap(),
                (day.0 + seconds, 0),
                "{text}"
            );
        }
        for text in [
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "2026-01-31 24:01",
            "2026-01-31 12",
            "2026-01-31 12:00:00:00",
            "2026-01",
            "31.01.2026",
        ] {
            assert!(parse_time(text, NOW).is_err(), "{text}");
        }
    }
}
