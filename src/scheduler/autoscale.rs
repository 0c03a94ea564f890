//! How many workers there may be.
//!
//! On a local file system copying is work for the processor. More workers than cores bring nothing
//! and cost up to 5 %. On a slow one, over a network say, workers mostly wait, and only many at
//! once make it fast (2,000 files at 0.5 ms a call: 11 s with 2 workers, 1.4 s with 32). So a run
//! begins with one worker for each core. While all of them are busy and the processors idle, the
//! limit grows fourfold.
//!
//! A worker that is stuck does not count: another one takes its place.
//!
//! The machine's idle time decides, not the workers' own processor time. On a machine that is busy
//! with something else the workers get little of it, and more of them would only take it from
//! each other (kernel tree beside a compiler: 64 workers took 1.3 times as long).

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

/// The most workers without `-j`. Measured in `benches/README.md`.
const MAX: usize = 64;
/// How often to look: /proc/stat counts in hundredths of a second.
pub(super) const PERIOD: Duration = Duration::from_millis(20);

/// Time that all processors together have spent so far, in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    /// Reads them; `None` if the system does not tell.
    pub(super) fn now() -> Option<Self> {
        // Only the first line is needed, and the whole file takes ten calls.
        let mut text = [0; 512];
        let length = File::open("/proc/stat").ok()?.read(&mut text).ok()?;
        Self::parse(&String::from_utf8_lossy(&text[..length]))
    }

    /// Parses proc_stat(5): `cpu`, then user, nice, system, idle, iowait and others.
    fn parse(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu")?.split_whitespace();
        let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        Some(Self {
            idle: ticks.get(3)? + ticks.get(4)?,
            all: ticks.iter().take(8).sum(),
        })
    }
}

/// The limit of workers over a run.
#[derive(Debug)]
pub(crate) struct WorkerLimit {
    limit: usize,
    max: usize,
    updated: Instant,
    ticks: Option<Ticks>,
}

impl WorkerLimit {
    /// Starts with what the user says, or with one worker for each core.
    pub(crate) fn new(jobs: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            limit: jobs.unwrap_or(cores),
            max: jobs.unwrap_or(MAX.max(cores)),
            updated: Instant::now(),
            ticks: None,
        }
    }

    /// Returns how many workers there may be now.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns how many there may ever be.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn can_grow(&self) -> bool {
        self.limit < self.max
    }

    /// Allows one more worker in the place of a stuck one, however busy the machine is. Returns
    /// the new limit if it changes.
    pub(super) fn replace_stuck(&mut self) -> Option<usize> {
        if !self.can_grow() {
            return None;
        }
        self.limit += 1;
        Some(self.limit)
    }

    /// Looks at the machine, if it is time to, while `busy` workers have something to do. Returns
    /// the new limit if it changes.
    pub(super) fn update(
        &mut self,
        now: Instant,
        busy: usize,
        ticks: impl FnOnce() -> Option<Ticks>,
    ) -> Option<usize> {
        if !self.can_grow() || now - self.updated < PERIOD {
            return None;
        }
        self.updated = now;
        let (before, ticks) = (self.ticks, ticks()?);
        self.ticks = Some(ticks);
        let before = before?;
        let idle = ticks.idle.saturating_sub(before.idle);
        let all = ticks.all.saturating_sub(before.all);
        if busy < self.limit || idle * 2 <= all {
            return None;
        }
        self.limit = (4 * self.limit).min(self.max);
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_parsed() {
        let ticks = Ticks::parse("cpu  1 2 3 40 5 6 7 8 9 10\ncpu0 1").unwrap();
        assert_eq!((ticks.idle, ticks.all), (45, 72));
        assert!(Ticks::parse("nothing").is_none());
    }

    #[test]
    fn the_limit_grows_only_while_all_wait_and_processors_idle() {
        let mut limit = WorkerLimit::new(None);
        let start = limit.limit();
        let mut at = limit.updated;
        let mut update = |busy, idle, all| {
            at += PERIOD;
            limit.update(at, busy, || Some(Ticks { idle, all }))
        };
        assert_eq!(update(start, 0, 0), None, "nothing to compare with");
        assert_eq!(update(start, 0, 100), None, "processors are busy");
        assert_eq!(update(start - 1, 100, 200), None, "a worker is free");
        if start < MAX {
            assert_eq!(update(start, 200, 300), Some((4 * start).min(MAX)));
        }
    }

    #[test]
    fn the_users_number_stays() {
        let mut limit = WorkerLimit::new(Some(3));
        let later = limit.updated + Duration::from_secs(1);
        assert_eq!(limit.update(later, 3, Ticks::now), None);
        assert_eq!(limit.replace_stuck(), None);
        assert_eq!(limit.limit(), 3);
    }
}
