//! Patterns for names and paths, and matching bytes against them.
//!
//! The crates globset and ignore cannot do this exactly. There `{a,b}` is a choice, `**` means more
//! than `*` only as a whole component, and a pattern is text. For rsync and git braces are literal,
//! `a**b` of rsync crosses slashes, and patterns are bytes, as names are.

/// Whose rules a pattern follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `**` matches anything. A backslash is special only beside a wildcard.
    Rsync,
    /// `**` is `*`, unless it is a whole component.
    Git,
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    /// `None` if the pattern is malformed: it matches nothing, as in rsync and git.
    tokens: Option<Vec<Token>>,
}

#[derive(Clone, Debug)]
enum Token {
    Byte(u8),
    /// `?`: one byte that is no slash.
    Any,
    /// `[...]`: one of these bytes. A slash is never one of them.
    Class(Box<[bool; 256]>),
    /// `*`: any bytes but slashes.
    Star,
    /// `**`: any bytes.
    Wide,
    /// `**/` of git: nothing, or any bytes up to a slash.
    Directories,
}

impl Token {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::Any => byte != b'/',
            Self::Class(class) => class[usize::from(byte)],
            Self::Star | Self::Wide | Self::Directories => false,
        }
    }
}

/// The place of a star in the pattern, and how much of the text it has taken.
#[derive(Clone, Copy)]
struct Taken {
    /// The token after the star.
    next: usize,
    /// The first byte after what it has taken.
    end: usize,
}

impl Glob {
    pub(super) fn new(pattern: &[u8], dialect: Dialect) -> Self {
        let is_plain = dialect == Dialect::Rsync && !has_wildcard(pattern);
        let tokens = if is_plain {
            Some(pattern.iter().map(|&byte| Token::Byte(byte)).collect())
        } else {
            compile(pattern, dialect)
        };
        Self { tokens }
    }

    /// Returns true if the pattern matches the whole text.
    ///
    /// A star takes as little as possible, and more only if the rest does not match. Only the last
    /// star of each kind must be tried again: what an earlier one could take instead, a later one
    /// can take too. So the time is bounded, unlike that of trying all of them.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let Some(tokens) = &self.tokens else {
            return false;
        };
        let (mut next, mut at) = (0, 0);
        let mut star: Option<Taken> = None;
        let mut wide: Option<(Taken, bool)> = None;
        loop {
            match tokens.get(next) {
                Some(Token::Star) => {
                    next += 1;
                    star = Some(Taken { next, end: at });
                    continue;
                }
                Some(token @ (Token::Wide | Token::Directories)) => {
                    next += 1;
                    star = None;
                    let is_whole = matches!(token, Token::Directories);
                    wide = Some((Taken { next, end: at }, is_whole));
                    continue;
                }
                Some(token) if text.get(at).is_some_and(|&byte| token.matches(byte)) => {
                    next += 1;
                    at += 1;
                    continue;
                }
                None if at == text.len() => return true,
                _ => {}
            }
            if let Some(taken) = &mut star
                && text.get(taken.end).is_some_and(|&byte| byte != b'/')
            {
                taken.end += 1;
                (next, at) = (taken.next, taken.end);
                continue;
            }
            let Some((taken, is_whole)) = &mut wide else {
                return false;
            };
            let rest = &text[taken.end..];
            let more = match is_whole {
                true => rest.iter().position(|&byte| byte == b'/'),
                false => (!rest.is_empty()).then_some(0),
            };
            let Some(more) = more else {
                return false;
            };
            taken.end += more + 1;
            (next, at) = (taken.next, taken.end);
            star = None;
        }
    }
}

/// Returns true if rsync takes the bytes for a pattern, and not for a name.
pub(super) fn has_wildcard(pattern: &[u8]) -> bool {
    pattern.iter().any(|byte| b"*?[".contains(byte))
}

