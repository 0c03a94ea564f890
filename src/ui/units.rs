//! Sizes and durations for people.

use std::time::Duration;

/// Formats a size with three digits and a binary unit.
pub(super) fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 99.95 { 1 } else { 0 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Formats a size with two digits at least and one letter for the unit.
pub(super) fn format_compact(bytes: u64) -> String {
    const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.95 { 1 } else { 0 };
    format!("{value:.decimals$}{}", UNITS[unit])
}

/// Formats a duration with two digits at least.
pub(super) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{:.2} s", duration.as_secs_f64()),
        1..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!(
            "{}:{:02}:{:02} h",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

/// Formats the time that is left: `0:28`, `1h05`, `2d07h`. Returns `None` if that is too long to
/// mean anything.
pub(super) fn format_time_left(duration: Duration) -> Option<String> {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // The last second is not over yet.
    let seconds = duration.as_secs().max(1);
    match seconds {
        0..HOUR => Some(format!("{}:{:02}", seconds / MINUTE, seconds % MINUTE)),
        HOUR..DAY => Some(format!("{}h{:02}", seconds / HOUR, seconds % HOUR / MINUTE)),
        _ if seconds < 10 * DAY => Some(format!("{}d{:02}h", seconds / DAY, seconds % DAY / HOUR)),
        _ if seconds < 1000 * DAY => Some(format!("{}d", seconds / DAY)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1 << 20), "1.0 MiB");
        assert_eq!(format_bytes(1023 << 20), "1.0 GiB");
        assert_eq!(format_bytes(450 << 30), "450 GiB");
        assert_eq!(format_bytes(u64::MAX), "16.0 EiB");
        assert_eq!(format_compact(0), "0B");
        assert_eq!(format_compact(999), "999B");
        assert_eq!(format_compact(1000), "1.0K");
        assert_eq!(format_compact(504 << 20), "504M");
        assert_eq!(format_compact(1023 << 20), "1.0G");
        assert_eq!(format_compact(u64::MAX), "16E");
    }

    #[test]
    fn durations_are_short() {
        for (millis, text) in [
            (620, "0.62 s"),
            (9_530, "9.5 s"),
            (41_900, "41 s"),
            (90_000, "1:30 min"),
            (3_725_000, "1:02:05 h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn the_time_left_is_short() {
        for (seconds, text) in [
            (0, Some("0:01")),
            (28, Some("0:28")),
            (3_599, Some("59:59")),
            (3_900, Some("1h05")),
            (86_399, Some("23h59")),
            (2 * 86_400 + 7 * 3_600, Some("2d07h")),
            (999 * 86_400, Some("999d")),
            (1000 * 86_400, None),
        ] {
            let left = format_time_left(Duration::from_secs(seconds));
            assert_eq!(left.as_deref(), text);
        }
    }
}
