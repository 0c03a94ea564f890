//! Which entries are copied: rules, `.gitignore` files, markers, limits, and lists of paths.
//!
//! Each filter decides by itself, and an entry is copied if none leaves it out. An excluded
//! directory is not entered. Knows nothing of jobs and workers.

mod files;
mod gitignore;
mod glob;
mod limits;
mod rules;
mod selection;

use std::borrow::Cow;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{self, AtFlags, OFlags, Stat};
use rustix::io::Errno;

use crate::config::{FileLimits, FilterSettings};
use crate::fs::open::open_unnoticed;
use crate::fs::path::{Kind, RelPath};
use crate::quote::quote_for_shell;
use gitignore::{Ignores, Ignoring};
use rules::{EntryPath, Rule, Rules};

pub(crate) use selection::{Chosen, Cursor, Selection};

/// What a file named CACHEDIR.TAG begins with (bford.info/cachedir).
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const TAG_NAME: &str = "CACHEDIR.TAG";

/// The filters of a run.
#[derive(Debug)]
pub(crate) struct Filter {
    rules: Rules,
    markers: Vec<Marker>,
    limits: FileLimits,
    /// What the repositories around the sources ignore, by target. `None` without `--gitignore`.
    above: Option<Vec<Ignores>>,
}

/// The name of an entry by which the contents of its directory are left out.
#[derive(Debug)]
struct Marker {
    name: CString,
    /// It must be a file that begins with [`TAG`].
    is_tag: bool,
    /// The option, for `-n -v`.
    option: String,
}

/// Why an entry is left out. Its text is the option.
#[derive(Debug)]
pub(crate) enum Exclusion<'a> {
    Rule(&'a Rule),
    Ignored(Ignoring<'a>),
    /// The option of a marker or a limit.
    Option(&'a str),
}

impl fmt::Display for Exclusion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Ignored(ignoring) => ignoring.fmt(f),
            Self::Option(option) => f.write_str(option),
        }
    }
}

impl Filter {
    /// Reads the files with rules, unless they were read before. Returns `None` if everything is
    /// copied.
    pub(crate) fn load(settings: &FilterSettings) -> Result<Option<Self>> {
        let mut rules = Rules::default();
        let mut known = settings.rule_files.iter();
        for option in &settings.rules {
            let (name, value) = (option.name, option.value.as_bytes());
            if !option.is_file {
                rules.add(name, None, option.is_include, value);
                continue;
            }
            let text = match known.next() {
                Some(text) => Cow::Borrowed(text),
                None => Cow::Owned(files::read(name, &option.value)?),
            };
            for line in files::lines(&text, settings.from0) {
                if !matches!(line[0], b'#' | b';') {
                    rules.add(name, Some(value), option.is_include, line);
                }
            }
        }
        let mut markers = Vec::new();
        if settings.exclude_caches {
            markers.push(Marker {
                name: CString::new(TAG_NAME)?,
                is_tag: true,
                option: "--exclude-caches".to_owned(),
            });
        }
        for name in &settings.exclude_if_present {
            markers.push(Marker {
                name: CString::new(name.as_bytes())?,
                is_tag: false,
                option: format!("--exclude-if-present {}", quote_for_shell(name.as_bytes())),
            });
        }
        let filter = Self {
            rules,
            markers,
            limits: settings.limits.clone(),
            above: settings.gitignore.then(Vec::new),
        };
        let is_used = !filter.rules.is_empty()
            || !filter.markers.is_empty()
            || filter.above.is_some()
            || limits::is_set(&filter.limits);
        Ok(is_used.then_some(filter))
    }

    /// Adds a target: its source directory, if it is one. Each target is added in order.
    pub(crate) fn add_target(&mut self, source: Option<&Path>) -> Result<()> {
        if let Some(above) = &mut self.above {
            above.push(match source {
                Some(source) if source.as_os_str().is_empty() => Ignores::above(Path::new("."))?,
                Some(source) => Ignores::above(source)?,
                None => Ignores::default(),
            });
        }
        Ok(())
    }

    /// Returns true if a rule excludes a directory below the source.
    pub(crate) fn is_dir_excluded(&self, dir: &RelPath) -> bool {
        let (parent, name) = dir.split_last();
        self.is_excluded(&parent, name, true)
    }

    /// Returns true if a rule excludes an entry of this name in a directory below the source.
    pub(crate) fn is_excluded(&self, dir: &RelPath, name: &[u8], is_dir: bool) -> bool {
        self.find_rule(&path_of(dir), name, is_dir).is_some()
    }

