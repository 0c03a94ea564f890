//! Lists directories.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use walkdir::{DirEntryExt, WalkDir};

use crate::fs::path::Kind;

/// Returns a path by which walkdir reaches an open directory, even if its real path is too long.
///
/// The path is valid until the next call. `own_current_dir` says that this worker does not share
/// its current directory with other threads. Then entering the directory and listing `.` takes
/// 8 µs for 15 entries. Listing /proc/self/fd/N takes 18 µs: name lookups in /proc are slow, and
/// walkdir does three.
pub(crate) fn path_to(dir: BorrowedFd<'_>, own_current_dir: bool) -> PathBuf {
    // A directory that can be read but not entered must still be listed.
    if own_current_dir && rustix::process::fchdir(dir).is_ok() {
        PathBuf::from(".")
    } else {
        PathBuf::from(format!("/proc/thread-self/fd/{}", dir.as_raw_fd()))
    }
}

/// The entries of a directory, read one by one.
///
/// A directory of millions of entries is never held in memory.
pub(crate) struct Listing {
    entries: walkdir::IntoIter,
    /// The current name and a NUL: one buffer for all names.
    name: Vec<u8>,
    kind: Kind,
    inode: u64,
    /// How the listing ended, if it has.
    ended: Option<Result<(), Errno>>,
}

impl Listing {
    /// Prepares to list the directory at `path`. Nothing is read yet.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self {
            entries: WalkDir::new(path).min_depth(1).max_depth(1).into_iter(),
            name: Vec::with_capacity(256),
            kind: Kind::File,
            inode: 0,
            ended: None,
        }
    }

    /// Returns the next entry, or `None` after the last one or an error ([`Listing::result`]).
    pub(crate) fn read(&mut self) -> Option<(Kind, &CStr)> {
        if self.ended.is_some() {
            return None;
        }
        match self.entries.next() {
            Some(Ok(entry)) => {
                self.kind = Kind::of_listed(entry.file_type());
                self.inode = entry.ino();
                self.hold(entry.file_name());
            }
            // On a file system whose listings lack types, walkdir calls lstat(2), and that failed
            // for this entry. The others are still listed, and opening this one shows the error.
            Some(Err(error)) if error.depth() == 1 && error.path().is_some() => {
                self.kind = Kind::File;
                self.inode = 0;
                self.hold(error.path().and_then(Path::file_name)?);
            }
            Some(Err(error)) => {
                let number = error.io_error().and_then(std::io::Error::raw_os_error);
                let errno = number.map_or(Errno::IO, Errno::from_raw_os_error);
                self.ended = Some(Err(errno));
                return None;
            }
            None => {
                self.ended = Some(Ok(()));
                return None;
            }
        }
        self.last_read()
    }

    /// Returns the entry that was read last.
    pub(crate) fn last_read(&self) -> Option<(Kind, &CStr)> {
        let name = CStr::from_bytes_with_nul(&self.name).ok()?;
        Some((self.kind, name))
    }

    /// Returns the inode number of the entry that was read last. It comes from the directory: a
    /// mount point has that of the directory below it.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Copies a name into the buffer.
    fn hold(&mut self, name: &OsStr) {
        self.name.clear();
        self.name.extend_from_slice(name.as_bytes());
        self.name.push(0);
    }

    /// Returns the error that ended the listing, if any.
    pub(crate) fn result(self) -> Result<(), Errno> {
        self.ended.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, open};
    use std::os::fd::AsFd;

    #[test]
    fn every_entry_is_listed_with_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let opened = open(dir.path(), crate::fs::open::DIRECTORY, Mode::empty()).unwrap();
        let mut found = Vec::new();
        let mut listing = Listing::of(path_to(opened.as_fd(), false));
        while let Some((kind, name)) = listing.read() {
            found.push((name.to_str().unwrap().to_owned(), kind));
        }
        assert_eq!(listing.result(), Ok(()));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("directory", Kind::Directory),
            ("file", Kind::File),
            ("link", Kind::Symlink),
        ];
        assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn a_listing_that_fails_returns_the_reason() {
        let mut listing = Listing::of(PathBuf::from("/proc/self/no such directory"));
        assert_eq!(listing.read(), None);
        assert_eq!(listing.read(), None);
        assert_eq!(listing.result(), Err(Errno::NOENT));
    }
}
