//! POSIX ACLs as the bytes of their extended attributes.

/// The attribute that holds an entry's own ACL.
pub(crate) const ACCESS_ACL: &str = "system.posix_acl_access";

/// The attribute that holds the ACL which a directory hands down to new entries.
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The id in an entry whose tag names no user or group.
pub(crate) const NO_ID: u32 = u32::MAX;

/// The tags of ACL entries, in the order that the kernel requires.
#[derive(Clone, Copy)]
pub(crate) enum AclTag {
    UserObj = 0x01,
    User = 0x02,
    GroupObj = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

/// Encodes an ACL: each entry is a tag, permissions, and the id of a user or group.
pub(crate) fn acl(entries: &[(AclTag, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for &(tag, permissions, id) in entries {
        bytes.extend((tag as u16).to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
