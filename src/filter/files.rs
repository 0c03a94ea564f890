//! Reads files that say what is copied.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context as _, Result};
use rustix::fs::{self, FileType};
use rustix::io::Errno;

use crate::protocol::error::Reason;
use crate::quote::quote;

/// Reads a file that an option names. `-` is stdin.
pub(super) fn read(option: &str, path: &OsStr) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = if path == "-" {
        io::stdin().lock().read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    let reason = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    result
        .map_err(|error| Reason::from(reason(error)))
        .with_context(|| format!("{option}: {}", quote(path.as_bytes())))?;
    Ok(bytes)
}

/// Splits the contents of a file at the ends of its lines, or at each NUL. As in rsync, a line ends
/// with a line feed, a carriage return, or both. Empty lines are left out.
pub(super) fn lines(bytes: &[u8], at_nul: bool) -> impl Iterator<Item = &[u8]> {
    let is_end = move |&byte: &u8| match at_nul {
        true => byte == 0,
        false => matches!(byte, b'\n' | b'\r'),
    };
    bytes.split(is_end).filter(|line| !line.is_empty())
}

pub(super) fn is_regular(file: BorrowedFd<'_>) -> bool {
    let stat = fs::fstat(file);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_as_in_rsync() {
        let split = |text: &'static str, at_nul| lines(text.as_bytes(), at_nul).collect::<Vec<_>>();
        assert_eq!(split("a\nb\r\n\r\nc\rd", false), [b"a", b"b", b"c", b"d"]);
        assert_eq!(split("a\nb\0\0c", true), [&b"a\nb"[..], b"c"]);
        assert!(split("", false).is_empty());
    }
}
