//! Extended attributes: which are kept, and copying them.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use super::Copier;
use super::dir::{Devices, DirPair};
use super::handle::{Handle, Subject};
use super::issues::Problem;
use crate::config::{Config, Keep};
use crate::fs::file_system::FileSystem;
use crate::fs::xattr::{self, ACCESS_ACL, ACL_PREFIX};
use crate::protocol::error::Step;
use crate::protocol::metadata::{AttributeClass, Property};

const SELINUX_LABEL: &CStr = c"security.selinux";

/// The attributes of a source entry to keep.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) names: Vec<CString>,
    /// Mode bits to clear, because the attributes could not be listed: if there was an ACL, the
    /// group bits hold its mask.
    pub(super) denied: u32,
}

impl Attributes {
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.denied == 0
    }
}

/// The result of copying attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// Mode bits to clear.
    pub(super) denied: u32,
    /// At least one attribute was set.
    pub(super) any: bool,
}

pub(super) fn has_wanted_attributes(config: &Config) -> bool {
    let preserve = config.preserve;
    let all = [preserve.acl, preserve.xattr, preserve.context];
    all.into_iter().any(Keep::is_wanted)
}

/// Returns how much an attribute matters.
pub(super) fn keep_of(config: &Config, name: &CStr) -> Keep {
    if name.to_bytes().starts_with(ACL_PREFIX) {
        config.preserve.acl
    } else if name == SELINUX_LABEL {
        config.preserve.context
    } else {
        config.preserve.xattr
    }
}

