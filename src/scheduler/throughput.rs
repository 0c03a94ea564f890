//! How many workers may copy contents at one time: as many as make the run faster.
//!
//! A disk with one head needs one: two readers make it seek back and forth, at a tenth of the
//! speed. A network needs many, and memory takes all. The measured rate decides, not how workers
//! wait. So this starts with one, measures, tries another number for as long, and keeps it if it is
//! faster.
//!
//! This is a state machine over samples. It reads neither clocks nor shared memory, so the tests
//! run it against simulated devices.

use std::time::Duration;

use crate::scoreboard::gate::Limit;

/// A worker that sleeps for this part of its time waits for a device.
pub(super) const ASLEEP: f64 = 0.5;
/// One that sleeps less than this works for the processor. Not more: on a machine with forty busy
/// programs, a worker at a slow disk spends half of its time waiting for a processor.
const AWAKE: f64 = 0.25;
/// Requests of each worker in a window. Windows are counted in requests: with time alone, a slow
/// device would be judged by chance (8 requests: 12 or 20 s for the same files).
const REQUESTS: u64 = 16;
/// If requests are answered fast, fewer make a window: so many in all, and of each worker, within this
/// time. They tell a device that serves many from one that serves one, which is enough at first.
const QUICK_REQUESTS: u64 = 8;
const QUICK_REQUESTS_EACH: u64 = 4;
const QUICK_WINDOW: Duration = Duration::from_millis(25);
/// The longest window in which anything was copied.
const LONGEST_WINDOW: Duration = Duration::from_secs(1);
/// If a window is as short as this, a mistake costs little, and larger steps are tried.
const SHORT_WINDOW: Duration = Duration::from_millis(50);
/// The first step up after a quick window. On a disk with one head it costs no more than a small
/// one: the probe ends after [`EARLIEST_END`].
const FIRST_LEAP: usize = 8;
/// The shortest time after which a probe is given up because it does harm.
const EARLIEST_END: Duration = Duration::from_millis(40);
/// More workers are kept if the rate grows by this factor.
const GAIN: f64 = 1.2;
/// Part of the ideal gain that makes the next step a large one.
const SCALING: f64 = 0.7;
/// Fewer workers are kept if they reach this part of the rate.
const NO_LOSS: f64 = 0.97;
/// A probe below this part of the rate does harm.
const HARM: f64 = 0.35;
/// A probe below this part of the rate is not prolonged.
const HOPE: f64 = 0.8;
/// Windows that a probe may take if it brings neither gain nor harm: it may only need time.
const PATIENCE: u32 = 3;
/// After a probe that failed, wait so many times as long as it has cost: probes cost 1 % of a run.
const REST: u32 = 100;
/// After the first one: on a busy machine it may have failed by chance.
const FIRST_REST: u32 = 20;
const SHORTEST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// A rate that is so many times as high or low is that of another device, or of other files.
const CHANGE: f64 = 2.0;
/// Samples that follow the last one sooner than this do not count for [`SURE`].
const SPACING: Duration = Duration::from_millis(15);
/// Samples in a row that must agree before an open gate is closed, or a half-open one opened.
const SURE: u32 = 4;

/// The work done so far, and the state of the workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Since the start of the run.
    pub(super) now: Duration,
    pub(super) requests: u64,
    pub(super) work: u64,
    /// The part of their time that workers sleep, without the time at the gate; `None` if that is
    /// unknown.
    pub(super) asleep: Option<f64>,
    /// Workers that wait at the gate.
    pub(super) waiting: usize,
    /// A worker has found that copying is work for the processor.
    pub(super) is_opened: bool,
    /// Workers wait because of `--bwlimit`. Their rate says nothing about the device.
    pub(super) is_throttled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No limit.
    Open {
        asleep: u32,
    },
    Measure {
        from: Mark,
        has_waiters: bool,
    },
    /// Another number is tried.
    Probe {
        from: Mark,
        known: Known,
    },
    /// The last probe failed. The next one must not come too soon.
    Rest {
        from: Mark,
        since: Duration,
        rest: Duration,
        rate: Option<f64>,
    },
}

/// The start of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    now: Duration,
    requests: u64,
    work: u64,
}

/// The measurement before a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    permits: usize,
    rate: f64,
    window: Duration,
}

impl Mark {
    fn of(sample: &Sample) -> Self {
        Self {
            now: sample.now,
            requests: sample.requests,
            work: sample.work,
        }
    }

    fn took(&self, sample: &Sample) -> Duration {
        sample.now.saturating_sub(self.now)
    }

