//! Updates metadata of entries whose contents are the same.
//!
//! The entry gets the source's owner, attributes and mode in place. Nothing is copied, and hard
//! links stay. A change of metadata leaves the modification time alone, so it can only be found by
//! comparing. Owner and mode come with the stat that is needed anyway. Attributes cost one call for
//! their names on each side, and no more if there are none.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{has_wanted_attributes, is_removable};
use super::dir::{DirPair, Owner};
use super::handle::{Handle, Subject};
use super::metadata::{InitialMeta, Wanted, attainable_owner, permissible_mode};
use super::{Copier, Entry, file_type};
use crate::config::Keep;
use crate::fs::open::ENTRY;
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::fs::xattr::{self, ACCESS_ACL};
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};

impl Copier {
    /// Returns true if an entry with the source's contents and time differs in other metadata.
    pub(super) fn has_other_metadata(
        &mut self,
        dir: &DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        if self.has_other_owner(dir, old, new) || self.has_other_mode(dir, old, new) {
            return true;
        }
        let flags = self.open_flagged(dir, entry, new);
        flags.is_some_and(|flags| flags.is_different()) || self.has_other_attributes(dir, entry)
    }

    fn has_other_owner(&mut self, dir: &DirPair, old: &FileStat, new: &FileStat) -> bool {
        let (owner, group) = self.other_owner(dir, old, new);
        owner || group
    }

    /// Returns whether the owner differs and can be set, and the same for the group.
    pub(super) fn other_owner(
        &mut self,
        dir: &DirPair,
        old: &FileStat,
        new: &FileStat,
    ) -> (bool, bool) {
        let keep = self.context.config.preserve.ownership;
        if !keep.is_wanted() || (old.uid, old.gid) == (new.uid, new.gid) {
            return (false, false);
        }
        // A dry run must not announce an owner that the destination cannot hold.
        if self.context.config.dry_run && !self.holds(dir).owners {
            return (false, false);
        }
        let is_root = self.context.identity.is_root;
        let is_settable =
            |copier: &mut Self| is_root || keep == Keep::Required || copier.is_own_group(new.gid);
        let owner = (is_root || keep == Keep::Required) && old.uid != new.uid;
        (owner, old.gid != new.gid && is_settable(self))
    }

    pub(super) fn has_other_mode(&mut self, dir: &DirPair, old: &FileStat, new: &FileStat) -> bool {
        let config = &self.context.config;
        if !config.preserve.mode.is_wanted() || file_type(new) == FileType::Symlink {
            return false;
        }
        let owner = Owner::of(old);
        let mut owner = if config.preserve.ownership.is_wanted() {
            attainable_owner(&self.context.identity, Some(owner), new)
        } else {
            owner
        };
        if owner.gid != old.gid && !self.context.identity.is_root && !self.is_own_group(owner.gid) {
            owner.gid = old.gid;
        }
        let (old, new) = (old.mode & 0o7777, permissible_mode(new, 0, Some(owner)));
        old != new && (!self.context.config.dry_run || self.holds(dir).has_mode_effect(old, new))
    }

    /// Compares attributes. If they cannot be read, that is left to [`Copier::update_metadata`].
    fn has_other_attributes(&mut self, dir: &DirPair, entry: Entry<'_>) -> bool {
        // With --chmod the copy's ACL is not that of the source: it contains the mode.
        let is_mode_changed = self.context.config.changes.has_modes();
        self.differ_in_attributes(dir, entry.from, entry.to, |name| {
            !(is_mode_changed && name == ACCESS_ACL)
        })
    }

