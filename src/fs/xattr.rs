//! Extended attributes that hold POSIX ACLs (acl(5)).

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, Mode};
use rustix::io::Errno;

/// The attribute that holds an entry's own ACL.
pub(crate) const ACCESS_ACL: &CStr = c"system.posix_acl_access";

/// The attribute that holds the ACL a directory hands down to new entries.
pub(crate) const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// Removes the ACLs that a new directory has inherited, and sets its mode again.
///
/// Its own ACLs are set when its entries are done. Until then the entries must not inherit any.
pub(crate) fn strip_acls(dir: BorrowedFd<'_>, mode: Mode) -> rustix::io::Result<()> {
    for acl in [DEFAULT_ACL, ACCESS_ACL] {
        match fs::fremovexattr(dir, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno),
        }
    }
    match fs::fchmod(dir, mode) {
        // A file system without modes. Setting the final mode fails too, and is reported.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        result => result,
    }
}
