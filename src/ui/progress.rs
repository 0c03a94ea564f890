//! What a run shows of itself while it runs: the bar, and the lines that must not get mixed up
//! with it. The only file that names indicatif.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::scoreboard::Counts;
use crate::ui::summary::{bytes, duration};

/// Redraws a second, at most.
const REDRAWS: u8 = 10;
/// Lines a second where stderr is no terminal but progress is wanted all the same.
const PLAIN_EVERY: Duration = Duration::from_secs(1);
/// A rate needs some time to be worth showing.
const SETTLED: Duration = Duration::from_millis(500);

/// Steps of the bar.
const STEPS: u64 = 1000;
/// Columns below which the bar gives its room to the figures.
const NARROW: u16 = 80;
/// What a file costs beside its bytes, in bytes: about 60 µs at 1 GiB/s.
const FILE: f64 = 65536.0;

/// The progress of a run, on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    plain: bool,
    start: Instant,
    drawn: Instant,
    stdout_failed: bool,
}

impl Progress {
    /// Shows progress where `wanted`: as a bar on a terminal, otherwise as a line now and then.
    pub(crate) fn new(wanted: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let start = Instant::now();
        let bar = (wanted && terminal).then(|| {
            let bar =
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(REDRAWS));
            bar.set_style(style("{spinner} {wide_msg}"));
            bar
        });
        Self {
            bar,
            plain: wanted && !terminal,
            start,
            drawn: start,
            stdout_failed: false,
        }
    }

    /// How long the caller may wait until it calls [`Progress::update`] again, where anything
    /// is shown.
    pub(crate) fn period(&self) -> Option<Duration> {
        if self.plain {
            Some(PLAIN_EVERY)
        } else {
            self.bar
                .as_ref()
                .map(|_| Duration::from_secs(1) / u32::from(REDRAWS))
        }
    }

    /// Draws, if it is time to. `counted` says that everything has been found; `entry` is the
    /// path of something that is being copied.
    pub(crate) fn update(
        &mut self,
        counted: bool,
        counts: &Counts,
        entry: impl FnOnce() -> String,
    ) {
        let (Some(period), now) = (self.period(), Instant::now()) else {
            return;
        };
        if now - self.drawn < period {
            return;
        }
        self.drawn = now;
        let text = describe(counts, counted, now - self.start);
        let Some(bar) = &self.bar else {
            self.error(&text);
            return;
        };
        if counted {
            bar.set_length(STEPS);
            bar.set_style(style(if is_narrow() {
                "{percent:>3}% {wide_msg}"
            } else {
                "{bar:20} {percent:>3}% {wide_msg}"
            }));
            bar.set_position((share(counts) * STEPS as f64) as u64);
        }
        bar.set_message(format!("{text} {}", entry()));
        bar.tick();
    }

    /// A line on stderr, above the bar.
    pub(crate) fn error(&self, line: &str) {
        let print = || {
            // Where stderr is closed there is nobody to tell; the exit status tells.
            let _ = writeln!(std::io::stderr(), "pcopy: {line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Lines on stdout, above the bar.
    ///
    /// # Errors
    /// At the first failure alone: the reader of a pipe has gone, say.
    pub(crate) fn print(&mut self, lines: &str) -> std::io::Result<()> {
        if lines.is_empty() || self.stdout_failed {
            return Ok(());
        }
        let print = || {
            let mut stdout = std::io::stdout().lock();
            stdout
                .write_all(lines.as_bytes())
                .and_then(|()| stdout.flush())
        };
        let printed = match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        };
        self.stdout_failed = printed.is_err();
        printed
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A window in which the figures need all the room.
fn is_narrow() -> bool {
    rustix::termios::tcgetwinsize(std::io::stderr()).is_ok_and(|size| size.ws_col < NARROW)
}

fn describe(counts: &Counts, counted: bool, elapsed: Duration) -> String {
    let (done, found) = (counts.done(), counts.found);
    let mut text = if counted {
        format!("{done} of {found} files, {}", bytes(counts.bytes))
    } else {
        format!(
            "{done} of {found}+ files (counting), {}",
            bytes(counts.bytes)
        )
    };
    if counts.bytes_found > counts.bytes {
        let more = if counted && unsized_files(counts) == 0 {
            ""
        } else {
            "+"
        };
        text.push_str(&format!(" of {}{more}", bytes(counts.bytes_found)));
    }
    if elapsed > SETTLED {
        let rate = counts.bytes as f64 / elapsed.as_secs_f64();
        text.push_str(&format!(", {}/s", bytes(rate as u64)));
        if let Some(left) = time_left(counts, elapsed).filter(|_| counted) {
            text.push_str(&format!(", {} left", rough(left)));
        }
    }
    text
}

/// Files that nobody has opened yet. Their sizes are not known: looking at each before would
/// cost more than the bar is worth.
fn unsized_files(counts: &Counts) -> u64 {
    let looked_at = counts.sized + counts.unchanged + counts.skipped;
    counts.found.saturating_sub(looked_at.max(counts.done()))
}

/// How much of the work is done, from 0 to 1. Each file is worth its bytes and [`FILE`] more;
/// those whose size is not known yet are taken to be like the others.
fn share(counts: &Counts) -> f64 {
    let files = |number: u64| number as f64 * FILE;
    let average = counts.bytes_found as f64 / counts.sized.max(1) as f64;
    let done = counts.bytes as f64 + files(counts.done());
    let all = counts.bytes_found.max(counts.bytes) as f64
        + average * unsized_files(counts) as f64
        + files(counts.found);
    if all > 0.0 {
        (done / all).min(1.0)
    } else {
        0.0
    }
}

/// The time that the rest will take if it goes on like this.
fn time_left(counts: &Counts, elapsed: Duration) -> Option<Duration> {
    let share = share(counts);
    if share <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * (1.0 - share) / share).ok()
}

/// Whole seconds: an estimate has no hundredths.
fn rough(left: Duration) -> String {
    if left.as_secs() < 60 {
        format!("{} s", left.as_secs().max(1))
    } else {
        duration(left)
    }
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
        let half = |share: f64| (share - 0.5).abs() < 0.01;
        // One large file, at its half.
        let large = Counts {
            found: 1,
            sized: 1,
            bytes: 1 << 30,
            bytes_found: 2 << 30,
            ..Counts::default()
        };
        assert!(half(share(&large)));
        let left = time_left(&large, Duration::from_secs(10)).unwrap();
        assert_eq!(left.as_secs(), 10);
        // Nothing but unchanged files.
        let unchanged = Counts {
            found: 1000,
            unchanged: 500,
            ..Counts::default()
        };
        assert!(half(share(&unchanged)));
        // Files of which nobody knows are taken to be like the others.
        let begun = Counts {
            found: 100,
            sized: 50,
            copied: 50,
            bytes: 50 << 20,
            bytes_found: 50 << 20,
            ..Counts::default()
        };
        assert!(half(share(&begun)));
        assert_eq!(share(&Counts::default()), 0.0);
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