    /// Returns the rule that excludes an entry. The path of its directory has a slash before and
    /// after it.
    fn find_rule(&self, dir: &[u8], name: &[u8], is_dir: bool) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        let path = [dir, name, b"/"].concat();
        let rule = self.rules.find(&EntryPath::new(&path, name, is_dir))?;
        (!rule.is_include).then_some(rule)
    }

    /// Returns why a file that the command line names is left out. As in rsync, rules and limits
    /// apply to its name. What git ignores is copied if it is named.
    pub(crate) fn find_named(&self, name: &[u8], stat: Option<&Stat>) -> Option<Exclusion<'_>> {
        if let Some(rule) = self.find_rule(b"/", name, false) {
            return Some(Exclusion::Rule(rule));
        }
        let option = limits::find(&self.limits, stat?)?;
        Some(Exclusion::Option(option))
    }
}

/// Reads the files with rules, in order.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn read_rule_files(settings: &FilterSettings) -> Result<Vec<Vec<u8>>> {
    let files = settings.rules.iter().filter(|option| option.is_file);
    files
        .map(|option| files::read(option.name, &option.value))
        .collect()
}

/// Reads the list of `--files-from`.
pub(crate) fn load_selection(settings: &FilterSettings) -> Result<Option<Selection>> {
    let Some(path) = &settings.files_from else {
        return Ok(None);
    };
    let name = "--files-from";
    let text = files::read(name, path.as_os_str())?;
    // rsync drops names that begin with # between NULs too. Here each is a name.
    let is_comment = |line: &[u8]| !settings.from0 && matches!(line[0], b'#' | b';');
    let lines = files::lines(&text, settings.from0).filter(|line| !is_comment(line));
    let selection = Selection::new(lines, settings.recursive);
    let selection = selection.map_err(|outside| anyhow::anyhow!("{outside}"));
    selection.context(name).map(Some)
}

/// Returns true if everything in a directory is copied although there is a list. As in rsync, only
/// what the list has below a directory is copied if a rule excludes that.
pub(crate) fn is_whole(selection: &Selection, filter: Option<&Filter>, dir: &RelPath) -> bool {
    let is_excluded = |dir: &RelPath| filter.is_some_and(|filter| filter.is_dir_excluded(dir));
    selection.is_whole(dir, is_excluded)
}

/// What a worker remembers from one directory to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    ignores: gitignore::Cache,
}

/// A directory of a source.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) target: u32,
    /// The directory of the target.
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) path: &'a RelPath,
    /// The directory itself.
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) follows_links: bool,
}

/// The filters for the entries of one directory.
#[derive(Debug)]
pub(crate) struct DirFilter<'a> {
    filter: &'a Filter,
    /// The path below the source, with a slash before and after it. `/` for the source itself.
    path: Vec<u8>,
    ignores: Ignores,
    marker: Option<&'a Marker>,
}

impl<'a> DirFilter<'a> {
    /// Prepares the filters for a directory. Also returns the error of its `.gitignore`: its
    /// entries are copied as if it had none.
    pub(crate) fn new(
        filter: &'a Filter,
        memory: &mut Memory,
        place: &Place<'_>,
    ) -> (Self, Option<Errno>) {
        let path = path_of(place.path);
        let above = filter.above.as_ref();
        let above = above.and_then(|above| above.get(place.target as usize));
        let (ignores, error) = match above {
            Some(above) => {
                let place = gitignore::Place {
                    target: place.target,
                    root: place.root,
                    path: place.path,
                    follows_links: place.follows_links,
                };
                memory.ignores.rules_of(&place, above)
            }
            None => (Ignores::default(), None),
        };
        let mut markers = filter.markers.iter();
        let dir = Self {
            filter,
            path,
            ignores,
            marker: markers.find(|marker| marker.is_in(place.dir)),
        };
        (dir, error)
    }

    /// Returns why an entry is left out.
    ///
    /// `is_way` is set for a directory that leads to paths of a list ([`Chosen::is_way`]): as in
    /// rsync, rules do not apply to it.
    pub(crate) fn find(&self, name: &[u8], is_dir: bool, is_way: bool) -> Option<Exclusion<'_>> {
        if let Some(marker) = self.marker
            && marker.name.as_bytes() != name
        {
            return Some(Exclusion::Option(&marker.option));
        }
        if !is_way && let Some(rule) = self.filter.find_rule(&self.path, name, is_dir) {
            return Some(Exclusion::Rule(rule));
        }
        self.ignores.find(name, is_dir).map(Exclusion::Ignored)
    }

    /// Returns true if an entry of this name is left out. What the destination has under the name is
    /// then no copy of it.
    pub(crate) fn is_excluded(&self, name: &[u8], is_dir: bool) -> bool {
        self.find(name, is_dir, false).is_some()
    }

    /// Returns true if [`DirFilter::find_limit`] must see the stat of an entry of this kind.
    pub(crate) fn needs_stat(&self, kind: Kind) -> bool {
        let limits = &self.filter.limits;
        match kind {
            Kind::File => limits::is_set(limits),
            Kind::Symlink | Kind::Special => limits.needs_time(),
            Kind::Directory => false,
        }
    }

    /// Returns which limit leaves out an entry with this stat.
    pub(crate) fn find_limit(&self, stat: &Stat) -> Option<Exclusion<'_>> {
        limits::find(&self.filter.limits, stat).map(Exclusion::Option)
    }
}

