//! How many workers there may be.
//!
//! On a local file system a copy is work for the processor: more workers than cores bring
//! nothing and cost up to 5 %. On a slow one, over a network say, workers mostly wait, and only
//! many of them at once bring the files over (2,000 files with 0.5 ms a call: 11 s with 2
//! workers, 1.4 s with 32). So a run begins with one worker for each core, and while all of them
//! are busy and the processors idle all the same, there may be four times as many.
//!
//! One that is stuck does not count: another worker takes its place.
//!
//! The idle time of the machine tells, not the processor time of the workers: on a machine that
//! is busy with something else the workers get little of it too, and more of them would only
//! take it from each other (kernel tree beside a compiler: 64 workers, 1.3 times the time).

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

/// The most workers that are tried without `-j`. Measured in `benches/README.md`.
const MOST: usize = 64;
/// How often to look: /proc/stat counts in hundredths of a second.
pub(crate) const PERIOD: Duration = Duration::from_millis(20);

/// Time that all processors together have spent so far, in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    /// As of now; none where the system does not tell.
    pub(crate) fn now() -> Option<Self> {
        // The first line is all that is wanted; the whole takes ten calls.
        let mut text = [0; 512];
        let length = File::open("/proc/stat").ok()?.read(&mut text).ok()?;
        Self::read(&String::from_utf8_lossy(&text[..length]))
    }

    /// proc_stat(5): `cpu`, then user, nice, system, idle, iowait and others.
    fn read(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu")?.split_whitespace();
        let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        Some(Self {
            idle: ticks.get(3)? + ticks.get(4)?,
            all: ticks.iter().take(8).sum(),
        })
    }
}

/// The number of workers over a run.
#[derive(Debug)]
pub(crate) struct WorkerLimit {
    limit: usize,
    most: usize,
    looked: Instant,
    ticks: Option<Ticks>,
}

impl WorkerLimit {
    /// Exactly `jobs` workers, or as many as pay.
    pub(crate) fn new(jobs: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            limit: jobs.unwrap_or(cores),
            most: jobs.unwrap_or(cores.max(MOST)),
            looked: Instant::now(),
            ticks: None,
        }
    }

    /// How many workers there may be now.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many there may ever be.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// True when it makes sense to look again.
    pub(crate) fn can_grow(&self) -> bool {
        self.limit < self.most
    }

    /// One more worker in the place of one that is stuck, however busy the machine is. Gives the
    /// new limit when it changes.
    pub(crate) fn one_more(&mut self) -> Option<usize> {
        if !self.can_grow() {
            return None;
        }
        self.limit += 1;
        Some(self.limit)
    }

    /// Looks at the machine, if it is time to, when `busy` workers have something to do. Gives
    /// the new limit when it changes.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        busy: usize,
        ticks: impl FnOnce() -> Option<Ticks>,
    ) -> Option<usize> {
        if !self.can_grow() || now - self.looked < PERIOD {
            return None;
        }
        self.looked = now;
        let (before, ticks) = (self.ticks, ticks()?);
        self.ticks = Some(ticks);
        let before = before?;
        let idle = ticks.idle.saturating_sub(before.idle);
        let all = ticks.all.saturating_sub(before.all);
        if busy < self.limit || idle * 2 <= all {
            return None;
        }
        self.limit = (4 * self.limit).min(self.most);
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        let ticks = Ticks::read("cpu  1 2 3 40 5 6 7 8 9 10\ncpu0 1").unwrap();
        assert_eq!((ticks.idle, ticks.all), (45, 72));
        assert!(Ticks::read("nothing").is_none());
    }

    #[test]
    fn workers_become_more_only_while_all_wait_and_processors_idle() {
        let mut crew = WorkerLimit::new(None);
        let start = crew.limit();
        let mut at = crew.looked;
        let mut look = |busy, idle, all| {
            at += PERIOD;
            crew.look(at, busy, || Some(Ticks { idle, all }))
        };
        assert_eq!(look(start, 0, 0), None, "nothing to compare with");
        assert_eq!(look(start, 0, 100), None, "processors are busy");
        assert_eq!(look(start - 1, 100, 200), None, "a worker is free");
        if start < MOST {
            assert_eq!(look(start, 200, 300), Some((4 * start).min(MOST)));
        }
    }

    #[test]
    fn what_the_user_says_is_what_there_is() {
        let mut crew = WorkerLimit::new(Some(3));
        let later = crew.looked + Duration::from_secs(1);
        assert_eq!(crew.look(later, 3, Ticks::now), None);
        assert_eq!(crew.one_more(), None);
        assert_eq!(crew.limit(), 3);
    }
}
