//! Extended attributes, and the ACLs that Linux stores as such.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{self, Mode};
use rustix::io::{Errno, Result};

use crate::fs::proc::path_in;
use crate::fs::sys;

/// Every ACL's attribute name begins like this.
pub(crate) const ACL_PREFIX: &[u8] = b"system.posix_acl_";
/// The ACL of an entry itself.
pub(crate) const ACCESS_ACL: &CStr = c"system.posix_acl_access";
/// The ACL that new entries inherit from their directory (acl(5)).
pub(crate) const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// The kernel's limit for a list of names: XATTR_LIST_MAX (xattr(7)).
const LIST_MAX: usize = 65536;
/// The kernel's limit for a value: XATTR_SIZE_MAX (xattr(7)).
const VALUE_MAX: usize = 65536;

/// Returns the names of an entry's attributes. `list` is one of the listxattr(2) calls.
pub(crate) fn all_attributes(list: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<CString>> {
    // Most entries have none, or few: no allocation then.
    let mut small = [0; 512];
    let mut large;
    let bytes = match list(&mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            large = vec![0; LIST_MAX];
            let length = list(&mut large)?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    Ok(bytes
        .split_inclusive(|&b| b == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

/// Lists the attributes of an entry that is not open. An old kernel needs /proc for this. If that
/// is not mounted, it fails with ENOENT.
pub(crate) fn list_at(dir: BorrowedFd<'_>, name: &CStr, follow: bool) -> Result<Vec<CString>> {
    all_attributes(|buffer| match sys::listxattrat(dir, name, follow, buffer) {
        Err(Errno::NOSYS | Errno::PERM) if follow => fs::listxattr(&*path_in(dir, name), buffer),
        Err(Errno::NOSYS | Errno::PERM) => fs::llistxattr(&*path_in(dir, name), buffer),
        result => result,
    })
}

/// Returns the value of an attribute of an entry that is not open.
pub(crate) fn get_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    follow: bool,
) -> Result<Option<Vec<u8>>> {
    let path = path_in(dir, name);
    get_attribute(|buffer| {
        if follow {
            fs::getxattr(&*path, attribute, buffer)
        } else {
            fs::lgetxattr(&*path, attribute, buffer)
        }
    })
}

/// Returns an attribute's value, or `None` if it was removed since it was listed. `get` is one of
/// the getxattr(2) calls.
pub(crate) fn get_attribute(get: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 1024];
    loop {
        match get(&mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < VALUE_MAX => value.resize(VALUE_MAX, 0),
            Err(Errno::NODATA) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns true if new entries inherit an ACL from this directory.
pub(crate) fn has_default_acl(dir: BorrowedFd<'_>) -> bool {
    // Any ACL is longer than the buffer.
    let found = fs::fgetxattr(dir, DEFAULT_ACL, &mut [0_u8; 1][..]);
    matches!(found, Ok(_) | Err(Errno::RANGE))
}

/// Removes an ACL from an open entry. A missing or unsupported ACL is not an error.
pub(crate) fn remove_acl(entry: BorrowedFd<'_>, acl: &CStr) -> Result<()> {
    match fs::fremovexattr(entry, acl) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes the ACLs that a new directory has inherited, and sets its mode. The final ACLs are set
/// once its entries are complete. Until then new entries must not inherit an ACL.
pub(crate) fn strip_acls(dir: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    remove_acl(dir, DEFAULT_ACL)?;
    remove_acl(dir, ACCESS_ACL)?;
    // If this fails, it fails again when the directory gets its final mode, and is reported then.
    let _ = fs::fchmod(dir, mode);
    Ok(())
}

/// Returns the group mode bits that an access ACL denies to the owning group.
pub(crate) fn denied_to_group(acl: &[u8]) -> u32 {
    // A header of four bytes, then entries of eight: tag, rights, ID, all little-endian
    // (linux/posix_acl_xattr.h).
    const GROUP_OBJ: [u8; 2] = [4, 0];
    let mut entries = acl.get(4..).unwrap_or_default().chunks_exact(8);
    let of_group = entries.find(|entry| entry[..2] == GROUP_OBJ);
    let rights = of_group.map_or(0, |entry| u32::from(entry[2]) & 7);
    0o070 & !(rights << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_keeps_no_more_than_its_acl_entry_grants() {
        let entry = |tag: u8, rights: u8| [tag, 0, rights, 0, 0xff, 0xff, 0xff, 0xff];
        let acl = |group_rights| {
            [
                &[2, 0, 0, 0][..],
                &entry(1, 7),
                &entry(4, group_rights),
                &entry(16, 7),
            ]
            .concat()
        };
        assert_eq!(denied_to_group(&acl(7)), 0);
        assert_eq!(denied_to_group(&acl(5)), 0o020);
        assert_eq!(denied_to_group(&acl(0)), 0o070);
        // An ACL that cannot be read grants nothing.
        assert_eq!(denied_to_group(b"short"), 0o070);
    }
}
