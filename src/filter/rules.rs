//! The rules of `--exclude` and `--include`, with the meaning that they have for rsync(1).

use std::fmt;

use super::glob::{Dialect, Glob, has_wildcard};
use crate::quote::quote_for_shell;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(super) is_include: bool,
    /// The pattern as the user wrote it, and where.
    source: Source,
    glob: Glob,
    scope: Scope,
    is_for_directories: bool,
    /// `**` at the start also matches nothing before a slash.
    begins_wide: bool,
    /// `/***` at the end matches the directory too.
    covers_directory: bool,
}

/// Where a rule comes from, for `-n -v`.
#[derive(Clone, Debug)]
struct Source {
    option: &'static str,
    file: Option<Vec<u8>>,
    pattern: Vec<u8>,
}

/// The part of a path that must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The last name.
    Name,
    /// The last so many names.
    Tail(usize),
    /// All after any slash, or the whole path.
    AfterSlash,
    /// The whole path.
    Whole,
}

/// An entry's path below the source, in the forms that rules need.
pub(super) struct EntryPath<'a> {
    /// `/`, the path, and another `/`.
    bytes: &'a [u8],
    name: &'a [u8],
    is_dir: bool,
}

impl<'a> EntryPath<'a> {
    /// `bytes` is the path below the source with a slash before it and one after it.
    pub(super) fn new(bytes: &'a [u8], name: &'a [u8], is_dir: bool) -> Self {
        Self {
            bytes,
            name,
            is_dir,
        }
    }
}

/// All rules, in the order of the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    list: Vec<Rule>,
}

impl Rules {
    /// Adds the rule of one option, or of one line of a file.
    ///
    /// As in rsync, `+ ` or `- ` at the start says what the rule does, whatever the option, and `!`
    /// alone forgets all rules before it. An empty rule is none.
    pub(super) fn add(
        &mut self,
        option: &'static str,
        file: Option<&[u8]>,
        is_include: bool,
        text: &[u8],
    ) {
        let (is_include, pattern) = match text {
            [b'+', b' ', rest @ ..] => (true, rest),
            [b'-', b' ', rest @ ..] => (false, rest),
            b"!" => return self.list.clear(),
            _ => (is_include, text),
        };
        if pattern.is_empty() {
            return;
        }
        let source = Source {
            option,
            file: file.map(<[u8]>::to_vec),
            pattern: text.to_vec(),
        };
        self.list.push(Rule::new(source, is_include, pattern));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the first rule that matches: it decides.
    pub(super) fn find(&self, path: &EntryPath<'_>) -> Option<&Rule> {
        self.list.iter().find(|rule| rule.matches(path))
    }
}

impl Rule {
    fn new(source: Source, is_include: bool, pattern: &[u8]) -> Self {
        let (pattern, is_for_directories) = match pattern.strip_suffix(b"/") {
            Some(rest) if !rest.is_empty() => (rest, true),
            _ => (pattern, false),
        };
        let slashes = pattern.iter().filter(|&&byte| byte == b'/').count();
        let wide = pattern.windows(2).position(|pair| pair == b"**");
        let begins_wide = wide == Some(0);
        let (pattern, scope) = match pattern.strip_prefix(b"/") {
            Some(rest) => (rest, Scope::Whole),
            None if begins_wide => (pattern, Scope::Whole),
            None if wide.is_some() => (pattern, Scope::AfterSlash),
            None if slashes > 0 => (pattern, Scope::Tail(slashes + 1)),
            None => (pattern, Scope::Name),
        };
        Self {
            is_include,
            glob: Glob::new(pattern, Dialect::Rsync),
            scope,
            is_for_directories,
            begins_wide,
            covers_directory: has_wildcard(pattern) && pattern.ends_with(b"***"),
            source,
        }
    }

