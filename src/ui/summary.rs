//! What happened in a run, how it is told, and the exit status.

use std::fmt::Write as _;
use std::time::Duration;

use crate::protocol::NotKept;
use crate::scoreboard::Counts;

/// Finished, and everything is there.
pub(crate) const ALL_WELL: i32 = 0;
/// Finished, but some entries failed.
pub(crate) const SOME_FAILED: i32 = 1;
/// Wrong usage, or nothing could be started.
pub const NOT_STARTED: i32 = 2;

/// What is added up besides the board's counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// Entries and folders that failed.
    pub(crate) failed: u64,
    /// Workers that were replaced.
    pub(crate) replaced: u64,
    /// Workers that could not even be killed.
    pub(crate) left_behind: u64,
    /// What the destination could not hold.
    pub(crate) not_kept: NotKept,
    /// The destination is full.
    pub(crate) full: bool,
    /// The signal that stopped the run.
    pub(crate) signal: Option<i32>,
}

impl Summary {
    /// The exit status of the run.
    pub(crate) fn exit_status(&self) -> i32 {
        match self.signal {
            Some(signal) => 128 + signal,
            None if self.failed > 0 || self.full => SOME_FAILED,
            None => ALL_WELL,
        }
    }

    /// The last line.
    pub(crate) fn summary(&self, counts: &Counts, took: Duration, dry_run: bool) -> String {
        let mut line = format!(
            "{} {}, {} unchanged, {} failed, {}",
            counts.copied,
            if dry_run { "to copy" } else { "copied" },
            counts.unchanged,
            self.failed,
            bytes(counts.bytes),
        );
        let seconds = took.as_secs_f64();
        let _ = write!(line, " in {}", duration(took));
        if counts.bytes > 0 && seconds > 0.0 && !dry_run {
            let rate = bytes((counts.bytes as f64 / seconds) as u64);
            let _ = write!(line, " ({rate}/s)");
        }
        if counts.skipped > 0 {
            let _ = write!(line, ", {} skipped", counts.skipped);
        }
        if self.replaced > 0 {
            let s = if self.replaced == 1 { "" } else { "s" };
            let _ = write!(line, ", {} worker{s} replaced", self.replaced);
        }
        if self.left_behind > 0 {
            let s = if self.left_behind == 1 { "" } else { "s" };
            let _ = write!(line, ", {} stuck worker{s} left behind", self.left_behind);
        }
        if self.signal.is_some() {
            line.push_str("; stopped, a second run continues");
        } else if self.full {
            line.push_str("; stopped, for the destination is full");
        } else if counts.copied == 0 && self.failed == 0 {
            line.push_str("; nothing to do");
        }
        line
    }
}

/// A number of bytes for people: three digits and a binary unit.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 99.95 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A duration for people.
pub(crate) fn duration(duration: Duration) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(bytes(1023 << 20), "1.0 GiB");
        assert_eq!(bytes(450 << 30), "450 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(Duration::from_millis(620)), "0.62 s");
        assert_eq!(duration(Duration::from_secs(3725)), "1:02:05 h");
    }

    #[test]
    fn the_exit_status_tells_what_happened() {
        let tally = Summary::default();
        assert_eq!(tally.exit_status(), 0);
        assert_eq!(Summary { failed: 1, ..tally }.exit_status(), 1);
        assert_eq!(
            Summary {
                full: true,
                ..tally
            }
            .exit_status(),
            1
        );
        let signal = Some(15);
        assert_eq!(Summary { signal, ..tally }.exit_status(), 143);
    }

    #[test]
    fn a_run_without_work_says_so() {
        let counts = Counts {
            unchanged: 3,
            ..Counts::default()
        };
        let line = Summary::default().summary(&counts, Duration::from_millis(10), false);
        assert_eq!(
            line,
            "0 copied, 3 unchanged, 0 failed, 0 B in 0.01 s; nothing to do"
        );
    }
}
