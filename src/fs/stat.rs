//! Which file an entry is, and the metadata that stat(2) returns.

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::devices;

/// A device and inode number: they identify a file, whatever its names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl FileId {
    /// Identifies a file by the stat of an entry. The device has the number that all machines of the
    /// run know it by.
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            dev: devices::common(stat.st_dev),
            ino: stat.st_ino,
        }
    }
}

/// The identity of a source directory and of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirIds {
    pub(crate) source: FileId,
    /// `None` in a dry run if the destination does not exist.
    pub(crate) destination: Option<FileId>,
}

/// The metadata that a copy keeps, and that shows whether the source has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStat {
    pub(crate) id: FileId,
    /// The file type and the mode bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Bytes that are allocated on disk: less than `size` for a file with holes.
    pub(crate) allocated: u64,
    /// The number of hard links.
    pub(crate) links: u64,
    /// The device number that a device file stands for.
    pub(crate) rdev: u64,
    /// Seconds and nanoseconds, as in the other two times.
    pub(crate) atime: (i64, i64),
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

impl FileStat {
    #[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            id: FileId::of(stat),
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

    /// Returns true if a later stat of the same file shows no change of its contents.
    pub(crate) fn has_same_contents(&self, later: &Self) -> bool {
        (self.size, self.mtime, self.ctime) == (later.size, later.mtime, later.ctime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_size_or_time_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = |path| FileStat::of(&rustix::fs::stat(path).unwrap());
        let before = stat(file.path());
        assert!(before.has_same_contents(&stat(file.path())));
        std::fs::write(file.path(), "longer").unwrap();
        let after = stat(file.path());
        assert!(!before.has_same_contents(&after));
        let same_size = FileStat {
            size: before.size,
            mtime: (before.mtime.0, before.mtime.1 + 1),
            ..before
        };
        assert!(!before.has_same_contents(&same_size));
    }
}
