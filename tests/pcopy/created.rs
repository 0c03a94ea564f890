//! An entry that a test has created, and its metadata.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, lsetxattr,
    utimensat,
};

/// An entry whose metadata can be set step by step.
///
/// The order matters: a change of owner removes setuid bits and capabilities.
pub(crate) struct Created(pub(crate) PathBuf);

impl Created {
    /// Returns the path by which this process reaches the entry.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    pub(crate) fn mode(self, mode: u32) -> Created {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode))
            .unwrap_or_else(|e| panic!("chmod {}: {e}", self.0.display()));
        self
    }

    #[track_caller]
    pub(crate) fn owner(self, uid: u32, gid: u32) -> Created {
        chownat(
            CWD,
            &self.0,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap_or_else(|e| panic!("chown {}: {e}", self.0.display()));
        self
    }

    /// Sets the modification time and leaves the access time.
    #[track_caller]
    pub(crate) fn mtime(self, seconds: i64, nanoseconds: i64) -> Created {
        self.times(UNCHANGED, time(seconds, nanoseconds))
    }

    /// Sets the access time and leaves the modification time.
    #[track_caller]
    pub(crate) fn atime(self, seconds: i64, nanoseconds: i64) -> Created {
        self.times(time(seconds, nanoseconds), UNCHANGED)
    }

    #[track_caller]
    fn times(self, last_access: Timespec, last_modification: Timespec) -> Created {
        let times = Timestamps {
            last_access,
            last_modification,
        };
        utimensat(CWD, &self.0, &times, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|e| panic!("utimensat {}: {e}", self.0.display()));
        self
    }

    #[track_caller]
    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Created {
        lsetxattr(&self.0, name, value.as_ref(), XattrFlags::empty())
            .unwrap_or_else(|e| panic!("setxattr {name} {}: {e}", self.0.display()));
        self
    }

    /// Sets the attribute and returns true if the file system supports it.
    pub(crate) fn try_xattr(&self, name: &str, value: impl AsRef<[u8]>) -> bool {
        lsetxattr(&self.0, name, value.as_ref(), XattrFlags::empty()).is_ok()
    }
}

const UNCHANGED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT,
};

const fn time(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}
