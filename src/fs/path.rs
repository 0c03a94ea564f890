//! Names and paths as Linux has them: bytes without NUL, whatever their encoding.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fmt;

use rustix::fs::FileType;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a folder's listing says an entry is. The truth comes from `fstat` on the open entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Special,
}

impl Kind {
    /// The kind that `stat` tells.
    pub(crate) fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            _ => Self::Special,
        }
    }

    /// The kind that a listing tells.
    pub(crate) fn of_listed(file_type: std::fs::FileType) -> Self {
        if file_type.is_file() {
            Self::File
        } else if file_type.is_dir() {
            Self::Directory
        } else if file_type.is_symlink() {
            Self::Symlink
        } else {
            Self::Special
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::File => b'f',
            Self::Directory => b'd',
            Self::Symlink => b'l',
            Self::Special => b's',
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'f' => Some(Self::File),
            b'd' => Some(Self::Directory),
            b'l' => Some(Self::Symlink),
            b's' => Some(Self::Special),
            _ => None,
        }
    }
}

/// True for what Linux can hold as one entry's name: no `/`, no NUL, neither `.` nor `..`.
fn is_name(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|&b| b == b'/' || b == 0)
}

/// A list of names with their kinds in one allocation: for each name its kind's byte, the name,
/// and a NUL. A folder of a million files costs its names' length and two bytes each.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    count: usize,
}

impl Names {
    /// A list with one name.
    pub(crate) fn one(kind: Kind, name: &[u8]) -> Self {
        let mut names = Self::default();
        names.push(kind, name);
        names
    }

    /// Appends a name. The name comes from a listing or a checked [`Names`], so it holds no NUL.
    pub(crate) fn push(&mut self, kind: Kind, name: &[u8]) {
        debug_assert!(is_name(name), "not a name: {name:?}");
        self.bytes.push(kind.byte());
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.count += 1;
    }

    /// How many names there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// True when there is no name.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets all names and keeps the room.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// The names in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &CStr)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (kind, name, next) = self.at(at)?;
            at = next;
            Some((kind, name))
        })
    }

    /// The name at a byte offset (0, or what an earlier call gave as the next one), and the
    /// offset of the next name. `None` at the end.
    pub(crate) fn at(&self, offset: usize) -> Option<(Kind, &CStr, usize)> {
        let kind = Kind::from_byte(*self.bytes.get(offset)?)?;
        let name = CStr::from_bytes_until_nul(&self.bytes[offset + 1..]).ok()?;
        Some((kind, name, offset + 2 + name.count_bytes()))
    }

    /// Takes the last `count` names away and gives them back as a list of their own.
    pub(crate) fn split_off(&mut self, count: usize) -> Self {
        let keep = self.count.saturating_sub(count);
        let mut offset = 0;
        for _ in 0..keep {
            match self.at(offset) {
                Some((_, _, next)) => offset = next,
                None => break,
            }
        }
        let rest = Self {
            bytes: self.bytes.split_off(offset),
            count: self.count - keep,
        };
        self.count = keep;
        rest
    }

    /// Takes out the names that are among `others`.
    pub(crate) fn remove_all(&mut self, others: &HashSet<Name>) {
        if others.is_empty() {
            return;
        }
        let mut left = Self::default();
        for (kind, name) in self.iter() {
            if !others.contains(name.to_bytes()) {
                left.push(kind, name.to_bytes());
            }
        }
        *self = left;
    }

    /// Takes the last name away.
    pub(crate) fn pop(&mut self) -> Option<(Kind, Vec<u8>)> {
        let end = self.bytes.len().checked_sub(1)?;
        let start = self.bytes[..end]
            .iter()
            .rposition(|&b| b == 0)
            .map_or(0, |nul| nul + 1);
        let kind = Kind::from_byte(self.bytes[start])?;
        let name = self.bytes[start + 1..end].to_vec();
        self.bytes.truncate(start);
        self.count -= 1;
        Some((kind, name))
    }

    /// A list from bytes that came from outside, or `None` where they are not one.
    fn checked(bytes: Vec<u8>) -> Option<Self> {
        let mut count = 0;
        if bytes.last().is_some_and(|&last| last != 0) {
            return None;
        }
        for item in bytes.split_inclusive(|&b| b == 0) {
            let (&kind, rest) = item.split_first()?;
            Kind::from_byte(kind)?;
            if !is_name(rest.strip_suffix(&[0])?) {
                return None;
            }
            count += 1;
        }
        Some(Self { bytes, count })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One entry's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Vec<u8>);

impl Name {
    /// The name, taken from a listing or from a checked list.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        debug_assert!(is_name(bytes), "not a name: {bytes:?}");
        Self(bytes.to_vec())
    }

    /// The name, where these bytes from outside are one.
    pub(crate) fn checked(bytes: Vec<u8>) -> Option<Self> {
        is_name(&bytes).then_some(Self(bytes))
    }

    /// Its bytes, without NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as system calls take it.
    pub(crate) fn to_c_string(&self) -> CString {
        CString::new(self.as_bytes()).unwrap_or_default()
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// A path below one of the roots: names joined by `/`, none of them `.` or `..`; empty for the
/// root itself. Such a path cannot lead out of the root unless through a link, and links are
/// refused where it is opened ([`crate::fs::open`]).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct RelPath(Vec<u8>);

impl RelPath {
    /// The path of the entry `name` in this folder.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }

    /// The folder that the last name is in, and that name. For the root both are empty.
    pub(crate) fn split_last(&self) -> (Self, &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (Self::default(), &self.0),
        }
    }

    /// Its bytes, without NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn checked(bytes: Vec<u8>) -> Option<Self> {
        let good = bytes.is_empty() || bytes.split(|&b| b == b'/').all(is_name);
        good.then_some(Self(bytes))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

/// Bytes on the wire, checked when they are read: a message can be garbage, a [`Names`] cannot.
macro_rules! on_the_wire {
    ($type:ident, $bytes:expr, $checked:expr, $what:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let bytes: fn(&$type) -> &[u8] = $bytes;
                serializer.serialize_bytes(bytes(self))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let checked: fn(Vec<u8>) -> Option<$type> = $checked;
                checked(deserializer.deserialize_bytes(BytesVisitor)?)
                    .ok_or_else(|| de::Error::custom($what))
            }
        }
    };
}

