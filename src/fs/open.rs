//! Opens directories below a root without following any symbolic link on the way, and files without
//! setting their access times.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use crate::fs::path::RelPath;

/// The longest path that the kernel takes: PATH_MAX is 4096 with the NUL (path_resolution(7)).
const LONGEST: usize = 4095;

/// Flags that every directory is opened with.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Flags that an entry is opened with to get at its metadata only.
pub(crate) const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a file without setting its access time. Only its owner may ask for that.
pub(crate) fn open_unnoticed(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    flags: OFlags,
) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => fs::openat(dir, name, flags, Mode::empty()),
        result => result,
    }
}

/// Opens the directory at `path` below `root`.
///
/// Fails with ELOOP or ENOTDIR if a name on the way is a symbolic link or not a directory.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &RelPath) -> Result<OwnedFd> {
    let path = path.as_bytes();
    if path.is_empty() {
        return fs::openat(root, c".", DIRECTORY, Mode::empty());
    }
    if path.len() > LONGEST {
        return open_in_steps(root, path, DIRECTORY);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve) {
            // A rename elsewhere kept the kernel from proving that the path stays below the root.
            // openat2(2) says to try again.
            Err(Errno::AGAIN) => {}
            // Linux before 5.6, or a container that blocks the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_in_steps(root, path, DIRECTORY),
            result => return result,
        }
    }
}

/// Opens the directory at `path` below `root` and follows symbolic links, even out of the root.
///
/// Only for sources, and only with `--dereference`.
pub(crate) fn open_dir_following_links(root: BorrowedFd<'_>, path: &RelPath) -> Result<OwnedFd> {
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    match path.as_bytes() {
        b"" => fs::openat(root, c".", flags, Mode::empty()),
        path if path.len() > LONGEST => open_in_steps(root, path, flags),
        path => fs::openat(root, path, flags, Mode::empty()),
    }
}

/// Opens one directory of the path after the other.
///
/// For kernels without openat2(2), and for paths that are too long for one call.
fn open_in_steps(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let mut dir: Option<OwnedFd> = None;
    for name in path.split(|&b| b == b'/') {
        let parent = dir.as_ref().map_or(root, AsFd::as_fd);
        dir = Some(fs::openat(parent, name, flags, Mode::empty())?);
    }
    dir.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let root = fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        (dir, root)
    }

    type Opener = fn(BorrowedFd<'_>, &RelPath) -> Result<OwnedFd>;
    const BOTH_WAYS: [Opener; 2] = [open_dir, |root, path| {
        open_in_steps(root, path.as_bytes(), DIRECTORY)
    }];

    #[test]
    fn links_on_the_way_are_refused() {
        let (_dir, root) = tree();
        let path = |text: &str| {
            text.split('/')
                .fold(RelPath::default(), |path, name| path.join(name.as_bytes()))
        };
        for open in BOTH_WAYS {
            assert!(open(root.as_fd(), &path("a/b")).is_ok());
            for through in ["link", "link/b"] {
                let error = open(root.as_fd(), &path(through)).unwrap_err();
                assert!(matches!(error, Errno::LOOP | Errno::NOTDIR), "{error}");
            }
        }
    }

    #[test]
    fn paths_beyond_path_max_open() {
        let (_dir, root) = tree();
        let name = [b'n'; 255];
        let mut path = RelPath::default();
        let mut at = root.try_clone().unwrap();
        for _ in 0..20 {
            fs::mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            at = fs::openat(&at, &name[..], DIRECTORY, Mode::empty()).unwrap();
            path = path.join(&name);
        }
        assert!(path.as_bytes().len() > LONGEST);
        let opened = open_dir(root.as_fd(), &path).unwrap();
        let (opened, at) = (fs::fstat(&opened).unwrap(), fs::fstat(&at).unwrap());
        assert_eq!(opened.st_ino, at.st_ino);
    }
}