fn compile(pattern: &[u8], dialect: Dialect) -> Option<Vec<Token>> {
    // Git compares what is before the first special character by itself, and the rest is a pattern
    // of its own. So `a**/b` is `a` and `**/b` there.
    let is_special = |byte: &u8| b"*?[\\".contains(byte);
    let literal = pattern.iter().position(is_special).unwrap_or(pattern.len());
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut at = 0;
    while let Some(&byte) = pattern.get(at) {
        at += 1;
        tokens.push(match byte {
            b'*' => {
                let first = at - 1;
                while pattern.get(at) == Some(&b'*') {
                    at += 1;
                }
                let rest = &pattern[at..];
                let is_component = (first == literal || pattern[first - 1] == b'/')
                    && (rest.is_empty() || rest[0] == b'/' || rest.starts_with(b"\\/"));
                match dialect {
                    _ if at - first == 1 => Token::Star,
                    Dialect::Rsync => Token::Wide,
                    Dialect::Git if !is_component => Token::Star,
                    Dialect::Git if rest.first() == Some(&b'/') => {
                        at += 1;
                        Token::Directories
                    }
                    Dialect::Git => Token::Wide,
                }
            }
            b'?' => Token::Any,
            b'[' => Token::Class(compile_class(pattern, &mut at)?),
            b'\\' => {
                let &escaped = pattern.get(at)?;
                at += 1;
                Token::Byte(escaped)
            }
            byte => Token::Byte(byte),
        });
    }
    Some(tokens)
}

/// Compiles what follows a `[`, up to the `]`.
fn compile_class(pattern: &[u8], at: &mut usize) -> Option<Box<[bool; 256]>> {
    let mut class = Box::new([false; 256]);
    let is_negated = matches!(pattern.get(*at)?, b'!' | b'^');
    *at += usize::from(is_negated);
    let first = *at;
    // The start of a range, if a `-` follows.
    let mut previous = None;
    loop {
        let byte = *pattern.get(*at)?;
        *at += 1;
        let is_range = byte == b'-' && pattern.get(*at).is_some_and(|&next| next != b']');
        if byte == b']' && *at - 1 > first {
            break;
        } else if byte == b'\\' {
            let escaped = *pattern.get(*at)?;
            *at += 1;
            class[usize::from(escaped)] = true;
            previous = Some(escaped);
        } else if is_range && let Some(start) = previous {
            let mut end = pattern[*at];
            *at += 1;
            if end == b'\\' {
                end = *pattern.get(*at)?;
                *at += 1;
            }
            for byte in start..=end {
                class[usize::from(byte)] = true;
            }
            previous = None;
        } else if byte == b'[' && pattern.get(*at) == Some(&b':') {
            let rest = &pattern[*at + 1..];
            let length = rest.iter().position(|&byte| byte == b']')?;
            if let Some(name) = rest[..length].strip_suffix(b":") {
                let is_member = named_class(name)?;
                for byte in 0..=u8::MAX {
                    class[usize::from(byte)] |= is_member(&byte);
                }
                *at += 1 + length + 1;
                previous = None;
            } else {
                // Not a named class: the bracket stands for itself.
                class[usize::from(b'[')] = true;
                previous = Some(b'[');
            }
        } else {
            class[usize::from(byte)] = true;
            previous = Some(byte);
        }
    }
    if is_negated {
        for member in class.iter_mut() {
            *member = !*member;
        }
    }
    class[usize::from(b'/')] = false;
    Some(class)
}

