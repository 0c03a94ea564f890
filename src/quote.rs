//! Quotes names for messages: on one line, and unable to move the cursor or reorder text.
//!
//! The crate `os_display` is not enough. It quotes names with spaces, never escapes U+200B, U+200E,
//! U+061C or U+FEFF, and leaves U+202E, which reverses text, as it is if U+202C follows.

use std::fmt::Write as _;

/// Quotes a path for a message if necessary.
///
/// A path of printable characters and spaces stays as it is. Any other path takes the shell's
/// `$'...'` form, which can be pasted into bash, zsh, ksh and busybox. So does a path that starts
/// with `$'` and could be mistaken for that form, and an empty one.
pub(crate) fn quote(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.is_empty() && !text.starts_with("$'") && text.chars().all(is_visible) => {
            text.to_owned()
        }
        _ => escape(path),
    }
}

/// Quotes a path as a word of a command line that can be pasted into a shell.
pub(crate) fn quote_for_shell(path: &[u8]) -> String {
    let is_bare = |c: char| c.is_alphanumeric() || "/._-+,:@%^=".contains(c);
    let quoted = quote(path);
    if quoted.starts_with("$'") || quoted.chars().all(is_bare) {
        return quoted;
    }
    format!("'{}'", quoted.replace('\'', r"'\''"))
}

/// Escapes hidden characters in a text that is not a path.
pub(super) fn escape_hidden(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if is_visible(c) {
            escaped.push(c);
        } else {
            push_hex(&mut escaped, c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    escaped
}

fn escape(path: &[u8]) -> String {
    let mut quoted = String::from("$'");
    // In ksh and mksh, `\x` takes every hexadecimal digit that follows. `'$'` ends it.
    let mut is_after_hex = false;
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            let was_after_hex = std::mem::replace(&mut is_after_hex, false);
            match c {
                '\n' => quoted.push_str("\\n"),
                '\t' => quoted.push_str("\\t"),
                '\r' => quoted.push_str("\\r"),
                '\\' | '\'' => quoted.extend(['\\', c]),
                c if !is_visible(c) => {
                    push_hex(&mut quoted, c.encode_utf8(&mut [0; 4]).as_bytes());
                    is_after_hex = true;
                }
                c => {
                    if was_after_hex && c.is_ascii_hexdigit() {
                        quoted.push_str("'$'");
                    }
                    quoted.push(c);
                }
            }
        }
        if !chunk.invalid().is_empty() {
            push_hex(&mut quoted, chunk.invalid());
            is_after_hex = true;
        }
    }
    quoted.push('\'');
    quoted
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// Returns true if a terminal does no more than show the character, or a blank for it.
///
/// False for control characters, format characters (category Cf: bidi controls, zero-width
/// characters, the byte order mark), line and paragraph separators, and private or unassigned
/// characters. The zero-width joiner of some emoji is a format character too, and escaped: it can
/// make two names look the same. Letters of right-to-left scripts are visible.
fn is_visible(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // All kinds of spaces: U+00A0, U+202F in the names of screenshots, U+3000 in Japanese.
        _ if c.is_whitespace() => !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}'),
        _ => is_printable(c),
    }
}

