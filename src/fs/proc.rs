//! Paths through /proc, and what belongs to this process.

use std::ffi::{CStr, CString, OsString};
use std::fs::read_link;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::Mode;

/// Returns a path that leads to exactly the open entry, even if that is a symbolic link or a
/// device. Some system calls accept nothing else for an entry opened with O_PATH.
pub(crate) fn magic_link(entry: &OwnedFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", entry.as_raw_fd())).unwrap_or_default()
}

/// Returns the path that an open entry has now.
///
/// # Errors
/// If /proc is not mounted.
pub(crate) fn real_path(entry: BorrowedFd<'_>) -> io::Result<PathBuf> {
    read_link(format!("/proc/thread-self/fd/{}", entry.as_raw_fd()))
}

/// Returns a path to an entry of an open directory.
pub(crate) fn path_in(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/thread-self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).unwrap_or_default()
}

/// Returns the fields of each line of proc_pid_mountinfo(5): mount ID, parent's ID, device, root in the
/// file system, mount point, and more.
pub(crate) fn mount_lines(table: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = table.split(|&b| b == b'\n');
    let lines = lines.map(|line| line.splitn(6, |&b| b == b' ').collect());
    lines.filter(|fields: &Vec<&[u8]>| fields.len() == 6)
}

/// Decodes a path of the mount table, which has blanks, newlines and backslashes in octal.
pub(crate) fn unescape_mount(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = rest
            .get(1..4)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns the umask. No other thread may create a file meanwhile: reading it means to set it.
pub(crate) fn umask() -> u32 {
    let umask = rustix::process::umask(Mode::empty());
    rustix::process::umask(umask);
    umask.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_are_decoded() {
        assert_eq!(unescape_mount(b"/a\\040b\\134"), PathBuf::from("/a b\\"));
        assert_eq!(unescape_mount(b"/a\\9"), PathBuf::from("/a\\9"));
    }
}
