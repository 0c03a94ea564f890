//! How long a run has been running, and how fast it is at the moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGCONT;

/// Rates are those of the last ten seconds: an average since the start would say little of now.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples are at least so far apart: forty of them fill the window.
const SPACING: Duration = Duration::from_millis(250);
/// A rate measured over less time is noise.
const MIN_TIME: Duration = Duration::from_millis(500);
/// The clock is read at least so often while the run is not stopped.
const PERIOD: Duration = Duration::from_millis(100);

/// The time of a run, without the time in which it was stopped (Ctrl-Z).
pub(super) struct Clock {
    start: Instant,
    read: Instant,
    stopped: Duration,
    /// Set by SIGCONT.
    continued: Arc<AtomicBool>,
}

impl Clock {
    /// Starts a clock. If `is_watching`, it learns from SIGCONT that the run was stopped, and must
    /// be read often.
    pub(super) fn start(is_watching: bool) -> Self {
        let continued = Arc::new(AtomicBool::new(false));
        if is_watching {
            // Without it, the time in which the run was stopped counts.
            let _ = signal_hook::flag::register(SIGCONT, Arc::clone(&continued));
        }
        let start = Instant::now();
        Self {
            start,
            read: start,
            stopped: Duration::ZERO,
            continued,
        }
    }

    /// Takes note of the present time. Returns true if the run was stopped meanwhile.
    pub(super) fn read(&mut self, now: Instant) -> bool {
        let gap = now.saturating_duration_since(self.read);
        self.read = now;
        let was_stopped = self.continued.swap(false, Relaxed);
        if was_stopped {
            self.stopped += gap.saturating_sub(PERIOD);
        }
        was_stopped
    }

    /// Returns how long the run has been running.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
            .saturating_sub(self.stopped)
    }
}

#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    bytes: u64,
    /// Work done, in the unit of [`super::estimate`].
    work: f64,
}

/// The progress in one second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) bytes: u64,
    pub(super) work: f64,
}

/// The last ten seconds of a run.
pub(super) struct Window {
    samples: VecDeque<Sample>,
}

impl Window {
    pub(super) fn new() -> Self {
        let start = Sample {
            at: Duration::ZERO,
            bytes: 0,
            work: 0.0,
        };
        Self {
            samples: VecDeque::from([start]),
        }
    }

    /// Adds what has been done until `at`, and returns the rate; `None` if it is too early.
    pub(super) fn add(&mut self, at: Duration, bytes: u64, work: f64) -> Option<Rate> {
        let newest = Sample { at, bytes, work };
        // The oldest one is the last sample from before the window.
        while self.samples.len() > 1 && self.samples[1].at + WINDOW <= at {
            self.samples.pop_front();
        }
        let oldest = *self.samples.front()?;
        let is_apart = |last: &Sample| at.saturating_sub(last.at) >= SPACING;
        if self.samples.back().is_some_and(is_apart) {
            self.samples.push_back(newest);
        }
        let time = at.saturating_sub(oldest.at);
        if time < MIN_TIME {
            return None;
        }
        // The unreported work of a lost worker no longer counts.
        let bytes = bytes.saturating_sub(oldest.bytes) as f64;
        Some(Rate {
            bytes: (bytes / time.as_secs_f64()) as u64,
            work: (work - oldest.work).max(0.0) / time.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let mut window = Window::new();
        assert_eq!(window.add(at(100), 1 << 30, 1.0), None, "too early");
        // 100 a second, then 10 a second.
        let mut bytes = 0;
        let mut rate = None;
        for tenth in 1..=600 {
            bytes += if tenth <= 300 { 10 } else { 1 };
            rate = window.add(at(100 * tenth), bytes, bytes as f64);
            if tenth == 300 {
                assert_eq!(rate.unwrap().bytes, 100);
            }
        }
        let rate = rate.unwrap();
        assert_eq!(rate.bytes, 10);
        assert!((rate.work - 10.0).abs() < 0.1);
        assert!(window.samples.len() < 50);
    }

    #[test]
    fn nothing_done_is_a_rate_of_zero() {
        let mut window = Window::new();
        for tenth in 1..=200 {
            window.add(at(100 * tenth), 5_000, 0.0);
        }
        assert_eq!(window.add(at(20_100), 4_000, 0.0).unwrap().bytes, 0);
    }

    #[test]
    fn the_time_in_which_a_run_was_stopped_does_not_count() {
        let mut clock = Clock::start(false);
        let start = clock.start;
        assert!(!clock.read(start + at(1_000)));
        clock.continued.store(true, Relaxed);
        assert!(clock.read(start + at(61_000)));
        assert!(!clock.read(start + at(61_100)));
        assert_eq!(clock.elapsed(start + at(61_100)), at(1_200));
        // A gap without SIGCONT counts: the parent waited, and the workers may have gone on.
        assert!(!clock.read(start + at(71_100)));
        assert_eq!(clock.elapsed(start + at(71_100)), at(11_200));
    }
}
