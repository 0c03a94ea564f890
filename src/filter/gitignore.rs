//! `.gitignore` files, read as git(1) reads them.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::files;
use super::glob::{Dialect, Glob};
use crate::fs::open::{DIRECTORY, open_dir, open_dir_following_links, open_unnoticed};
use crate::fs::path::RelPath;
use crate::protocol::error::Reason;
use crate::quote::{quote, quote_for_shell};

const NAME: &str = ".gitignore";

/// The rules of one file, and those of the directories above it.
#[derive(Debug)]
struct Level {
    above: Option<Arc<Level>>,
    /// The length of the path of the file's directory, with a slash at its end.
    base: usize,
    /// The path of the file, for `-n -v`.
    file: Vec<u8>,
    rules: Vec<Rule>,
}

/// A line of a file.
#[derive(Debug)]
struct Rule {
    glob: Glob,
    text: Vec<u8>,
    line: usize,
    /// `!` before the pattern: what it matches is not ignored.
    is_negated: bool,
    is_for_directories: bool,
    /// Without a slash it matches the name alone.
    is_for_names: bool,
}

/// A rule that ignores an entry, for `-n -v`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ignoring<'a> {
    level: &'a Level,
    rule: &'a Rule,
}

impl fmt::Display for Ignoring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = quote_for_shell(&self.rule.text);
        write!(f, "{}:{}: {text}", quote(&self.level.file), self.rule.line)
    }
}

/// The rules that apply to the entries of a directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Ignores {
    level: Option<Arc<Level>>,
    /// The path of the directory below its repository, with a slash at its end.
    dir: Vec<u8>,
}

impl Ignores {
    /// Returns the rule by which an entry is ignored. The last one of the innermost file decides.
    pub(super) fn find(&self, name: &[u8], is_dir: bool) -> Option<Ignoring<'_>> {
        let mut level = self.level.as_deref()?;
        let path = [&self.dir, name].concat();
        loop {
            let below = path.get(level.base..).unwrap_or_default();
            let rule = level.rules.iter().rev().find(|rule| {
                (is_dir || !rule.is_for_directories)
                    && rule
                        .glob
                        .matches(if rule.is_for_names { name } else { below })
            });
            if let Some(rule) = rule {
                return (!rule.is_negated).then_some(Ignoring { level, rule });
            }
            level = level.above.as_deref()?;
        }
    }

    /// Returns the rules for a subdirectory that is open.
    fn enter(&self, dir: BorrowedFd<'_>, name: &[u8], shown: &[u8]) -> Result<Self, Errno> {
        // A repository has rules of its own. So does a submodule, which has a file of that name.
        let is_repository = fs::statat(dir, c".git", AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let mut below = if is_repository {
            Self::default()
        } else {
            let mut path = self.dir.clone();
            if !name.is_empty() {
                path.extend_from_slice(name);
                path.push(b'/');
            }
            Self {
                level: self.level.clone(),
                dir: path,
            }
        };
        let Some(text) = read(dir)? else {
            return Ok(below);
        };
        let rules = parse(&text);
        if !rules.is_empty() {
            let level = Level {
                above: below.level.take(),
                base: below.dir.len(),
                file: shown.to_vec(),
                rules,
            };
            below.level = Some(Arc::new(level));
        }
        Ok(below)
    }

    /// Returns the rules that the repository around a source has for it.
    pub(super) fn above(source: &Path) -> Result<Self> {
        let real = source.canonicalize()?;
        let is_repository = |dir: &&Path| fs::lstat(dir.join(".git")).is_ok();
        let Some(root) = real.ancestors().find(is_repository) else {
            return Ok(Self::default());
        };
        let mut ignores = Self::default();
        for dir in real.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if dir == real || !dir.starts_with(root) {
                continue;
            }
            let name = if dir == root { None } else { dir.file_name() };
            let file = dir.join(NAME);
            let opened = fs::open(dir, DIRECTORY, Mode::empty());
            let entered = opened.and_then(|opened| {
                let name = name.unwrap_or_default().as_encoded_bytes();
                ignores.enter(opened.as_fd(), name, file.as_os_str().as_encoded_bytes())
            });
            ignores = entered
                .map_err(Reason::from)
                .with_context(|| quote(file.as_os_str().as_encoded_bytes()))?;
        }
        if real != root {
            let name = real.file_name().unwrap_or_default();
            ignores.dir.extend_from_slice(name.as_encoded_bytes());
            ignores.dir.push(b'/');
        }
        Ok(ignores)
    }
}