/// Returns true for an attribute that means the same on every file system. Others belong to one
/// kind of server or file system: `system.nfs4_acl`, `system.ntfs_attrib`, `lustre.lov`.
fn is_portable(name: &CStr) -> bool {
    let name = name.to_bytes();
    let namespaces: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", ACL_PREFIX];
    namespaces.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns true for an attribute that is removed from the destination if the source does not
/// have it. The system sets others by itself, above all security labels.
pub(super) fn is_removable(name: &CStr) -> bool {
    matches!(
        AttributeClass::of(name.to_bytes()),
        AttributeClass::User
            | AttributeClass::Capability
            | AttributeClass::AccessAcl
            | AttributeClass::DefaultAcl
    )
}

impl Copier {
    /// Drops the attributes that must not be kept.
    pub(super) fn retain_kept(&mut self, dir: &DirPair, names: &mut Vec<CString>) {
        let config = &self.context.config;
        names.retain(|name| {
            keep_of(config, name).is_wanted() && (is_portable(name) || self.is_same_kind(dir))
        });
    }

    /// Returns true if both directories are on file systems of one kind.
    fn is_same_kind(&mut self, dir: &DirPair) -> bool {
        let devices: Devices = dir.devices();
        if let Some((_, is_same)) = self.same_kind.iter().find(|(known, _)| *known == devices) {
            return *is_same;
        }
        let source = FileSystem::of(dir.source());
        let destination = dir.destination().ok().and_then(FileSystem::of);
        let is_known = source.is_some_and(|source| source != FileSystem::Fuse);
        let is_same = is_known && source == destination;
        self.same_kind.push((devices, is_same));
        is_same
    }

    /// Lists the attributes of a source entry to keep. Notes a failure.
    pub(super) fn list_attributes(
        &mut self,
        dir: &DirPair,
        source: &Handle<'_>,
        subject: &Subject<'_>,
    ) -> Attributes {
        let config = &self.context.config;
        if !has_wanted_attributes(config) {
            return Attributes::default();
        }
        let errno = match source.list() {
            Ok(mut names) => {
                if !names.is_empty() {
                    self.retain_kept(dir, &mut names);
                }
                return Attributes { names, denied: 0 };
            }
            Err(errno) => errno,
        };
        let preserve = config.preserve;
        let all = [preserve.acl, preserve.xattr, preserve.context];
        let is_required = all.contains(&Keep::Required);
        // /proc is not mounted, so they cannot be read.
        if errno == Errno::NOENT && matches!(source, Handle::Path { .. }) && !is_required {
            return Attributes::default();
        }
        let keep = if is_required {
            Keep::Required
        } else {
            Keep::BestEffort
        };
        let property = Property::Attribute(AttributeClass::Other);
        let problem = Problem::new(keep, property, Step::ReadAttributes);
        self.refuse(subject, problem, errno);
        let denied = if errno == Errno::NOSYS || !preserve.mode.is_wanted() {
            0
        } else {
            0o070
        };
        Attributes {
            names: Vec::new(),
            denied,
        }
    }

    /// Copies attributes. Returns mode bits to clear: if the ACL is lost, the group bits (which
    /// hold its mask) would grant that mask to the group.
    ///
    /// With `verify`, and if `--preserve` names them, they are read back.
    pub(super) fn copy_attributes(
        &mut self,
        source: &Handle<'_>,
        attributes: &Attributes,
        subject: &Subject<'_>,
        verify: bool,
    ) -> Copied {
        let mut copied = Copied {
            denied: attributes.denied,
            any: false,
        };
        for name in &attributes.names {
            let is_acl = name.as_c_str() == ACCESS_ACL;
            let keep = keep_of(&self.context.config, name);
            let problem = |step, size| Problem::of_attribute(keep, step, name, size);
            let value = match source.get(name) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(errno) => {
                    self.refuse(subject, problem(Step::ReadAttributes, None), errno);
                    copied.denied |= if is_acl { 0o070 } else { 0 };
                    continue;
                }
            };
            let problem = problem(Step::SetAttributes, Some(value.len()));
            let looks = verify || keep == Keep::Required;
            // An attribute that is right already is not touched on a second run.
            if verify && subject.handle.get(name) == Ok(Some(value.clone())) {
                continue;
            }
            let is_kept = match subject.handle.set(name, &value) {
                Err(errno) => {
                    self.refuse(subject, problem, errno);
                    false
                }
                // The kernel adds IDs to capabilities, and drops redundant parts of ACLs.
                Ok(()) if looks && !self.is_there(subject, name, &value) => {
                    self.note_ineffective(subject, problem);
                    false
                }
                Ok(()) => {
                    let class = AttributeClass::of(name.to_bytes());
                    self.grant(subject, Property::Attribute(class));
                    true
                }
            };
            copied.any |= is_kept;
            if is_acl && !is_kept {
                copied.denied |= xattr::denied_to_group(&value);
            }
        }
        copied
    }

    /// Returns true if an attribute was stored. ACLs and security labels may be stored in another
    /// form. An ACL that only repeats the mode is not stored at all.
    fn is_there(&self, subject: &Subject<'_>, name: &CStr, value: &[u8]) -> bool {
        let stored = subject.handle.get(name);
        match AttributeClass::of(name.to_bytes()) {
            AttributeClass::User | AttributeClass::Trusted => {
                stored.is_ok_and(|stored| stored.as_deref() == Some(value))
            }
            AttributeClass::AccessAcl => stored.is_ok(),
            _ => stored.is_ok_and(|stored| stored.is_some()),
        }
    }

    /// Removes ACLs, capabilities and user attributes of an existing entry that the source does
    /// not have. Returns true if one was removed.
    pub(super) fn remove_other_attributes(
        &mut self,
        dir: &DirPair,
        subject: &Subject<'_>,
        keep: &[CString],
    ) -> bool {
        let problem = |name| {
            let keep = Keep::BestEffort;
            Problem::of_attribute(keep, Step::SetAttributes, name, None)
        };
        let mut old = match subject.handle.list() {
            Ok(old) => old,
            // Reading the source's attributes fails in the same way, or there are none.
            Err(Errno::NOSYS | Errno::NOENT) => return false,
            Err(errno) => {
                let property = Property::Attribute(AttributeClass::Other);
                let problem = Problem::new(Keep::BestEffort, property, Step::SetAttributes);
                self.refuse(subject, problem, errno);
                return false;
            }
        };
        self.retain_kept(dir, &mut old);
        let mut any = false;
        for name in old.iter().filter(|name| !keep.contains(name)) {
            if is_removable(name) {
                match subject.handle.remove(name) {
                    Ok(removed) => any |= removed,
                    Err(errno) => self.refuse(subject, problem(name), errno),
                }
            }
        }
        any
    }

    /// Copies the replaced file's attributes to the new file, except those that come from the
    /// source. Capabilities are left out: they belong to the old contents.
    pub(super) fn keep_old_attributes(&mut self, old: &Handle<'_>, subject: &Subject<'_>) {
        for name in old.list().unwrap_or_default() {
            let is_kept = !keep_of(&self.context.config, &name).is_wanted()
                && AttributeClass::of(name.to_bytes()) != AttributeClass::Capability;
            if is_kept && let Ok(Some(value)) = old.get(&name) {
                // Both are on one file system, and in one directory.
                let _ = subject.handle.set(&name, &value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_one_kind_of_file_system_are_not_portable() {
        for name in [
            c"system.nfs4_acl",
            c"system.ntfs_attrib",
            c"system.cifs_acl",
            c"lustre.lov",
            c"btrfs.compression",
        ] {
            assert!(!is_portable(name), "{name:?}");
        }
        for name in [
            c"user.a",
            c"trusted.a",
            c"security.capability",
            c"system.posix_acl_access",
        ] {
            assert!(is_portable(name), "{name:?}");
        }
    }

    #[test]
    fn labels_are_not_removed() {
        assert!(!is_removable(c"security.selinux"));
        assert!(!is_removable(c"trusted.overlay.opaque"));
        assert!(is_removable(c"user.a"));
        assert!(is_removable(c"security.capability"));
    }
}
