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
    /// A dry run found something to do, and was asked to say so.
    pub(crate) const DIFFERENT: i32 = 4;
    /// The time was up, and nothing has failed.
    pub(crate) const OUT_OF_TIME: i32 = 5;
}

/// A rate measured over less time is noise.
const RATE_DELAY: Duration = Duration::from_millis(100);

/// The counts of a run, and how it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// The counts of the workers, without failures.
    pub(crate) counts: Counts,
    /// Entries, directories included, that failed.
    pub(crate) failed: u64,
    /// Of these, sources that vanished or changed while they were being copied.
    pub(crate) moved: u64,
    /// Workers that died and were replaced.
    pub(crate) replaced: u64,
    /// Workers that could not be killed.
    pub(crate) left_behind: u64,
    /// Hosts that took part, if there may be several.
    pub(crate) hosts: Option<Hosts>,
    /// Something was or would be made, replaced or updated.
    pub(crate) is_different: bool,
    pub(crate) is_full: bool,
    /// An entry that only the destination has should have been deleted, and stays.
    pub(crate) has_kept: bool,
    /// The side of which a root is gone.
    pub(crate) gone: Option<Side>,
    /// The signal that stopped the run.
    pub(crate) signal: Option<i32>,
    /// The time after which the run had to end, if it was over before everything was done.
    pub(crate) time_limit: Option<Duration>,
    /// All workers died, and none could be started.
    pub(crate) has_no_workers: bool,
    /// Stdout, the log or the list of what failed could not be written.
    pub(crate) has_lost_output: bool,
    /// Every directory was listed.
    pub(crate) is_listed: bool,
    /// Workers that were started.
    pub(crate) workers: usize,
}

/// The hosts of a run on many machines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hosts {
    pub(crate) all: u64,
    /// Workers on all of them.
    pub(crate) workers: u64,
    pub(crate) lost: u64,
}

impl Summary {
    /// Returns the exit status. `tells_difference`: as `--exit-code` asks for.
    pub(crate) fn exit_status(&self, tells_difference: bool) -> i32 {
        match self.signal {
            Some(signal) => 128 + signal,
            None if self.has_failed() => exit::FAILURES,
            None if self.is_out_of_time() => exit::OUT_OF_TIME,
            None if self.moved > 0 => exit::MOVING_SOURCE,
            None if self.is_different && tells_difference => exit::DIFFERENT,
            None => exit::SUCCESS,
        }
    }

    fn has_failed(&self) -> bool {
        self.failed > self.moved
            || self.is_full
            || self.gone.is_some()
            || self.has_no_workers
            || self.has_lost_output
            || self.has_kept
    }

    pub(super) fn is_out_of_time(&self) -> bool {
        self.time_limit.is_some()
    }

    /// Returns true if the run ended before everything was tried.
    fn was_stopped(&self) -> bool {
        self.signal.is_some()
            || self.is_full
            || self.gone.is_some()
            || self.has_no_workers
            || self.is_out_of_time()
    }

    /// Returns how many entries a stopped run has listed and neither copied nor failed.
    pub(super) fn not_tried(&self) -> u64 {
        if !self.was_stopped() {
            return 0;
        }
        let ended = self.counts.done() + self.failed;
        self.counts.found.saturating_sub(ended)
    }

    /// Formats the last lines of a run. They say only what is not zero.
    pub(crate) fn lines(
        &self,
        destination: &str,
        elapsed: Duration,
        is_dry_run: bool,
    ) -> Vec<String> {
        let done = self.done_line(destination, elapsed, is_dry_run);
        done.into_iter()
            .chain(self.failed_line(is_dry_run))
            .collect()
    }

