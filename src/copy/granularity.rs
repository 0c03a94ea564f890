//! How exactly a destination file system keeps times: FAT in steps of two seconds, others in
//! seconds or in tenths of microseconds. A copy's time is the source's as far as that goes.

use rustix::fs::{self, Mode, OFlags, Timespec, Timestamps};

use super::Copier;
use super::dir::DirPair;
use crate::fs::stat::FileStat;
use crate::protocol::error::{At, CopyError, Step};

/// Seconds and nanoseconds.
type Time = (i64, i64);

const SECOND: i128 = 1_000_000_000;
/// The steps that there are, in nanoseconds: FAT; ext3 and SFTP; exFAT; object stores; UDF; NTFS.
const STEPS: [i128; 6] = [2 * SECOND, SECOND, 10_000_000, 1_000_000, 1_000, 100];
/// A time that each of the steps cuts in another way.
const PROBE: Time = (1_000_000_001, 999_999_999);

/// The steps in which a file system keeps times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granularity {
    /// Every nanosecond, or in a way that is not understood: only equal times are equal.
    Exact,
    /// Multiples of so many nanoseconds.
    Step(i128),
}

impl Granularity {
    /// The grain of a file system that keeps `stored` for [`PROBE`].
    fn learned_from(stored: Time) -> Self {
        let step = STEPS.into_iter().find(|&step| cut(PROBE, step) == stored);
        step.map_or(Self::Exact, Self::Step)
    }

    /// What a dry run, which may write nothing, takes it for. Where the change time, which is the
    /// kernel's own, has no fraction of a second, none can be had.
    fn guessed_from(old: &FileStat) -> Self {
        let fits = |step| cut(old.mtime, step) == old.mtime && cut(old.ctime, step) == old.ctime;
        let step = STEPS[..2].iter().copied().find(|&step| fits(step));
        step.map_or(Self::Exact, Self::Step)
    }

    /// True when this is what the file system keeps of a source's time.
    fn keeps(self, time: Time, as_time: Time) -> bool {
        match self {
            Self::Exact => time == as_time,
            Self::Step(step) => cut(time, step) == as_time,
        }
    }
}

/// The last multiple of `step` nanoseconds that is not after `time`.
fn cut((seconds, nanoseconds): Time, step: i128) -> Time {
    let time = i128::from(seconds) * SECOND + i128::from(nanoseconds);
    let time = time - time.rem_euclid(step);
    (
        time.div_euclid(SECOND) as i64,
        time.rem_euclid(SECOND) as i64,
    )
}

impl Copier {
    /// True when the destination's time is the source's: the same, or as much of it as the
    /// destination's file system keeps. How much that is is tried out, not assumed, so that a
    /// change within a second goes unseen only where the file system cannot tell it.
    pub(super) fn same_time(
        &mut self,
        folder: &mut DirPair,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        if old.mtime == new.mtime {
            return true;
        }
        let could_be = STEPS
            .iter()
            .any(|&step| Granularity::Step(step).keeps(new.mtime, old.mtime));
        if !could_be {
            return false;
        }
        let grain = if self.context.config.dry_run {
            Granularity::guessed_from(old)
        } else {
            self.grain(folder)
        };
        grain.keeps(new.mtime, old.mtime)
    }

    /// The destination's grain; tried out once for each file system.
    fn grain(&mut self, folder: &mut DirPair) -> Granularity {
        let (_, device) = folder.devices();
        if let Some((_, grain)) = self.grains.iter().find(|(known, _)| *known == device) {
            return *grain;
        }
        // Where no file can be made there is nothing to be known, and nothing to be replaced.
        let grain = self.try_out(folder).unwrap_or(Granularity::Exact);
        self.grains.push((device, grain));
        grain
    }

    /// Gives a temporary file a time, and sees what is left of it.
    fn try_out(&mut self, folder: &mut DirPair) -> Result<Granularity, CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // It is removed when `_partial` is dropped, at the end.
        let making = self.temporary();
        let (file, _partial) = self.make(folder, c"", making, |dir, name| {
            fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).at(Step::Create)
        })?;
        let time = Timespec {
            tv_sec: PROBE.0,
            tv_nsec: PROBE.1,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        fs::futimens(&file, &times).at(Step::SetTimes)?;
        let stat = fs::fstat(&file).at(Step::LookAtDestination)?;
        Ok(Granularity::learned_from(FileStat::of(&stat).mtime))
    }
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
        // Rounded up: not understood, so nothing is assumed.
        assert_eq!(
            Granularity::learned_from((1_000_000_002, 0)),
            Granularity::Exact
        );
    }

    #[test]
    fn only_what_is_lost_in_the_step_is_forgiven() {
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
