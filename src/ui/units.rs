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

/// Formats a duration, with hundredths of a second below a minute.
pub(super) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.2} s", duration.as_secs_f64()),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!(
            "{}:{:02}:{:02} h",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

/// Formats an estimated duration, in whole seconds.
pub(super) fn format_estimate(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{} s", seconds.max(1)),
        _ => format_duration(duration),
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
        assert_eq!(format_duration(Duration::from_millis(620)), "0.62 s");
        assert_eq!(format_duration(Duration::from_secs(3725)), "1:02:05 h");
    }

    #[test]
    fn an_estimate_has_no_hundredths() {
        assert_eq!(format_estimate(Duration::from_millis(20)), "1 s");
        assert_eq!(format_estimate(Duration::from_millis(41_900)), "41 s");
        assert_eq!(format_estimate(Duration::from_secs(90)), "1:30 min");
    }
}
