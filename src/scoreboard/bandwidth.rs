//! `--bwlimit`: how many bytes all workers together may copy in a second.
//!
//! One word of shared memory holds the time until which the bandwidth is used up. A worker that
//! wants to copy some bytes adds the time that they take, with one compare-exchange, and waits
//! until the old time. So the workers' turns follow each other without gaps, first come, first
//! served. There are no counters that could disagree. Bandwidth that a worker does not use is given
//! back. A worker that dies while it waits costs the others its turn, which is short.
//!
//! Time in which no worker copied is lost, except for [`BURST`], which makes up for workers that
//! are woken late.

use std::num::NonZeroU64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::slot::WorkerSlot;

/// How much unused time can be made up for.
const BURST: Duration = Duration::from_millis(100);
/// A turn takes about this long, so that the rate is smooth.
const TURN: Duration = Duration::from_millis(50);
/// Bytes of a turn.
const SHORTEST_TURN: u64 = 512;
const LONGEST_TURN: u64 = 1 << 20;
/// How long a worker waits before it shows a heartbeat and checks whether the run stops.
const WAIT: Duration = Duration::from_millis(50);

/// The bandwidth of a run.
#[derive(Clone, Copy)]
pub(crate) struct Bandwidth {
    /// Until when it is used up, in nanoseconds of CLOCK_MONOTONIC.
    used_until: &'static AtomicU64,
}

impl Bandwidth {
    pub(super) fn new(used_until: &'static AtomicU64) -> Self {
        Self { used_until }
    }

    /// Waits until some of `wanted` bytes may be copied, and returns how many. Returns `None` if the
    /// run stops meanwhile.
    pub(crate) fn take(
        &self,
        rate: NonZeroU64,
        wanted: u64,
        slot: WorkerSlot,
        should_end: impl Fn() -> bool,
    ) -> Option<u64> {
        let bytes = wanted.min(turn(rate));
        let now = now();
        let start = reserve(self.used_until, now, time_of(rate, bytes));
        let mut wait = start.saturating_sub(now);
        if wait > 0 {
            // It waits for its turn and is not stuck, and it does not wait for a device.
            slot.add_waited(Duration::from_nanos(wait));
        }
        while wait > 0 {
            if should_end() {
                return None;
            }
            std::thread::sleep(WAIT.min(Duration::from_nanos(wait)));
            slot.heartbeat();
            wait = start.saturating_sub(self::now());
        }
        Some(bytes)
    }

    /// Gives back what was taken and not copied.
    pub(crate) fn give_back(&self, rate: NonZeroU64, bytes: u64) {
        let time = time_of(rate, bytes);
        let earlier = |until: u64| Some(until.saturating_sub(time));
        let _ = self.used_until.fetch_update(AcqRel, Acquire, earlier);
    }

    /// Returns true if workers wait for it.
    pub(crate) fn is_used_up(&self) -> bool {
        self.used_until.load(Acquire) > now()
    }
}

/// Returns the bytes of one turn.
fn turn(rate: NonZeroU64) -> u64 {
    let bytes = u128::from(rate.get()) * TURN.as_nanos() / 1_000_000_000;
    let bytes = (bytes as u64).clamp(SHORTEST_TURN, LONGEST_TURN);
    // Whole pages, if that is possible.
    if bytes > 4096 { bytes & !4095 } else { bytes }
}

/// Returns the nanoseconds that so many bytes take.
fn time_of(rate: NonZeroU64, bytes: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(rate.get())) as u64
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Reserves the next turn, of this length. Returns when it begins.
fn reserve(used_until: &impl Word, now: u64, length: u64) -> u64 {
    let earliest = now.saturating_sub(BURST.as_nanos() as u64);
    let next = |until: u64| until.max(earliest).saturating_add(length);
    used_until.update(next).max(earliest)
}

/// An atomic word: the one of std, or loom's in the model.
trait Word {
    /// Returns the value before.
    fn update(&self, next: impl Fn(u64) -> u64) -> u64;
}

