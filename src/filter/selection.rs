//! A list of paths below a source: these are copied, and nothing else.

use std::fmt;

use crate::fs::path::RelPath;
use crate::quote::quote;

/// Paths below a source, sorted, each once.
///
/// A path costs its length and 16 bytes. Slashes are stored as NUL, which no name contains and
/// which sorts before every other byte. So all paths below a directory follow it without a gap.
#[derive(Default)]
pub(crate) struct Selection {
    bytes: Vec<u8>,
    /// Where each path begins in `bytes`, and its length.
    paths: Vec<(usize, u32)>,
    /// Directories in the list are copied with everything below them.
    is_recursive: bool,
}

/// A name in a directory that is in the list, or leads to a path in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The path is in the list itself.
    pub(crate) is_listed: bool,
    /// Paths below it are in the list.
    pub(crate) has_below: bool,
}

impl Chosen {
    /// Returns a name that only leads to paths in the list.
    pub(crate) fn below() -> Self {
        Self {
            is_listed: false,
            has_below: true,
        }
    }

    /// Returns true for a directory that leads to paths in the list. It is made and entered even if
    /// a rule excludes it, listed itself or not: what is listed below it must not be lost.
    pub(crate) fn is_way(self) -> bool {
        !self.is_listed || self.has_below
    }
}

/// The names in one directory, in order. It is a range of the list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    next: usize,
    end: usize,
    /// The length of the directory's path, with a slash at its end.
    start: usize,
}

/// A path that leads out of the source.
#[derive(Debug)]
pub(crate) struct Outside(Vec<u8>);

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: leads out of SRC", quote(&self.0))
    }
}