/// The rules on the way to the directory that was examined last. Directories beside it and below
/// it share them.
#[derive(Debug, Default)]
pub(super) struct Cache {
    target: Option<u32>,
    /// Each directory from the source down.
    stack: Vec<(RelPath, Ignores)>,
}

impl Cache {
    /// Returns the rules for a directory of a source, and the error of reading its own file.
    pub(super) fn rules_of(&mut self, place: &Place<'_>, above: &Ignores) -> Found {
        if self.target != Some(place.target) {
            self.target = Some(place.target);
            self.stack.clear();
        }
        while let Some((path, _)) = self.stack.last()
            && !is_in(place.path, path)
        {
            self.stack.pop();
        }
        let mut error = None;
        loop {
            let known = self.stack.last();
            if let Some((path, ignores)) = known
                && path == place.path
            {
                return (ignores.clone(), error);
            }
            // The next directory on the way.
            let (next, name, parent) = match known {
                None => (RelPath::default(), Vec::new(), above),
                Some((path, parent)) => {
                    let length = path.as_bytes().len();
                    let rest = &place.path.as_bytes()[length + usize::from(length > 0)..];
                    let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
                    (path.join(name), name.to_vec(), parent)
                }
            };
            let shown = next.join(NAME.as_bytes());
            let opened = if place.follows_links {
                open_dir_following_links(place.root, &next)
            } else {
                open_dir(place.root, &next)
            };
            // The source itself has its name in `above` already.
            let entered = opened.and_then(|dir| parent.enter(dir.as_fd(), &name, shown.as_bytes()));
            let ignores = entered.unwrap_or_else(|errno| {
                error = Some(errno).filter(|_| next == *place.path);
                let mut same = parent.clone();
                if !name.is_empty() {
                    same.dir.extend_from_slice(&name);
                    same.dir.push(b'/');
                }
                same
            });
            self.stack.push((next, ignores));
        }
    }
}

/// The rules of a directory, and the error of reading its own file.
type Found = (Ignores, Option<Errno>);

/// A directory of a source.
pub(super) struct Place<'a> {
    pub(super) target: u32,
    pub(super) root: BorrowedFd<'a>,
    pub(super) path: &'a RelPath,
    pub(super) follows_links: bool,
}

/// Returns true if a path is this directory, or lies in it.
fn is_in(path: &RelPath, dir: &RelPath) -> bool {
    match path.as_bytes().strip_prefix(dir.as_bytes()) {
        Some(rest) => rest.is_empty() || dir.as_bytes().is_empty() || rest[0] == b'/',
        None => false,
    }
}

/// Reads the file of a directory. As in git, a link of that name is not followed.
fn read(dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match open_unnoticed(dir, NAME, flags) {
        Ok(file) if files::is_regular(file.as_fd()) => {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::from(file), &mut text)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok(Some(text))
        }
        Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn parse(text: &[u8]) -> Vec<Rule> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    lines
        .filter_map(|(number, line)| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            parse_line(number + 1, line)
        })
        .collect()
}

fn parse_line(line: usize, text: &[u8]) -> Option<Rule> {
    if text.starts_with(b"#") {
        return None;
    }
    let text = trim_spaces(text);
    let (pattern, is_negated) = match text.strip_prefix(b"!") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (pattern, is_for_directories) = match pattern.strip_suffix(b"/") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    if pattern.is_empty() {
        return None;
    }
    let is_for_names = !pattern.contains(&b'/');
    let pattern = pattern.strip_prefix(b"/").unwrap_or(pattern);
    Some(Rule {
        glob: Glob::new(pattern, Dialect::Git),
        text: text.to_vec(),
        line,
        is_negated,
        is_for_directories,
        is_for_names,
    })
}

