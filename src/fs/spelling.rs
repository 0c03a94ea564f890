//! Names that some file systems treat as equal.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use unicode_normalization::UnicodeNormalization;

use crate::fs::list::{self, Listing};
use crate::fs::path::Name;

/// How a file system treats names that differ in case or spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// It keeps them apart.
    Exact,
    /// Each directory has a flag that says so (FS_CASEFOLD_FL).
    PerDirectory,
    /// Not known from its type. A lookup has not been possible yet.
    Unknown,
    /// A lookup has shown that it keeps names apart that differ only in case.
    PlainExact,
    /// It takes some names for others.
    Folding,
}

/// The names of a directory, grouped by their folded form ([`fold`]).
///
/// Folding ignores more than any file system does. It only finds the partner of a name that is
/// known to have one.
#[derive(Default)]
pub(crate) struct Spellings {
    by_folded: HashMap<Vec<u8>, Vec<Name>>,
}

impl Spellings {
    pub(crate) fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut spellings = Self::default();
        let mut listing = Listing::of(list::path_to(dir, false));
        while let Some((_, name)) = listing.read() {
            spellings.add(name.to_bytes());
        }
        listing.result().map(|()| spellings)
    }

    pub(crate) fn add(&mut self, name: &[u8]) {
        let spellings = self.by_folded.entry(fold(name)).or_default();
        spellings.push(Name::new(name));
    }

    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.like(name).any(|it| it.as_bytes() == name)
    }

    /// Returns the names that differ from this one at most in case, normal form and dots.
    pub(crate) fn like(&self, name: &[u8]) -> impl Iterator<Item = &Name> {
        self.by_folded.get(&fold(name)).into_iter().flatten()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Name> {
        self.by_folded.values().flatten()
    }
}

/// Folds a name: removes differences of case and normal form, and dots and spaces at its end.
pub(crate) fn fold(name: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|b| !matches!(b, b'.' | b' '));
    let name = &name[..end.map_or(0, |end| end + 1)];
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_ascii() => {
            // Through capitals, so that `ß` equals `SS`, and all forms of sigma are one.
            let capitals = text.nfkd().flat_map(char::to_uppercase);
            let folded: String = capitals.flat_map(char::to_lowercase).nfkd().collect();
            folded.into_bytes()
        }
        _ => name.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_some_file_system_takes_for_one_fold_to_the_same() {
        for (one, other) in [
            ("README", "readme"),
            ("name", "name."),
            ("name", "name. ."),
            ("Ärger", "ärger"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("STRASSE", "straße"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("\u{212a}elvin", "kelvin"),
        ] {
            assert_eq!(fold(one.as_bytes()), fold(other.as_bytes()), "{one}");
        }
        assert_ne!(fold(b"a"), fold(b"b"));
        assert_ne!(fold(b"a.b"), fold(b"ab"));
        assert_eq!(fold(b"\xffA"), b"\xffa");
    }
}
