//! Hard links to entries that this run has copied.

use std::ffi::CStr;
use std::time::Duration;

use rustix::fs::{self, AtFlags, FileType, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::dir::DirPair;
use super::flags;
use super::{Copier, Entry, EntryResult, MAX_TAKEN, file_type, is_name_taken};
use crate::config::{Keep, Overwrite};
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::entry::{Decision, HardLinks};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::items::ChangeKind;
use crate::scoreboard::WriteTarget;

/// The copied leader that an entry becomes a hard link to, open.
#[derive(Clone, Copy)]
pub(crate) struct OpenLeader<'a> {
    pub(crate) dir: &'a DirPair,
    /// The name at the destination.
    pub(crate) name: &'a CStr,
}

impl Copier {
    /// Makes an entry a hard link to the copy of its other name. If that is not possible, copies it
    /// and sets [`Copier::unlinked`].
    pub(crate) fn hard_link(
        &mut self,
        dir: &mut DirPair,
        target: OpenLeader<'_>,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let (mut has_linked, mut has_replaced) = (false, false);
        for _ in 0..MAX_TAKEN {
            match self.try_hard_link(dir, target, entry, &mut has_replaced) {
                Ok(EntryResult::Done(Decision::HardLink)) if has_replaced => {
                    has_linked = true;
                    if is_linked(dir, target, entry) || self.is_alike(dir, target, entry)? {
                        break;
                    }
                    // Another run has replaced one of the two names, perhaps linking them the other
                    // way round. The run that renames last also checks last, so it notices.
                }
                Ok(EntryResult::Done(Decision::LeaveUnchanged)) if has_linked => break,
                Err(error) if is_name_taken(&error) => dir.expect_others(),
                // Another run may be renaming the leader at this moment (`Copier::move_aside`).
                Err(error) if is_gone(&error) => std::thread::sleep(LEADER_PAUSE),
                result => return result,
            }
        }
        if has_linked {
            return Ok(EntryResult::Done(Decision::HardLink));
        }
        let result = self.try_hard_link(dir, target, entry, &mut has_replaced);
        result.map_err(|error| self.explain_taken(dir, entry.to, error))
    }

