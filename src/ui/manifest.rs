//! The list of `--manifest`: what is at the destination, in the form of sha256sum(1) and b3sum(1).
//!
//! The parent writes it as reports arrive, in their order, to a temporary file: memory does not grow
//! with the tree. The file is renamed into place when the run is complete. A run that was stopped
//! leaves the old list.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::paths::join;
use crate::config::{Algorithm, Destination, Manifest as Settings};
use crate::context::Context;
use crate::copy::temp;
use crate::fs::open::DIRECTORY;
use crate::fs::path::RelPath;
use crate::fs::stat::FileId;
use crate::protocol::entry::Checksum;
use crate::protocol::error::{Reason, error_text};
use crate::quote::quote;

/// A list that is being written.
pub(crate) struct Manifest {
    out: BufWriter<File>,
    /// The directory of the list, and its names there.
    dir: OwnedFd,
    temp: CString,
    name: CString,
    /// The path of the list, for messages.
    shown: String,
    /// Begins the paths of a target's entries.
    prefixes: Vec<Vec<u8>>,
    /// The path of the list below a target's destination, if it lies there.
    own_paths: Vec<Option<Vec<u8>>>,
    /// An entry of a source has the path of the list.
    is_taken: bool,
    algorithm: Algorithm,
    line: Vec<u8>,
    failure: Option<std::io::Error>,
}

impl Manifest {
    /// Creates the temporary file of a list.
    ///
    /// # Errors
    /// If it cannot be created, or if the list would replace what is no list.
    pub(crate) fn begin(context: &Context, settings: &Settings) -> Result<Self> {
        let shown = quote(settings.path.as_os_str().as_bytes());
        let cannot = || format!("cannot write the list {shown}");
        let real = resolve(&settings.path).with_context(cannot)?;
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            bail!("{}: not a file name", cannot());
        };
        let dir = fs::open(parent, DIRECTORY, Mode::empty());
        let dir = dir.map_err(Reason::from).with_context(cannot)?;
        let name = CString::new(name.as_bytes())?;
        check(context, &dir, &name).with_context(cannot)?;
        // No worker begins with this number.
        let temp = temp::name(context, 0, 0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666 & !context.identity.umask);
        let file = fs::openat(&dir, &temp, flags, mode);
        let file = file.map_err(Reason::from).with_context(cannot)?;
        let targets = &context.targets.list;
        let prefixes = targets.iter().map(|target| {
            let path = &target.destination_path;
            let below = match &context.config.destination {
                Destination::Path(_) | Destination::Exactly(_) => Path::new(""),
                Destination::Directory(dir) => path.strip_prefix(dir).unwrap_or(path),
                // There is no directory that all copies are below.
                Destination::Beside(_) => path,
            };
            below.as_os_str().as_bytes().to_owned()
        });
        let own_paths = targets.iter().map(|target| {
            let destination = target.destination_path.canonicalize().ok()?;
            let below = real.strip_prefix(destination).ok()?;
            Some(below.as_os_str().as_bytes().to_owned())
        });
        Ok(Self {
            out: BufWriter::with_capacity(64 << 10, File::from(file)),
            prefixes: prefixes.collect(),
            own_paths: own_paths.collect(),
            dir,
            temp,
            name,
            shown,
            is_taken: false,
            algorithm: settings.algorithm,
            line: Vec::new(),
            failure: None,
        })
    }

    /// Adds a file of a target's directory.
    pub(crate) fn add(&mut self, target: u32, dir: &RelPath, name: &[u8], checksum: &Checksum) {
        let path = join(b"", [dir.as_bytes(), name]);
        self.is_taken |= self.own_paths[target as usize].as_ref() == Some(&path);
        let path = join(&self.prefixes[target as usize], [dir.as_bytes(), name]);
        self.line.clear();
        push_line(&mut self.line, self.algorithm, checksum, &path);
        if self.failure.is_none() {
            self.failure = self.out.write_all(&self.line).err();
        }
    }

    /// Renames the list into place if the run is complete. Otherwise removes it.
    ///
    /// # Errors
    /// A message, if the list is not there.
    pub(crate) fn end(mut self, context: &Context, is_complete: bool) -> Result<(), String> {
        let result = self.publish(context, is_complete);
        if result.is_err() {
            let _ = fs::unlinkat(&self.dir, &self.temp, AtFlags::empty());
        }
        result.map_err(|reason| format!("{}: write list: {reason}", self.shown))
    }

    fn publish(&mut self, context: &Context, is_complete: bool) -> Result<(), String> {
        let text = |errno: Errno| error_text(errno.raw_os_error());
        if !is_complete {
            return Err("the run was stopped".to_owned());
        }
        if self.is_taken {
            return Err("a file of the source was copied to this path".to_owned());
        }
        let flushed = self.failure.take().map_or_else(|| self.out.flush(), Err);
        flushed.map_err(|error| {
            let number = error.raw_os_error();
            number.map_or_else(|| error.to_string(), error_text)
        })?;
        if context.config.fsync {
            fs::fsync(self.out.get_ref()).map_err(text)?;
        }
        fs::renameat(&self.dir, &self.temp, &self.dir, &self.name).map_err(text)?;
        if context.config.fsync {
            fs::fsync(&self.dir).map_err(text)?;
        }
        Ok(())
    }
}

