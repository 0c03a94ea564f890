//! How exactly a file system stores times: FAT in steps of two seconds, others in seconds, NTFS in
//! tenths of microseconds. A copied time equals the source's time, rounded down to such a step.

use crate::fs::file_system::FileSystem;
use crate::fs::stat::FileStat;

/// Seconds and nanoseconds.
pub(crate) type Time = (i64, i64);

const SECOND: i128 = 1_000_000_000;
/// The known steps in nanoseconds, of FAT, ext3 and SFTP, exFAT, object stores, UDF, and NTFS.
const STEPS: [i128; 6] = [2 * SECOND, SECOND, 10_000_000, 1_000_000, 1_000, 100];
/// A time that each of the steps rounds to a different value.
pub(crate) const PROBE: Time = (1_000_000_001, 999_999_999);

/// The steps in which a file system stores times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granularity {
    /// Every nanosecond, or rounding that pcopy does not understand: only equal times match.
    Exact,
    /// Multiples of this many nanoseconds.
    Step(i128),
}

impl Granularity {
    /// Returns the granularity of a file system that stored [`PROBE`] as `stored`.
    pub(crate) fn learned_from(stored: Time) -> Self {
        let step = STEPS.into_iter().find(|&step| cut(PROBE, step) == stored);
        step.map_or(Self::Exact, Self::Step)
    }

    /// Guesses the granularity from an existing entry, for a dry run, which must not write a
    /// probe. The kernel sets the change time itself. If that is no multiple of a step, the file
    /// system can store more than multiples of it.
    pub(crate) fn guessed_from(old: &FileStat) -> Self {
        let fits = |step| cut(old.mtime, step) == old.mtime && cut(old.ctime, step) == old.ctime;
        let step = STEPS.into_iter().find(|&step| fits(step));
        step.map_or(Self::Exact, Self::Step)
    }

    /// Returns the granularity of a file system, if its kind decides it. A change time in memory can
    /// be finer than the stored one, so the kind is safer than a guess.
    pub(crate) fn of_file_system(file_system: FileSystem) -> Option<Self> {
        match file_system {
            FileSystem::Fat => Some(Self::Step(2 * SECOND)),
            FileSystem::ExFat => Some(Self::Step(10_000_000)),
            FileSystem::Ntfs3 | FileSystem::Smb => Some(Self::Step(100)),
            _ => None,
        }
    }

    /// Returns true if the file system stores `time` as `stored`.
    pub(crate) fn keeps(self, time: Time, stored: Time) -> bool {
        match self {
            Self::Exact => time == stored,
            Self::Step(step) => cut(time, step) == stored,
        }
    }

    /// Returns true if some known granularity stores `time` as `stored`.
    pub(crate) fn is_possibly_stored_as(time: Time, stored: Time) -> bool {
        STEPS
            .iter()
            .any(|&step| Self::Step(step).keeps(time, stored))
    }
}

/// Rounds a time down to a multiple of `step` nanoseconds.
fn cut((seconds, nanoseconds): Time, step: i128) -> Time {
    let time = i128::from(seconds) * SECOND + i128::from(nanoseconds);
    let time = time - time.rem_euclid(step);
    (
        time.div_euclid(SECOND) as i64,
        time.rem_euclid(SECOND) as i64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_recognised() {
        assert_eq!(Granularity::learned_from(PROBE), Granularity::Exact);
        assert_eq!(
            Granularity::learned_from((1_000_000_000, 0)),
            Granularity::Step(2 * SECOND)
        );
        assert_eq!(
            Granularity::learned_from((1_000_000_001, 0)),
            Granularity::Step(SECOND)
        );
        assert_eq!(
            Granularity::learned_from((1_000_000_001, 999_999_900)),
            Granularity::Step(100)
        );
        // Rounded up, which pcopy does not understand: it must not assume anything.
        assert_eq!(
            Granularity::learned_from((1_000_000_002, 0)),
            Granularity::Exact
        );
    }

    #[test]
    fn a_dry_run_guesses_each_step() {
        let file = tempfile::tempfile().unwrap();
        let stat = FileStat::of(&rustix::fs::fstat(file).unwrap());
        let guess = |nanoseconds| {
            let time = (1_000_000_001, nanoseconds);
            Granularity::guessed_from(&FileStat {
                mtime: time,
                ctime: time,
                ..stat
            })
        };
        assert_eq!(guess(0), Granularity::Step(SECOND));
        assert_eq!(guess(120_000_000), Granularity::Step(10_000_000));
        assert_eq!(guess(123_456_700), Granularity::Step(100));
        assert_eq!(guess(123_456_789), Granularity::Exact);
        // The change time alone shows that it can be stored.
        let finer = FileStat {
            mtime: (2, 0),
            ctime: (2, 1),
            ..stat
        };
        assert_eq!(Granularity::guessed_from(&finer), Granularity::Exact);
    }

    #[test]
    fn only_a_difference_within_one_step_is_ignored() {
        let fat = Granularity::Step(2 * SECOND);
        assert!(fat.keeps((11, 5), (10, 0)));
        assert!(fat.keeps((10, 0), (10, 0)));
        assert!(!fat.keeps((12, 0), (10, 0)));
        assert!(!fat.keeps((9, 999_999_999), (10, 0)));
        assert!(!fat.keeps((11, 5), (11, 0)));
        // Before 1970 too.
        assert!(fat.keeps((-1, 5), (-2, 0)));
        assert!(!Granularity::Exact.keeps((11, 5), (11, 4)));
    }
}
