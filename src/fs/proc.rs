//! Paths through /proc.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

/// Returns a path that leads to exactly the open entry, even if that is a symbolic link or a
/// device. Some system calls accept nothing else for an entry opened with O_PATH.
pub(crate) fn magic_link(entry: &OwnedFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", entry.as_raw_fd())).unwrap_or_default()
}
