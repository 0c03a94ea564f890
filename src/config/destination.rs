//! What goes where, as far as the words of the command line decide it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::cli::Cli;
use crate::quote::quote_for_shell;

/// Where the sources go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The one source becomes this path. A file lands in it instead if it is a directory.
    Path(PathBuf),
    /// The one source becomes this path, whatever that is.
    Exactly(PathBuf),
    /// Each source lands in this directory under its own name.
    Directory(PathBuf),
    /// Each source is copied to its own name with this ending.
    Beside(OsString),
}

/// Returns the sources and the destination that the command line names.
pub(super) fn of(cli: &Cli) -> Result<(Vec<PathBuf>, Destination)> {
    let mut sources = cli.paths.clone();
    if let Some(ending) = &cli.duplicate {
        if cli.target_directory.is_some() || cli.no_target_directory {
            bail!("--duplicate puts each copy beside its source: it goes neither with -t nor -T");
        }
        let ending = match ending {
            Some(ending) => ending.clone(),
            None => cli.environment.ending().into(),
        };
        if ending.is_empty() || ending.as_bytes().contains(&b'/') {
            bail!("--duplicate: the ending must not be empty, and must contain no slash");
        }
        if sources.is_empty() {
            bail!("nothing to copy; usage: pcopy --duplicate SRC..., for example: {DUPLICATE}");
        }
        return Ok((sources, Destination::Beside(ending)));
    }
    if let Some(dir) = &cli.target_directory {
        if cli.no_target_directory {
            bail!("-t and -T contradict each other: into the directory, or in its place");
        }
        if sources.is_empty() {
            let dir = quote_for_shell(dir.as_os_str().as_bytes());
            bail!(
                "nothing to copy; usage: pcopy -t DIR SRC..., for example: pcopy -t {dir} photos"
            );
        }
        return Ok((sources, Destination::Directory(normalize(dir))));
    }
    let Some(last) = sources.pop() else {
        bail!("nothing to copy; usage: pcopy SRC... DST, for example: {EXAMPLE}");
    };
    let destination = match sources.len() {
        0 => bail!(
            "no destination; usage: pcopy SRC... DST, for example: {}",
            example(&last)
        ),
        1 if cli.no_target_directory => Destination::Exactly(last),
        count if cli.no_target_directory => bail!(
            "-T takes one source, and these are {count}; without -T they land in {}",
            quote_for_shell(last.as_os_str().as_bytes())
        ),
        1 if !means_into(&last) => Destination::Path(last),
        _ => Destination::Directory(normalize(&last)),
    };
    Ok((sources, destination))
}

const EXAMPLE: &str = "pcopy photos /mnt/backup/photos";
const DUPLICATE: &str = "pcopy --duplicate photos";

/// Returns a command line that copies this source.
fn example(source: &Path) -> String {
    let name = own_name(source).unwrap_or(OsStr::new("copy"));
    let destination = Path::new("/mnt/backup").join(name);
    format!(
        "pcopy {} {}",
        quote_for_shell(source.as_os_str().as_bytes()),
        quote_for_shell(destination.as_os_str().as_bytes())
    )
}

/// Returns true if a path can only name a directory that sources land in: it ends in a slash, or
/// in `.` or `..`, which are no names that a copy could get.
fn means_into(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || is_dots(last_part(bytes))
}

/// Returns the name of a path's entry. `None` for paths that end in `.` or `..`, and for `/`: as in
/// cp, what they name lands in a directory without a name of its own, so that becomes the copy.
pub(crate) fn own_name(path: &Path) -> Option<&OsStr> {
    let last = last_part(path.as_os_str().as_bytes());
    (!last.is_empty() && !is_dots(last)).then(|| OsStr::from_bytes(last))
}

/// Returns what follows the last slash, not counting slashes at the end.
fn last_part(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    let start = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    &path[start..]
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Removes what does not change where a path leads: slashes and `.` at its end. So a directory that
/// does not exist yet can be created under it.
pub(crate) fn normalize(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<(Vec<PathBuf>, Destination)> {
        of(&Cli::try_parse_from([&["pcopy"], words].concat()).unwrap())
    }

    fn destination(words: &[&str]) -> Destination {
        parse(words).unwrap().1
    }

    fn directory(path: &str) -> Destination {
        Destination::Directory(path.into())
    }

    #[test]
    fn the_last_path_is_the_destination_without_t() {
        assert_eq!(destination(&["a", "b"]), Destination::Path("b".into()));
        let (sources, two) = parse(&["a", "b", "c"]).unwrap();
        assert_eq!((sources.len(), two), (2, directory("c")));
        assert_eq!(destination(&["-t", "c", "a"]), directory("c"));
    }

    #[test]
    fn a_slash_or_dots_at_the_end_mean_into() {
        for (typed, path) in [
            ("b/", "b"),
            ("b//", "b"),
            ("b/.", "b"),
            ("b/./", "b"),
            (".", "."),
            ("./", "."),
            ("..", ".."),
            ("b/..", "b/.."),
            ("/", "/"),
            ("//", "/"),
        ] {
            assert_eq!(destination(&["a", typed]), directory(path), "{typed}");
            let exactly = Destination::Exactly(typed.into());
            assert_eq!(destination(&["-T", "a", typed]), exactly);
        }
        for typed in ["b", "./b", "/b", "b/c", "..b", "b.", "..."] {
            assert_eq!(destination(&["a", typed]), Destination::Path(typed.into()));
        }
    }

    #[test]
    fn a_name_is_what_follows_the_last_slash() {
        for (path, name) in [("a", "a"), ("a/b//", "b"), ("/a", "a"), (".a", ".a")] {
            assert_eq!(own_name(Path::new(path)), Some(OsStr::new(name)));
        }
        for path in [".", "..", "a/.", "a/..", "a/./", "../..//", "/", "//", ""] {
            assert_eq!(own_name(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_shown_by_a_whole_example() {
        let message = |words: &[&str]| parse(words).unwrap_err().to_string();
        for (words, example) in [
            (&[][..], "pcopy photos /mnt/backup/photos"),
            (&["photos"], "pcopy photos /mnt/backup/photos"),
            (&["a b/c d/"], "pcopy 'a b/c d/' '/mnt/backup/c d'"),
            (&["."], "pcopy . /mnt/backup/copy"),
            (&["-t", "dir"], "pcopy -t dir photos"),
            (&["--duplicate"], "pcopy --duplicate photos"),
        ] {
            let message = message(words);
            assert!(
                message.ends_with(&format!("for example: {example}")),
                "{message}"
            );
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            &["-T", "-t", "dir", "a"][..],
            &["-T", "a", "b", "c"],
            &["--duplicate", "-t", "dir", "a"],
            &["--duplicate", "-T", "a"],
            &["--duplicate=", "a"],
            &["--duplicate=/x", "a"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn all_paths_are_duplicated() {
        let (sources, beside) = parse(&["--duplicate=~", "a", "b"]).unwrap();
        assert_eq!(
            (sources.len(), beside),
            (2, Destination::Beside("~".into()))
        );
        assert_eq!(
            destination(&["--duplicate", "a"]),
            Destination::Beside(" (copy)".into())
        );
    }
}
