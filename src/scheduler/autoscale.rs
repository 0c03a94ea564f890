//! How many workers there may be, and how many of them may copy contents at one time.
//!
//! These are two numbers. Workers list, create, and set metadata. That is work for the processor or
//! calls to a server, and many workers at once make it fast (2,000 files at 0.5 ms a call: 11 s
//! with 2 workers, 1.4 s with 32). So a run begins with one worker for each core. While all of them
//! have jobs and sleep, the number grows fourfold. It never shrinks. The contents are another
//! matter: on a disk with one head two readers are slower than one. [`Throughput`] says how many
//! may copy contents, and the gate on the scoreboard makes the others wait.
//!
//! The workers' own sleep decides: the time in which they neither ran nor waited for a processor
//! (schedstat). Neither the machine's idle time nor their processor time alone would do. Beside
//! other busy programs the machine is never idle. A worker gets little processor time although it
//! could use more, and more workers would only take it from each other.
//!
//! A worker that is stuck does not count: another one takes its place.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::throughput::{ASLEEP, Sample, Throughput};
use crate::fs::sys;
use crate::scoreboard::gate::Limit;
use crate::scoreboard::{GateState, Scoreboard, WorkerSlot};

/// The maximum number of workers without `-j`. Measured in `benches/README.md`.
const MAX: usize = 64;
/// How often to sample the workers.
pub(crate) const PERIOD: Duration = Duration::from_millis(20);
/// The same at the start, as long as workers wait for a device of which nothing is known yet. Two
/// workers on a file system that could serve 64 would lose most of the first tenth of a second.
const QUICK_PERIOD: Duration = Duration::from_millis(5);
const QUICK_START: Duration = Duration::from_millis(200);
/// The maximum number of workers whose time is read for one sample.
const SAMPLED: usize = 8;

/// The limits over a run.
#[derive(Debug)]
pub(crate) struct WorkerLimit {
    limit: usize,
    max: usize,
    automatic: Option<Automatic>,
}

/// State of a run without `-j`.
#[derive(Debug)]
struct Automatic {
    started: Instant,
    updated: Instant,
    throughput: Throughput,
    sleep: Sleep,
}

/// The limits that an update has changed.
#[derive(Debug, Default)]
pub(crate) struct LimitChanges {
    /// The new limit of workers.
    pub(crate) workers: Option<usize>,
    /// The decision as a line for `--debug`.
    pub(super) decision: Option<String>,
}

impl WorkerLimit {
    /// Starts with the user's number, or with one worker for each core.
    pub(crate) fn new(jobs: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let max = jobs.unwrap_or(MAX.max(cores));
        let now = Instant::now();
        Self {
            limit: jobs.unwrap_or(cores),
            max,
            automatic: jobs.is_none().then(|| Automatic {
                started: now,
                updated: now,
                throughput: Throughput::new(max),
                sleep: Sleep::default(),
            }),
        }
    }

    /// Returns how many workers there may be now.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the highest limit that the run can reach.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Returns true if the number of workers follows what they do.
    pub(crate) fn is_automatic(&self) -> bool {
        self.automatic.is_some()
    }

    /// Returns the time between two samples; `None` if the number of workers is fixed.
    pub(super) fn period(&self, now: Instant, scoreboard: Scoreboard) -> Option<Duration> {
        let automatic = self.automatic.as_ref()?;
        Some(automatic.period(now, scoreboard))
    }

    /// Allows one more worker in the place of a stuck one, however busy the machine is. Returns
    /// the new limit if it changes.
    pub(crate) fn replace_stuck(&mut self) -> Option<usize> {
        if self.limit >= self.max {
            return None;
        }
        self.limit += 1;
        Some(self.limit)
    }

