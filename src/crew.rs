//! How many workers there may be.
//!
//! On a local file system a copy is work for the processor: more workers than cores bring
//! nothing and cost up to 5 %. On a slow one, over a network say, workers mostly wait, and only
//! many of them at once bring the files over (2,000 files with 0.5 ms a call: 11 s with 2
//! workers, 1.4 s with 32). So a run begins with one worker for each core, and while all of them
//! are busy and yet use little processor time, there may be twice as many.

use std::time::{Duration, Instant};

/// The most workers that are tried without `-j`. Measured in `benches/README.md`.
const MOST: usize = 64;
/// How often to look.
pub const PERIOD: Duration = Duration::from_millis(10);

/// The number of workers over a run.
#[derive(Debug)]
pub struct Crew {
    limit: usize,
    most: usize,
    cores: usize,
    looked: Instant,
    cpu: u64,
}

impl Crew {
    /// Exactly `jobs` workers, or as many as pay.
    pub fn new(jobs: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            limit: jobs.unwrap_or(cores),
            most: jobs.unwrap_or(cores.max(MOST)),
            cores,
            looked: Instant::now(),
            cpu: 0,
        }
    }

    /// How many workers there may be now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many there may ever be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// True when it makes sense to look again.
    pub fn can_grow(&self) -> bool {
        self.limit < self.most
    }

    /// Looks at what the workers do: `busy` of them have something to do, and all together have
    /// used `cpu` nanoseconds of processor time so far. Gives the new limit when it changes.
    pub fn look(&mut self, now: Instant, busy: usize, cpu: u64) -> Option<usize> {
        let passed = now - self.looked;
        if !self.can_grow() || passed < PERIOD {
            return None;
        }
        let used = cpu.saturating_sub(self.cpu) as f64 / passed.as_nanos() as f64;
        self.looked = now;
        self.cpu = cpu;
        if busy < self.limit || used > 0.5 * self.limit.min(self.cores) as f64 {
            return None;
        }
        self.limit = (2 * self.limit).min(self.most);
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_wait_become_more_and_busy_ones_do_not() {
        let mut crew = Crew::new(None);
        let start = crew.limit();
        let at = |ms| crew_start(&Crew::new(None)) + Duration::from_millis(ms);
        let full = start as u64 * 20_000_000;
        assert_eq!(crew.look(at(20), start, full), None);
        assert_eq!(crew.look(at(40), start - 1, full), None);
        if crew.can_grow() {
            assert_eq!(crew.look(at(60), start, full), Some((2 * start).min(MOST)));
        }
    }

    fn crew_start(crew: &Crew) -> Instant {
        crew.looked
    }

    #[test]
    fn what_the_user_says_is_what_there_is() {
        let mut crew = Crew::new(Some(3));
        let later = crew.looked + Duration::from_secs(1);
        assert_eq!(crew.look(later, 3, 0), None);
        assert_eq!(crew.limit(), 3);
    }
}
