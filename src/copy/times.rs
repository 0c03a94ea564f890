//! Sets times, and checks that the destination keeps them.

use rustix::fs::{self, AtFlags, Mode, Timespec, Timestamps};

use super::Copier;
use super::dir::DirPair;
use super::handle::{Handle, Subject};
use super::issues::Problem;
use super::learned::is_safe;
use super::temp::Unfinished;
use crate::config::Keep;
use crate::fs::granularity::Granularity;
use crate::fs::open::ENTRY;
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::protocol::error::{At, CopyError, Step};
use crate::protocol::metadata::Property;

pub(super) fn times(stat: &FileStat) -> Timestamps {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time(stat.atime),
        last_modification: time(stat.mtime),
    }
}

impl Copier {
    /// Sets the times of an entry whose other metadata is set, if they are to be kept. Verifies
    /// them, if there is reason to.
    pub(super) fn apply_times(&mut self, subject: &Subject<'_>, stat: &FileStat) {
        let keep = self.context.config.preserve.timestamps;
        if !keep.is_wanted() || !self.set_times(subject, stat) {
            return;
        }
        let is_trusted = !self.learned(subject.device).ignores_times && is_safe(stat.mtime);
        if keep == Keep::Required || !is_trusted {
            let now = subject.handle.stat();
            if now.is_ok_and(|now| !is_stored(stat.mtime, now.mtime)) {
                self.note_ineffective(subject, self.times_problem());
            }
        }
    }

    pub(super) fn set_times(&mut self, subject: &Subject<'_>, stat: &FileStat) -> bool {
        match subject.handle.utimens(&times(stat)) {
            Ok(()) => {
                self.grant(subject, Property::Timestamps);
                true
            }
            Err(errno) => {
                self.refuse(subject, self.times_problem(), errno);
                false
            }
        }
    }

    pub(super) fn times_problem(&self) -> Problem {
        let keep = self.context.config.preserve.timestamps;
        Problem::new(keep, Property::Timestamps, Step::SetTimes)
    }

    /// Checks the times of a closed file, and sets them again if they changed. Some stores set them
    /// when they write the data.
    pub(super) fn recheck_times(
        &mut self,
        dir: &DirPair,
        unfinished: &Unfinished<'_>,
        stat: &FileStat,
    ) -> Result<(), CopyError> {
        let device = dir.devices().destination;
        let is_required = self.context.config.preserve.timestamps == Keep::Required;
        let has_data = usize::from(stat.size > 0);
        let learned = self.learned(device);
        if learned.keeps_times[has_data] && !learned.resets_times && !is_required {
            return Ok(());
        }
        let name = unfinished.name();
        let destination = dir.destination()?;
        let look = || {
            let found = fs::statat(destination, name, AtFlags::SYMLINK_NOFOLLOW);
            found.map(|found| is_stored(stat.mtime, FileStat::of(&found).mtime))
        };
        let reset = || {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            fs::utimensat(destination, name, &times(stat), flags)
        };
        let mut is_right = true;
        if !learned.resets_times {
            is_right = look().at(Step::LookAtDestination)?;
            if is_right {
                learned.keeps_times[has_data] = true;
                return Ok(());
            }
            learned.resets_times = true;
            learned.keeps_times[has_data] = false;
        }
        let looks = !is_right || is_required || learned.ignores_times;
        let result = reset();
        is_right = match result {
            Ok(()) if looks => look().at(Step::LookAtDestination)?,
            Ok(()) => true,
            Err(_) => false,
        };
        if is_right {
            return Ok(());
        }
        self.learned(device).ignores_times = true;
        let path =
            fs::openat(destination, name, ENTRY, Mode::empty()).at(Step::LookAtDestination)?;
        let subject = Subject {
            handle: Handle::path(&path, destination, name),
            device,
            kind: Kind::File,
        };
        let problem = self.times_problem();
        match result {
            Ok(()) => self.note_ineffective(&subject, problem),
            Err(errno) => self.refuse(&subject, problem, errno),
        }
        Ok(())
    }
}

/// Returns true if a time was stored, perhaps rounded down to a step that file systems have.
pub(super) fn is_stored(time: (i64, i64), stored: (i64, i64)) -> bool {
    time == stored || Granularity::is_possibly_stored_as(time, stored)
}
