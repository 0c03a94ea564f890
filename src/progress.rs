//! What a run shows of itself while it runs: the bar, and the lines that must not get mixed up
//! with it. The only file that names indicatif.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::board::Counts;
use crate::tally::{bytes, duration};

/// Redraws a second, at most.
const REDRAWS: u8 = 10;
/// Lines a second where stderr is no terminal but progress is wanted all the same.
const PLAIN_EVERY: Duration = Duration::from_secs(1);
/// A rate needs some time to be worth showing.
const SETTLED: Duration = Duration::from_millis(500);

/// The progress of a run, on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    plain: bool,
    start: Instant,
    drawn: Instant,
    counted: bool,
    stdout_failed: bool,
}

impl Progress {
    /// Shows progress where `wanted`: as a bar on a terminal, otherwise as a line now and then.
    pub fn new(wanted: bool) -> Self {
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
            counted: false,
            stdout_failed: false,
        }
    }

    /// How long the caller may wait until it calls [`Progress::update`] again, where anything
    /// is shown.
    pub fn period(&self) -> Option<Duration> {
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
    pub fn update(&mut self, counted: bool, counts: &Counts, entry: impl FnOnce() -> String) {
        let (Some(period), now) = (self.period(), Instant::now()) else {
            return;
        };
        if now - self.drawn < period {
            return;
        }
        self.drawn = now;
        let text = describe(counts, counted, now - self.start);
        let Some(bar) = &self.bar else {
            eprintln!("pcopy: {text}");
            return;
        };
        let done = counts.copied + counts.unchanged + counts.skipped;
        if counted && !self.counted {
            self.counted = true;
            bar.set_style(style("{bar:20} {percent:>3}% {wide_msg}"));
        }
        if counted {
            bar.set_length(counts.found);
            bar.set_position(done);
        }
        bar.set_message(format!("{text} {}", entry()));
        bar.tick();
    }

    /// A line on stderr, above the bar.
    pub fn error(&self, line: &str) {
        let print = || {
            // Where stderr is closed there is nobody to tell; the exit status tells.
            let _ = writeln!(std::io::stderr(), "pcopy: {line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Lines on stdout, above the bar. True at the first failure to print: the reader of a pipe
    /// has gone, say.
    pub fn print(&mut self, lines: &str) -> bool {
        if lines.is_empty() || self.stdout_failed {
            return false;
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
        self.stdout_failed
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn describe(counts: &Counts, counted: bool, elapsed: Duration) -> String {
    let done = counts.copied + counts.unchanged + counts.skipped;
    let mut text = if counted {
        format!("{done} of {} files, {}", counts.found, bytes(counts.bytes))
    } else {
        format!(
            "{done} of {}+ files (counting), {}",
            counts.found,
            bytes(counts.bytes)
        )
    };
    if counts.bytes_found > counts.bytes {
        text.push_str(&format!(" of {}", bytes(counts.bytes_found)));
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

/// The time that the rest will take if it goes on like this: by the number of files, or by the
/// bytes of those that were begun, whichever takes longer. Sizes of files that nobody has
/// opened yet are not known; looking at each before would cost more than the bar is worth.
fn time_left(counts: &Counts, elapsed: Duration) -> Option<Duration> {
    let left = |done: u64, all: u64| {
        (done > 0).then(|| elapsed.as_secs_f64() * all.saturating_sub(done) as f64 / done as f64)
    };
    let done = counts.copied + counts.unchanged + counts.skipped;
    let by_files = left(done, counts.found);
    let by_bytes = left(counts.bytes, counts.bytes_found);
    let seconds = match (by_files, by_bytes) {
        (Some(files), Some(bytes)) => files.max(bytes),
        (one, other) => one.or(other)?,
    };
    Duration::try_from_secs_f64(seconds).ok()
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
    fn a_large_file_counts_by_its_bytes() {
        let counts = Counts {
            found: 2,
            copied: 1,
            bytes: 10,
            bytes_found: 100,
            ..Counts::default()
        };
        let left = time_left(&counts, Duration::from_secs(1));
        assert_eq!(left, Some(Duration::from_secs(9)));
    }
}
