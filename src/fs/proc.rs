//! Paths through /proc, and what belongs to this process.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;

/// Returns a path that leads to exactly the open entry, even if that is a symbolic link or a
/// device. Some system calls accept nothing else for an entry opened with O_PATH.
pub(crate) fn magic_link(entry: &OwnedFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", entry.as_raw_fd())).unwrap_or_default()
}

/// Returns a path to an entry of an open directory.
pub(crate) fn path_in(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/thread-self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).unwrap_or_default()
}

/// Returns the umask. No other thread may create a file meanwhile: reading it means to set it.
pub(crate) fn umask() -> u32 {
    let umask = rustix::process::umask(Mode::empty());
    rustix::process::umask(umask);
    umask.bits()
}