    fn rate(&self, sample: &Sample) -> f64 {
        let seconds = self.took(sample).as_secs_f64();
        sample.work.saturating_sub(self.work) as f64 / seconds.max(1e-6)
    }

    /// Returns true if enough was copied by this many workers to tell the rate.
    fn is_window(&self, sample: &Sample, permits: usize) -> bool {
        let requests = sample.requests.saturating_sub(self.requests);
        let is_late = self.took(sample) >= LONGEST_WINDOW;
        let is_quick = self.took(sample) <= QUICK_WINDOW
            && requests >= QUICK_REQUESTS.max(QUICK_REQUESTS_EACH * permits as u64);
        let is_enough = requests >= REQUESTS * permits as u64;
        sample.work > self.work && (is_enough || is_quick || is_late)
    }
}

/// The number of workers that may copy contents, over a run.
#[derive(Debug)]
pub(super) struct Throughput {
    max: usize,
    limit: Limit,
    phase: Phase,
    /// Samples in a row in which workers hardly slept, and when the last one was taken.
    awake: u32,
    awake_at: Duration,
    /// Probes in a row that failed.
    failed: u32,
    /// The next probe is one with fewer workers.
    is_down_next: bool,
    /// A larger number has failed, so the best one may be between.
    has_overshot: bool,
    /// The last probe brought nearly as much for each worker as before.
    is_scaling: bool,
    /// The rate that made the present number the best one.
    best_rate: Option<f64>,
    /// Before this time, no probe with fewer workers is made without a reason.
    look_down_at: Duration,
    look_down_every: Duration,
    /// The start and length of the rest in which the gate was opened.
    resting: Option<(Duration, Duration)>,
}

impl Throughput {
    /// Begins with one worker; at most there are `max`.
    pub(super) fn new(max: usize) -> Self {
        let from = Mark {
            now: Duration::ZERO,
            requests: 0,
            work: 0,
        };
        Self {
            max,
            limit: Limit::Permits(1),
            phase: Phase::Measure {
                from,
                has_waiters: false,
            },
            awake: 0,
            awake_at: Duration::ZERO,
            failed: 0,
            is_down_next: false,
            has_overshot: false,
            is_scaling: false,
            best_rate: None,
            look_down_at: LONGEST_WINDOW,
            look_down_every: LONGEST_WINDOW,
            resting: None,
        }
    }

    pub(super) fn limit(&self) -> Limit {
        self.limit
    }

