//! Notices workers that make no progress.

use std::time::{Duration, Instant};

use crate::engine::KILL_TIMEOUT;
use crate::scoreboard::Scoreboard;

/// How often to check.
const PERIOD: Duration = Duration::from_millis(250);
/// After this long without progress, other workers get a worker's unclaimed jobs.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A change that the watchdog has noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// No progress for [`SLOW_AFTER`]: other workers get its unclaimed jobs.
    Slow,
    /// It makes progress again.
    Over,
    /// No progress for so long that the user should know.
    Warn { after: Duration },
    /// No progress for as long as the user allows.
    Kill,
    /// It was killed and does not die.
    Unkillable,
}

/// Watches all workers.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timeout: Option<Duration>,
    warn_after: Duration,
    checked: Instant,
    workers: Vec<Watched>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    heartbeats: u64,
    since: Instant,
    is_slow: bool,
    is_warned: bool,
    killed: Option<Instant>,
    is_gone: bool,
}

impl Watchdog {
    /// Warns of workers without progress for `warn_after`, and has them killed after `timeout`.
    pub(crate) fn new(now: Instant, timeout: Option<Duration>, warn_after: Duration) -> Self {
        Self {
            timeout,
            warn_after,
            checked: now,
            workers: Vec::new(),
        }
    }

