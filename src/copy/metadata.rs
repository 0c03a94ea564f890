//! Applies metadata: owner, attributes, mode, times.
//!
//! The order matters. The owner comes first, because chown(2) clears set-user-id bits and file
//! capabilities. Then come attributes, among them ACLs, which change the mode. Then comes the mode.
//! The times come last, because they mark the entry as complete. If the run is killed before, the
//! next run copies the entry again.
//!
//! Each step is tried, even if an earlier one failed. A failure is noted (`issues.rs`). A success
//! is verified if there is reason to (`learned.rs`).

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::dir::{DirPair, Owner};
use super::handle::{Handle, Subject};
use super::issues::Problem;
use super::learned::{SetBy, is_safe};
use super::times::is_stored;
use super::{Copier, file_type};
use crate::config::Keep;
use crate::context::Identity;
use crate::fs::open::ENTRY;
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::fs::xattr::ACCESS_ACL;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::metadata::Property;

/// A regular file at the source, open.
pub(super) struct SourceFile {
    pub(super) fd: OwnedFd,
    /// Its stat when it was opened.
    pub(super) stat: FileStat,
    /// The attributes to keep.
    pub(super) attributes: Attributes,
    /// The inode flags to keep.
    pub(super) flags: u32,
}

/// The metadata that an entry gets.
pub(super) struct Wanted<'a> {
    /// The source's entry, to read attributes from.
    pub(super) source: &'a Handle<'a>,
    pub(super) stat: &'a FileStat,
    pub(super) attributes: &'a Attributes,
    /// The metadata that the destination's entry already has.
    pub(super) initial: InitialMeta,
    /// The entry being replaced, if some of its properties are to be kept.
    pub(super) replaced: Option<&'a Replaced>,
    pub(super) set_times: bool,
    /// Read attributes back, and set only those that differ.
    pub(super) verify: bool,
}

/// An existing entry that is about to be replaced. Properties that are not copied from the source
/// come from it: with `--no-preserve=mode`, a private file stays private.
pub(super) struct Replaced {
    entry: OwnedFd,
    pub(super) stat: FileStat,
}

/// The result of applying metadata.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Applied {
    /// The times were set, and no check has found them wrong.
    pub(super) are_times_set: bool,
    /// Attributes were set.
    pub(super) set_attributes: bool,
}

/// Metadata that a new file has from its creation, so that it need not be set.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitialMeta {
    /// None if not known.
    pub(super) owner: Option<Owner>,
    /// None if an inherited ACL may have changed it.
    pub(super) mode: Option<u32>,
}

impl InitialMeta {
    /// Takes the metadata from an entry's stat.
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            owner: Some(Owner::of(stat)),
            mode: Some(stat.mode & 0o7777),
        }
    }
}

/// Returns the owner that an entry can get at the destination. Root can give every entry away.
/// Other users keep the owner that the kernel gives to their entries, and can only set the group.
pub(super) fn attainable_owner(
    identity: &Identity,
    default_owner: Option<Owner>,
    stat: &FileStat,
) -> Owner {
    let uid = match default_owner {
        Some(owner) if !identity.is_root => owner.uid,
        _ => stat.uid,
    };
    Owner { uid, gid: stat.gid }
}

/// Returns the mode that an entry may get with this owner. If the owner or group differs from the
/// source's, set-user-id or set-group-id is dropped. Otherwise a program would run with the rights
/// of the wrong user or group.
pub(super) fn permissible_mode(stat: &FileStat, denied: u32, owner: Option<Owner>) -> u32 {
    let mode = stat.mode & 0o7777 & !denied;
    match owner {
        Some(owner) if owner.uid != stat.uid => mode & !0o6000,
        Some(owner) if owner.gid != stat.gid => mode & !0o2000,
        _ => mode,
    }
}

impl Copier {
    /// Lists the attributes to keep of an open source file.
    pub(super) fn source_file(&mut self, dir: &DirPair, fd: OwnedFd, stat: FileStat) -> SourceFile {
        let handle = Handle::Open(fd.as_fd());
        let subject = Subject {
            handle: Handle::Open(fd.as_fd()),
            device: dir.devices().source,
            kind: Kind::File,
        };
        let attributes = self.list_attributes(dir, &handle, &subject);
        let flags = self.source_flags(fd.as_fd());
        SourceFile {
            fd,
            stat,
            attributes,
            flags,
        }
    }

