//! How much there is to do, and which share of it is done.
//!
//! The workers know the sizes of the files that they have examined, and the names in the
//! directories that they have listed. The thread that counts ([`super::count`]) knows more names,
//! and sizes where these are cheap. Unknown sizes count with the average.

use std::time::Duration;

use super::count::Counted;
use crate::protocol::Counts;

/// The cost of a file besides its bytes, in bytes: about 60 µs at 1 GiB/s.
const COST_PER_FILE: f64 = 65536.0;
/// After this time of counting, or when half of the tree has been seen, what was seen stands for
/// the rest. Earlier, a percentage could be far too high, and it must not go back.
const MIN_COUNTING: Duration = Duration::from_millis(500);

/// How well a total is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ui) enum Precision {
    Exact,
    /// Not all sizes are known: an average stands for the others.
    About,
    /// There is more that has not been seen.
    AtLeast,
}

/// The state of a run at one moment, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) counts: Counts,
    pub(super) failed: u64,
    /// Every directory has been listed.
    pub(super) is_listed: bool,
    pub(super) counted: Option<Counted>,
}

/// How much there is to do, and how much of it is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) precision: Precision,
    pub(super) files_done: u64,
    pub(super) bytes_done: u64,
    /// In bytes and [`COST_PER_FILE`].
    pub(super) work_done: f64,
    pub(super) work: f64,
    /// The work says enough for a percentage and a time.
    pub(super) is_meaningful: bool,
}

impl Estimate {
    pub(super) fn new(known: &Known) -> Self {
        let counts = &known.counts;
        let counted = known.counted.unwrap_or_default();
        let is_counted = known.is_listed || counted.is_complete;
        let files = if known.is_listed {
            counts.found
        } else {
            counts.found.max(counted.files)
        };
        let files_done = (counts.done() + known.failed).min(files);
        let bytes_done = counts.bytes + counts.spared;

        // Symbolic links and the like are examined and have no size.
        let examined = counts.sized.max(counts.done());
        let (known_bytes, known_files) = if counted.sized > examined {
            (counted.bytes, counted.sized)
        } else {
            (counts.bytes_found, examined)
        };
        let average = known_bytes as f64 / known_files.max(1) as f64;
        let unknown = files.saturating_sub(known_files);
        let bytes = known_bytes + (average * unknown as f64) as u64;
        let bytes = bytes.max(counts.bytes_found).max(bytes_done);
        let precision = match (is_counted, unknown) {
            (false, _) => Precision::AtLeast,
            (true, 0) => Precision::Exact,
            (true, _) => Precision::About,
        };

        let cost_of = |files: u64| files as f64 * COST_PER_FILE;
        let failed_bytes = known.failed as f64 * average;
        let is_all_done = is_counted && files_done >= files;
        let seen = bytes as f64 + cost_of(files);
        let work = if is_counted {
            seen
        } else {
            (seen / counted.share.max(f64::MIN_POSITIVE)).max(seen)
        };
        let work_done = if is_all_done {
            // The sizes of what has failed are guesses.
            work
        } else {
            (bytes_done as f64 + failed_bytes).min(bytes as f64) + cost_of(files_done)
        };
        let has_seen_enough = counted.share >= 0.5 || counted.time >= MIN_COUNTING;
        Self {
            files,
            bytes,
            precision,
            files_done,
            bytes_done,
            work_done,
            work,
            is_meaningful: files > 0 && (is_counted || counted.share > 0.0 && has_seen_enough),
        }
    }

    /// Returns the percentage of the work that is done. 100 means that nothing is left.
    pub(super) fn percent(&self) -> Option<u8> {
        if !self.is_meaningful {
            return None;
        }
        let is_all = self.precision != Precision::AtLeast && self.files_done >= self.files;
        let share = (100.0 * self.work_done / self.work).min(99.0) as u8;
        Some(if is_all { 100 } else { share })
    }

    /// Returns how long the rest takes at this rate.
    pub(super) fn time_left(&self, work_per_second: f64) -> Option<Duration> {
        let rest = self.work - self.work_done;
        if !self.is_meaningful || work_per_second <= 0.0 || rest <= 0.0 {
            return None;
        }
        Duration::try_from_secs_f64(rest / work_per_second).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(counts: Counts, counted: Option<Counted>) -> Known {
        Known {
            counts,
            failed: 0,
            is_listed: counted.is_none(),
            counted,
        }
    }

    fn percent(known: &Known) -> Option<u8> {
        Estimate::new(known).percent()
    }

    #[test]
    fn the_share_follows_bytes_and_files() {
        let large = Counts {
            found: 1,
            sized: 1,
            bytes: 1 << 30,
            bytes_found: 2 << 30,
            ..Counts::default()
        };
        assert_eq!(percent(&known(large, None)), Some(49));
        // Unchanged files cost something too.
        let unchanged = Counts {
            found: 1000,
            unchanged: 500,
            ..Counts::default()
        };
        assert_eq!(percent(&known(unchanged, None)), Some(50));
        // Bytes that need no copy are done.
        let spared = Counts {
            found: 4,
            sized: 2,
            unchanged: 2,
            bytes_found: 2 << 30,
            spared: 2 << 30,
            ..Counts::default()
        };
        assert_eq!(percent(&known(spared, None)), Some(50));
        let nothing = known(Counts::default(), None);
        assert_eq!(percent(&nothing), None);
    }

    #[test]
    fn unexamined_files_count_with_the_average() {
        let counts = Counts {
            found: 100,
            sized: 50,
            copied: 50,
            bytes: 50 << 20,
            bytes_found: 50 << 20,
            ..Counts::default()
        };
        let estimate = Estimate::new(&known(counts, None));
        assert_eq!(estimate.percent(), Some(50));
        assert_eq!(
            (estimate.bytes, estimate.precision),
            (100 << 20, Precision::About)
        );
    }

    #[test]
    fn counting_comes_before_a_percentage() {
        let counts = Counts {
            found: 10,
            sized: 5,
            copied: 5,
            bytes: 5 << 20,
            bytes_found: 5 << 20,
            ..Counts::default()
        };
        let mut counted = Counted {
            files: 20,
            sized: 20,
            bytes: 20 << 20,
            share: 0.2,
            is_complete: false,
            time: Duration::from_millis(10),
        };
        assert_eq!(percent(&known(counts, Some(counted))), None);
        counted.time = MIN_COUNTING;
        let early = Estimate::new(&known(counts, Some(counted)));
        assert_eq!(early.precision, Precision::AtLeast);
        assert_eq!(early.bytes, 20 << 20);
        // 20 files are a fifth of the tree.
        assert_eq!(early.percent(), Some(5));
        (counted.is_complete, counted.share) = (true, 1.0);
        let late = Estimate::new(&known(counts, Some(counted)));
        assert_eq!(
            (late.percent(), late.precision),
            (Some(25), Precision::Exact)
        );
        assert_eq!(
            late.time_left(late.work / 4.0),
            Some(Duration::from_secs(3))
        );
        assert_eq!(late.time_left(0.0), None);
    }

    #[test]
    fn a_hundred_percent_is_the_end() {
        let counts = Counts {
            found: 2,
            sized: 2,
            copied: 1,
            bytes: 1 << 40,
            bytes_found: 1 << 40,
            ..Counts::default()
        };
        let mut known = known(counts, None);
        assert_eq!(percent(&known), Some(99));
        known.failed = 1;
        assert_eq!(percent(&known), Some(100));
    }
}
