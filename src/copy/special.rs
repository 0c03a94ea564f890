//! Entries without contents: symbolic links, FIFOs, sockets, devices; and hard links.

use std::ffi::CStr;

use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::dir::DirPair;
use super::{Copier, Outcome, Plan};
use crate::config::{Keep, Overwrite};
use crate::fs::path::Kind;
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::Action;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::scoreboard::Ending;

impl Copier {
    /// Copies whatever is not a regular file or a folder.
    pub(super) fn other(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        to: &CStr,
        first_link: bool,
    ) -> Result<Outcome, CopyError> {
        let stamp = self.look(folder, from)?;
        match FileType::from_raw_mode(stamp.mode) {
            FileType::RegularFile => return self.file(folder, from, to, first_link),
            // It was something else when the folder was listed.
            FileType::Directory => return Err(CopyError::new(Step::Look, Reason::Changed)),
            _ => {}
        }
        if self.is_for_parent(&stamp, first_link) {
            return Ok(Outcome::HardLink(stamp));
        }
        let action = match self.plan(folder, from, to, first_link)? {
            Plan::Create => Action::Copy,
            Plan::Replace(action) => action,
            Plan::Leave(ending, action) => return Ok(Outcome::Done(ending, action)),
            Plan::HardLink(stamp) => return Ok(Outcome::HardLink(stamp)),
        };
        if self.context.config.dry_run {
            return Ok(Outcome::Done(Ending::Copied, action));
        }
        let file_type = FileType::from_raw_mode(stamp.mode);
        let making = self.making(action);
        let ((), partial) = if file_type == FileType::Symlink {
            let target = fs::readlinkat(folder.source(), from, Vec::new()).at(Step::ReadLink)?;
            self.make(folder, to, making, |dir, name| {
                fs::symlinkat(&target, dir, name).at(Step::Create)
            })?
        } else {
            let mode = Mode::from_raw_mode(self.special_mode(&stamp));
            self.make(folder, to, making, |dir, name| {
                fs::mknodat(dir, name, file_type, mode, stamp.rdev).at(Step::Create)
            })?
        };
        folder.learn_inheritance();
        self.dress_by_name(folder, from, &partial.name, &stamp)?;
        self.put_in_place(folder, partial, to)?;
        Ok(Outcome::Done(Ending::Copied, action))
    }

    /// Nobody else may use a FIFO or a device before its owner is right.
    fn special_mode(&self, stamp: &FileStat) -> u32 {
        let config = &self.context.config;
        match config.preserve.mode {
            Keep::No => 0o666 & !self.context.identity.umask,
            _ if config.preserve.ownership.is_wanted() => 0o600 & stamp.mode,
            _ => stamp.mode & 0o777,
        }
    }

    /// Makes `name` a hard link to an entry that this run has copied.
    ///
    /// # Errors
    /// What was tried and why it did not work.
    pub(crate) fn hard_link(
        &mut self,
        folder: &mut DirPair,
        (to_folder, to_name): (&DirPair, &CStr),
        (kind, from, name): (Kind, &CStr, &CStr),
    ) -> Result<Outcome, CopyError> {
        let config = &self.context.config;
        let target = to_folder.existing(to_name).at(Step::Link)?;
        let old = folder.existing(name).at(Step::LookAtDestination)?;
        if let Some(old) = &old
            && self.look(folder, from)?.inode == FileId::of(old)
        {
            return Ok(Outcome::Done(Ending::Unchanged, Action::LeaveSame));
        }
        if let (Some(old), Some(target)) = (&old, &target)
            && FileId::of(old) == FileId::of(target)
        {
            // In a dry run they are the same still where the first one is to be replaced.
            let replaced =
                config.dry_run && self.would_be_replaced(folder, from, &FileStat::of(target))?;
            return Ok(if replaced {
                Outcome::Done(Ending::Copied, Action::Link)
            } else {
                Outcome::Done(Ending::Unchanged, Action::LeaveUnchanged)
            });
        }
        // `older` and `never` may have left what has the first name: then that is no copy, and
        // this one goes its own way. And what they leave must not be replaced by a link either.
        if matches!(config.overwrite, Overwrite::Older | Overwrite::Never) {
            let new = self.look(folder, from)?;
            let mut is_copy = |stat: &Option<fs::Stat>| {
                stat.is_none_or(|stat| self.is_copy(folder, &FileStat::of(&stat), &new))
            };
            if !is_copy(&target) || !is_copy(&old) {
                return self.entry(folder, kind, from, name, true);
            }
        }
        let action = match old {
            None => Action::Copy,
            Some(old) if FileType::from_raw_mode(old.st_mode) == FileType::Directory => {
                return Err(CopyError::new(Step::Link, Reason::DirectoryInTheWay));
            }
            Some(old) if self.context.targets.is_source(FileId::of(&old)) => {
                return Err(CopyError::new(Step::Link, Reason::IsSource));
            }
            Some(_) if config.overwrite == Overwrite::Never => {
                return Ok(Outcome::Done(Ending::Skipped, Action::SkipExisting));
            }
            Some(_) => Action::ReplaceOtherKind,
        };
        if config.dry_run {
            return Ok(Outcome::Done(Ending::Copied, Action::Link));
        }
        let target_dir = to_folder.destination()?;
        let making = self.making(action);
        let made = self.make(folder, name, making, |dir, name| {
            fs::linkat(target_dir, to_name, dir, name, AtFlags::empty()).at(Step::Link)
        });
        match made {
            Ok(((), partial)) => self.put_in_place(folder, partial, name)?,
            // Another file system below the destination, one without hard links, or too many of
            // them: a copy of its own keeps the contents at least.
            Err(trouble)
                if config.preserve.links != Keep::Required && cannot_link(trouble.reason) =>
            {
                return self.entry(folder, kind, from, name, true);
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(Outcome::Done(Ending::Copied, Action::Link))
    }

    /// True when the destination's entry makes way for the source's.
    fn would_be_replaced(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        old: &FileStat,
    ) -> Result<bool, CopyError> {
        let new = self.look(folder, from)?;
        let difference = (!self.is_copy(folder, old, &new)).then_some(Action::ReplaceOtherKind);
        let verdict = self.verdict(difference, old, &new);
        Ok(matches!(verdict, Plan::Replace(_)))
    }

    /// True when the destination's entry looks like a copy of the source's.
    pub(super) fn is_copy(&mut self, folder: &mut DirPair, old: &FileStat, new: &FileStat) -> bool {
        let file_type = |stamp: &FileStat| FileType::from_raw_mode(stamp.mode);
        file_type(old) == file_type(new)
            && (old.size, old.rdev) == (new.size, new.rdev)
            && (!self.context.config.preserve.timestamps.is_wanted()
                || self.same_time(folder, old, new))
    }
}

fn cannot_link(reason: Reason) -> bool {
    [
        Errno::XDEV,
        Errno::MLINK,
        Errno::PERM,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
    ]
    .iter()
    .any(|&errno| reason == errno.into())
}