impl Selection {
    /// Makes a list of paths, each as a user may write it.
    pub(crate) fn new<'a>(
        paths: impl IntoIterator<Item = &'a [u8]>,
        is_recursive: bool,
    ) -> Result<Self, Outside> {
        let mut selection = Self {
            is_recursive,
            ..Self::default()
        };
        for path in paths {
            selection.add(path)?;
        }
        let Self { bytes, paths, .. } = &mut selection;
        let path = |&(start, length): &(usize, u32)| &bytes[start..start + length as usize];
        if !paths.is_sorted_by(|a, b| path(a) < path(b)) {
            paths.sort_unstable_by(|a, b| path(a).cmp(path(b)));
            paths.dedup_by(|a, b| path(a) == path(b));
        }
        Ok(selection)
    }

    /// Adds a path. As in rsync, slashes at its start and doubled ones mean nothing, and `..` takes
    /// back the name before it.
    fn add(&mut self, path: &[u8]) -> Result<(), Outside> {
        let start = self.bytes.len();
        for name in path.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." if self.bytes.len() == start => return Err(Outside(path.to_vec())),
                b".." => {
                    let before = self.bytes[start..].iter().rposition(|&byte| byte == 0);
                    self.bytes.truncate(start + before.unwrap_or(0));
                }
                name => {
                    if self.bytes.len() > start {
                        self.bytes.push(0);
                    }
                    self.bytes.extend_from_slice(name);
                }
            }
        }
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.paths.push((start, length));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// Returns true if directories in the list are copied with everything below them.
    pub(crate) fn is_recursive(&self) -> bool {
        self.is_recursive
    }

    /// Returns the list as bytes: each path with a NUL at its end.
    pub(crate) fn to_list(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(self.bytes.len() + 2 * self.len());
        for path in self.iter() {
            list.extend_from_slice(match path.as_bytes() {
                b"" => b".",
                path => path,
            });
            list.push(0);
        }
        list
    }

    /// Makes the list that [`Selection::to_list`] has returned.
    pub(crate) fn of_list(list: &[u8], is_recursive: bool) -> Result<Self, Outside> {
        let paths = list
            .split(|&byte| byte == 0)
            .filter(|path| !path.is_empty());
        Self::new(paths, is_recursive)
    }

    fn path(&self, index: usize) -> &[u8] {
        let (start, length) = self.paths[index];
        &self.bytes[start..start + length as usize]
    }

    /// Returns all paths, each with slashes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RelPath> {
        (0..self.len()).map(|index| to_rel_path(self.path(index)))
    }

    /// Returns true if everything in a directory is copied: the list has the directory or one that
    /// it is in, and directories are copied whole.
    ///
    /// Of a directory for which `is_excluded` is true, only what the list has below it is copied.
    pub(crate) fn is_whole(&self, dir: &RelPath, is_excluded: impl Fn(&RelPath) -> bool) -> bool {
        if !self.is_recursive {
            return false;
        }
        let mut dir = dir.clone();
        while !dir.as_bytes().is_empty() && !is_excluded(&dir) {
            if self.find(&to_stored(&dir)).is_ok() {
                return true;
            }
            dir = dir.split_last().0;
        }
        dir.as_bytes().is_empty() && self.find(b"").is_ok()
    }

    /// Returns true if paths below a directory are in the list.
    pub(crate) fn has_below(&self, dir: &RelPath, name: &[u8]) -> bool {
        let mut path = to_stored(&dir.join(name));
        path.push(0);
        let (Ok(first) | Err(first)) = self.find(&path);
        first < self.len() && self.path(first).starts_with(&path)
    }

    fn find(&self, path: &[u8]) -> Result<usize, usize> {
        self.paths.binary_search_by(|&(start, length)| {
            self.bytes[start..start + length as usize].cmp(path)
        })
    }

    /// Returns the names in a directory.
    pub(crate) fn names_in(&self, dir: &RelPath) -> Cursor {
        let mut path = to_stored(dir);
        if path.is_empty() {
            let next = usize::from(self.find(&path).is_ok());
            return Cursor {
                next,
                end: self.len(),
                start: 0,
            };
        }
        path.push(0);
        let start = path.len();
        let (Ok(next) | Err(next)) = self.find(&path);
        // The byte after the NUL: no path below the directory is greater.
        path[start - 1] = 1;
        let (Ok(end) | Err(end)) = self.find(&path);
        Cursor { next, end, start }
    }

    /// Returns the next name of a directory.
    pub(crate) fn next(&self, cursor: &mut Cursor) -> Option<(&[u8], Chosen)> {
        if cursor.next >= cursor.end {
            return None;
        }
        let first = self.path(cursor.next);
        let rest = &first[cursor.start..];
        let length = rest.iter().position(|&byte| byte == 0);
        let name = &rest[..length.unwrap_or(rest.len())];
        let is_listed = length.is_none();
        let through = cursor.start + name.len();
        let is_below = |index: usize| {
            let path = self.path(index);
            path.get(through) == Some(&0) && path[cursor.start..through] == *name
        };
        let mut next = cursor.next + usize::from(is_listed);
        let has_below = next < cursor.end && is_below(next);
        // Most names have few paths below them, or none.
        let mut step = 1;
        while next < cursor.end && is_below(next) {
            let far = (next + step).min(cursor.end);
            if is_below(far - 1) {
                next = far;
                step *= 2;
            } else {
                step = 1;
                next += 1;
            }
        }
        cursor.next = next;
        let chosen = Chosen {
            is_listed,
            has_below,
        };
        Some((name, chosen))
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn to_stored(path: &RelPath) -> Vec<u8> {
    let bytes = path.as_bytes().iter();
    bytes
        .map(|&byte| if byte == b'/' { 0 } else { byte })
        .collect()
}

fn to_rel_path(stored: &[u8]) -> RelPath {
    let names = stored
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names.fold(RelPath::default(), |path, name| path.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn selection(paths: &[&str]) -> Selection {
        Selection::new(paths.iter().map(|path| path.as_bytes()), false).unwrap()
    }

    fn dir(path: &str) -> RelPath {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(RelPath::default(), |path, name| path.join(name.as_bytes()))
    }

    fn names(selection: &Selection, path: &str) -> Vec<(String, bool, bool)> {
        let mut cursor = selection.names_in(&dir(path));
        let mut names = Vec::new();
        while let Some((name, chosen)) = selection.next(&mut cursor) {
            let name = String::from_utf8(name.to_vec()).unwrap();
            names.push((name, chosen.is_listed, chosen.has_below));
        }
        names
    }

    #[test]
    fn a_directory_has_the_names_that_lead_to_paths() {
        let selection = selection(&["b/x", "a", "a/y", "a.c", "b/z/", "a/y"]);
        assert_eq!(
            names(&selection, ""),
            [
                ("a".to_owned(), true, true),
                ("a.c".to_owned(), true, false),
                ("b".to_owned(), false, true),
            ]
        );
        assert_eq!(names(&selection, "a"), [("y".to_owned(), true, false)]);
        assert_eq!(names(&selection, "b").len(), 2);
        assert!(names(&selection, "a/y").is_empty());
        assert!(names(&selection, "c").is_empty());
    }

    #[test]
    fn paths_are_cleaned_as_rsync_does() {
        let selection = selection(&["/a//b/./", "./c/../d", "x/y/../../z"]);
        let paths: Vec<_> = selection.iter().collect();
        assert_eq!(paths, [dir("a/b"), dir("d"), dir("z")]);
        for outside in ["..", "../a", "a/../../b"] {
            let error = Selection::new([outside.as_bytes()], false).unwrap_err();
            assert_eq!(error.to_string(), format!("{outside}: leads out of SRC"));
        }
    }

    #[test]
    fn a_directory_is_whole_below_a_path_of_the_list() {
        let never = |_: &RelPath| false;
        let paths = ["a/b"].map(str::as_bytes);
        let whole = Selection::new(paths, true).unwrap();
        for (path, is_whole) in [("", false), ("a", false), ("a/b", true), ("a/b/c/d", true)] {
            assert_eq!(whole.is_whole(&dir(path), never), is_whole, "{path}");
        }
        assert!(!selection(&["a/b"]).is_whole(&dir("a/b"), never));
        let all = Selection::new(["."].map(str::as_bytes), true).unwrap();
        assert!(all.is_whole(&dir(""), never) && all.is_whole(&dir("x/y"), never));
        assert!(names(&all, "").is_empty());
    }

    #[test]
    fn what_is_excluded_is_not_whole_unless_a_path_below_is_listed() {
        let paths = ["a", "a/b/c"].map(str::as_bytes);
        let list = Selection::new(paths, true).unwrap();
        let is_b = |path: &RelPath| path.as_bytes() == b"a/b";
        for (path, is_whole) in [
            ("a", true),
            ("a/x", true),
            ("a/b", false),
            ("a/b/x", false),
            ("a/b/c", true),
            ("a/b/c/d", true),
        ] {
            assert_eq!(list.is_whole(&dir(path), is_b), is_whole, "{path}");
        }
        assert!(list.has_below(&dir("a"), b"b") && list.has_below(&dir(""), b"a"));
        assert!(!list.has_below(&dir("a/b"), b"c") && !list.has_below(&dir("a"), b"bb"));
    }

    proptest! {
        #[test]
        fn no_path_is_lost(paths in proptest::collection::vec("[ab.](/[ab!]){0,3}", 0..40)) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).filter(|it| !it.starts_with('.')).collect();
            let selection = selection(&paths);
            let mut expected: BTreeMap<String, bool> = BTreeMap::new();
            for path in &paths {
                for (at, _) in path.match_indices('/') {
                    expected.entry(path[..at].to_owned()).or_default();
                }
                expected.insert((*path).to_owned(), true);
            }
            let mut found = BTreeMap::new();
            let mut dirs = vec![String::new()];
            while let Some(dir) = dirs.pop() {
                for (name, is_listed, has_below) in names(&selection, &dir) {
                    let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                    if has_below {
                        dirs.push(path.clone());
                    }
                    prop_assert!(found.insert(path, is_listed).is_none());
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