    /// Samples the workers of the first `started` slots, if it is time to, and sets the limit of
    /// the gate. `busy` batches are in flight.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        busy: usize,
        scoreboard: Scoreboard,
        started: usize,
    ) -> LimitChanges {
        let Some(automatic) = &mut self.automatic else {
            return LimitChanges::default();
        };
        if now.saturating_duration_since(automatic.updated) < automatic.period(now, scoreboard) {
            return LimitChanges::default();
        }
        automatic.updated = now;
        let sample = automatic.sample(now, scoreboard, started);
        let phase = automatic.throughput.phase();
        let permits = automatic.throughput.update(&sample);
        if let Some(limit) = permits {
            scoreboard.gate.set_limit(limit);
        } else if automatic.throughput.limit() != Limit::Open && sample.asleep.is_some() {
            // Workers wait for a device: a file that is in memory by chance proves nothing.
            scoreboard.gate.become_old();
        }
        let workers = grown(self.limit, self.max, busy, &sample);
        self.limit = workers.unwrap_or(self.limit);
        let has_changed = workers.is_some()
            || permits.is_some()
            || sample.is_opened
            || phase != automatic.throughput.phase();
        LimitChanges {
            workers,
            decision: has_changed.then(|| automatic.describe(self.limit, &sample)),
        }
    }
}

/// Returns the new number of workers if it grows: while all of them have work and sleep. If most
/// of them wait at the gate, more would only wait there too.
fn grown(limit: usize, max: usize, busy: usize, sample: &Sample) -> Option<usize> {
    let is_asleep = sample.asleep.is_some_and(|asleep| asleep > ASLEEP);
    let may_grow = is_asleep
        && !sample.is_throttled
        && limit < max
        && busy >= limit
        && 2 * sample.waiting <= limit;
    may_grow.then(|| (4 * limit).min(max))
}

impl Automatic {
    fn period(&self, now: Instant, scoreboard: Scoreboard) -> Duration {
        let is_start = now.saturating_duration_since(self.started) < QUICK_START;
        if is_start && scoreboard.gate.limit() != Limit::Open {
            QUICK_PERIOD
        } else {
            PERIOD
        }
    }

    fn sample(&mut self, now: Instant, scoreboard: Scoreboard, started: usize) -> Sample {
        let slots = || (0..started).map(|worker| scoreboard.slot(worker));
        let (mut requests, mut work) = (0, 0);
        for slot in slots() {
            let (slot_requests, slot_work) = slot.work();
            requests += slot_requests;
            work += slot_work;
        }
        let is_waiting =
            |slot: &WorkerSlot| slot.gate() == GateState::Waiting && slot.job().is_some();
        let waiting = slots().filter(is_waiting).count();
        let is_open = scoreboard.gate.limit() == Limit::Open;
        let is_throttled = scoreboard.bandwidth.is_used_up();
        Sample {
            now: now.saturating_duration_since(self.started),
            requests,
            work,
            asleep: self.sleep.measure(now, slots(), waiting > 0),
            waiting,
            is_opened: is_open && self.throughput.limit() != Limit::Open,
            is_throttled,
        }
    }

    fn describe(&self, workers: usize, sample: &Sample) -> String {
        let contents = match self.throughput.limit() {
            Limit::Open => "all".to_owned(),
            Limit::Permits(permits) => permits.to_string(),
        };
        let asleep = sample
            .asleep
            .map_or("?".to_owned(), |asleep| format!("{:.0} %", 100.0 * asleep));
        format!(
            "debug: {:.3} s: {workers} workers, {contents} copy contents, {}; {} wait, asleep \
             {asleep}, {} requests, {:.1} MiB of work",
            sample.now.as_secs_f64(),
            self.throughput.phase(),
            sample.waiting,
            sample.requests,
            sample.work as f64 / f64::from(1 << 20),
        )
    }
}

/// How much the workers sleep.
#[derive(Debug, Default)]
struct Sleep {
    /// The last sample of each worker.
    seen: Vec<Option<Seen>>,
    /// The last result.
    last: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    now: Instant,
    /// Time in which the worker ran or was ready to.
    ready: Duration,
    waited: Duration,
}