    fn matches(&self, path: &EntryPath<'_>) -> bool {
        if self.is_for_directories && !path.is_dir {
            return false;
        }
        let end = if self.covers_directory && path.is_dir {
            path.bytes.len()
        } else {
            path.bytes.len() - 1
        };
        let start = usize::from(!self.begins_wide);
        let text = &path.bytes[start..end];
        let slashes = || (0..text.len()).filter(|&at| text[at] == b'/');
        match self.scope {
            Scope::Name => self.glob.matches(path.name),
            Scope::Whole => self.glob.matches(text),
            Scope::AfterSlash => {
                self.glob.matches(text) || slashes().any(|at| self.glob.matches(&text[at + 1..]))
            }
            Scope::Tail(names) => match slashes().rev().nth(names - 1) {
                Some(at) => self.glob.matches(&text[at + 1..]),
                None => slashes().count() + 1 == names && self.glob.matches(text),
            },
        }
    }
}

/// Formats the rule as the command line has it: `--exclude '*.o'`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source {
            option,
            file,
            pattern,
        } = &self.source;
        write!(f, "{option} ")?;
        if let Some(file) = file {
            write!(f, "{}: ", quote_for_shell(file))?;
        }
        f.write_str(&quote_for_shell(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns true if one `--exclude` with this pattern matches a path below the source. A slash
    /// at the end makes it a directory.
    fn matches(pattern: &str, path: &str) -> bool {
        let mut rules = Rules::default();
        rules.add("--exclude", None, false, pattern.as_bytes());
        is_excluded(&rules, path)
    }

    fn is_excluded(rules: &Rules, path: &str) -> bool {
        let (path, is_dir) = match path.strip_suffix('/') {
            Some(dir) => (dir, true),
            None => (path, false),
        };
        let name = path.rsplit('/').next().unwrap();
        let bytes = format!("/{path}/");
        let path = EntryPath::new(bytes.as_bytes(), name.as_bytes(), is_dir);
        rules.find(&path).is_some_and(|rule| !rule.is_include)
    }

    #[test]
    fn patterns_match_as_in_rsync() {
        for (pattern, yes, no) in [
            (
                "foo",
                &["foo", "a/foo", "a/foo/"][..],
                &["foo/a", "xfoo"][..],
            ),
            ("/foo", &["foo"], &["a/foo"]),
            ("foo/", &["foo/", "a/foo/"], &["foo"]),
            ("a/b", &["a/b", "x/a/b"], &["xa/b", "b", "a/x/b"]),
            ("*/b", &["a/b", "x/a/b"], &["b"]),
            ("/a/*", &["a/b"], &["a/b/c", "x/a/b"]),
            ("/a/**", &["a/b", "a/b/c"], &["a/"]),
            ("a/***", &["a/", "a/b", "a/b/c", "x/a/"], &["a"]),
            ("**/b", &["b", "a/b", "x/y/b"], &["xb"]),
            ("**b", &["b", "xb", "a/xb"], &["b/c"]),
            ("a**b", &["a/b", "x/a/y/b", "ab"], &["xa/b"]),
        ] {
            for (paths, expected) in [(yes, true), (no, false)] {
                for path in paths {
                    assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
                }
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut rules = Rules::default();
        rules.add("--include", None, true, b"*.c");
        rules.add("--exclude", None, false, b"*");
        assert!(!is_excluded(&rules, "a.c"));
        assert!(is_excluded(&rules, "a.o"));
        rules.add("--exclude", None, false, b"!");
        assert!(rules.is_empty());
        rules.add("--exclude", None, false, b"+ a.o");
        rules.add("--include", None, true, b"- *");
        rules.add("--exclude", None, false, b"");
        assert!(!is_excluded(&rules, "a.o"));
        assert!(is_excluded(&rules, "a.c"));
    }

    #[test]
    fn a_rule_is_shown_as_it_was_written() {
        let mut rules = Rules::default();
        rules.add("--exclude", None, false, b"*.o");
        rules.add("--exclude-from", Some(b"my list"), false, b"dir/");
        let shown: Vec<_> = rules.list.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["--exclude '*.o'", "--exclude-from 'my list': dir/"]);
    }
}