/// Returns the path without links. The file need not exist.
fn resolve(path: &Path) -> Result<PathBuf> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("not a file name");
    };
    let parent = match parent.as_os_str().as_bytes() {
        b"" => Path::new("."),
        _ => parent,
    };
    let real = parent.canonicalize().map_err(|error| {
        let number = error.raw_os_error().unwrap_or_default();
        Reason::from(Errno::from_raw_os_error(number))
    })?;
    Ok(real.join(name))
}

/// Refuses a list that would replace something else, or change a source.
fn check(context: &Context, dir: &OwnedFd, name: &CString) -> Result<()> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
            bail!("not a regular file");
        }
        Ok(stat) if context.targets.is_source(FileId::of(&stat)) => bail!("it is a source"),
        _ => {}
    }
    let stat = fs::fstat(dir).map_err(Reason::from)?;
    if context.targets.is_in_source(dir.as_fd(), FileId::of(&stat)) {
        bail!("it lies in a source");
    }
    Ok(())
}

/// Appends a line. A name with a backslash or a newline is escaped, and the line begins with a
/// backslash then. sha256sum(1) escapes a carriage return too, and b3sum(1) does not know that.
fn push_line(line: &mut Vec<u8>, algorithm: Algorithm, checksum: &Checksum, path: &[u8]) {
    let escapes_return = algorithm == Algorithm::Sha256;
    let is_special = |&b: &u8| matches!(b, b'\\' | b'\n') || b == b'\r' && escapes_return;
    if path.iter().any(is_special) {
        line.push(b'\\');
    }
    let mut digits = String::with_capacity(2 * checksum.len());
    for byte in checksum {
        let _ = write!(digits, "{byte:02x}");
    }
    line.extend_from_slice(digits.as_bytes());
    line.extend_from_slice(b"  ");
    for &byte in path {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' if escapes_return => line.extend_from_slice(b"\\r"),
            _ => line.push(byte),
        }
    }
    line.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_sha256sum_does() {
        let line = |algorithm, path: &[u8]| {
            let mut line = Vec::new();
            push_line(&mut line, algorithm, &[0xab; 32], path);
            let line = String::from_utf8(line).unwrap();
            line.replace(&"ab".repeat(32), "SUM")
        };
        use Algorithm::{Blake3, Sha256};
        assert_eq!(line(Sha256, b"a/b c"), "SUM  a/b c\n");
        assert_eq!(line(Sha256, b"a\\b\nc\r"), "\\SUM  a\\\\b\\nc\\r\n");
        assert_eq!(line(Blake3, b"a\\b\nc"), "\\SUM  a\\\\b\\nc\n");
        assert_eq!(line(Blake3, b"a\r"), "SUM  a\r\n");
    }
}