    fn try_hard_link(
        &mut self,
        dir: &mut DirPair,
        target: OpenLeader<'_>,
        entry: Entry<'_>,
        has_replaced: &mut bool,
    ) -> Result<EntryResult, CopyError> {
        let config = &self.context.config;
        let as_copy = Entry {
            hard_links: HardLinks::Copy,
            ..entry
        };
        let leader = target.dir.stat_destination(target.name).at(Step::Link)?;
        let leader = leader.map(|stat| FileStat::of(&stat));
        let old = self.find_existing(dir, entry.to)?;
        let old = old.map(|stat| FileStat::of(&stat));
        if let Some(old) = &old
            && self.stat_source(dir, entry.from)?.id == old.id
        {
            return Ok(EntryResult::Done(Decision::LeaveSame));
        }
        if config.filter.existing && (old.is_none() || leader.is_none()) {
            // Either this name must not be made, or the leader was not.
            return self.copy_entry(dir, as_copy);
        }
        if let (Some(old), Some(leader)) = (&old, &leader)
            && (old.id == leader.id || self.is_alike(dir, target, entry)?)
        {
            // A dry run has not replaced the leader, so equal IDs do not mean unchanged.
            let is_replaced = config.dry_run && {
                let new = self.stat_source(dir, entry.from)?;
                self.would_replace(dir, entry, leader, &new)?
            };
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
            let is_leader_other = leader.is_some_and(|leader| !self.is_copy(dir, &leader, &new));
            let is_kept = match &old {
                Some(old) => {
                    !self.is_copy(dir, old, &new) && !self.would_replace(dir, entry, old, &new)?
                }
                None => false,
            };
            if is_leader_other || is_kept {
                return self.copy_entry(dir, as_copy);
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
        if let Some(old) = &old {
            let new = self.stat_source(dir, entry.from)?;
            self.check_link(dir, entry, &new, old)?;
        }
        if config.itemize {
            let new = self.stat_source(dir, entry.from)?;
            self.itemize(dir, entry, old.as_ref(), &new, Some(ChangeKind::HardLink));
        }
        if config.dry_run {
            return Ok(EntryResult::Done(Decision::HardLink));
        }
        let target_dir = target.dir.destination()?;
        // With --inplace the entry is removed only once it is known that a link can be made.
        let write_target = if decision == Decision::Create && !self.is_existing_trusted() {
            WriteTarget::Final
        } else {
            self.next_temp()
        };
        // Renaming one of its names needs that too.
        let _unsealed = (flags::keeps_flags(config) && decision != Decision::Create)
            .then(|| flags::Unsealed::new(target_dir, target.name));
        let created = self.create(dir, entry.to, write_target, |dir, name| {
            let link = || fs::linkat(target_dir, target.name, dir, name, AtFlags::empty());
            match link() {
                Err(Errno::PERM) if flags::keeps_flags(config) => {
                    flags::link_sealed(target_dir, target.name, link)
                }
                result => result,
            }
            .at(Step::Link)
        });
        let ((), unfinished) = match created {
            Ok(created) => created,
            // A separate copy keeps the contents at least.
            Err(error) if config.preserve.links != Keep::Required => {
                let Some(why) = Unlinkable::from_error(&error) else {
                    return Err(error);
                };
                // A copy that will lead others must get its name at once.
                let copied = self.copy_undivided_if(why == Unlinkable::Full, dir, as_copy);
                self.unlinked = Some(why);
                return copied;
            }
            Err(error) => return Err(error),
        };
        if config.inplace && decision != Decision::Create {
            drop(unfinished);
            self.make_room(dir, entry.to, decision)?;
            fs::linkat(
                target_dir,
                target.name,
                dir.destination()?,
                entry.to,
                AtFlags::empty(),
            )
            .at(Step::Link)?;
        } else if !self.commit_link_with_backup(dir, unfinished, entry.to, decision)? {
            // Inode numbers do not last here: both names were one file already.
            return Ok(EntryResult::Done(Decision::LeaveUnchanged));
        }
        *has_replaced = decision != Decision::Create;
        Ok(EntryResult::Done(Decision::HardLink))
    }

    /// Returns true if both names show one file although their inode numbers differ.
    ///
    /// The clients of SMB and FUSE may invent inode numbers. Then both names must show all links of
    /// the source's file, and the same size, times and creation time. Two files that show all that
    /// would have been made at the same moment as two complete groups of the same number of links,
    /// and the source would have exchanged names between the groups since then.
    ///
    /// The kernel may remember older values, so the server is asked.
    fn is_alike(
        &mut self,
        dir: &DirPair,
        target: OpenLeader<'_>,
        entry: Entry<'_>,
    ) -> Result<bool, CopyError> {
        if !self.holds(dir).invents_numbers {
            return Ok(false);
        }
        let links = self.stat_source(dir, entry.from)?.links;
        let look = |dir: &DirPair, name| {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            let found = fs::statx(dir.destination().ok()?, name, flags, wanted).ok()?;
            let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
            let (modified, changed) = (time(found.stx_mtime), time(found.stx_ctime));
            let is_born = found.stx_mask & StatxFlags::BTIME.bits() != 0;
            let born = is_born.then(|| time(found.stx_btime));
            // Some servers know neither when a file was made nor when its metadata changed.
            let is_known = born.is_some() || modified != changed;
            let shown = (found.stx_size, modified, changed, born);
            (u64::from(found.stx_nlink) == links && is_known).then_some(shown)
        };
        let shown = look(dir, entry.to);
        Ok(links > 1 && shown.is_some() && shown == look(target.dir, target.name))
    }

    fn copy_undivided_if(
        &mut self,
        is_undivided: bool,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        if is_undivided {
            self.copy_undivided(dir, entry)
        } else {
            self.copy_entry(dir, entry)
        }
    }

    /// Returns true if the source's entry would replace this one of the destination.
    fn would_replace(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Result<bool, CopyError> {
        let difference = if self.context.config.contents.checksum {
            self.difference(dir, entry, old, new)?
        } else if file_type(old) != file_type(new) {
            Some(Decision::ReplaceOtherKind)
        } else {
            (!self.is_copy(dir, old, new)).then_some(Decision::ReplaceTime)
        };
        Ok(self.apply_overwrite(difference, old, new).changes())
    }
}

/// Pause before looking for a missing leader again.
const LEADER_PAUSE: Duration = Duration::from_millis(2);

/// Returns true if both names belong to one file. Needed only after a replacement: creating a new
/// name is atomic.
fn is_linked(dir: &DirPair, target: OpenLeader<'_>, entry: Entry<'_>) -> bool {
    let id = |dir: &DirPair, name| dir.stat_destination(name).ok().flatten();
    let id = |dir, name| id(dir, name).map(|stat| FileId::of(&stat));
    id(dir, entry.to) == id(target.dir, target.name)
}

fn is_gone(error: &CopyError) -> bool {
    error.step == Step::Link && error.reason == Errno::NOENT.into()
}

/// Why an entry could not become a hard link, although it can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unlinkable {
    /// The file system has no hard links, or another one is mounted below the destination.
    Unsupported,
    /// The file has as many links as it can have.
    Full,
}

impl Unlinkable {
    pub(super) fn from_error(error: &CopyError) -> Option<Self> {
        let is = |errno: &Errno| error.reason == (*errno).into();
        if is(&Errno::MLINK) {
            return Some(Self::Full);
        }
        [Errno::XDEV, Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS]
            .iter()
            .any(is)
            .then_some(Self::Unsupported)
    }
}
