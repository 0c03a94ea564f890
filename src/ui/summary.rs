//! The result of a run: its last line and its exit status.

use std::fmt::Write as _;
use std::time::Duration;

use super::paths::Side;
use super::units::{format_bytes, format_duration};
use crate::protocol::Counts;

/// Exit statuses. After a signal it is 128 and the signal's number.
pub(super) mod exit {
    /// Everything is at the destination.
    pub(crate) const SUCCESS: i32 = 0;
    /// Finished, but some entries failed, or the destination was full.
    pub(crate) const FAILURES: i32 = 1;
    /// Wrong usage, or nothing could be started.
    pub(crate) const NOT_STARTED: i32 = 2;
    /// Finished, and only sources that vanished or changed meanwhile have failed.
    pub(crate) const MOVING_SOURCE: i32 = 3;
}

/// What a run has done, and how it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// Entries that did not fail, and bytes copied.
    pub(crate) counts: Counts,
    /// Entries, directories included, that failed.
    pub(crate) failed: u64,
    /// Of these, sources that vanished or changed while they were being copied.
    pub(crate) moved: u64,
    /// Workers that died and were replaced.
    pub(crate) replaced: u64,
    /// Workers that could not be killed.
    pub(crate) left_behind: u64,
    pub(crate) is_full: bool,
    /// The side of which a root is gone.
    pub(crate) gone: Option<Side>,
    /// The signal that stopped the run.
    pub(crate) signal: Option<i32>,
}

impl Summary {
    pub(crate) fn exit_status(&self) -> i32 {
        match self.signal {
            Some(signal) => 128 + signal,
            None if self.failed > self.moved || self.is_full || self.gone.is_some() => {
                exit::FAILURES
            }
            None if self.moved > 0 => exit::MOVING_SOURCE,
            None => exit::SUCCESS,
        }
    }

    /// Formats the last line of a run.
    pub(crate) fn line(&self, elapsed: Duration, is_dry_run: bool) -> String {
        let counts = &self.counts;
        let mut line = format!(
            "{} {}, {} unchanged, {} failed, {} in {}",
            counts.copied,
            if is_dry_run { "to copy" } else { "copied" },
            counts.unchanged,
            self.failed,
            format_bytes(counts.bytes),
            format_duration(elapsed),
        );
        let seconds = elapsed.as_secs_f64();
        if counts.bytes > 0 && seconds > 0.0 && !is_dry_run {
            let rate = format_bytes((counts.bytes as f64 / seconds) as u64);
            let _ = write!(line, " ({rate}/s)");
        }
        if counts.skipped > 0 {
            let _ = write!(line, ", {} skipped", counts.skipped);
        }
        if self.moved > 0 {
            let _ = write!(line, ", {} vanished or changed", self.moved);
        }
        if self.replaced > 0 {
            let _ = write!(line, ", {} replaced", workers("", self.replaced));
        }
        if self.left_behind > 0 {
            let _ = write!(
                line,
                ", {} left behind",
                workers("stuck ", self.left_behind)
            );
        }
        line.push_str(self.ending());
        line
    }

    fn ending(&self) -> &'static str {
        if self.signal.is_some() {
            "; interrupted, run again to resume"
        } else if self.is_full {
            "; stopped: destination is full"
        } else if let Some(side) = self.gone {
            match side {
                Side::Source => "; stopped: source is gone",
                Side::Destination => "; stopped: destination is gone",
            }
        } else if self.counts.copied == 0 && self.failed == 0 {
            "; nothing to do"
        } else {
            ""
        }
    }
}

fn workers(kind: &str, number: u64) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {kind}worker{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_RUN: &str = "0 copied, 0 unchanged, 0 failed, 0 B in 0.01 s";

    fn line(summary: &Summary) -> String {
        summary.line(Duration::from_millis(10), false)
    }

    #[test]
    fn the_exit_status_says_how_the_run_ended() {
        let summary = Summary::default();
        assert_eq!(summary.exit_status(), 0);
        let failed = Summary {
            failed: 1,
            ..summary
        };
        assert_eq!(failed.exit_status(), 1);
        let moved = Summary { moved: 1, ..failed };
        assert_eq!(moved.exit_status(), 3);
        let worse = Summary { failed: 2, ..moved };
        assert_eq!(worse.exit_status(), 1);
        let full = Summary {
            is_full: true,
            ..moved
        };
        assert_eq!(full.exit_status(), 1);
        let gone = Summary {
            gone: Some(Side::Source),
            ..Summary::default()
        };
        assert_eq!(gone.exit_status(), 1);
        let interrupted = Summary {
            signal: Some(15),
            ..full
        };
        assert_eq!(interrupted.exit_status(), 143);
    }

    #[test]
    fn the_line_has_counts_size_time_and_rate() {
        let counts = Counts {
            copied: 12,
            unchanged: 3,
            bytes: 1_966_080_000,
            ..Counts::default()
        };
        let summary = Summary {
            counts,
            ..Summary::default()
        };
        assert_eq!(
            summary.line(Duration::from_secs(40), false),
            "12 copied, 3 unchanged, 0 failed, 1.8 GiB in 40.00 s (46.9 MiB/s)"
        );
        assert_eq!(
            summary.line(Duration::from_millis(20), true),
            "12 to copy, 3 unchanged, 0 failed, 1.8 GiB in 0.02 s"
        );
    }

    #[test]
    fn a_run_without_work_says_so() {
        assert_eq!(
            line(&Summary::default()),
            format!("{EMPTY_RUN}; nothing to do")
        );
    }

    #[test]
    fn a_run_that_stops_says_why() {
        let full = Summary {
            is_full: true,
            ..Summary::default()
        };
        assert_eq!(
            line(&full),
            format!("{EMPTY_RUN}; stopped: destination is full")
        );
        let interrupted = Summary {
            signal: Some(2),
            ..full
        };
        assert_eq!(
            line(&interrupted),
            format!("{EMPTY_RUN}; interrupted, run again to resume")
        );
    }

    #[test]
    fn lost_workers_are_counted() {
        let counts = Counts {
            copied: 1,
            skipped: 4,
            ..Counts::default()
        };
        let summary = Summary {
            counts,
            replaced: 1,
            left_behind: 2,
            ..Summary::default()
        };
        assert_eq!(
            line(&summary),
            "1 copied, 0 unchanged, 0 failed, 0 B in 0.01 s, 4 skipped, 1 worker replaced, \
             2 stuck workers left behind"
        );
    }
}