macro_rules! atomic {
    ($word:ty) => {
        impl Word for $word {
            fn update(&self, next: impl Fn(u64) -> u64) -> u64 {
                let updated = self.fetch_update(AcqRel, Acquire, |word| Some(next(word)));
                updated.unwrap_or_default()
            }
        }
    };
}

atomic!(AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::Scoreboard;
    use loom::sync::Arc;
    use loom::thread;

    mod in_loom {
        use super::{AcqRel, Acquire, Word};
        atomic!(loom::sync::atomic::AtomicU64);
    }

    const SECOND: u64 = 1_000_000_000;

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[test]
    fn turns_of_two_workers_follow_each_other() {
        loom::model(|| {
            let word = Arc::new(loom::sync::atomic::AtomicU64::new(0));
            let other = {
                let word = Arc::clone(&word);
                thread::spawn(move || reserve(&*word, SECOND, 7))
            };
            let mine = reserve(&*word, SECOND, 7);
            let other = other.join().unwrap();
            assert_eq!(mine.abs_diff(other), 7);
        });
    }

    /// Lets workers copy for ten seconds of a made-up time. Each takes its next turn when the last
    /// one is over and some more time has passed. Returns the bytes of the turns that have begun.
    fn ten_seconds(rate: NonZeroU64, workers: usize, lateness: u64) -> u64 {
        let word = AtomicU64::new(0);
        let start = 100 * SECOND;
        let mut ready = vec![start; workers];
        let mut bytes = 0;
        loop {
            let (worker, &now) = ready.iter().enumerate().min_by_key(|it| it.1).unwrap();
            if now >= start + 10 * SECOND {
                return bytes;
            }
            let begin = reserve(&word, now, time_of(rate, turn(rate))).max(now);
            if begin < start + 10 * SECOND {
                bytes += turn(rate);
            }
            ready[worker] = begin + lateness;
        }
    }

    #[test]
    fn the_rate_is_exact_over_ten_seconds() {
        for bytes in [20_000, 102_400, 1 << 20, 100 << 20, 10 << 30] {
            for (workers, lateness) in [(1, 0), (1, 3_000_000), (4, 20_000_000), (64, 50_000_000)] {
                let rate = rate(bytes);
                if lateness > time_of(rate, turn(rate)) * workers as u64 {
                    continue; // They are slower than the limit.
                }
                let copied = ten_seconds(rate, workers, lateness);
                let share = copied as f64 / (10 * bytes) as f64;
                let turns = 1.0 + turn(rate) as f64 / (10 * bytes) as f64;
                assert!(share > 0.95, "{bytes}, {workers}, {lateness}: {share}");
                assert!(share < 1.04 + turns - 1.0, "{bytes}, {workers}: {share}");
            }
        }
    }

    #[test]
    fn time_in_which_nobody_copied_is_lost() {
        let word = AtomicU64::new(0);
        reserve(&word, 5 * SECOND, SECOND);
        assert_eq!(
            reserve(&word, 5 * SECOND, 1),
            6 * SECOND - BURST.as_nanos() as u64
        );
        assert_eq!(
            reserve(&word, 60 * SECOND, 1),
            60 * SECOND - BURST.as_nanos() as u64
        );
    }

    #[test]
    fn what_was_not_used_is_given_back() {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        let (bandwidth, slot) = (scoreboard.bandwidth, scoreboard.slot(0));
        let slow = rate(1000);
        assert!(!bandwidth.is_used_up());
        for _ in 0..8 {
            let taken = bandwidth
                .take(slow, 1 << 30, slot, || panic!("it waits"))
                .unwrap();
            bandwidth.give_back(slow, taken);
        }
        assert!(bandwidth.take(slow, 1 << 30, slot, || true).is_some());
        assert!(bandwidth.is_used_up());
        assert_eq!(bandwidth.take(slow, 1 << 30, slot, || true), None);
        assert!(slot.waited() > Duration::ZERO);
    }
}
