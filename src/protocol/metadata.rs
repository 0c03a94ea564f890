//! Reports of metadata that could not be kept, of entries whose contents were copied.
//!
//! A **failure** is the entry's own: it is printed and counted at once. A **refusal** may be the
//! entry's own, or a limit of the file system. A worker sees only its own entries. So the parent
//! decides, by comparing with the **grants** of other entries on the device
//! (`scheduler/refusals.rs`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::entry::Outcome;
use super::error::{Reason, Step};
use crate::fs::path::{Kind, Name};
use crate::quote::quote;

/// A kind of metadata. A grant of one kind says nothing about another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Property {
    Ownership,
    /// Permissions. Servers that keep them may still refuse set-user-id and the like.
    Mode {
        special: bool,
    },
    Attribute(AttributeClass),
    Timestamps,
}

/// Metadata that a destination cannot hold. A run has one warning for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lacking {
    Ownership,
    Modes,
    Attributes,
    Timestamps,
}

impl Property {
    /// Returns the warning it belongs to.
    pub(crate) fn lacking(self) -> Lacking {
        match self {
            Self::Ownership => Lacking::Ownership,
            Self::Mode { .. } => Lacking::Modes,
            Self::Attribute(_) => Lacking::Attributes,
            Self::Timestamps => Lacking::Timestamps,
        }
    }
}

/// Extended attributes that a file system accepts or refuses together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum AttributeClass {
    User,
    Trusted,
    Capability,
    Label,
    AccessAcl,
    DefaultAcl,
    Other,
}

impl AttributeClass {
    pub(crate) fn of(name: &[u8]) -> Self {
        match name {
            b"security.capability" => Self::Capability,
            b"system.posix_acl_access" => Self::AccessAcl,
            b"system.posix_acl_default" => Self::DefaultAcl,
            _ if name.starts_with(b"user.") => Self::User,
            _ if name.starts_with(b"trusted.") => Self::Trusted,
            _ if name.starts_with(b"security.") => Self::Label,
            _ => Self::Other,
        }
    }
}

/// A property that some entry was granted on a device. Some file systems keep the times of files
/// only, or no owners of links, so the kind of the entry belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Grant {
    pub(crate) device: u64,
    pub(crate) kind: Kind,
    pub(crate) property: Property,
}

/// How a property was refused. It decides which grants it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// EPERM or EACCES: the process may not do that, with this entry or with any.
    Denied,
    /// EOPNOTSUPP or ENOSYS: not with entries of this type.
    Unsupported,
    /// The value cannot be stored: EINVAL and the like, or it was accepted and not kept.
    Value,
}

/// One property of an entry that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The grant that the entry did not get.
    pub(crate) grant: Grant,
    pub(crate) cause: Cause,
    pub(crate) error: MetadataError,
}

/// A step of applying metadata that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MetadataError {
    pub(crate) step: Step,
    pub(crate) attribute: Option<Attribute>,
    pub(crate) reason: Reason,
}

/// An extended attribute, as a message names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attribute {
    /// Not a [`Name`]: it may have slashes.
    #[serde(with = "serde_bytes")]
    pub(crate) name: Vec<u8>,
    /// Bytes of its value, if known.
    pub(crate) size: Option<u32>,
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.step)?;
        if let Some(Attribute { name, size }) = &self.attribute {
            f.write_str(&quote(name))?;
            if let Some(size) = size {
                write!(f, " ({size} bytes)")?;
            }
            f.write_str(": ")?;
        }
        self.reason.fmt(f)
    }
}

/// An entry that was copied without all of its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MissingMetadata {
    /// `None` stands for the job's directory.
    pub(crate) name: Option<Name>,
    pub(crate) kind: Option<Kind>,
    /// How the entry was counted. `None` for a directory, and if there are failures.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) failures: Vec<MetadataError>,
    pub(crate) refusals: Vec<Refusal>,
}

impl MissingMetadata {
    /// Returns the errors of all failures and refusals.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &MetadataError> {
        let refused = self.refusals.iter().map(|refusal| &refusal.error);
        self.failures.iter().chain(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn an_attribute_is_named_with_its_size() {
        let error = MetadataError {
            step: Step::SetAttributes,
            attribute: Some(Attribute {
                name: b"user.exif".to_vec(),
                size: Some(10_000),
            }),
            reason: Errno::NOSPC.into(),
        };
        assert_eq!(
            error.to_string(),
            "set attributes: user.exif (10000 bytes): No space left on device"
        );
        let error = MetadataError {
            step: Step::SetTimes,
            attribute: None,
            reason: Reason::Ineffective,
        };
        assert_eq!(
            error.to_string(),
            "set times: accepted by the file system, but not kept"
        );
    }
}
