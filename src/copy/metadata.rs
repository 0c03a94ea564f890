//! Owner, attributes, mode, times: what makes a copy faithful.
//!
//! The order matters. The owner comes first, for chown(2) clears set-user-id bits and file
//! capabilities; then attributes, an ACL among them, which changes the mode; then the mode; the
//! times come last, for they are what tells a later run that the entry is complete: whatever a
//! kill interrupts before, that run does again.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use crate::config::{Config, Keep};
use crate::context::Context;
use crate::fs::stat::FileStat;
use crate::fs::xattr::ACCESS_ACL;
use crate::protocol::NotKept;
use crate::protocol::error::{At, CopyError, Reason, Step};

const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// What a new entry has already, so that it needs not be set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InitialMeta {
    /// Owner and group, where known.
    pub(super) owner: Option<(u32, u32)>,
    /// Permission bits, where known.
    pub(super) mode: Option<u32>,
}

/// The owner and group that an entry can have at the destination: root gives everything away,
/// others keep what they are given and can at most set the group.
pub(super) fn attainable_owner(
    context: &Context,
    given: Option<(u32, u32)>,
    stamp: &FileStat,
) -> (u32, u32) {
    match given {
        Some((uid, _)) if !context.identity.is_root => (uid, stamp.gid),
        _ => (stamp.uid, stamp.gid),
    }
}

/// The names of an open file's attributes that are to be kept.
pub(super) fn list_attributes(
    file: BorrowedFd<'_>,
    config: &Config,
) -> rustix::io::Result<Vec<CString>> {
    let (mode, xattr) = (config.preserve.mode, config.preserve.xattr);
    if !mode.is_wanted() && !xattr.is_wanted() {
        return Ok(Vec::new());
    }
    let mut names = all_attributes(|buffer| fs::flistxattr(file, buffer))?;
    names.retain(|name| keep_of(config, name).is_wanted());
    Ok(names)
}