/// Returns true if std's Unicode tables call a non-ASCII character printable.
fn is_printable(c: char) -> bool {
    // At the start of a text std also escapes combining marks, which many names contain.
    let mut text = *b"x\0\0\0\0";
    let length = 1 + c.encode_utf8(&mut text[1..]).len();
    std::str::from_utf8(&text[..length]).is_ok_and(|text| text.escape_debug().eq(text.chars()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// General category Cf of Unicode 16.
    const FORMAT: [(char, char); 21] = [
        ('\u{ad}', '\u{ad}'),
        ('\u{600}', '\u{605}'),
        ('\u{61c}', '\u{61c}'),
        ('\u{6dd}', '\u{6dd}'),
        ('\u{70f}', '\u{70f}'),
        ('\u{890}', '\u{891}'),
        ('\u{8e2}', '\u{8e2}'),
        ('\u{180e}', '\u{180e}'),
        ('\u{200b}', '\u{200f}'),
        ('\u{202a}', '\u{202e}'),
        ('\u{2060}', '\u{2064}'),
        ('\u{2066}', '\u{206f}'),
        ('\u{feff}', '\u{feff}'),
        ('\u{fff9}', '\u{fffb}'),
        ('\u{110bd}', '\u{110bd}'),
        ('\u{110cd}', '\u{110cd}'),
        ('\u{13430}', '\u{1343f}'),
        ('\u{1bca0}', '\u{1bca3}'),
        ('\u{1d173}', '\u{1d17a}'),
        ('\u{e0001}', '\u{e0001}'),
        ('\u{e0020}', '\u{e007f}'),
    ];

    fn is_harmful(c: char) -> bool {
        let is_format = FORMAT.iter().any(|&(first, last)| first <= c && c <= last);
        is_format || c.is_control() || c == '\u{2028}' || c == '\u{2029}'
    }

    /// Reads a quoted path back, as a shell does.
    fn unquote(text: &str) -> Vec<u8> {
        let Some(mut rest) = text.strip_prefix("$'") else {
            return text.as_bytes().to_vec();
        };
        let mut path = Vec::new();
        loop {
            let c = rest.chars().next().expect("the quote is closed");
            rest = &rest[c.len_utf8()..];
            match c {
                '\'' if rest.is_empty() => return path,
                '\'' => rest = rest.strip_prefix("$'").expect("another quoted part"),
                '\\' => {
                    let escaped = rest.as_bytes()[0];
                    rest = &rest[1..];
                    match escaped {
                        b'n' => path.push(b'\n'),
                        b't' => path.push(b'\t'),
                        b'r' => path.push(b'\r'),
                        b'\\' | b'\'' => path.push(escaped),
                        b'x' => {
                            path.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                            rest = &rest[2..];
                            let next = rest.chars().next();
                            assert!(!next.is_some_and(|c| c.is_ascii_hexdigit()), "{text}");
                        }
                        other => panic!("\\{} in {text}", other as char),
                    }
                }
                c => path.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    #[test]
    fn names_that_can_be_shown_stay_bare() {
        for name in [
            "a b/ü",
            "u\u{308} as macOS has it",
            "it's \"quoted\" \\ $HOME `x` *?[]",
            "~tilde",
            "-dash",
            "$",
            "你好/世界",
            "שלום",
            "ภาษาไทย",
            "Screenshot at 1.00\u{202f}PM\u{3000}\u{a0}.png",
            "🎉 ❤\u{fe0f} 👍🏽 🇩🇪",
        ] {
            assert_eq!(quote(name.as_bytes()), name);
        }
    }

    #[test]
    fn control_characters_and_invalid_bytes_are_escaped() {
        for (name, quoted) in [
            (&b"a\nb"[..], r"$'a\nb'"),
            (b"a\tb\r", r"$'a\tb\r'"),
            (b"\x1b[2J", r"$'\x1b[2J'"),
            (b"\x7f", r"$'\x7f'"),
            // U+009B, which some terminals take for ESC [.
            (b"\xc2\x9b1A", r"$'\xc2\x9b'$'1A'"),
            (b"\x80", r"$'\x80'"),
            (b"caf\xe9", r"$'caf\xe9'"),
            (b"caf\xe9e\xe9 g", r"$'caf\xe9'$'e\xe9 g'"),
            (b"a\nb'\\\xff", r"$'a\nb\'\\\xff'"),
            // A cut-off character, and one that encodes `/` with too many bytes.
            (b"\xe2\x80", r"$'\xe2\x80'"),
            (b"\xc0\xaf", r"$'\xc0\xaf'"),
        ] {
            assert_eq!(quote(name), quoted);
        }
    }

    #[test]
    fn invisible_characters_are_escaped() {
        for (name, quoted) in [
            ("\u{202e}gpj.exe", r"$'\xe2\x80\xaegpj.exe'"),
            // Balanced, and misleading all the same.
            (
                "x\u{202e}gpj\u{202c}.exe",
                r"$'x\xe2\x80\xaegpj\xe2\x80\xac.exe'",
            ),
            ("a\u{200b}b", r"$'a\xe2\x80\x8b'$'b'"),
            ("\u{feff}x", r"$'\xef\xbb\xbfx'"),
            ("x\u{2028}y", r"$'x\xe2\x80\xa8y'"),
            ("👨\u{200d}👩", r"$'👨\xe2\x80\x8d👩'"),
            // Private and unassigned: terminals treat them differently.
            ("\u{e000}", r"$'\xee\x80\x80'"),
            ("\u{fff0}", r"$'\xef\xbf\xb0'"),
        ] {
            assert_eq!(quote(name.as_bytes()), quoted);
        }
        let all = FORMAT.iter().flat_map(|&(first, last)| first..=last);
        for c in all.chain('\u{2028}'..='\u{2029}') {
            assert!(!is_visible(c), "{}", c.escape_unicode());
        }
    }

    #[test]
    fn a_name_is_never_mistaken_for_a_quoted_one() {
        assert_eq!(quote(b""), "$''");
        assert_eq!(quote(br"$'a\nb'"), r"$'$\'a\\nb\''");
    }

    #[test]
    fn a_word_for_the_shell_is_one_word() {
        for (path, word) in [
            ("a/b-c.txt", "a/b-c.txt"),
            ("照片", "照片"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("a\nb", r"$'a\nb'"),
            ("", "$''"),
        ] {
            assert_eq!(quote_for_shell(path.as_bytes()), word);
        }
    }

    #[test]
    fn a_foreign_text_keeps_its_visible_characters() {
        assert_eq!(
            escape_hidden("it's \x1b[1m\u{202e}x"),
            r"it's \x1b[1m\xe2\x80\xaex"
        );
    }

    /// Generates names in which about a quarter of the characters are harmful.
    fn names() -> impl Strategy<Value = Vec<u8>> {
        let harmful = proptest::sample::select(FORMAT.to_vec())
            .prop_flat_map(|(first, last)| proptest::char::range(first, last));
        let character = prop_oneof![2 => any::<char>(), 1 => "[a-f0-9'\\\\$]"
            .prop_map(|text: String| text.chars().next().unwrap()), 1 => harmful];
        let bytes_of = |c: char| c.to_string().into_bytes();
        let part = prop_oneof![3 => character.prop_map(bytes_of), 1 => any::<[u8; 1]>().prop_map(Vec::from)];
        proptest::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn quoted_names_are_harmless_and_can_be_read_back(name in names()) {
            let quoted = quote(&name);
            prop_assert!(!quoted.chars().any(is_harmful), "{quoted:?}");
            prop_assert_eq!(unquote(&quoted), name);
        }
    }
}
