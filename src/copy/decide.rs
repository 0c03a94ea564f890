//! Compares an entry with the destination, and decides what to do with it.

use std::ffi::CStr;
use std::ops::ControlFlow;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};

use super::dir::DirPair;
use super::handle::{Handle, Subject};
use super::learned::{is_possibly_clamped, is_safe};
use super::{Copier, Entry, EntryResult, file_type};
use crate::config::{Linking, Overwrite};
use crate::fs::file_system::FileSystem;
use crate::fs::granularity::{Granularity, PROBE, Time};
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::protocol::entry::{Decision, HardLinks};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::items::ChangeKind;

impl Copier {
    /// Decides what to do with an entry. Breaks with the result if there is nothing to write.
    ///
    /// If the destination does not have the name, the source is not examined here. That saves a
    /// system call, because the caller opens the source next.
    pub(super) fn decide(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<ControlFlow<EntryResult, Decision>, CopyError> {
        let dry_run = self.context.config.dry_run;
        if self.context.config.links.instead == Some(Linking::Symbolic) {
            return Ok(ControlFlow::Break(self.symlink_to_source(dir, entry)?));
        }
        let old = self.find_existing(dir, entry.to)?;
        if old.is_none() && self.context.config.filter.existing {
            return Ok(ControlFlow::Break(EntryResult::Done(Decision::SkipMissing)));
        }
        if old.is_none() && !dry_run {
            if self.context.config.itemize {
                let new = self.stat_source(dir, entry.from)?;
                self.itemize(dir, entry, None, &new, None);
            }
            return self.link_or_copy(dir, entry, Decision::Create);
        }
        if self.context.config.makes_room()
            && old.is_some_and(|old| file_type(&FileStat::of(&old)) == FileType::Directory)
        {
            // Before it joins its group of hard links, which it does once there is room for it.
            return Err(CopyError::new(Step::Create, Reason::DirectoryInTheWay));
        }
        let new = self.stat_source(dir, entry.from)?;
        if self.should_report(&new, entry.hard_links) {
            return Ok(ControlFlow::Break(EntryResult::HardLink(new)));
        }
        let old = old.map(|old| FileStat::of(&old));
        if let Some(old) = &old
            && self.should_divide_comparison(old, &new)
        {
            let file = Self::begin_comparison(entry, old, &new);
            return Ok(ControlFlow::Break(EntryResult::Chunked(file)));
        }
        let decision = match &old {
            Some(old) => self.compare(dir, entry, old, &new)?,
            None => Decision::Create,
        };
        if file_type(&new) == FileType::RegularFile && !decision.changes() {
            self.note_size(new.size);
            self.slot.add_spared(new.size);
        }
        if decision.changes() {
            self.itemize(dir, entry, old.as_ref(), &new, None);
        }
        if let Some(old) = &old
            && decision == Decision::LeaveUnchanged
        {
            if !self.needs_repair(dir, entry, old, &new) {
                return Ok(ControlFlow::Break(EntryResult::Done(decision)));
            }
            self.itemize(dir, entry, Some(old), &new, Some(ChangeKind::Metadata));
            if !dry_run && old.links > 1 && !self.context.config.links.snapshots.is_empty() {
                // The file is also that of an older snapshot, which must not change.
                return self.link_or_copy(dir, entry, Decision::UpdateMetadata);
            }
            let decision = self.repair_metadata(dir, entry, old, &new)?;
            return Ok(ControlFlow::Break(EntryResult::Done(decision)));
        }
        if !decision.changes() {
            return Ok(ControlFlow::Break(EntryResult::Done(decision)));
        }
        let next = self.link_or_copy(dir, entry, decision)?;
        if dry_run && next.is_continue() {
            if file_type(&new) == FileType::RegularFile {
                self.note_size(new.size);
                self.slot.add_bytes(new.size);
            }
            return Ok(ControlFlow::Break(EntryResult::Done(decision)));
        }
        Ok(next)
    }

    /// Makes an entry a link, or continues with copying it.
    fn link_or_copy(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        decision: Decision,
    ) -> Result<ControlFlow<EntryResult, Decision>, CopyError> {
        Ok(match self.link_instead(dir, entry, decision)? {
            Some(linked) => ControlFlow::Break(linked),
            None => ControlFlow::Continue(decision),
        })
    }

    /// Updates the metadata of an entry that needs it ([`Copier::needs_repair`]).
    pub(super) fn repair_metadata(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Result<Decision, CopyError> {
        if self.context.config.dry_run {
            return Ok(Decision::UpdateMetadata);
        }
        self.update_metadata(dir, entry, old, new)
    }

    /// Returns true if metadata of an entry differs whose contents are the same.
    pub(super) fn needs_repair(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        self.context.config.overwrite == Overwrite::Changed
            && (self.has_other_time(dir, old, new) || self.has_other_metadata(dir, entry, old, new))
    }

    /// Returns true with `--checksum` if the time must be repaired. Otherwise an entry with another
    /// time is not the same.
    fn has_other_time(&mut self, dir: &mut DirPair, old: &FileStat, new: &FileStat) -> bool {
        self.context.config.contents.checksum
            && self.context.config.preserve.timestamps.is_wanted()
            && !self.is_same_time(dir, old, new)
    }

    /// Decides about an entry whose name exists at the destination.
    fn compare(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Result<Decision, CopyError> {
        if new.id == old.id {
            return Ok(Decision::LeaveSame);
        }
        if file_type(old) == FileType::Directory {
            return Err(CopyError::new(Step::Create, Reason::DirectoryInTheWay));
        }
        if self.context.targets.is_source(old.id) {
            return Err(CopyError::new(Step::Create, Reason::IsSource));
        }
        let mut difference = self.difference(dir, entry, old, new)?;
        // With `--checksum` its contents were compared.
        let is_suspect = entry.suspect && !self.context.config.contents.checksum;
        if is_suspect && difference.is_none() && !self.is_existing_trusted() {
            // Reported as a difference of time, since times are set last.
            difference = Some(Decision::ReplaceTime);
        }
        let decision = self.apply_overwrite(difference, old, new);
        if decision.changes() {
            self.check_link(dir, entry, new, old)?;
        }
        Ok(decision)
    }

    /// Fails for a link that leads to the entry that it would replace. That entry would be lost,
    /// and the link would lead to itself.
    pub(super) fn check_link(
        &self,
        dir: &DirPair,
        entry: Entry<'_>,
        new: &FileStat,
        old: &FileStat,
    ) -> Result<(), CopyError> {
        if file_type(new) != FileType::Symlink || file_type(old) == FileType::Symlink {
            return Ok(());
        }
        match fs::statat(dir.source(), entry.from, AtFlags::empty()) {
            Ok(stat) if FileStat::of(&stat).id == old.id => {
                Err(CopyError::new(Step::Create, Reason::IsLinkedTo))
            }
            _ => Ok(()),
        }
    }

    /// Returns how the destination's entry differs from the source's.
    pub(super) fn difference(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Result<Option<Decision>, CopyError> {
        if file_type(old) != file_type(new) {
            return Ok(Some(Decision::ReplaceOtherKind));
        }
        if file_type(new) == FileType::Symlink {
            let from = fs::readlinkat(dir.source(), entry.from, Vec::new()).at(Step::ReadLink)?;
            let to = fs::readlinkat(dir.destination()?, entry.to, Vec::new())
                .at(Step::LookAtDestination)?;
            if from != to {
                return Ok(Some(Decision::ReplaceTarget));
            }
        } else if (old.size, old.rdev) != (new.size, new.rdev) {
            return Ok(Some(Decision::ReplaceSize));
        }
        if self.context.config.contents.checksum {
            let is_same = file_type(new) != FileType::RegularFile
                || self.has_same_contents(dir, entry, new)?;
            return Ok((!is_same).then_some(Decision::ReplaceContents));
        }
        Ok((!self.is_same_time(dir, old, new)).then_some(Decision::ReplaceTime))
    }

    /// Applies `--overwrite` to an existing entry. `difference` is `None` if it is the same.
    pub(super) fn apply_overwrite(
        &self,
        difference: Option<Decision>,
        old: &FileStat,
        new: &FileStat,
    ) -> Decision {
        match self.context.config.overwrite {
            Overwrite::Always => Decision::ReplaceAlways,
            Overwrite::Changed => difference.unwrap_or(Decision::LeaveUnchanged),
            Overwrite::Older | Overwrite::Never if difference.is_none() => Decision::LeaveUnchanged,
            // Entries of different types are replaced whichever is newer, as with rsync --update.
            Overwrite::Older if difference == Some(Decision::ReplaceOtherKind) => {
                Decision::ReplaceOtherKind
            }
            Overwrite::Older if old.mtime < new.mtime => Decision::ReplaceOlder,
            Overwrite::Older => Decision::SkipNewer,
            Overwrite::Never => Decision::SkipExisting,
        }
    }

    /// Returns true if `--overwrite` treats every existing entry as complete. Then no incomplete
    /// entry may have its final name even for a moment: after a kill, no later run would replace
    /// it.
    pub(super) fn is_existing_trusted(&self) -> bool {
        matches!(
            self.context.config.overwrite,
            Overwrite::Older | Overwrite::Never
        )
    }

    /// Returns true if the destination's entry looks like a copy of the source's.
    pub(super) fn is_copy(&mut self, dir: &mut DirPair, old: &FileStat, new: &FileStat) -> bool {
        file_type(old) == file_type(new)
            && (old.size, old.rdev) == (new.size, new.rdev)
            && (!self.context.config.preserve.timestamps.is_wanted()
                || self.is_same_time(dir, old, new))
    }

    /// Returns true for a hard link that the parent must decide about.
    pub(super) fn should_report(&self, stat: &FileStat, hard_links: HardLinks) -> bool {
        hard_links == HardLinks::Report
            && stat.links > 1
            && self.context.config.links.instead.is_none()
            && self.context.config.preserve.links.is_wanted()
    }

    pub(super) fn stat_source(&self, dir: &DirPair, from: &CStr) -> Result<FileStat, CopyError> {
        let flags = if self.context.config.dereference {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = fs::statat(dir.source(), from, flags).at(Step::Look)?;
        Ok(self.context.config.changes.apply(FileStat::of(&stat)))
    }

    /// Returns true if the destination's time is the source's, as far as the destination's file
    /// system can store it. The granularity is measured, not assumed. So a change within the same
    /// second goes unnoticed only if the file system cannot express it.
    pub(super) fn is_same_time(
        &mut self,
        dir: &mut DirPair,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        if old.mtime == new.mtime {
            return true;
        }
        if !Granularity::is_possibly_stored_as(new.mtime, old.mtime) {
            return !is_safe(new.mtime) && self.is_clamped(dir, old, new);
        }
        let granularity = if self.context.config.dry_run {
            // Reached only if the times differ by less than a step.
            let known = dir.destination().ok().and_then(FileSystem::of);
            known
                .and_then(Granularity::of_file_system)
                .unwrap_or_else(|| Granularity::guessed_from(old))
        } else {
            self.granularity(dir)
        };
        // In its last second a file system keeps no nanoseconds.
        granularity.keeps(new.mtime, old.mtime)
            || !is_safe(new.mtime) && self.is_clamped(dir, old, new)
    }

    /// Returns the destination's granularity, which is measured once for each file system.
    fn granularity(&mut self, dir: &mut DirPair) -> Granularity {
        let device = dir.devices().destination;
        let known = self
            .granularities
            .iter()
            .find(|(known, _)| *known == device);
        if let Some((_, granularity)) = known {
            return *granularity;
        }
        // If no file can be created here, none can be replaced either.
        let granularity = self.measure(dir).unwrap_or(Granularity::Exact);
        self.granularities.push((device, granularity));
        granularity
    }

    /// Returns true if the file system stored its limit instead of the source's time. Each run
    /// warns of that.
    fn is_clamped(&mut self, dir: &mut DirPair, old: &FileStat, new: &FileStat) -> bool {
        if self.context.config.dry_run {
            return is_possibly_clamped(new, old);
        }
        let device = dir.devices().destination;
        if !self.learned(device).clamps(new.mtime, old.mtime) {
            match self.probe(dir, new.mtime) {
                Ok(stored) if stored == old.mtime => {
                    self.learned(device).add_clamped(new.mtime, stored);
                }
                _ => return false,
            }
        }
        let subject = Subject {
            handle: Handle::Open(dir.source()),
            device,
            kind: Kind::of(file_type(new)),
        };
        self.note_ineffective(&subject, self.times_problem());
        true
    }

    /// Measures how exactly the destination stores times.
    fn measure(&mut self, dir: &mut DirPair) -> Result<Granularity, CopyError> {
        Ok(Granularity::learned_from(self.probe(dir, PROBE)?))
    }

    /// Sets the time of a temporary file and reads it back.
    fn probe(&mut self, dir: &mut DirPair, time: Time) -> Result<Time, CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = self.next_temp();
        // Dropping `_unfinished` at the end removes the file.
        let (file, _unfinished) = self.create(dir, c"", target, |dir, name| {
            fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).at(Step::Create)
        })?;
        let time = Timespec {
            tv_sec: time.0,
            tv_nsec: time.1,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        fs::futimens(&file, &times).at(Step::SetTimes)?;
        let stat = fs::fstat(&file).at(Step::LookAtDestination)?;
        Ok(FileStat::of(&stat).mtime)
    }
}