fn all_attributes(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<CString>> {
    let mut small = [0; 512];
    let mut large;
    let bytes = match list(&mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            // The most that the kernel gives: XATTR_LIST_MAX (xattr(7)).
            large = vec![0; 65536];
            let length = list(&mut large)?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    Ok(bytes
        .split_inclusive(|&b| b == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

/// ACLs are a part of the mode, as cp(1) has it.
fn keep_of(config: &Config, name: &CStr) -> Keep {
    if name.to_bytes().starts_with(ACL_PREFIX) {
        config.preserve.mode
    } else {
        config.preserve.xattr
    }
}

fn get_attribute(
    get: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 1024];
    loop {
        match get(&mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            // The most that the kernel gives: XATTR_SIZE_MAX (xattr(7)).
            Err(Errno::RANGE) if value.len() < 65536 => value.resize(65536, 0),
            // Gone since it was listed.
            Err(Errno::NODATA) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

/// Bits that a copy may have whose owner or group could not be kept: a program that would run as
/// somebody else than at the source must not.
fn permissible(mode: u32, stamp: &FileStat, owner: Option<(u32, u32)>) -> u32 {
    match owner {
        Some((uid, _)) if uid != stamp.uid => mode & !0o6000,
        Some((_, gid)) if gid != stamp.gid => mode & !0o2000,
        _ => mode,
    }
}

fn times(stamp: &FileStat) -> Timestamps {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time(stamp.atime),
        last_modification: time(stamp.mtime),
    }
}

impl Copier {
    /// Sets everything on an open regular file.
    pub(super) fn dress_file(
        &mut self,
        file: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        stamp: &FileStat,
        has: InitialMeta,
        attributes: &[CString],
    ) -> Result<(), CopyError> {
        let owner = self.set_owner(has.owner, stamp, |uid, gid| fs::fchown(file, uid, gid))?;
        if has.mode.is_none() {
            self.drop_acl(file)?;
        }
        let denied = self.copy_attributes(
            attributes,
            |name, buffer| fs::fgetxattr(source, name, buffer),
            |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()),
        )?;
        let config = &self.context.config;
        let mode = if config.preserve.mode.is_wanted() {
            permissible(stamp.mode & 0o7777 & !denied, stamp, owner)
        } else {
            0o666 & !self.context.identity.umask
        };
        if has.mode != Some(mode) || !attributes.is_empty() {
            self.set_mode(|| fs::fchmod(file, Mode::from_raw_mode(mode)))?;
        }
        self.set_times(|| fs::futimens(file, &times(stamp)))
    }

    /// Sets everything on a folder whose entries are done. `stamp` is what the source folder
    /// was before it was read.
    ///
    /// # Errors
    /// What could not be set.
    pub(crate) fn finish_folder(
        &mut self,
        folder: &DirPair,
        stamp: &FileStat,
    ) -> Result<(), CopyError> {
        let config = &self.context.config;
        if config.dry_run {
            return Ok(());
        }
        let target = folder.destination()?;
        let attributes = list_attributes(folder.source(), config).at(Step::ReadAttributes)?;
        let now = FileStat::of(&fs::fstat(target).at(Step::LookAtDestination)?);
        let has = Some((now.uid, now.gid));
        let owner = self.set_owner(has, stamp, |uid, gid| fs::fchown(target, uid, gid))?;
        let mut changed = owner != has;
        if !folder.is_fresh() {
            changed |= self.drop_attributes(target, &attributes)?;
        }
        let source = folder.source();
        let denied = self.copy_attributes(
            &attributes,
            |name, buffer| fs::fgetxattr(source, name, buffer),
            |name, value| fs::fsetxattr(target, name, value, XattrFlags::empty()),
        )?;
        let mode = if config.preserve.mode.is_wanted() {
            permissible(stamp.mode & 0o7777 & !denied, stamp, owner)
        } else if folder.is_fresh() {
            0o777 & !self.context.identity.umask
        } else {
            now.mode & 0o7777
        };
        if now.mode & 0o7777 != mode || changed || !attributes.is_empty() {
            self.set_mode(|| fs::fchmod(target, Mode::from_raw_mode(mode)))?;
        }
        if now.mtime != stamp.mtime {
            self.set_times(|| fs::futimens(target, &times(stamp)))?;
        }
        if config.fsync {
            fs::fsync(target).at(Step::Sync)?;
        }
        Ok(())
    }

    /// Sets everything on an entry that cannot be opened: a link, a FIFO, a socket, a device.
    pub(super) fn dress_by_name(
        &mut self,
        folder: &DirPair,
        from: &CStr,
        name: &CStr,
        stamp: &FileStat,
    ) -> Result<(), CopyError> {
        let dir = folder.destination()?;
        let is_link = fs::FileType::from_raw_mode(stamp.mode) == fs::FileType::Symlink;
        let here = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
            .at(Step::Create)?;
        let now = FileStat::of(&fs::fstat(&here).at(Step::LookAtDestination)?);
        // Who may write to the folder can give the name to something else.
        let kind = |stamp: &FileStat| (fs::FileType::from_raw_mode(stamp.mode), stamp.rdev);
        if kind(&now) != kind(stamp) {
            return Err(CopyError::new(Step::LookAtDestination, Reason::Replaced));
        }
        let has = Some((now.uid, now.gid));
        let owner = self.set_owner(has, stamp, |uid, gid| {
            fs::chownat(&here, c"", uid, gid, AtFlags::EMPTY_PATH)
        })?;
        let denied = self.copy_attributes_by_name(folder, from, &here)?;
        if !is_link && self.context.config.preserve.mode.is_wanted() {
            let mode = permissible(stamp.mode & 0o7777 & !denied, stamp, owner);
            // An ACL or the change of owner may have changed it.
            let now = fs::fstat(&here).at(Step::LookAtDestination)?.st_mode & 0o7777;
            if now != mode {
                let path = magic_link(&here);
                self.set_mode(|| fs::chmod(path.as_c_str(), Mode::from_raw_mode(mode)))?;
            }
        }
        self.set_times(|| fs::utimensat(dir, name, &times(stamp), AtFlags::SYMLINK_NOFOLLOW))
    }

    fn copy_attributes_by_name(
        &mut self,
        folder: &DirPair,
        from: &CStr,
        here: &OwnedFd,
    ) -> Result<u32, CopyError> {
        let config = &self.context.config;
        if !config.preserve.xattr.is_wanted() && !config.preserve.mode.is_wanted() {
            return Ok(0);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there =
            fs::openat(folder.source(), from, flags, Mode::empty()).at(Step::ReadAttributes)?;
        let (from, to) = (magic_link(&there), magic_link(here));
        if folder.inherits() {
            let _ = fs::removexattr(to.as_c_str(), ACCESS_ACL);
        }
        let mut names = match all_attributes(|buffer| fs::listxattr(from.as_c_str(), buffer)) {
            // No /proc to reach it by.
            Err(Errno::NOENT) => return Ok(0),
            result => result.at(Step::ReadAttributes)?,
        };
        names.retain(|name| keep_of(config, name).is_wanted());
        self.copy_attributes(
            &names,
            |name, buffer| fs::getxattr(from.as_c_str(), name, buffer),
            |name, value| fs::setxattr(to.as_c_str(), name, value, XattrFlags::empty()),
        )
    }

    /// Gives the owner that the entry has then, as far as it is known.
    fn set_owner(
        &mut self,
        has: Option<(u32, u32)>,
        stamp: &FileStat,
        chown: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> Result<Option<(u32, u32)>, CopyError> {
        let config = &self.context.config;
        let keep = config.preserve.ownership;
        let wanted = attainable_owner(self.context, has, stamp);
        if !keep.is_wanted()
            || has == Some(wanted) && (keep == Keep::BestEffort || wanted.0 == stamp.uid)
        {
            return Ok(has);
        }
        let uid = Some(wanted.0).filter(|&uid| has.is_none_or(|has| has.0 != uid));
        let uid = uid.or((keep == Keep::Required).then_some(stamp.uid));
        match chown(uid.map(Uid::from_raw), Some(Gid::from_raw(wanted.1))) {
            Ok(()) => Ok(Some((uid.unwrap_or(wanted.0), wanted.1))),
            Err(errno) => {
                self.tolerate(keep, errno, Step::SetOwner, |not| not.ownership = true)?;
                Ok(has)
            }
        }
    }

    fn set_mode(&mut self, chmod: impl Fn() -> rustix::io::Result<()>) -> Result<(), CopyError> {
        match chmod() {
            Ok(()) => Ok(()),
            Err(errno) => {
                let keep = self.context.config.preserve.mode;
                self.tolerate(keep, errno, Step::SetMode, |not| not.mode = true)
            }
        }
    }

    fn set_times(&mut self, utimens: impl Fn() -> rustix::io::Result<()>) -> Result<(), CopyError> {
        let keep = self.context.config.preserve.timestamps;
        if !keep.is_wanted() {
            return Ok(());
        }
        match utimens() {
            Ok(()) => Ok(()),
            Err(errno) => self.tolerate(keep, errno, Step::SetTimes, |not| not.timestamps = true),
        }
    }

    /// Gives the bits that the mode must not have: where an ACL cannot be kept, its mask, which
    /// stands in the place of the group's rights, would become these.
    fn copy_attributes(
        &mut self,
        names: &[CString],
        get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
        set: impl Fn(&CStr, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<u32, CopyError> {
        let mut denied = 0;
        for name in names {
            let is_acl = name.as_c_str() == ACCESS_ACL;
            let keep = keep_of(&self.context.config, name);
            let value = match get_attribute(|buffer| get(name, buffer)) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(errno) => {
                    self.tolerate(keep, errno, Step::ReadAttributes, |not| not.xattr = true)?;
                    denied |= if is_acl { 0o070 } else { 0 };
                    continue;
                }
            };
            if let Err(errno) = set(name, &value) {
                self.tolerate(keep, errno, Step::SetAttributes, |not| not.xattr = true)?;
                denied |= if is_acl { denied_to_group(&value) } else { 0 };
            }
        }
        Ok(denied)
    }

    /// Removes the ACL that a new file has inherited from its folder.
    fn drop_acl(&self, file: BorrowedFd<'_>) -> Result<(), CopyError> {
        match fs::fremovexattr(file, ACCESS_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(CopyError::new(Step::SetAttributes, errno)),
        }
    }

    /// Removes a merged folder's ACLs and user attributes that the source folder has not. What
    /// the system sets by itself, security labels above all, stays. True when one went.
    fn drop_attributes(
        &mut self,
        target: BorrowedFd<'_>,
        keep: &[CString],
    ) -> Result<bool, CopyError> {
        let there = list_attributes(target, &self.context.config).at(Step::SetAttributes)?;
        let mut dropped = false;
        for name in there.iter().filter(|name| !keep.contains(name)) {
            let bytes = name.to_bytes();
            if bytes.starts_with(b"user.") || bytes.starts_with(ACL_PREFIX) {
                match fs::fremovexattr(target, name) {
                    Ok(()) => dropped = true,
                    Err(Errno::NODATA) => {}
                    Err(errno) => {
                        let keep = keep_of(&self.context.config, name);
                        self.tolerate(keep, errno, Step::SetAttributes, |not| not.xattr = true)?;
                    }
                }
            }
        }
        Ok(dropped)
    }

    /// Decides about something that could not be set: what was asked for by name is a failure;
    /// what a normal user may not is nobody's fault; what the file system cannot hold is told
    /// once for the run.
    fn tolerate(
        &mut self,
        keep: Keep,
        errno: Errno,
        step: Step,
        note: impl Fn(&mut NotKept),
    ) -> Result<(), CopyError> {
        let failure = Err(CopyError::new(step, errno));
        match errno {
            _ if keep == Keep::Required => failure,
            Errno::PERM | Errno::ACCESS if !self.context.identity.is_root => Ok(()),
            Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
                note(&mut self.not_kept);
                Ok(())
            }
            _ => failure,
        }
    }
}

/// The group's mode bits that an ACL does not give to the owning group itself. It has a header of
/// four bytes, and entries of eight: tag, rights, ID, all little-endian (linux/posix_acl_xattr.h).
fn denied_to_group(acl: &[u8]) -> u32 {
    const GROUP_OBJ: [u8; 2] = [4, 0];
    let entries = acl.get(4..).unwrap_or_default().chunks_exact(8);
    let mut of_group = entries.filter(|entry| entry[..2] == GROUP_OBJ);
    let rights = of_group.next().map_or(0, |entry| u32::from(entry[2]) & 7);
    0o070 & !(rights << 3)
}

/// A path that leads to exactly the open entry, be it a link or a device: some calls know no
/// other way.
pub(super) fn magic_link(entry: &OwnedFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", entry.as_raw_fd())).unwrap_or_default()
}