    /// Formats what was done. Returns `None` if nothing was, and failures say why.
    fn done_line(&self, destination: &str, elapsed: Duration, is_dry_run: bool) -> Option<String> {
        let counts = &self.counts;
        let copied = if is_dry_run { "to copy" } else { "copied" };
        let mut parts = Vec::new();
        if counts.copied > 0 {
            let files = plural(counts.copied, "file");
            parts.push(format!("{files} {copied} to {destination}"));
        }
        for (number, what) in [(counts.unchanged, "unchanged"), (counts.skipped, "skipped")] {
            if number > 0 && parts.is_empty() {
                let files = plural(number, "file");
                parts.push(format!("{files} {what} at {destination}"));
            } else if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        }
        let deleted = if is_dry_run { "to delete" } else { "deleted" };
        if counts.deleted > 0 {
            if parts.is_empty() {
                parts.push(format!("no files {copied} to {destination}"));
            }
            parts.push(format!("{} {deleted}", counts.deleted));
        }
        let ending = self.ending();
        if parts.is_empty() && self.failed > 0 && ending.is_empty() && self.lost_workers() == 0 {
            return None;
        }
        if parts.is_empty() {
            parts.push(format!("no files {copied} to {destination}"));
        }
        let mut time = format!("in {}", format_duration(elapsed));
        if counts.bytes > 0 {
            time.insert_str(0, &format!("{} ", format_bytes(counts.bytes)));
            if elapsed >= RATE_DELAY && !is_dry_run {
                let rate = (counts.bytes as f64 / elapsed.as_secs_f64()) as u64;
                let _ = write!(time, " ({}/s)", format_bytes(rate));
            }
            parts.push(time);
        } else if let Some(last) = parts.last_mut() {
            let _ = write!(last, " {time}");
        }
        if let Some(hosts) = &self.hosts {
            let (all, workers) = (plural(hosts.all, "host"), plural(hosts.workers, "worker"));
            parts.push(format!("{all} with {workers}"));
            if hosts.lost > 0 {
                parts.push(format!("{} lost", plural(hosts.lost, "host")));
            }
        }
        match self.not_tried() {
            0 => {}
            // Failed directories are no entries that were found.
            rest if self.is_listed && self.failed == 0 => parts.push(format!("{rest} not tried")),
            rest => parts.push(format!("at least {rest} not tried")),
        }
        if self.replaced > 0 {
            parts.push(format!("{} replaced", plural(self.replaced, "worker")));
        }
        if self.left_behind > 0 {
            let workers = plural(self.left_behind, "stuck worker");
            parts.push(format!("{workers} left behind"));
        }
        Some(parts.join(", ") + &ending)
    }

    /// Formats what has failed, if anything has.
    fn failed_line(&self, is_dry_run: bool) -> Option<String> {
        let (failed, moved) = (self.failed, self.moved);
        let what = match moved {
            _ if failed == 0 => return None,
            0 => format!("{failed} failed"),
            _ if moved >= failed => format!("{failed} vanished or changed meanwhile"),
            _ => format!("{failed} failed, {moved} of them vanished or changed meanwhile"),
        };
        let advice = match failed {
            _ if is_dry_run => "",
            1 => "; the same command tries it again",
            _ => "; the same command tries them again",
        };
        Some(format!("{what} (named above){advice}"))
    }

    fn lost_workers(&self) -> u64 {
        self.replaced + self.left_behind
    }

    fn ending(&self) -> String {
        let ending = if self.signal.is_some() {
            "; interrupted, run again to resume"
        } else if self.is_full {
            "; stopped: destination is full"
        } else if let Some(side) = self.gone {
            match side {
                Side::Source => "; stopped: source is gone",
                Side::Destination => "; stopped: destination is gone",
            }
        } else if self.has_no_workers {
            "; stopped: no workers"
        } else if let Some(limit) = self.time_limit {
            let limit = format_duration(limit);
            return format!("; stopped after {limit} (--stop-after), run again to resume");
        } else if self.counts.copied == 0
            && self.counts.deleted == 0
            && self.counts.done() > 0
            && self.failed == 0
        {
            "; nothing to do"
        } else {
            ""
        };
        ending.to_owned()
    }
}