    /// Returns what it does at present, for `--debug`.
    pub(super) fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Open { .. } => "open",
            Phase::Measure { .. } => "measure",
            Phase::Probe { .. } => "probe",
            Phase::Rest { .. } => "rest",
        }
    }

    /// Takes a sample into account. Returns the new limit if it is to be set.
    pub(super) fn update(&mut self, sample: &Sample) -> Option<Limit> {
        let before = self.limit;
        if sample.is_opened && self.limit != Limit::Open {
            self.open();
        }
        if sample.is_throttled {
            self.pause(sample);
            return (self.limit != before).then_some(self.limit);
        }
        match sample.asleep {
            // No worker works, so there is nothing to measure.
            None => {
                if let Phase::Measure { .. } = self.phase {
                    self.measure(sample);
                }
            }
            Some(asleep) if asleep < AWAKE => {
                if sample.now.saturating_sub(self.awake_at) >= SPACING {
                    self.awake += 1;
                    self.awake_at = sample.now;
                }
                if self.limit == Limit::Open {
                    self.phase = Phase::Open { asleep: 0 };
                } else if self.awake >= SURE {
                    self.open();
                }
            }
            Some(asleep) => {
                self.awake = 0;
                self.step(sample, asleep >= ASLEEP);
            }
        }
        (self.limit != before).then_some(self.limit)
    }

    fn open(&mut self) {
        self.resting = match self.phase {
            Phase::Rest { since, rest, .. } if self.limit == Limit::Permits(1) => {
                Some((since, rest))
            }
            _ => None,
        };
        self.limit = Limit::Open;
        self.phase = Phase::Open { asleep: 0 };
    }

    /// Begins the present window anew. A probe is given up.
    fn pause(&mut self, sample: &Sample) {
        self.awake = 0;
        match &mut self.phase {
            Phase::Open { asleep } => *asleep = 0,
            Phase::Rest { from, .. } => *from = Mark::of(sample),
            Phase::Measure { .. } => self.measure(sample),
            Phase::Probe { known, .. } => {
                self.limit = Limit::Permits(known.permits);
                self.measure(sample);
            }
        }
    }

    fn measure(&mut self, sample: &Sample) {
        self.phase = Phase::Measure {
            from: Mark::of(sample),
            has_waiters: false,
        };
    }

    /// Begins anew with one worker.
    fn restart(&mut self, sample: &Sample) {
        self.limit = Limit::Permits(1);
        self.best_rate = None;
        self.is_down_next = false;
        self.has_overshot = false;
        self.is_scaling = false;
        self.failed = 0;
        self.measure(sample);
    }

    /// Begins anew after the gate was open. If one worker was known to be right, it may still be.
    fn close(&mut self, sample: &Sample) {
        self.restart(sample);
        if let Some((since, rest)) = self.resting.take() {
            self.phase = Phase::Rest {
                from: Mark::of(sample),
                since,
                rest,
                rate: None,
            };
        }
    }

    fn step(&mut self, sample: &Sample, is_asleep: bool) {
        let permits = match self.limit {
            Limit::Open => self.max,
            Limit::Permits(permits) => permits,
        };
        match &mut self.phase {
            Phase::Open { asleep } => {
                *asleep = if is_asleep { *asleep + 1 } else { 0 };
                if *asleep >= SURE {
                    self.close(sample);
                }
            }
            Phase::Measure { from, .. } if from.requests == 0 && sample.requests == 0 => {
                // Nothing has been copied so far.
                *from = Mark::of(sample);
            }
            Phase::Measure { from, has_waiters } => {
                *has_waiters |= sample.waiting > 0;
                let (from, has_waiters) = (*from, *has_waiters);
                if from.is_window(sample, permits) {
                    self.end_window(sample, from, permits, has_waiters);
                }
            }
            Phase::Probe { from, known } => {
                let (from, known) = (*from, *known);
                self.check_probe(sample, from, known, permits);
            }
            Phase::Rest {
                from,
                since,
                rest,
                rate,
            } => {
                let rested = sample.now.saturating_sub(*since);
                let mut is_over = rested >= *rest;
                if from.is_window(sample, permits) {
                    let now = from.rate(sample);
                    let before = *rate.get_or_insert(now);
                    let has_changed = now > CHANGE * before || now * CHANGE < before;
                    // Files of different sizes in turns must not cause endless probes.
                    is_over |= has_changed && 4 * rested >= *rest;
                    *from = Mark::of(sample);
                }
                if is_over {
                    self.measure(sample);
                }
            }
        }
    }

    /// Decides what to try next, with `permits` and the rate of this window.
    fn end_window(&mut self, sample: &Sample, from: Mark, permits: usize, has_waiters: bool) {
        let (rate, window) = (from.rate(sample), from.took(sample));
        if permits > 1
            && self
                .best_rate
                .is_some_and(|best_rate| 2.0 * CHANGE * rate < best_rate)
        {
            // Another disk, perhaps one that many workers slow down.
            return self.restart(sample);
        }
        self.best_rate = Some(self.best_rate.map_or(rate, |best_rate| best_rate.max(rate)));
        let may_look_down = self.is_down_next || sample.now >= self.look_down_at;
        let next = if has_waiters && permits < self.max && !self.is_down_next {
            let may_leap = (window <= SHORT_WINDOW || self.is_scaling) && !self.has_overshot;
            let step = if may_leap && permits == 1 && window <= QUICK_WINDOW {
                FIRST_LEAP
            } else if may_leap {
                4
            } else {
                2
            };
            (permits * step).min(self.max)
        } else if permits > 1 && may_look_down {
            permits / 2
        } else {
            return self.measure(sample);
        };
        self.limit = Limit::Permits(next);
        self.phase = Phase::Probe {
            from: Mark::of(sample),
            known: Known {
                permits,
                rate,
                window,
            },
        };
    }

    fn check_probe(&mut self, sample: &Sample, from: Mark, known: Known, permits: usize) {
        let (took, rate) = (from.took(sample), from.rate(sample));
        let is_up = permits > known.permits;
        let is_early = took < known.window;
        let harms = rate < HARM * known.rate;
        if is_early && !(harms && took >= EARLIEST_END && 2 * took >= known.window) {
            return;
        }
        let is_better = if is_up {
            rate > GAIN * known.rate
        } else {
            rate > NO_LOSS * known.rate
        };
        if is_better {
            self.failed = 0;
            self.best_rate = None;
            // Nearly as much for each worker as before: many more may pay.
            let more = permits as f64 / known.permits as f64;
            self.is_scaling = is_up && rate > SCALING * more * known.rate;
            // If not, the best one may lie within the first leap.
            let is_first_leap = known.permits == 1 && permits >= FIRST_LEAP;
            self.is_down_next = is_first_leap && !self.is_scaling;
            // The probe is the measurement for the next one.
            return self.end_window(sample, from, permits, sample.waiting > 0);
        }
        if is_up && rate > HOPE * known.rate && took < PATIENCE * known.window {
            return;
        }
        self.limit = Limit::Permits(known.permits);
        if !is_up {
            self.look_down_at = sample.now + self.look_down_every;
            self.look_down_every *= 2;
        }
        // After a leap that failed, a step follows.
        let is_leap = permits > 2 * known.permits;
        self.is_down_next = is_up && known.permits > 1 && !is_leap;
        self.has_overshot |= is_up;
        let lost = (1.0 - rate / known.rate.max(1.0)).clamp(0.0, 1.0);
        let factor = match self.failed {
            0 => FIRST_REST,
            failed => REST << (failed - 1).min(3),
        };
        let rest = took.mul_f64(lost) * factor;
        self.failed += 1;
        self.phase = Phase::Rest {
            from: Mark::of(sample),
            since: sample.now,
            rest: rest.clamp(SHORTEST_REST, LONGEST_REST),
            rate: Some(known.rate),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64;
    const LOOK: Duration = Duration::from_millis(20);

    /// A generator of repeatable random numbers (SplitMix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as f64 / u64::MAX as f64
        }
    }

    /// A table of throughput, in requests a second, by the number of workers that copy contents.
    #[derive(Clone, Copy, Debug)]
    enum Device {
        /// A disk: one reader is ten times as fast as several.
        OneHead(f64),
        /// A far server: each worker brings as much as the first.
        Monotone(f64),
        /// As many as this bring more.
        Saturating(f64, usize),
        /// More than this many are slower again.
        Peak(f64, usize),
    }

    impl Device {
        fn rate(self, workers: usize) -> f64 {
            let workers = workers.min(MAX) as f64;
            match self {
                Self::OneHead(rate) if workers > 1.0 => rate / 10.0,
                Self::OneHead(rate) => rate,
                Self::Monotone(rate) => rate * workers,
                Self::Saturating(rate, most) => rate * workers.min(most as f64),
                Self::Peak(rate, most) => {
                    rate * workers.min(most as f64) * (most as f64 / workers).min(1.0)
                }
            }
        }

        fn best(self) -> f64 {
            (1..=MAX).map(|it| self.rate(it)).fold(0.0, f64::max)
        }
    }

    /// Runs the controller against devices, each for some seconds. Returns how much of what the
    /// best fixed numbers would have brought it brings, for each of them.
    fn race(devices: &[(Device, f64)], noise: f64, seed: u64) -> Vec<f64> {
        let mut random = Random(seed);
        let mut throughput = Throughput::new(MAX);
        let (mut now, mut done) = (Duration::ZERO, 0.0);
        let mut shares = Vec::new();
        for &(device, seconds) in devices {
            let (start, before) = (now, done);
            while now - start < Duration::from_secs_f64(seconds) {
                // The parent is not always on time.
                let step = LOOK.mul_f64(1.0 + noise * random.next());
                now += step;
                let permits = match throughput.limit() {
                    Limit::Open => MAX,
                    Limit::Permits(permits) => permits,
                };
                let luck = 1.0 + noise * (2.0 * random.next() - 1.0);
                done += device.rate(permits) * step.as_secs_f64() * luck;
                let waiting = MAX - permits;
                let is_chance = random.next() < noise / 10.0;
                throughput.update(&Sample {
                    now,
                    requests: done as u64,
                    work: done as u64 * (512 << 10),
                    asleep: Some(if is_chance { 0.2 } else { 0.9 }),
                    waiting,
                    is_opened: false,
                    is_throttled: false,
                });
            }
            shares.push((done - before) / (device.best() * (now - start).as_secs_f64()));
        }
        shares
    }

    /// Returns the lowest and the mean share over a hundred seeds. The constants were chosen with
    /// seeds from 1,000 and 700,000 on; these were held out.
    fn races(devices: &[(Device, f64)], noise: f64) -> Vec<(f64, f64)> {
        const SEEDS: u64 = 100;
        let mut results = vec![(f64::MAX, 0.0); devices.len()];
        for seed in 2_000_000..2_000_000 + SEEDS {
            let shares = race(devices, noise, seed);
            for (result, share) in results.iter_mut().zip(shares) {
                *result = (result.0.min(share), result.1 + share / SEEDS as f64);
            }
        }
        results
    }

    #[track_caller]
    fn assert_shares(devices: &[(Device, f64)], noise: f64, wanted: &[(f64, f64)]) {
        let results = races(devices, noise);
        let is_good =
            |((least, mean), (low, high)): (&(f64, f64), &(f64, f64))| least >= low && mean >= high;
        let all = results.iter().zip(wanted).all(is_good);
        assert!(
            all,
            "{devices:?}, noise {noise}: {results:.3?}, wanted {wanted:?}"
        );
    }

    const NOISES: [f64; 3] = [0.0, 0.3, 0.6];

    #[test]
    fn one_head_gets_one_worker() {
        for noise in NOISES {
            assert_shares(&[(Device::OneHead(300.0), 5.0)], noise, &[(0.9, 0.95)]);
            assert_shares(&[(Device::OneHead(120.0), 20.0)], noise, &[(0.9, 0.95)]);
        }
    }

    #[test]
    fn a_network_gets_many() {
        for noise in NOISES {
            assert_shares(&[(Device::Monotone(1000.0), 5.0)], noise, &[(0.6, 0.9)]);
            assert_shares(&[(Device::Monotone(100.0), 10.0)], noise, &[(0.6, 0.8)]);
        }
    }

    #[test]
    fn a_device_gets_as_many_as_it_can_serve() {
        for noise in NOISES {
            for most in [4, 8, 20] {
                let device = Device::Saturating(500.0, most);
                assert_shares(&[(device, 10.0)], noise, &[(0.6, 0.85)]);
                assert_shares(&[(Device::Peak(500.0, most), 10.0)], noise, &[(0.4, 0.7)]);
            }
        }
    }

    #[test]
    fn another_device_gets_another_number() {
        let (head, network) = (Device::OneHead(300.0), Device::Monotone(300.0));
        for noise in NOISES {
            let wanted = &[(0.4, 0.8), (0.6, 0.8), (0.2, 0.6)];
            assert_shares(
                &[(network, 10.0), (head, 20.0), (network, 20.0)],
                noise,
                wanted,
            );
        }
    }

    #[test]
    fn work_for_the_processor_has_no_limit() {
        let mut throughput = Throughput::new(MAX);
        let mut sample = Sample {
            now: Duration::ZERO,
            requests: 1,
            work: 1,
            asleep: Some(0.1),
            waiting: 1,
            is_opened: false,
            is_throttled: false,
        };
        let mut look = |asleep, is_opened| {
            sample.now += LOOK;
            (sample.asleep, sample.is_opened) = (Some(asleep), is_opened);
            throughput.update(&sample)
        };
        for _ in 1..SURE {
            assert_eq!(look(0.1, false), None, "perhaps by chance");
        }
        assert_eq!(look(0.1, false), Some(Limit::Open));
        for _ in 0..10 {
            assert_eq!(
                look(0.9, false),
                None.or(look(0.1, false)),
                "a moment of sleep"
            );
        }
        for _ in 1..SURE {
            assert_eq!(look(0.9, false), None);
        }
        assert_eq!(look(0.9, false), Some(Limit::Permits(1)));
        assert_eq!(look(0.9, true), Some(Limit::Open), "a worker knows better");
    }

    #[test]
    fn nothing_is_decided_while_the_bandwidth_is_used_up() {
        let mut throughput = Throughput::new(MAX);
        let mut work = 0;
        for look in 0..5000_u32 {
            // Sometimes a worker has just got its turn, and nobody waits.
            work += 100_000;
            let sample = Sample {
                now: LOOK * look,
                requests: u64::from(look) * 4,
                work,
                asleep: Some(0.9),
                waiting: MAX - 1,
                is_opened: false,
                is_throttled: look % 10 != 9,
            };
            throughput.update(&sample);
            if sample.is_throttled {
                assert_eq!(throughput.limit(), Limit::Permits(1), "at look {look}");
            }
        }
    }

    #[test]
    fn nothing_is_decided_while_nobody_works() {
        let mut throughput = Throughput::new(MAX);
        for look in 0..1000 {
            let sample = Sample {
                now: LOOK * look,
                requests: 0,
                work: 0,
                asleep: None,
                waiting: 0,
                is_opened: false,
                is_throttled: false,
            };
            assert_eq!(throughput.update(&sample), None);
        }
    }
}
