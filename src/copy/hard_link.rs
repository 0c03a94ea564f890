//! Hard links to entries that this run has copied.

use std::ffi::CStr;

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::dir::DirPair;
use super::{Copier, Entry, EntryResult, file_type};
use crate::config::{Keep, Overwrite};
use crate::fs::stat::FileStat;
use crate::protocol::entry::{Decision, HardLinks};
use crate::protocol::error::{At, CopyError, Reason, Step};

/// The copy of an entry's other name, to which it becomes a hard link.
#[derive(Clone, Copy)]
pub(crate) struct LinkTarget<'a> {
    pub(crate) dir: &'a DirPair,
    /// The name at the destination.
    pub(crate) name: &'a CStr,
}

impl Copier {
    /// Makes an entry a hard link to the copy of its other name. Copies it if that is not possible.
    pub(crate) fn hard_link(
        &mut self,
        dir: &mut DirPair,
        target: LinkTarget<'_>,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let config = &self.context.config;
        let as_copy = Entry {
            hard_links: HardLinks::Copy,
            ..entry
        };
        let leader = target.dir.stat_destination(target.name).at(Step::Link)?;
        let leader = leader.map(|stat| FileStat::of(&stat));
        let old = dir.existing(entry.to).at(Step::LookAtDestination)?;
        let old = old.map(|stat| FileStat::of(&stat));
        if let Some(old) = &old
            && self.stat_source(dir, entry.from)?.id == old.id
        {
            return Ok(EntryResult::Done(Decision::LeaveSame));
        }
        if let (Some(old), Some(leader)) = (&old, &leader)
            && old.id == leader.id
        {
            // In a dry run they are the same even if the leader would be replaced.
            let is_replaced = config.dry_run && self.would_replace(dir, entry, leader)?;
            return Ok(EntryResult::Done(if is_replaced {
                Decision::HardLink
            } else {
                Decision::LeaveUnchanged
            }));
        }
        // `older` and `never` may have left another file under the leader's name. If that is not
        // a copy of the source, this entry must not become a link to it. Nor must a link replace
        // a file that they would leave under this entry's name.
        if self.is_existing_trusted() {
            let new = self.stat_source(dir, entry.from)?;
            for existing in [&leader, &old].into_iter().flatten() {
                if !self.is_copy(dir, existing, &new) {
                    return self.copy_entry(dir, as_copy);
                }
            }
        }
        let decision = match old {
            None => Decision::Create,
            Some(old) if file_type(&old) == FileType::Directory => {
                return Err(CopyError::new(Step::Link, Reason::DirectoryInTheWay));
            }
            Some(old) if self.context.targets.is_source(old.id) => {
                return Err(CopyError::new(Step::Link, Reason::IsSource));
            }
            Some(_) if config.overwrite == Overwrite::Never => {
                return Ok(EntryResult::Done(Decision::SkipExisting));
            }
            Some(_) => Decision::ReplaceOtherKind,
        };
        if config.dry_run {
            return Ok(EntryResult::Done(Decision::HardLink));
        }
        let target_dir = target.dir.destination()?;
        let write_target = self.write_target(decision);
        let created = self.create(dir, entry.to, write_target, |dir, name| {
            fs::linkat(target_dir, target.name, dir, name, AtFlags::empty()).at(Step::Link)
        });
        match created {
            Ok(((), unfinished)) => unfinished.commit(entry.to)?,
            // Another file system is mounted below the destination, or the file system has no hard
            // links, or not so many. A separate copy keeps the contents at least.
            Err(error) if config.preserve.links != Keep::Required && is_unlinkable(&error) => {
                return self.copy_entry(dir, as_copy);
            }
            Err(error) => return Err(error),
        }
        Ok(EntryResult::Done(Decision::HardLink))
    }

    /// Returns true if the source's entry would replace this one of the destination.
    fn would_replace(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
    ) -> Result<bool, CopyError> {
        let new = self.stat_source(dir, entry.from)?;
        let difference = (!self.is_copy(dir, old, &new)).then_some(Decision::ReplaceOtherKind);
        Ok(self.apply_overwrite(difference, old, &new).changes())
    }
}

/// Returns true if a link failed for a reason that does not keep the entry from being copied.
fn is_unlinkable(error: &CopyError) -> bool {
    [
        Errno::XDEV,
        Errno::MLINK,
        Errno::PERM,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
    ]
    .iter()
    .any(|&errno| error.reason == errno.into())
}
