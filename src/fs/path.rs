//! Names and paths as Linux has them: bytes without NUL, in any encoding.
//!
//! Messages between processes carry them, and a message can be garbage. So each type checks its
//! bytes when it is deserialized.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::Arc;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// The type of an entry, as a directory's listing reports it.
///
/// It may be outdated: only fstat(2) on the open entry is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// A FIFO, a socket or a device.
    Special,
}

impl Kind {
    pub(crate) fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            _ => Self::Special,
        }
    }

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

    const fn to_byte(self) -> u8 {
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

/// Returns true if Linux accepts the bytes as the name of an entry.
fn is_name(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|&b| b == b'/' || b == 0)
}

/// A list of names and their kinds in one allocation.
///
/// Each name is stored as the byte of its kind, the name, and a NUL. So a directory of a million
/// files costs the length of its names and two bytes for each.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ByteBuf")]
pub(crate) struct Names {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    #[serde(skip)]
    count: usize,
}

impl Names {
    pub(crate) fn one(kind: Kind, name: &[u8]) -> Self {
        let mut names = Self::default();
        names.push(kind, name);
        names
    }

    /// Appends a name from a listing, or from another list.
    pub(crate) fn push(&mut self, kind: Kind, name: &[u8]) {
        debug_assert!(is_name(name), "not a name: {name:?}");
        self.bytes.push(kind.to_byte());
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.count += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Removes all names and keeps the allocation.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.iter().any(|(_, it)| it.to_bytes() == name.as_bytes())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &CStr)> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let (kind, name, next) = self.at(offset)?;
            offset = next;
            Some((kind, name))
        })
    }

    /// Returns the name at a byte offset, and the offset of the next name.
    ///
    /// The first name is at offset 0. Returns `None` at the end.
    pub(crate) fn at(&self, offset: usize) -> Option<(Kind, &CStr, usize)> {
        let kind = Kind::from_byte(*self.bytes.get(offset)?)?;
        let name = CStr::from_bytes_until_nul(&self.bytes[offset + 1..]).ok()?;
        Some((kind, name, offset + 2 + name.count_bytes()))
    }

    /// Returns the byte offset of the name with this index, or the end of the list.
    fn find_offset(&self, index: usize) -> usize {
        let mut offset = 0;
        for _ in 0..index {
            match self.at(offset) {
                Some((_, _, next)) => offset = next,
                None => break,
            }
        }
        offset
    }

    /// Removes the last `count` names and returns them as a list of their own.
    pub(crate) fn split_off(&mut self, count: usize) -> Self {
        let keep = self.count.saturating_sub(count);
        let rest = Self {
            bytes: self.bytes.split_off(self.find_offset(keep)),
            count: self.count - keep,
        };
        self.count = keep;
        rest
    }

    /// Removes up to `count` names from the end and returns them. What stays costs nothing.
    pub(crate) fn take_last(&mut self, count: usize) -> Self {
        let mut last = Self::default();
        while last.count < count
            && let Some((kind, name)) = self.pop()
        {
            last.push(kind, &name);
        }
        last
    }

    /// Removes the first `count` names.
    pub(crate) fn drop_front(&mut self, count: usize) {
        self.bytes.drain(..self.find_offset(count));
        self.count = self.count.saturating_sub(count);
    }

    /// Sorts the names by these keys: one for each name.
    pub(crate) fn sort_by_keys(&mut self, keys: &[u64]) {
        let mut keyed: Vec<_> = keys.iter().zip(self.iter()).collect();
        keyed.sort_by_key(|&(key, _)| key);
        let mut sorted = Self {
            bytes: Vec::with_capacity(self.bytes.len()),
            count: 0,
        };
        for (_, (kind, name)) in keyed {
            sorted.push(kind, name.to_bytes());
        }
        *self = sorted;
    }

    /// Appends the names of another list.
    pub(crate) fn append(&mut self, others: &Self) {
        self.bytes.extend_from_slice(&others.bytes);
        self.count += others.count;
    }

    /// Removes the names that are in `others`.
    pub(crate) fn remove_all(&mut self, others: &HashSet<Name>) {
        if others.is_empty() {
            return;
        }
        let mut kept = Self::default();
        for (kind, name) in self.iter() {
            if !others.contains(name.to_bytes()) {
                kept.push(kind, name.to_bytes());
            }
        }
        *self = kept;
    }

    /// Removes and returns the last name.
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

    /// Parses untrusted bytes as a list of names.
    fn checked(bytes: Vec<u8>) -> Option<Self> {
        if bytes.last().is_some_and(|&last| last != 0) {
            return None;
        }
        let mut count = 0;
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

impl TryFrom<ByteBuf> for Names {
    type Error = &'static str;

    fn try_from(bytes: ByteBuf) -> Result<Self, Self::Error> {
        Self::checked(bytes.into_vec()).ok_or("not a list of names")
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The name of one entry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "ByteBuf")]
pub(crate) struct Name(#[serde(with = "serde_bytes")] Vec<u8>);

impl Name {
    /// Copies a name from a listing, or from a list that was checked.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        debug_assert!(is_name(bytes), "not a name: {bytes:?}");
        Self(bytes.to_vec())
    }

    /// Parses untrusted bytes as a name.
    pub(crate) fn checked(bytes: Vec<u8>) -> Option<Self> {
        is_name(&bytes).then_some(Self(bytes))
    }

    /// Returns the bytes of the name, without a NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the name as system calls take it.
    pub(crate) fn to_c_string(&self) -> CString {
        CString::new(self.as_bytes()).unwrap_or_default()
    }
}

impl TryFrom<ByteBuf> for Name {
    type Error = &'static str;

    fn try_from(bytes: ByteBuf) -> Result<Self, Self::Error> {
        Self::checked(bytes.into_vec()).ok_or("not a name")
    }
}

/// Finds a name in a set by its bytes alone. The derived `Hash` and `Eq` agree with those of bytes.
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

/// A path below a root directory: names joined by `/`, none of them `.` or `..`.
///
/// The root itself has the empty path. Such a path can leave the root only through a symbolic
/// link, and [`crate::fs::open`] refuses links.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ByteBuf")]
pub(crate) struct RelPath(#[serde(serialize_with = "serialize_bytes")] Arc<[u8]>);

impl RelPath {
    /// Returns the path of the entry `name` in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path.into())
    }

    /// Returns this path with another one below it.
    pub(crate) fn append(&self, below: &Self) -> Self {
        if below.0.is_empty() {
            return self.clone();
        }
        self.join(&below.0)
    }

    /// Splits the path into its parent directory and its last name. Both are empty for the root.
    pub(crate) fn split_last(&self) -> (Self, &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (Self(self.0[..slash].into()), &self.0[slash + 1..]),
            None => (Self::default(), &self.0),
        }
    }

    /// Returns the bytes of the path, without a NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn checked(bytes: Vec<u8>) -> Option<Self> {
        let is_path = bytes.is_empty() || bytes.split(|&b| b == b'/').all(is_name);
        is_path.then(|| Self(bytes.into()))
    }
}

