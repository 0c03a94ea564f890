//! Notices workers that make no progress.

use std::time::{Duration, Instant};

use crate::scoreboard::Scoreboard;

/// After so long without progress a warning names entry and worker.
const WARN: Duration = Duration::from_secs(30);
/// How long a worker may take to die. One that takes longer sleeps uninterruptibly, in a call to
/// a dead disk or server.
const DYING: Duration = Duration::from_secs(2);
/// How often to look.
const PERIOD: Duration = Duration::from_millis(250);
/// After so long without progress others do what was dealt to a worker and is not begun.
const QUIET: Duration = Duration::from_secs(1);

/// What is the matter with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// No progress for a moment: what it has not begun is better done by others.
    Quiet {
        /// Its number.
        worker: usize,
    },
    /// No progress for some time; only to be told.
    Stalled {
        /// Its number.
        worker: usize,
        /// For how long.
        after: Duration,
    },
    /// No progress for as long as the user allows: it is to be killed.
    TimedOut {
        /// Its number.
        worker: usize,
    },
    /// It was killed and is still there.
    Unkillable {
        /// Its number.
        worker: usize,
    },
}

/// Watches all workers.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timeout: Option<Duration>,
    looked: Instant,
    workers: Vec<Watched>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    beats: u64,
    since: Instant,
    quiet: bool,
    warned: bool,
    killed: Option<Instant>,
    gone: bool,
}

impl Watchdog {
    /// Workers without progress for `timeout` are to be killed; none: never.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            looked: Instant::now(),
            workers: Vec::new(),
        }
    }

    /// Looks at the first `workers` workers.
    pub(crate) fn look(&mut self, now: Instant, board: Scoreboard, workers: usize) -> Vec<Stall> {
        if now - self.looked < PERIOD {
            return Vec::new();
        }
        // Stopped, or waiting for whoever reads its output, the parent has not looked; that time
        // says nothing about the workers, which may have waited for the parent.
        let not_looked = (now - self.looked).saturating_sub(4 * PERIOD);
        self.looked = now;
        let timeout = self.timeout;
        self.know(workers, now);
        let mut alarms = Vec::new();
        for (worker, watched) in self.workers.iter_mut().enumerate() {
            let slot = board.slot(worker);
            if watched.gone {
                continue;
            }
            watched.since = (watched.since + not_looked).min(now);
            watched.killed = watched.killed.map(|killed| (killed + not_looked).min(now));
            if let Some(killed) = watched.killed {
                if now - killed > DYING {
                    alarms.push(Stall::Unkillable { worker });
                }
                continue;
            }
            if slot.job().is_none() || slot.beats() != watched.beats {
                watched.beats = slot.beats();
                watched.since = now;
                watched.quiet = false;
                watched.warned = false;
                continue;
            }
            let after = now - watched.since;
            if after >= QUIET && !watched.quiet {
                watched.quiet = true;
                alarms.push(Stall::Quiet { worker });
            }
            if timeout.is_some_and(|timeout| after >= timeout) {
                watched.killed = Some(now);
                alarms.push(Stall::TimedOut { worker });
            } else if after >= WARN && !watched.warned {
                watched.warned = true;
                alarms.push(Stall::Stalled { worker, after });
            }
        }
        alarms
    }

    fn know(&mut self, workers: usize, now: Instant) {
        let new = Watched {
            beats: 0,
            since: now,
            quiet: false,
            warned: false,
            killed: None,
            gone: false,
        };
        self.workers.resize(workers.max(self.workers.len()), new);
    }

    /// A worker is no more. Gives the timeout where that is what it was killed for.
    pub(crate) fn forget(&mut self, worker: usize) -> Option<Duration> {
        // It may have died before it was ever looked at.
        self.know(worker + 1, Instant::now());
        let watched = self.workers.get_mut(worker)?;
        watched.gone = true;
        watched.killed.and(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_warned_of_once_and_then_killed() {
        let board = Scoreboard::new(1).unwrap();
        board.slot(0).begin_job(1);
        let mut watch = Watchdog::new(Some(Duration::from_secs(40)));
        let start = Instant::now() + Duration::from_secs(1);
        let mut last = 0;
        let mut at = |seconds| {
            // Not one of these looks gives another alarm.
            for half in 2 * last + 1..2 * seconds {
                let now = start + Duration::from_millis(500 * half);
                assert_eq!(watch.look(now, board, 1), []);
            }
            last = seconds;
            watch.look(start + Duration::from_secs(seconds), board, 1)
        };
        assert_eq!(at(0), []);
        assert_eq!(at(1), [Stall::Quiet { worker: 0 }]);
        assert_eq!(at(29), []);
        let after = Duration::from_secs(30);
        assert_eq!(at(30), [Stall::Stalled { worker: 0, after }]);
        assert_eq!(at(39), []);
        assert_eq!(at(40), [Stall::TimedOut { worker: 0 }]);
        assert_eq!(at(42), []);
        let end = start + Duration::from_millis(42_500);
        assert_eq!(watch.look(end, board, 1), [Stall::Unkillable { worker: 0 }]);
        assert_eq!(watch.forget(0), Some(Duration::from_secs(40)));
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let board = Scoreboard::new(1).unwrap();
        board.slot(0).begin_job(1);
        let mut watch = Watchdog::new(Some(Duration::from_secs(5)));
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(watch.look(start, board, 1), []);
        let later = start + Duration::from_secs(600);
        assert_eq!(watch.look(later, board, 1), [Stall::Quiet { worker: 0 }]);
    }

    #[test]
    fn who_dies_early_is_not_missed() {
        let board = Scoreboard::new(1).unwrap();
        board.slot(0).begin_job(1);
        let mut watch = Watchdog::new(Some(Duration::from_secs(1)));
        assert_eq!(watch.forget(0), None);
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(watch.look(later, board, 1), []);
        assert_eq!(watch.look(later + Duration::from_secs(60), board, 1), []);
    }

    #[test]
    fn progress_and_idleness_are_no_reason() {
        let board = Scoreboard::new(2).unwrap();
        board.slot(0).begin_job(1);
        let mut watch = Watchdog::new(None);
        let start = Instant::now() + Duration::from_secs(1);
        for second in 0..100 {
            board.slot(0).heartbeat();
            let now = start + Duration::from_secs(second);
            assert_eq!(watch.look(now, board, 2), []);
        }
    }
}
