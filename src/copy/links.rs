//! Links instead of copies: `--link-dest`, `--link`, `--symbolic-link`.
//!
//! A file of an older snapshot is shared, so it is never changed: not its contents, which are
//! replaced by a rename in any case, and not its metadata (`copy/decide.rs`).

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self, AtFlags, FileType};

use super::dir::DirPair;
use super::{Copier, Entry, EntryResult, Unlinkable, file_type};
use crate::config::Linking;
use crate::fs::open::open_dir;
use crate::fs::path::RelPath;
use crate::fs::stat::FileStat;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::items::ChangeKind;

/// The directories of `--link-dest` that belong to the directory that was used last.
#[derive(Default)]
pub(super) struct Snapshots {
    of: Option<(usize, RelPath)>,
    pairs: Vec<DirPair>,
}

impl Copier {
    /// Makes an entry a link, if options say so. Returns `None` if it must be copied.
    pub(super) fn link_instead(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        decision: Decision,
    ) -> Result<Option<EntryResult>, CopyError> {
        if self.context.config.links.instead == Some(Linking::Hard) {
            return self.link_to_source(dir, entry, decision).map(Some);
        }
        if self.context.targets.snapshots().is_empty() {
            return Ok(None);
        }
        let new = self.stat_source(dir, entry.from)?;
        if self.should_report(&new, entry.hard_links) {
            return Ok(Some(EntryResult::HardLink(new)));
        }
        self.open_snapshots(dir);
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let result = self.link_to_first(dir, &mut snapshots.pairs, entry, decision, &new);
        self.snapshots = snapshots;
        result
    }

    fn link_to_first(
        &mut self,
        dir: &mut DirPair,
        snapshots: &mut [DirPair],
        entry: Entry<'_>,
        decision: Decision,
        new: &FileStat,
    ) -> Result<Option<EntryResult>, CopyError> {
        for snapshot in snapshots {
            let Ok(Some(old)) = snapshot.stat_destination(entry.to) else {
                continue;
            };
            let old = FileStat::of(&old);
            if self.is_same_in_snapshot(dir, snapshot, entry, &old, new) {
                return self.link_to_snapshot(dir, snapshot, entry, decision, new);
            }
        }
        Ok(None)
    }

    /// Returns true if a copy of the entry would be what the snapshot has.
    fn is_same_in_snapshot(
        &mut self,
        dir: &mut DirPair,
        snapshot: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        if file_type(old) != file_type(new) || old.id == new.id {
            return false;
        }
        if file_type(new) == FileType::Symlink {
            let text = |fd, name: &CStr| fs::readlinkat(fd, name, Vec::new()).ok();
            let Ok(destination) = snapshot.destination() else {
                return false;
            };
            let from = text(dir.source(), entry.from);
            if from.is_none() || from != text(destination, entry.to) {
                return false;
            }
        } else if (old.size, old.rdev) != (new.size, new.rdev) {
            return false;
        }
        // The granularity is measured at the destination, because nothing is written to a snapshot.
        let is_same_time =
            old.mtime == new.mtime || dir.destination().is_ok() && self.is_same_time(dir, old, new);
        is_same_time && !self.has_other_metadata(snapshot, entry, old, new)
    }

    /// Makes an entry a hard link to the one of a snapshot. Returns `None` if the file system
    /// refuses that: then it is copied.
    fn link_to_snapshot(
        &mut self,
        dir: &mut DirPair,
        snapshot: &DirPair,
        entry: Entry<'_>,
        decision: Decision,
        new: &FileStat,
    ) -> Result<Option<EntryResult>, CopyError> {
        if !self.context.config.dry_run {
            let old = snapshot.destination()?;
            let target = self.write_target(decision);
            let created = self.create(dir, entry.to, target, |dir, name| {
                fs::linkat(old, entry.to, dir, name, AtFlags::empty()).at(Step::Link)
            });
            let unfinished = match created {
                Ok(((), unfinished)) => unfinished,
                Err(error) if Unlinkable::from_error(&error).is_some() => return Ok(None),
                Err(error) => return Err(error),
            };
            self.commit_link_with_backup(dir, unfinished, entry.to, decision)?;
        }
        if file_type(new) == FileType::RegularFile {
            self.slot.add_size(new.size);
            self.slot.add_spared(new.size);
        }
        Ok(Some(EntryResult::Done(Decision::LinkSame)))
    }

