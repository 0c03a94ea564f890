//! Which file this is, and what `stat` says of it.

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// A device and an inode number: which entry this is, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FileId {
    /// Device number.
    pub(crate) dev: u64,
    /// FileId number.
    pub(crate) ino: u64,
}

impl FileId {
    /// The inode that `stat` is of.
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
        }
    }
}

/// A folder at both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirIds {
    /// The source.
    pub(crate) source: FileId,
    /// The destination; none in a dry run, where it does not exist.
    pub(crate) destination: Option<FileId>,
}

/// The part of a `stat` that a copy keeps, and that tells whether the source has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStat {
    /// Which file it is.
    pub(crate) inode: FileId,
    /// File type and mode bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Allocated bytes.
    pub(crate) allocated: u64,
    /// Number of hard links.
    pub(crate) links: u64,
    /// Device number of a device.
    pub(crate) rdev: u64,
    /// Access time, seconds and nanoseconds.
    pub(crate) atime: (i64, i64),
    /// Modification time.
    pub(crate) mtime: (i64, i64),
    /// Time of the last change of the inode.
    pub(crate) ctime: (i64, i64),
}

impl FileStat {
    /// What `stat` says.
    #[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            inode: FileId::of(stat),
            mode: stat.st_mode as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            allocated: stat.st_blocks as u64 * 512,
            links: stat.st_nlink as u64,
            rdev: stat.st_rdev as u64,
            atime: (stat.st_atime as i64, stat.st_atime_nsec as i64),
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// True when a later look at the same file shows that its contents are what they were.
    pub(crate) fn same_contents(&self, later: &Self) -> bool {
        (self.size, self.mtime, self.ctime) == (later.size, later.mtime, later.ctime)
    }
}