    /// Compares those attributes that are chosen.
    pub(super) fn differ_in_attributes(
        &mut self,
        dir: &DirPair,
        from: &CStr,
        to: &CStr,
        is_chosen: impl Fn(&CStr) -> bool,
    ) -> bool {
        let (source_name, copy_name) = (from, to);
        let config = &self.context.config;
        let Ok(destination) = dir.destination() else {
            return false;
        };
        if !has_wanted_attributes(config) {
            return false;
        }
        let follow = config.dereference;
        let from = xattr::list_at(dir.source(), source_name, follow);
        let to = xattr::list_at(destination, copy_name, false);
        let (mut from, mut to) = match (from, to) {
            (Ok(from), Ok(to)) => (from, to),
            // Attributes do not exist here, or there is no way to get at them.
            (Err(Errno::NOSYS | Errno::NOENT), _) => return false,
            (Ok(from), Err(Errno::NOSYS)) => (from, Vec::new()),
            _ => return true,
        };
        if from.is_empty() && to.is_empty() {
            return false;
        }
        let is_dry_run = config.dry_run;
        self.retain_kept(dir, &mut from);
        self.retain_kept(dir, &mut to);
        from.retain(|name| is_chosen(name));
        to.retain(|name| is_chosen(name));
        let has_more = to
            .iter()
            .any(|name| is_removable(name) && !from.contains(name));
        has_more
            || from.iter().any(|name: &CString| {
                let value = |dir: BorrowedFd<'_>, entry: &CStr, follow| {
                    xattr::get_at(dir, entry, name, follow)
                };
                let existing = value(destination, copy_name, false);
                // The destination has no attributes of this kind. A dry run must not announce one.
                let is_possible = existing != Err(Errno::OPNOTSUPP) || !is_dry_run;
                is_possible && value(dir.source(), source_name, follow) != existing
            })
    }

    /// Applies the source's metadata to an existing entry. Returns `LeaveUnchanged` if nothing
    /// changed, because metadata that the destination cannot hold differs at every run.
    pub(super) fn update_metadata(
        &mut self,
        dir: &DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Result<Decision, CopyError> {
        let destination = dir.destination()?;
        let opened =
            fs::openat(destination, entry.to, ENTRY, Mode::empty()).at(Step::LookAtDestination)?;
        let subject = Subject {
            handle: Handle::path(&opened, destination, entry.to),
            device: dir.devices().destination,
            kind: Kind::of(file_type(new)),
        };
        let now = subject.handle.stat().at(Step::LookAtDestination)?;
        // On many network file systems the inode number of an entry does not last.
        let is_other = now.id.ino != old.id.ino && !now.has_same_contents(old);
        if is_other || file_type(&now) != file_type(old) {
            // Another process has put something else there.
            return Err(CopyError::new(Step::LookAtDestination, Reason::Replaced));
        }
        let flags = if self.context.config.dereference {
            ENTRY.difference(OFlags::NOFOLLOW)
        } else {
            ENTRY
        };
        let source =
            fs::openat(dir.source(), entry.from, flags, Mode::empty()).at(Step::ReadAttributes)?;
        let source = Handle::path(&source, dir.source(), entry.from);
        let attributes = self.list_attributes(dir, &source, &subject);
        let flags = self.open_flagged(dir, entry, new);
        if let Some(flags) = &flags {
            flags.unseal();
        }
        let removed = has_wanted_attributes(&self.context.config)
            && self.remove_other_attributes(dir, &subject, &attributes.names);
        let before = subject.handle.stat().at(Step::LookAtDestination)?;
        let wanted = Wanted {
            source: &source,
            stat: new,
            attributes: &attributes,
            initial: InitialMeta::of(&before),
            replaced: None,
            set_times: self.context.config.contents.checksum && now.mtime != new.mtime,
            verify: true,
        };
        let applied = self.apply(&subject, &wanted);
        let are_flags_changed = flags.is_some_and(|flags| self.update_flags(&flags));
        let after = subject.handle.stat().at(Step::LookAtDestination)?;
        let is_synced_alone = self.context.config.fsync && !self.is_batched(dir);
        if is_synced_alone && file_type(new) == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = fs::openat(destination, entry.to, flags, Mode::empty()).at(Step::Sync)?;
            fs::fsync(file).at(Step::Sync)?;
        }
        let is_changed = removed
            || applied.set_attributes
            || are_flags_changed
            || (now.mode, now.uid, now.gid, now.mtime)
                != (after.mode, after.uid, after.gid, after.mtime);
        Ok(if is_changed {
            Decision::UpdateMetadata
        } else {
            Decision::LeaveUnchanged
        })
    }
}
