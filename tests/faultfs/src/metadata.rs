//! Modes, owners, times and extended attributes.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use fuser::{Errno, FileHandle, INodeNo, ReplyXattr, Request, TimeOrNow};
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Result};

use crate::convert::new_time;
use crate::faults::Kind;
use crate::inodes::{Inode, path_of};
use crate::passthrough::Passthrough;

const SETID_BITS: u32 = 0o6000;
/// The kernel's limit for an extended attribute, and for the list of their names.
const XATTR_MAX: usize = 1 << 16;

/// The attributes to set; `None` leaves one unchanged.
pub(crate) struct NewAttributes {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<TimeOrNow>,
    pub(crate) modified: Option<TimeOrNow>,
    pub(crate) handle: Option<FileHandle>,
}

impl Passthrough {
    pub(crate) fn set_attributes(&self, inode: &Inode, new: &NewAttributes) -> Result<()> {
        let fd = inode.fd()?;
        match (new.size, new.handle) {
            (None, _) => {}
            (Some(size), Some(handle)) => {
                let handle = self.handle(handle)?;
                self.set_size(&handle.file, size)?;
                handle.was_written.store(true, Ordering::Relaxed);
            }
            (Some(size), None) => self.set_size(&inode.open(OFlags::WRONLY)?, size)?,
        }
        let lies = |kind| self.has_fault(inode, |it| it == kind);
        if (new.owner.is_some() || new.group.is_some()) && !lies(Kind::LieChown) {
            let (owner, group) = (new.owner.map(Uid::from_raw), new.group.map(Gid::from_raw));
            fs::chownat(&fd, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        // After the owner, because its change removes the setuid and setgid bits.
        if let Some(mode) = new.mode.filter(|_| !lies(Kind::LieChmod)) {
            fs::chmodat(CWD, path_of(&fd), Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if (new.accessed.is_some() || new.modified.is_some()) && !lies(Kind::LieUtimens) {
            let times = Timestamps {
                last_access: new_time(new.accessed),
                last_modification: new_time(new.modified),
            };
            fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn set_size(&self, file: &OwnedFd, size: u64) -> Result<()> {
        if !self.faults.take_space(self.filled(file, size)?) {
            return Err(io::Errno::NOSPC);
        }
        fs::ftruncate(file, size)
    }

    pub(crate) fn set_attribute(
        &self, ino: INodeNo, name: &OsStr, value: &[u8], flags: XattrFlags,
    ) -> Result<()> {
        let fd = self.fd(ino)?;
        if let Some(max) = self.settings.xattr_max {
            if value.len() > max {
                return Err(io::Errno::TOOBIG);
            }
            if value.len() + size_of_others(&fd, name)? > max {
                return Err(io::Errno::NOSPC);
            }
        }
        fs::setxattr(path_of(&fd), name, value, flags)
    }

    pub(crate) fn get_attribute(&self, ino: INodeNo, name: &OsStr) -> Result<Vec<u8>> {
        get_attribute(&*self.fd(ino)?, name)
    }

    /// Lists the names of attributes, and trusted ones for root only.
    pub(crate) fn list_attributes(&self, ino: INodeNo, caller: &Request) -> Result<Vec<u8>> {
        let names = list_attributes(&*self.fd(ino)?)?;
        let may_see_all = caller.uid() == 0;
        let all = names.split_inclusive(|&byte| byte == 0);
        let seen = all.filter(|name| may_see_all || !name.starts_with(b"trusted."));
        Ok(seen.flatten().copied().collect())
    }
}

fn get_attribute(fd: &OwnedFd, name: &OsStr) -> Result<Vec<u8>> {
    let mut value = vec![0; XATTR_MAX];
    let length = fs::getxattr(path_of(fd), name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn list_attributes(fd: &OwnedFd) -> Result<Vec<u8>> {
    let mut names = vec![0; XATTR_MAX];
    let length = fs::listxattr(path_of(fd), &mut names[..])?;
    names.truncate(length);
    Ok(names)
}

/// Returns the size of all attributes but one.
fn size_of_others(fd: &OwnedFd, name: &OsStr) -> Result<usize> {
    let names = list_attributes(fd)?;
    let others = names.split(|&byte| byte == 0).map(OsStr::from_bytes);
    let others = others.filter(|other| !other.is_empty() && *other != name);
    others.map(|other| Ok(get_attribute(fd, other)?.len())).sum()
}

/// Answers with `data`, or with its length if the caller asks for that with a `size` of 0.
pub(crate) fn answer_xattr(reply: ReplyXattr, size: u32, data: &[u8]) {
    match size as usize {
        0 => reply.size(data.len() as u32),
        size if size < data.len() => reply.error(Errno::ERANGE),
        _ => reply.data(data),
    }
}

/// Changes the owner of a new entry to the caller.
pub(crate) fn give_away(parent: &Inode, name: &OsStr, caller: &Request) -> Result<()> {
    let (dir, itself) = (parent.fd()?, AtFlags::SYMLINK_NOFOLLOW);
    let mode = fs::statat(&dir, name, itself)?.st_mode;
    let inherits_group = fs::fstat(&dir)?.st_mode & Mode::SGID.as_raw_mode() != 0;
    let group = (!inherits_group).then(|| Gid::from_raw(caller.gid()));
    fs::chownat(&dir, name, Some(Uid::from_raw(caller.uid())), group, itself)?;
    if mode & SETID_BITS != 0 {
        // The change of owner has removed them.
        fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}