    /// Checks the first `workers` workers, if it is time to. A worker that has work must show
    /// progress, even if it has not begun any of it: it may have been stopped before.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        scoreboard: Scoreboard,
        workers: usize,
        has_work: impl Fn(usize) -> bool,
    ) -> Vec<(usize, Stall)> {
        if now - self.checked < PERIOD {
            return Vec::new();
        }
        // If the parent was stopped, or waited for the reader of its output, the workers may have
        // waited for it. That time says nothing about them.
        let unwatched = (now - self.checked).saturating_sub(4 * PERIOD);
        self.checked = now;
        self.watch(workers, now);
        let (timeout, warn_after) = (self.timeout, self.warn_after);
        let mut stalls = Vec::new();
        for (worker, watched) in self.workers.iter_mut().enumerate() {
            let slot = scoreboard.slot(worker);
            if watched.is_gone {
                continue;
            }
            watched.since = (watched.since + unwatched).min(now);
            watched.killed = watched.killed.map(|killed| (killed + unwatched).min(now));
            if let Some(killed) = watched.killed {
                if now - killed > KILL_TIMEOUT {
                    stalls.push((worker, Stall::Unkillable));
                }
                continue;
            }
            if !has_work(worker) || slot.heartbeats() != watched.heartbeats {
                watched.heartbeats = slot.heartbeats();
                watched.since = now;
                watched.is_warned = false;
                if std::mem::take(&mut watched.is_slow) {
                    stalls.push((worker, Stall::Over));
                }
                continue;
            }
            let after = now - watched.since;
            if after >= SLOW_AFTER && !watched.is_slow {
                watched.is_slow = true;
                stalls.push((worker, Stall::Slow));
            }
            if timeout.is_some_and(|timeout| after >= timeout) {
                watched.killed = Some(now);
                stalls.push((worker, Stall::Kill));
            } else if after >= warn_after && !watched.is_warned {
                watched.is_warned = true;
                stalls.push((worker, Stall::Warn { after }));
            }
        }
        stalls
    }

    fn watch(&mut self, workers: usize, now: Instant) {
        let new = Watched {
            heartbeats: 0,
            since: now,
            is_slow: false,
            is_warned: false,
            killed: None,
            is_gone: false,
        };
        self.workers.resize(workers.max(self.workers.len()), new);
    }

    /// Stops watching a worker. Returns the timeout if the worker was killed for it.
    pub(crate) fn forget(&mut self, worker: usize, now: Instant) -> Option<Duration> {
        // It may have died before the first check.
        self.watch(worker + 1, now);
        let watched = self.workers.get_mut(worker)?;
        watched.is_gone = true;
        watched.killed.and(self.timeout)
    }

    /// Returns the worker that has made no progress for the longest time, and that time.
    pub(crate) fn longest_stall(&self, now: Instant) -> Option<(usize, Duration)> {
        let stalled = self.workers.iter().enumerate();
        let stalled = stalled.filter(|(_, it)| !it.is_gone && it.is_slow);
        let times = stalled.map(|(worker, it)| (worker, now.saturating_duration_since(it.since)));
        times.max_by_key(|&(_, time)| time)
    }

    /// Returns how many workers have made no progress for at least `time`.
    pub(crate) fn stalled(&self, now: Instant, time: Duration) -> usize {
        let is_stalled = |it: &&Watched| {
            !it.is_gone && it.is_slow && now.saturating_duration_since(it.since) >= time
        };
        self.workers.iter().filter(is_stalled).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARN_AFTER: Duration = Duration::from_secs(30);

    /// A worker that runs job 1, and a watchdog that has not checked it.
    fn one_worker(timeout: Option<Duration>) -> (Scoreboard, Watchdog, Instant) {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        scoreboard.slot(0).begin_job(1);
        let now = Instant::now();
        let watchdog = Watchdog::new(now, timeout, WARN_AFTER);
        (scoreboard, watchdog, now + Duration::from_secs(1))
    }

    #[test]
    fn a_worker_without_progress_is_passed_over_warned_of_and_killed() {
        let (scoreboard, mut watchdog, start) = one_worker(Some(Duration::from_secs(40)));
        let mut last = 0;
        let mut at = |seconds| {
            // None of the checks in between notices anything.
            for half in 2 * last + 1..2 * seconds {
                let now = start + Duration::from_millis(500 * half);
                assert_eq!(watchdog.check(now, scoreboard, 1, |_| true), []);
            }
            last = seconds;
            let stalls =
                watchdog.check(start + Duration::from_secs(seconds), scoreboard, 1, |_| {
                    true
                });
            stalls
                .into_iter()
                .map(|(_, stall)| stall)
                .collect::<Vec<_>>()
        };
        assert_eq!(at(0), []);
        assert_eq!(at(1), [Stall::Slow]);
        assert_eq!(at(29), []);
        let after = WARN_AFTER;
        assert_eq!(at(30), [Stall::Warn { after }]);
        assert_eq!(at(39), []);
        assert_eq!(at(40), [Stall::Kill]);
        assert_eq!(at(45), []);
        let end = start + Duration::from_millis(45_500);
        assert_eq!(
            watchdog.check(end, scoreboard, 1, |_| true),
            [(0, Stall::Unkillable)]
        );
        assert_eq!(watchdog.stalled(end, KILL_TIMEOUT), 1);
        let longest = watchdog.longest_stall(end).unwrap();
        assert_eq!(longest, (0, Duration::from_millis(45_500)));
        assert_eq!(watchdog.forget(0, end), Some(Duration::from_secs(40)));
        assert_eq!(watchdog.stalled(end, KILL_TIMEOUT), 0);
        assert_eq!(watchdog.longest_stall(end), None);
    }

    #[test]
    fn time_in_which_nobody_watched_does_not_count() {
        let (scoreboard, mut watchdog, start) = one_worker(Some(Duration::from_secs(5)));
        assert_eq!(watchdog.check(start, scoreboard, 1, |_| true), []);
        let later = start + Duration::from_secs(600);
        assert_eq!(
            watchdog.check(later, scoreboard, 1, |_| true),
            [(0, Stall::Slow)]
        );
    }

    #[test]
    fn a_worker_that_dies_early_is_not_watched() {
        let (scoreboard, mut watchdog, start) = one_worker(Some(Duration::from_secs(1)));
        assert_eq!(watchdog.forget(0, start), None);
        for minutes in 1..3 {
            let later = start + Duration::from_secs(60 * minutes);
            assert_eq!(watchdog.check(later, scoreboard, 1, |_| true), []);
        }
    }

    #[test]
    fn a_worker_that_goes_on_is_noticed_too() {
        let (scoreboard, mut watchdog, start) = one_worker(None);
        assert_eq!(watchdog.check(start, scoreboard, 1, |_| true), []);
        let second = Duration::from_secs(1);
        assert_eq!(
            watchdog.check(start + second, scoreboard, 1, |_| true),
            [(0, Stall::Slow)]
        );
        scoreboard.slot(0).heartbeat();
        let stalls = watchdog.check(start + 2 * second, scoreboard, 1, |_| true);
        assert_eq!(stalls, [(0, Stall::Over)]);
    }

    #[test]
    fn progress_and_idleness_are_no_stall() {
        let (_, mut watchdog, start) = one_worker(None);
        let scoreboard = Scoreboard::new(2, 1, 1).unwrap();
        let has_work = |worker| worker == 0;
        scoreboard.slot(0).begin_job(1);
        for second in 0..100 {
            scoreboard.slot(0).heartbeat();
            let now = start + Duration::from_secs(second);
            assert_eq!(watchdog.check(now, scoreboard, 2, has_work), []);
        }
    }
}