/// Removes spaces at the end, but not one after a backslash.
fn trim_spaces(text: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    while at < text.len() {
        let step = if text[at] == b'\\' { 2 } else { 1 };
        if text[at] != b' ' {
            end = (at + step).min(text.len());
        }
        at += step;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Ignores {
        let level = Level {
            above: None,
            base: 0,
            file: NAME.into(),
            rules: parse(text.as_bytes()),
        };
        Ignores {
            level: Some(Arc::new(level)),
            dir: Vec::new(),
        }
    }

    #[test]
    fn the_last_line_that_matches_decides() {
        let ignores = rules("*.o\n!keep.o\n# comment\n\nlast.o \r\n");
        assert!(ignores.find(b"a.o", false).is_some());
        assert!(ignores.find(b"keep.o", false).is_none());
        assert!(ignores.find(b"# comment", false).is_none());
        let rule = ignores.find(b"last.o", false).unwrap();
        assert_eq!(rule.to_string(), ".gitignore:5: last.o");
    }

    #[test]
    fn a_slash_at_the_end_means_a_directory() {
        let ignores = rules("/build/\n");
        assert!(ignores.find(b"build", true).is_some());
        assert!(ignores.find(b"build", false).is_none());
        let below = Ignores {
            dir: b"a/".to_vec(),
            ..ignores
        };
        assert!(below.find(b"build", true).is_none());
    }

    #[test]
    fn spaces_at_the_end_count_only_after_a_backslash() {
        assert_eq!(trim_spaces(b"a b  "), b"a b");
        assert_eq!(trim_spaces(b"a\\  "), b"a\\ ");
        assert_eq!(trim_spaces(b"a\\"), b"a\\");
        assert_eq!(trim_spaces(b"  "), b"");
    }

    #[test]
    fn inner_files_win_and_repositories_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("sub/deep")).unwrap();
        std::fs::create_dir_all(path("module")).unwrap();
        std::fs::write(path(".gitignore"), "*.o\n/sub/deep/x\n").unwrap();
        std::fs::write(path("sub/.gitignore"), "!a.o\n").unwrap();
        std::fs::write(path("module/.git"), "").unwrap();
        let root = fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut cache = Cache::default();
        let mut is_ignored = |dir: &str, name: &str| {
            let names = dir.split('/').filter(|name| !name.is_empty());
            let path = names.fold(RelPath::default(), |path, name| path.join(name.as_bytes()));
            let place = Place {
                target: 0,
                root: root.as_fd(),
                path: &path,
                follows_links: false,
            };
            let (ignores, error) = cache.rules_of(&place, &Ignores::default());
            assert_eq!(error, None);
            ignores.find(name.as_bytes(), false).is_some()
        };
        assert!(is_ignored("", "a.o"));
        assert!(!is_ignored("sub/deep", "a.o"));
        assert!(is_ignored("sub/deep", "b.o"));
        assert!(is_ignored("sub/deep", "x"));
        assert!(!is_ignored("sub", "x"));
        assert!(!is_ignored("module", "b.o"));
        assert!(is_ignored("", "b.o"));
    }

    #[test]
    fn rules_of_the_repository_around_a_source_apply() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("repo/.git")).unwrap();
        std::fs::create_dir_all(path("repo/a/b")).unwrap();
        std::fs::write(path(".gitignore"), "*").unwrap();
        std::fs::write(path("repo/.gitignore"), "/a/b/x\n").unwrap();
        std::fs::write(path("repo/a/.gitignore"), "y\n").unwrap();
        let above = Ignores::above(&path("repo/a/b")).unwrap();
        assert!(above.find(b"x", false).is_some());
        assert!(above.find(b"y", false).is_some());
        assert!(above.find(b"z", false).is_none());
        let outside = Ignores::above(&path("repo")).unwrap();
        assert!(outside.find(b"x", false).is_none());
    }
}