    /// Opens the directories of all snapshots that stand for this directory.
    fn open_snapshots(&mut self, dir: &DirPair) {
        let Some(path) = dir.path() else {
            return;
        };
        let is_open = |(target, of): &(usize, RelPath)| *target == dir.target && of == path;
        if self.snapshots.of.as_ref().is_some_and(is_open) {
            return;
        }
        let target = &self.context.targets.list[dir.target];
        let whole = target.below_named.append(path);
        let roots = self.context.targets.snapshots();
        let opened = roots
            .iter()
            .filter_map(|root| open_dir(root.as_fd(), &whole).ok());
        self.snapshots = Snapshots {
            of: Some((dir.target, path.clone())),
            pairs: opened.filter_map(|fd| dir.beside(fd).ok()).collect(),
        };
    }

    /// Makes an entry a hard link to the source's.
    fn link_to_source(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        decision: Decision,
    ) -> Result<EntryResult, CopyError> {
        if self.context.config.itemize {
            let new = self.stat_source(dir, entry.from)?;
            self.itemize(dir, entry, None, &new, Some(ChangeKind::HardLink));
        }
        if !self.context.config.dry_run {
            let follow = if self.context.config.dereference {
                AtFlags::SYMLINK_FOLLOW
            } else {
                AtFlags::empty()
            };
            let source = dir.source();
            let target = self.write_target(decision);
            let ((), unfinished) = self.create(dir, entry.to, target, |dir, name| {
                fs::linkat(source, entry.from, dir, name, follow).at(Step::Link)
            })?;
            self.commit_link_with_backup(dir, unfinished, entry.to, decision)?;
        }
        Ok(EntryResult::Done(Decision::HardLink))
    }

    /// Makes an entry a symbolic link to the source's.
    pub(super) fn symlink_to_source(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let target = &self.context.targets.list[dir.target];
        let mut text = target.source_path.as_os_str().as_bytes().to_vec();
        let path = dir.path().map_or(&b""[..], RelPath::as_bytes);
        for part in [path, entry.from.to_bytes()] {
            if !part.is_empty() && !text.ends_with(b"/") {
                text.push(b'/');
            }
            text.extend_from_slice(part);
        }
        let old = self
            .find_existing(dir, entry.to)?
            .map(|old| FileStat::of(&old));
        let decision = match &old {
            None => Decision::Create,
            Some(old) => {
                let new = self.stat_source(dir, entry.from)?;
                self.decide_about_link(dir, entry, old, &new, &text)?
            }
        };
        if decision.changes() && self.context.config.itemize {
            let mut new = self.stat_source(dir, entry.from)?;
            new.mode = FileType::Symlink.as_raw_mode();
            self.itemize(dir, entry, None, &new, None);
        }
        if decision.changes() && !self.context.config.dry_run {
            let target = self.write_target(decision);
            let ((), unfinished) = self.create(dir, entry.to, target, |dir, name| {
                fs::symlinkat(&text[..], dir, name).at(Step::Create)
            })?;
            self.commit_with_backup(dir, unfinished, entry.to, decision)?;
        }
        Ok(EntryResult::Done(decision))
    }

    fn decide_about_link(
        &self,
        dir: &DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
        text: &[u8],
    ) -> Result<Decision, CopyError> {
        if old.id == new.id {
            return Ok(Decision::LeaveSame);
        }
        if file_type(old) == FileType::Directory {
            return Err(CopyError::new(Step::Create, Reason::DirectoryInTheWay));
        }
        if self.context.targets.is_source(old.id) {
            return Err(CopyError::new(Step::Create, Reason::IsSource));
        }
        if file_type(old) != FileType::Symlink {
            // A source that leads to this entry would lose what it leads to.
            self.check_link(dir, entry, new, old)?;
            return Ok(self.apply_overwrite(Some(Decision::ReplaceOtherKind), old, new));
        }
        let existing = fs::readlinkat(dir.destination()?, entry.to, Vec::new());
        let existing = existing.at(Step::LookAtDestination)?;
        let is_same = existing.as_bytes() == text;
        let difference = (!is_same).then_some(Decision::ReplaceTarget);
        Ok(self.apply_overwrite(difference, old, new))
    }
}
