//! Paths as messages show them.

/// Quotes a path for people, so that it stays on one line whatever its bytes are.
///
/// Printable text is shown as it is, anything else in the shell's `$'...'` form, which can be
/// pasted back.
pub(crate) fn quote(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => {
            let mut shown = String::from("$'");
            for chunk in path.utf8_chunks() {
                for c in chunk.valid().chars() {
                    match c {
                        '\n' => shown.push_str("\\n"),
                        '\t' => shown.push_str("\\t"),
                        '\r' => shown.push_str("\\r"),
                        '\\' | '\'' => shown.extend(['\\', c]),
                        c if c.is_control() => {
                            for byte in c.to_string().bytes() {
                                shown.push_str(&format!("\\x{byte:02x}"));
                            }
                        }
                        c => shown.push(c),
                    }
                }
                for byte in chunk.invalid() {
                    shown.push_str(&format!("\\x{byte:02x}"));
                }
            }
            shown.push('\'');
            shown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_names_stay_on_one_line() {
        assert_eq!(quote("a b/ü".as_bytes()), "a b/ü");
        assert_eq!(quote(b"a\nb'\xff"), "$'a\\nb\\'\\xff'");
    }
}
