//! The progress of a run on stderr: a bar on a terminal, otherwise a line every second.
//!
//! The only file that uses indicatif.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::print_message;
use super::units::{format_bytes, format_estimate};
use crate::protocol::Counts;

const REDRAWS_PER_SECOND: u8 = 10;
/// The period of plain lines, for `--progress=always` without a terminal.
const LINE_PERIOD: Duration = Duration::from_secs(1);
/// A rate measured over less time is noise.
const RATE_DELAY: Duration = Duration::from_millis(500);

/// Positions of the bar.
const BAR_LENGTH: u64 = 1000;
/// A terminal with fewer columns shows the figures only.
const BAR_COLUMNS: u16 = 80;
/// The cost of a file besides its bytes, in bytes: about 60 µs at 1 GiB/s.
const COST_PER_FILE: f64 = 65536.0;

/// Where progress is shown.
enum Display {
    None,
    Lines,
    Bar(ProgressBar),
}

/// Shows the progress of a run.
pub(super) struct Progress {
    display: Display,
    updated: Cell<Instant>,
}

impl Progress {
    pub(super) fn new(is_wanted: bool) -> Self {
        let display = if !is_wanted {
            Display::None
        } else if std::io::stderr().is_terminal() {
            let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
            let bar = ProgressBar::with_draw_target(None, target);
            bar.set_style(style("{spinner} {wide_msg}"));
            Display::Bar(bar)
        } else {
            Display::Lines
        };
        Self {
            display,
            updated: Cell::new(Instant::now()),
        }
    }

    /// Returns the interval at which to call [`Progress::update`], if progress is shown.
    pub(super) fn period(&self) -> Option<Duration> {
        match self.display {
            Display::None => None,
            Display::Lines => Some(LINE_PERIOD),
            Display::Bar(_) => Some(Duration::from_secs(1) / u32::from(REDRAWS_PER_SECOND)),
        }
    }

    /// Draws the progress, unless it was drawn less than a period ago. `entry` returns the path of
    /// an entry that is being copied.
    pub(super) fn update(
        &self,
        counts: &Counts,
        all_found: bool,
        elapsed: Duration,
        entry: impl FnOnce() -> String,
    ) {
        let now = Instant::now();
        let is_due = |period| now - self.updated.get() >= period;
        if !self.period().is_some_and(is_due) {
            return;
        }
        self.updated.set(now);
        let text = describe(counts, all_found, elapsed);
        match &self.display {
            Display::None => {}
            Display::Lines => print_message(&text),
            Display::Bar(bar) => {
                if all_found {
                    bar.set_length(BAR_LENGTH);
                    bar.set_style(style(if is_narrow_terminal() {
                        "{percent:>3}% {wide_msg}"
                    } else {
                        "{bar:20} {percent:>3}% {wide_msg}"
                    }));
                    bar.set_position((done_share(counts) * BAR_LENGTH as f64) as u64);
                }
                bar.set_message(format!("{text} {}", entry()));
                bar.tick();
            }
        }
    }

    /// Runs `print` while the bar is hidden, so that its lines stay above the bar.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.display {
            Display::Bar(bar) => bar.suspend(print),
            Display::None | Display::Lines => print(),
        }
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn is_narrow_terminal() -> bool {
    rustix::termios::tcgetwinsize(std::io::stderr()).is_ok_and(|size| size.ws_col < BAR_COLUMNS)
}

