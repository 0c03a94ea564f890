//! An entry whose metadata is read or set: open, or by a path if it cannot be opened.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, StatxFlags, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use crate::fs::path::Kind;
use crate::fs::proc::magic_link;
use crate::fs::stat::FileStat;
use crate::fs::xattr;

/// The inode flags of statx(2) that refuse every change: STATX_ATTR_IMMUTABLE and _APPEND.
const REFUSES_CHANGES: u64 = 0x10 | 0x20;

/// An entry whose metadata is read or set.
pub(super) enum Handle<'a> {
    /// Open for reading or writing.
    Open(BorrowedFd<'a>),
    /// Open with O_PATH: a symbolic link, a FIFO, a socket, a device, or a file that is only given
    /// other metadata.
    Path {
        entry: &'a OwnedFd,
        link: CString,
        dir: BorrowedFd<'a>,
        name: &'a CStr,
    },
}

impl<'a> Handle<'a> {
    /// Makes the handle of an entry that was opened with O_PATH as `name` in `dir`.
    pub(super) fn path(entry: &'a OwnedFd, dir: BorrowedFd<'a>, name: &'a CStr) -> Self {
        Self::Path {
            link: magic_link(entry),
            entry,
            dir,
            name,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Open(fd) => *fd,
            Self::Path { entry, .. } => entry.as_fd(),
        }
    }

    pub(super) fn stat(&self) -> Result<FileStat> {
        Ok(FileStat::of(&fs::fstat(self.fd())?))
    }

    pub(super) fn chown(&self, uid: Option<Uid>, gid: Option<Gid>) -> Result<()> {
        match self {
            Self::Open(fd) => fs::fchown(fd, uid, gid),
            Self::Path { entry, .. } => fs::chownat(entry, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    pub(super) fn chmod(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Self::Open(fd) => fs::fchmod(fd, mode),
            Self::Path { link, .. } => fs::chmod(link.as_c_str(), mode),
        }
    }

    pub(super) fn utimens(&self, times: &Timestamps) -> Result<()> {
        match self {
            Self::Open(fd) => fs::futimens(fd, times),
            Self::Path { dir, name, .. } => {
                fs::utimensat(dir, *name, times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    pub(super) fn list(&self) -> Result<Vec<CString>> {
        match self {
            Self::Open(fd) => xattr::all_attributes(|buffer| fs::flistxattr(fd, buffer)),
            Self::Path { link, .. } => {
                xattr::all_attributes(|buffer| fs::listxattr(&**link, buffer))
            }
        }
    }

    pub(super) fn get(&self, attribute: &CStr) -> Result<Option<Vec<u8>>> {
        xattr::get_attribute(|buffer| match self {
            Self::Open(fd) => fs::fgetxattr(fd, attribute, buffer),
            Self::Path { link, .. } => fs::getxattr(&**link, attribute, buffer),
        })
    }

    pub(super) fn set(&self, attribute: &CStr, value: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => fs::fsetxattr(fd, attribute, value, XattrFlags::empty()),
            Self::Path { link, .. } => fs::setxattr(&**link, attribute, value, XattrFlags::empty()),
        }
    }

    /// Removes an attribute. Returns false if it was not there.
    pub(super) fn remove(&self, attribute: &CStr) -> Result<bool> {
        let removed = match self {
            Self::Open(fd) => fs::fremovexattr(fd, attribute),
            Self::Path { link, .. } => fs::removexattr(&**link, attribute),
        };
        match removed {
            Ok(()) => Ok(true),
            Err(Errno::NODATA) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Returns true for an entry that is immutable or append-only: it refuses every change,
    /// whatever its file system can hold.
    pub(super) fn is_immutable(&self) -> bool {
        fs::statx(self.fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)
            .is_ok_and(|found| found.stx_attributes.bits() & REFUSES_CHANGES != 0)
    }
}

/// An entry whose metadata is read or set, with the device that grants are noted for.
pub(super) struct Subject<'a> {
    pub(super) handle: Handle<'a>,
    pub(super) device: u64,
    pub(super) kind: Kind,
}