/// Returns a directory's path below the source, with a slash before and after it.
fn path_of(dir: &RelPath) -> Vec<u8> {
    let mut path = b"/".to_vec();
    if !dir.as_bytes().is_empty() {
        path.extend_from_slice(dir.as_bytes());
        path.push(b'/');
    }
    path
}

impl Marker {
    fn is_in(&self, dir: BorrowedFd<'_>) -> bool {
        if !self.is_tag {
            return fs::statat(dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Ok(file) = open_unnoticed(dir, &*self.name, flags) else {
            return false;
        };
        let mut start = [0; TAG.len()];
        files::is_regular(file.as_fd())
            && rustix::io::pread(&file, &mut start, 0) == Ok(TAG.len())
            && start == TAG
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use clap::Parser;
    use rustix::fs::Mode;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;
    use crate::fs::open::DIRECTORY;

    fn filter(words: &[&str]) -> Option<Filter> {
        let words = [&["pcopy", "src", "dst"], words].concat();
        let config = Config::new(Cli::try_parse_from(words).unwrap()).unwrap();
        Filter::load(&config.filter).unwrap()
    }

    fn open(dir: &Path) -> OwnedFd {
        fs::open(dir, DIRECTORY, Mode::empty()).unwrap()
    }

    fn dir_filter<'a>(filter: &'a Filter, dir: &'a OwnedFd, path: &'a RelPath) -> DirFilter<'a> {
        let place = Place {
            target: 0,
            root: dir.as_fd(),
            path,
            dir: dir.as_fd(),
            follows_links: false,
        };
        DirFilter::new(filter, &mut Memory::default(), &place).0
    }

    #[test]
    fn without_filters_there_is_none() {
        assert!(filter(&[]).is_none());
        assert!(filter(&["--exclude="]).is_none());
        assert!(filter(&["--from0", "--existing"]).is_none());
        for word in [
            "--exclude=a",
            "--gitignore",
            "--exclude-caches",
            "--min-size=1",
        ] {
            assert!(filter(&[word]).is_some(), "{word}");
        }
    }

    #[test]
    fn rules_see_the_path_below_the_source() {
        let filter = filter(&["--exclude=/a/b/c", "--exclude=*.o"]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = open(dir.path());
        let path = RelPath::default().join(b"a").join(b"b");
        let in_b = dir_filter(&filter, &dir, &path);
        assert!(in_b.is_excluded(b"c", false));
        assert!(!in_b.is_excluded(b"d", false));
        assert_eq!(
            in_b.find(b"x.o", false, false).unwrap().to_string(),
            "--exclude '*.o'"
        );
        assert!(in_b.find(b"x.o", true, true).is_none());
        let top = RelPath::default();
        let top = dir_filter(&filter, &dir, &top);
        assert!(!top.is_excluded(b"c", false));
        assert!(filter.find_named(b"x.o", None).is_some());
        assert!(filter.find_named(b"c", None).is_none());
    }

    #[test]
    fn a_marker_leaves_out_all_but_itself() {
        let filter = filter(&["--exclude-caches", "--exclude-if-present=.nobackup"]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        let path = RelPath::default();
        let is_excluded =
            |name: &str| dir_filter(&filter, &opened, &path).is_excluded(name.as_bytes(), false);
        assert!(!is_excluded("x"));
        let tag = dir.path().join(TAG_NAME);
        std::fs::write(&tag, "something else").unwrap();
        assert!(!is_excluded("x"));
        std::fs::write(&tag, [TAG, b"\n# comment\n"].concat()).unwrap();
        assert!(is_excluded("x"));
        assert!(!is_excluded(TAG_NAME));
        std::fs::remove_file(&tag).unwrap();
        std::fs::write(dir.path().join(".nobackup"), "").unwrap();
        assert!(is_excluded("x") && !is_excluded(".nobackup"));
    }
}
