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
            let compatible: String = text.nfkd().collect();
            folded(&compatible).nfkd().collect::<String>().into_bytes()
        }
        _ => name.to_ascii_lowercase(),
    }
}

/// How a file system compares names, as far as that is known without writing to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folding {
    /// Byte by byte.
    Exact,
    /// FAT: ignores the case of ASCII letters, and dots at the end.
    Fat,
    /// FAT with `iocharset=utf8`: byte by byte, but for names that fit the old form of eight and
    /// three characters.
    ShortFat,
    /// exFAT: ignores case, and dots at the end.
    ExFat,
    /// NTFS, SMB: ignores case, letter by letter.
    Letters,
    /// Directories with the flag `casefold`: ignores case and Unicode normal forms.
    Casefold,
}

impl Folding {
    /// Returns true if the file system takes the two names for one.
    pub(crate) fn is_same(self, one: &[u8], other: &[u8]) -> bool {
        match self {
            Self::Exact => one == other,
            Self::Fat => {
                let (one, other) = (without_dots(one), without_dots(other));
                one.eq_ignore_ascii_case(other)
            }
            Self::ShortFat => {
                let (one, other) = (without_dots(one), without_dots(other));
                let is_short = is_short_name(one) && is_short_name(other);
                one == other || is_short && one.eq_ignore_ascii_case(other)
            }
            Self::ExFat => capitals(without_dots(one)) == capitals(without_dots(other)),
            Self::Letters => capitals(one) == capitals(other),
            Self::Casefold => match (std::str::from_utf8(one), std::str::from_utf8(other)) {
                (Ok(one), Ok(other)) => folded(one) == folded(other),
                _ => one == other,
            },
        }
    }
}

fn without_dots(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|&b| b != b'.');
    &name[..end.map_or(0, |end| end + 1)]
}

/// Returns the capitals of a name's letters, if each is a single letter.
fn capitals(name: &[u8]) -> Vec<u8> {
    let capital = |letter: char| {
        let mut capitals = letter.to_uppercase();
        match (capitals.next(), capitals.next()) {
            (Some(capital), None) => capital,
            _ => letter,
        }
    };
    match std::str::from_utf8(name) {
        Ok(text) => text.chars().map(capital).collect::<String>().into_bytes(),
        Err(_) => name.to_ascii_uppercase(),
    }
}

/// Returns true for a name that FAT stores as a short name alone: at most eight characters and an
/// ending of three, each of them all in capitals or all in small letters.
fn is_short_name(name: &[u8]) -> bool {
    let mut parts = name.splitn(2, |&b| b == b'.');
    let (base, ending) = (parts.next(), parts.next().unwrap_or_default());
    let fits = |part: &[u8], most| {
        let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"_-!#$%&'()@^`{}~".contains(b);
        part.len() <= most
            && part.iter().all(is_allowed)
            && !(part.iter().any(u8::is_ascii_lowercase) && part.iter().any(u8::is_ascii_uppercase))
    };
    base.is_some_and(|base| !base.is_empty() && fits(base, 8)) && fits(ending, 3)
}

/// Folds a text as Unicode describes it.
fn folded(text: &str) -> String {
    // Through capitals, so that `ß` equals `SS`, and all forms of sigma are one.
    let capitals = text.nfd().flat_map(char::to_uppercase);
    capitals.flat_map(char::to_lowercase).nfd().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_folds_by_rules_of_its_own() {
        use Folding::{Casefold, ExFat, Exact, Fat, Letters, ShortFat};
        let all = [Exact, Fat, ShortFat, ExFat, Letters, Casefold];
        for (one, other, same) in [
            (
                "README",
                "readme",
                &[Fat, ShortFat, ExFat, Letters, Casefold][..],
            ),
            ("Readme", "README", &[Fat, ExFat, Letters, Casefold]),
            ("a.html", "A.html", &[Fat, ExFat, Letters, Casefold]),
            ("name", "name.", &[Fat, ShortFat, ExFat]),
            ("Ärger", "ärger", &[ExFat, Letters, Casefold]),
            ("caf\u{e9}", "cafe\u{301}", &[Casefold]),
            ("STRASSE", "straße", &[Casefold]),
            ("a", "b", &[]),
        ] {
            for folding in all {
                assert_eq!(
                    folding.is_same(one.as_bytes(), other.as_bytes()),
                    same.contains(&folding),
                    "{folding:?}: {one}, {other}"
                );
            }
        }
    }

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
