//! What the terminal can show: colours, and characters beyond ASCII.

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) has_colour: bool,
    pub(super) is_utf8: bool,
}

/// A colour of the bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Cyan,
    Red,
}

impl Style {
    /// Reads the environment; `variable` returns one that is set.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        // The first that is set counts, as in locale(7).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(variable);
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        Self {
            has_colour: variable("NO_COLOR").is_none() && !is_dumb(variable),
            is_utf8: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Cyan => 36,
            Colour::Red => 31,
        };
        if self.has_colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Returns the text as the terminal can show it.
    pub(super) fn show(self, text: &str) -> String {
        if self.is_utf8 || text.is_ascii() {
            return text.to_owned();
        }
        let shown = text.chars().map(|c| if c.is_ascii() { c } else { '?' });
        shown.collect()
    }

    pub(super) const fn ellipsis(self) -> &'static str {
        if self.is_utf8 { "…" } else { "..." }
    }

    /// Returns what stands between two facts.
    pub(super) const fn separator(self) -> &'static str {
        if self.is_utf8 { " · " } else { ", " }
    }

    /// Returns the three parts of the bar: what is done, where it is, and the rest.
    pub(super) const fn bar(self) -> [&'static str; 3] {
        if self.is_utf8 {
            ["━", "╸", "━"]
        } else {
            ["=", ">", "-"]
        }
    }
}

/// Returns true for a terminal that cannot move its cursor.
pub(super) fn is_dumb(variable: impl Fn(&str) -> Option<String>) -> bool {
    // One that is not named can do nothing either: a serial line, a service, an editor.
    variable("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(variables: &[(&str, &str)]) -> Style {
        Style::of(|name| {
            let usual = [("TERM", "linux")];
            let mut all = variables.iter().chain(&usual);
            let found = all.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_decides() {
        for (variables, has_colour, is_utf8) in [
            (&[("LANG", "de_DE.UTF-8")][..], true, true),
            (&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")], true, false),
            (&[("LC_ALL", ""), ("LC_CTYPE", "en_US.utf8")], true, true),
            (&[("NO_COLOR", "1")], false, false),
            (&[("NO_COLOR", "")], true, false),
            (&[("TERM", "dumb"), ("LANG", "C.UTF-8")], false, true),
            (&[("TERM", "xterm")], true, false),
            (&[("TERM", "")], false, false),
        ] {
            let expected = Style {
                has_colour,
                is_utf8,
            };
            assert_eq!(style(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn ascii_is_all_that_other_locales_show() {
        assert_eq!(style(&[]).show("Urlaub/日本 1"), "Urlaub/?? 1");
        assert_eq!(style(&[("LANG", "C.UTF-8")]).show("日本"), "日本");
    }
}