/// Formats the figures. A percentage or the time left makes sense only once all is found.
fn describe(counts: &Counts, all_found: bool, elapsed: Duration) -> String {
    let (done, found) = (counts.done(), counts.found);
    let bytes = format_bytes(counts.bytes);
    let mut text = if all_found {
        format!("{done} of {found} files, {bytes}")
    } else {
        format!("{done} of {found}+ files (counting), {bytes}")
    };
    if counts.bytes_found > counts.bytes {
        let is_final = all_found && unexamined_files(counts) == 0;
        let plus = if is_final { "" } else { "+" };
        text.push_str(&format!(" of {}{plus}", format_bytes(counts.bytes_found)));
    }
    if elapsed > RATE_DELAY {
        let rate = counts.bytes as f64 / elapsed.as_secs_f64();
        text.push_str(&format!(", {}/s", format_bytes(rate as u64)));
        if let Some(time_left) = estimate_time_left(counts, elapsed).filter(|_| all_found) {
            text.push_str(&format!(", {} left", format_estimate(time_left)));
        }
    }
    text
}

/// Returns the number of files whose sizes are unknown. A stat of each of them in advance would
/// cost more than the bar is worth.
fn unexamined_files(counts: &Counts) -> u64 {
    let examined = counts.sized + counts.unchanged + counts.skipped;
    counts.found.saturating_sub(examined.max(counts.done()))
}

/// Returns the share of the work that is done, from 0 to 1.
///
/// The work of a file is its size plus [`COST_PER_FILE`]. An unexamined file counts with the
/// average size.
fn done_share(counts: &Counts) -> f64 {
    let cost_of = |files: u64| files as f64 * COST_PER_FILE;
    let average = counts.bytes_found as f64 / counts.sized.max(1) as f64;
    let done = counts.bytes as f64 + cost_of(counts.done());
    let total = counts.bytes_found.max(counts.bytes) as f64
        + average * unexamined_files(counts) as f64
        + cost_of(counts.found);
    if total > 0.0 {
        (done / total).min(1.0)
    } else {
        0.0
    }
}

/// Estimates the time that the rest takes at the average speed so far.
fn estimate_time_left(counts: &Counts, elapsed: Duration) -> Option<Duration> {
    let share = done_share(counts);
    if share <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * (1.0 - share) / share).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_percentage_and_no_time_left_while_counting() {
        let counts = Counts {
            found: 10,
            copied: 5,
            bytes: 2048,
            ..Counts::default()
        };
        let second = Duration::from_secs(1);
        assert_eq!(
            describe(&counts, false, second),
            "5 of 10+ files (counting), 2.0 KiB, 2.0 KiB/s"
        );
        assert_eq!(
            describe(&counts, true, second),
            "5 of 10 files, 2.0 KiB, 2.0 KiB/s, 1 s left"
        );
    }

    #[test]
    fn the_share_follows_bytes_and_files() {
        let is_half = |share: f64| (share - 0.5).abs() < 0.01;
        // Half of one large file.
        let large = Counts {
            found: 1,
            sized: 1,
            bytes: 1 << 30,
            bytes_found: 2 << 30,
            ..Counts::default()
        };
        assert!(is_half(done_share(&large)));
        let time_left = estimate_time_left(&large, Duration::from_secs(10)).unwrap();
        assert_eq!(time_left.as_secs(), 10);
        // Unchanged files cost something too.
        let unchanged = Counts {
            found: 1000,
            unchanged: 500,
            ..Counts::default()
        };
        assert!(is_half(done_share(&unchanged)));
        // Unexamined files count with the average size.
        let started = Counts {
            found: 100,
            sized: 50,
            copied: 50,
            bytes: 50 << 20,
            bytes_found: 50 << 20,
            ..Counts::default()
        };
        assert!(is_half(done_share(&started)));
        assert_eq!(done_share(&Counts::default()), 0.0);
    }

    #[test]
    fn a_sum_that_will_grow_says_so() {
        let mut counts = Counts {
            found: 3,
            sized: 2,
            copied: 1,
            bytes: 1024,
            bytes_found: 4096,
            ..Counts::default()
        };
        let text = |counts: &Counts| describe(counts, true, Duration::ZERO);
        assert_eq!(text(&counts), "1 of 3 files, 1.0 KiB of 4.0 KiB+");
        counts.sized = 3;
        assert_eq!(text(&counts), "1 of 3 files, 1.0 KiB of 4.0 KiB");
    }
}