on_the_wire!(Names, |n| &n.bytes, Names::checked, "not a list of names");
on_the_wire!(Name, |n| &n.0, Name::checked, "not a name");
on_the_wire!(RelPath, |p| &p.0, RelPath::checked, "not a relative path");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_keep_their_order_and_kinds() {
        let mut names = Names::default();
        names.push(Kind::File, b"a");
        names.push(Kind::Symlink, b"\xff\n");
        names.push(Kind::Special, b"c");
        let rest = names.split_off(2);
        assert_eq!(names, Names::one(Kind::File, b"a"));
        let listed: Vec<_> = rest.iter().map(|(k, n)| (k, n.to_bytes())).collect();
        assert_eq!(
            listed,
            [(Kind::Symlink, &b"\xff\n"[..]), (Kind::Special, b"c")]
        );
        let mut rest = rest;
        assert_eq!(rest.pop(), Some((Kind::Special, b"c".to_vec())));
        assert_eq!(rest.pop(), Some((Kind::Symlink, b"\xff\n".to_vec())));
        assert_eq!(rest.pop(), None);
        assert!(rest.is_empty());
    }

    #[test]
    fn names_are_taken_out_wherever_they_are() {
        let mut names = Names::default();
        for name in [b"a", b"b", b"c"] {
            names.push(Kind::File, name);
        }
        names.remove_all(&[Name::new(b"c"), Name::new(b"a"), Name::new(b"x")].into());
        assert_eq!(names, Names::one(Kind::File, b"b"));
    }

    #[test]
    fn paths_that_would_leave_the_root_are_not_read() {
        for bad in ["/etc", "a/../b", "..", ".", "a//b", "a/", "a\0b"] {
            let bytes = postcard::to_stdvec(serde_bytes_of(bad.as_bytes())).unwrap();
            assert!(postcard::from_bytes::<RelPath>(&bytes).is_err(), "{bad:?}");
        }
    }

    fn serde_bytes_of(bytes: &[u8]) -> &[u8] {
        bytes
    }

    proptest! {
        #[test]
        fn garbage_never_becomes_a_list_that_panics(bytes: Vec<u8>) {
            if let Some(names) = Names::checked(bytes) {
                prop_assert_eq!(names.iter().count(), names.len());
            }
        }
    }
}
