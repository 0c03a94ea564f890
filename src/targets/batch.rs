//! Which destinations are synced in batches with `--fsync`, instead of file by file.
//!
//! syncfs(2) writes a whole file system to disk, which costs about as much as fsync(2) for one
//! file. But it must report errors, which it does since Linux 5.8, and it must flush the disk's
//! cache. Both are known of a few file systems only. All others sync each file.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{self, Mode};
use rustix::io::Errno;
use rustix::system::uname;

use super::mounts::Mounts;
use crate::fs::file_system::FileSystem;
use crate::fs::open::{DIRECTORY, ENTRY};

/// The first Linux whose syncfs(2) reports that data could not be written.
const REPORTS_ERRORS: (u32, u32) = (5, 8);

/// Descriptors to sync a device by. A worker that is lost while it syncs may have been told of an
/// error that it could not report. So the next attempt uses another one, which still reports it.
const ROOTS: usize = 4;

/// A destination whose files are synced in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchedDevice {
    /// The first target on the same device, which has the descriptors to sync it by.
    pub(crate) leader: u32,
    pub(crate) device: u64,
}

/// Returns true if syncfs(2) can be relied on for the file system of a directory.
pub(super) fn is_synced_at_once(dir: BorrowedFd<'_>, device: u64, mounts: &Mounts) -> bool {
    let reports_errors = uname()
        .release()
        .to_str()
        .ok()
        .and_then(version)
        .is_some_and(|version| version >= REPORTS_ERRORS);
    reports_errors
        && is_allowed(dir)
        && match FileSystem::of(dir) {
            // The old driver for ext2 does not flush the disk's cache.
            Some(FileSystem::Ext) => mounts
                .type_of(device)
                .is_some_and(|name| name != b"ext2" && name.starts_with(b"ext")),
            // tmpfs has no disk.
            Some(FileSystem::Btrfs | FileSystem::F2fs | FileSystem::Tmpfs | FileSystem::Xfs) => {
                true
            }
            _ => false,
        }
}

/// Returns false if a container forbids syncfs(2).
fn is_allowed(dir: BorrowedFd<'_>) -> bool {
    // It cannot sync by such a descriptor (EBADF), so this costs nothing.
    let Ok(path) = fs::openat(dir, c".", ENTRY, Mode::empty()) else {
        return false;
    };
    let forbidden = [Errno::NOSYS, Errno::PERM, Errno::ACCESS];
    fs::syncfs(path).is_err_and(|errno| !forbidden.contains(&errno))
}

/// Opens the descriptors to sync by.
pub(super) fn open_roots(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<OwnedFd>> {
    let open = |_| fs::openat(dir, c".", DIRECTORY, Mode::empty());
    (0..ROOTS).map(open).collect()
}

/// Parses the first two numbers of a release of Linux.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn releases_of_linux_are_compared_by_number() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert!(version("5.10.0") > Some(REPORTS_ERRORS));
        assert!(version("4.19.0") < Some(REPORTS_ERRORS));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn proc_is_not_synced_at_once() {
        let dir = std::fs::File::open("/proc").unwrap();
        let device = fs::fstat(&dir).unwrap().st_dev;
        assert!(!is_synced_at_once(dir.as_fd(), device, &Mounts::read()));
    }
}