impl Sleep {
    /// Returns the share of their time that some busy workers have slept since the last sample. If
    /// all of them wait at the gate, returns the last result again.
    fn measure(
        &mut self,
        now: Instant,
        slots: impl Iterator<Item = WorkerSlot>,
        has_waiters: bool,
    ) -> Option<f64> {
        let (mut there, mut asleep, mut sampled) = (Duration::ZERO, Duration::ZERO, 0);
        for (worker, slot) in slots.enumerate() {
            if self.seen.len() <= worker {
                self.seen.push(None);
            }
            // A sync says nothing about how fast files are copied.
            let is_busy = slot.job().is_some() && !slot.is_syncing();
            if is_busy && slot.gate() == GateState::Waiting {
                // The last sample stays: a later one covers the time before and after the wait.
                continue;
            }
            let ready = if is_busy && sampled < SAMPLED {
                slot.thread().and_then(ready_time)
            } else {
                None
            };
            let seen = ready.map(|ready| Seen {
                now,
                ready,
                waited: slot.waited(),
            });
            sampled += usize::from(seen.is_some());
            if let (Some(before), Some(seen)) =
                (std::mem::replace(&mut self.seen[worker], seen), seen)
            {
                let time = now.saturating_duration_since(before.now);
                let time = time.saturating_sub(seen.waited.saturating_sub(before.waited));
                there += time;
                asleep += time.saturating_sub(seen.ready.saturating_sub(before.ready));
            }
        }
        self.last = if there > Duration::ZERO {
            Some(asleep.as_secs_f64() / there.as_secs_f64())
        } else {
            self.last.filter(|_| has_waiters)
        };
        self.last
    }
}

/// Returns the time that a thread has run, and has waited for a processor.
fn ready_time(thread: Pid) -> Option<Duration> {
    let ran = sys::cpu_time(thread)?;
    let mut text = [0; 128];
    let file = File::open(format!("/proc/{}/schedstat", thread.as_raw_nonzero()));
    let length = file.and_then(|mut file| file.read(&mut text)).unwrap_or(0);
    // If the system does not tell, a wait for a processor counts as sleep.
    let delay = parse_delay(&String::from_utf8_lossy(&text[..length])).unwrap_or_default();
    Some(ran + delay)
}

/// Parses proc_pid_schedstat(5): nanoseconds run, waited for a processor, and the number of turns.
fn parse_delay(text: &str) -> Option<Duration> {
    let nanoseconds = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(asleep: f64, waiting: usize) -> Sample {
        Sample {
            now: Duration::ZERO,
            requests: 0,
            work: 0,
            asleep: Some(asleep),
            waiting,
            is_opened: false,
            is_throttled: false,
        }
    }

    #[test]
    fn the_kernels_line_is_parsed() {
        assert_eq!(parse_delay("12 34 5\n"), Some(Duration::from_nanos(34)));
        assert_eq!(parse_delay(""), None);
    }

    #[test]
    fn the_limit_grows_only_while_all_are_busy_and_sleep() {
        assert_eq!(grown(2, 64, 2, &sample(0.9, 0)), Some(8));
        assert_eq!(grown(32, 64, 99, &sample(0.9, 16)), Some(64));
        assert_eq!(grown(64, 64, 64, &sample(0.9, 0)), None, "there are enough");
        assert_eq!(grown(2, 64, 1, &sample(0.9, 0)), None, "a worker is free");
        assert_eq!(grown(2, 64, 2, &sample(0.3, 0)), None, "they work");
        assert_eq!(
            grown(8, 64, 8, &sample(0.9, 7)),
            None,
            "they wait at the gate"
        );
    }

    #[test]
    fn the_users_number_stays() {
        let mut limit = WorkerLimit::new(Some(3));
        let scoreboard = Scoreboard::new(3, 1, 3).unwrap();
        let later = Instant::now() + Duration::from_secs(1);
        let changes = limit.update(later, 3, scoreboard, 3);
        assert!(changes.workers.is_none() && changes.decision.is_none());
        assert_eq!(limit.replace_stuck(), None);
        assert_eq!(limit.limit(), 3);
        assert!(!limit.is_automatic());
        assert_eq!(scoreboard.gate.limit(), Limit::Open);
    }

    #[test]
    fn a_thread_that_sleeps_is_asleep_and_one_that_works_is_not() {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        let slot = scoreboard.slot(0);
        slot.set_thread(rustix::thread::gettid());
        let mut sleep = Sleep::default();
        let mut look = || sleep.measure(Instant::now(), [slot].into_iter(), false);
        assert_eq!(look(), None, "it has no job");
        slot.begin_job(1);
        assert_eq!(look(), None, "nothing to compare with");
        std::thread::sleep(Duration::from_millis(200));
        let asleep = look().unwrap();
        let start = sys::cpu_time(rustix::thread::gettid()).unwrap();
        let ran = || sys::cpu_time(rustix::thread::gettid()).unwrap() - start;
        while ran() < Duration::from_millis(200) {}
        let awake = look().unwrap();
        assert!(awake < asleep, "{awake} {asleep}");
    }
}
