//! Environment variables: defaults of options, and the language.

use std::ffi::{OsStr, OsString};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::quote::quote;

/// When to show progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// If stderr is a terminal.
    #[default]
    Auto,
    /// Even if stderr is not a terminal.
    Always,
    /// Not at all.
    Never,
}

/// How backups are named, in the words of cp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Control {
    /// With a suffix.
    #[value(alias = "never")]
    Simple,
    /// With a number.
    #[value(alias = "t")]
    Numbered,
    /// With a number if there are such backups.
    #[value(alias = "nil")]
    Existing,
    /// No backups.
    #[value(alias = "off")]
    None,
}

/// What the environment says. Options on the command line win.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `PCOPY_JOBS`: the most workers.
    pub jobs: Option<u16>,
    /// `PCOPY_PROGRESS`: when to show progress.
    pub progress: Option<When>,
    /// `VERSION_CONTROL`: how `--backup` names backups, as with cp.
    pub version_control: Option<Control>,
    /// `SIMPLE_BACKUP_SUFFIX`, as with cp.
    pub backup_suffix: Option<OsString>,
    /// The locale's messages are Chinese.
    pub is_chinese: bool,
}

impl Environment {
    /// Reads the variables. `get` returns the value of one.
    ///
    /// # Errors
    /// If one of pcopy's own variables has a wrong value. An empty one counts as not set.
    pub(crate) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let mut environment = Self::default();
        if let Some(value) = get("PCOPY_JOBS") {
            let jobs = value.to_str().and_then(|text| text.parse().ok());
            environment.jobs = jobs.filter(|jobs| (1..=1024).contains(jobs));
            if environment.jobs.is_none() {
                bail!(
                    "PCOPY_JOBS: {} is not a number from 1 to 1024",
                    show(&value)
                );
            }
        }
        if let Some(value) = get("PCOPY_PROGRESS") {
            let progress = value.to_str().map(|text| When::from_str(text, false));
            environment.progress = progress.and_then(Result::ok);
            if environment.progress.is_none() {
                bail!(
                    "PCOPY_PROGRESS: {} is not auto, always or never",
                    show(&value)
                );
            }
        }
        // Only `--backup` reads these two. Other programs have more values, so a wrong one is no error.
        let control = get("VERSION_CONTROL");
        let control = control.as_ref().and_then(|value| value.to_str());
        environment.version_control =
            control.and_then(|value| Control::from_str(value, false).ok());
        environment.backup_suffix = get("SIMPLE_BACKUP_SUFFIX");
        // The first one that is set decides, as in setlocale(3).
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(get);
        environment.is_chinese =
            locale.is_some_and(|locale| locale.as_encoded_bytes().starts_with(b"zh"));
        Ok(environment)
    }

    /// Returns what `--duplicate` adds to a name.
    pub(crate) fn ending(&self) -> &'static str {
        if self.is_chinese {
            "[复件]"
        } else {
            " (copy)"
        }
    }
}

fn show(value: &OsStr) -> String {
    quote(value.as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment> {
        Environment::read(|name| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| value.into())
        })
    }

    #[test]
    fn wrong_values_name_the_variable() {
        for (name, value) in [
            ("PCOPY_JOBS", "0"),
            ("PCOPY_JOBS", "1025"),
            ("PCOPY_JOBS", "many"),
            ("PCOPY_PROGRESS", "yes"),
            ("PCOPY_PROGRESS", "Always"),
        ] {
            let message = read(&[(name, value)]).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("{name}: {value} is not ")),
                "{message}"
            );
        }
        let set = read(&[("PCOPY_JOBS", "8"), ("PCOPY_PROGRESS", "never")]).unwrap();
        assert_eq!((set.jobs, set.progress), (Some(8), Some(When::Never)));
        let empty = read(&[("PCOPY_JOBS", ""), ("PCOPY_PROGRESS", "")]).unwrap();
        assert_eq!((empty.jobs, empty.progress), (None, None));
    }

    #[test]
    fn the_first_variable_that_is_set_decides_the_language() {
        let ending = |variables: &[(&str, &str)]| read(variables).unwrap().ending();
        assert_eq!(ending(&[]), " (copy)");
        assert_eq!(ending(&[("LANG", "zh_CN.UTF-8")]), "[复件]");
        assert_eq!(ending(&[("LANG", "de_DE.UTF-8")]), " (copy)");
        assert_eq!(
            ending(&[("LANG", "zh_TW"), ("LC_MESSAGES", "C")]),
            " (copy)"
        );
        assert_eq!(
            ending(&[("LC_ALL", ""), ("LC_MESSAGES", "zh_CN"), ("LANG", "C")]),
            "[复件]"
        );
        assert_eq!(
            ending(&[("LC_ALL", "C"), ("LC_MESSAGES", "zh_CN")]),
            " (copy)"
        );
    }
}