    /// Applies metadata. Notes what could not be kept.
    pub(super) fn apply(&mut self, subject: &Subject<'_>, wanted: &Wanted<'_>) -> Applied {
        let preserve = self.context.config.preserve;
        let Wanted { stat, initial, .. } = *wanted;
        let owner = self.set_owner(subject, wanted);
        let has_owner_changed = owner != initial.owner;
        if initial.mode.is_none()
            && preserve.mode.is_wanted()
            && let Err(errno) = subject.handle.remove(ACCESS_ACL)
            // The file system has no ACLs.
            && !matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS)
        {
            let step = Step::SetAttributes;
            let problem = Problem::of_attribute(preserve.acl, step, ACCESS_ACL, None);
            self.refuse(subject, problem, errno);
        }
        let verify = wanted.verify;
        let copied = self.copy_attributes(wanted.source, wanted.attributes, subject, verify);
        if let Some(old) = wanted.replaced {
            self.keep_old_attributes(&old.handle(), subject);
        }
        let mode = match wanted.replaced {
            _ if subject.kind == Kind::Symlink => None,
            _ if preserve.mode.is_wanted() => Some(permissible_mode(stat, copied.denied, owner)),
            // For a directory, `stat` holds the final mode.
            _ if subject.kind == Kind::Directory => Some(stat.mode & 0o7777),
            Some(old) => Some(permissible_mode(&old.stat, 0, owner)),
            None => None,
        };
        let mode_by = mode.and_then(|mode| {
            // A change of owner clears these bits, and an ACL changes the mode.
            let is_touched =
                has_owner_changed && mode & 0o6000 != 0 || !wanted.attributes.is_empty();
            let cuts = subject.kind == Kind::File && self.learned(subject.device).cuts_modes;
            if initial.mode == Some(mode) && !is_touched && !cuts && wanted.replaced.is_none() {
                // The mode is known from a stat, except for a file that was just created.
                let is_assumed = subject.kind == Kind::File && !wanted.verify;
                return is_assumed.then_some((mode, SetBy::Create));
            }
            let is_set = self.set_mode(subject, mode);
            is_set.then_some((mode, SetBy::Chmod(subject.kind)))
        });
        let mut are_times_set = wanted.set_times && preserve.timestamps.is_wanted();
        if are_times_set {
            are_times_set = self.set_times(subject, stat);
        }
        self.look(subject, wanted, mode_by, &mut are_times_set);
        Applied {
            are_times_set,
            set_attributes: copied.any,
        }
    }

    /// Verifies the metadata that was set, if there is reason to.
    fn look(
        &mut self,
        subject: &Subject<'_>,
        wanted: &Wanted<'_>,
        mode_by: Option<(u32, SetBy)>,
        are_times_set: &mut bool,
    ) {
        let preserve = self.context.config.preserve;
        let is_root = self.context.identity.is_root;
        let learned = self.learned(subject.device);
        let looks_at_mode = mode_by.is_some_and(|(mode, by)| {
            preserve.mode == Keep::Required
                || !learned.is_mode_trusted(by, mode)
                // chmod(2) silently drops bits that a user may not set.
                || !is_root && mode & 0o7000 != 0
        });
        let looks_at_times = *are_times_set
            && (preserve.timestamps == Keep::Required
                || learned.ignores_times
                || !is_safe(wanted.stat.mtime));
        if let Some((mode, SetBy::Chmod(_))) = mode_by
            && !looks_at_mode
        {
            self.grant_mode(subject, wanted, mode);
        }
        if !looks_at_mode && !looks_at_times {
            return;
        }
        let Ok(now) = subject.handle.stat() else {
            return;
        };
        if let Some((mode, by)) = mode_by
            && looks_at_mode
        {
            self.check_mode(subject, wanted, &now, mode, by);
        }
        if looks_at_times && !is_stored(wanted.stat.mtime, now.mtime) {
            *are_times_set = false;
            self.note_ineffective(subject, self.times_problem());
        }
    }

    /// Checks a mode that was set. If creating the file did not set it, sets it by chmod(2).
    fn check_mode(
        &mut self,
        subject: &Subject<'_>,
        wanted: &Wanted<'_>,
        now: &FileStat,
        mode: u32,
        mut by: SetBy,
    ) {
        let mut is_kept = now.mode & 0o7777 == mode;
        if !is_kept && by == SetBy::Create {
            self.learned(subject.device).cuts_modes = true;
            by = SetBy::Chmod(subject.kind);
            if !self.set_mode(subject, mode) {
                return;
            }
            is_kept = subject
                .handle
                .stat()
                .is_ok_and(|now| now.mode & 0o7777 == mode);
        }
        if is_kept {
            self.learned(subject.device).add_mode(by, mode);
            if by != SetBy::Create {
                self.grant_mode(subject, wanted, mode);
            }
        } else {
            self.learned(subject.device).ignores_modes = true;
            let keep = self.context.config.preserve.mode;
            self.note_ineffective(subject, mode_problem(keep, mode));
        }
    }

    fn grant_mode(&mut self, subject: &Subject<'_>, wanted: &Wanted<'_>, mode: u32) {
        if wanted.initial.mode.is_some_and(|old| old != mode) {
            let special = mode & 0o7000 != 0;
            self.grant(subject, Property::Mode { special });
        }
    }

    /// Sets the owner as far as possible. Returns the owner that the entry has then, if known.
    fn set_owner(&mut self, subject: &Subject<'_>, wanted: &Wanted<'_>) -> Option<Owner> {
        let old = wanted.initial.owner;
        let keep = self.context.config.preserve.ownership;
        let stat = match wanted.replaced {
            Some(old) if !keep.is_wanted() => &old.stat,
            _ if !keep.is_wanted() => return old,
            _ => wanted.stat,
        };
        let mut owner = attainable_owner(&self.context.identity, old, stat);
        if keep == Keep::Required {
            // Tried even if it will be refused: that has to be reported.
            owner.uid = stat.uid;
        }
        let is_right = old == Some(owner);
        if is_right && keep != Keep::Required {
            return old;
        }
        let is_new_uid = keep == Keep::Required || old.is_none_or(|old| old.uid != owner.uid);
        let uid = is_new_uid.then_some(Uid::from_raw(owner.uid));
        let problem = Problem::new(keep, Property::Ownership, Step::SetOwner);
        if !is_right && let Err(errno) = subject.handle.chown(uid, Some(Gid::from_raw(owner.gid))) {
            if keep.is_wanted() {
                self.refuse(subject, problem, errno);
            }
            return old;
        }
        // Before the mode is set: another owner must not get set-user-id bits.
        if keep == Keep::Required || !self.learned(subject.device).is_owner_trusted(owner) {
            if let Ok(now) = subject.handle.stat().map(|now| Owner::of(&now))
                && now != owner
            {
                if keep.is_wanted() {
                    self.note_ineffective(subject, problem);
                }
                return Some(now);
            }
            self.learned(subject.device).add_owner(owner);
        }
        if old.is_some_and(|old| self.is_privileged_change(old, owner)) {
            self.grant(subject, Property::Ownership);
        }
        Some(owner)
    }

    /// Returns true if a normal user could not change the owner in this way.
    fn is_privileged_change(&mut self, old: Owner, new: Owner) -> bool {
        old.uid != new.uid || old.gid != new.gid && !self.is_own_group(new.gid)
    }

    /// Returns true if this process belongs to the group.
    pub(super) fn is_own_group(&mut self, gid: u32) -> bool {
        let groups = self.own_groups.get_or_insert_with(|| {
            let groups = rustix::process::getgroups().unwrap_or_default();
            groups.into_iter().map(Gid::as_raw).collect()
        });
        gid == self.context.identity.group || groups.contains(&gid)
    }

    /// Sets the mode. If its special bits are refused, the permissions are set without them.
    fn set_mode(&mut self, subject: &Subject<'_>, mode: u32) -> bool {
        let Err(errno) = subject.handle.chmod(mode) else {
            return true;
        };
        let keep = self.context.config.preserve.mode;
        self.refuse(subject, mode_problem(keep, mode), errno);
        if mode & 0o7000 != 0 {
            let _ = subject.handle.chmod(mode & 0o777);
        }
        false
    }

    /// Opens the entry that is about to be replaced, if properties of it are to be kept.
    pub(super) fn open_replaced(
        &self,
        dir: &DirPair,
        name: &CStr,
        to: &CStr,
        stat: &FileStat,
    ) -> Option<Replaced> {
        let preserve = self.context.config.preserve;
        let is_all_wanted = preserve.mode.is_wanted()
            && preserve.ownership.is_wanted()
            && preserve.xattr.is_wanted()
            && preserve.context.is_wanted();
        if is_all_wanted || name == to {
            return None;
        }
        Replaced::open(dir, to).filter(|old| file_type(&old.stat) == file_type(stat))
    }

    /// Applies the source's metadata to a directory whose entries are done. `stat` is the source
    /// directory's stat before it was listed. If modes are not kept, its mode is the final one.
    pub(crate) fn finish_dir(&mut self, dir: &DirPair, stat: &FileStat) -> Result<(), CopyError> {
        let config = &self.context.config;
        if config.dry_run {
            return Ok(());
        }
        let target = dir.destination()?;
        let source = dir.source_handle();
        let subject = Subject {
            handle: Handle::Open(target),
            device: dir.devices().destination,
            kind: Kind::Directory,
        };
        let attributes = self.list_attributes(dir, &source, &subject);
        self.unseal_dir(dir);
        if !dir.is_created() {
            self.remove_other_attributes(dir, &subject, &attributes.names);
        }
        let now = subject.handle.stat().at(Step::LookAtDestination)?;
        let wanted = Wanted {
            source: &source,
            stat,
            attributes: &attributes,
            initial: InitialMeta::of(&now),
            replaced: None,
            set_times: now.mtime != stat.mtime,
            verify: false,
        };
        self.apply(&subject, &wanted);
        if !dir.is_unreadable() {
            self.set_dir_flags(target, dir.source());
        }
        if config.fsync && !self.is_batched(dir) {
            fs::fsync(target).at(Step::Sync)?;
            self.sync_backups_of(dir)?;
        }
        Ok(())
    }

    /// Applies the source's metadata to an entry that cannot be opened: a symbolic link, a FIFO, a
    /// socket, a device.
    pub(super) fn apply_metadata_by_path(
        &mut self,
        dir: &DirPair,
        from: &CStr,
        name: &CStr,
        to: &CStr,
        stat: &FileStat,
    ) -> Result<(), CopyError> {
        let destination = dir.destination()?;
        let entry = fs::openat(destination, name, ENTRY, Mode::empty()).at(Step::Create)?;
        let subject = Subject {
            handle: Handle::path(&entry, destination, name),
            device: dir.devices().destination,
            kind: Kind::of(file_type(stat)),
        };
        let now = subject.handle.stat().at(Step::LookAtDestination)?;
        // Another process may have given the name to something else.
        if (file_type(&now), now.rdev) != (file_type(stat), stat.rdev) {
            return Err(CopyError::new(Step::LookAtDestination, Reason::Replaced));
        }
        let replaced = self.open_replaced(dir, name, to, stat);
        let source =
            fs::openat(dir.source(), from, ENTRY, Mode::empty()).at(Step::ReadAttributes)?;
        let source = Handle::path(&source, dir.source(), from);
        let attributes = self.list_attributes(dir, &source, &subject);
        let is_link = file_type(stat) == FileType::Symlink;
        let mut initial = InitialMeta::of(&now);
        if !is_link && dir.has_default_acl() {
            initial.mode = None;
        }
        let wanted = Wanted {
            source: &source,
            stat,
            attributes: &attributes,
            initial,
            replaced: replaced.as_ref(),
            set_times: true,
            verify: false,
        };
        self.apply(&subject, &wanted);
        Ok(())
    }
}

impl Replaced {
    pub(super) fn open(dir: &DirPair, to: &CStr) -> Option<Self> {
        let entry = fs::openat(dir.destination().ok()?, to, ENTRY, Mode::empty()).ok()?;
        let stat = FileStat::of(&fs::fstat(&entry).ok()?);
        Some(Self { entry, stat })
    }

    /// Returns the handle to read its attributes.
    pub(super) fn handle(&self) -> Handle<'_> {
        Handle::path(&self.entry, self.entry.as_fd(), c"")
    }
}

fn mode_problem(keep: Keep, mode: u32) -> Problem {
    let special = mode & 0o7000 != 0;
    Problem::new(keep, Property::Mode { special }, Step::SetMode)
}