/// Returns the test for the members of `[:NAME:]`.
fn named_class(name: &[u8]) -> Option<fn(&u8) -> bool> {
    Some(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| byte.is_ascii_graphic() || *byte == b' ',
        b"punct" => u8::is_ascii_punctuation,
        // C counts the vertical tab too.
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dialect: Dialect, pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = Glob::new(pattern.as_bytes(), dialect);
        for (texts, expected) in [(yes, true), (no, false)] {
            for text in texts {
                let matches = glob.matches(text.as_bytes());
                assert_eq!(matches, expected, "{dialect:?} {pattern} {text}");
            }
        }
    }

    #[test]
    fn a_star_stops_at_a_slash() {
        for dialect in [Dialect::Rsync, Dialect::Git] {
            check(
                dialect,
                "*.o",
                &["a.o", ".o", "a.o.o"],
                &["a.c", "a/b.o", "a.o/"],
            );
            check(dialect, "a/*/c", &["a/b/c", "a//c"], &["a/c", "a/b/b/c"]);
            check(dialect, "a?c", &["abc"], &["a/c", "ac"]);
            check(
                dialect,
                "*a*b*c",
                &["abc", "xaxbxc", "ababc"],
                &["acb", "a/bc"],
            );
        }
    }

    #[test]
    fn two_stars_cross_slashes_in_rsync() {
        let rsync = Dialect::Rsync;
        check(rsync, "a**z", &["az", "a/b/z", "abcz"], &["ba/z"]);
        check(rsync, "a/**/z", &["a/b/z", "a/b/c/z"], &["a/z"]);
        check(rsync, "a**/x*y/b", &["a/xy/b", "a/x/xzy/b"], &["a/x/y/b"]);
    }

    #[test]
    fn two_stars_are_directories_in_git() {
        let git = Dialect::Git;
        check(git, "**/z", &["z", "a/z", "a/b/z"], &["az"]);
        check(git, "a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["az"]);
        check(git, "a/**", &["a/b", "a/b/c"], &["a", "b/a"]);
        check(git, "?**z", &["az", "abz"], &["a/z"]);
    }

    #[test]
    fn classes_are_those_of_the_shell() {
        for dialect in [Dialect::Rsync, Dialect::Git] {
            check(dialect, "[a-c]", &["a", "b", "c"], &["d", "-", ""]);
            check(dialect, "[!a-c]", &["d", "-"], &["a", "/"]);
            check(dialect, "[^a]", &["b"], &["a"]);
            check(dialect, "[]a]", &["]", "a"], &["b"]);
            check(dialect, "[a-]", &["a", "-"], &["b"]);
            check(dialect, "[[:digit:]_]", &["7", "_"], &["a", ":"]);
            check(dialect, "[[:x]", &["[", ":", "x"], &["y"]);
            check(dialect, "[\\]]", &["]"], &["\\"]);
            // Malformed ones match nothing.
            check(dialect, "[a", &[], &["a", "[a"]);
            check(dialect, "[[:none:]]", &[], &["a", "[", ":"]);
            check(dialect, "*\\", &[], &["a", "a\\"]);
        }
    }

    #[test]
    fn a_backslash_is_special_beside_a_wildcard() {
        check(Dialect::Rsync, "a\\b", &["a\\b"], &["ab"]);
        check(Dialect::Rsync, "a\\b*", &["abc"], &["a\\bc"]);
        check(Dialect::Rsync, "\\*?", &["*x"], &["ax"]);
        check(Dialect::Git, "\\#", &["#"], &["\\#"]);
    }

    #[test]
    fn names_are_bytes() {
        let glob = Glob::new(b"\xff*[\xfe]", Dialect::Rsync);
        assert!(glob.matches(b"\xff\x80\xfe"));
        assert!(!glob.matches(b"\xff\xff"));
    }

    #[test]
    fn many_stars_take_bounded_time() {
        let glob = Glob::new("*a".repeat(60).as_bytes(), Dialect::Rsync);
        assert!(!glob.matches(&[b'a'; 59]));
        assert!(!glob.matches(&[[b'a'; 200].as_slice(), b"b"].concat()));
        let glob = Glob::new("**a".repeat(60).as_bytes(), Dialect::Rsync);
        assert!(!glob.matches(&[[b'a'; 200].as_slice(), b"b"].concat()));
    }
}
