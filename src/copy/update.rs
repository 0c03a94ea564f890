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
use crate::fs::stat::{FileStat, file_system_type};
use crate::fs::xattr;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::metadata::Sort;

/// statfs(2) calls these FAT and exFAT.
const FAT: [u64; 2] = [0x4D44, 0x2011_BAB0];

impl Copier {
    /// Returns true if an entry with the source's contents and time differs in other metadata.
    pub(super) fn has_other_metadata(
        &mut self,
        dir: &DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> bool {
        let is_other = self.has_other_owner(old, new) || self.has_other_mode(old, new);
        // A dry run must not announce an update that FAT cannot store.
        if is_other && !(self.context.config.dry_run && self.is_fat(dir)) {
            return true;
        }
        let flags = self.open_flagged(dir, entry, new);
        flags.is_some_and(|flags| flags.is_different()) || self.has_other_attributes(dir, entry)
    }

    fn has_other_owner(&mut self, old: &FileStat, new: &FileStat) -> bool {
        let keep = self.context.config.preserve.ownership;
        if !keep.is_wanted() {
            return false;
        }
        let is_root = self.context.identity.is_root;
        let is_settable =
            |copier: &mut Self| is_root || keep == Keep::Required || copier.is_own_group(new.gid);
        (is_root || keep == Keep::Required) && old.uid != new.uid
            || old.gid != new.gid && is_settable(self)
    }

    fn has_other_mode(&mut self, old: &FileStat, new: &FileStat) -> bool {
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
        old.mode & 0o7777 != permissible_mode(new, 0, Some(owner))
    }

    /// Compares attributes. If they cannot be read, that is left to [`Copier::update_metadata`].
    fn has_other_attributes(&mut self, dir: &DirPair, entry: Entry<'_>) -> bool {
        let config = &self.context.config;
        let Ok(destination) = dir.destination() else {
            return false;
        };
        if !has_wanted_attributes(config) {
            return false;
        }
        let follow = config.dereference;
        let from = xattr::list_at(dir.source(), entry.from, follow);
        let to = xattr::list_at(destination, entry.to, false);
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
        self.retain_kept(dir, &mut from);
        self.retain_kept(dir, &mut to);
        let has_more = to
            .iter()
            .any(|name| is_removable(name) && !from.contains(name));
        has_more
            || from.iter().any(|name: &CString| {
                let value = |dir: BorrowedFd<'_>, entry: &CStr, follow| {
                    xattr::get_at(dir, entry, name, follow)
                };
                let source = value(dir.source(), entry.from, follow);
                source != value(destination, entry.to, false)
            })
    }

    /// Returns true for a destination that holds neither owners nor modes.
    fn is_fat(&mut self, dir: &DirPair) -> bool {
        let learned = self.learned(dir.devices().destination);
        *learned.is_fat.get_or_insert_with(|| {
            let destination = dir.destination().ok();
            destination
                .and_then(file_system_type)
                .is_some_and(|kind| FAT.contains(&kind))
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
            sort: Sort::of(file_type(new)),
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
        if self.context.config.fsync && file_type(new) == FileType::RegularFile {
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
