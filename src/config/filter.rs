//! Which entries are copied, checked.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use super::time::parse_time;
use crate::cli::Cli;
pub use crate::cli::filter::RuleOption;
use crate::cli::size::parse_size;
use crate::quote::quote_for_shell;

/// Which entries are copied.
#[derive(Clone, Debug, Default)]
pub struct FilterSettings {
    /// The rules to exclude and include, in order.
    pub rules: Vec<RuleOption>,
    /// Files with rules or paths have NUL after each.
    pub from0: bool,
    /// Leave out what git ignores.
    pub gitignore: bool,
    /// Leave out the contents of caches.
    pub exclude_caches: bool,
    /// Leave out the contents of directories with an entry of one of these names.
    pub exclude_if_present: Vec<OsString>,
    /// FileLimits of size and age.
    pub limits: FileLimits,
    /// Copy only the paths that this file lists.
    pub files_from: Option<PathBuf>,
    /// Copy listed directories with their contents.
    pub recursive: bool,
    /// Keep the path of each source as it is named.
    pub parents: bool,
    /// Create nothing.
    pub existing: bool,
    /// The contents of files with rules, if they were read before.
    pub(crate) rule_files: Vec<Vec<u8>>,
}

/// FileLimits of size and age.
#[derive(Clone, Debug, Default)]
pub struct FileLimits {
    /// Files must have as many bytes.
    pub min_size: Option<Size>,
    /// Files must not have more bytes.
    pub max_size: Option<Size>,
    /// Entries must have been modified at this time or later.
    pub newer_than: Option<Moment>,
    /// Entries must have been modified before this time.
    pub older_than: Option<Moment>,
}

impl FileLimits {
    /// Returns true if an entry's time decides.
    pub(crate) fn needs_time(&self) -> bool {
        self.newer_than.is_some() || self.older_than.is_some()
    }
}

/// A size, and the option that set it.
#[derive(Clone, Debug)]
pub struct Size {
    /// In bytes.
    pub bytes: u64,
    /// The option as the user wrote it.
    pub option: String,
}

/// A time, and the option that set it.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Seconds and nanoseconds since 1970.
    pub time: (i64, i64),
    /// The option as the user wrote it.
    pub option: String,
}

impl FilterSettings {
    /// Checks the options that choose entries.
    pub(super) fn new(cli: &Cli) -> Result<Self> {
        let filters = &cli.filters;
        let limits = FileLimits {
            min_size: size("--min-size", filters.min_size.as_deref())?,
            max_size: size("--max-size", filters.max_size.as_deref())?,
            newer_than: moment("--newer-than", filters.newer_than.as_deref())?,
            older_than: moment("--older-than", filters.older_than.as_deref())?,
        };
        let rules = filters.rules.0.clone();
        let files = rules.iter().filter(|rule| rule.is_file);
        let files = files.map(|rule| rule.value.as_os_str());
        let files = files.chain(filters.files_from.as_ref().map(|path| path.as_os_str()));
        if files.filter(|file| *file == "-").count() > 1 {
            bail!("stdin can be read once, so only one option can have \"-\" as its file");
        }
        for name in &filters.exclude_if_present {
            if name.is_empty() || name.as_encoded_bytes().contains(&b'/') {
                bail!(
                    "--exclude-if-present {}: must be a name, without a slash",
                    quote_for_shell(name.as_encoded_bytes())
                );
            }
        }
        let list = match (&filters.files_from, filters.parents) {
            (Some(_), _) => Some("--files-from"),
            (None, true) => Some("--parents"),
            (None, false) => None,
        };
        if let Some(list) = list {
            if cli.duplicate.is_some() {
                bail!("{list} does not go with --duplicate: a copy beside SRC has no other path");
            }
            if cli.one_file_system {
                bail!("{list} does not go with -x: what is named is copied, wherever it is");
            }
        }
        if filters.parents && filters.files_from.is_none() && cli.no_target_directory {
            bail!("--parents does not go with -T: it puts each SRC below DST");
        }
        Ok(Self {
            rules,
            from0: filters.from0,
            gitignore: filters.gitignore,
            exclude_caches: filters.exclude_caches,
            exclude_if_present: filters.exclude_if_present.clone(),
            limits,
            files_from: filters.files_from.clone(),
            recursive: cli.habits.recursive,
            // A list has paths below SRC, and these are kept in any case.
            parents: filters.parents && filters.files_from.is_none(),
            existing: filters.existing,
            rule_files: Vec::new(),
        })
    }
}

fn size(option: &str, text: Option<&str>) -> Result<Option<Size>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let option = format!("{option} {}", quote_for_shell(text.as_bytes()));
    let bytes = parse_size(text).with_context(|| option.clone())?;
    Ok(Some(Size { bytes, option }))
}

fn moment(option: &str, text: Option<&str>) -> Result<Option<Moment>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let option = format!("{option} {}", quote_for_shell(text.as_bytes()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or((0, 0), |now| {
        (now.as_secs().cast_signed(), i64::from(now.subsec_nanos()))
    });
    let time = parse_time(text, now).with_context(|| option.clone())?;
    Ok(Some(Moment { time, option }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn error(words: &[&str]) -> String {
        let words = [&["pcopy"], words, &["src", "dst"]].concat();
        let error = Config::new(Cli::try_parse_from(words).unwrap()).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn contradictions_are_refused() {
        for (words, part) in [
            (
                &["--files-from=-", "--exclude-from=-"][..],
                "stdin can be read once",
            ),
            (
                &["--exclude-from=-", "--include-from=-"],
                "stdin can be read once",
            ),
            (&["--exclude-if-present=a/b"], "without a slash"),
            (&["--files-from=l", "-x"], "does not go with -x"),
            (&["--parents", "-x"], "does not go with -x"),
            (&["--parents", "-T"], "does not go with -T"),
            (&["--max-size=5x"], "--max-size 5x: "),
            (&["--newer-than=yesterday"], "--newer-than yesterday: "),
        ] {
            let error = error(words);
            assert!(error.contains(part), "{error}");
        }
    }
}
