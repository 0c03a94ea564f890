//! The file of `--failed-to`: the failed entries, relative to their source, each path ended by a
//! NUL.
//!
//! The list is written to a temporary file beside it and renamed into place when the run ends. So
//! memory does not grow with it, and a run may read the list that it replaces.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::{self, Mode, OFlags};

use crate::protocol::error::Reason;
use crate::quote::quote;

/// A list that is being written.
#[derive(Debug)]
pub(super) struct FailedList {
    file: BufWriter<File>,
    /// Where it is written, and where it belongs. `None` if it is written in place: a pipe, a
    /// device.
    temporary: Option<(PathBuf, PathBuf)>,
    /// The path for messages.
    shown: String,
}

impl FailedList {
    /// Begins an empty list.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = quote(path.as_os_str().as_encoded_bytes());
        let open = || -> io::Result<_> {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
            let mode = Mode::from_raw_mode(0o666);
            let is_special = std::fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir());
            if is_special {
                return Ok((
                    fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, mode)?,
                    None,
                ));
            }
            // A link stays, and the file that it leads to is replaced.
            let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            if place.is_dir() {
                return Err(rustix::io::Errno::ISDIR.into());
            }
            let mut name = OsString::from(".");
            name.push(place.file_name().ok_or(io::ErrorKind::InvalidInput)?);
            name.push(format!(".pcopy-{}", std::process::id()));
            let temporary = place.with_file_name(name);
            let file = fs::open(&temporary, create | OFlags::TRUNC | OFlags::NOFOLLOW, mode)?;
            Ok((file, Some((temporary, place))))
        };
        let (file, temporary) = open()
            .map_err(reason)
            .with_context(|| format!("{shown}: create list"))?;
        Ok(Self {
            file: BufWriter::new(file.into()),
            temporary,
            shown,
        })
    }

    pub(super) fn path(&self) -> &str {
        &self.shown
    }

    pub(super) fn add(&mut self, path: &[u8]) -> io::Result<()> {
        self.file.write_all(path)?;
        self.file.write_all(b"\0")
    }

    /// Puts the list in its place.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        if let Some((temporary, place)) = self.temporary.take() {
            let renamed = std::fs::rename(&temporary, place);
            if renamed.is_err() {
                let _ = std::fs::remove_file(temporary);
            }
            renamed?;
        }
        Ok(())
    }
}

impl Drop for FailedList {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

impl AsFd for FailedList {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.get_ref().as_fd()
    }
}

/// Returns the reason of an error of the standard library, in the words of all messages.
pub(super) fn reason(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(errno) => Reason::System(errno).into(),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_list_is_there_until_the_new_one_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let link = dir.path().join("link");
        std::fs::write(&path, "old\0").unwrap();
        std::os::unix::fs::symlink("list", &link).unwrap();
        let mut list = FailedList::open(&link).unwrap();
        list.add(b"a/b").unwrap();
        list.add(b"\xff\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old\0");
        list.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a/b\0\xff\n\0");
        assert!(link.is_symlink());
        drop(FailedList::open(&path).unwrap());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        assert!(FailedList::open(dir.path()).is_err());
        assert!(FailedList::open(&path.join("below")).is_err());
    }
}