/// Formats a number of things.
fn plural(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(summary: &Summary, seconds: f64, is_dry_run: bool) -> Vec<String> {
        summary.lines("/mnt/photos", Duration::from_secs_f64(seconds), is_dry_run)
    }

    fn with_counts(counts: Counts) -> Summary {
        Summary {
            counts,
            ..Summary::default()
        }
    }

    #[test]
    fn the_exit_status_says_how_the_run_ended() {
        let summary = Summary::default();
        assert_eq!(summary.exit_status(false), 0);
        let failed = Summary {
            failed: 1,
            ..summary
        };
        assert_eq!(failed.exit_status(false), 1);
        let moved = Summary { moved: 1, ..failed };
        assert_eq!(moved.exit_status(false), 3);
        let worse = Summary { failed: 2, ..moved };
        assert_eq!(worse.exit_status(false), 1);
        let full = Summary {
            is_full: true,
            ..moved
        };
        assert_eq!(full.exit_status(false), 1);
        let gone = Summary {
            gone: Some(Side::Source),
            ..Summary::default()
        };
        assert_eq!(gone.exit_status(false), 1);
        let interrupted = Summary {
            signal: Some(15),
            ..full
        };
        assert_eq!(interrupted.exit_status(false), 143);
        let different = Summary {
            is_different: true,
            ..Summary::default()
        };
        assert_eq!(different.exit_status(false), 0);
        assert_eq!(different.exit_status(true), 4);
        let failed = Summary {
            failed: 1,
            ..different
        };
        assert_eq!(failed.exit_status(true), 1);
        let late = Summary {
            time_limit: Some(Duration::from_secs(3600)),
            ..summary
        };
        assert_eq!(late.exit_status(false), 5);
        let late_and_moved = Summary {
            time_limit: late.time_limit,
            ..moved
        };
        assert_eq!(late_and_moved.exit_status(false), 5);
        let late_and_failed = Summary {
            time_limit: late.time_limit,
            ..failed
        };
        assert_eq!(late_and_failed.exit_status(false), 1);
        let unprinted = Summary {
            has_lost_output: true,
            ..moved
        };
        assert_eq!(unprinted.exit_status(false), 1);
    }

    #[test]
    fn a_stopped_run_says_how_much_was_not_tried() {
        let counts = Counts {
            found: 100,
            copied: 40,
            unchanged: 5,
            ..Counts::default()
        };
        let mut summary = Summary {
            time_limit: Some(Duration::from_secs(90 * 60)),
            ..with_counts(counts)
        };
        assert_eq!(
            lines(&summary, 5400.0, false),
            [
                "40 files copied to /mnt/photos, 5 unchanged in 1:30:00 h, at least 55 not tried; \
              stopped after 1:30:00 h (--stop-after), run again to resume"
            ]
        );
        (summary.time_limit, summary.is_full) = (None, true);
        (summary.is_listed, summary.failed) = (true, 1);
        assert_eq!(
            lines(&summary, 1.0, false),
            [
                "40 files copied to /mnt/photos, 5 unchanged in 1.0 s, at least 54 not tried; \
              stopped: destination is full",
                "1 failed (named above); the same command tries it again"
            ]
        );
        summary.failed = 0;
        assert!(lines(&summary, 1.0, false)[0].contains(", 55 not tried;"));
        summary.is_full = false;
        assert!(!lines(&summary, 1.0, false)[0].contains("not tried"));
    }

    #[test]
    fn only_what_is_not_zero_is_said() {
        let mut summary = with_counts(Counts {
            copied: 540,
            bytes: 1_966_080_000,
            ..Counts::default()
        });
        assert_eq!(
            lines(&summary, 41.5, false),
            ["540 files copied to /mnt/photos, 1.8 GiB in 41 s (45.2 MiB/s)"]
        );
        summary.counts.unchanged = 3;
        summary.failed = 3;
        assert_eq!(
            lines(&summary, 0.09, false),
            [
                "540 files copied to /mnt/photos, 3 unchanged, 1.8 GiB in 0.09 s",
                "3 failed (named above); the same command tries them again"
            ]
        );
        assert_eq!(
            lines(&summary, 2.0, true),
            [
                "540 files to copy to /mnt/photos, 3 unchanged, 1.8 GiB in 2.0 s",
                "3 failed (named above)"
            ]
        );
        summary.counts = Counts {
            copied: 1,
            ..Counts::default()
        };
        assert_eq!(
            lines(&summary, 0.01, false)[0],
            "1 file copied to /mnt/photos in 0.01 s"
        );
    }

    #[test]
    fn failures_say_which_of_them_are_the_sources_own() {
        let mut summary = Summary {
            failed: 3,
            moved: 3,
            ..Summary::default()
        };
        assert_eq!(
            lines(&summary, 1.0, false),
            ["3 vanished or changed meanwhile (named above); the same command tries them again"]
        );
        summary.moved = 1;
        assert_eq!(
            lines(&summary, 1.0, false),
            [
                "3 failed, 1 of them vanished or changed meanwhile (named above); the same command \
              tries them again"
            ]
        );
    }

    #[test]
    fn a_run_without_work_says_so() {
        assert_eq!(
            lines(&Summary::default(), 0.01, false),
            ["no files copied to /mnt/photos in 0.01 s"]
        );
        let unchanged = with_counts(Counts {
            unchanged: 12,
            skipped: 1,
            ..Counts::default()
        });
        assert_eq!(
            lines(&unchanged, 0.01, false),
            ["12 files unchanged at /mnt/photos, 1 skipped in 0.01 s; nothing to do"]
        );
    }

    #[test]
    fn a_run_that_stops_says_why() {
        let full = Summary {
            is_full: true,
            failed: 1,
            ..Summary::default()
        };
        assert_eq!(
            lines(&full, 0.01, false)[0],
            "no files copied to /mnt/photos in 0.01 s; stopped: destination is full"
        );
        let interrupted = Summary {
            signal: Some(2),
            ..full
        };
        assert_eq!(
            lines(&interrupted, 0.01, false)[0],
            "no files copied to /mnt/photos in 0.01 s; interrupted, run again to resume"
        );
    }

    #[test]
    fn lost_workers_are_counted() {
        let mut summary = with_counts(Counts {
            copied: 1,
            skipped: 4,
            ..Counts::default()
        });
        summary.replaced = 1;
        summary.left_behind = 2;
        assert_eq!(
            lines(&summary, 0.01, false),
            [
                "1 file copied to /mnt/photos, 4 skipped in 0.01 s, 1 worker replaced, 2 stuck \
              workers left behind"
            ]
        );
    }
}
