//! Owner, attributes, mode, times.
//!
//! The order matters. The owner comes first, because chown(2) clears set-user-id bits and file
//! capabilities. Then come attributes, among them ACLs, which change the mode. Then comes the mode.
//! The times come last, because they tell a later run that the entry is complete: if a kill
//! interrupts anything before, that run copies the entry again.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::fs::{XattrFlags, removexattr};
use rustix::io::Errno;

use super::dir::{DirPair, Owner};
use super::{Copier, file_type};
use crate::config::{Config, Keep};
use crate::context::Identity;
use crate::fs::proc::magic_link;
use crate::fs::stat::FileStat;
use crate::fs::xattr::{self, ACCESS_ACL, ACL_PREFIX};
use crate::protocol::NotKept;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// A regular file at the source, open.
pub(super) struct SourceFile {
    pub(super) fd: OwnedFd,
    /// Its stat when it was opened.
    pub(super) stat: FileStat,
    /// The names of the attributes to keep.
    pub(super) attributes: Vec<CString>,
}

impl SourceFile {
    pub(super) fn new(fd: OwnedFd, stat: FileStat, config: &Config) -> Result<Self, CopyError> {
        let attributes = list_attributes(fd.as_fd(), config).at(Step::ReadAttributes)?;
        Ok(Self {
            fd,
            stat,
            attributes,
        })
    }
}

/// Metadata that a new file has from its creation, so that it need not be set.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitialMeta {
    /// None if not known.
    pub(super) owner: Option<Owner>,
    /// None if an inherited ACL may have changed it.
    pub(super) mode: Option<u32>,
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

/// Returns the mode of new files if modes are not kept.
pub(super) fn default_file_mode(identity: &Identity) -> u32 {
    0o666 & !identity.umask
}

/// Returns the names of an open entry's attributes that are to be kept.
fn list_attributes(entry: BorrowedFd<'_>, config: &Config) -> rustix::io::Result<Vec<CString>> {
    if !keeps_attributes(config) {
        return Ok(Vec::new());
    }
    let mut names = xattr::all_attributes(|buffer| fs::flistxattr(entry, buffer))?;
    names.retain(|name| keep_of(config, name).is_wanted());
    Ok(names)
}

fn keeps_attributes(config: &Config) -> bool {
    config.preserve.mode.is_wanted() || config.preserve.xattr.is_wanted()
}

/// Returns how much an attribute matters. ACLs belong to the mode, as in cp(1).
fn keep_of(config: &Config, name: &CStr) -> Keep {
    if name.to_bytes().starts_with(ACL_PREFIX) {
        config.preserve.mode
    } else {
        config.preserve.xattr
    }
}

/// Returns the mode that an entry may get with this owner. If the owner or group could not be
/// kept, a program must not run with the rights of a user or group that it did not have at the
/// source.
fn permissible_mode(stat: &FileStat, denied: u32, owner: Option<Owner>) -> u32 {
    let mode = stat.mode & 0o7777 & !denied;
    match owner {
        Some(owner) if owner.uid != stat.uid => mode & !0o6000,
        Some(owner) if owner.gid != stat.gid => mode & !0o2000,
        _ => mode,
    }
}

pub(super) fn times(stat: &FileStat) -> Timestamps {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time(stat.atime),
        last_modification: time(stat.mtime),
    }
}