fn serialize_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl TryFrom<ByteBuf> for RelPath {
    type Error = &'static str;

    fn try_from(bytes: ByteBuf) -> Result<Self, Self::Error> {
        Self::checked(bytes.into_vec()).ok_or("not a relative path")
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_bytes::Bytes;

    fn files(names: &[&[u8]]) -> Names {
        let mut list = Names::default();
        for name in names {
            list.push(Kind::File, name);
        }
        list
    }

    /// Reads a value from a message that holds these bytes.
    fn receive<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let message = postcard::to_stdvec(Bytes::new(bytes)).unwrap();
        postcard::from_bytes(&message).ok()
    }

    #[test]
    fn names_keep_their_order_and_kinds() {
        let mut names = Names::default();
        names.push(Kind::File, b"a");
        names.push(Kind::Symlink, b"\xff\n");
        names.push(Kind::Special, b"c");
        let mut rest = names.split_off(2);
        assert_eq!(names, files(&[b"a"]));
        let listed: Vec<_> = rest.iter().map(|(k, n)| (k, n.to_bytes())).collect();
        assert_eq!(
            listed,
            [(Kind::Symlink, &b"\xff\n"[..]), (Kind::Special, b"c")]
        );
        assert_eq!(rest.pop(), Some((Kind::Special, b"c".to_vec())));
        assert_eq!(rest.pop(), Some((Kind::Symlink, b"\xff\n".to_vec())));
        assert_eq!(rest.pop(), None);
        assert!(rest.is_empty());
    }

    #[test]
    fn the_first_names_are_dropped() {
        let mut names = files(&[b"a", b"long name", b"c"]);
        names.drop_front(0);
        assert_eq!(names.len(), 3);
        names.drop_front(2);
        assert_eq!(names, files(&[b"c"]));
        names.drop_front(2);
        assert!(names.is_empty());
        assert_eq!(names, Names::default());
    }

    #[test]
    fn names_are_removed_wherever_they_are() {
        let mut names = files(&[b"a", b"b", b"c"]);
        names.remove_all(&[Name::new(b"c"), Name::new(b"a"), Name::new(b"x")].into());
        assert_eq!(names, files(&[b"b"]));
    }

    #[test]
    fn messages_return_what_was_put_in() {
        let names = files(&[b"a", b"\xff\n"]);
        let path = RelPath::default().join(b"a").join(b"b");
        let message = postcard::to_stdvec(&(&names, &path, Name::new(b"n"))).unwrap();
        let received: (Names, RelPath, Name) = postcard::from_bytes(&message).unwrap();
        assert_eq!(received, (names, path, Name::new(b"n")));
        assert_eq!(received.0.len(), 2);
    }

    #[test]
    fn paths_that_would_leave_the_root_are_refused() {
        assert!(receive::<RelPath>(b"").is_some());
        assert!(receive::<RelPath>(b"a/b").is_some());
        for bad in ["/etc", "a/../b", "..", ".", "a//b", "a/", "a\0b"] {
            assert!(receive::<RelPath>(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        assert!(receive::<Name>(b"a").is_some());
        for bad in ["", "..", ".", "a/b", "a\0"] {
            assert!(receive::<Name>(bad.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(receive::<Names>(b"fa\0db\0").is_some());
        for bad in ["fa", "xa\0", "f\0", "f..\0", "fa/b\0", "\0"] {
            assert!(receive::<Names>(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_counted_correctly(bytes: Vec<u8>) {
            if let Some(names) = receive::<Names>(&bytes) {
                prop_assert_eq!(names.iter().count(), names.len());
            }
        }
    }
}
