//! How a run ended, and what it printed.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A run of pcopy that has ended.
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Run {
    /// Fails unless pcopy exited with 0 and printed neither errors nor warnings.
    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        let run = self.exits(0);
        assert!(
            run.complaints().is_empty(),
            "exit status 0, but with complaints:\n{run}"
        );
        assert!(
            !run.stderr.contains("left behind"),
            "no worker was stuck:\n{run}"
        );
        run
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Run {
        assert!(
            self.status.code() == Some(code),
            "expected exit status {code}, got {}:\n{self}",
            self.status
        );
        assert!(
            !self.stderr.contains("panicked at"),
            "pcopy panicked:\n{self}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn stderr_has(self, text: &str) -> Run {
        assert!(
            self.stderr.contains(text),
            "stderr has no {text:?}:\n{self}"
        );
        self
    }

    /// Fails unless the line of the summary that says what was done ends with this text.
    #[track_caller]
    pub(crate) fn summary_ends_with(self, text: &str) -> Run {
        let mut lines = self.stderr.lines();
        let line = lines.find(|line| parse_done(line).is_some());
        assert!(
            line.is_some_and(|line| line.ends_with(text)),
            "the summary does not end with {text:?}:\n{self}"
        );
        self
    }

    /// Fails unless a line of stdout is exactly this one.
    #[track_caller]
    pub(crate) fn stdout_has_line(self, line: &str) -> Run {
        assert!(
            self.stdout().lines().any(|found| found == line),
            "stdout has no line {line:?}:\n{self}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn stdout_is_empty(self) -> Run {
        assert!(self.stdout.is_empty(), "stdout should be empty:\n{self}");
        self
    }

    /// Fails unless there is one complaint for each expected pair, in any order, and no other.
    ///
    /// A pair is a path and a part of the text behind it.
    #[track_caller]
    pub(crate) fn fails_only(self, expected: &[(&str, &str)]) -> Run {
        let mut complaints = self.complaints();
        for (path, reason) in expected {
            let start = format!("pcopy: {path}: ");
            let found = complaints.iter().position(|line| {
                line.strip_prefix(start.as_str())
                    .is_some_and(|rest| rest.contains(reason))
            });
            match found {
                Some(index) => drop(complaints.swap_remove(index)),
                None => panic!("no line {start:?} with {reason:?}:\n{self}"),
            }
        }
        assert!(
            complaints.is_empty(),
            "unexpected: {complaints:?}\nin:\n{self}"
        );
        self
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns the lines of stderr without the summary: errors and warnings.
    pub(crate) fn complaints(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter(|line| parse_done(line).is_none() && parse_failed(line).is_none())
            .collect()
    }

    /// Returns the lines of `-v`, each as the worker (`[pid 4711]`) and the entry.
    #[track_caller]
    pub(crate) fn finished_entries(&self) -> Vec<(String, String)> {
        let parse = |line: &str| {
            let (worker, entry) = line
                .split_once("] ")
                .filter(|(worker, _)| worker.starts_with('['))
                .unwrap_or_else(|| panic!("no worker in {line:?}:\n{self}"));
            (format!("{worker}]"), entry.to_owned())
        };
        self.stdout().lines().map(parse).collect()
    }

    /// Returns how many lines of `-v` each worker has.
    #[track_caller]
    pub(crate) fn entries_by_worker(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (worker, _) in self.finished_entries() {
            *counts.entry(worker).or_insert(0) += 1;
        }
        counts
    }

    /// Returns the counts of the summary.
    #[track_caller]
    pub(crate) fn summary(&self) -> Summary {
        let done: Vec<_> = self.stderr.lines().filter_map(parse_done).collect();
        let failed: Vec<_> = self.stderr.lines().filter_map(parse_failed).collect();
        assert!(
            !(done.is_empty() && failed.is_empty()),
            "there is no summary:\n{self}"
        );
        assert!(
            done.len() <= 1 && failed.len() <= 1,
            "there are two summaries:\n{self}"
        );
        let (copied, unchanged) = done.first().copied().unwrap_or_default();
        Summary {
            copied,
            unchanged,
            failed: failed.first().copied().unwrap_or_default(),
        }
    }

    /// Fails unless the summary counts this many entries copied, unchanged and failed.
    #[track_caller]
    pub(crate) fn counts(self, copied: u64, unchanged: u64, failed: u64) -> Run {
        let summary = self.summary();
        let expected = Summary {
            copied,
            unchanged,
            failed,
        };
        assert!(
            summary == expected,
            "expected {expected:?}, got {summary:?}:\n{self}"
        );
        self
    }

    /// Returns how many workers were replaced, as the summary says.
    pub(crate) fn replaced_workers(&self) -> u64 {
        let words: Vec<&str> = self.stderr.split_whitespace().collect();
        let count = words
            .windows(3)
            .find(|words| words[1].starts_with("worker") && words[2].starts_with("replaced"));
        count.map_or(0, |words| words[0].parse().unwrap())
    }
}

impl Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "command: {}", self.command)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => writeln!(f, "exit status: {code}")?,
            (None, signal) => writeln!(f, "killed by signal {signal:?}")?,
        }
        for (name, text) in [("stdout", &self.stdout()), ("stderr", &self.stderr)] {
            writeln!(f, "{name}:")?;
            // Thousands of -v lines explain nothing.
            for line in text.lines().take(60) {
                writeln!(f, "    {line}")?;
            }
            let more = text.lines().count().saturating_sub(60);
            if more > 0 {
                writeln!(f, "    ... and {more} more lines")?;
            }
        }
        Ok(())
    }
}

/// The counts of a summary. What it does not say is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) copied: u64,
    pub(crate) unchanged: u64,
    pub(crate) failed: u64,
}

/// Returns how many entries were copied and left unchanged, from `pcopy: 3 files copied to DST, 2
/// unchanged, ...`. A dry run says "to copy".
fn parse_done(line: &str) -> Option<(u64, u64)> {
    let line = line.strip_prefix("pcopy: ")?;
    let (number, rest) = line.split_once(" file")?;
    let rest = rest.strip_prefix('s').unwrap_or(rest);
    let number = match number {
        "no" => 0,
        number => number.parse().ok()?,
    };
    if rest.starts_with(" copied to ") || rest.starts_with(" to copy to ") {
        let unchanged = rest.split(", ").find_map(|part| {
            let (number, what) = part.split_once(' ')?;
            number
                .parse()
                .ok()
                .filter(|_| what.starts_with("unchanged"))
        });
        Some((number, unchanged.unwrap_or(0)))
    } else if rest.starts_with(" unchanged at ") {
        Some((0, number))
    } else {
        rest.starts_with(" skipped at ").then_some((0, 0))
    }
}

/// Returns how many entries failed, from `pcopy: 3 failed (named above); ...`.
fn parse_failed(line: &str) -> Option<u64> {
    let line = line.strip_prefix("pcopy: ")?;
    let (number, rest) = line.split_once(' ')?;
    let is_failed = rest.starts_with("failed") || rest.starts_with("vanished or changed");
    number
        .parse()
        .ok()
        .filter(|_| is_failed && rest.contains(" (named above)"))
}