impl Copier {
    /// Applies the source's metadata to an open regular file.
    pub(super) fn apply_metadata(
        &mut self,
        source: &SourceFile,
        file: BorrowedFd<'_>,
        initial: InitialMeta,
    ) -> Result<(), CopyError> {
        let stat = &source.stat;
        let owner = self.set_owner(initial.owner, stat, |uid, gid| fs::fchown(file, uid, gid))?;
        if initial.mode.is_none() {
            xattr::remove_acl(file, ACCESS_ACL).at(Step::SetAttributes)?;
        }
        let denied = self.copy_attributes(
            &source.attributes,
            |name, buffer| fs::fgetxattr(&source.fd, name, buffer),
            |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()),
        )?;
        let config = &self.context.config;
        let mode = if config.preserve.mode.is_wanted() {
            permissible_mode(stat, denied, owner)
        } else {
            default_file_mode(&self.context.identity)
        };
        if initial.mode != Some(mode) || !source.attributes.is_empty() {
            self.set_mode(|| fs::fchmod(file, Mode::from_raw_mode(mode)))?;
        }
        self.set_times(|| fs::futimens(file, &times(stat)))
    }

    /// Applies the source's metadata to a directory whose entries are done. `stat` is the source
    /// directory's stat before it was listed.
    pub(crate) fn finish_dir(&mut self, dir: &DirPair, stat: &FileStat) -> Result<(), CopyError> {
        let config = &self.context.config;
        if config.dry_run {
            return Ok(());
        }
        let (source, target) = (dir.source(), dir.destination()?);
        let attributes = list_attributes(source, config).at(Step::ReadAttributes)?;
        let now = fs::fstat(target).at(Step::LookAtDestination)?;
        let old_owner = Some(Owner::of(&now));
        let now = FileStat::of(&now);
        let owner = self.set_owner(old_owner, stat, |uid, gid| fs::fchown(target, uid, gid))?;
        let mut changed = owner != old_owner;
        if !dir.is_created() {
            changed |= self.remove_other_attributes(target, &attributes)?;
        }
        let denied = self.copy_attributes(
            &attributes,
            |name, buffer| fs::fgetxattr(source, name, buffer),
            |name, value| fs::fsetxattr(target, name, value, XattrFlags::empty()),
        )?;
        let mode = if config.preserve.mode.is_wanted() {
            permissible_mode(stat, denied, owner)
        } else if dir.is_created() {
            0o777 & !self.context.identity.umask
        } else {
            now.mode & 0o7777
        };
        // A change of owner clears mode bits, and ACLs change them.
        if now.mode & 0o7777 != mode || changed || !attributes.is_empty() {
            self.set_mode(|| fs::fchmod(target, Mode::from_raw_mode(mode)))?;
        }
        if now.mtime != stat.mtime {
            self.set_times(|| fs::futimens(target, &times(stat)))?;
        }
        if config.fsync {
            fs::fsync(target).at(Step::Sync)?;
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
        stat: &FileStat,
    ) -> Result<(), CopyError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = fs::openat(dir.destination()?, name, flags, Mode::empty()).at(Step::Create)?;
        let now = fs::fstat(&entry).at(Step::LookAtDestination)?;
        let old_owner = Some(Owner::of(&now));
        let now = FileStat::of(&now);
        // Another process may have given the name to something else.
        if (file_type(&now), now.rdev) != (file_type(stat), stat.rdev) {
            return Err(CopyError::new(Step::LookAtDestination, Reason::Replaced));
        }
        let owner = self.set_owner(old_owner, stat, |uid, gid| {
            fs::chownat(&entry, c"", uid, gid, AtFlags::EMPTY_PATH)
        })?;
        let denied = self.copy_attributes_by_path(dir, from, &entry)?;
        let is_link = file_type(stat) == FileType::Symlink;
        if !is_link && self.context.config.preserve.mode.is_wanted() {
            let mode = permissible_mode(stat, denied, owner);
            // An ACL or the change of owner may have changed it.
            let now = fs::fstat(&entry).at(Step::LookAtDestination)?.st_mode & 0o7777;
            if now != mode {
                let path = magic_link(&entry);
                self.set_mode(|| fs::chmod(path.as_c_str(), Mode::from_raw_mode(mode)))?;
            }
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let to = dir.destination()?;
        self.set_times(|| fs::utimensat(to, name, &times(stat), flags))
    }

    /// Copies the attributes of an entry that cannot be opened. Returns mode bits to clear, as
    /// [`Copier::copy_attributes`] does.
    fn copy_attributes_by_path(
        &mut self,
        dir: &DirPair,
        from: &CStr,
        entry: &OwnedFd,
    ) -> Result<u32, CopyError> {
        let config = &self.context.config;
        if !keeps_attributes(config) {
            return Ok(0);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source =
            fs::openat(dir.source(), from, flags, Mode::empty()).at(Step::ReadAttributes)?;
        let (from, to) = (magic_link(&source), magic_link(entry));
        if dir.has_default_acl() {
            let _ = removexattr(to.as_c_str(), ACCESS_ACL);
        }
        let mut names = match xattr::all_attributes(|buffer| fs::listxattr(&*from, buffer)) {
            // /proc is not mounted, so there is no way to get at them.
            Err(Errno::NOENT) => return Ok(0),
            result => result.at(Step::ReadAttributes)?,
        };
        names.retain(|name| keep_of(config, name).is_wanted());
        self.copy_attributes(
            &names,
            |name, buffer| fs::getxattr(&*from, name, buffer),
            |name, value| fs::setxattr(&*to, name, value, XattrFlags::empty()),
        )
    }

    /// Sets the owner as far as possible. Returns the owner that the entry has then, if known.
    fn set_owner(
        &mut self,
        old: Option<Owner>,
        stat: &FileStat,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> Result<Option<Owner>, CopyError> {
        let config = &self.context.config;
        let keep = config.preserve.ownership;
        let mut wanted = attainable_owner(&self.context.identity, old, stat);
        if keep == Keep::Required {
            // Tried even if it will be refused: that has to be reported.
            wanted.uid = stat.uid;
        }
        if !keep.is_wanted() || old == Some(wanted) {
            return Ok(old);
        }
        let is_new_uid = keep == Keep::Required || old.is_none_or(|old| old.uid != wanted.uid);
        let uid = is_new_uid.then_some(Uid::from_raw(wanted.uid));
        match chown(uid, Some(Gid::from_raw(wanted.gid))) {
            Ok(()) => Ok(Some(wanted)),
            Err(errno) => {
                self.tolerate(keep, errno, Step::SetOwner, |not_kept| {
                    not_kept.ownership = true;
                })?;
                Ok(old)
            }
        }
    }

    fn set_mode(
        &mut self,
        chmod: impl FnOnce() -> rustix::io::Result<()>,
    ) -> Result<(), CopyError> {
        match chmod() {
            Ok(()) => Ok(()),
            Err(errno) => {
                let keep = self.context.config.preserve.mode;
                self.tolerate(keep, errno, Step::SetMode, |not_kept| not_kept.mode = true)
            }
        }
    }

    fn set_times(
        &mut self,
        utimens: impl FnOnce() -> rustix::io::Result<()>,
    ) -> Result<(), CopyError> {
        let keep = self.context.config.preserve.timestamps;
        if !keep.is_wanted() {
            return Ok(());
        }
        match utimens() {
            Ok(()) => Ok(()),
            Err(errno) => self.tolerate(keep, errno, Step::SetTimes, |not_kept| {
                not_kept.timestamps = true;
            }),
        }
    }

    /// Copies attributes. Returns mode bits to clear: if the ACL is lost, the group bits (which
    /// hold its mask) would grant that mask to the group.
    fn copy_attributes(
        &mut self,
        names: &[CString],
        get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
        set: impl Fn(&CStr, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<u32, CopyError> {
        let mut denied = 0;
        for name in names {
            let is_acl = name.as_c_str() == ACCESS_ACL;
            let value = match xattr::get_attribute(|buffer| get(name, buffer)) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(errno) => {
                    self.tolerate_attribute(name, errno, Step::ReadAttributes)?;
                    denied |= if is_acl { 0o070 } else { 0 };
                    continue;
                }
            };
            if let Err(errno) = set(name, &value) {
                self.tolerate_attribute(name, errno, Step::SetAttributes)?;
                denied |= if is_acl {
                    xattr::denied_to_group(&value)
                } else {
                    0
                };
            }
        }
        Ok(denied)
    }

    /// Removes a merged directory's ACLs and user attributes that the source does not have. Keeps
    /// those that the system sets by itself, above all security labels. Returns true if one was
    /// removed.
    pub(super) fn remove_other_attributes(
        &mut self,
        target: BorrowedFd<'_>,
        keep: &[CString],
    ) -> Result<bool, CopyError> {
        let old = list_attributes(target, &self.context.config).at(Step::SetAttributes)?;
        let mut removed = false;
        for name in old.iter().filter(|name| !keep.contains(name)) {
            let bytes = name.to_bytes();
            if bytes.starts_with(b"user.") || bytes.starts_with(ACL_PREFIX) {
                match fs::fremovexattr(target, name) {
                    Ok(()) => removed = true,
                    Err(Errno::NODATA) => {}
                    Err(errno) => self.tolerate_attribute(name, errno, Step::SetAttributes)?,
                }
            }
        }
        Ok(removed)
    }

    fn tolerate_attribute(
        &mut self,
        name: &CStr,
        errno: Errno,
        step: Step,
    ) -> Result<(), CopyError> {
        let keep = keep_of(&self.context.config, name);
        self.tolerate(keep, errno, step, |not_kept| not_kept.xattr = true)
    }

    /// Decides whether metadata that could not be set is an error. It is one if `--preserve` names
    /// it. It is ignored if a normal user is not allowed to set it. It is noted, to be reported
    /// once for the run, if the file system cannot hold it.
    fn tolerate(
        &mut self,
        keep: Keep,
        errno: Errno,
        step: Step,
        note: impl FnOnce(&mut NotKept),
    ) -> Result<(), CopyError> {
        let error = Err(CopyError::new(step, errno));
        match errno {
            _ if keep == Keep::Required => error,
            Errno::PERM | Errno::ACCESS if !self.context.identity.is_root => Ok(()),
            Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
                note(&mut self.not_kept);
                Ok(())
            }
            _ => error,
        }
    }
}
